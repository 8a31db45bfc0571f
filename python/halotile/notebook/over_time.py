# SPDX-License-Identifier: MIT
"""A drawing of amounts of memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..texts import bytes_text
from .svg import ACCENT, SECOND, element, line, svg, text

__all__ = ["over_time_svg"]

WIDE, TALL, LEFT = 320.0, 140.0, 76.0
MOST = 400  # points of a line: of more, the highest of each group is drawn
COLOURS = (ACCENT, SECOND)


def over_time_svg(seconds: Sequence[float], series: Mapping[str, Sequence[int]]) -> str:
    """Lines from zero to the highest value; a dotted one marks the peak of each."""
    longest = max(seconds, default=0) or 1.0
    highest = max((value for values in series.values() for value in values), default=0) or 1

    def y(value: float) -> float:
        return 10 + TALL * (1 - value / highest)

    floor = 10 + TALL
    parts = [line(LEFT, 10, LEFT, floor, stroke_opacity=0.5), line(LEFT, floor, LEFT + WIDE, floor, stroke_opacity=0.5)]
    parts += [text(0, y(highest * share) + 4, bytes_text(int(highest * share))) for share in (0, 0.5, 1)]
    for index, (name, values) in enumerate(series.items()):
        colour, peak = COLOURS[index], max(values, default=0)
        points = _highest(
            [(LEFT + WIDE * at / longest, float(value)) for at, value in zip(seconds, values, strict=False)]
        )
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y(value):.1f}" for i, (x, value) in enumerate(points))
        parts.append(element("path", d=path, fill="none", stroke=colour, stroke_width=1.5))
        parts.append(line(LEFT, y(peak), LEFT + WIDE, y(peak), stroke=colour, stroke_dasharray="2 3"))
        parts.append(text(LEFT + WIDE + 4, y(peak) + 4 + 12 * index, f"{name}: {bytes_text(peak)}", fill=colour))
    parts += [text(LEFT - 3, floor + 14, "0"), text(LEFT + WIDE - 20, floor + 14, f"{longest:.3g} s")]
    return svg(LEFT + WIDE + 130, floor + 20, parts, "memory over time")


def _highest(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Few enough points, among them every peak."""
    step = -(-len(points) // MOST) or 1
    return [max(points[at : at + step], key=lambda point: point[1]) for at in range(0, len(points), step)]
