# SPDX-License-Identifier: MIT
"""What the first window reveals about a model: channels, scale and trim (border pixels lost to valid convolutions).

    output side = scale * window side - 2 * trim

One window is not enough: 64 -> 120 is scale 2 with trim 4, or scale 15/8. Windows of other sizes rule readings out:

    window   output   scale 2, trim 4   scale 15/8, trim 0
        64      120          fits             fits
        32       56          fits             60: ruled out
"""

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
from ..images.image import Pixels
from ..inspection.known import FORMATS
from ..memory import is_out_of_memory
from ..models.kinds import channels_of
from ..models.model import TensorModel
from ..models.needs import Needs
from ..options import Options
from ..plan import Box, Tile, TilePlan
from ..scales import LARGEST_SCALE, Scale, by_axis, joined, largest_term, scale_text
from ..texts import full_text, named
from .failures import explained, tile_error
from .together import images_together
from .windows import Windows, lacks_pixels

__all__ = ["Sizes", "Traits", "learn"]

FORMAT = ("channels_last", "may_choose", "format_checked")  # attributes of a TensorModel

# How models report a wrong number of channels; other messages mean another kind of failure.
ABOUT_CHANNELS = re.compile(r"channel|shape|dimension|size of tensor|broadcast|should contain", re.IGNORECASE)


@dataclass(frozen=True)
class Traits:
    """Attributes:
    parts: groups of channels that go through the model together, in the order of the result.
    out_channels: output channels of each part.
    scale: output pixels per input pixel; a pair where rows and columns differ.
    trim: output pixels missing at each end of a window (rows, columns).
    colourful: mean spread of the output channels for a grey input, as a share of white.
    """

    parts: tuple[Part, ...]
    out_channels: tuple[int, ...]
    scale: Scale
    trim: tuple[int, int]
    colourful: float = 0.0

    @property
    def makes_data(self) -> bool:
        """Whether the model makes something else than a picture of its input's channels, such as classes. Colours of
        grey and grey of colours are pictures."""
        first = self.parts[0]
        made = first.feed if first.averaged else self.out_channels[0]
        return made != first.feed and not {made, first.feed} <= {1, 3}


Planner = Callable[[Scale | None, tuple[int, int]], TilePlan]


def learn(windows: Windows, options: Options, planned: Planner, known: Sizes | None = None) -> tuple[Traits, Any]:
    """Runs the model on the first batch. Returns its traits and the first part's outputs for that batch.

    Args:
        known: scale and trim from an inspection, used if the first window agrees.

    Raises:
        TileError: the model fails on it. ValueError: the halo is smaller than the trim of valid convolutions.
    """
    failure: TileError | None = None
    ways = list(routes(windows.image.channels, options.alpha, windows.model.in_channels))
    for parts in ways:
        try:
            with _format_kept(windows):
                return _learn_route(parts, windows, options, planned, known)
        except TileError as error:
            only_tried = parts[0].feed == 3 and windows.model.in_channels == 1 and parts is not ways[-1]
            if only_tried and not is_out_of_memory(error):  # a guess from the model's first convolution
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
        del failure  # breaks the reference cycle between the error and this frame


@contextlib.contextmanager
def _format_kept(windows: Windows) -> Iterator[None]:
    """Restores the detected memory format if the model rejects the windows."""
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
    output = finder.first_batch(options)
    found = finder.sizes(output.shape[2:], options.scale, known)
    scaled = planned(found.scale, (0, 0))
    if _windows_of(scaled, options) != _windows_of(finder.plan, options):  # the scale's denominator changed the phase
        finder = TraitFinder(windows, parts[0], scaled, options.needs)
        output = finder.first_batch(options)
        found = finder.sizes(output.shape[2:], found.scale, found)
    parts, out_channels = _arranged(parts, options, scaled, output)
    windows.buffers.clear()  # they may have another size
    if parts[0].count != finder.part.count:  # the grey of all colours instead of one channel
        output = TraitFinder(windows, parts[0], scaled, options.needs).first_batch(options)
    colourful = apart(output) / windows.values.numbers[1] if parts[0].averaged else 0.0
    return Traits(parts, out_channels, found.scale, found.trim, colourful), parts[0].reduced(output)


def _windows_of(plan: TilePlan, options: Options) -> list[Box]:
    return [tile.window for tile in plan[: plan.batch(options.batch_size)]]


def _arranged(
    parts: tuple[Part, ...], options: Options, plan: TilePlan, output: Pixels
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    try:
        return arranged(parts, output.shape[1], options.alpha, options.reduce is not None)
    except Unfit as error:
        raise tile_error(ModelOutputError, [plan[0]], str(error)) from None


# ---- scale and trim --------------------------------------------------------------------------------------------------

Size = tuple[int, int]
SIMPLE = 4  # denominators that no other fraction comes close to in two windows
LARGEST_GUESS = 16  # of denominators, and of numerator / denominator
SMALLER = (24, 48, 96)  # sides of smaller windows to try, pixels
GROWTHS = (16, 48, 37, 77, 157)  # increments of larger windows: close fractions differ only over many pixels
ALIKE = 16  # sides equal modulo this leave the same remainder for strides
SAME = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}  # tolerance for rounding, relative to the largest value


@dataclass(frozen=True)
class Sizes:
    """Output size of a model: scale * window - 2 * trim per axis; a fractional size rounds either way."""

    scale: Scale
    trim: Size = (0, 0)

    def fit(self, window: Size, output: Size) -> bool:
        sides = zip(window, by_axis(self.scale), self.trim, output, strict=True)
        return all(abs(side * scale - 2 * lost - got) < 1 for side, scale, lost, got in sides)

    @classmethod
    def with_scale(cls, scale: Scale, window: Size, output: Size) -> Sizes | None:
        """The trim that fits a scale; None if the output is too large or an odd number of pixels is missing. A
        fractional size is rounded up or down, to whichever leaves an even number missing."""
        missing = [side * by - got for side, by, got in zip(window, by_axis(scale), output, strict=True)]
        even = [math.floor(side) if math.floor(side) % 2 == 0 else math.ceil(side) for side in missing]
        if any(side < 0 or side % 2 for side in even):
            return None
        return cls(scale, (even[0] // 2, even[1] // 2))


def _readings(window: Size, output: Size) -> list[Sizes]:
    """All readings of one window: integer scales with a trim, then fractions without one, simplest first; then one with
    a scale for each axis."""
    whole = [Sizes.with_scale(Fraction(scale), window, output) for scale in range(1, LARGEST_GUESS + 1)]
    fractions = [
        Sizes(Fraction(numerator, denominator))
        for denominator in range(2, LARGEST_GUESS + 1)
        for numerator in range(1, LARGEST_GUESS * denominator + 1)
        if math.gcd(numerator, denominator) == 1
    ]
    readings = [one for one in (*whole, *fractions) if one is not None and one.fit(window, output)]
    rows, columns = (Fraction(got, side) for got, side in zip(output, window, strict=True))
    return [*readings, Sizes((rows, columns))] if _plainly_uneven(rows, columns) else readings


def _plainly_uneven(rows: Fraction, columns: Fraction) -> bool:
    """Whether the scales differ and are whole numbers, or one by them, as models have without a trim."""
    return rows != columns and all(one > 0 and 1 in (one.numerator, one.denominator) for one in (rows, columns))


class TraitFinder:
    def __init__(self, windows: Windows, part: Part, plan: TilePlan, needs: Needs):
        self.windows, self.part, self.plan, self.needs = windows, part, plan, needs

    def first_batch(self, options: Options) -> Any:
        tiles = self.plan[: self.plan.batch(options.batch_size)]
        together = images_together(self.windows.image, options, self.plan)
        return self.windows.of_images(self.part, range(together), self.plan, tiles)

    def size_of(self, window: Size) -> Size:
        """Output size for a window of any size. Raises TileError."""
        model = self.windows.model
        if not isinstance(model, TensorModel):
            return self.windows(self.part, 0, self.plan, [self._tile(window)]).shape[2:]
        try:
            return model.probed(self._windows(window)).shape[2:]
        except Exception as error:  # models raise anything for windows they reject
            text = f"the model raised {named(error)}"
            raise tile_error(TileError, [self._tile(window)], text) from error

    def _windows(self, window: Size) -> Any:
        return self.windows.read(self.part, 0, self.plan, [self._tile(window)])

    def _tile(self, window: Size) -> Tile:
        tile = self.plan[0]
        return replace(tile, window=tile.window._replace(height=window[0], width=window[1]))

    # ---- how windows lie in memory

    def check_format(self) -> None:
        """Keeps channels_last only if both memory formats give the same output: a model that reads raw memory would
        silently scramble the image."""
        model = self.windows.model
        if not (model.may_choose and model.channels_last) or model.format_checked:
            return
        model.format_checked = True
        keeps = FORMATS.keeps(model.modules[0], lambda: self._keeps_format(model))
        if not keeps:
            model.channels_last = model.may_choose = False
        self.windows.buffers.clear()

    def _keeps_format(self, model: TensorModel) -> bool:
        for window in (*self._smaller((1, 1)), self.plan.window):
            keeps = model.keeps_format(self._windows(window), SAME[model.dtype])
            if keeps is not None:  # None: the model rejects this window
                return keeps
        return False

    # ---- scale and trim

    def sizes(self, output: Size, scale: Scale | None, known: Sizes | None) -> Sizes:
        """Scale and trim, from more windows until one reading is left (see the top of this file).

        Args:
            output: size of the output for the plan's window. scale: the user's, or None. known: from an inspection, or
                None; used if the window agrees.

        Raises:
            TileError: no reading fits.
        """
        seen = [(self.plan.window, output)]
        given = None if scale is None else self._given(scale, seen)
        if known is not None and known.fit(*seen[0]) and scale in (None, known.scale):
            return known
        readings = _readings(*seen[0]) if given is None else [given]
        if (given is not None and not any(given.trim)) or self.needs.fixed:
            return self._plainest(readings, seen)
        return self._narrowed(readings, seen, scale)

    def _given(self, scale: Scale, seen: list[tuple[Size, Size]]) -> Sizes:
        found = Sizes.with_scale(scale, *seen[0]) or (Sizes(scale) if Sizes(scale).fit(*seen[0]) else None)
        if found is None:
            text = f"that is not scale {scale_text(scale)} times the window"
            raise self.failed(_uneven(seen) or f"{text} less as many pixels at one end as at the other", seen)
        return found

    def _narrowed(self, readings: list[Sizes], seen: list[tuple[Size, Size]], scale: Scale | None) -> Sizes:
        refused: TileError | None = None
        rows, columns = by_axis(Fraction(1) if scale is None else scale)
        for window in self._others((rows.denominator, columns.denominator)):
            try:
                seen.append((window, tuple(self.size_of(window))))
            except TileError as error:
                refused = error
                continue
            guesses = readings if scale is not None else list(dict.fromkeys((*readings, *_by_growth(seen))))
            left = [one for one in guesses if one.fit(*seen[-1])]
            if not left and scale is None:
                left = _for_each_axis(seen)
            if not left and min(window) < min(self.plan.window):  # the model may pad small windows itself
                seen.pop()
                continue
            readings = left
            if len(left) == 1 and len(seen) > 1:
                return left[0]
        if len(seen) == 1 and refused is not None:
            return self._plainest(readings, seen, refused)
        raise self.failed(_uneven(seen) or "no scale fits", seen)

    def _others(self, denominators: Size) -> Iterator[Size]:
        """Yields cheap small windows first."""
        yield from self._smaller(denominators)
        for growth in GROWTHS:
            height, width = self.plan.window
            yield self._legal((height + growth, width + growth), denominators)

    def _smaller(self, denominators: Size) -> Iterator[Size]:
        for side in SMALLER:
            height, width = (side + (whole - side) % ALIKE for whole in self.plan.window)
            window = self._legal((height, width), denominators)
            if all(2 * one <= whole for one, whole in zip(window, self.plan.window, strict=True)):
                yield window

    def _legal(self, least: Size, denominators: Size) -> Size:
        """The smallest window of at least this size that respects the phase and the model file's constraints."""
        height, width = (
            -(-max(side, lowest) // step) * step
            for side, lowest, step in zip(
                least, self.needs.least, map(math.lcm, self.plan.phase, denominators), strict=True
            )
        )
        return (max(height, width),) * 2 if self.needs.square else (height, width)

    def _plainest(
        self, readings: list[Sizes], seen: list[tuple[Size, Size]], refused: TileError | None = None
    ) -> Sizes:
        """For models with one window size: the reading without trim, or the only one."""
        window, output = seen[0]
        exact = [
            tuple(side * scale for side, scale in zip(window, by_axis(one.scale), strict=True)) == tuple(output)
            for one in readings
        ]
        lossless = [one for one, is_exact in zip(readings, exact, strict=True) if is_exact]
        if lossless or len(readings) == 1:
            return (lossless or readings)[0]
        if refused is not None:
            raise self.failed("another window, which would tell the scale, failed; pass scale=", seen) from refused
        raise self.failed("no scale fits; pass scale=" if readings else "no scale fits", seen)

    def failed(self, text: str, seen: list[tuple[Size, Size]]) -> TileError:
        turned = ", ".join(f"a window of {w[0]}x{w[1]} into {o[0]}x{o[1]}" for w, o in seen)
        return tile_error(ModelOutputError, [self.plan[0]], f"the model turned {turned}: {text}; check scale and phase")


def _uneven(seen: list[tuple[Size, Size]]) -> str:
    """What to pass for a model that enlarges rows and columns differently; empty if it does not."""
    scales = {(Fraction(got[0], window[0]), Fraction(got[1], window[1])) for window, got in seen}
    if len(scales) != 1:
        return ""
    rows, columns = scales.pop()
    told = rows != columns if len(seen) > 1 else _plainly_uneven(rows, columns)
    if not told or largest_term((rows, columns)) > LARGEST_SCALE:
        return ""
    return f"it enlarges rows by {rows} and columns by {columns}: pass scale=({rows}, {columns})"


def _for_each_axis(seen: list[tuple[Size, Size]]) -> list[Sizes]:
    """Readings with different scales of rows and columns, which fit all windows. Each has fewer windows to go by than
    one scale for both, so close fractions must fit exactly."""
    sides: list[list[Sizes]] = []
    for axis in (0, 1):
        alone = [((window[axis],) * 2, (output[axis],) * 2) for window, output in seen]
        guesses = dict.fromkeys((*_readings(*alone[0]), *_by_growth(alone)))
        sides.append([one for one in guesses if _fits_alone(one, alone)])
    pairs = [(rows, columns) for rows in sides[0] for columns in sides[1] if rows.scale != columns.scale]
    return [
        Sizes(joined(by_axis(rows.scale)[0], by_axis(columns.scale)[1]), (rows.trim[0], columns.trim[1]))
        for rows, columns in pairs
    ]


def _fits_alone(one: Sizes, seen: list[tuple[Size, Size]]) -> bool:
    scale = by_axis(one.scale)[0]
    if scale.denominator > SIMPLE and any(window[0] * scale - 2 * one.trim[0] != output[0] for window, output in seen):
        return False
    return all(one.fit(*pair) for pair in seen)


def _by_growth(seen: list[tuple[Size, Size]]) -> list[Sizes]:
    """A fractional scale with trim, from the growth between two windows."""
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
