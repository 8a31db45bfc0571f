# SPDX-License-Identifier: MIT
"""Tests by running a model whether its output shifts with its input."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..memory import is_out_of_memory
from ..models.around import looking
from ..models.model import Model
from ..scales import by_axis
from .copies import one_thread
from .runner import Runner, random
from .shapes import Shapes

__all__ = ["Moves", "moves_of"]

STEPS = (64, 48, 56, 60, 63)  # shifts to try, input pixels; then their divisors
UNSEEN = 1 / 1020  # of white: a quarter of an 8-bit step
CLEARLY = 8  # factor by which the difference must drop from that of the smallest shift


class Moves(NamedTuple):
    """How the output of a model shifts with its input.

    Attributes:
        step: the smallest shift, in input pixels along both axes, with which the output shifts too; None: none of those
            that were tried.
        apart: the difference from a shifted output, as a fraction of white, for the smallest shift that windows can
            have; if there is no step, for the worst shift that was tried.
    """

    step: int | None
    apart: float


def moves_of(opened: Model, shapes: Shapes, values: tuple[float, float]) -> Moves | None:
    """Finds a model's phase by trying with which shifts its output shifts too.

    Two windows of noise of 64 pixels a side, one smallest shift apart, are enough if the output shifts with them.
    Otherwise windows of 192 pixels and other shifts are tried: at most 15 windows, less than two tiles.

    Args:
        shapes: the model's channels, scale, trim, and minimum and multiple of windows.
        values: the model's black and white.

    Returns:
        The result; None if unknown, as the model rejects such windows or is not deterministic.
    """
    base = math.lcm(*shapes.multiple, *(one.denominator for one in by_axis(shapes.scale)))
    if base > 16:
        return None
    try:
        with one_thread(), looking():
            run = Runner(opened.call, opened=opened)
            small = _Shifted(run, shapes, values, base, side=64, margin=24, most=base)
            if small.apart(base) <= UNSEEN:
                return Moves(base, 0.0)
            return _moves(_Shifted(run, shapes, values, base, side=192, margin=48, most=max(STEPS)))
    except MemoryError:
        raise
    except Exception as error:  # optional; a model may raise anything
        if is_out_of_memory(error):
            raise
        return None


def _moves(shifted: _Shifted) -> Moves | None:
    base = shifted.base
    first = shifted.apart(base)
    if first <= UNSEEN:
        return Moves(base, first)
    left: dict[int, float] = {}
    for step in (one for one in STEPS if one % base == 0):
        left[step] = shifted.apart(step)
        if left[step] <= shifted.run.rounding:
            break
    best = min(left, key=lambda step: left[step])
    if CLEARLY * left[best] <= first:
        return Moves(_least(shifted, best, max(4 * left[best], shifted.run.rounding)), first)
    return None if shifted.apart(0) > UNSEEN else Moves(None, max(first, *left.values()))


def _least(shifted: _Shifted, step: int, allowed: float) -> int:
    for factor in (2, 3, 5, 7):
        while step % (factor * shifted.base) == 0 and shifted.apart(step // factor) <= allowed:
            step //= factor
    return step


class _Shifted:
    """Runs a model on windows of one noise image.

    Attributes:
        side: side of the windows, input pixels, a multiple of base.
        start, stop: compared part of the unshifted window, input pixels: at least `margin` pixels from the edges of
            both windows, even if the other one is shifted by `most`.
    """

    def __init__(
        self, run: Runner, shapes: Shapes, values: tuple[float, float], base: int, *, side: int, margin: int, most: int
    ):
        self.run, self.shapes, self.base = run, shapes, base
        self.side, self.start = -(-side // base) * base, -(-(margin + most) // base) * base
        self.stop = (self.side - margin) // base * base
        if any(self.side < least for least in shapes.minimum):
            raise ValueError(f"windows of {self.side} are too small")
        self.low, self.white = values[0], values[1] - values[0]
        self.noise = random(shapes.channels, self.side + most, self.side + most, seed=4)
        self.still = self._cut(0)

    def apart(self, shift: int) -> float:
        """The largest difference, as a fraction of white, between the outputs of the window and of one that starts
        `shift` rows and columns later."""
        return float(np.abs(self.still - self._cut(shift)).max()) / self.white

    def _cut(self, shift: int) -> np.ndarray:
        """The compared part of a window's output. Raises ValueError for outputs of unexpected size or with NaN or
        Inf."""
        sides = list(zip(by_axis(self.shapes.scale), self.shapes.trim, strict=True))
        part = slice(shift, shift + self.side)
        output = self.run(self.noise[:, :, part, part] * self.white + self.low)
        y, x = (slice(*(int((end - shift) * scale) - lost for end in (self.start, self.stop))) for scale, lost in sides)
        cut = output[:, :, y, x]
        expected = tuple(self.side * scale - 2 * lost for scale, lost in sides)
        if output.shape[2:] != expected or not cut.size or not np.isfinite(cut).all():
            raise ValueError("the output has an unexpected size or is not finite")
        return cut.copy()  # some models reuse one output buffer
