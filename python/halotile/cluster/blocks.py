# SPDX-License-Identifier: MIT
"""A result cut into blocks of whole shards, and what each costs.

    columns of shards    0      1      2
    row of shards 0   [ block 0          ]     a block is a band of rows; and, where there are too few rows for the
    row of shards 1   [ block 0          ]     workers, some columns of one
    row of shards 2   [ block 1          ]

To make its first row a block needs what lies above it: the tiles that share it, or the rows through which a stream is
warmed up. That is computed again; the fewer blocks, the less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from ..files.zarr import CHUNK, shard_columns

__all__ = ["Block", "Cut", "Grid", "Work", "cut", "halves", "missing_blocks"]

AT_MOST = 0.10  # of the work may be done again, unless workers had nothing to do
BLOCKS = 4  # for each worker: faster ones get more


@dataclass(frozen=True, order=True)
class Block:
    """Shards [top, bottom) x [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shards(self) -> set[tuple[int, int]]:
        return {(row, column) for row in range(self.top, self.bottom) for column in range(self.left, self.right)}


@dataclass(frozen=True)
class Grid:
    """The shards of a result of this size, output pixels."""

    height: int
    width: int

    @property
    def rows(self) -> int:
        return -(-self.height // CHUNK)

    @property
    def columns(self) -> int:
        return -(-self.width // shard_columns(self.width))

    def row_range(self, block: Block) -> tuple[int, int]:
        """Its rows, output pixels."""
        return block.top * CHUNK, min(self.height, block.bottom * CHUNK)

    def column_range(self, block: Block) -> tuple[int, int]:
        columns = shard_columns(self.width)
        return block.left * columns, min(self.width, block.right * columns)


class Work(Protocol):
    """What it takes to make a part of the result, in pixels of the image that go through the model."""

    @property
    def by_columns(self) -> bool:
        """Whether parts may be narrower than the image."""

    def of(self, rows: tuple[int, int], columns: tuple[int, int]) -> float:
        """For rows and columns [start, stop) of the result, output pixels."""


@dataclass(frozen=True)
class Cut:
    """Attributes:
    blocks: in order, from the top.
    recompute: pixels that go through the model, as a multiple of those of one run over the whole.
    why: the number of blocks, in words.
    """

    blocks: tuple[Block, ...]
    recompute: float
    why: str


def cut(grid: Grid, work: Work, workers: int) -> Cut:
    """As many blocks as let fast workers do more, of which at most a tenth is computed again; but at least one for each
    worker, whatever that costs, since else it had nothing to do."""
    whole = _cost(grid, work, [Block(0, grid.rows, 0, grid.columns)])
    wanted = BLOCKS * workers if workers > 1 else 1
    found = _bands(grid, work, whole, wanted)
    if len(found) < workers and work.by_columns and grid.columns > 1:
        across = min(grid.columns, -(-workers // len(found)))
        found = [
            Block(band.top, band.bottom, left, right) for band in found for left, right in _even(grid.columns, across)
        ]
    if len(found) < workers and grid.rows > len(_tops(found)):
        found = [Block(top, bottom, 0, grid.columns) for top, bottom in _even(grid.rows, min(grid.rows, workers))]
    recompute = _cost(grid, work, found) / whole
    text = f"{len(found)} blocks for {workers} workers: {recompute - 1:.1%} is computed again"
    if recompute > 1 + AT_MOST:
        text += f", more than {AT_MOST:.0%}, as fewer blocks would leave workers without any"
    return Cut(tuple(sorted(found)), recompute, text)


def _bands(grid: Grid, work: Work, whole: float, wanted: int) -> list[Block]:
    """The most bands, at most `wanted`, that compute at most a tenth again."""
    count = min(grid.rows, wanted)
    while count > 1:
        bands = [Block(top, bottom, 0, grid.columns) for top, bottom in _even(grid.rows, count)]
        if _cost(grid, work, bands) <= (1 + AT_MOST) * whole:
            return bands
        count -= max(1, count // 16)
    return [Block(0, grid.rows, 0, grid.columns)]


def _tops(blocks: Iterable[Block]) -> set[int]:
    return {block.top for block in blocks}


def _cost(grid: Grid, work: Work, blocks: Iterable[Block]) -> float:
    return sum(work.of(grid.row_range(block), grid.column_range(block)) for block in blocks)


def _even(count: int, parts: int) -> list[tuple[int, int]]:
    marks = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(marks))


def missing_blocks(blocks: Sequence[Block], done: set[tuple[int, int]]) -> list[Block]:
    """What is left of blocks, each in one or several."""
    left: list[Block] = []
    for block in blocks:
        bottom = -1
        for row in range(block.top, block.bottom):
            if _is_done(block, row, done):
                continue
            top = left.pop().top if row == bottom else row
            bottom = row + 1
            left.append(replace(block, top=top, bottom=bottom))
    return left


def _is_done(block: Block, row: int, done: set[tuple[int, int]]) -> bool:
    return all((row, column) in done for column in range(block.left, block.right))


def halves(block: Block, done: set[tuple[int, int]]) -> Block | None:
    """The lower half of what is left of a block, for a worker that has nothing to do; None if it is not worth it."""
    rows = [row for row in range(block.top, block.bottom) if not _is_done(block, row, done)]
    if len(rows) < 3:  # one is being made
        return None
    return Block(rows[(len(rows) + 1) // 2], block.bottom, block.left, block.right)
