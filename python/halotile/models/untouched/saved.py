# SPDX-License-Identifier: MIT
"""Saved states of objects that several threads use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["saved_states"]

T = TypeVar("T")
State = TypeVar("State")


class SavedStates:
    """Saved states of parts of models, taken by the first thread that inspects or runs them. A thread restores them
    when it is done, unless another one still uses them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entries: dict[int, tuple[object, Any, list[int]]] = {}  # by id: the object, its state, threads

    def save(self, thing: T, state: Callable[[T], State]) -> State:
        """The saved state of an object. state: makes it, if no thread uses the object yet."""
        with self.lock:
            entry = self.entries.get(id(thing)) or self.entries.setdefault(id(thing), (thing, state(thing), []))
            entry[2].append(threading.get_ident())
        return entry[1]

    def save_all(self, things: Sequence[T], state: Callable[[T], object]) -> None:
        """`save` for several objects."""
        entries, own = self.entries, threading.get_ident()
        with self.lock:
            for thing in things:
                entry = entries.get(id(thing))
                if entry is None:
                    entry = entries.setdefault(id(thing), (thing, state(thing), []))  # collection may save it meanwhile
                entry[2].append(own)

    def release(self, thing: T, thread: int, restore: Callable[[T, Any], object], alone: bool = False) -> None:
        """Ends a thread's use of an object and restores its state if no other thread needs the object.

        Args:
            thread: the one that called `save`.
            alone: whether to restore even if other threads still use the object, since none runs it now.
        """
        with self.lock:
            _, before, threads = self.entries[id(thing)]
            threads.remove(thread)
            if not threads:
                del self.entries[id(thing)]
            if alone or not threads or all(one == thread for one in threads):
                restore(thing, before)


saved_states = SavedStates()
