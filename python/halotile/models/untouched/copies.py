# SPDX-License-Identifier: MIT
"""Copies of modules: with tensors of their own, or with the module's."""

from __future__ import annotations

import copy
import functools
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any

from ..around import silence
from ..reach import all_modules, reachable
from .tensors import leaves, tensors_of

if TYPE_CHECKING:
    import torch

__all__ = ["copied", "shell", "uncompiled", "without_hooks"]


class StaysItself(TypeError):
    """A part of a module is the same in copies of it: what is done with the copy would be done with the module."""


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with tensors of its own.

    Raises:
        Exception: whatever a part of the module raises that cannot be copied.
    """
    own = _copy(module, {})
    tensors = {id(tensor) for inner in all_modules(module) for tensor in tensors_of(inner)}
    if any(id(tensor) in tensors for inner in all_modules(own) for tensor in tensors_of(inner)):
        raise StaysItself("its copies have the same tensors")
    return own


def shell(module: torch.nn.Module, device: str | None = None) -> torch.nn.Module:
    """A copy of a module whose parameters share its memory, with attributes, hooks, lists and dicts of its own.

    Args:
        device: "meta" for tensors without memory in place of the module's own.

    Raises:
        Exception: whatever a part of the module raises that cannot be copied.
    """
    import torch

    memo: dict[int, Any] = {}
    for inner in all_modules(module):
        for tensor in tensors_of(inner):
            memo[id(tensor)] = _twin(tensor, device, torch)
    return _copy(module, memo)


def _copy(module: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    with silence:  # torch warns of what its programs consist of
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
    """Whether it matters who else runs a module: not for an activation of torch's, which whole programs share."""
    return not type(module).__module__.startswith("torch.nn.") or any(True for _ in tensors_of(module))


LEADING = (types.FunctionType, types.MethodType, functools.partial, weakref.ref)


def _leads_to(module: torch.nn.Module, others: set[int]) -> bool:
    """Whether a function or reference among a module's attributes runs one of other modules: copies of functions are
    the functions themselves, with all that they close over."""
    leading = (value for value in leaves(vars(module)) if isinstance(value, LEADING))
    return any(id(one) in others for value in leading for one in reachable(value, 3))


def uncompiled(module: Any) -> Any:
    """The module that torch.compile was given: what runs once at each of many sizes is not worth compiling."""
    compilers = sys.modules.get("torch._dynamo.eval_frame")
    if compilers is None or not isinstance(module, compilers.OptimizedModule):
        return module
    return module._modules["_orig_mod"]


def without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """The module, which must be a `shell`, without hooks of the user's: they watch what is run for the user. Those that
    torch itself put there, as for normalised weights, are part of the model."""
    for inner in all_modules(module):
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not (getattr(hook, "__module__", None) or "").startswith("torch."):
                    del hooks[key]
    return module


def _twin(tensor: torch.Tensor, device: str | None, torch: Any) -> torch.Tensor:
    """Another tensor of the same memory, or of none on the device "meta": some networks give theirs other memory. What
    is no parameter may be written to by every pass, and has memory of its own."""
    twin = tensor.detach() if device is None else tensor.detach().to(device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(twin, tensor.requires_grad)
    return twin.clone() if device is None else twin
