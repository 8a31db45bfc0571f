# SPDX-License-Identifier: MIT
"""The schedule of shift_average=: several grids of tiles, each begun earlier than the last, whose results are averaged.

    grid 0    |        |        |        |        a model that is not exact by nature draws seams where tiles meet;
    grid 1       |        |        |        |     each grid has them elsewhere, and the average has a third of each
    grid 2          |        |        |
    rows      =====================                the rows that all grids have finished are averaged and go to the sink

Grids take turns: the one that is farthest behind goes on. So each holds the rows of a few tiles, not a result, and a
file is read from top to bottom. How far they lie apart is measured on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..engine.device_lock import turn
from ..engine.engine import Band
from ..engine.host import ConstantBand
from ..images.image import Pixels
from ..images.values import Values
from ..optional import torch_if_loaded
from ..plan import TilePlan, plan_of_rows
from .out_of_memory import smaller_tiles
from .prepared import First, Prepared, Sink, Stage
from .progress import Progress
from .report import Averaged, RunInfo
from .tiles import TILES

__all__ = ["ShiftedGrids", "with_shifted_grids", "with_spread"]

Pair = tuple[int, int]

GOLDEN = (math.sqrt(5) - 1) / 2
JUDGED = ("given", "unverified", "tile")  # RunInfo.how of runs whose error the spread is


def with_shifted_grids(prepared: Prepared) -> Prepared:
    """The run on shifted grids, if the options ask for several."""
    count = prepared.options.shift_average
    return prepared if count == 1 else replace(prepared, schedule=ShiftedGrids(count))


def with_spread(prepared: Prepared) -> RunInfo:
    """The report of a finished run, with the spread of its grids."""
    schedule, report = prepared.schedule, prepared.report
    if not isinstance(schedule, ShiftedGrids):
        return report
    averaged = schedule.spread.reported(len(shifts_of(prepared.plan, schedule.count)), prepared.out_values)
    report = replace(report, averaged=averaged)
    return replace(report, how="averaged", bound=averaged.largest) if report.how in JUDGED else report


def shifts_of(plan: TilePlan, count: int) -> list[Pair]:
    """How much earlier grids begin (rows, columns), input pixels: spread evenly over a tile along both axes, and over
    its area. There are fewer if tiles have few pixels, or if there is one."""
    rows, columns = (plan.core.starts(axis)[1] for axis in (0, 1))
    turn_by = next(
        near
        for near in sorted(range(1, count + 1), key=lambda one: abs(one - GOLDEN * count))
        if math.gcd(near, count) == 1
    )
    wanted = ((rows * i // count, columns * (i * turn_by % count) // count) for i in range(count))
    return list(dict.fromkeys(plan.shifted(one).shift for one in wanted))


@dataclass(frozen=True)
class Grid(Prepared):
    """One of the grids. Its rows are in the model's values.

    shift: how many input pixels it begins earlier (rows, columns).
    """

    shift: Pair = (0, 0)

    @classmethod
    def shifted(cls, run: Prepared, shift: Pair) -> Grid:
        same = (run.image, "float32", run.options, run.report, run.windows)
        return cls(*same, traits=run.traits, schedule=TILES, again=run.again, shift=shift)

    @cached_property
    def plan(self) -> TilePlan:
        return self.planned(self.traits.scale, self.traits.trim).shifted(self.shift)

    @property
    def out_values(self) -> Values:
        return Values("float32", None, 1.0)


class HeldRows:
    """A sink that holds the rows of a grid until they are averaged."""

    keeps = False

    def __init__(self, grid: Grid):
        self.grid = grid
        self.held: list[tuple[int, int, Pixels]] = []  # start, stop, rows (C, rows, W)

    def finished(self, index: int) -> int:
        return 0

    def rows(self, index: int, start: int, stop: int) -> Pixels:
        shape = self.grid.channels, stop - start, self.grid.plan.output_size[1]
        device = self.grid.windows.engine.device
        if device is None:
            pixels: Pixels = np.empty(shape, np.float32)
        else:
            torch = torch_if_loaded()
            pixels = torch.empty(shape, dtype=torch.float32, device=device)
        self.held.append((start, stop, pixels))
        return pixels

    def done(self, index: int, start: int, stop: int) -> None:
        pass

    def take(self, start: int, stop: int) -> Pixels:
        """Rows [start, stop); those before are let go."""
        pieces = [
            pixels[:, max(0, start - first) : stop - first]
            for first, last, pixels in self.held
            if first < stop and last > start
        ]
        self.held = [one for one in self.held if one[1] > stop]
        if len(pieces) == 1:
            return pieces[0]
        if isinstance(pieces[0], np.ndarray):
            return np.concatenate(pieces, 1)
        torch = torch_if_loaded()
        whole: Pixels = torch.cat(pieces, 1)
        return whole


@dataclass
class Scatter:
    """How far grids lie from their average, in the model's values. Numbers stay where they were computed."""

    largest: list[Any] = field(default_factory=list)
    sums: list[Any] = field(default_factory=list)
    count: int = 0

    def add(self, apart: Pixels) -> None:
        self.largest.append(apart.max())
        self.sums.append(apart.mean())
        self.count += 1

    def reported(self, grids: int, values: Values) -> Averaged:
        peak, gain, _, _ = values.numbers
        unit = peak / gain
        largest = max((float(one) for one in self.largest), default=0.0)
        mean = sum(float(one) for one in self.sums) / max(1, self.count)
        return Averaged(grids, largest * unit, mean * unit, peak)


class ShiftedGrids:
    """Attributes:
    count: of grids that were asked for.
    spread: of all rows made so far.
    """

    name = "tiles"

    def __init__(self, count: int):
        self.count, self.spread = count, Scatter()

    def rows(
        self, prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
    ) -> Iterator[int]:
        grids = [Grid.shifted(prepared, shift) for shift in shifts_of(prepared.plan, self.count)]
        sinks = [HeldRows(grid) for grid in grids]
        plan = prepared.plan
        further = sum(TILES.tiles_from(grid, rows_done) for grid in grids[1:])
        progress.begin(progress.total + further)
        with ExitStack() as stack:
            runs = [
                stack.enter_context(closing(TILES.rows(grid, index, held, rows_done, given, progress)))
                for grid, held, given in zip(grids, sinks, (first, *[First() for _ in grids[1:]]), strict=True)
            ]
            stops = [rows_done] * len(grids)
            while rows_done < plan.output_size[0]:
                for at, run in enumerate(runs):
                    while stops[at] <= rows_done:
                        stops[at] = next(run)
                start, rows_done = rows_done, min(stops)
                destination = sink.rows(index, start, rows_done)
                with turn(prepared.windows.engine.device):
                    self._average(prepared, index, [held.take(start, rows_done) for held in sinks], destination)
                yield rows_done
            for run in runs:
                next(run, None)  # it reports what a device has found

    def _average(self, prepared: Prepared, index: int, rows: list[Any], destination: Pixels) -> None:
        mean = sum(rows[1:], rows[0]) / len(rows)
        for one in rows:
            self.spread.add(abs(one - mean))
        _finish(prepared, index, mean, destination)

    def tiles_from(self, prepared: Prepared, rows_done: int) -> int:
        return TILES.tiles_from(prepared, rows_done)

    def smaller(self, prepared: Stage) -> tuple[Stage, str] | None:
        return smaller_tiles(prepared)


def _finish(prepared: Prepared, index: int, mean: Any, destination: Pixels) -> None:
    """Converts rows in the model's values to those of the result, as the engine does."""
    plan, channel = plan_of_rows(*destination.shape[1:]), 0
    values = prepared.out_values, prepared.windows.values
    for part, channels in zip(prepared.parts_of(index), prepared.traits.out_channels, strict=True):
        if part.how == "constant":
            band: Band = ConstantBand(plan, *values, part.value)
        else:
            band = prepared.windows.engine.new_band(plan, channels, prepared.out_values, 1, 0)
        within = slice(channel, channel + channels)
        for _ in band.add([plan[0]], mean[None, within], {0: destination[within]}):
            pass  # every grid has reported its NaN and infinities
        band.close()
        channel += channels
