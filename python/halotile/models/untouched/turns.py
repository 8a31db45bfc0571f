# SPDX-License-Identifier: MIT
"""Threads that look at a model, or run it, take turns."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["turns"]

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
