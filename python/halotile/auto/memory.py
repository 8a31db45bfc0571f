# SPDX-License-Identifier: MIT
"""Tiles on an accelerator: from its free memory and memory_limit, without timing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from ..memory import plannable_bytes
from ..models.activations import is_doubtful
from ..models.devices import BEST, usable_device
from ..options import DEFAULT_TILE
from ..run.out_of_memory import next_smaller
from ..run.prepared import Opened
from ..run.report import Tuning

if TYPE_CHECKING:
    import torch

__all__ = ["auto_tile_size", "tiles_by_free_memory"]

GiB = 1 << 30

# Machines of 8 to 16 GB use tiles up to 512, of 24 to 32 GB up to 1024, of 64 GB and more up to 2048. The table lists
# the memory that Apple's driver recommends to use: two thirds up to 32 GB, three quarters above. A run plans with three
# quarters of it at most, and with less where others hold some: see `plannable_bytes`.
TABLE = ((16 * 2 / 3, 512), (24 * 2 / 3, 1024), (32 * 2 / 3, 1024), (64 * 3 / 4, 2048))
SMALLEST = 8 * 2 / 3
STEP = 32  # tile sizes are multiples of this
FLOOR = 128  # smaller tiles are mostly halo; if even these do not fit, the run finds out and makes them smaller

LARGEST_BATCH = 16  # for batch_size="auto" with small windows


def tiles_by_free_memory(opened: Opened) -> Opened:
    options, phase, windows = opened.options, opened.plan.phase, opened.windows
    windows.engine.empty_cache()  # counts torch's cached memory as free
    devices = [usable_device(device) for device in options.devices if device != BEST] or [windows.engine.device]
    most = min(auto_tile_size(device, options.memory_limit) for device in devices)
    tile, batch = options.tile_size, options.batch_size
    if tile == "auto" or options.memory_limit is not None:
        rows, columns = (most, most) if tile == "auto" else (min(most, side) for side in options.tile_size)
        tile = max(rows, phase[0]), max(columns, phase[1])
    if batch == "auto":
        batch = max(1, min(LARGEST_BATCH, most**2 // (tile[0] * tile[1])))
    fitting: tuple[tuple[int, int], int] | None = (tile, batch)
    room = plannable_bytes(windows.engine.device)
    while fitting is not None:
        opened = opened.with_tiles(*fitting)
        doubtful = is_doubtful(windows.model, opened.batch_shape, windows.engine, None if room is None else room[0])
        fitting = next_smaller(opened) if doubtful else None
    return replace(opened, report=replace(opened.report, tuning=_tuning(opened, most)))


def _tuning(opened: Opened, side: int) -> Tuning:
    plan, limit = opened.plan, opened.options.memory_limit
    kind = opened.windows.model.window_format
    who = "the device's free memory" if limit is None else "memory_limit or the device's free memory"
    why = f"{who} allows tiles of {side}x{side}"
    return Tuning(plan.tile, plan.batch(opened.options.batch_size), kind, None, limit, None, 0.0, {}, why)


def auto_tile_size(device: torch.device | None, limit: int | None = None) -> int:
    """The largest tile for tile_size="auto", from the memory of the device that may be planned with, and for at most
    `limit` bytes; 512 if nothing is known."""
    room = plannable_bytes(device)
    known = [] if room is None else [max(FLOOR, tile_size_for(int(room[0] / room[1])))]
    known += [] if limit is None else [tile_size_for(limit)]
    return min(known, default=DEFAULT_TILE)


def tile_size_for(free: int) -> int:
    """Interpolates the table linearly; below it, keeps the memory per pixel constant."""
    size = free / GiB
    low, tile = TABLE[0]
    if size < SMALLEST:
        return max(STEP, _stepped(tile * (size / SMALLEST) ** 0.5))
    if size <= low:
        return tile
    for (a, small), (b, large) in itertools.pairwise(TABLE):
        if size <= b:
            return _stepped(small + (large - small) * (size - a) / (b - a))
    return TABLE[-1][1]


def _stepped(tile: float) -> int:
    return int(tile / STEP + 1e-3) * STEP
