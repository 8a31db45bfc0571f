# SPDX-License-Identifier: MIT
"""Turns a prepared image into rows. The only decision left is the out-of-memory fallback to smaller tiles."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeVar

from ..engine.device_lock import turn
from ..errors import NonFiniteError, OutOfMemoryError, TileError
from ..memory import is_out_of_memory
from .out_of_memory import smaller
from .prepared import First, Prepared, Sink
from .progress import Progress

__all__ = ["assemble", "drained", "timed"]

Item, End = TypeVar("Item"), TypeVar("End")


def assemble(
    prepared: Prepared, index: int, sink: Sink, first: First, progress: Progress
) -> Generator[tuple[int, int], None, Prepared]:
    """Produces the rows of image `index`, from the top, and yields (start, stop) when rows are finished.

    Args:
        first: outputs of the first batch, if any.

    Returns:
        `prepared`, with smaller tiles if memory ran out.

    Raises:
        TileError: the model failed; `rows_done` counts the finished rows.
    """
    rows_done = sink.finished(index)
    if rows_done:
        first.clear()
        _skip(prepared, rows_done, progress)
    if rows_done == prepared.plan.output_size[0]:
        return prepared
    rows = prepared.schedule.rows(prepared, index, sink, rows_done, first, progress)
    while True:
        try:
            stop = next(rows, None)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, TileError):
                known = isinstance(error, NonFiniteError)  # a device tells at the end what it found in earlier rows
                error.rows_done = min(error.rows_done, rows_done) if known else rows_done
            final = isinstance(error, OutOfMemoryError) or rows_done == prepared.plan.output_size[0]
            if final or not is_out_of_memory(error):
                raise
            prepared = _with_smaller_tiles(prepared, index, error, first, rows_done, progress)
            rows = prepared.schedule.rows(prepared, index, sink, rows_done, first, progress)
            continue
        if stop is None:
            return prepared
        start, rows_done = rows_done, stop
        sink.done(index, start, stop)
        yield start, stop


def _skip(prepared: Prepared, rows_done: int, progress: Progress) -> None:
    whole = rows_done == prepared.plan.output_size[0]
    skipped = len(prepared.plan) - (0 if whole else prepared.schedule.tiles_from(prepared, rows_done))
    if skipped:
        progress.advance(skipped)


def _with_smaller_tiles(
    prepared: Prepared, index: int, error: Exception, first: First, rows_done: int, progress: Progress
) -> Prepared:
    with turn(prepared.windows.engine.device):
        prepared = smaller(prepared, error, first, rows_done)
    images_after = prepared.image.count - index - 1
    left = prepared.schedule.tiles_from(prepared, rows_done) + len(prepared.plan) * images_after
    progress.begin(progress.done + left)
    return prepared


def drained(steps: Generator[Any, None, End]) -> End:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def timed(steps: Generator[Item, None, End]) -> Generator[Item, None, tuple[End, float]]:
    """The same steps; returns the seconds that they took, too, without what happens between them."""
    seconds = 0.0
    with closing(steps):
        while True:
            started = time.perf_counter()
            try:
                item = next(steps)
            except StopIteration as end:
                return end.value, seconds + time.perf_counter() - started
            seconds += time.perf_counter() - started
            yield item
