# SPDX-License-Identifier: MIT
"""A drawing of a receptive field: the input pixels that an output pixel sees, and the grid of the phase."""

from __future__ import annotations

from .svg import ACCENT, line, rectangle, svg, text

__all__ = ["field_svg"]

SIDE = 150


def field_svg(left: int, right: int, top: int, bottom: int, phase: tuple[int | None, int | None]) -> str:
    """Sides in input pixels. phase: (rows, columns); None draws no grid."""
    wide, tall = left + right + 1, top + bottom + 1
    zoom = SIDE / max(wide, tall)
    across, down = wide * zoom, tall * zoom
    x0, y0 = 34.0, 16.0
    parts = [rectangle(x0, y0, across, down, fill=ACCENT, fill_opacity=0.12, stroke=ACCENT)]
    for axis, step in enumerate(phase):
        first, whole = ((top, tall), (left, wide))[axis]
        if step is not None and step > 1 and step * zoom >= 3:
            for at in range(first % step, whole, step):
                place = at * zoom
                ends = (
                    (x0, y0 + place, x0 + across, y0 + place) if axis == 0 else (x0 + place, y0, x0 + place, y0 + down)
                )
                parts.append(line(*ends, stroke_opacity=0.3))
    pixel = max(zoom, 2)
    parts.append(rectangle(x0 + left * zoom, y0 + top * zoom, pixel, pixel, fill="currentColor"))
    parts += [text(x0 + across / 2 - 8, 11, str(top)), text(x0 + across / 2 - 8, y0 + down + 12, str(bottom))]
    parts += [text(2, y0 + down / 2 + 4, str(left)), text(x0 + across + 4, y0 + down / 2 + 4, str(right))]
    parts.append(text(0, y0 + down + 28, f"an output pixel sees {wide} x {tall} input pixels"))
    return svg(max(x0 + across + 34, 230), y0 + down + 34, parts, f"receptive field of {wide} x {tall} pixels")
