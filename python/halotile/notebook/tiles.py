# SPDX-License-Identifier: MIT
"""A drawing of tiles: their edges, what neighbours share, and one window with its halo."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .svg import ACCENT, SECOND, element, line, rectangle, svg, text

__all__ = ["Tiles", "shared_by", "tiles_svg"]

SIDE = 300  # of the drawing, its longer one
FINEST = 3  # pixels of the drawing between lines; where tiles are smaller, lines are left out
ROOM = 16  # for the legend

Span = tuple[float, float]
Place = tuple[float, float, float, float]  # y, x, height, width


class Tiles(NamedTuple):
    """What is drawn, in input pixels.

    Attributes:
        size: (height, width) of the image.
        rows, columns: what tile rows and columns keep.
        window, keep: of one tile in the middle.
    """

    size: tuple[int, int]
    rows: Sequence[Span]
    columns: Sequence[Span]
    window: Place
    keep: Place


def tiles_svg(tiles: Tiles, side: float = SIDE, picture: str | None = None) -> str:
    """picture: an address of a picture of the image, which is drawn below."""
    height, width = tiles.size
    y, x, window_height, window_width = tiles.window
    top, left = max(0.0, -y), max(0.0, -x)  # windows may leave the image
    whole_height = top + max(height, y + window_height)
    whole_width = left + max(width, x + window_width)
    zoom = side / max(whole_height, whole_width)
    left, top = left * zoom + 1, top * zoom + 1
    parts = [rectangle(left, top, width * zoom, height * zoom, fill="currentColor", fill_opacity=0.06)]
    if picture is not None:
        place = {"x": left, "y": top, "width": width * zoom, "height": height * zoom}
        parts.append(element("image", href=picture, preserveAspectRatio="none", **place))
    parts += _along(tiles.rows, zoom, lambda a, b: rectangle(left, top + a, width * zoom, b - a, **SHARED))
    parts += _along(tiles.columns, zoom, lambda a, b: rectangle(left + a, top, b - a, height * zoom, **SHARED))
    right, bottom = left + width * zoom, top + height * zoom
    parts += [line(left, top + at, right, top + at, stroke_opacity=0.45) for at in _edges(tiles.rows, zoom)]
    parts += [line(left + at, top, left + at, bottom, stroke_opacity=0.45) for at in _edges(tiles.columns, zoom)]
    parts.append(rectangle(left, top, width * zoom, height * zoom, stroke="currentColor"))
    for place, style in ((tiles.window, WINDOW), (tiles.keep, KEEP)):
        parts.append(
            rectangle(left + place[1] * zoom, top + place[0] * zoom, place[3] * zoom, place[2] * zoom, **style)
        )
    drawn = whole_height * zoom + 2
    parts.append(text(0, drawn + 12, "solid: a tile; dashed: its window with the halo; blue: shared by neighbours"))
    count = len(tiles.rows) * len(tiles.columns)
    return svg(max(whole_width * zoom + 2, 420), drawn + ROOM, parts, f"{count} tiles of an image of {width}x{height}")


SHARED = {"fill": SECOND, "fill_opacity": 0.3}
WINDOW = {"stroke": ACCENT, "stroke_width": 1.5, "stroke_dasharray": "4 3", "fill": ACCENT, "fill_opacity": 0.12}
KEEP = {"stroke": ACCENT, "stroke_width": 1.5}


def shared_by(spans: Sequence[Span]) -> list[Span]:
    """What neighbours share, along one axis."""
    return [(start, stop) for (_, stop), (start, _) in itertools.pairwise(spans) if stop > start]


def _along(spans: Sequence[Span], zoom: float, drawn: Callable[[float, float], str]) -> list[str]:
    """What neighbours share; nothing where tiles are too fine to be told apart."""
    if len(spans) * FINEST > spans[-1][1] * zoom:
        return []
    return [drawn(start * zoom, stop * zoom) for start, stop in shared_by(spans)]


def _edges(spans: Sequence[Span], zoom: float) -> list[float]:
    """Where tiles begin and end within the image, in pixels of the drawing; none where they are too fine to be told
    apart."""
    if len(spans) * FINEST > spans[-1][1] * zoom:
        return []
    ends = {end for span in spans for end in span} - {spans[0][0], spans[-1][1]}
    return [end * zoom for end in sorted(ends)]
