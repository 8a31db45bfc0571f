# SPDX-License-Identifier: MIT
"""dtype="auto": the model in half precision where that is faster here, and within the tolerance on the user's image."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

from ..images.image import peak_of
from ..images.values import as_floats
from ..models.model import TensorModel, open_model
from ..plan import Tile, TilePlan, make_plan

__all__ = ["Precision", "choose"]

HALVES = ("bfloat16", "float16")
TILE = 64  # that is tried: a few of the image
PLACES = 2
_choosing = threading.RLock()  # one thread for all that run a restorer
FASTER = 0.9  # of the time in float32, or it is not worth the difference


@dataclass(frozen=True)
class Precision:
    """What dtype="auto" came to.

    Attributes:
        dtype: of the model: "float32", "bfloat16" or "float16".
        error: the largest difference from float32 that was measured, in units of the image's dtype; 0 for float32.
        why: a sentence.
    """

    dtype: str
    error: float
    why: str

    def __str__(self) -> str:
        return f"{self.dtype}: {self.why}"


def choose(run: Any) -> None:
    """Gives a run, which knows its model's facts, the model in the dtype that is best; once for each restorer.

    run: a run.Run. Its model, engine and plan are made anew where the dtype changes."""
    restorer = run.restorer
    with _choosing:
        if restorer._precision is None:
            found, model = _chosen(run)
            if model is not None:
                restorer._opened = dict.fromkeys((False, True), model)  # it takes tensors, whatever the image
            restorer._precision = found
    if all(one is not run.model for one in restorer._opened.values()):
        run.model = restorer._opened[False]
        run._choose_engine()
        run._plan_anew()
    run.tell(replace(run.halo, precision=restorer._precision))


def _chosen(run: Any) -> tuple[Precision, TensorModel | None]:
    own, white = run.model.settled, peak_of(run.out_dtype)
    if not (isinstance(own, TensorModel) and own.alone and own.dtype == "float32" and not own.double):
        return Precision(own.dtype, 0.0, "only torch modules in float32 are converted"), None
    if run.halo.holds:
        return Precision("float32", 0.0, "statistics of the whole image are measured in it"), None
    plan = make_plan(
        run.options.with_tiles((TILE, TILE), 1, run.plan.phase), run.image.size, run.facts.scale, run.facts.loss
    )
    tiles = [plan[len(plan) // 2], plan[0]][:PLACES]
    low, high = run.options.value_range or (0.0, 1.0)
    seconds, want = _timed(run, own, plan, tiles)
    tolerance, tried = run.options.within(white), []
    best, best_seconds, error = None, FASTER * seconds, 0.0
    for dtype in HALVES:
        model = open_model(
            run.restorer.model, device=own.device, dtype=dtype, tensors=True, memory_format=own.window_format
        )
        try:
            took, got = _timed(run, model, plan, tiles)
        except Exception as failure:  # what a model has that the dtype has not
            tried.append(f"{dtype} failed ({type(failure).__name__})")
            continue
        apart = max(float(abs(a - b).max()) for a, b in zip(want, got, strict=True)) / (high - low) * white
        tried.append(f"{dtype} took {took / seconds:.2f} of the time, {apart:.3g} of {white:g} from float32")
        if apart <= tolerance and took < best_seconds:
            best, best_seconds, error = model, took, apart
    why = f"{'; '.join(tried)}; the tolerance is {tolerance:g}"
    return Precision("float32" if best is None else best.dtype, error, why), best


def _timed(run: Any, model: TensorModel, plan: TilePlan, tiles: list[Tile]) -> tuple[float, list[Any]]:
    """Seconds for the tiles, and their outputs as arrays; the first call of a new shape is not timed."""
    part, forward = run.facts.parts[0], run.forward
    before = dict(forward.models)
    forward.models[part] = model
    forward.buffers.clear()
    try:
        as_floats(forward(part, 0, plan, tiles[:1]))
        start = time.perf_counter()
        outputs = [as_floats(forward(part, 0, plan, [tile])).copy() for tile in tiles]
        return time.perf_counter() - start, outputs
    finally:
        forward.models = before
        forward.buffers.clear()
