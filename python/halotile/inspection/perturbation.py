# SPDX-License-Identifier: MIT
"""Randomised falsification of claims about a model: runs it on noise that differs only where it should not matter.
The same method measures models that can only be called.

All data are arrays (batch, channels, height, width). Noise that changes nothing proves nothing: a dependency may be too
weak, or inactive on this noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..scales import by_axis
from .info import Field
from .shapes import Pair, Shapes

__all__ = ["Runs", "Verdict", "ends_agree", "falsify", "field_by_perturbation", "repeats"]

LONGEST = 1536  # window, input pixels
SECONDS = 0.025  # limit for a run that searches beyond the necessary distance
LOUD = (1.0, 100.0)  # amplitudes of the noise outside the field


class Runs(Protocol):
    """A model on arrays.

    Attributes:
        rounding: relative difference that counts as rounding.
        seconds: approximate time for an input pixel.
    """

    rounding: float
    seconds: float

    def __call__(self, windows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Verdict:
    """The outcome of attempts to falsify a claim.

    Attributes:
        held: whether no run contradicted the claim.
        how: "bit-equal", "within rounding", or a description of the contradiction.
        runs: the number of comparisons.
    """

    held: bool
    how: str
    runs: int


def floor_at(output: np.ndarray | int, shapes: Shapes, axis: int):
    """The input pixel at an output pixel of a window."""
    scale = by_axis(shapes.scale)[axis]
    return ((output + shapes.trim[axis]) * scale.denominator) // scale.numerator


def ends(shapes: Shapes, reach: Pair, axis: int) -> Pair:
    """Input pixels at each end of a window whose outputs are missing or depend on the window's end."""
    scale = by_axis(shapes.scale)[axis]
    lost = -(-shapes.trim[axis] * scale.denominator // scale.numerator)
    return max(reach[0], lost), max(reach[1], lost)


def strip(run: Runs, shapes: Shapes, axis: int, length: int, thin: int = 8) -> list[int]:
    """The size (rows, columns) of a window that is long along the axis and thin across it."""
    size = [0, 0]
    size[axis] = shapes.legal(axis, length)
    across = shapes.legal(1 - axis, thin)
    if across * size[axis] * run.seconds > 0.25:
        across = shapes.legal(1 - axis, 1)
    size[1 - axis] = across
    return size


def noise(shapes: Shapes, size: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((1, shapes.channels, *size), np.float32)


def falsify(run: Runs, shapes: Shapes, field: Field, phase: Pair, *, seconds: float = 3.0) -> Verdict:
    """Tries to change an output pixel from outside its claimed field, at several phases, by noise and by NaN.

    Args:
        seconds: time limit for starting runs; each axis gets at least two comparisons.
    """
    worst, runs, spread = "bit-equal", 0, False
    for axis in (0, 1):
        until = time.monotonic() + seconds / 2
        for result in _attempts(run, shapes, field, phase, axis):
            runs += 1
            if result == "changed":
                return Verdict(False, f"noise outside the field changed an output along the {_name(axis)}", runs)
            spread |= result == "NaN"
            worst = "within rounding" if result == "rounding" else worst
            if time.monotonic() > until and runs >= 2 * (axis + 1):
                break
    return Verdict(True, worst + (", though NaN spreads further" if spread else ""), runs)


def _name(axis: int) -> str:
    return ("rows", "columns")[axis]


def _attempts(run: Runs, shapes: Shapes, field: Field, phase: Pair, axis: int) -> Iterator[str]:
    """Compares in a short window at several phases, and once in a longer one for distant dependencies."""
    before, after = reach = field.along(axis)
    first, last = ends(shapes, reach, axis)
    size = strip(run, shapes, axis, first + last + 2 * phase[axis] + 4)
    longer = size.copy()
    longer[axis] = shapes.legal(axis, max(size[axis], min(4 * size[axis] + 128, _affordable(run, size[1 - axis]))))
    steps = sorted({0, 1, phase[axis] // 2, phase[axis] - 1})
    far = [(longer, steps[:1], LOUD)] if longer != size else []
    for window, places, amplitudes in (*far, (size, steps, (*LOUD, math.nan))):
        image = noise(shapes, window, 1)
        output = run(image)
        room = window[axis] - 1 - first - last
        middle = room // 2 // phase[axis] * phase[axis]
        for step in places:
            target = first + min(middle + step, room)
            for loud in amplitudes:
                changed = _changed_outside(image, axis, (target - before, target + after + 1), 2 + step, loud)
                try:
                    got = run(changed)
                except Exception:  # the model rejects such values
                    continue
                yield _compared(run, output, got, shapes, axis, target, math.isnan(loud))


def _affordable(run: Runs, across: int) -> int:
    """The longest window that is fast enough to search for distant dependencies."""
    return int(SECONDS / (run.seconds * across))


def _changed_outside(image: np.ndarray, axis: int, interval: Pair, seed: int, loud: float) -> np.ndarray:
    """The image with new noise of amplitude `loud` before interval[0] and from interval[1] on."""
    changed = image.copy()
    cut = [slice(None)] * 4
    for part in (slice(0, interval[0]), slice(interval[1], None)):
        cut[2 + axis] = part
        shape = changed[tuple(cut)].shape
        changed[tuple(cut)] = np.random.default_rng(seed).random(shape, np.float32) * loud
    return changed


def _compared(run: Runs, want: np.ndarray, got: np.ndarray, shapes: Shapes, axis: int, target: int, nan: bool) -> str:
    at = np.flatnonzero(floor_at(np.arange(want.shape[2 + axis]), shapes, axis) == target)
    expected, actual = want.take(at, 2 + axis), got.take(at, 2 + axis)
    if np.array_equal(expected, actual, equal_nan=True):
        return "equal"
    if nan:
        return "NaN"
    size = max(float(np.abs(want).max()), float(np.abs(got).max()), 1e-30)
    return "rounding" if float(np.abs(expected - actual).max()) <= run.rounding * size else "changed"


def repeats(run: Runs, shapes: Shapes, reach: Pair, period: int, axis: int) -> bool | None:
    """Whether the output shifts with the input by `period` input pixels along an axis. None: it would take too long.

    Args:
        reach: the field (before, after) along the axis.
    """
    reach, scale = ends(shapes, reach, axis), by_axis(shapes.scale)[axis]
    length = sum(reach) + 1 + 3 * period
    if length > LONGEST or (period * scale).denominator != 1:
        return None
    size = strip(run, shapes, axis, length)
    size[axis] += -(size[axis] - shapes.window[axis]) % math.lcm(period, shapes.multiple[axis])
    longer = size.copy()
    longer[axis] += period
    image = noise(shapes, longer, 3)
    first, second = (run(_part(image, axis, start, size[axis])) for start in (0, period))
    step = int(period * scale)
    inner = floor_at(np.arange(first.shape[2 + axis]), shapes, axis)
    keep = np.flatnonzero((inner >= reach[0]) & (inner < size[axis] - period - reach[1]))
    one, other = first.take(keep + step, 2 + axis), second.take(keep, 2 + axis)
    return float(np.abs(one - other).max()) <= 4 * run.rounding * max(float(np.abs(first).max()), 1e-30)


def ends_agree(run: Runs, shapes: Shapes, field: Field, period: int, axis: int) -> tuple[bool, bool]:
    """Whether a window and a longer one with the same start (then: the same end) agree: inside, and at the shared end.

    A difference inside means that the model depends on its window's size; a difference at the shared end, that its
    padding comes from the opposite end, as in circular padding. Tests of the field miss both, as they compare windows
    of one size, away from their ends.

    Args:
        period: input pixels with which the output shifts along the axis.
    """
    reach = ends(shapes, field.along(axis), axis)
    agreed = _agreeing(run, shapes, reach, period, axis, max(reach))  # covers both ends at low cost
    return agreed if all(agreed) else _agreeing(run, shapes, reach, period, axis, sum(reach))


def _agreeing(run: Runs, shapes: Shapes, reach: Pair, period: int, axis: int, least: int) -> tuple[bool, bool]:
    before, after = reach
    size = strip(run, shapes, axis, least + 2 * period + 4)
    length, step = size[axis], math.lcm(period, shapes.multiple[axis])
    affordable = min(_affordable(run, size[1 - axis]), 4 * length + 128)
    longer = size.copy()
    longer[axis] += step * max(1, (affordable - length) // step)
    shift = longer[axis] - length
    image = noise(shapes, longer, 6)
    whole, first, last = run(image), run(_part(image, axis, 0, length)), run(_part(image, axis, shift, length))
    seen = floor_at(np.arange(first.shape[2 + axis]), shapes, axis)
    within = (seen >= before) & (seen < length - after)
    inside, at_end = True, True
    for part, start, free in ((first, 0, seen < length - after), (last, shift, seen >= before)):
        made = int(start * by_axis(shapes.scale)[axis])
        apart = _apart(part, _part(whole, axis, made, part.shape[2 + axis]), axis)
        differs = free & ~(apart <= 10 * run.rounding * max(float(np.abs(whole).max()), 1e-30))
        inside &= not (differs & within).any()
        at_end &= not (differs & ~within).any()
    return inside, at_end


def _apart(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    """The largest difference at each position along the axis."""
    return np.abs(first - second).max(axis=tuple(i for i in range(4) if i != 2 + axis))


def _part(image: np.ndarray, axis: int, start: int, length: int) -> np.ndarray:
    return np.ascontiguousarray(image.take(range(start, start + length), 2 + axis))


# ---- by perturbation alone -------------------------------------------------------------------------------------------


def field_by_perturbation(run: Runs, shapes: Shapes, *, seconds: float = 10.0) -> Field | None:
    """A lower bound of the receptive field: changes everything on one side of a pixel and measures how far outputs
    change, for pixels at 16 phases. None if they change up to the window's end at every length."""
    sides = [_side(run, shapes, axis, time.monotonic() + seconds / 2) for axis in (0, 1)]
    if sides[0] is None or sides[1] is None:
        return None
    return Field(*sides[1], *sides[0])


def _side(run: Runs, shapes: Shapes, axis: int, until: float) -> Pair | None:
    length = shapes.legal(axis, 64 + 3 * sum(ends(shapes, (0, 0), axis)))
    while True:
        size = strip(run, shapes, axis, length)
        found = _reach(run, shapes, axis, size, until)
        if max(found) <= size[axis] // 3 or shapes.fixed:
            return found if max(found) < size[axis] // 4 else None
        if size[axis] * 2 > LONGEST or time.monotonic() > until:
            return None
        length = shapes.legal(axis, size[axis] * 2)


def _reach(run: Runs, shapes: Shapes, axis: int, size: list[int], until: float) -> Pair:
    image, other = noise(shapes, size, 4), noise(shapes, size, 5)
    output = run(image)
    position = np.arange(size[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    margin = size[axis] // 8  # with circular padding the ends are neighbours
    inside = (position >= margin) & (position < size[axis] - margin)
    before = after = 0
    for middle in range(size[axis] // 2, min(size[axis] // 2 + 16, size[axis] - 1)):
        for loud in LOUD:
            parts = inside & (position < middle), inside & (position >= middle)
            below, above = (_moved(run, output, run(np.where(part, other * loud, image)), axis) for part in parts)
            if below.size:
                before = max(before, int(floor_at(below.max(), shapes, axis)) - (middle - 1))
            if above.size:
                after = max(after, middle - int(floor_at(above.min(), shapes, axis)))
        if time.monotonic() > until or max(before, after) > size[axis] // 3:
            break
    return before, after


def _moved(run: Runs, want: np.ndarray, got: np.ndarray, axis: int) -> np.ndarray:
    """Output positions along the axis whose values differ by more than rounding."""
    return np.flatnonzero(_apart(want, got, axis) > run.rounding * max(float(np.abs(want).max()), 1e-30))
