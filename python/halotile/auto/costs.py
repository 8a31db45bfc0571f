# SPDX-License-Identifier: MIT
"""What a model takes of time and memory on this machine, as far as its windows were watched."""

from __future__ import annotations

import itertools
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..plan import TilePlan

__all__ = ["Costs", "cost_name", "machine"]

Pair = tuple[int, int]

KINDS = ("channels_last", "contiguous")
UNSEEN = {True: 3, False: 2}  # times the tensors that live together is what operators and malloc take: heap kept, not


@dataclass
class Costs:
    """What a model takes on this machine, found by earlier runs, by this one, and by others at the same time: so what
    is here is replaced, and not changed.

    Attributes:
        seconds: a pixel, by a window's name.
        bytes: that the process grew by, and pixels of the batch that it was for: the two largest.
        live: bytes a pixel of tensors that live together; 0 where they cannot be seen.
        memory_format: the faster one; None where that was not tried.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: list[Pair] = field(default_factory=list)
    live: float = 0.0
    memory_format: str | None = None

    @classmethod
    def of(cls, found: Any) -> Costs:
        """What was kept; nothing, if that is something else."""
        try:
            seconds = {name: float(one) for name, one in found["seconds"].items() if pixels_of(name) > 0}
            grown = [(int(p), int(b)) for p, b in found["bytes"]]
            live, kind = float(found["live"]), found["memory_format"]
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            return cls()
        rises = all(0 < p < q for (p, _), (q, _) in itertools.pairwise(grown)) and len(grown) <= 2
        numbers = all(0 <= one < math.inf for one in (live, *seconds.values()))
        return cls(seconds, grown, live, kind) if rises and numbers and kind in (None, *KINDS) else cls()

    def took(self, name: str, seconds: float) -> None:
        self.seconds = self.seconds | {name: seconds}

    def grew(self, pixels: int, size: int) -> None:
        if not self.bytes or pixels > 1.5 * self.bytes[-1][0]:
            self.bytes = [*self.bytes[-1:], (pixels, max(size, 0))]

    def activations(self, pixels: int, heap_kept: bool) -> int | None:
        """Bytes for a batch of so many pixels: by the line through two probes, and by what lives together."""
        least = UNSEEN[heap_kept] * self.live * pixels
        if len(self.bytes) > 1:
            (p, a), (q, b) = self.bytes
            least = max(least, b + (b - a) / (q - p) * (pixels - q))
        return int(least) or None

    def cost(self, plan: TilePlan, batch: int, kind: str) -> tuple[float | None, int]:
        """Seconds a pixel, and the pixels of the largest batch that was tried.

        Between batches that were timed, by the logarithm of their pixels; beyond them, as the nearest."""
        own = cost_name(plan, batch, kind)
        costs = {pixels_of(name): cost for name, cost in self.seconds.items() if name.endswith(kind)}
        if not costs:
            return None, 0
        if own in self.seconds:
            return self.seconds[own], max(costs)
        sizes = sorted(costs)
        logs, values = [math.log(size) for size in sizes], [costs[size] for size in sizes]
        return float(np.interp(math.log(plan.window[0] * plan.window[1] * batch), logs, values)), sizes[-1]


def cost_name(plan: TilePlan, batch: int, kind: str) -> str:
    return f"{plan.window[0]} x {plan.window[1]} x {batch} {kind}"


def pixels_of(name: str) -> int:
    rows, _, columns, _, batch, _ = name.split(" ")
    return int(rows) * int(columns) * int(batch)


def machine() -> str:
    """The processor, as far as that can be had without asking long."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{platform.machine()} {name} {os.cpu_count()}"
