# SPDX-License-Identifier: MIT
"""The phase of an opaque callable: shifts small windows of noise and checks whether the output moves along."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..images.image import copied
from ..models.reach import modules_of
from ..optional import torch_if_loaded
from ..run.prepared import First, Prepared
from ..run.report import RunInfo
from .knowledge import Knowledge

if TYPE_CHECKING:
    from ..inspection.shifts import Moves

__all__ = ["tries_shifts", "with_shifts_tried"]

UNSEEN = "nothing of the model can be seen"
WORTH_TRYING = 2 * 64**2  # pixels of an image: those in the first shifted windows
STRIKING = 1 / 128  # of white: largest difference between shifted windows, far from their edges, without a warning


def tries_shifts(report: RunInfo, knowledge: Knowledge) -> bool:
    """Whether the phase is not given and cannot be found by inspection."""
    asked = knowledge.options
    if asked.phase is not None or asked.asks_model or asked.needs.fixed or report.model is not None:
        return False
    return torch_if_loaded() is None or not modules_of(knowledge.model)


def with_shifts_tried(prepared: Prepared, first: First, knowledge: Knowledge) -> tuple[Prepared, First]:
    """The run with the detected phase, or a warning if none was found. `first` is empty if the windows changed."""
    report, image = prepared.report, prepared.image
    if prepared.plan.grid == (1, 1) or UNSEEN in report.why or not tries_shifts(report, knowledge):
        return prepared, first  # or already done for an earlier image of this size
    if math.prod(image.size) * image.count < WORTH_TRYING:
        text = f"{UNSEEN}, and the image is too small to try how its output moves"
        return replace(prepared, report=report.because(text)), first
    moves, base = _moves(prepared, first, knowledge), math.lcm(*prepared.plan.phase)  # with the scale's denominators
    text = f"{UNSEEN}, and by trying {_told(moves, base)}"
    if moves is None or moves.step is None:
        cure = "pass phase=, its total stride or the multiple to which it pads"
        if moves is not None and moves.apart > STRIKING:
            knowledge.warn_once("shifts", f"{text}: tiles may not fit together; {cure}")
    elif moves.step != base:
        other = _with_phase(prepared, moves.step)
        if other is None:
            text += f", which tiles of {prepared.plan.tile} cannot have"
            knowledge.warn_once("shifts", f"{text}: they may not fit together; pass a larger tile_size")
        else:
            prepared, first = other, First()
    report = replace(report.because(text), phase=prepared.options.phase)
    return replace(prepared, report=report), first


def _told(moves: Moves | None, base: int) -> str:
    least = "a pixel" if base == 1 else f"{base} pixels"
    if moves is None:
        return "it could not be told whether its output moves with the image: the phase was taken to be that of windows"
    if moves.step == base:
        return f"its output moves with the image, by {least}"
    text = f"its output does not move with the image by {least}, it is up to {moves.apart:.2g} of white apart"
    if moves.step is None:
        return f"{text}, and no shift was found with which it moves"
    return f"{text}, but it does by {moves.step}: that is the phase"


def _moves(prepared: Prepared, first: First, knowledge: Knowledge) -> Moves | None:
    from ..inspection.shapes import Shapes
    from ..inspection.shifts import moves_of

    model, traits, values = prepared.windows.model, prepared.traits, prepared.windows.values.numbers
    takes, white = traits.parts[0].feed, (values[2], values[2] + values[1])
    needs, phase = prepared.options.needs, prepared.plan.phase
    key = (takes, traits.scale, traits.trim, white, phase, model.dtype, needs)
    if key not in knowledge.tried:
        for part, output in first.items():  # some models reuse an output buffer
            first[part] = copied(output)
        shapes = Shapes(takes, 1, traits.scale, traits.trim, needs.least, phase)
        knowledge.tried[key] = moves_of(model, shapes, white)
    return knowledge.tried[key]


def _with_phase(prepared: Prepared, step: int) -> Prepared | None:
    """Returns None if the other options forbid this phase."""
    rows, columns = (math.lcm(step, one) for one in prepared.options.phase)
    try:
        other = replace(prepared, options=replace(prepared.options, phase=(rows, columns)))
        _ = other.plan
    except ValueError:
        return None
    prepared.windows.buffers.clear()
    return other
