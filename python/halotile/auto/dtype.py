# SPDX-License-Identifier: MIT
"""dtype="auto": half precision if it is faster here and within the tolerance on the user's image."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from ..images.values import as_floats
from ..models.kinds import open_model
from ..models.model import TensorModel
from ..plan import Tile, TilePlan
from ..run.prepared import First, Prepared
from ..run.report import Precision
from .knowledge import Knowledge

__all__ = ["choose_dtype"]

HALVES = ("bfloat16", "float16")
TILE = 64  # side of the tiles compared
PLACES = 2
_choosing = threading.RLock()  # several threads may share a restorer
FASTER = 0.9  # half precision must take at most this share of the float32 time


def choose_dtype(prepared: Prepared, first: First, knowledge: Knowledge) -> tuple[Prepared, First]:
    """The run in its best dtype, chosen once for each `knowledge`, and reusable outputs of the first batch."""
    with _choosing:
        if knowledge.precision is None:
            found, model = _chosen(prepared, knowledge)
            if model is not None:
                knowledge.opened = {False: model, True: model}  # the model takes tensors, whatever the image
            knowledge.precision = found
    report, windows = replace(prepared.report, precision=knowledge.precision), prepared.windows
    if all(one is not windows.opened for one in knowledge.opened.values()):
        windows, first = windows.through(knowledge.opened[False]), First()
    return replace(prepared, report=report, windows=windows), first


def _chosen(prepared: Prepared, knowledge: Knowledge) -> tuple[Precision, TensorModel | None]:
    own, white, options = prepared.windows.model, prepared.out_values.numbers[0], prepared.options
    if not (isinstance(own, TensorModel) and own.alone and own.dtype == "float32" and not own.double):
        return Precision(own.dtype, 0.0, "only torch modules in float32 are converted"), None
    if prepared.report.holds:
        return Precision("float32", 0.0, "statistics of the whole image are measured in it"), None
    plan = prepared.with_tiles((TILE, TILE), 1).plan
    tiles = [plan[len(plan) // 2], plan[0]][:PLACES]
    low, high = options.value_range or (0.0, 1.0)
    seconds, want = _timed(prepared, own, plan, tiles)
    tolerance, tried = options.within(white), []
    best, best_seconds, error = None, FASTER * seconds, 0.0
    for dtype in HALVES:
        model = open_model(
            knowledge.model, device=own.device, dtype=dtype, tensors=True, memory_format=own.window_format
        )
        try:
            took, got = _timed(prepared, model, plan, tiles)
        except Exception as failure:  # operators may lack the dtype
            tried.append(f"{dtype} failed ({type(failure).__name__})")
            continue
        apart = max(float(abs(a - b).max()) for a, b in zip(want, got, strict=True)) / (high - low) * white
        tried.append(f"{dtype} took {took / seconds:.2f} of the time, {apart:.3g} of {white:g} from float32")
        if apart <= tolerance and took < best_seconds:
            best, best_seconds, error = model, took, apart
    why = f"{'; '.join(tried)}; the tolerance is {tolerance:g}"
    return Precision("float32" if best is None else best.dtype, error, why), best


def _timed(prepared: Prepared, model: TensorModel, plan: TilePlan, tiles: list[Tile]) -> tuple[float, list[Any]]:
    """Returns seconds after a warm-up call, and the outputs as arrays."""
    part, windows = prepared.traits.parts[0], prepared.windows.through(model)
    as_floats(windows(part, 0, plan, tiles[:1]))
    start = time.perf_counter()
    outputs = [as_floats(windows(part, 0, plan, [tile])).copy() for tile in tiles]
    return time.perf_counter() - start, outputs
