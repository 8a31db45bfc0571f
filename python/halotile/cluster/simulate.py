# SPDX-License-Identifier: MIT
"""What a run over many workers would take, from the costs of one: the plan's blocks are given out as in a run.

A worker computes and reads, and writes beside that. An idle worker takes the lower half of the block that ends last.
All of them together read and write no faster than the store. Nothing is run here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ..run.spread import Spread
from .blocks import Block, Grid, Work, cut, halves
from .work import StreamWork

__all__ = ["Costs", "Forecast", "simulate"]


@dataclass(frozen=True)
class Costs:
    """Of one worker.

    Attributes:
        pixel: seconds for a pixel of the image in the model.
        read, write: seconds for a byte of the image, decoded, and of the result, before it is encoded.
        start: seconds until a worker is ready. settling: until there is a plan.
        store: bytes in a second that all workers together read and write; None: no limit.
        link: bytes in a second from one worker to another.
    """

    pixel: float
    read: float = 0.0
    write: float = 0.0
    start: float = 0.0
    settling: float = 0.0
    store: float | None = None
    link: float = 1.25e9

    @classmethod
    def of_run(cls, spread: Spread, result_bytes: int) -> Costs:
        """As a run has shown them. result_bytes: of its result, in memory."""
        pixels = sum(one.pixels for one in spread.workers)
        seconds = sum(one.seconds - one.read_seconds for one in spread.workers)
        read = sum(one.read_bytes for one in spread.workers)
        return cls(
            pixel=seconds / pixels,
            read=sum(one.read_seconds for one in spread.workers) / read if read else 0.0,
            write=sum(one.write_seconds for one in spread.workers) / result_bytes,
            settling=spread.settling,
        )


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    seconds: of the run. blocks: that were made, with halves of blocks.
    recompute: pixels that go through the model, as a multiple of those of one process.
    efficiency: seconds that one worker takes, as a share of those that all together take.
    bound: "model" or "store": what the run waits for.
    pipeline: seconds if each worker had some layers, and rows went from worker to worker; None for tiles.
    """

    workers: int
    seconds: float
    blocks: int
    recompute: float
    efficiency: float
    bound: str
    pipeline: float | None

    @property
    def pipeline_is_faster(self) -> bool:
        return self.pipeline is not None and self.pipeline < self.seconds


@dataclass
class _At:
    """A worker at a block, since `start` until `end`."""

    block: Block
    start: float
    end: float

    def rows_done(self, now: float) -> set[tuple[int, int]]:
        share = (now - self.start) / (self.end - self.start) if self.end > self.start else 1.0
        last = self.block.top + int(share * (self.block.bottom - self.block.top))
        return Block(self.block.top, last, self.block.left, self.block.right).shards


class _Simulation:
    def __init__(self, grid: Grid, work: Work, costs: Costs, image_bytes: float, result_bytes: float):
        self.grid, self.work, self.costs = grid, work, costs
        self.whole = work.of((0, grid.height), (0, grid.width))
        self.read, self.written = image_bytes * costs.read, result_bytes * costs.write
        self.pixels, self.blocks = 0.0, 0

    def cost(self, block: Block) -> float:
        return self.work.of(self.grid.row_range(block), self.grid.column_range(block))

    def seconds(self, block: Block) -> float:
        cost = self.cost(block)
        shards = (block.bottom - block.top) * (block.right - block.left) / (self.grid.rows * self.grid.columns)
        return max(cost * self.costs.pixel + self.read * cost / self.whole, self.written * shards)

    def run(self, blocks: list[Block], workers: int) -> float:
        """Seconds until all blocks are made."""
        waiting, last = blocks[::-1], 0.0
        self.running: dict[int, _At] = {}
        self.events = [(self.costs.start, worker) for worker in range(workers)]
        while self.events:
            now, worker = heapq.heappop(self.events)
            at = self.running.get(worker)
            if at is not None and at.end > now:
                continue  # another event tells its end
            if self.running.pop(worker, None) is not None:
                last = max(last, now)
            block = waiting.pop() if waiting else self._half(now)
            if block is not None:
                self._begin(worker, block, now)
        return last

    def _begin(self, worker: int, block: Block, now: float) -> None:
        self.running[worker] = _At(block, now, now + self.seconds(block))
        self.pixels, self.blocks = self.pixels + self.cost(block), self.blocks + 1
        heapq.heappush(self.events, (self.running[worker].end, worker))

    def _half(self, now: float) -> Block | None:
        worker, longest = max(self.running.items(), key=lambda one: one[1].end, default=(0, None))
        if longest is None:
            return None
        half = halves(longest.block, longest.rows_done(now))
        if half is None or now + self.seconds(half) >= longest.end:
            return None
        kept = Block(longest.block.top, half.top, longest.block.left, longest.block.right)
        self.pixels -= self.cost(longest.block) - self.cost(kept)
        longest.block, longest.end = kept, max(now, longest.start + self.seconds(kept))
        heapq.heappush(self.events, (longest.end, worker))
        return half


def simulate(
    grid: Grid, work: Work, costs: Costs, workers: int, image_bytes: float = 0.0, result_bytes: float = 0.0
) -> Forecast:
    """image_bytes, result_bytes: in memory."""
    simulation = _Simulation(grid, work, costs, image_bytes, result_bytes)
    alone = simulation.seconds(Block(0, grid.rows, 0, grid.columns))
    seconds = simulation.run(list(cut(grid, work, workers).blocks), workers)
    recompute = simulation.pixels / simulation.whole
    through = (image_bytes * recompute + result_bytes) / costs.store if costs.store else 0.0
    total = costs.settling + max(seconds, through)
    return Forecast(
        workers=workers,
        seconds=total,
        blocks=simulation.blocks,
        recompute=recompute,
        efficiency=alone / (workers * total),
        bound="store" if through > seconds else "model",
        pipeline=_pipeline(work, costs, workers, alone),
    )


def _pipeline(work: Work, costs: Costs, workers: int, alone: float) -> float | None:
    """Each worker has some layers in a row: nothing is computed twice, but the largest layer cannot be divided, what
    lies between two layers travels, and the last worker waits until the first rows have come through all."""
    if not isinstance(work, StreamWork) or not work.largest_layer:
        return None
    stages = min(workers, max(1, int(1 / work.largest_layer)))
    stage = max(alone / stages, alone * work.largest_layer)
    if stages > 1:
        stage = max(stage, work.between * work.rows / costs.link)
    fill = stage * work.warm_up / max(1, work.rows)
    return costs.settling + costs.start + stage + fill
