# SPDX-License-Identifier: MIT
"""A model is afterwards what it was: its parameters, buffers, attributes, hooks, mode and device.

    copied         a copy that shares nothing with the model
    shell          a copy with attributes of its own and the model's tensors: for passes that nobody asked for
    uncompiled     the module that torch.compile was given
    preserved      a context that gives modules everything back: where the user's own modules must run
    tensors_kept   a context that gives them back the tensors that a forward pass replaced or wrote to: around every run

Nothing here imports torch: where it is not loaded, there is no model of its kind.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .around import silence
from .reach import reachable

if TYPE_CHECKING:
    import torch

__all__ = ["copied", "preserved", "shell", "tensors_kept", "tensors_of", "uncompiled", "without_hooks"]

MODE = "training"  # of a submodule; `model.evaluating` gives it back, also where several runs share a model
DEPTH = 4  # of lists in dicts in lists


class StaysItself(TypeError):
    """A part of a module is the same in copies of it: what is done with the copy would be done with the module."""


def copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy with tensors of its own.

    Raises:
        Exception: whatever a part of the module raises that cannot be copied.
    """
    own = _copy(module, {})
    tensors = {id(tensor) for inner in module.modules() for tensor in tensors_of(inner)}
    if any(id(tensor) in tensors for inner in own.modules() for tensor in tensors_of(inner)):
        raise StaysItself("its copies have the same tensors")
    return own


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
    return _copy(module, memo)


def _copy(module: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    with silence:  # torch warns of what its programs consist of
        own = copy.deepcopy(module, memo)
    originals = {id(inner) for inner in module.modules()}
    for inner in own.modules():
        if id(inner) in originals or _leads_to(inner, originals):
            raise StaysItself("its copies run parts of the module itself")
    return own


LEADING = (types.FunctionType, types.MethodType, functools.partial, weakref.ref)


def _leads_to(module: torch.nn.Module, others: set[int]) -> bool:
    """Whether a function or reference among a module's attributes runs one of other modules: copies of functions are
    the functions themselves, with all that they close over."""
    leading = (value for value in _leaves(vars(module)) if isinstance(value, LEADING))
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
    contents: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    objects: dict[int, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)
    values: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    luck: list[Callable[[], object]] = field(default_factory=list)

    def add(self, module: torch.nn.Module, values: bool) -> None:
        """A module and its submodules, once each. values: whether those of their tensors may change."""
        import torch

        for inner in module.modules():
            if id(inner) in self.attributes:
                continue
            self.attributes[id(inner)] = vars(inner), dict(vars(inner))
            if not isinstance(inner, torch.jit.ScriptModule):
                self._add_contents(vars(inner), DEPTH)
            for tensor in tensors_of(inner) if values else ():
                if _has_values(tensor):
                    self.values.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    def _add_contents(self, container: Any, depth: int) -> None:
        for one in list(container.values() if isinstance(container, dict) else container):
            if isinstance(one, (dict, list, set, deque)) and depth:
                if id(one) not in self.contents:
                    self.contents[id(one)] = one, one.copy()
                    self._add_contents(one, depth - 1)
            elif isinstance(one, tuple) and depth:
                self._add_contents(one, depth - 1)
            elif _has_luck(one):
                self.luck.append(_same_numbers(one))
            elif _is_plain(one) and depth and id(one) not in self.objects:
                self.objects[id(one)] = vars(one), dict(vars(one))
                self._add_contents(vars(one), depth - 1)

    def restore(self) -> None:
        for now, before in self.attributes.values():
            _refill(now, before if MODE not in now else before | {MODE: now[MODE]})
        for now, before in self.contents.values():
            _refill(now, before)
        for now, before in self.objects.values():
            _give_back(now, before, SIMPLE)
        for give_back in self.luck:
            give_back()
        for tensor, value in self.values.values():
            _write(tensor, value)


SIMPLE = (bool, int, float, complex, str, bytes, type(None))  # what is given back beside tensors


def _has_luck(value: Any) -> bool:
    import torch

    return isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator))


def _same_numbers(generator: Any) -> Callable[[], object]:
    """What makes a generator of random numbers go on from here."""
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    if isinstance(generator, np.random.Generator):
        return functools.partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    return functools.partial(generator.set_state, generator.get_state())


def _refill(now: Any, before: Any) -> None:
    """Gives a container its contents back. One that has them is left alone: another thread may be reading it."""
    pairs = (now.items(), before.items()) if isinstance(now, dict) else (now, before)
    if len(now) == len(before):
        ids = [[tuple(map(id, one)) if isinstance(now, dict) else id(one) for one in side] for side in pairs]
        if ids[0] == ids[1] or (isinstance(now, set) and now == before):
            return
    now.clear()
    now.extend(before) if isinstance(now, (list, deque)) else now.update(before)


def _is_plain(value: Any) -> bool:
    """Whether it is an object of somebody's own, with attributes."""
    import torch

    others = (torch.nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)
    return hasattr(value, "__dict__") and not isinstance(value, others)


def _give_back(now: dict[str, Any], before: dict[str, Any], kinds: tuple[type, ...] = ()) -> None:
    """Tensors, and other values of certain kinds, that took the place of something give it back."""
    import torch

    for name, value in list(now.items()):
        if isinstance(value, (torch.Tensor, *kinds)) and value is not before.get(name, before):
            if name in before:
                now[name] = before[name]
            else:
                del now[name]


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether they can be kept and compared: in plain memory."""
    import torch

    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or tensor.device.type == "meta":
        return False
    return tensor.layout == torch.strided and not tensor.is_nested


def _equal(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    """Bit by bit, as far as there are bits: NaN equals NaN."""
    import torch

    if tensor.shape != value.shape or tensor.dtype != value.dtype:
        return False
    if torch.equal(tensor, value):
        return True
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    pair = (one.detach().resolve_conj().resolve_neg().reshape(-1).contiguous() for one in (tensor, value))
    return torch.equal(*(one.view(torch.uint8) for one in pair))


def _write(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Gives a tensor its values back, if they are others."""
    import torch

    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape != value.shape:
            tensor.resize_(value.shape)
        elif _equal(tensor, value):
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
    snapshot, thread = Snapshot(), threading.get_ident()
    for module in modules:
        snapshot.add(module, values)

    def enter(module: torch.nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            snapshot.add(module, True)

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
        buffers = [one for one in inner._buffers.values() if one is not None and _has_values(one)]
        self.values = [(one, one.detach().clone(), _version(one)) for one in buffers]
        self.parameters = [one for one in inner._parameters.values() if one is not None and _has_values(one)]
        self.memory = [(one, one.data) for one in self.parameters]
        self.watched: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # parameters, and their values

    def watch(self) -> None:
        if self.watched is None:
            self.watched = [(one, one.detach().clone()) for one in self.parameters]

    def written(self) -> bool:
        """Whether a parameter or buffer has other values."""
        buffers = [(one, value) for one, value, _ in self.values]
        return not all(_equal(one, value) for one, value in (*(self.watched or ()), *buffers))

    def restore(self) -> None:
        """Tensors that took the place of something give it back, parameters get their memory and buffers their values.

        What a pass kept would be tensors of inference mode, with which the model could not be trained any more."""
        for own, before in self.before:
            _give_back(own, before)
        for parameter, data in self.memory:
            if parameter.data_ptr() != data.data_ptr() or parameter.shape != data.shape:
                parameter.data = data
        for tensor, value, version in self.values:
            if self.watched is not None or _version(tensor) != version:
                _write(tensor, value)
        for tensor, value in self.watched or ():
            _write(tensor, value)


def _own_dicts(inner: torch.nn.Module) -> list[dict[str, Any]]:
    return [vars(inner), inner._buffers, inner._parameters]


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


class Keeping:
    """What is kept of modules in a `tensors_kept`."""

    def __init__(self) -> None:
        self.kept: list[_Kept] = []

    def written(self) -> bool:
        """Whether what ran inside wrote to parameters or buffers. If not, it is taken to do so at no time, and the
        values of parameters are no longer held."""
        with _lock:
            if any(one.written() for one in self.kept):
                return True
            for one in self.kept:
                one.watched = None
        return False


_lock = threading.Lock()
_kept: dict[int, _Kept] = {}  # by the submodule's id


@contextlib.contextmanager
def tensors_kept(modules: Iterable[torch.nn.Module], *, watched: bool) -> Iterator[Keeping]:
    """Around runs of modules: afterwards each has the tensors that it had. Where several runs share a module, with the
    last of them.

    Args:
        watched: whether also parameters, and buffers written to without a trace, get their values back. A copy of those
            of parameters is held meanwhile.
    """
    keeping = Keeping()
    try:
        with _lock:
            for module in modules:
                for inner in _plain_modules(module):
                    kept = _kept.get(id(inner)) or _kept.setdefault(id(inner), _Kept(inner))
                    kept.users += 1
                    keeping.kept.append(kept)
                    if watched:
                        kept.watch()
        yield keeping
    finally:
        with _lock:
            for kept in keeping.kept:
                kept.users -= 1
                if kept.users == 0:
                    _kept.pop(id(kept.inner)).restore()


def _plain_modules(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    import torch

    return (inner for inner in module.modules() if not isinstance(inner, torch.jit.ScriptModule))
