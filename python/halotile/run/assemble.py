# SPDX-License-Identifier: MIT
"""Turns a prepared image into rows. The only decision left is the out-of-memory fallback to smaller tiles."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from ..engine.device_lock import turn
from ..errors import OutOfMemoryError, TileError
from ..memory import is_out_of_memory
from .out_of_memory import smaller
from .prepared import First, Prepared, Sink
from .progress import Progress

__all__ = ["assemble", "drained", "hold_statistics"]

End = TypeVar("End")


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
    rows_done, rows = 0, _rows(prepared, index, sink, 0, first, progress)
    while True:
        try:
            stop = next(rows, None)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, TileError):
                error.rows_done = rows_done
            final = isinstance(error, OutOfMemoryError) or rows_done == prepared.plan.output_size[0]
            if final or not is_out_of_memory(error):
                raise
            prepared = _with_smaller_tiles(prepared, index, error, first, rows_done, progress)
            rows = _rows(prepared, index, sink, rows_done, first, progress)
            continue
        if stop is None:
            return prepared
        start, rows_done = rows_done, stop
        sink.done(index, start, stop)
        yield start, stop


def _rows(
    prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
) -> Iterator[int]:
    hold_statistics(prepared, index, first, progress)
    yield from prepared.schedule.rows(prepared, index, sink, rows_done, first, progress)


def _with_smaller_tiles(
    prepared: Prepared, index: int, error: Exception, first: First, rows_done: int, progress: Progress
) -> Prepared:
    with turn(prepared.windows.engine.device):
        prepared = smaller(prepared, error, first, rows_done)
    images_after = prepared.image.count - index - 1
    left = prepared.schedule.tiles_from(prepared, rows_done) + len(prepared.plan) * images_after
    progress.begin(progress.done + left)
    return prepared


def hold_statistics(prepared: Prepared, index: int, first: First, progress: Progress) -> None:
    windows, report = prepared.windows, prepared.report
    if not report.holds or windows.held_for == index:
        return
    from .global_stats import GlobalStats

    first.clear()
    windows.held.clear()
    stats = GlobalStats(windows, report.global_stats, report.model)
    with turn(windows.engine.device):
        parts = [part for part in prepared.parts_of(index) if part.how == "model"]
        sweeps = sum(stats.sweeps(part, index, prepared.plan) for part in parts)
        progress.begin(progress.total + sweeps * len(prepared.plan))
        windows.held |= {part: stats.measured(part, index, prepared.plan, progress.advance) for part in parts}
    windows.held_for = index


def drained(steps: Generator[Any, None, End]) -> End:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
