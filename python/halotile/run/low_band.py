# SPDX-License-Identifier: MIT
"""match_low=: the slowly varying part of every tile is that of one pass over the reduced image.

    image     reduced     model     its output in cells, one for each pixel of the reduced image
    window    model       output    the same cells of this window
                                    their difference, blurred and enlarged, is added to the output

A model that shifts the colours of each window by itself then shifts them alike everywhere. Detail is the tile's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..engine.device_lock import turn
from ..images.channels import Part
from ..images.image import Pixels
from ..images.values import as_floats, fill
from ..plan import Box, Tile, TilePlan
from .again import plain_arithmetic
from .prepared import First, Prepared
from .windows import Windows

__all__ = ["LowBand", "tie_low_bands", "with_low_band"]

Pair = tuple[int, int]

SAID = "the low band of every tile is that of"
AT_ONCE = 512  # input pixels a side that are read at once for the reduced image
SHARE = 8  # a difference is blurred over about this share of a window on either side


@dataclass(frozen=True)
class Reduced:
    """The reduced image: `size` pixels, each the mean of factor x factor pixels, from pixel -before of the image on. It
    has a halo around the image.
    """

    factor: int
    size: Pair
    before: Pair


def reduction(prepared: Prepared) -> Reduced:
    """Raises ValueError if match_low is too small for the image and its tiles."""
    options, plan = prepared.options, prepared.plan
    needs, asked = options.needs, options.match_low
    assert asked is not None
    margins = [  # a halo, for a model that does something else at the edge of its input
        _round_up(max(halo, -(-trim * scale.denominator // scale.numerator)), step)
        for halo, trim, scale, step in zip(plan.halo, plan.trim, plan.scales, plan.phase, strict=True)
    ]
    rooms = [
        _room(asked, side, max(plan.window), 2 * margin) // step * step
        for side, step, margin in zip(needs.window, plan.phase, margins, strict=True)
    ]
    if min(rooms) < 1:
        raise ValueError(f"match_low must be at least {max(plan.phase)} for this model, not {asked!r}")
    factor = max(-(-side // room) for side, room in zip(plan.image_size, rooms, strict=True))
    cells = [scale.denominator * factor for scale in plan.scales]  # input pixels
    if any(2 * cell > window for cell, window in zip(cells, plan.window, strict=True)):
        least = max(
            -(-2 * scale.denominator * max(plan.image_size) // side)
            for scale, side in zip(plan.scales, plan.window, strict=True)
        )
        raise ValueError(
            f"match_low must be at least about {least} for an image of {plan.image_size} (height, width) in windows of "
            f"{plan.window}, not {asked!r}: a window must have two pixels of the reduced image along each side"
        )
    sides = [
        max(_round_up(-(-side // factor), step) + 2 * margin, _round_up(least, step))
        for side, step, margin, least in zip(plan.image_size, plan.phase, margins, needs.least, strict=True)
    ]
    if needs.square:
        sides = [max(sides)] * 2
    return Reduced(factor, (sides[0], sides[1]), (margins[0] * factor, margins[1] * factor))


def with_low_band(prepared: Prepared) -> Prepared:
    """Says in the report that low bands are tied, if they are to be. Raises ValueError if match_low does not fit."""
    if prepared.options.match_low is None or SAID in prepared.report.why:
        return prepared
    report, factor = prepared.report, reduction(prepared).factor
    why = f"{report.why}; {SAID} the image reduced by {factor}"
    return replace(prepared, report=replace(report, how="given", bound=None, why=why))


def tie_low_bands(prepared: Prepared, index: int, first: First) -> None:
    """Runs the model on the reduced image, for windows of image `index`."""
    windows = prepared.windows
    if prepared.options.match_low is None or windows.low_for == index:
        return
    first.clear()
    windows.low.clear()
    with turn(windows.engine.device):
        parts = [part for part in prepared.parts_of(index) if part.how == "model"]
        windows.low |= {part: low_band(prepared, part, index) for part in parts}
    windows.low_for = index


def _room(asked: int | str, fixed: int | None, window: int, margin: int) -> int:
    """The largest side of the reduced image: as asked, or what the margins leave of a window."""
    if fixed is not None:
        return fixed - margin
    return window - margin if isinstance(asked, str) else asked


def low_band(prepared: Prepared, part: Part, index: int) -> LowBand:
    """Runs the model on the reduced image.

    Raises:
        TileError: the model failed. ValueError: match_low does not fit.
    """
    plan, found = prepared.plan, reduction(prepared)
    output = as_floats(_output(prepared, part, index, found))[0]
    starts = [
        int(before // found.factor * scale) - trim
        for before, scale, trim in zip(found.before, plan.scales, plan.trim, strict=True)
    ]
    each = [scale.numerator for scale in plan.scales]
    pixels = found.factor * each[0], found.factor * each[1]
    rows, columns = (-(-side // cell) for side, cell in zip(plan.output_size, pixels, strict=True))
    output = output[:, starts[0] : starts[0] + rows * each[0], starts[1] : starts[1] + columns * each[1]]
    cells = output.reshape(len(output), rows, each[0], columns, each[1]).mean((2, 4))
    radius = min(side // (SHARE * cell) for side, cell in zip(plan.window_output, pixels, strict=True))
    return LowBand(cells, pixels, max(1, radius), plan)


def _output(prepared: Prepared, part: Part, index: int, found: Reduced) -> Pixels:
    """What the model makes of the reduced image; with on_nonfinite="retry" in float32 where half precision failed."""
    windows, plan = prepared.windows, prepared.plan
    tile = replace(plan[0], window=Box(-found.before[0], -found.before[1], *(found.factor * one for one in found.size)))
    output = windows.outputs(part, index, _reduced(windows, part, index, plan, found), [tile])
    other = None if prepared.again is None else prepared.again.instead(windows, part, output)
    if other is None:
        return output
    with plain_arithmetic(other.model_of(part)):
        return other.outputs(part, index, _reduced(other, part, index, plan, found), [tile])


def _reduced(windows: Windows, part: Part, index: int, plan: TilePlan, found: Reduced) -> Any:
    """The reduced image as a window of the model."""
    factor = found.factor
    image = windows.engine.new_windows(windows.model_of(part), (1, part.feed, *found.size))
    piece = max(1, AT_ONCE // factor)
    for y in range(0, found.size[0], piece):
        for x in range(0, found.size[1], piece):
            rows, columns = min(piece, found.size[0] - y), min(piece, found.size[1] - x)
            at = y * factor - found.before[0], x * factor - found.before[1]
            tile = replace(plan[0], window=Box(*at, rows * factor, columns * factor))
            window = windows.read(part, index, plan, [tile])
            floats = window.float() if not isinstance(window, np.ndarray) else as_floats(window)
            means = floats.reshape(*floats.shape[:2], rows, factor, columns, factor).mean((3, 5))
            fill(image[..., y : y + rows, x : x + columns], means)
    windows.buffers.clear()
    return image


class LowBand:
    """Ties outputs of windows to the cells of a reduced pass.

    Args:
        cells: (C, rows, columns).
        pixels: of the result in a cell (rows, columns).
        radius: of the blur, in cells.
    """

    def __init__(self, cells: np.ndarray, pixels: Pair, radius: int, plan: TilePlan):
        self.cells, self.pixels, self.radius = cells, pixels, radius
        self.scales, self.trim = plan.scales, plan.trim
        self.along: dict[tuple[int, int, int], Axis] = {}

    def __call__(self, outputs: Any, tiles: Sequence[Tile]) -> Any:
        """Outputs (len(tiles), C, height, width), an array or tensor, tied."""
        on_host = isinstance(outputs, np.ndarray)
        outputs = as_floats(outputs).copy() if on_host else outputs.float().clone()
        for at, tile in enumerate(tiles):
            output = outputs[at]
            rows, columns = (
                self._axis(axis, start, output.shape[1 + axis]) for axis, start in enumerate(tile.window[:2])
            )
            inner = self.cells[:, rows.first : rows.last, columns.first : columns.last]
            numbers = (inner, rows.means, columns.means, rows.spread, columns.spread)
            cells, down, across, tall, wide = (
                numbers if on_host else (outputs.new_tensor(np.ascontiguousarray(one)) for one in numbers)
            )
            outputs[at] += _between(tall, cells - _between(down, output, across), wide)
        return outputs

    def _axis(self, axis: int, start: int, length: int) -> Axis:
        key = axis, start, length
        if key not in self.along:
            at = int(start * self.scales[axis]) + self.trim[axis]
            self.along[key] = Axis.of(at, length, self.cells.shape[1 + axis], self.pixels[axis], self.radius)
        return self.along[key]


def _between(rows: Pixels, values: Pixels, columns: Pixels) -> Pixels:
    """rows @ values @ columns.T for every channel; for tensors without repeated or transposed views, as products of
    those are wrong on some devices."""
    if isinstance(values, np.ndarray):
        return rows @ values @ columns.T
    left, right = (one.expand(len(values), -1, -1).contiguous() for one in (rows, columns.T))
    return left.bmm(values.contiguous()).bmm(right)


@dataclass(frozen=True)
class Axis:
    """What a window's pixels and cells have to do with each other along one axis.

    Attributes:
        first, last: its cells.
        means: (cells, pixels): pixels to cells.
        spread: (pixels, cells): blurs cells and enlarges them.
    """

    first: int
    last: int
    means: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, start: int, length: int, count: int, side: int, radius: int) -> Axis:
        """Of a window from pixel `start` of the result on, in which a cell has `side` pixels. Cells that are in it in
        part are left out, if any is in it as a whole."""
        low, high = max(0, -(-start // side)), min(count, (start + length) // side)
        if low >= high:
            low, high = max(0, start // side), min(count, -(-(start + length) // side))
            low, high = min(low, count - 1), max(high, 1)
        cells, pixels = np.arange(low, high), np.arange(start, start + length)
        inside = (pixels // side)[None] == cells[:, None]
        apart = np.abs(cells[:, None] - cells[None])
        blur = np.clip(radius + 1 - apart, 0, None).astype(np.float64)
        blur /= blur.sum(1, keepdims=True)
        at = np.clip((pixels + 0.5) / side - 0.5 - low, 0, len(cells) - 1)
        enlarge = np.clip(1 - np.abs(at[:, None] - np.arange(len(cells))[None]), 0, None)
        means = inside / np.maximum(inside.sum(1, keepdims=True), 1)
        return cls(low, high, means.astype(np.float32), (enlarge @ blur).astype(np.float32))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
