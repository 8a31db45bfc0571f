# SPDX-License-Identifier: MIT
"""A drawing of a stream: rows of the image that enter, what layers hold, and rows of the result that are finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .svg import ACCENT, SECOND, element, line, rectangle, svg, text

__all__ = ["Rows", "rows_svg"]

SIDE, GAP, LAYERS = 150, 90, 4


class Rows(NamedTuple):
    """Attributes:
    size: (height, width) of the image, input pixels; None if it is not known.
    step: rows of the image in a step.
    held: how much memory held rows take, in words.
    streams: number of tiles side by side that rows stream through.
    """

    size: tuple[int, int] | None
    step: int
    held: str
    streams: int


def rows_svg(rows: Rows) -> str:
    height, width = rows.size or (1, 1)
    zoom = SIDE / max(height, width)
    tall, wide = max(24.0, height * zoom), max(24.0, width * zoom)
    step = min(tall / 2, max(3.0, rows.step * zoom)) if rows.size else tall / 8
    right = wide + GAP + 2
    parts = [*_image(1, tall, wide, step, rows.streams, given=True), *_layers(wide + 22, tall, GAP - 44)]
    parts += _image(right, tall, wide, step, rows.streams, given=False)
    middle = tall / 2 + 6
    parts += [_arrow(wide + 4, wide + 20, middle), _arrow(right - 20, right - 4, middle)]
    base = tall + 20
    parts.append(text(0, base, f"{rows.step} rows enter in a step"))
    parts.append(text(0, base + 14, f"layers hold {rows.held}; every row of every layer is made once"))
    if rows.streams > 1:
        parts.append(text(0, base + 28, f"in {rows.streams} tiles side by side"))
    told = f"rows stream through the model, {rows.step} in a step"
    return svg(max(right + wide + 2, 330), base + (34 if rows.streams > 1 else 20), parts, told)


def _image(x: float, tall: float, wide: float, step: float, streams: int, given: bool) -> Iterator[str]:
    """The image with the rows that enter, or the result down to the rows that are finished."""
    at = tall / 2 - step / 2
    if given:
        yield rectangle(x, 6, wide, tall, fill="currentColor", fill_opacity=0.06, stroke="currentColor")
        yield rectangle(x, 6 + at, wide, step, fill=ACCENT, fill_opacity=0.7)
    else:
        yield rectangle(x, 6, wide, at, fill=SECOND, fill_opacity=0.35)
        yield rectangle(x, 6 + at, wide, step, fill=ACCENT, fill_opacity=0.7)
        yield rectangle(x, 6, wide, tall, stroke="currentColor")
    for index in range(1, min(streams, 40)):
        place = x + wide * index / min(streams, 40)
        yield line(place, 6, place, 6 + tall, stroke_opacity=0.4)


def _layers(x: float, tall: float, wide: float) -> Iterator[str]:
    """A few layers, each with the rows that it holds."""
    each = wide / LAYERS
    for index in range(LAYERS):
        left, high = x + index * each, tall * 0.42
        yield rectangle(left, 6 + tall / 2 - high / 2, each - 4, high, stroke="currentColor", stroke_opacity=0.6)
        yield rectangle(left, 6 + tall / 2 - high / 8, each - 4, high / 4, fill=ACCENT, fill_opacity=0.45)


def _arrow(start: float, stop: float, y: float) -> str:
    head = f"M{stop - 5:.1f} {y - 4:.1f} L{stop:.1f} {y:.1f} L{stop - 5:.1f} {y + 4:.1f}"
    return line(start, y, stop, y) + element("path", d=head, fill="none", stroke="currentColor")
