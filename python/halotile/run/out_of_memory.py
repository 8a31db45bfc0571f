# SPDX-License-Identifier: MIT
"""The out-of-memory fallback: half the batch, then half the tile."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TypeVar

from ..errors import OutOfMemoryError, TileError, TileSizeWarning, frames_inside
from ..memory import forget_frames
from ..models.activations import what_would_fit
from ..texts import one_line, quoted
from .failures import tile_error
from .prepared import First, Opened, Prepared

__all__ = ["SMALLEST_TILE", "let_go", "next_smaller", "smaller", "smaller_tiles"]

SMALLEST_TILE = 16  # smaller windows would be nearly all halo

Pair = tuple[int, int]
Stage = TypeVar("Stage", bound=Opened)


def smaller(stage: Stage, error: Exception, first: First, rows_done: int = 0) -> Stage:
    """Returns the run with smaller tiles or batches, frees memory and warns.

    Raises:
        OutOfMemoryError: there are none.
    """
    let_go(stage, error, first)
    found = stage.schedule.smaller(stage) if isinstance(stage, Prepared) else smaller_tiles(stage)
    if found is None:
        raise _does_not_fit(stage, error, rows_done) from error
    after, text = found
    warnings.warn(f"out of memory with {text}", TileSizeWarning, stacklevel=frames_inside())
    return after


def smaller_tiles(stage: Stage) -> tuple[Stage, str] | None:
    """The run with a smaller batch or tile, and what changes in words; None if there is none."""
    found = next_smaller(stage)
    if found is None:
        return None
    tile, batch = found
    plan = stage.plan
    text = f"{stage.batch_shape[0]} windows of {plan.window[0]}x{plan.window[1]}: "
    text += f"going on with tile_size={tile}, batch_size={batch}"
    report, tuning = stage.report, stage.report.tuning
    if tuning is not None:
        tuning = replace(tuning, tile_size=tile, batch_size=batch, why=f"{tuning.why}; then memory ran out")
        report = replace(report, tuning=tuning)
    return replace(stage.with_tiles(tile, batch), report=report), text


def let_go(stage: Opened, error: Exception, first: First) -> None:
    stage.windows.buffers.clear()
    first.clear()
    if isinstance(stage, Prepared):
        stage.ahead.clear()
        if stage.devices is not None:
            stage.devices.forget()
    forget_frames(error)
    stage.windows.engine.empty_cache()


def next_smaller(stage: Opened) -> tuple[Pair, int] | None:
    plan = stage.plan
    batch = plan.batch(stage.options.batch_size)
    smallest = [
        max(SMALLEST_TILE, phase, least - 2 * halo)
        for phase, least, halo in zip(plan.phase, stage.options.needs.least, plan.halo, strict=True)
    ]
    if stage.together > 1:
        return _in_steps(plan.tile, plan.phase), stage.together // 2 * len(plan)
    if batch > 1:
        return _in_steps(plan.tile, plan.phase), batch // 2
    half = max(plan.tile) // 2
    rows, columns = (max(min(side, half), min(side, least)) for side, least in zip(plan.tile, smallest, strict=True))
    return None if (rows, columns) == plan.tile else (_in_steps((rows, columns), plan.phase), 1)


def _in_steps(tile: Pair, phase: Pair) -> Pair:
    return max(tile[0], phase[0]), max(tile[1], phase[1])


def _does_not_fit(stage: Opened, error: Exception, rows_done: int) -> TileError:
    height, width = stage.plan.window
    said = one_line(error) if isinstance(error, TileError) else quoted(error)
    text = f"out of memory with the smallest windows, {height}x{width} with halo {max(stage.plan.halo)}: {said}"
    windows, limit = stage.windows, stage.options.memory_limit
    text += what_would_fit(windows.model, stage.batch_shape, stage.plan.halo, windows.engine.device, limit)
    if not isinstance(error, TileError):
        return tile_error(OutOfMemoryError, [stage.plan[0]], text, rows_done=rows_done)
    return OutOfMemoryError(text, tile=error.tile, box=error.box, rows_done=rows_done)
