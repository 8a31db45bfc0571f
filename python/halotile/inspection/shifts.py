# SPDX-License-Identifier: MIT
"""Whether a model's output moves with its input, found by trying."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..memory import is_out_of_memory
from ..models.around import looking
from ..models.model import Model
from .copies import one_thread
from .runner import Runner, random
from .shapes import Shapes

__all__ = ["Moves", "moves_of"]

STEPS = (64, 48, 56, 60, 63)  # shifts that are tried, from which smaller ones are found: input pixels
UNSEEN = 1 / 1020  # of white: a quarter of a step of 8 bits
CLEARLY = 8  # times less apart than after a shift by less


class Moves(NamedTuple):
    """How the output of a model moves with its input.

    Attributes:
        step: the least shift, in input pixels along both axes, after which the output is the same, moved; None: none of
            those that were tried.
        apart: how far it is from that, as a share of white, after the least shift that windows can have; where there is
            no step, after the worst of those that were tried.
    """

    step: int | None
    apart: float


def moves_of(opened: Model, shapes: Shapes, values: tuple[float, float]) -> Moves | None:
    """Finds by trying after which shifts a model's output is the same, moved: what its phase is.

    Two windows of noise, of 64 pixels a side, that differ by the least shift are enough where the output moves with
    them. Else windows of 192 pixels and other shifts are tried: 15 of them at most, less than two tiles.

    Args:
        shapes: what is known of the model: channels, scale, trim, least and multiple of windows.
        values: black and white of the model.

    Returns:
        None where that cannot be told: the model takes no such windows, or gives another output each time.
    """
    base = math.lcm(*shapes.multiple, shapes.scale.denominator)
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
    except Exception as error:  # a second opinion only, of a model that may be anything
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
    """A model on windows that are cut out of one field of noise.

    Attributes:
        side: of the windows, input pixels, a multiple of base.
        start, stop: what is compared of the window that is not shifted, input pixels: `margin` pixels and more from the
            edges of both windows, also where the other is shifted by `most`.
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
        """The largest difference, as a share of white, between what a window gives and what one gives that starts
        `shift` rows and columns later."""
        return float(np.abs(self.still - self._cut(shift)).max()) / self.white

    def _cut(self, shift: int) -> np.ndarray:
        """Raises ValueError for outputs of another size, or that are not finite."""
        scale, part = self.shapes.scale, slice(shift, shift + self.side)
        output = self.run(self.noise[:, :, part, part] * self.white + self.low)
        y, x = (
            slice(*(int((end - shift) * scale) - lost for end in (self.start, self.stop))) for lost in self.shapes.trim
        )
        cut = output[:, :, y, x]
        expected = tuple(self.side * scale - 2 * lost for lost in self.shapes.trim)
        if output.shape[2:] != expected or not cut.size or not np.isfinite(cut).all():
            raise ValueError("such windows do not tell")
        return cut.copy()  # some models write to one buffer again and again
