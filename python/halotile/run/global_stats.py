# SPDX-License-Identifier: MIT
"""global_stats=: measure the statistics that a model takes over the whole image, and fix them in every tile.

    survey     three small windows (h, w), (H, w), (h, W) -> which calls reduce over an operand that grows with the
               window, how image pixels map to its elements, which calls depend on which (levels)
    "frozen"   one run on the image, subsampled to a window's size
    "exact"    one sweep over all tiles for each level; each tile adds its own part, cut halfway through the overlaps:

                   tile 0  [##########|....]           # counts for tile 0
                   tile 1        [....|##########]     # counts for tile 1

               each sweep runs with the statistics of the lower levels already fixed

Imports torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import TileError
from ..images.channels import Part
from ..images.values import as_floats
from ..inspection.info import ModelInfo
from ..plan import Box, Tile, TilePlan
from ..texts import quoted
from .failures import tile_error
from .statistics import Call, Statistic, Watching, by_twos, merged
from .survey import Cut, Found, Survey, surveyed
from .windows import Windows

__all__ = ["GlobalStats", "Held"]

ROUNDING = {"float16": 2e-2, "bfloat16": 1e-1}  # relative tolerance; 1e-4 for float32
CHUNK = 512  # input pixels per side that are read at once for subsampling

Pair = tuple[int, int]


class Held:
    """Fixed statistics of one image: inside `with held():` the model uses them in place of its own."""

    def __init__(self, statistics: dict[int, Statistic], calls: int):
        self.statistics, self.calls = statistics, calls

    @contextlib.contextmanager
    def __call__(self, shape: Pair = (0, 0)) -> Iterator[None]:
        """shape: of the model's windows, which does not matter."""
        watching = Watching(self._handle)
        with watching:
            yield
        if watching.count != self.calls:
            raise RuntimeError(
                f"the model called {watching.count} operators that take elements together, not {self.calls} as before: "
                "global_stats needs a model that does the same for every window"
            )

    def _handle(self, number: int, call: Call) -> Any:
        statistic = self.statistics.get(number)
        return NotImplemented if statistic is None else call.result(statistic.repeated(call.sizes))


# ---- measuring -------------------------------------------------------------------------------------------------------


class Enough(BaseException):
    """Stops a run after its last wanted call. A BaseException, so that no model swallows it."""


class GlobalStats:
    """Measures global statistics of images.

    Args:
        how: "frozen" or "exact"; "local" for a survey alone.
        info: a ModelInfo with global operations.
    """

    def __init__(self, windows: Windows, how: str, info: ModelInfo):
        self.windows, self.how, self.info = windows, how, info
        self.surveys: dict[Any, Survey] = {}

    def survey(self, part: Part, index: int, plan: TilePlan) -> Survey:
        """Surveys the model. Raises ValueError if its global operations cannot be fixed."""
        if part not in self.surveys:
            size = [self.legal(axis, 32, plan) for axis in (0, 1)]
            larger = [self.legal(axis, side + 1, plan) for axis, side in enumerate(size)]

            def run(size: Pair) -> None:
                self._run(part, self._read(part, index, plan, Box(0, 0, *size)), plan)

            try:
                self.surveys[part] = surveyed(run, tuple(size), tuple(larger), len(set(plan.scales)) == 1)
            except ValueError as error:
                raise ValueError(f"global_stats must be 'tile' for this model, not {self.how!r}: {error}") from error
            self._check(self.surveys[part])
            self._check_sizes(part, index, plan)
        return self.surveys[part]

    def _check_sizes(self, part: Part, index: int, plan: TilePlan) -> None:
        """With fixed statistics, windows of two sizes must agree inside: otherwise something else depends on the
        window."""
        field = self.info.local_field
        if field is None:
            return
        size = [self.legal(axis, 2 * sum(field[2 - 2 * axis : 4 - 2 * axis]) + 16, plan) for axis in (0, 1)]
        larger = [self.legal(axis, side + 8, plan) for axis, side in enumerate(size)]
        statistics: dict[int, Statistic] = {}

        def handle(number: int, call: Call) -> Any:
            if number in self.surveys[part].found:
                statistics[number] = call.measured()
            return NotImplemented

        with Watching(handle):
            self._run(part, self._read(part, index, plan, Box(0, 0, *size)), plan)
        outputs = []
        for sides in (size, larger):
            with Held(statistics, self.surveys[part].calls)():
                outputs.append(
                    as_floats(self._run(part, self._read(part, index, plan, Box(0, 0, *sides)), plan)).copy()
                )
        one, other = outputs
        height, width = (
            int((side - after) * scale) - lost
            for side, after, scale, lost in zip(size, (field.bottom, field.right), plan.scales, plan.trim, strict=True)
        )
        apart = float(np.abs(one[..., :height, :width] - other[..., :height, :width]).max())
        if apart > ROUNDING.get(self.windows.model_of(part).dtype, 1e-4) * max(1.0, float(np.abs(one).max())):
            raise ValueError(
                f"global_stats must be 'tile' for this model, not {self.how!r}: with its statistics held fixed, "
                f"windows of {size[0]}x{size[1]} and {larger[0]}x{larger[1]} differ by {apart:.3g}; something else "
                "in it depends on the whole window, such as its size, a maximum, or pooling into cells"
            )

    def _check(self, survey: Survey) -> None:
        if survey.found:
            return
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in self.info.global_operations)
        raise ValueError(
            f"global_stats must be 'tile' for this model, not {self.how!r}: it looks at the whole image in {names}, "
            "and no statistics that could be held fixed were seen there"
        )

    def legal(self, axis: int, least: int, plan: TilePlan) -> int:
        step = math.lcm(self.info.multiple[axis], self.info.phase[axis] or 1, plan.phase[axis])
        return -(-max(least, self.info.minimum_size[axis]) // step) * step

    def sweeps(self, part: Part, index: int, plan: TilePlan) -> int:
        return self.survey(part, index, plan).levels if self.how == "exact" else 0

    def measured(self, part: Part, index: int, plan: TilePlan, advance: Callable[[int], None]) -> Held:
        """advance: called with the number of tiles run."""
        survey = self.survey(part, index, plan)
        if self.how == "frozen":
            return Held(self._frozen(survey, part, index, plan), survey.calls)
        statistics: dict[int, Statistic] = {}
        for level in range(survey.levels):
            rows = [self.of_row(row, level, statistics, part, index, plan, advance) for row in range(plan.grid[0])]
            statistics |= by_twos(rows, merged)
        return Held(statistics, survey.calls)

    def of_row(
        self,
        row: int,
        level: int,
        known: dict[int, Statistic],
        part: Part,
        index: int,
        plan: TilePlan,
        advance: Callable[[int], None],
    ) -> dict[int, Statistic]:
        """The statistics of one level over the part of the image that a tile row counts, with those of the levels
        below."""
        found = self.survey(part, index, plan).found
        wanted = {number: one for number, one in found.items() if one.level == level}
        sums: dict[int, Statistic] = {}
        for tile in plan.row(row):
            for number, statistic in self._of_tile(tile, known, wanted, part, index, plan).items():
                sums[number] = sums[number].merged(statistic) if number in sums else statistic
            advance(1)
        return sums

    def _of_tile(
        self, tile: Tile, known: dict[int, Statistic], wanted: dict[int, Found], part: Part, index: int, plan: TilePlan
    ) -> dict[int, Statistic]:
        cuts = [_cut(plan, axis, at) for axis, at in enumerate((tile.row, tile.column))]
        size = (tile.window.height, tile.window.width)
        sums: dict[int, Statistic] = {}

        def handle(number: int, call: Call) -> Any:
            if number in known:
                return call.result(known[number].repeated(call.sizes))
            if number in wanted:
                sums[number] = _of_part(call, wanted[number], size, cuts)
                if len(sums) == len(wanted):
                    raise Enough
            return NotImplemented

        windows = self._read(part, index, plan, tile.window)
        try:
            with Watching(handle):
                self._run(part, windows, plan, tile)
        except (Enough, TileError):  # TorchScript turns Enough into another error
            if len(sums) < len(wanted):
                raise
        return sums

    def _frozen(self, survey: Survey, part: Part, index: int, plan: TilePlan) -> dict[int, Statistic]:
        image, share = self._reduced(part, index, plan)
        statistics: dict[int, Statistic] = {}

        def handle(number: int, call: Call) -> Any:
            if number not in survey.found:
                return NotImplemented
            statistics[number] = call.measured().of_as_many(1 / share)
            return call.result(statistics[number])  # later layers see whole-image statistics

        with Watching(handle):
            self._run(part, image, plan)
        return statistics

    def _reduced(self, part: Part, index: int, plan: TilePlan) -> tuple[Any, float]:
        """The image subsampled to at most a window's pixels, and the share of pixels used. Averaging would change the
        statistics, noise above all."""
        height, width = plan.image_size
        room, step = plan.window[0] * plan.window[1], 1
        while -(-height // step) * -(-width // step) > room:
            step += 1
        rows, columns = (self.legal(axis, -(-side // step), plan) for axis, side in enumerate((height, width)))
        image = self._new(part, (rows, columns))
        piece = max(1, CHUNK // step)
        for y in range(0, rows, piece):
            for x in range(0, columns, piece):
                h, w = min(piece, rows - y), min(piece, columns - x)
                window = self._read(part, index, plan, Box(y * step, x * step, h * step, w * step))
                image[..., y : y + h, x : x + w] = window[..., step // 2 :: step, step // 2 :: step]
        return image, rows * columns / (height * width)

    # ---- the model

    def _new(self, part: Part, size: Pair) -> Any:
        return self.windows.engine.new_windows(self.windows.model_of(part), (1, part.feed, *size))

    def _read(self, part: Part, index: int, plan: TilePlan, window: Box) -> Any:
        return self.windows.read(part, index, plan, [replace(plan[0], window=window)])

    def _run(self, part: Part, windows: torch.Tensor | np.ndarray, plan: TilePlan, tile: Tile | None = None) -> Any:
        try:
            return self.windows.engine.call(self.windows.model_of(part), windows)
        except Exception as error:
            raise tile_error(TileError, [tile or plan[0]], f"measuring global_stats, {quoted(error)}") from error


def _cut(plan: TilePlan, axis: int, at: int) -> Cut:
    """The part of window row (column) `at` that counts, in pixels of the window: neighbours meet in mid-overlap."""

    def between(first: int) -> int:
        """Where window `first` meets the next, in the next one's pixels."""
        shared = starts[first] + plan.window[axis] - starts[first + 1]
        return shared // 2 // plan.phase[axis] * plan.phase[axis]

    step = plan.grid[1] if axis == 0 else 1
    starts = [plan[i * step].window[axis] for i in range(plan.grid[axis])]
    start = between(at - 1) if at > 0 else None
    stop = starts[at + 1] + between(at) - starts[at] if at + 1 < len(starts) else None
    return start, stop


def _of_part(call: Call, found: Found, size: Pair, cuts: list[Cut]) -> Statistic:
    operands = zip(found.lies, call.operands, strict=True)
    return call.measured([(lie.part(x, size, *cuts), dims) for lie, (x, dims) in operands])
