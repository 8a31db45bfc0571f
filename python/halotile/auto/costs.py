# SPDX-License-Identifier: MIT
"""A model's time and memory on this machine, as measured."""

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
UNSEEN = {True: 3, False: 2}  # assumed peak memory relative to live tensors: heap kept, not kept


@dataclass
class Costs:
    """Time and memory of a model on this machine, from earlier, current and concurrent runs. Threads share it, so
    values are replaced, never modified.

    Attributes:
        seconds: per pixel, by window name.
        bytes: (pixels of the batch, growth of the process in bytes) for the two largest batches.
        live: peak bytes of live tensors per pixel; 0 if unknown.
        memory_format: the faster one; None if not compared.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: list[Pair] = field(default_factory=list)
    live: float = 0.0
    memory_format: str | None = None

    @classmethod
    def of(cls, found: Any) -> Costs:
        """Values from the cache; empty if malformed."""
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
        """Bytes for a batch of `pixels`: the larger of a fit to two measurements and an estimate from live tensors."""
        least = UNSEEN[heap_kept] * self.live * pixels
        if len(self.bytes) > 1:
            (p, a), (q, b) = self.bytes
            least = max(least, b + (b - a) / (q - p) * (pixels - q))
        return int(least) or None

    def cost(self, plan: TilePlan, batch: int, kind: str) -> tuple[float | None, int]:
        """Seconds per pixel, interpolated in the logarithm of pixels, and the pixels of the largest batch timed."""
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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{platform.machine()} {name} {os.cpu_count()}"
