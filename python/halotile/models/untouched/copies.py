# SPDX-License-Identifier: MIT
"""Copies of modules, with tensors of their own or with the module's."""

from __future__ import annotations

import copy
import functools
import sys
import types
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..around import silence
from ..reach import all_modules, reachable
from .tensors import leaves, tensors_of

if TYPE_CHECKING:
    import torch

__all__ = ["copied", "shell", "uncompiled", "without_hooks"]


class StaysItself(TypeError):
    """A module's copy shares a part with it, so using the copy would change the module."""


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with its own tensors.

    Raises:
        Exception: of any kind, if the module cannot be copied.
    """
    own = _copy(module, {})
    tensors = {id(tensor) for inner in all_modules(module) for tensor in tensors_of(inner)}
    if any(id(tensor) in tensors for inner in all_modules(own) for tensor in tensors_of(inner)):
        raise StaysItself("its copies have the same tensors")
    return own


def shell(module: torch.nn.Module, device: str | None = None) -> torch.nn.Module:
    """A copy whose parameters share the module's memory, with its own attributes, hooks, lists and dicts.

    Args:
        device: "meta" for a copy whose tensors have no memory.

    Raises:
        Exception: of any kind, if the module cannot be copied.
    """
    import torch

    memo: dict[int, object] = {}
    for inner in all_modules(module):
        for tensor in tensors_of(inner):
            memo[id(tensor)] = _twin(tensor, device, torch)
    return _copy(module, memo)


def _copy(module: torch.nn.Module, memo: dict[int, object]) -> torch.nn.Module:
    """A deep copy. Raises StaysItself if the copy runs the module or a part of it."""
    with silence:  # torch warns when exported programs are copied
        own = copy.deepcopy(module, memo)
    originals = {id(inner) for inner in module.modules()}
    for inner in own.modules():
        if id(inner) in originals or _leads_to(inner, originals):
            raise StaysItself("its copies run parts of the module itself")
    hidden = {id(inner) for inner in all_modules(module) if _has_state(inner)}
    if any(id(inner) in hidden for inner in all_modules(own)):
        raise StaysItself("its copies run modules that it runs itself")
    return own


def _has_state(module: torch.nn.Module) -> bool:
    """Whether sharing a module matters: not for torch's activations, which programs often share."""
    return not type(module).__module__.startswith("torch.nn.") or any(True for _ in tensors_of(module))


LEADING = (types.FunctionType, types.MethodType, functools.partial, weakref.ref)


def _leads_to(module: torch.nn.Module, others: set[int]) -> bool:
    """Whether an attribute of a module is a function or weak reference that leads to one of the others. Copying a
    function returns the same function with the same closure."""
    leading = (value for value in leaves(vars(module)) if isinstance(value, LEADING))
    return any(id(one) in others for value in leading for one in reachable(value, 3))


def uncompiled(module: Any) -> Any:
    """The module that was passed to torch.compile, for single runs at many sizes; any other model as it is."""
    compilers = sys.modules.get("torch._dynamo.eval_frame")
    if compilers is None or not isinstance(module, compilers.OptimizedModule):
        return module
    return module._modules["_orig_mod"]


def without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """Removes the user's hooks from a `shell`: they are for the user's own runs. torch's hooks, as for weight
    normalisation, are part of the model and stay."""
    for inner in all_modules(module):
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not (getattr(hook, "__module__", None) or "").startswith("torch."):
                    del hooks[key]
    return module


def _twin(tensor: torch.Tensor, device: str | None, torch: ModuleType) -> torch.Tensor:
    """A second tensor object: networks may replace `data`. Parameters share memory; other tensors, which any run may
    write to, are copied; on the device "meta", none has memory."""
    twin = tensor.detach() if device is None else tensor.detach().to(device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(twin, tensor.requires_grad)
    return twin.clone() if device is None else twin
