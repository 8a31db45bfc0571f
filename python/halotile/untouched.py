# SPDX-License-Identifier: MIT
"""A model is afterwards what it was: its parameters, buffers, attributes, hooks, mode, device, and random numbers.

    shell          a copy with attributes of its own and the model's tensors: for passes that nobody asked for
    preserved      a context that gives modules everything back: where the user's own modules must run
    tensors_kept   a context that gives them back the tensors that a forward pass replaced: around every run
    same_luck      a context after which random numbers go on as if none had been drawn
    without_memory a context in which no model reads the memory of tensors that have none
    own_grad_mode  a context in which inspection is the same whatever the caller's grad mode is

Nothing here imports torch: where it is not loaded, there is no model of its kind.
"""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "own_grad_mode",
    "preserved",
    "same_luck",
    "shell",
    "tensors_kept",
    "tensors_of",
    "without_hooks",
    "without_memory",
]

MODE = "training"  # of a submodule; `model.evaluating` gives it back, also where several runs share a model
DEPTH = 4  # of lists in dicts in lists
# Methods of tensors that lead to their memory.
ADDRESSES = {"data_ptr", "untyped_storage", "storage", "_typed_storage", "numpy", "__array__", "__dlpack__", "tolist"}


def shell(module: torch.nn.Module, device: str | None = None) -> torch.nn.Module:
    """A copy of a module whose tensors share its memory, with attributes, hooks, lists and dicts of its own.

    Args:
        device: "meta" for tensors without memory in place of the module's own.

    Raises:
        Exception: whatever a part of the module raises that cannot be copied.
    """
    import torch

    memo: dict[int, Any] = {}
    for inner in module.modules():
        for tensor in tensors_of(inner):
            memo[id(tensor)] = _twin(tensor, device, torch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about what its programs consist of
        return copy.deepcopy(module, memo)


def without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """The module, which must be a `shell`, without hooks of the user's: they watch what is run for the user. Those that
    torch itself put there, as for normalised weights, are part of the model."""
    for inner in module.modules():
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not (getattr(hook, "__module__", None) or "").startswith("torch."):
                    del hooks[key]
    return module


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and tensors among a submodule's own attributes."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        yield from (*module.parameters(recurse=False), *module.buffers(recurse=False))
        return
    for value in _leaves(vars(module)):
        if isinstance(value, torch.Tensor):
            yield value


def _twin(tensor: torch.Tensor, device: str | None, torch: Any) -> torch.Tensor:
    """Another tensor of the same memory, or of none on the device "meta": some networks give theirs other memory."""
    twin = tensor.detach() if device is None else tensor.detach().to(device)
    return torch.nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else twin


def _leaves(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """What containers hold, and what the containers in them hold."""
    inner = value.values() if isinstance(value, dict) else value
    for one in list(inner):
        if isinstance(one, (dict, list, tuple, set, deque)) and depth:
            yield from _leaves(one, depth - 1)
        else:
            yield one


# ---- everything ------------------------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """What modules were: their attributes, the contents of containers among them, the values of their tensors."""

    attributes: dict[int, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    contents: list[tuple[Any, Any]] = field(default_factory=list)
    objects: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    values: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = field(default_factory=dict)

    def add(self, module: torch.nn.Module) -> None:
        """A module and its submodules; once each."""
        import torch

        for inner in module.modules():
            if id(inner) in self.attributes:
                continue
            self.attributes[id(inner)] = vars(inner), dict(vars(inner))
            if not isinstance(inner, torch.jit.ScriptModule):
                self._add_contents(vars(inner), DEPTH)
            for tensor in () if self.values is None else tensors_of(inner):
                if tensor.device.type != "meta":
                    self.values.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    def _add_contents(self, container: Any, depth: int) -> None:
        for one in list(container.values() if isinstance(container, dict) else container):
            if isinstance(one, (dict, list, set, deque)) and depth:
                self.contents.append((one, one.copy()))
                self._add_contents(one, depth - 1)
            elif _is_plain(one):
                self.objects.append((vars(one), dict(vars(one))))

    def restore(self) -> None:
        import torch

        for now, before in self.attributes.values():
            mode = now.get(MODE)
            now.clear()
            now.update(before)
            if mode is not None:
                now[MODE] = mode
        for now, before in self.contents:
            now.clear()
            now.extend(before) if isinstance(now, (list, deque)) else now.update(before)
        for now, before in self.objects:
            _give_back(now, before)
        for tensor, value in (self.values or {}).values():
            _write(tensor, value, torch)


def _is_plain(value: Any) -> bool:
    """Whether it is an object of somebody's own, with attributes."""
    import torch

    others = (torch.nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)
    return hasattr(value, "__dict__") and not isinstance(value, others)


def _give_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Tensors that took the place of something give it back."""
    import torch

    for name, value in list(now.items()):
        if isinstance(value, torch.Tensor) and value is not before.get(name):
            if name in before:
                now[name] = before[name]
            else:
                del now[name]


def _write(tensor: torch.Tensor, value: torch.Tensor, torch: Any) -> None:
    """Gives a tensor its values back, if they are others."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape != value.shape:
            tensor.resize_(value.shape)
        elif torch.equal(tensor, value):
            return
        tensor.copy_(value)


@contextlib.contextmanager
def preserved(modules: Iterable[torch.nn.Module], *, values: bool = True) -> Iterator[None]:
    """Gives modules back all that they were, and whatever else this thread runs inside: also modules that a callable
    reaches in ways that nobody can see. Modes are `evaluating`'s affair.

    Args:
        values: whether the values of their tensors are looked at as well, of which a copy is held meanwhile.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    snapshot, thread = Snapshot(values={} if values else None), threading.get_ident()
    for module in modules:
        snapshot.add(module)

    def enter(module: torch.nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            snapshot.add(module)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(enter)
    try:
        yield
    finally:
        hook.remove()
        snapshot.restore()


# ---- tensors ---------------------------------------------------------------------------------------------------------


class _Kept:
    """The attributes of one submodule, for as long as anybody runs it."""

    def __init__(self, inner: torch.nn.Module):
        self.inner, self.users = inner, 0
        self.before = [(own, dict(own)) for own in _own_dicts(inner)]
        self.values = [(one, one.detach().clone(), one._version) for one in inner._buffers.values() if _counted(one)]
        self.memory = [(one, one.data) for one in inner._parameters.values() if one is not None]

    def restore(self) -> None:
        """Tensors that took the place of something give it back, parameters get their memory and buffers their values.

        What a pass kept would be tensors of inference mode, with which the model could not be trained any more."""
        import torch

        for own, before in self.before:
            _give_back(own, before)
        for parameter, data in self.memory:
            if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
                parameter.data = data
        for tensor, value, version in self.values:
            if tensor._version != version:
                _write(tensor, value, torch)


def _own_dicts(inner: torch.nn.Module) -> list[dict[str, Any]]:
    return [vars(inner), inner._buffers, inner._parameters]


def _counted(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.device.type != "meta" and not tensor.is_inference()


_lock = threading.Lock()
_kept: dict[int, _Kept] = {}  # by the submodule's id


@contextlib.contextmanager
def tensors_kept(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Around runs of modules: afterwards each has the tensors that it had. Where several runs share a module, with the
    last of them."""
    entered: list[int] = []
    try:
        with _lock:
            for module in modules:
                for inner in _plain_modules(module):
                    kept = _kept.get(id(inner)) or _kept.setdefault(id(inner), _Kept(inner))
                    kept.users += 1
                    entered.append(id(inner))
        yield
    finally:
        with _lock:
            for key in entered:
                _kept[key].users -= 1
                if _kept[key].users == 0:
                    _kept.pop(key).restore()


def _plain_modules(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    import torch

    return (inner for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule))


# ---- what surrounds a model ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def same_luck() -> Iterator[None]:
    """Random numbers of Python, NumPy and torch, on every device in use, go on afterwards as if none had been drawn."""
    torch, plain, arrays = sys.modules.get("torch"), random.getstate(), np.random.get_state()
    tensors = [] if torch is None else [(torch, torch.get_rng_state()), *_device_luck(torch)]
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        for module, state in tensors:
            module.set_rng_state_all(state) if isinstance(state, list) else module.set_rng_state(state)


def _device_luck(torch: Any) -> Iterator[tuple[Any, Any]]:
    for module in (torch.cuda, torch.xpu):
        if module.is_available() and module.is_initialized():
            yield module, module.get_rng_state_all()
    if torch.backends.mps.is_available():
        with contextlib.suppress(RuntimeError, AttributeError):  # a device without random numbers of its own
            yield torch.mps, torch.mps.get_rng_state()


def without_memory() -> contextlib.AbstractContextManager[Any]:
    """A context for tensors that have none: a model that asks where theirs is gets an error, not an address to read."""
    import torch
    from torch.overrides import TorchFunctionMode

    def has_none(tensor: Any) -> bool:
        inside = torch._from_functional_tensor(tensor) if torch._is_functional_tensor(tensor) else tensor
        return inside.device.type == "meta" or type(inside).__name__ == "FakeTensor"

    class NoAddress(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            if name in ADDRESSES and args and isinstance(args[0], torch.Tensor) and has_none(args[0]):
                raise RuntimeError("the model reads the memory of a tensor that has none here")
            return function(*args, **(kwargs or {}))

    return NoAddress()


@contextlib.contextmanager
def own_grad_mode() -> Iterator[None]:
    """Neither gradients nor inference mode: inside it operators consist of others, and tensors count their versions."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
