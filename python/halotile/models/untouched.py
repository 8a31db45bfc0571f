# SPDX-License-Identifier: MIT
"""A model is afterwards what it was: its parameters, buffers, attributes, hooks, mode and device.

    copied         a copy that shares nothing with the model
    shell          a copy with attributes of its own and the model's weights: for passes that nobody asked for
    uncompiled     the module that torch.compile was given
    preserved      a context that gives modules everything back: where the user's own modules must run
    tensors_kept   a context that gives them back the tensors that a forward pass replaced or wrote to: around every run
    roots_of       modules with all those that they hold in lists, objects and functions, where torch does not see them
    all_modules    these, and their submodules

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
from typing import TYPE_CHECKING, Any

import numpy as np

from .around import silence
from .reach import hidden_in, reachable

if TYPE_CHECKING:
    import torch

__all__ = [
    "all_modules",
    "copied",
    "preserved",
    "roots_of",
    "shell",
    "tensors_kept",
    "tensors_of",
    "turns",
    "uncompiled",
    "without_hooks",
]

MODE = "training"  # of a submodule; `model.evaluating` gives it back, also where several runs share a model
DEPTH = 4  # of lists in dicts in lists


class StaysItself(TypeError):
    """A part of a module is the same in copies of it: what is done with the copy would be done with the module."""


def roots_of(*things: Any) -> list[torch.nn.Module]:
    """The modules among things, and those that these or callables lead to in other ways than as submodules: those in
    lists and dicts, in objects, behind functions. With their submodules they are all that a pass may run, as far as
    that can be seen."""
    import torch

    return hidden_in(things, torch.nn.Module, torch.nn.Module.modules)


def all_modules(*things: Any) -> list[torch.nn.Module]:
    """`roots_of` things, and their submodules, once each."""
    return list({id(inner): inner for root in roots_of(*things) for inner in root.modules()}.values())


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
    for inner in all_modules(module):
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
    """Another tensor of the same memory, or of none on the device "meta": some networks give theirs other memory. What
    is no parameter may be written to by every pass, and has memory of its own."""
    twin = tensor.detach() if device is None else tensor.detach().to(device)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(twin, tensor.requires_grad)
    return twin.clone() if device is None else twin


def _leaves(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """What containers hold, and what the containers in them hold."""
    inner = value.values() if isinstance(value, dict) else value
    for one in list(inner):
        if isinstance(one, (dict, list, tuple, set, deque)) and depth:
            yield from _leaves(one, depth - 1)
        else:
            yield one


# ---- everything ------------------------------------------------------------------------------------------------------


PATIENCE = 60.0  # seconds: a model that waits for a thread of its own, which waits for its turn, must not wait for ever


class Turns:
    """Looks at modules themselves, of which there is no copy, and runs of them take turns. Runs wait for nobody else. A
    thread that has a turn already does not wait for another one: no two threads wait for each other."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.runs: list[tuple[int, list[Any]]] = []  # threads, and modules
        self.looks: list[tuple[int, set[int]]] = []  # threads, and ids of all modules; also looks that wait

    @contextlib.contextmanager
    def run(self, roots: list[torch.nn.Module]) -> Iterator[None]:
        turn = threading.get_ident(), roots
        with self.changed:
            if self.looks and not self._has_one(turn[0]):
                ids = _ids_in(roots)
                self.changed.wait_for(lambda: all(ids.isdisjoint(look[1]) for look in self.looks), PATIENCE)
            self.runs.append(turn)
        try:
            yield
        finally:
            self._end(self.runs, turn)

    @contextlib.contextmanager
    def look(self, modules: list[torch.nn.Module]) -> Iterator[None]:
        turn = threading.get_ident(), {id(inner) for inner in modules}
        with self.changed:
            waits = not self._has_one(turn[0])
            self.looks.append(turn)
            if waits:
                self.changed.wait_for(lambda: self._is_free(turn), PATIENCE)
        try:
            yield
        finally:
            self._end(self.looks, turn)

    def _has_one(self, thread: int) -> bool:
        return any(one[0] == thread for one in (*self.runs, *self.looks))

    def _is_free(self, turn: tuple[int, set[int]]) -> bool:
        """Whether no look that came before, and no run, is at the same modules."""
        before = self.looks[: next(i for i, look in enumerate(self.looks) if look is turn)]
        ids = (*(look[1] for look in before), *(_ids_in(roots) for _, roots in self.runs))
        return all(turn[1].isdisjoint(one) for one in ids)

    def _end(self, turns: list[Any], turn: Any) -> None:
        with self.changed:
            del turns[next(i for i, one in enumerate(turns) if one is turn)]
            self.changed.notify_all()


def _ids_in(roots: Iterable[torch.nn.Module]) -> set[int]:
    return {id(inner) for root in roots for inner in root.modules()}


turns = Turns()


class Held:
    """What things of models were before the first of those who look at them or run them; they get it back from each of
    them, but for what another thread is still at work with: from the last, then."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entries: dict[int, tuple[Any, Any, list[int]]] = {}  # by id: the thing, what it was, threads

    def hold(self, thing: Any, state: Callable[[Any], Any]) -> Any:
        """What it was. state: takes that down."""
        with self.lock:
            entry = self.entries.get(id(thing)) or self.entries.setdefault(id(thing), (thing, state(thing), []))
            entry[2].append(threading.get_ident())
        return entry[1]

    def release(self, thing: Any, thread: int, give_back: Callable[[Any, Any], object], alone: bool = False) -> None:
        """thread: in which it was held. alone: whether no other is at work with it now."""
        with self.lock:
            _, before, threads = self.entries[id(thing)]
            threads.remove(thread)
            if not threads:
                del self.entries[id(thing)]
            if alone or all(one == thread for one in threads):
                give_back(thing, before)


_held = Held()


class Snapshot:
    """What modules were: their attributes, the contents of containers among them, the values of their tensors."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Any, Callable[[Any, Any], object], bool]] = {}  # things, and what gives them back
        self.thread, self.alone = threading.get_ident(), False  # alone: whether what is added is looked at in a turn

    def add(self, module: torch.nn.Module, values: bool) -> None:
        """A module alone, once. values: whether those of its tensors may change."""
        import torch

        if not self._add(vars(module), dict, _refill_attributes):
            return
        if not isinstance(module, torch.jit.ScriptModule):
            self._add_contents(vars(module), DEPTH)
        for tensor in tensors_of(module) if values else ():
            if _has_values(tensor):
                self._add(tensor, _values, _write_back)

    def _add(self, thing: Any, state: Callable[[Any], Any], give_back: Callable[[Any, Any], object]) -> bool:
        """Whether it is new."""
        if id(thing) in self.held:
            return False
        _held.hold(thing, state)
        self.held[id(thing)] = thing, give_back, self.alone
        return True

    def _add_contents(self, container: Any, depth: int) -> None:
        for one in list(container.values() if isinstance(container, dict) else container):
            if isinstance(one, tuple) and depth:
                self._add_contents(one, depth - 1)
            elif isinstance(one, (dict, list, set, deque)) and depth:
                if self._add(one, type(one).copy, _refill):
                    self._add_contents(one, depth - 1)
            elif _has_luck(one):
                self._add(one, _luck_of, _give_luck)
            elif _is_plain(one) and depth and self._add(vars(one), dict, _give_simple):
                self._add_contents(vars(one), depth - 1)

    def restore(self) -> None:
        with contextlib.ExitStack() as all_of_them:  # whatever happens with one of them
            for thing, give_back, alone in reversed(self.held.values()):
                all_of_them.callback(_held.release, thing, self.thread, give_back, alone)


SIMPLE = (bool, int, float, complex, str, bytes, type(None))  # what is given back beside tensors


def _has_luck(value: Any) -> bool:
    import torch

    return isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator))


def _luck_of(generator: Any) -> Any:
    """Where a generator of random numbers is."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _give_luck(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _refill_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    _refill(now, before | {MODE: now[MODE]} if MODE in now else before)


def _refill(now: Any, before: Any) -> None:
    """Gives a container its contents back. What is as it was is left alone, for another thread may be reading it."""
    if isinstance(now, dict):
        _refill_dict(now, before)
    elif isinstance(now, set):
        now.intersection_update(before)
        now.update(before)
    elif list(map(id, now)) != list(map(id, before)):
        now.clear()
        now.extend(before)


def _refill_dict(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    for name in [name for name in now if name not in before]:
        now.pop(name, None)
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value
    if list(now) != list(before):  # in that order
        for name in before:
            now[name] = now.pop(name)


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


def _give_simple(now: dict[str, Any], before: dict[str, Any]) -> None:
    _give_back(now, before, SIMPLE)


Kept = tuple["torch.Tensor", "int | None", "torch.Tensor"]  # a copy of values, their version, the memory they were in


def _values(tensor: torch.Tensor) -> Kept:
    return tensor.detach().clone(), _version(tensor), tensor.data


def _version(tensor: torch.Tensor) -> int | None:
    """Which changes as often as it is written to, but for what goes behind torch's back."""
    return None if tensor.is_inference() else tensor._version


def _write_back(tensor: torch.Tensor, before: Kept) -> None:
    _give_memory(tensor, before[2])
    _write(tensor, before[0])


def _write_moved(tensor: torch.Tensor, before: Kept) -> None:
    if _version(tensor) != before[1]:
        _write(tensor, before[0])


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether they can be kept and compared: in plain memory."""
    import torch

    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin) or tensor.device.type == "meta":
        return False
    if torch._is_functional_tensor(tensor):  # of a layer that was made while its operators are looked at
        return False
    return tensor.layout == torch.strided and not tensor.is_nested and type(tensor).__name__ != "FakeTensor"


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
    everything = all_modules(*modules)
    with turns.look(everything) if values else contextlib.nullcontext(), _given_back(everything, values, torch):
        yield


@contextlib.contextmanager
def _given_back(everything: list[torch.nn.Module], values: bool, torch: Any) -> Iterator[None]:
    snapshot = Snapshot()
    snapshot.alone = values
    for module in everything:
        snapshot.add(module, values)
    snapshot.alone = False  # of what else is run, nobody knew

    def enter(module: torch.nn.Module, _: Any) -> None:
        if threading.get_ident() == snapshot.thread and id(vars(module)) not in snapshot.held:
            for inner in all_modules(module):
                snapshot.add(inner, True)

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
        self.inner, self.users, self.thread = inner, 0, threading.get_ident()
        self.dicts = [vars(inner), inner._buffers, inner._parameters]
        for own in self.dicts:
            _held.hold(own, dict)
        self.buffers = [one for one in inner._buffers.values() if one is not None and _has_values(one)]
        self.values = [_held.hold(one, _values)[0] for one in self.buffers]
        self.parameters = [one for one in inner._parameters.values() if one is not None and _has_values(one)]
        self.memory = [(one, one.data) for one in self.parameters]
        self.watched: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # parameters, and their values

    def watch(self) -> None:
        if self.watched is None:
            self.watched = [(one, one.detach().clone()) for one in self.parameters if _may_be_read(one)]

    def written(self) -> bool:
        """Whether a parameter or buffer has other values."""
        buffers = [(one, value) for one, value in zip(self.buffers, self.values, strict=True) if _may_be_read(one)]
        return not all(_equal(one, value) for one, value in (*(self.watched or ()), *buffers))

    def restore(self) -> None:
        """Tensors that took the place of something give it back, parameters get their memory and buffers their values.

        What a pass kept would be tensors of inference mode, with which the model could not be trained any more."""
        with contextlib.ExitStack() as all_of_them:  # whatever happens with one of them
            for tensor, value in self.watched or ():
                all_of_them.callback(_write, tensor, value)
            for tensor in self.buffers:
                give_back = _write_moved if self.watched is None else _write_back
                all_of_them.callback(_held.release, tensor, self.thread, give_back)
            for parameter, data in self.memory:
                all_of_them.callback(_give_memory, parameter, data)
            for own in self.dicts:
                all_of_them.callback(_held.release, own, self.thread, _give_back)


def _may_be_read(tensor: torch.Tensor) -> bool:
    """Whether comparing its values keeps no device waiting, and holding them takes none of its memory."""
    return tensor.device.type == "cpu"


def _give_memory(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Its own memory again, where it was given another, which may be that of inference mode."""
    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
        tensor.data = data


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


_lock = threading.RLock()  # a collected generator may end its run while this thread has it
_kept: dict[int, _Kept] = {}  # by the submodule's id


@contextlib.contextmanager
def tensors_kept(modules: Iterable[torch.nn.Module], *, watched: bool) -> Iterator[Keeping]:
    """Around runs of modules: afterwards each has the tensors that it had. Where several runs share a module, with the
    last of them.

    Args:
        watched: whether also parameters, and buffers written to without a trace, get their values back. A copy of those
            of parameters is held meanwhile.
    """
    keeping, modules = Keeping(), list(modules)
    try:
        with turns.run(modules), _lock:
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
