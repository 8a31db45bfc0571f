# SPDX-License-Identifier: MIT
"""Tiles on an accelerator: by its free memory, and memory_limit. Nothing is timed there."""

from __future__ import annotations

from dataclasses import replace

from ..models import memory
from ..models.model import usable_device
from ..run.out_of_memory import next_smaller
from ..run.prepared import Opened
from ..run.report import Tuning

__all__ = ["tiles_by_free_memory"]

LARGEST_BATCH = 16  # that batch_size="auto" makes of windows which are small for an accelerator


def tiles_by_free_memory(opened: Opened) -> Opened:
    """The same run with numbers for tile_size and batch_size."""
    options, phase, windows = opened.options, opened.plan.phase, opened.windows
    windows.engine.empty_cache()  # what torch only keeps for later is free
    devices = [usable_device(device) for device in options.devices] or [windows.engine.device]
    most = min(memory.auto_tile_size(device, options.memory_limit) for device in devices)
    tile, batch = options.tile_size, options.batch_size
    if tile == "auto" or options.memory_limit is not None:
        rows, columns = (most, most) if tile == "auto" else (min(most, side) for side in options.tile_size)
        tile = max(rows, phase[0]), max(columns, phase[1])
    if batch == "auto":
        batch = max(1, min(LARGEST_BATCH, most**2 // (tile[0] * tile[1])))
    fitting: tuple[tuple[int, int], int] | None = (tile, batch)
    while fitting is not None:
        opened = replace(opened, options=opened.options.with_tiles(*fitting, phase))
        doubtful = memory.is_doubtful(windows.model, opened.batch_shape, windows.engine)
        fitting = next_smaller(opened) if doubtful else None
    return replace(opened, report=replace(opened.report, tuning=_tuning(opened, most)))


def _tuning(opened: Opened, side: int) -> Tuning:
    plan, limit = opened.plan, opened.options.memory_limit
    kind = opened.windows.model.window_format
    who = "the device's free memory" if limit is None else "memory_limit or the device's free memory"
    why = f"{who} allows tiles of {side}x{side}"
    return Tuning(plan.tile, plan.batch(opened.options.batch_size), kind, None, limit, None, 0.0, {}, why)
