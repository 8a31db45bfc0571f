# SPDX-License-Identifier: MIT
"""What the first window teaches about a model: channels, scale, and what its valid convolutions take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from .advice import explained
from .channels import Part, Unfit, apart, arranged, routes
from .errors import ModelOutputError, TileError
from .forward import Forward, tile_error
from .model import channels_of
from .options import Options
from .plan import TilePlan

__all__ = ["Facts", "learn"]

# What models say when they are given the wrong number of channels; anything else is a failure of another kind.
ABOUT_CHANNELS = re.compile(r"channel|shape|dimension|size of tensor|broadcast|should contain", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """Attributes:
    parts: which channels go through the model together, in the order of the result's channels.
    out_channels: of each part.
    scale: output pixels per input pixel.
    loss: output pixels missing at each end of a window (rows, columns).
    colourful: how far the channels that it makes of a grey picture are apart, on average, as a share of white.
    """

    parts: tuple[Part, ...]
    out_channels: tuple[int, ...]
    scale: Fraction
    loss: tuple[int, int]
    colourful: float = 0.0


Planner = Callable[[Fraction | None, tuple[int, int]], TilePlan]


def learn(forward: Forward, options: Options, planned: Planner) -> tuple[Facts, Any]:
    """Runs the model on the first batch. Returns the facts and the first part's outputs for that batch.

    Raises:
        TileError: the model fails on it. ValueError: the halo is smaller than what valid convolutions take.
    """
    failure: TileError | None = None
    for parts in routes(forward.image.channels, options.alpha, forward.model.in_channels):
        try:
            return _learn_route(parts, forward, options, planned)
        except TileError as error:
            failure = failure or error
            if isinstance(error, ModelOutputError) or not ABOUT_CHANNELS.search(str(error.__cause__)):
                break
    assert failure is not None
    failure = explained(failure, forward.image, options, channels_of(forward.model.call))
    try:
        raise failure
    finally:
        del failure  # or the error and this frame, with all it holds, would keep each other


def _learn_route(parts: tuple[Part, ...], forward: Forward, options: Options, planned: Planner) -> tuple[Facts, Any]:
    plan = planned(options.scale, (0, 0))
    look = Look(forward, parts[0], plan)
    output = look.first_batch(options.batch_size)
    scale = options.scale or look.find_scale(output.shape[2:])
    scaled = planned(scale, (0, 0))
    if scaled.window != plan.window or scaled.grid != plan.grid:  # the scale's denominator has changed the phase
        look = Look(forward, parts[0], scaled)
        output = look.first_batch(options.batch_size)
    loss = look.find_loss(output.shape[2:], scale)
    parts, out_channels = _arranged(parts, options, scaled, output)
    forward.buffers.clear()  # some were for windows of another size
    if parts[0].count != look.part.count:  # not the grey of one colour, but of all
        output = Look(forward, parts[0], scaled).first_batch(options.batch_size)
    colourful = apart(output) / forward.values.numbers[1] if parts[0].averaged else 0.0
    return Facts(parts, out_channels, scale, loss, colourful), parts[0].reduced(output)


def _arranged(
    parts: tuple[Part, ...], options: Options, plan: TilePlan, output: Any
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    try:
        return arranged(parts, output.shape[1], options.alpha)
    except Unfit as error:
        raise tile_error(ModelOutputError, [plan[0]], str(error)) from None


# ---- scale and loss --------------------------------------------------------------------------------------------------

Size = tuple[int, int]
LARGEST_GUESS = 16  # of numerators, relative to the denominator, and of denominators
GROWTHS = (17, 37, 77, 157)  # of windows, in pixels: near fractions part only over many


@dataclass(frozen=True)
class Guess:
    """output = scale * window - 2 * loss, rounded either way where that is no whole number."""

    scale: Fraction
    loss: int = 0

    def fits(self, window: Size, output: Size) -> bool:
        expected = [side * self.scale - 2 * self.loss for side in window]
        return all(
            want == got if want.denominator == 1 else abs(want - got) < 1
            for want, got in zip(expected, output, strict=True)
        )


def _guesses(window: Size, output: Size) -> list[Guess]:
    """All that fit: whole scales with a loss, and fractions without, simplest first."""
    fractions = [
        Guess(Fraction(numerator, denominator))
        for denominator in range(1, LARGEST_GUESS + 1)
        for numerator in range(1, LARGEST_GUESS * denominator + 1)
        if math.gcd(numerator, denominator) == 1
    ]
    lossy = [
        Guess(Fraction(scale), (scale * window[0] - output[0]) // 2)
        for scale in range(1, LARGEST_GUESS + 1)
        if 0 < scale * window[0] - output[0] < scale * window[0] // 2
    ]
    return [guess for guess in lossy + fractions if guess.fits(window, output)]


class Look:
    """What a model makes of windows, as far as their size goes."""

    def __init__(self, forward: Forward, part: Part, plan: TilePlan):
        self.forward, self.part, self.plan = forward, part, plan

    def first_batch(self, batch_size: int) -> Any:
        return self.forward(self.part, 0, self.plan, self.plan[: self.plan.batch(batch_size)])

    def larger(self, growth: int, denominator: int) -> tuple[Size, Size]:
        """A window larger by about `growth`, a multiple of phase and denominator, and the size of its output."""
        tile, steps = self.plan[0], [math.lcm(phase, denominator) for phase in self.plan.phase]
        height, width = (-(-(side + growth) // step) * step for side, step in zip(self.plan.window, steps, strict=True))
        box = tile.window._replace(height=height, width=width)
        return (height, width), self.forward(self.part, 0, self.plan, [replace(tile, window=box)]).shape[2:]

    def find_scale(self, output: Size) -> Fraction:
        """A whole factor, the same both ways, is the scale. Else larger windows are looked at until one guess is left:
        only the scale makes the output grow with the window, what valid convolutions take stays."""
        whole = self.whole_factor(output)
        if whole is not None:
            return whole
        guesses, seen = _guesses(self.plan.window, output), [(self.plan.window, output)]
        for growth in GROWTHS:
            if not guesses:
                break
            try:
                seen.append(self.larger(growth, guesses[0].scale.denominator))
            except TileError as error:
                raise self.failed("a larger window, which would tell the scale, failed; pass scale=", seen) from error
            guesses = [guess for guess in guesses if guess.fits(*seen[-1])]
            if len(guesses) == 1:
                return guesses[0].scale
        raise self.failed("no scale fits", seen)

    def whole_factor(self, output: Size) -> Fraction | None:
        factor, rest = divmod(output[0], self.plan.window[0])
        return Fraction(factor) if rest == 0 and factor > 0 and output[1] == factor * self.plan.window[1] else None

    def find_loss(self, output: Size, scale: Fraction) -> Size:
        """Output pixels missing at each end of a window: an even number in all, the same for windows of any size."""
        missing = [side * scale - got for side, got in zip(self.plan.window, output, strict=True)]
        seen = [(self.plan.window, output)]
        text = f"that is not scale {scale} times the window less as many pixels at one end as at the other"
        if any(side < 0 or side.denominator != 1 or side.numerator % 2 for side in missing):
            raise self.failed(text, seen)
        loss = missing[0].numerator // 2, missing[1].numerator // 2
        if self.whole_factor(output) not in (None, scale):  # a scale that was given, and is wrong
            raise self.failed(text, seen)
        if any(loss):
            try:
                seen.append(self.larger(GROWTHS[0], scale.denominator))
            except TileError:  # a model for windows of this size only: the scale was given, and stands
                return loss
            if any(s * scale - got != 2 * lost for s, got, lost in zip(*seen[-1], loss, strict=True)):
                raise self.failed(text, seen)
        return loss

    def failed(self, text: str, seen: list[tuple[Size, Size]]) -> TileError:
        turned = ", ".join(f"a window of {w[0]}x{w[1]} into {o[0]}x{o[1]}" for w, o in seen)
        return tile_error(ModelOutputError, [self.plan[0]], f"the model turned {turned}: {text}; check scale and phase")
