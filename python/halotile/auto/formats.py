# SPDX-License-Identifier: MIT
"""memory_format="auto" on an Apple GPU: channels_last windows, if the first two batches show that they are faster there
and give the same.

    batch 0    contiguous, channels_last    compared; the first calls compile what is compiled once
    batch 1    contiguous, channels_last    compared and timed
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from ..engine.hazards import is_trusted
from ..errors import TileError
from ..memory import forget_frames
from ..models.around import preserved_rng
from ..models.model import TensorModel, nearly_equal
from ..models.modules import mostly_convolutions
from ..optional import torch_if_loaded
from ..plan import Tile
from ..run.prepared import Prepared
from ..run.windows import Windows
from .knowledge import Knowledge

__all__ = ["choose_format"]

LEAST = 32  # batches of a run, below which four calls do not pay
FASTER = 0.9  # channels_last must take at most this share of the time
ROUNDING = {"float32": 1e-4, "float16": 2**-8, "bfloat16": 2**-5}  # relative to the largest value

clock = time.perf_counter


def choose_format(prepared: Prepared, knowledge: Knowledge) -> Prepared:
    """The run with the windows' memory format chosen, once for each `knowledge`, and the reason in its report."""
    model = prepared.windows.model
    if not isinstance(model, TensorModel) or not _may_choose(prepared, model):
        return prepared
    if knowledge.format is None:
        if -(-len(prepared.plan) // prepared.batch) < LEAST:
            return prepared
        knowledge.format = _chosen(prepared, model)
    kind, why = knowledge.format
    model.channels_last = kind == "channels_last"
    report = prepared.report.because(why)
    if report.tuning is not None:
        report = replace(report, tuning=replace(report.tuning, memory_format=kind))
    return replace(prepared, report=report)


def _may_choose(prepared: Prepared, model: TensorModel) -> bool:
    options, windows = prepared.options, prepared.windows
    if options.memory_format != "auto" or options.compile or len(options.devices) > 1 or prepared.report.holds:
        return False
    convolves = windows.engine.fragile and model.alone and mostly_convolutions(model.modules[0])
    return convolves and is_trusted(model.device, "channels_last")


def _chosen(prepared: Prepared, model: TensorModel) -> tuple[str, str]:
    seconds, trial = {}, model.for_trials()
    windows = prepared.windows.through(trial)
    try:
        for at in range(2):
            tiles = prepared.plan[at * prepared.batch : (at + 1) * prepared.batch]
            trial.channels_last = False
            want, seconds["contiguous"] = _timed(prepared, windows, tiles)
            trial.channels_last = True
            got, seconds["channels_last"] = _timed(prepared, windows, tiles)
            if not nearly_equal(got.float(), want.float(), ROUNDING[model.dtype]):
                return "contiguous", "windows are contiguous, because channels_last ones give other results"
            del got, want
    except TileError as error:  # models that want contiguous windows, or memory that ran out
        forget_frames(error)
        prepared.windows.engine.empty_cache()
        return "contiguous", "windows are contiguous, because channels_last ones fail"
    share = seconds["channels_last"] / max(seconds["contiguous"], 1e-9)
    kind = "channels_last" if share <= FASTER else "contiguous"
    return kind, f"windows are {kind}: channels_last took {share:.2f} of the time of contiguous"


def _timed(prepared: Prepared, windows: Windows, tiles: list[Tile]) -> tuple[Any, float]:
    """The outputs of a batch, and the seconds that they took."""
    device = windows.engine.device
    wait = getattr(getattr(torch_if_loaded(), device.type, None) if device else None, "synchronize", lambda: None)
    wait()
    started = clock()
    with preserved_rng:
        output = windows(prepared.traits.parts[0], 0, prepared.plan, tiles)
    wait()
    return output, clock() - started
