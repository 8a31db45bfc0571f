# SPDX-License-Identifier: MIT
"""Gives blocks to workers until all shards are there.

Each worker has one block at a time, and the next one when it is done: so fast ones make more. Where no block is left,
an idle worker gets the lower half of the one that would take longest; whoever comes to a row that is there stops. So a
slow or hanging worker holds up nobody, and a block that is made twice does no harm. Dask gives the block of a worker
that died to another one, which goes on below the shards that are there.

Imports distributed.
"""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from distributed import Client, Future, KilledWorker

from ..errors import ClusterError
from ..run.progress import Progress
from ..texts import quoted
from .blockrun import Made, Row
from .blocks import Block, Grid, Work, halves, missing_blocks
from .clients import PATIENCE, workers_of
from .worker import Failed, make_block, topic_of

__all__ = ["Conductor"]

FAILURES = 2  # of a worker, after which it gets no more blocks; and of a block, after which nobody gets it
TICK = 0.5  # seconds between looks at the workers
STUCK = 20.0  # seconds after which a block that nobody has begun is given out anew: Dask forgets some where all died
GRACE = 2.0  # seconds
LATE = 4  # times what a row of shards takes, after which a worker may hang: another one makes the same
LOST = ("lost", "cancelled")


@dataclass
class _Running:
    block: Block
    worker: str | None = None  # that has begun it and lives
    since: float = field(default_factory=time.monotonic)  # the last news
    rows: int = 0  # that it made


class Conductor:
    """Attributes:
    made: (worker, what it made), in the order in which blocks were finished.
    retries: blocks that were given to another worker.
    """

    def __init__(self, client: Client, run: tuple[str, str, str], grid: Grid, work: Work, progress: Progress):
        """run: what `make_block` takes: the names of the job and of what was settled, and where shards are put."""
        self.client, self.run, self.grid, self.work, self.progress = client, run, grid, work, progress
        self.done: set[tuple[int, int]] = set()
        self.running: dict[Future, _Running] = {}
        self.made: list[tuple[str, Made]] = []
        self.failed_workers: Counter[str] = Counter()
        self.failed_blocks: Counter[int] = Counter()  # by last row of shards: blocks get shorter
        self.failures: list[str] = []
        self.retries = 0
        self.speeds: dict[str, list[float]] = {}  # seconds for rows of shards, by worker
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    @property
    def shards(self) -> int:
        return self.grid.rows * self.grid.columns

    def conduct(self, blocks: Iterable[Block], done: set[tuple[int, int]]) -> None:
        """Raises ClusterError if shards are missing at the end, and what the model raises."""
        self.progress.begin(self.shards)
        self._note(done)
        self.waiting = deque(missing_blocks(list(blocks), done))
        topic = topic_of(self.run[0])
        self.client.subscribe_topic(topic, lambda event: self.events.put(("row", event[1])))
        try:
            self._until_done()
            self._told()
        finally:
            self.client.unsubscribe_topic(topic)
            self.client.cancel(list(self.running), force=True)
        if len(self.done) < self.shards:
            self._give_up("; ".join(dict.fromkeys(self.failures)))

    def _told(self) -> None:
        """Waits a moment for what workers tell of blocks that they have just finished; not for those that hang."""
        until = time.monotonic() + GRACE
        while self.running and time.monotonic() < until:
            with suppress(queue.Empty):
                self._heed(*self.events.get(timeout=GRACE / 10))

    def _until_done(self) -> None:
        idle_since = time.monotonic()
        while len(self.done) < self.shards:
            self._assign()
            if not self.running:
                if not self.waiting:
                    return
                if time.monotonic() - idle_since > PATIENCE:
                    self.failures.append(f"no worker has come for {PATIENCE} s")
                    return
            else:
                idle_since = time.monotonic()
            try:
                self._heed(*self.events.get(timeout=TICK))
            except queue.Empty:
                self._check_client()

    def _give_up(self, why: str) -> None:
        missing = self.shards - len(self.done)
        raise ClusterError(f"{missing} of {self.shards} shards are missing: {why}", missing, self.shards)

    # ---- who makes what

    def _assign(self) -> None:
        addresses, resources = workers_of(self.client)
        good = [one for one in addresses if self.failed_workers[one] < FAILURES]
        if addresses and not good and not self.running:
            self._give_up("; ".join(dict.fromkeys(self.failures)))
        self._heed_deaths(addresses)
        busy = {one.worker for one in self.running.values() if one.worker is not None}
        idle = len(set(good) - busy)
        if idle:
            self._take_back()
        begun = sum(one.worker is not None for one in self.running.values())
        for _ in range(idle - (len(self.running) - begun)):
            block = self.waiting.popleft() if self.waiting else self._half()
            if block is None:
                return
            self._submit(block, good if len(good) < len(addresses) else None, resources)

    def _submit(self, block: Block, workers: list[str] | None, resources: dict[str, float] | None) -> None:
        key = self._name(block)
        future = self.client.submit(
            make_block, *self.run, block, key=key, workers=workers, resources=resources, pure=False
        )
        self.running[future] = _Running(block)
        future.add_done_callback(lambda future: self.events.put(("end", future)))

    def _heed_deaths(self, addresses: list[str]) -> None:
        """Blocks of workers that died wait for another one."""
        for running in self.running.values():
            if running.worker is not None and running.worker not in addresses:
                running.worker, running.since = None, time.monotonic()

    def _take_back(self) -> None:
        """Takes blocks back that nobody has begun for long, though there are workers."""
        late = time.monotonic() - STUCK
        for future in [one for one, running in self.running.items() if running.worker is None and running.since < late]:
            block = self.running.pop(future).block
            self.client.cancel(future, force=True)
            self.waiting.extendleft(reversed(missing_blocks([block], self.done)))

    def _name(self, block: Block) -> str:
        top, bottom = self.grid.row_range(block)
        cost = self.work.of((top, bottom), self.grid.column_range(block)) / 1e6
        columns = "" if block.right - block.left == self.grid.columns else f"-columns-{block.left}-to-{block.right}"
        return f"halotile-rows-{top}-to-{bottom}{columns}-cost-{cost:.3g}-megapixels-{uuid4().hex[:8]}"

    def _half(self) -> Block | None:
        """Half of the block that would take longest, if that is done earlier by two."""
        left = {future: self._seconds_left(one) for future, one in self.running.items()}
        for future in sorted(left, key=left.__getitem__, reverse=True):
            running = self.running[future]
            half = halves(running.block, self.done)
            if half is None or left[future] <= 0:
                continue
            rows = len(self._rows_left(running.block))
            cost, share = self._cost(half), rows / (running.block.bottom - running.block.top)
            if cost < 0.8 * share * self._cost(running.block) and self._alone_below(half, future):
                return half
        return self._late()

    def _late(self) -> Block | None:
        """What is left of a block from whose worker nothing was heard for long."""
        rows = [seconds for known in self.speeds.values() for seconds in known]
        patience = max(STUCK, LATE * sum(rows) / len(rows) if rows else 0.0)
        for future, running in self.running.items():
            left = self._rows_left(running.block)
            if not left or time.monotonic() - running.since < patience:
                continue
            rest = replace(running.block, top=left[0], bottom=left[-1] + 1)
            if self._alone_below(rest, future):
                return rest
        return None

    def _cost(self, block: Block) -> float:
        return self.work.of(self.grid.row_range(block), self.grid.column_range(block))

    def _alone_below(self, half: Block, future: Future) -> bool:
        """Whether no other worker is at these shards."""
        others = (one.block for other, one in self.running.items() if other is not future)
        return not any(block.shards & half.shards - self.done for block in others)

    def _rows_left(self, block: Block) -> list[int]:
        columns = range(block.left, block.right)
        return [r for r in range(block.top, block.bottom) if any((r, c) not in self.done for c in columns)]

    def _seconds_left(self, running: _Running) -> float:
        known = self.speeds.get(running.worker or "", [])
        a_row = sum(known) / len(known) if known else 0.0
        waits = time.monotonic() - running.since
        if running.rows == 0:
            a_row = max(a_row, waits)
        return a_row * len(self._rows_left(running.block))

    # ---- what became of it

    def _heed(self, kind: str, what: Any) -> None:
        if kind == "row":
            key, block, row, worker = what
            self._note_row(key, Block(*block), None if row is None else Row(*row), worker)
            return
        running = self.running.pop(what, None)
        if running is None:
            return
        if what.status in LOST:
            self._lost()
        if what.status == "error":
            self._failed(running, what.exception())
            return
        worker, made = what.result()
        if isinstance(made, Failed):
            self._worker_failed(running, worker, made.error)
            return
        self.made.append((worker, made))
        self._note(running.block.shards)

    def _note_row(self, key: str, block: Block, row: Row | None, worker: str) -> None:
        """row: None where the worker begins."""
        for future, running in self.running.items():
            if future.key == key:
                running.worker, running.rows = worker, running.rows + (row is not None)
                running.since = time.monotonic()
        if row is not None:
            self._note({(row.row, column) for column in range(block.left, block.right)})
            self.speeds.setdefault(worker, []).append(row.seconds)

    def _note(self, shards: set[tuple[int, int]]) -> None:
        new = shards - self.done
        self.done |= new
        if new:
            self.progress.advance(len(new))

    def _worker_failed(self, running: _Running, worker: str, error: OSError) -> None:
        self.failed_workers[worker] += 1
        self._again(running.block, f"on {worker}: {quoted(error)}")

    def _failed(self, running: _Running, error: BaseException) -> None:
        if not isinstance(error, KilledWorker):
            raise error  # the model's: another worker's would do the same
        self.failed_blocks[running.block.bottom] = FAILURES
        self._again(running.block, f"workers died of it again and again: {quoted(error)}")

    def _again(self, block: Block, why: str) -> None:
        self.failures.append(why)
        self.failed_blocks[block.bottom] += 1
        if self.failed_blocks[block.bottom] <= FAILURES:
            self.retries += 1
            self.waiting.extendleft(reversed(missing_blocks([block], self.done)))

    def _check_client(self) -> None:
        if self.client.status != "running" or any(future.status in LOST for future in self.running):
            self._lost()

    def _lost(self) -> None:
        self._give_up("the scheduler was lost, or has forgotten the run")
