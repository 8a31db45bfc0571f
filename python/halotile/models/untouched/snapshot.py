# SPDX-License-Identifier: MIT
"""All that modules are, given back: `preserved`."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reach import all_modules
from .held import held
from .tensors import DEPTH, give_back_tensors, has_values, tensors_of, values_of, write_back
from .turns import turns

if TYPE_CHECKING:
    import torch

__all__ = ["preserved"]

MODE = "training"  # of a submodule; `model.evaluating` gives it back, also where several runs share a model
SIMPLE = (bool, int, float, complex, str, bytes, type(None))  # what is given back beside tensors


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
            if has_values(tensor):
                self._add(tensor, values_of, write_back)

    def _add(self, thing: Any, state: Callable[[Any], Any], give_back: Callable[[Any, Any], object]) -> bool:
        """Whether it is new."""
        if id(thing) in self.held:
            return False
        held.hold(thing, state)
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
                all_of_them.callback(held.release, thing, self.thread, give_back, alone)


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


def _give_simple(now: dict[str, Any], before: dict[str, Any]) -> None:
    give_back_tensors(now, before, SIMPLE)
