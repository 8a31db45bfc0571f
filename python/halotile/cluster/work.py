# SPDX-License-Identifier: MIT
"""What parts of a result cost by either schedule: see `Work` in blocks.py. Numbers alone, so that they travel."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from functools import cached_property

from ..files.zarr import CHUNK
from ..plan import TilePlan
from ..resume.settled import start_of_row
from ..run.prepared import Prepared
from ..run.tiles import TILES

__all__ = ["StreamWork", "TilesWork", "columns_of", "work_of"]


@dataclass(frozen=True)
class TilesWork:
    """Windows of all tiles that a part needs."""

    plan: TilePlan
    batch: int
    by_columns: bool = True
    warm_up: int = 0  # rows of the image that a block reads above and below its own: those of a tile

    def of(self, rows: tuple[int, int], columns: tuple[int, int]) -> float:
        first, _ = start_of_row(self.plan, self.batch, rows[0] + 1)
        last = bisect_right(self._stops, rows[1] - 1)
        across = columns_of(self.plan, columns) if self.by_columns else range(self.plan.grid[1])
        return float((last + 1 - first) * len(across) * self.plan.window[0] * self.plan.window[1])

    @cached_property
    def _stops(self) -> list[int]:
        return [self.plan.core.done(0, row)[1] for row in range(self.plan.grid[0] - 1)]


def columns_of(plan: TilePlan, columns: tuple[int, int]) -> range:
    """The tile columns that contribute to columns [start, stop) of the result."""
    every = range(plan.grid[1])
    first = bisect_right(every, columns[0], key=lambda one: plan.core.keep(1, one)[1])
    return range(first, bisect_left(every, columns[1], key=lambda one: plan.core.keep(1, one)[0]))


@dataclass(frozen=True)
class StreamWork:
    """Operations of all rows that a band needs, in every layer.

    Attributes:
        pixels: of the image, that go through the model in one stream.
        left_out, made: by row of shards: see `work_at` in run/stream/cost.py.
        warm_up: rows of the image that a band reads above and below its own.
        rows: of the image.
        largest_layer: the share of all operations that the largest layer has.
        between: bytes for a row of the image that lie between two layers, on average.
    """

    pixels: float
    left_out: tuple[float, ...] = field(repr=False)
    made: tuple[float, ...] = field(repr=False)
    warm_up: int
    rows: int
    largest_layer: float
    between: float
    by_columns: bool = False

    def of(self, rows: tuple[int, int], columns: tuple[int, int]) -> float:
        top, bottom = rows[0] // CHUNK, -(-rows[1] // CHUNK)
        return self.pixels * (self.made[bottom] - self.left_out[top])


def work_of(prepared: Prepared) -> TilesWork | StreamWork:
    plan, stream = prepared.plan, prepared.report.stream
    if prepared.schedule is TILES:
        return TilesWork(plan, prepared.batch, warm_up=2 * plan.window[0] - plan.tile[0])
    if stream is None or stream.streams > 1:  # each tile is a stream, and has a warm-up of its own
        return TilesWork(plan, 1, by_columns=False, warm_up=2 * plan.window[0] - plan.tile[0])
    return _work_of_stream(prepared)


def _work_of_stream(prepared: Prepared) -> StreamWork:
    from ..run.stream.cost import bytes_between, largest_layer, reach, work_at
    from ..run.stream.schedule import Stream

    schedule = prepared.schedule
    assert isinstance(schedule, Stream)
    flow = schedule.flows(prepared)[0][0]
    part = next(one for one in prepared.traits.parts if one.how == "model")
    graph = schedule.graph(prepared, part, flow)
    height, down = prepared.plan.output_size[0], flow.crop[0] - flow.keep.y
    rows = -(-height // CHUNK)
    marks = [min(height, row * CHUNK) + down for row in range(rows + 1)]
    found = work_at(graph, marks)
    middle = marks[len(marks) // 2]
    begins, ends = reach(graph, middle)
    read = max(0, min(graph.image.rows, ends[graph.image])) - max(0, begins[graph.image])
    window = flow.window
    return StreamWork(
        float(window.height * window.width),
        (0.0, *(one[0] for one in found[1:])),
        (*(one[1] for one in found[:-1]), 1.0),
        read,
        window.height,
        largest_layer(graph),
        bytes_between(graph),
    )
