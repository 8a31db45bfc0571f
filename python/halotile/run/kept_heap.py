# SPDX-License-Identifier: MIT
"""Keeps the heap during a run: memory that a model frees stays with the process, ready for the next layer.

glibc maps blocks above 32 MiB (128 KiB before it adapts) anew for each allocation. Every page then costs a page fault,
which makes models with large activations up to three times slower. While a run keeps the heap, the process stays at its
high-water mark; afterwards the memory is returned. Other C libraries are left alone. See docs/speed.md.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import _core

__all__ = ["aside", "is_kept", "kept", "stepwise"]

# The user's own glibc thresholds take precedence.
SET_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


class _Runs:
    """Counts the runs that keep the heap."""

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
            self.count = max(0, self.count - 1)  # also reached by a child process forked inside

    def pause(self) -> None:
        with self.lock:
            if self.count > 0:
                _core.heap_pause()

    def resume(self) -> None:
        with self.lock:
            if self.count > 0:
                _core.heap_keep()

    def forget(self) -> None:
        """Resets the count in a child process, which takes no part in its parent's runs."""
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
    """Keeps the heap inside the context, for the whole process. Concurrent runs share it; the last to leave returns the
    memory, also on errors.

    Args:
        asked: whether to keep it; the environment variable HALOTILE_KEEP_HEAP=0 overrides this.

    Yields:
        Whether the heap is kept: False if not asked for, without glibc, or if environment variables set malloc's
        thresholds (MALLOC_..., GLIBC_TUNABLES).
    """
    held = asked and _allowed() and _runs.enter()
    try:
        yield held
    finally:
        if held:
            _runs.leave()


def is_kept() -> bool:
    return _runs.count > 0


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Allocations inside bypass the kept heap and are returned when freed: for arrays that outlive windows and would
    fragment it."""
    _runs.pause()
    try:
        yield
    finally:
        _runs.resume()


def _allowed() -> bool:
    value = os.environ.get("HALOTILE_KEEP_HEAP", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"the environment variable HALOTILE_KEEP_HEAP must be 0 or 1, not {value!r}")
    started = environment_at_start()
    by_hand = any(name in started for name in SET_BY_HAND) or "malloc" in started.get("GLIBC_TUNABLES", "")
    return value != "0" and not by_hand


@functools.cache
def environment_at_start() -> Mapping[str, str]:
    """The environment in which the process began, which is what glibc read. Dask sets malloc's variables in its own
    process, for those that it starts."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return os.environ
    return dict(os.fsdecode(entry).partition("=")[::2] for entry in entries if b"=" in entry)


def stepwise(steps: Iterator[Any], asked: bool) -> Iterator[Any]:
    """The same steps, with the heap kept only while a step runs, not while the caller uses its result. An abandoned
    iterator leaves nothing behind."""
    while True:
        with kept(asked):
            step = next(steps, _END)
        if step is _END:
            return
        yield step
