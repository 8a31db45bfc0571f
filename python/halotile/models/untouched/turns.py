# SPDX-License-Identifier: MIT
"""Inspecting a module and running it exclude each other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    Turn = TypeVar("Turn")

__all__ = ["turns"]

PATIENCE = 60.0  # seconds of waiting at most: a model may itself wait for a thread that waits for its turn here


class Turns:
    """Locks on modules. A look, which inspects a module that cannot be copied, excludes other looks and all runs; a run
    excludes looks only. A thread that has a turn waits for no other turn, so there is no deadlock."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.runs: list[tuple[int, Sequence[torch.nn.Module]]] = []  # thread, root modules
        self.looks: list[tuple[int, set[int]]] = []  # thread, ids of all modules; includes waiting looks

    @contextlib.contextmanager
    def run(self, roots: Sequence[torch.nn.Module]) -> Iterator[None]:
        """A context for running modules."""
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
    def look(self, modules: Iterable[torch.nn.Module]) -> Iterator[None]:
        """A context for inspecting modules."""
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
        """Whether no run and no earlier look uses the same modules."""
        before = self.looks[: next(i for i, look in enumerate(self.looks) if look is turn)]
        ids = (*(look[1] for look in before), *(_ids_in(roots) for _, roots in self.runs))
        return all(turn[1].isdisjoint(one) for one in ids)

    def _end(self, turns: list[Turn], turn: Turn) -> None:
        with self.changed:
            del turns[next(i for i, one in enumerate(turns) if one is turn)]
            self.changed.notify_all()


def _ids_in(roots: Iterable[torch.nn.Module]) -> set[int]:
    return {id(inner) for root in roots for inner in root.modules()}


turns = Turns()
