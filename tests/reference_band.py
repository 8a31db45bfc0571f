# SPDX-License-Identifier: MIT
"""The band in Python, as it was before the core had one: sums of shared pixels in NumPy arrays, cut and placed here.

Only single boxes are added and divided by the core. `_core.Band` is compared with it, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from halotile import _core
from halotile.images.values import Values
from halotile.plan import Box, Tile, TilePlan

Position = tuple[int, int, int]
Found = Iterator[tuple[Tile, Position | None]]


def shared(plan: TilePlan) -> tuple[int, int]:
    """Most shared rows within one tile row, and shared columns in all: what sums are kept for, output pixels."""
    keeps = [(plan.core.keep(0, i), plan.core.exclusive(0, i)) for i in range(plan.grid[0])]
    rows = max((k[1] - k[0]) - (s[1] - s[0]) for k, s in keeps)
    exclusives = [plan.core.exclusive(1, j) for j in range(plan.grid[1])]
    return rows, plan.output_size[1] - sum(stop - start for start, stop in exclusives)


class Side(NamedTuple):
    """The keep range of one tile along one axis, and the part of it that is its alone."""

    keep: tuple[int, int]
    exclusive: tuple[int, int]

    @property
    def shared_ends(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.keep[0], self.exclusive[0]), (self.exclusive[1], self.keep[1])

    @property
    def shared(self) -> int:
        return sum(stop - start for start, stop in self.shared_ends)


class ReferenceBand:
    """The rows still being made: sums of shared pixels, and the destination rows of the tile row in progress."""

    def __init__(self, plan: TilePlan, channels: int, values: Values, first_row: int = 0):
        self.plan, self.values, self.first_row = plan, values, first_row
        core = plan.core
        self.sides = [Side(core.keep(1, j), core.exclusive(1, j)) for j in range(plan.grid[1])]
        self.offsets = [0]  # shared columns left of each tile's keep range
        for left, right in zip(self.sides, self.sides[1:], strict=False):
            advance = right.keep[0] - left.keep[0] - (left.exclusive[1] - left.exclusive[0])
            self.offsets.append(self.offsets[-1] + advance)
        heights = [Side(core.keep(0, i), core.exclusive(0, i)) for i in range(plan.grid[0])]
        shared_rows, shared_columns = shared(plan)
        tallest = max(side.exclusive[1] - side.exclusive[0] for side in heights)
        self.rows = np.zeros((channels, shared_rows, plan.output_size[1]), np.float32)
        self.columns = np.zeros((channels, tallest, shared_columns), np.float32)
        self.nx = plan.normaliser(1)
        self.wx = [core.weights(1, j) for j in range(plan.grid[1])]
        self.bad = False  # whether NaN or infinity was added: sums may hold it from then on
        self.first_slot = 0  # shared rows above the current tile row's keep range

    def add(self, tiles: list[Tile], outputs: np.ndarray, rows: dict[int, np.ndarray]) -> Found:
        """Takes the model's outputs (k, C, height, width) for consecutive tiles, in the plan's order.

        rows: for each tile row, where its finished rows go: (C, rows, W) in the output dtype, `plan.core.done(0, row)`
        of the output. Those of a tile row are complete once its last tile was added.

        Yields the first NaN or infinity met, as (channel, row, column) of the output image, or None: for every tile."""
        for tile, output in zip(tiles, outputs, strict=True):
            if tile.column == 0:
                self._open_row(tile.row, rows[tile.row])
            yield tile, self._add(tile, output)
            if tile.column == self.plan.grid[1] - 1:
                yield tile, self._close_row()

    def nonfinite(self) -> None:
        """What is known only when all is done: nothing here."""

    # ---- one tile row ----

    def _open_row(self, row: int, destination: np.ndarray) -> None:
        core = self.plan.core
        if row > self.first_row:
            above = self.side
            self.first_slot += core.keep(0, row)[0] - above.keep[0] - (above.exclusive[1] - above.exclusive[0])
        self.row, self.destination = row, destination
        self.side = Side(core.keep(0, row), core.exclusive(0, row))
        self.done = core.done(0, row)
        self.wy = core.weights(0, row)
        self.ny = core.normaliser(0, *self.side.keep)
        self.columns[:] = 0
        below = self.side.exclusive[1], self.side.keep[1]
        for _, _, slots in self._slots(*below):  # no tile row above has touched these
            self.rows[:, slots] = 0

    def _add(self, tile: Tile, output: np.ndarray) -> Position | None:
        """ACCUMULATE; exclusive pixels are FINISHed at once."""
        bad = [self._finish_exclusive(tile, output)]
        x_side = self.sides[tile.column]
        wx = self.wx[tile.column]
        for y0, y1 in self.side.shared_ends:
            for y, stop, slots in self._slots(y0, y1):
                box = Box(y, tile.keep.x, stop - y, tile.keep.width)
                sums = self.rows[:, slots, box.x : box.x_stop]
                bad.append(self._accumulate(sums, tile, output, box, wx))
        for x0, x1 in x_side.shared_ends:
            box = Box(self.side.exclusive[0], x0, self.side.exclusive[1] - self.side.exclusive[0], x1 - x0)
            if box.height and box.width:
                sums = self.columns[:, : box.height, self._columns_of(tile.column, x0, x1)]
                bad.append(self._accumulate(sums, tile, output, box, wx[x0 - tile.keep.x : x1 - tile.keep.x]))
        first = _first(bad)
        self.bad |= first is not None
        return first

    def _close_row(self) -> Position | None:
        """FINISH what no later tile adds to: the rows of `destination` are complete.

        Returns the first sum that is too large for float32, if what was added was not."""
        bad: list[Position | None] = []
        exclusive, start = self.side.exclusive, self.side.keep[0]
        shared_stop = min(exclusive[0], self.done[1])
        for y, stop, slots in self._slots(start, shared_stop):
            rows = self.destination[:, y - self.done[0] : stop - self.done[0]]
            position = self._finish(rows, self.rows[:, slots], self.ny[y - start : stop - start], self.nx)
            bad.append(_placed(position, y, 0))
        height = exclusive[1] - exclusive[0]
        rows = self.destination[:, exclusive[0] - self.done[0] : exclusive[1] - self.done[0]]
        for column, side in enumerate(self.sides):
            x0, x1 = side.keep[0], min(side.exclusive[0], self.plan.core.done(1, column)[1])
            if x0 < x1 and height:
                sums = self.columns[:, :height, self._columns_of(column, x0, x1)]
                ny = self.ny[exclusive[0] - start : exclusive[1] - start]
                bad.append(_placed(self._finish(rows[:, :, x0:x1], sums, ny, self.nx[x0:x1]), exclusive[0], x0))
        return None if self.bad else _first(bad)

    # ---- parts ----

    def _slots(self, start: int, stop: int) -> Iterator[tuple[int, int, slice]]:
        """Shared rows [start, stop) of the current tile row as runs (start, stop, ring slots)."""
        ring = self.rows.shape[1]
        while start < stop:
            above = start - self.side.keep[0]
            if start >= self.side.exclusive[1]:
                above -= self.side.exclusive[1] - self.side.exclusive[0]
            slot = (self.first_slot + above) % ring
            run = min(stop - start, ring - slot)
            yield start, start + run, slice(slot, slot + run)
            start += run

    def _columns_of(self, column: int, x0: int, x1: int) -> slice:
        side = self.sides[column]
        offset = self.offsets[column] + x0 - side.keep[0]
        if x0 >= side.exclusive[1]:
            offset -= side.exclusive[1] - side.exclusive[0]
        return slice(offset, offset + x1 - x0)

    def _accumulate(
        self, sums: np.ndarray, tile: Tile, output: np.ndarray, box: Box, wx: np.ndarray
    ) -> Position | None:
        wy = self.wy[box.y - tile.keep.y : box.y_stop - tile.keep.y]
        return _placed(_core.accumulate(sums, _piece(tile, output, box), wy, wx), box.y, box.x)

    def _finish(self, rows: np.ndarray, sums: np.ndarray, ny: Any, nx: Any) -> Position | None:
        return _core.finish(rows, sums, ny, nx, self.values.numbers, self.values.bfloat16)

    def _finish_exclusive(self, tile: Tile, output: np.ndarray) -> Position | None:
        box = tile.exclusive
        if box.height == 0 or box.width == 0:
            return None
        rows = self.destination[:, box.y - self.done[0] : box.y_stop - self.done[0], box.x : box.x_stop]
        return _placed(self._finish(rows, _piece(tile, output, box), None, None), box.y, box.x)


def _piece(tile: Tile, output: np.ndarray, box: Box) -> np.ndarray:
    """The part of a tile's output that belongs to a box of the output image."""
    y, x = box.y - tile.keep.y + tile.crop[0], box.x - tile.keep.x + tile.crop[1]
    return output[:, y : y + box.height, x : x + box.width]


def _placed(position: Position | None, y: int, x: int) -> Position | None:
    return None if position is None else (position[0], position[1] + y, position[2] + x)


def _first(positions: list[Position | None]) -> Position | None:
    return min((position for position in positions if position), key=lambda p: (p[1], p[2], p[0]), default=None)
