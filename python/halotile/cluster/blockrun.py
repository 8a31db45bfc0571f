# SPDX-License-Identifier: MIT
"""Makes the shards of a block that are not there yet, by the ordinary schedule, from rows above it.

The rows above a block, which its first tile row or its first step makes with it, are let go. A second thread writes one
row of shards while the model makes the next. Where another worker has made the next row meanwhile, this one stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..files.zarr import CHUNK
from ..models.untouched.kept import tensors_kept
from ..resume.settled import start_of_row
from ..run import kept_heap
from ..run.assemble import assemble
from ..run.nodata import putting_back
from ..run.prepared import Prepared
from ..run.progress import Progress
from ..run.reducing import reducing
from ..run.tiles import TILES
from .blocks import Block, Grid, Work, missing_blocks
from .columns import with_columns
from .settle import Ready
from .shards import Encoder
from .store import Receipts
from .work import columns_of

__all__ = ["Made", "Row", "run_block"]


@dataclass(frozen=True)
class Row:
    """A row of shards that was written: seconds since the one before, bytes written and seconds of that."""

    row: int
    seconds: float
    bytes: int
    write_seconds: float


@dataclass
class Made:
    """What a worker did of a block.

    Attributes:
        block: as asked.
        rows: those it made, in order.
        above: by first row of shards of each stretch that was made in one go, the row of pixels above, as made here:
            it must be what is there.
        work: pixels that went through the model.
        seconds: in all. read_seconds, read_bytes: of the image, decoded.
        again: which windows this worker has made again in float32, of all its blocks so far.
    """

    block: Block
    rows: list[Row] = field(default_factory=list)
    above: dict[int, np.ndarray] = field(default_factory=dict)
    work: float = 0.0
    seconds: float = 0.0
    read_seconds: float = 0.0
    read_bytes: int = 0
    again: set[tuple[int, ...]] = field(default_factory=set)


def run_block(
    ready: Ready,
    work: Work,
    block: Block,
    encoder: Encoder,
    receipts: Receipts,
    told: Callable[[Row], None] = lambda row: None,
) -> Made:
    """told: called when a row of shards is there."""
    prepared, made = ready.prepared, Made(block)
    grid = Grid(*prepared.plan.output_size)
    began, before = time.perf_counter(), replace(ready.reading)
    while True:
        done = {(row, column) for row in range(block.top, block.bottom) for column in receipts.columns(row)}
        left = missing_blocks([block], done)
        if not left:
            break
        last = _stretch(prepared, left[0], grid, encoder, receipts, made, told)
        part = replace(left[0], bottom=max(last, left[0].top + 1))
        made.work += work.of(grid.row_range(part), grid.column_range(part))
    if prepared.again is not None:
        made.again = set(prepared.again.made)
    made.seconds = time.perf_counter() - began
    made.read_seconds = ready.reading.seconds - before.seconds
    made.read_bytes = ready.reading.bytes - before.bytes
    return made


def _stretch(
    prepared: Prepared,
    block: Block,
    grid: Grid,
    encoder: Encoder,
    receipts: Receipts,
    made: Made,
    told: Callable[[Row], None],
) -> int:
    """Makes a block from its top until it is done, or until another worker has made what comes next. Returns the row of
    shards after the last."""
    top, bottom = grid.row_range(block)
    if prepared.schedule is TILES:
        prepared = with_columns(prepared, columns_of(prepared.plan, grid.column_range(block)))
    _, start = start_of_row(prepared.plan, prepared.batch, top + 1)
    if top and start == top and prepared.schedule is not TILES:  # a step more, which the block above has made, too
        _, start = start_of_row(prepared.plan, prepared.batch, top)
    windows, height = prepared.windows, grid.height
    before = len(made.rows)
    with (
        tensors_kept(windows.modules, watched=windows.may_write),
        kept_heap.kept(prepared.keeps_heap),
        _Writer(encoder, receipts, block, made, told) as writer,
    ):
        sink = _Rows(prepared, start, top, bottom, writer)
        steps = assemble(prepared, 0, reducing(putting_back(sink, prepared), prepared), {}, Progress(None))
        with closing(steps):
            for _, done in steps:
                if done >= min(bottom, height) or writer.is_made_elsewhere:
                    break
        if len(sink.above):
            made.above[block.top] = sink.above
    return made.rows[-1].row + 1 if len(made.rows) > before else block.top


class _Rows:
    """A `Sink` in run/prepared.py for rows [top, bottom); those above are let go, but for the last of them."""

    keeps = True

    def __init__(self, prepared: Prepared, start: int, top: int, bottom: int, writer: _Writer):
        self.start, self.top, self.bottom, self.writer = start, top, bottom, writer
        self.row, self.dtype, self.height = prepared.row_shape, prepared.made.dtype, prepared.plan.output_size[0]
        self.views: dict[int, np.ndarray] = {}
        self.above = np.empty(0, self.dtype)
        self.shards = self._new()
        self.filled = 0

    def _new(self) -> np.ndarray:
        return np.empty((CHUNK, *self.row), self.dtype)

    def finished(self, index: int) -> int:
        return self.start

    def rows(self, index: int, start: int, stop: int) -> Any:
        for begun in [first for first in self.views if first >= start]:
            del self.views[begun]  # left by an out-of-memory fallback
        self.views[start] = view = np.empty((stop - start, *self.row), self.dtype)
        return view.transpose(2, 0, 1) if view.ndim == 3 else view[np.newaxis]

    def done(self, index: int, start: int, stop: int) -> None:
        rows = self.views.pop(start)
        if start < self.top <= stop:
            self.above = rows[self.top - 1 - start].copy()
        rows = rows[max(0, self.top - start) : max(0, self.bottom - start)]
        while len(rows):
            taken = rows[: CHUNK - self.filled]
            self.shards[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            rows = rows[len(taken) :]
            if self.filled == CHUNK or self.top + self.filled == self.height:
                self.writer.write(self.top // CHUNK, self.shards[: self.filled])
                self.top += self.filled
                self.shards, self.filled = self._new(), 0


class _Writer:
    """Writes rows of shards, one at a time, in a thread."""

    def __init__(self, encoder: Encoder, receipts: Receipts, block: Block, made: Made, told: Callable[[Row], None]):
        self.encoder, self.receipts, self.block, self.made, self.told = encoder, receipts, block, made, told
        self.columns = range(block.left, block.right)
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.is_made_elsewhere = False
        self.began = time.perf_counter()

    def write(self, row: int, rows: np.ndarray) -> None:
        self._wait()
        if row + 1 < self.block.bottom:
            self.is_made_elsewhere = self.receipts.columns(row + 1).issuperset(self.columns)
        self.writing = self.thread.submit(self._write, row, rows)

    def _write(self, row: int, rows: np.ndarray) -> None:
        began = time.perf_counter()
        shards = self.encoder.encoded(row, self.columns, rows)
        self.receipts.put(row, self.columns, shards)
        now = time.perf_counter()
        written = Row(row, now - self.began, sum(map(len, shards.values())), now - began)
        self.began = now
        self.made.rows.append(written)
        self.told(written)

    def _wait(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self.thread.shutdown()
