# SPDX-License-Identifier: MIT
"""What a run has settled on, and whether another tile size or strip height gives the same bits.

What changes pixels by itself must be as before. Tiles, batches, strips and memory formats must not change them, but
models compute in floats, and some libraries add in another order for other shapes. So where they differ, the last
finished rows are made both ways, in float32 before any rounding, and every bit must agree.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from typing import Any

import numpy as np

from ..options import Options
from ..plan import TilePlan
from ..run.assemble import assemble
from ..run.prepared import Prepared
from ..run.progress import Progress
from ..run.tiles import TILES

__all__ = ["first_row_again", "fixed", "gives_same_bits", "manner", "start_of_row", "with_manner"]


def fixed(prepared: Prepared) -> dict[str, Any]:
    """What must not differ."""
    options, traits = prepared.options, prepared.traits
    return {
        "halo": list(options.halo),
        "phase": list(options.phase),
        "scale": str(traits.scale),
        "trim": list(traits.trim),
        "dtype": prepared.windows.model.dtype,
        "the result": [*prepared.plan.output_size, *prepared.made[:2]],
    }


def manner(prepared: Prepared) -> dict[str, Any]:
    """What may differ where bits do not."""
    device = prepared.windows.model.device
    return {
        "device": "cpu" if device is None else str(device),
        "schedule": prepared.schedule.name,
        "tile_size": list(prepared.plan.tile),
        "batch_size": prepared.batch,
        "strips": getattr(prepared.schedule, "step", None),
        "memory_format": prepared.windows.model.window_format,
    }


def with_manner(options: Options, before: dict[str, Any]) -> Options:
    """Options that leave open what an earlier run has settled get its choice."""
    found: dict[str, Any] = {}
    if options.tuned and before["schedule"] == "tiles" and options.memory_limit == before["memory_limit"]:
        found = {"tile_size": tuple(before["tile_size"]), "batch_size": before["batch_size"], "memory_limit": None}
    if options.dtype == "auto":
        found["dtype"] = before["dtype"]
    if options.memory_format == "auto" and not before["device"].startswith("cpu"):
        found["memory_format"] = before["memory_format"]  # where it may have been chosen by timing
    if options.schedule == "auto":
        found["schedule"] = before["schedule"]
    return replace(options, **found) if found else options


def first_row_again(prepared: Prepared, rows_done: int) -> int:
    """The row from which a run goes on: that of the last finished tile row, which is made again and compared; where
    batches are cut anew there, an earlier one."""
    return start_of_row(prepared.plan, prepared.batch, rows_done)[1]


def start_of_row(plan: TilePlan, batch: int, rows_done: int) -> tuple[int, int]:
    """The first tile row to run, and the first row that it and those below finish, to make the tile row again with
    which `rows_done` rows are finished; where batches are cut anew there, those of an earlier one."""
    row = bisect_left(range(plan.grid[0] - 1), rows_done, key=lambda one: plan.core.done(0, one)[1])
    while row and _first_row(plan, row) * plan.grid[1] % batch:
        row -= 1
    return _first_row(plan, row), min(rows_done, plan.core.done(0, row)[0])


def _first_row(plan: TilePlan, row: int) -> int:
    """The first tile row of those that contribute to what a tile row finishes."""
    start = plan.core.done(0, row)[0]
    return bisect_right(range(row), start, key=lambda one: plan.core.keep(0, one)[1])


def gives_same_bits(prepared: Prepared, before: dict[str, Any], index: int, rows_done: int) -> bool:
    """Whether rows above `rows_done` have the same bits in the manner of before as in that of now. Only for the device
    of before."""
    now = replace(prepared, out_dtype="float32")
    other = now.with_tiles((before["tile_size"][0], before["tile_size"][1]), before["batch_size"])
    ways = before["schedule"], prepared.schedule.name
    if ways == ("tiles", "stream"):
        other = replace(other, schedule=TILES)
    elif ways == ("stream", "tiles"):
        return False  # nothing here can make a stream again
    elif ways == ("stream", "stream"):
        other = replace(other, schedule=replace(prepared.schedule, step=before["strips"]))  # type: ignore[type-var]
    start = min(first_row_again(one, rows_done) for one in (now, other))
    made = [_made(one, index, start, rows_done) for one in (now, other)]
    return bool(np.array_equal(*(one.view(np.uint32) for one in made)))


def _made(prepared: Prepared, index: int, start: int, stop: int) -> np.ndarray:
    rows = _Rows(prepared, start, stop)
    for _, done in assemble(prepared, index, rows, {}, Progress(None)):
        if done >= stop:
            break
    return rows.made


class _Rows:
    """A sink for rows [start, stop), beyond which nothing is kept."""

    keeps = False

    def __init__(self, prepared: Prepared, start: int, stop: int):
        self.start, self.stop = start, stop
        self.below = prepared.plan.output_size[0]
        self.made = np.empty((prepared.channels, stop - start, prepared.plan.output_size[1]), np.float32)
        self.views: dict[int, Any] = {}

    def finished(self, index: int) -> int:
        return self.start

    def rows(self, index: int, start: int, stop: int) -> Any:
        self.views[start] = np.empty((self.made.shape[0], stop - start, self.made.shape[2]), np.float32)
        return self.views[start]

    def done(self, index: int, start: int, stop: int) -> None:
        rows, end = self.views.pop(start), min(stop, self.stop)
        if start < end:
            self.made[:, start - self.start : end - self.start] = rows[:, : end - start]
