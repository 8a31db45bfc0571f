# SPDX-License-Identifier: MIT
"""A module's tensors and their values: saved, compared, restored."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEPTH",
    "equal",
    "has_values",
    "leaves",
    "modules_in",
    "restore_memory",
    "restore_tensors",
    "tensors_of",
    "values_of",
    "write",
    "write_back",
    "write_moved",
]

DEPTH = 4  # nested containers that are searched


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """A submodule's parameters, buffers, and tensors among its other attributes."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        yield from (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return
    for value in leaves(vars(module)):
        if isinstance(value, torch.Tensor):
            yield value


def modules_in(root: torch.nn.Module) -> list[torch.nn.Module]:
    """A module and its submodules, once each: `modules()` without the names, which take most of its time."""
    import torch

    found, waiting = {id(root): root}, [root]
    while waiting:
        module = waiting.pop()
        inside = module.modules() if isinstance(module, torch.jit.ScriptModule) else module._modules.values()
        for inner in inside:
            if inner is not None and id(inner) not in found:
                found[id(inner)] = inner
                waiting.append(inner)
    return list(found.values())


def leaves(value: Collection[object], depth: int = DEPTH) -> Iterator[object]:
    """The elements of a container, with nested containers flattened."""
    inner = value.values() if isinstance(value, dict) else value
    for one in list(inner):
        if isinstance(one, (dict, list, tuple, set, deque)) and depth:
            yield from leaves(one, depth - 1)
        else:
            yield one


Values = tuple["torch.Tensor", "int | None", "torch.Tensor"]  # a copy, the version, the tensor's memory


def values_of(tensor: torch.Tensor) -> Values:
    return tensor.detach().clone(), _version(tensor), tensor.data


def _version(tensor: torch.Tensor) -> int | None:
    """torch's count of writes, which misses those through NumPy or `data`; None for inference tensors."""
    return None if tensor.is_inference() else tensor._version


def write_back(tensor: torch.Tensor, before: Values) -> None:
    """Restores memory and values."""
    restore_memory(tensor, before[2])
    write(tensor, before[0])


def write_moved(tensor: torch.Tensor, before: Values) -> None:
    """Restores values, if torch counted a write."""
    if _version(tensor) != before[1]:
        write(tensor, before[0])


def has_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor's values can be saved and compared: dense tensors with memory."""
    import torch

    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or tensor.device.type == "meta":
        return False
    if torch._is_functional_tensor(tensor):  # of a layer that was created while operators are traced
        return False
    return tensor.layout == torch.strided and not tensor.is_nested and type(tensor).__name__ != "FakeTensor"


def equal(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether values are the same bits, or compare equal: NaN equals the same NaN, and 0 equals -0."""
    import torch

    if tensor.shape != value.shape or tensor.dtype != value.dtype:
        return False
    if torch.equal(tensor, value):
        return True
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    pair = (one.detach().resolve_conj().resolve_neg().reshape(-1).contiguous() for one in (tensor, value))
    return torch.equal(*(one.view(torch.uint8) for one in pair))


def write(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Restores a tensor's values, if they changed."""
    import torch

    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape != value.shape:
            tensor.resize_(value.shape)
        elif equal(tensor, value):
            return
        tensor.copy_(value)


def restore_memory(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Restores the memory of a tensor whose `data` was replaced, perhaps with an inference tensor."""
    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
        tensor.data = data


def restore_tensors(now: dict[str, object], before: dict[str, object], kinds: tuple[type, ...] = ()) -> None:
    """Restores the entries of a dict that now hold a new tensor or a value of the kinds."""
    if not kinds and now.keys() == before.keys() and all(map(operator.is_, now.values(), before.values())):
        return  # as nearly always, and for every module of a model
    import torch

    for name, value in list(now.items()):
        if isinstance(value, (torch.Tensor, *kinds)) and value is not before.get(name, before):
            if name in before:
                now[name] = before[name]
            else:
                del now[name]
