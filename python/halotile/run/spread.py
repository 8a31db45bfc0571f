# SPDX-License-Identifier: MIT
"""How a run was spread over workers: `RunInfo.spread`."""

from __future__ import annotations

from dataclasses import dataclass

from ..texts import bytes_text

__all__ = ["Share", "Spread"]


@dataclass(frozen=True)
class Share:
    """What one worker did.

    Attributes:
        worker: its address.
        blocks: of the result, that it made or made a part of.
        rows: rows of shards.
        seconds: that it was at work on them, with reading and writing.
        pixels: of the image, that went through its model.
        read_bytes, read_seconds: of the image, decoded.
        written_bytes, write_seconds: of the result, encoded.
    """

    worker: str
    blocks: int
    rows: int
    seconds: float
    pixels: float
    read_bytes: int
    read_seconds: float
    written_bytes: int
    write_seconds: float


@dataclass(frozen=True)
class Spread:
    """How a run was spread over workers.

    Attributes:
        workers: those that finished something, and what; one that died has done more than is told here.
        blocks: in the plan. why: so many.
        planned: pixels that the plan lets through the model, as a multiple of those of one process.
        recompute: those that went through it, as far as workers told.
        kept: shards of an earlier run.
        shards: in all.
        seam: the largest difference between two workers' versions of the rows at which their blocks meet, in units of
            the result's dtype; None if no such row was made twice.
        retries: blocks that were given to another worker after a failure.
        settling: seconds until every option was a number. seconds: in all.
        read: bytes of the image that were read, as a multiple of its size.
    """

    workers: tuple[Share, ...]
    blocks: int
    why: str
    planned: float
    recompute: float
    kept: int
    shards: int
    seam: float | None
    retries: int
    settling: float
    seconds: float
    read: float

    @property
    def efficiency(self) -> float:
        """Seconds that workers were at work, as a share of those that they had."""
        had = len(self.workers) * (self.seconds - self.settling)
        return sum(one.seconds for one in self.workers) / had if had > 0 else 1.0

    def __str__(self) -> str:
        count = len(self.workers)
        text = f"{self.blocks} blocks on {count} worker{'s' if count != 1 else ''} in {self.seconds:.1f} s"
        text += f", {self.recompute:.2f} of one process's pixels, {self.read:.2f} of the image read"
        written = sum(one.written_bytes for one in self.workers)
        text += f", {bytes_text(written)} written"
        if self.kept:
            text += f"; {self.kept} of {self.shards} shards were there"
        if self.retries:
            text += f"; {self.retries} blocks given to another worker"
        if self.seam is not None:
            text += f"; blocks differ by {self.seam:.3g} where they meet"
        return text
