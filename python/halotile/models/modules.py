# SPDX-License-Identifier: MIT
"""What is asked of torch modules: device, dtype, the first convolution; and copies of them that are converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..optional import torch_if_loaded
from ..texts import quoted
from .devices import usable_device
from .untouched.copies import copied

__all__ = ["converted", "device_and_dtype", "first_convolution", "mostly_convolutions"]


def device_and_dtype(module: Any) -> tuple[Any, str | None]:
    """Of the first floating-point parameter or buffer."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor.device, str(tensor.dtype).removeprefix("torch.")
    return (tensors[0].device if tensors else None), None


def converted(module: Any, device: Any, dtype: str | None) -> Any:
    """The module itself if it is as asked, else a copy on the device and in the dtype."""
    torch = torch_if_loaded()
    device = usable_device(device)
    own_device, own_dtype = device_and_dtype(module)
    moves = device is not None and own_device is not None and device != own_device
    casts = dtype is not None and own_dtype is not None and dtype != own_dtype
    if not (moves or casts):
        return module
    try:
        return copied(module).to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except Exception as error:  # whatever a module does to stay as it is
        asked = " and ".join(f"{name}={value}" for name, value in (("device", device), ("dtype", dtype)) if value)
        text = f"{asked} asks for a converted copy of model, which cannot be copied: {quoted(error)}"
        raise ValueError(f"{text}; convert it yourself") from error


def first_convolution(module: Any) -> tuple[int | None, bool]:
    """Input channels of the first convolution, and whether its weights are stored channels-last."""
    torch = torch_if_loaded()
    for inner in module.modules():
        for weight in _weights_of(inner):
            lazy = isinstance(weight, torch.nn.parameter.UninitializedTensorMixin)
            if isinstance(weight, torch.Tensor) and not lazy and weight.ndim == 4:
                last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
                return getattr(inner, "in_channels", None), last
    return None, False


def _weights_of(module: Any) -> Iterator[Any]:
    """What a layer holds under that name, or its parametrization makes it from: nothing is computed."""
    if isinstance(module, torch_if_loaded().jit.ScriptModule):
        yield getattr(module, "weight", None)
        return
    yield vars(module).get("weight")
    yield module._parameters.get("weight")
    parametrized = module._modules.get("parametrizations")
    if parametrized is not None and "weight" in parametrized._modules:
        yield from parametrized._modules["weight"].parameters(recurse=False)


def mostly_convolutions(module: Any) -> bool:
    """Whether more than half of the weights are those of two-dimensional convolutions, and none has more dimensions."""
    sizes = [(weight.ndim, weight.numel()) for weight in module.parameters()]
    ours = sum(size for dims, size in sizes if dims == 4)
    return all(dims <= 4 for dims, _ in sizes) and 2 * ours > sum(size for _, size in sizes)
