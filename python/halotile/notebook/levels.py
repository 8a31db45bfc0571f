# SPDX-License-Identifier: MIT
"""Drawings of differences: levels on a scale of powers of ten, and the error of halos. A zero is no number on such a
scale, and is drawn beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from .svg import ACCENT, SECOND, element, line, rectangle, svg, text

__all__ = ["curve_svg", "levels_svg"]

WIDE, ROW, LEFT = 300, 20, 84
SMALLEST = 1e-8  # of white
COLOURS = (ACCENT, SECOND, "#2b8a3e")


def levels_svg(levels: Sequence[tuple[str, float]], white: float, label: str) -> str:
    """Bars from a hundred-millionth of white to white, and where half an 8-bit step lies."""
    parts = []
    for index, (name, value) in enumerate(levels):
        y = 6 + index * ROW
        parts.append(text(0, y + 12, name))
        length = WIDE * _share(value / white, SMALLEST)
        if value > 0:
            parts.append(rectangle(LEFT, y + 2, max(length, 1), ROW - 8, fill=COLOURS[0], fill_opacity=0.75))
        parts.append(text(LEFT + length + 4, y + 12, "0" if value == 0 else f"{value:.3g}"))
    bottom = 6 + len(levels) * ROW
    step = LEFT + WIDE * _share(1 / 510, SMALLEST)
    parts.append(line(step, 2, step, bottom + 4, stroke_dasharray="2 3", stroke=SECOND))
    parts.append(text(step - 20, bottom + 16, "half an 8-bit step", fill=SECOND))
    parts.append(line(LEFT, 2, LEFT, bottom + 4, stroke_opacity=0.5))
    return svg(LEFT + WIDE + 60, bottom + 22, parts, label)


def _share(value: float, smallest: float) -> float:
    """Where a value lies between `smallest` and 1, on a scale of powers of ten."""
    if not value > smallest:
        return 0.0
    return min(1.0, 1 - math.log10(value) / math.log10(smallest)) if math.isfinite(value) else 1.0


def curve_svg(
    halos: Sequence[int], series: Mapping[str, Sequence[float]], white: float, exact: int | None, label: str
) -> str:
    """The error of halos. exact: the halo that is exact, which is marked."""
    tall, widest = 150.0, max([*halos, exact or 0, 1])
    floor = 8 + tall

    def x(halo: float) -> float:
        return 46 + WIDE * halo / widest

    def y(value: float) -> float:
        return 8 + tall * (1 - _share(value / white, SMALLEST))

    parts = [line(46, 8, 46, floor + 16, stroke_opacity=0.5), line(46, floor, 46 + WIDE, floor, stroke_opacity=0.25)]
    for power in (0, -2, -4, -6):
        parts.append(text(0, y(white * 10.0**power) + 4, f"{white * 10.0**power:.2g}"))
    parts.append(text(0, floor + 15, "0"))
    parts.append(line(46, y(white / 510), 46 + WIDE, y(white / 510), stroke_dasharray="2 3", stroke=SECOND))
    if exact is not None:
        parts.append(line(x(exact), 8, x(exact), floor + 16, stroke=COLOURS[2], stroke_width=2))
        parts.append(text(x(exact) + 3, 18, f"exact: {exact}", fill=COLOURS[2]))
    for index, (name, values) in enumerate(series.items()):
        parts += _series(
            [(x(halo), value) for halo, value in zip(halos, values, strict=True)], y, floor, COLOURS[index]
        )
        parts.append(text(46 + WIDE + 8, 34 + 14 * index, name, fill=COLOURS[index]))
    parts += [text(x(halo) - 4, floor + 32, str(halo)) for halo in _apart(halos, widest)]
    parts.append(text(46 + WIDE / 2 - 40, floor + 46, "halo, input pixels"))
    return svg(46 + WIDE + 70, floor + 52, parts, label)


def _series(points: list[tuple[float, float]], y: Callable[[float], float], floor: float, colour: str) -> Iterator[str]:
    """Points and the lines between them; zeros are circles below the scale, to which no line leads."""
    path, started = "", False
    for x, value in points:
        if value == 0:
            yield element("circle", cx=x, cy=floor + 11.0, r=3, fill="none", stroke=colour)
            started = False
            continue
        at = y(value)
        path += f"{'L' if started else 'M'}{x:.1f} {at:.1f} "
        started = True
        yield element("circle", cx=x, cy=at, r=2.5, fill=colour)
    if path:
        yield element("path", d=path.strip(), fill="none", stroke=colour)


def _apart(halos: Sequence[int], widest: int) -> list[int]:
    """Halos whose numbers have room beside each other."""
    kept: list[int] = []
    for halo in sorted(halos):
        if not kept or (halo - kept[-1]) * WIDE / widest >= 22:
            kept.append(halo)
    return kept
