# SPDX-License-Identifier: MIT
"""Restores everything about modules that cannot be copied: `preserved`."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np

from ..reach import all_modules
from .saved import saved_states
from .tensors import DEPTH, has_values, restore_tensors, tensors_of, values_of, write_back
from .turns import turns

if TYPE_CHECKING:
    import torch

    T = TypeVar("T")
    State = TypeVar("State")
    Generator = random.Random | np.random.Generator | np.random.RandomState | torch.Generator

__all__ = ["preserved"]

MODE = "training"  # an attribute that `evaluating` restores instead, since runs may share a model
# Attributes that plain objects get back, beside tensors.
SIMPLE = (bool, int, float, complex, str, bytes, type(None))


@contextlib.contextmanager
def preserved(modules: Iterable[torch.nn.Module], *, values: bool = True) -> Iterator[None]:
    """A context that restores modules, and any other module that this thread runs inside. `evaluating` restores modes.

    Args:
        values: whether to restore the values of tensors too. This takes a copy of them, and a turn to look.
    """
    if sys.modules.get("torch") is None:
        yield
        return
    everything = all_modules(*modules)
    with turns.look(everything) if values else contextlib.nullcontext(), _restored(everything, values):
        yield


@contextlib.contextmanager
def _restored(everything: list[torch.nn.Module], values: bool) -> Iterator[None]:
    import torch

    snapshot = Snapshot()
    snapshot.alone = values
    for module in everything:
        snapshot.add(module, values)
    snapshot.alone = False  # modules that are found on the way have no turn

    def enter(module: torch.nn.Module, _: object) -> None:
        if threading.get_ident() == snapshot.thread and id(vars(module)) not in snapshot.saved:
            for inner in all_modules(module):
                snapshot.add(inner, True)

    hook = torch.nn.modules.module.register_module_forward_pre_hook(enter)
    try:
        yield
    finally:
        hook.remove()
        snapshot.restore()


class Snapshot:
    """The saved state of modules: attributes, the contents of lists, dicts and sets, and values of tensors."""

    def __init__(self) -> None:
        # By id: the object, the function that restores it, and `alone` when it was added.
        self.saved: dict[int, tuple[object, Callable[..., object], bool]] = {}
        self.thread, self.alone = threading.get_ident(), False  # alone: whether this thread has the turn

    def add(self, module: torch.nn.Module, values: bool) -> None:
        """Saves a module, without its submodules, once. values: whether to save the values of its tensors."""
        import torch

        if not self._add(vars(module), dict, _refill_attributes):
            return
        if not isinstance(module, torch.jit.ScriptModule):
            self._add_contents(vars(module), DEPTH)
        for tensor in tensors_of(module) if values else ():
            if has_values(tensor):
                self._add(tensor, values_of, write_back)

    def _add(self, thing: T, state: Callable[[Any], State], restore: Callable[[T, State], object]) -> bool:
        """Saves an object. Returns whether it was new."""
        if id(thing) in self.saved:
            return False
        saved_states.save(thing, state)
        self.saved[id(thing)] = thing, restore, self.alone
        return True

    def _add_contents(self, container: Collection[object], depth: int) -> None:
        """Saves the containers, random generators and plain objects in a container."""
        for one in list(container.values() if isinstance(container, dict) else container):
            if isinstance(one, tuple) and depth:
                self._add_contents(one, depth - 1)
            elif isinstance(one, (dict, list, set, deque)) and depth:
                if self._add(one, type(one).copy, _refill):
                    self._add_contents(one, depth - 1)
            elif _is_generator(one):
                self._add(one, _generator_state, _set_generator)
            elif _is_plain(one) and depth and self._add(vars(one), dict, _restore_simple):
                self._add_contents(vars(one), depth - 1)

    def restore(self) -> None:
        with contextlib.ExitStack() as stack:  # even if one fails
            for thing, restore, alone in reversed(self.saved.values()):
                stack.callback(saved_states.release, thing, self.thread, restore, alone)


def _is_generator(value: object) -> TypeGuard[Generator]:
    import torch

    return isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator))


def _generator_state(generator: Generator) -> object:
    """The state of a random number generator."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_generator(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _refill_attributes(now: dict[str, object], before: dict[str, object]) -> None:
    _refill(now, before | {MODE: now[MODE]} if MODE in now else before)


def _refill(now: Any, before: Any) -> None:
    """Restores a container's contents. What did not change is not written: another thread may be reading it."""
    if isinstance(now, dict):
        _refill_dict(now, before)
    elif isinstance(now, set):
        now.intersection_update(before)
        now.update(before)
    elif list(map(id, now)) != list(map(id, before)):
        now.clear()
        now.extend(before)


def _refill_dict(now: dict[object, object], before: dict[object, object]) -> None:
    for name in [name for name in now if name not in before]:
        now.pop(name, None)
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value
    if list(now) != list(before):  # in the same order
        for name in before:
            now[name] = now.pop(name)


def _is_plain(value: object) -> bool:
    """Whether it is an object with attributes, other than a module, tensor, class or function."""
    import torch

    others = (torch.nn.Module, torch.Tensor, type, types.ModuleType, types.FunctionType, types.MethodType)
    return hasattr(value, "__dict__") and not isinstance(value, others)


def _restore_simple(now: dict[str, object], before: dict[str, object]) -> None:
    restore_tensors(now, before, SIMPLE)
