# SPDX-License-Identifier: MIT
"""The heap kept during a run: what a model frees stays with the process, and is not mapped anew for the next layer.

glibc maps blocks above 32 MiB (128 KiB, before it has adapted) anew each time. Every page of such a block costs a
fault, which makes models with large activations up to three times slower. While a run keeps the heap the process stays
at its high-water mark; afterwards it is given back. On other C libraries nothing is done. See docs/speed.md.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from .. import _core

__all__ = ["aside", "is_kept", "kept", "stepwise"]

# Who has set glibc's thresholds keeps them.
SET_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


class _Runs:
    """Those that keep the heap at the moment."""

    def __init__(self) -> None:
        self.lock, self.count = threading.Lock(), 0

    def enter(self) -> bool:
        with self.lock:
            held = self.count > 0 or _core.heap_keep()
            self.count += held
        return held

    def leave(self) -> None:
        with self.lock:
            if self.count == 1:
                _core.heap_release()
            self.count = max(0, self.count - 1)  # a child process that was forked inside comes here too

    def pause(self) -> None:
        with self.lock:
            if self.count > 0:
                _core.heap_pause()

    def resume(self) -> None:
        with self.lock:
            if self.count > 0:
                _core.heap_keep()

    def forget(self) -> None:
        """In a child process, which the runs of its parent are not in."""
        self.lock = threading.Lock()
        if self.count > 0:
            self.count = 0
            _core.heap_release()


_runs = _Runs()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runs.forget)
_END = object()


@contextlib.contextmanager
def kept(asked: bool = True) -> Iterator[bool]:
    """Keeps the heap inside, for the whole process. Runs at the same time share it: the last one gives it back, also
    when it fails.

    Args:
        asked: whether to do so; the environment variable HALOTILE_KEEP_HEAP=0 says no for all.

    Yields:
        Whether it is kept: False where it is not asked for, on other C libraries than glibc, and where malloc was set
        by environment variables (MALLOC_..., GLIBC_TUNABLES).
    """
    held = asked and _allowed() and _runs.enter()
    try:
        yield held
    finally:
        if held:
            _runs.leave()


def is_kept() -> bool:
    """Whether anybody keeps it at the moment."""
    return _runs.count > 0


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """What is allocated inside goes back when it is freed, even while the heap is kept: for what outlives windows, and
    would lie between their blocks."""
    _runs.pause()
    try:
        yield
    finally:
        _runs.resume()


def _allowed() -> bool:
    value = os.environ.get("HALOTILE_KEEP_HEAP", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"the environment variable HALOTILE_KEEP_HEAP must be 0 or 1, not {value!r}")
    by_hand = any(name in os.environ for name in SET_BY_HAND) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    return value != "0" and not by_hand


def stepwise(steps: Iterator[Any], asked: bool) -> Iterator[Any]:
    """The same steps. The heap is kept while one is made, and not while whoever asked for it works with it: who never
    asks for the next one leaves nothing behind."""
    while True:
        with kept(asked):
            step = next(steps, _END)
        if step is _END:
            return
        yield step
