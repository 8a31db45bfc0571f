# SPDX-License-Identifier: MIT
"""Finds a model's window sizes by trying them: channels, scale, trim, minimum and multiple."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..models.needs import needs_of
from ..scales import Scale, joined
from .info import Pair
from .runner import Runner

__all__ = ["PHASES", "Pair", "Shapes", "find_shapes", "fixed_window"]

# Window sides to try, input pixels: they cover all usual factors of strides and attention windows.
SIDES = [16, 32, 64, 128, 24, 48, 56, 96, 112, 40, 72, 80, 140, 144, 188, 192, 224, 256, 120, 168, 200, 196, 216, 176]
SIDES += [208, 180, 240, 336, 384, 512, 572, 400, 392, 432]
# Candidates for a phase, input pixels.
PHASES = (*range(1, 11), 12, 14, 15, 16, 18, 20, 24, 28, 30, 32, 36, 40, 48, 56, 64, 96, 128)
CHANNELS = (3, 1, 4, 2, 6, 8, 12, 16)


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model's windows and outputs. Pairs are (rows, columns).

    Attributes:
        channels, out_channels: channels of input and output.
        scale: output pixels per input pixel; a pair where rows and columns differ.
        trim: output pixels missing at each end.
        minimum, multiple: smallest window and step between window sizes, input pixels.
        window: a size that works, input pixels. Others differ from it by multiples.
        fixed: whether it is the only size.
    """

    channels: int
    out_channels: int
    scale: Scale
    trim: Pair = (0, 0)
    minimum: Pair = (1, 1)
    multiple: Pair = (1, 1)
    window: Pair = (16, 16)
    fixed: bool = False

    @property
    def small(self) -> Pair:
        """A small window that works."""
        sides = [min(self.window[axis], self.legal(axis, 8)) for axis in (0, 1)]
        return sides[0], sides[1]

    def legal(self, axis: int, least: int) -> int:
        """The smallest legal size along an axis from `least` on."""
        if self.fixed:
            return self.window[axis]
        multiple = self.multiple[axis]
        rest = self.window[axis] % multiple
        return -(-(max(least, self.minimum[axis]) - rest) // multiple) * multiple + rest


def find_shapes(run: Runner, *, sample: Any = None, fixed: Pair | None = None) -> Shapes:
    """Finds the sizes of a model's windows and outputs.

    Args:
        sample: an input (batch, channels, height, width) that the model takes, or None.
        fixed: its fixed window size (rows, columns), or None.

    Raises:
        ValueError: the model accepts none of the windows that are tried.
    """
    window, channels, output = _first(run, sample, fixed)
    axes = (0, 1) if fixed is None else ()
    rhythms = [_Side(run, channels, window, output, axis).rhythm() for axis in axes]
    if fixed is not None or None in rhythms:  # the model accepts nothing larger
        scale = joined(Fraction(output[1], window[0]), Fraction(output[2], window[1]))
        return Shapes(channels, output[0], scale, minimum=window, multiple=window, window=window, fixed=True)
    scales, multiple = zip(*rhythms, strict=True)
    window, output = _whole(run, channels, window, output, multiple)
    sides = [_Side(run, channels, window, output, axis) for axis in (0, 1)]
    trim = tuple(math.floor((s * by - o) / 2) for s, by, o in zip(window, scales, output[1:], strict=True))
    minimum = tuple(side.minimum(scales[axis], multiple[axis]) for axis, side in enumerate(sides))
    while minimum != window and run.size_of(channels, *minimum) is None:  # one side may be small where the other is not
        minimum = tuple(
            min(least + step, max(least, side)) for least, step, side in zip(minimum, multiple, window, strict=True)
        )
    return Shapes(channels, output[0], joined(*scales), trim, minimum, multiple, window)


def fixed_window(model: object) -> Pair | None:
    """The fixed window size (rows, columns) of a model according to its file, or None."""
    rows, columns = needs_of(model).window
    return (rows or columns, columns or rows) if rows or columns else None


def _whole(run: Runner, channels: int, window: Pair, output: tuple[int, int, int], multiple: Pair):
    """A window whose sides are multiples, if the model accepts one: in others, strides do not divide the sides."""
    whole = tuple(-(-side // step) * step for side, step in zip(window, multiple, strict=True))
    if whole == window:
        return window, output
    size = run.size_of(channels, *whole)
    return (window, output) if size is None else (whole, size)


def _first(run: Runner, sample: Any, fixed: Pair | None) -> tuple[Pair, int, tuple[int, int, int]]:
    """A window that the model takes, its channels, and the size of the output."""
    if sample is not None:
        shape = getattr(sample, "shape", None)
        if shape is None:
            raise TypeError(f"sample must be an array or tensor (batch, channels, height, width), not {sample!r:.80}")
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"sample must have the shape (batch, channels, height, width), not {tuple(shape)}")
        windows, channels = [tuple(shape[2:])], [shape[1]]
    else:
        windows = [fixed] if fixed else _windows_tried(run)
        channels = list(dict.fromkeys((*([run.in_channels] if run.in_channels else []), *CHANNELS)))
    for window in windows:
        for count in channels:
            output = run.size_of(count, *window)
            if output is not None:
                return (window, count, output) if fixed else _smaller(run, window, count, output)
    if sample is not None:
        raise ValueError(f"sample must be an input that the model takes, not one of {tuple(shape)}: {run.refusal}")
    text = f"the model rejects all windows of {channels} channels and {SIDES[0]} to {SIDES[-1]} pixels: {run.refusal}; "
    text += "it must take one tensor or array (batch, channels, height, width) of floating-point numbers"
    raise ValueError(f"{text}; pass an input that it takes as sample=")


def _windows_tried(run: Runner) -> Iterator[Pair]:
    """Yields the sizes to try; sizes that an error of the model asks for come next."""
    tried = False
    for side in SIDES:
        if run.multiple is not None and not tried:
            tried, least = True, -(-64 // run.multiple) * run.multiple
            yield from ((least, least), (4 * least, 4 * least))
        yield side, side


def _smaller(run: Runner, window: Pair, channels: int, output: tuple[int, int, int]):
    """A smaller window, which runs faster, if its scale is the same."""
    for side in (4, 8):
        small = run.size_of(channels, side, side) if side < min(window) else None
        if small is not None and all(s * w == o * side for s, w, o in zip(small[1:], window, output[1:], strict=True)):
            return (side, side), channels, small
    return window, channels, output


class _Side:
    """The output size along one axis, as a function of the window size."""

    def __init__(self, run: Runner, channels: int, window: Pair, output: tuple[int, int, int], axis: int):
        self.run, self.channels, self.window, self.axis = run, channels, window, axis
        self.known = {window[axis]: output[1 + axis]}

    def output(self, side: int) -> int | None:
        """Output pixels for a window of that side; None if the model refuses it."""
        if side not in self.known:
            size = list(self.window)
            size[self.axis] = side
            output = self.run.size_of(self.channels, *size)
            self.known[side] = None if output is None else output[1 + self.axis]
        return self.known[side]

    @property
    def side(self) -> int:
        return self.window[self.axis]

    def rhythm(self) -> tuple[Fraction, int] | None:
        """Scale and multiple: the smallest step with which the output grows evenly. None: nothing larger is
        accepted."""
        parts = (step for step in range(1, PHASES[-1]) if self.side % step == 0)
        for step in sorted({*PHASES, *parts}):
            grown = self.output(self.side + step)
            if grown is None or grown <= self.output(self.side):
                continue
            scale = Fraction(grown - self.output(self.side), step)
            if all(self.fits(self.side + times * step, scale) for times in (2, 3, 8)):  # 8: steps of almost a stride
                return scale, step
        return None

    def fits(self, side: int, scale: Fraction) -> bool:
        output = self.output(side)
        return output is not None and output - self.output(self.side) == (side - self.side) * scale

    def minimum(self, scale: Fraction, multiple: int) -> int:
        """The smallest window, by bisection: below a size that is too small, all are."""
        least = self.side % multiple or multiple
        low, high = 0, (self.side - least) // multiple  # in multiples above the least; high works
        while low < high:
            middle = (low + high) // 2 if low else 0
            if self.fits(least + middle * multiple, scale):
                high = middle
            else:
                low = middle + 1
        return least + high * multiple
