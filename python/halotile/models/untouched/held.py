# SPDX-License-Identifier: MIT
"""What things were, for as long as any thread is at work with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["held"]


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


held = Held()
