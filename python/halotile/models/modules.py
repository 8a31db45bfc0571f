# SPDX-License-Identifier: MIT
"""Device, dtype and convolutions of torch modules; conversion to another device or dtype."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..optional import torch_if_loaded
from ..texts import quoted
from .devices import BEST, Device, usable_device
from .untouched.copies import copied

if TYPE_CHECKING:
    import torch

__all__ = ["converted", "device_and_dtype", "first_convolution", "mostly_convolutions"]


def device_and_dtype(module: torch.nn.Module) -> tuple[torch.device | None, str | None]:
    """Those of the first floating-point parameter or buffer; if there is none, the device of the first tensor."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor.device, str(tensor.dtype).removeprefix("torch.")
    return (tensors[0].device if tensors else None), None


def converted(module: torch.nn.Module, device: Device | None, dtype: str | None) -> torch.nn.Module:
    """The module itself if it has that device and dtype, else a converted copy. A module that is on an accelerator, or
    cannot be copied, stays where it is if the best device is asked for.

    Raises:
        ValueError: the device cannot be used, or the module cannot be copied.
    """
    if device == BEST:
        own = device_and_dtype(module)[0]
        if own is None or own.type != "cpu":
            return converted(module, None, dtype)
        with contextlib.suppress(ValueError):
            return converted(module, usable_device(device), dtype)
        return converted(module, None, dtype)
    torch = torch_if_loaded()
    device = usable_device(device)
    own_device, own_dtype = device_and_dtype(module)
    moves = device is not None and own_device is not None and device != own_device
    casts = dtype is not None and own_dtype is not None and dtype != own_dtype
    if not (moves or casts):
        return module
    try:
        return copied(module).to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except Exception as error:  # a module may raise anything when it is copied
        requested = " and ".join(f"{name}={value}" for name, value in (("device", device), ("dtype", dtype)) if value)
        text = f"{requested} asks for a converted copy of model, which cannot be copied: {quoted(error)}"
        raise ValueError(f"{text}; convert it yourself") from error


def first_convolution(module: torch.nn.Module) -> tuple[int | None, bool]:
    """Input channels of the first convolution, if there is one, and whether its weights are stored channels-last."""
    torch = torch_if_loaded()
    for inner in module.modules():
        for weight in _weights_of(inner):
            lazy = isinstance(weight, torch.nn.parameter.UninitializedTensorMixin)
            if isinstance(weight, torch.Tensor) and not lazy and weight.ndim == 4:
                last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
                return getattr(inner, "in_channels", None), last
    return None, False


def _weights_of(module: torch.nn.Module) -> Iterator[object]:
    """A layer's attribute `weight`, or the tensors that its parametrization computes it from. Computes nothing."""
    if isinstance(module, torch_if_loaded().jit.ScriptModule):
        yield getattr(module, "weight", None)
        return
    yield vars(module).get("weight")
    yield module._parameters.get("weight")
    parametrized = module._modules.get("parametrizations")
    if parametrized is not None and "weight" in parametrized._modules:
        yield from parametrized._modules["weight"].parameters(recurse=False)


def mostly_convolutions(module: torch.nn.Module) -> bool:
    """Whether most weights belong to 2D convolutions and none to 3D ones."""
    sizes = [(weight.ndim, weight.numel()) for weight in module.parameters()]
    ours = sum(size for dims, size in sizes if dims == 4)
    return all(dims <= 4 for dims, _ in sizes) and 2 * ours > sum(size for _, size in sizes)
