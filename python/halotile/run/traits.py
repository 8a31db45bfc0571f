# SPDX-License-Identifier: MIT
"""What the first window teaches about a model: channels, scale, and what its valid convolutions take."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..errors import ModelOutputError, TileError
from ..images.channels import Part, Unfit, apart, arranged, routes
from ..inspection.known import FORMATS
from ..memory import is_out_of_memory
from ..models.kinds import channels_of
from ..models.model import TensorModel
from ..models.needs import Needs
from ..options import Options
from ..plan import Box, Tile, TilePlan
from ..texts import full_text, named
from .failures import explained, tile_error
from .windows import Windows, lacks_pixels

__all__ = ["Sizes", "Traits", "learn"]

FORMAT = ("channels_last", "may_choose", "format_checked")  # of a TensorModel

# What models say when they are given the wrong number of channels; anything else is a failure of another kind.
ABOUT_CHANNELS = re.compile(r"channel|shape|dimension|size of tensor|broadcast|should contain", re.IGNORECASE)


@dataclass(frozen=True)
class Traits:
    """Attributes:
    parts: which channels go through the model together, in the order of the result's channels.
    out_channels: of each part.
    scale: output pixels per input pixel.
    trim: output pixels missing at each end of a window (rows, columns).
    colourful: how far the channels that it makes of a grey picture are apart, on average, as a share of white.
    """

    parts: tuple[Part, ...]
    out_channels: tuple[int, ...]
    scale: Fraction
    trim: tuple[int, int]
    colourful: float = 0.0


Planner = Callable[[Fraction | None, tuple[int, int]], TilePlan]


def learn(windows: Windows, options: Options, planned: Planner, known: Sizes | None = None) -> tuple[Traits, Any]:
    """Runs the model on the first batch. Returns the facts and the first part's outputs for that batch.

    Args:
        known: scale and trim, as far as anybody looked at the model; they are used where the first window agrees.

    Raises:
        TileError: the model fails on it. ValueError: the halo is smaller than what valid convolutions take.
    """
    failure: TileError | None = None
    ways = list(routes(windows.image.channels, options.alpha, windows.model.in_channels))
    for parts in ways:
        try:
            with _format_kept(windows):
                return _learn_route(parts, windows, options, planned, known)
        except TileError as error:
            only_tried = parts[0].feed == 3 and windows.model.in_channels == 1 and parts is not ways[-1]
            if only_tried and not is_out_of_memory(error):  # the model's first convolution has said so
                windows.buffers.clear()
                continue
            failure = failure or error
            if lacks_pixels(error):
                raise
            if isinstance(error, ModelOutputError) or not ABOUT_CHANNELS.search(full_text(error.__cause__ or error)):
                break
    assert failure is not None
    failure = explained(failure, windows.image, options, channels_of(windows.model.call))
    try:
        raise failure
    finally:
        del failure  # or the error and this frame, with all it holds, would keep each other


@contextlib.contextmanager
def _format_kept(windows: Windows) -> Iterator[None]:
    """What was found out about how windows lie in memory says nothing where the model takes no such windows."""
    model = windows.model
    before = {name: getattr(model, name) for name in FORMAT if hasattr(model, name)}
    try:
        yield
    except TileError:
        for name, value in before.items():
            setattr(model, name, value)
        raise


def _learn_route(
    parts: tuple[Part, ...], windows: Windows, options: Options, planned: Planner, known: Sizes | None
) -> tuple[Traits, Any]:
    finder = TraitFinder(windows, parts[0], planned(options.scale, (0, 0)), options.needs)
    finder.check_format()
    output = finder.first_batch(options.batch_size)
    found = finder.sizes(output.shape[2:], options.scale, known)
    scaled = planned(found.scale, (0, 0))
    if _windows_of(scaled, options) != _windows_of(finder.plan, options):  # the denominator has changed the phase
        finder = TraitFinder(windows, parts[0], scaled, options.needs)
        output = finder.first_batch(options.batch_size)
        found = finder.sizes(output.shape[2:], found.scale, found)
    parts, out_channels = _arranged(parts, options, scaled, output)
    windows.buffers.clear()  # some were for windows of another size
    if parts[0].count != finder.part.count:  # not the grey of one colour, but of all
        output = TraitFinder(windows, parts[0], scaled, options.needs).first_batch(options.batch_size)
    colourful = apart(output) / windows.values.numbers[1] if parts[0].averaged else 0.0
    return Traits(parts, out_channels, found.scale, found.trim, colourful), parts[0].reduced(output)


def _windows_of(plan: TilePlan, options: Options) -> list[Box]:
    """Those of the first batch."""
    return [tile.window for tile in plan[: plan.batch(options.batch_size)]]


def _arranged(
    parts: tuple[Part, ...], options: Options, plan: TilePlan, output: Any
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    try:
        return arranged(parts, output.shape[1], options.alpha)
    except Unfit as error:
        raise tile_error(ModelOutputError, [plan[0]], str(error)) from None


# ---- scale and trim --------------------------------------------------------------------------------------------------

Size = tuple[int, int]
LARGEST_GUESS = 16  # of numerators, relative to the denominator, and of denominators
SMALLER = (24, 48, 96)  # sides of windows that are looked at beside the first, in pixels
GROWTHS = (16, 48, 37, 77, 157)  # of larger ones: near fractions part only over many pixels
ALIKE = 16  # sides that differ by multiples of it leave the same rest over in strides
SAME = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}  # of the largest value: no more apart than rounding


@dataclass(frozen=True)
class Sizes:
    """How large a model's output is: scale * window - 2 * trim, rows and columns; rounded either way where that is no
    whole number."""

    scale: Fraction
    trim: Size = (0, 0)

    def fit(self, window: Size, output: Size) -> bool:
        expected = [side * self.scale - 2 * lost for side, lost in zip(window, self.trim, strict=True)]
        return all(abs(want - got) < 1 for want, got in zip(expected, output, strict=True))

    @classmethod
    def with_scale(cls, scale: Fraction, window: Size, output: Size) -> Sizes | None:
        """Those of a scale that fit; None where an output lacks less than nothing, or an odd number of pixels. Of what
        would be no whole number a model makes the next one below or above, whichever leaves an even number."""
        missing = [side * scale - got for side, got in zip(window, output, strict=True)]
        even = [math.floor(side) if math.floor(side) % 2 == 0 else math.ceil(side) for side in missing]
        if any(side < 0 or side % 2 for side in even):
            return None
        return cls(scale, (even[0] // 2, even[1] // 2))


def _readings(window: Size, output: Size) -> list[Sizes]:
    """All that one window allows: whole scales with what they lose, and fractions that lose nothing, simplest first."""
    whole = [Sizes.with_scale(Fraction(scale), window, output) for scale in range(1, LARGEST_GUESS + 1)]
    fractions = [
        Sizes(Fraction(numerator, denominator))
        for denominator in range(2, LARGEST_GUESS + 1)
        for numerator in range(1, LARGEST_GUESS * denominator + 1)
        if math.gcd(numerator, denominator) == 1
    ]
    return [one for one in (*whole, *fractions) if one is not None and one.fit(window, output)]


class TraitFinder:
    """What a model makes of windows, as far as their size goes."""

    def __init__(self, windows: Windows, part: Part, plan: TilePlan, needs: Needs):
        self.windows, self.part, self.plan, self.needs = windows, part, plan, needs

    def first_batch(self, batch_size: int) -> Any:
        return self.windows(self.part, 0, self.plan, self.plan[: self.plan.batch(batch_size)])

    def size_of(self, window: Size) -> Size:
        """The size of what the model makes of a window of any size. Raises TileError."""
        model = self.windows.model
        if not isinstance(model, TensorModel):
            return self.windows(self.part, 0, self.plan, [self._tile(window)]).shape[2:]
        try:
            return model.probed(self._windows(window)).shape[2:]
        except Exception as error:  # whatever a model raises about windows that it does not take
            text = f"the model raised {named(error)}"
            raise tile_error(TileError, [self._tile(window)], text) from error

    def _windows(self, window: Size) -> Any:
        return self.windows.read(self.part, 0, self.plan, [self._tile(window)])

    def _tile(self, window: Size) -> Tile:
        """One at the image's first corner."""
        tile = self.plan[0]
        return replace(tile, window=tile.window._replace(height=window[0], width=window[1]))

    # ---- how windows lie in memory

    def check_format(self) -> None:
        """Windows lie in channels_last only where the model gives the same for one that lies so and one that does not:
        what reads memory as it lies would make another picture of it, without a word."""
        model = self.windows.model
        if not (getattr(model, "may_choose", False) and model.channels_last) or model.format_checked:
            return
        model.format_checked, keeps = True, FORMATS.recall(model.modules[0])
        if keeps is None:
            keeps = self._keeps_format(model)
            FORMATS.remember(model.modules[0], keeps)
        if not keeps:
            model.channels_last = model.may_choose = False
        self.windows.buffers.clear()

    def _keeps_format(self, model: TensorModel) -> bool:
        for window in (*self._smaller(1), self.plan.window):
            keeps = model.keeps_format(self._windows(window), SAME[model.dtype])
            if keeps is not None:  # or it takes no such window
                return keeps
        return False

    # ---- scale and trim

    def sizes(self, output: Size, scale: Fraction | None, known: Sizes | None) -> Sizes:
        """Scale and trim. Only the scale makes an output grow with its window, what valid convolutions take stays: so
        one window never tells, be its output a whole multiple or not. What is known of the model decides where the
        window agrees; else more windows are looked at until one reading is left.

        Args:
            output: of the plan's window. scale: as the user gave it, or None. known: of the model, or None.

        Raises:
            TileError: none is left.
        """
        seen = [(self.plan.window, output)]
        given = None if scale is None else self._given(scale, seen)
        if known is not None and known.fit(*seen[0]) and scale in (None, known.scale):
            return known
        readings = _readings(*seen[0]) if given is None else [given]
        if (given is not None and not any(given.trim)) or self.needs.fixed:
            return self._plainest(readings, seen)
        return self._narrowed(readings, seen, scale)

    def _given(self, scale: Fraction, seen: list[tuple[Size, Size]]) -> Sizes:
        found = Sizes.with_scale(scale, *seen[0]) or (Sizes(scale) if Sizes(scale).fit(*seen[0]) else None)
        if found is None:
            text = f"that is not scale {scale} times the window less as many pixels at one end as at the other"
            raise self.failed(text, seen)
        return found

    def _narrowed(self, readings: list[Sizes], seen: list[tuple[Size, Size]], scale: Fraction | None) -> Sizes:
        refused: TileError | None = None
        for window in self._others(1 if scale is None else scale.denominator):
            try:
                seen.append((window, tuple(self.size_of(window))))
            except TileError as error:
                refused = error
                continue
            guesses = readings if scale is not None else list(dict.fromkeys((*readings, *_by_growth(seen))))
            left = [one for one in guesses if one.fit(*seen[-1])]
            if not left and min(window) < min(self.plan.window):  # small ones may be completed inside the model
                seen.pop()
                continue
            readings = left
            if len(left) == 1 and len(seen) > 1:
                return left[0]
        if len(seen) == 1 and refused is not None:
            return self._plainest(readings, seen, refused)
        raise self.failed("no scale fits", seen)

    def _others(self, denominator: int) -> Iterator[Size]:
        """Windows beside the plan's that the model may take: smaller ones first, which cost little."""
        yield from self._smaller(denominator)
        for growth in GROWTHS:
            height, width = self.plan.window
            yield self._legal((height + growth, width + growth), denominator)

    def _smaller(self, denominator: int) -> Iterator[Size]:
        for side in SMALLER:
            height, width = (side + (whole - side) % ALIKE for whole in self.plan.window)
            window = self._legal((height, width), denominator)
            if all(2 * one <= whole for one, whole in zip(window, self.plan.window, strict=True)):
                yield window

    def _legal(self, least: Size, denominator: int) -> Size:
        """The smallest window from a size on that keeps the phase and what the model's file says."""
        height, width = (
            -(-max(side, lowest) // step) * step
            for side, lowest, step in zip(
                least, self.needs.least, (math.lcm(one, denominator) for one in self.plan.phase), strict=True
            )
        )
        return (max(height, width),) * 2 if self.needs.square else (height, width)

    def _plainest(
        self, readings: list[Sizes], seen: list[tuple[Size, Size]], refused: TileError | None = None
    ) -> Sizes:
        """Of a model that takes windows of one size: that which loses nothing, or the one that there is."""
        window, output = seen[0]
        exact = [tuple(side * one.scale for side in window) == tuple(output) for one in readings]
        lossless = [one for one, is_exact in zip(readings, exact, strict=True) if is_exact]
        if lossless or len(readings) == 1:
            return (lossless or readings)[0]
        if refused is not None:
            raise self.failed("another window, which would tell the scale, failed; pass scale=", seen) from refused
        raise self.failed("no scale fits; pass scale=" if readings else "no scale fits", seen)

    def failed(self, text: str, seen: list[tuple[Size, Size]]) -> TileError:
        turned = ", ".join(f"a window of {w[0]}x{w[1]} into {o[0]}x{o[1]}" for w, o in seen)
        return tile_error(ModelOutputError, [self.plan[0]], f"the model turned {turned}: {text}; check scale and phase")


def _by_growth(seen: list[tuple[Size, Size]]) -> list[Sizes]:
    """A fraction with a trim, by how outputs grow from the first window to the second."""
    if len(seen) != 2:
        return []
    (window, output), (larger, grown) = sorted(seen)
    rates = {
        Fraction(b - a, y - x) for x, y, a, b in zip(window, larger, output, grown, strict=True) if y != x and b > a
    }
    if len(rates) != 1:
        return []
    scale = rates.pop()
    found = Sizes.with_scale(scale, window, output) if scale.denominator <= LARGEST_GUESS else None
    return [] if found is None else [found]
