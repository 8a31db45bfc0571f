# SPDX-License-Identifier: MIT
"""Draws the pictures of docs/how.md, from plans and from what is known of the included model.

python scripts/draw_tiles.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halotile import TilePlan

PAGES = Path(__file__).parents[1] / "docs"
INK = "#20262c"
COLOURS = ("#d9480f", "#1971c2", "#2b8a3e")
BLENDS = ("average", "linear", "cosine", "gaussian")
SIZE, TILE, SHARED = 224, 96, 32  # of the row of tiles whose weights are drawn, pixels
WIDE, HIGH, GAP = 300, 70, 36  # of a chart


def drawings() -> dict[str, str]:
    """The drawings, by the names of their files."""
    from halotile import inspect_model, load_model, plan_tiles

    info = inspect_model(load_model())
    plan = plan_tiles((800, 1200), tile_size=320, halo=32, overlap=48)
    return {
        "tiles.svg": on_white(plan.picture(), 2),
        "field.svg": on_white(info._repr_html_(), 1.6),
        "blends.svg": on_white(blends(), 1.2),
        "boundary.svg": on_white(boundaries(), 1.6),
    }


def on_white(page: str, zoom: float) -> str:
    """The drawing in a page as a file of its own: larger, and legible on a dark page."""
    head, body = re.search(r"<svg(.*?)>(.*)</svg>", page, re.DOTALL).groups()
    head = re.sub(r' (width|height)="(\d+)"', lambda side: f' {side[1]}="{round(int(side[2]) * zoom)}"', head)
    left, top, width, height = map(int, re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', head).groups())
    head = head.replace(
        f'viewBox="{left} {top} {width} {height}"', f'viewBox="{left - 8} {top - 8} {width + 16} {height + 16}"'
    )
    ground = f'<rect x="{left - 8}" y="{top - 8}" width="{width + 16}" height="{height + 16}" fill="#fff"/>'
    return f"<svg{head}>{ground}{body}</svg>\n".replace("currentColor", INK).replace("><", ">\n<")


def blends() -> str:
    """The normalised weights of neighbouring tiles along a row, for every blend."""
    from halotile import plan_tiles
    from halotile.notebook.svg import element, line, svg, text

    parts = []
    for number, blend in enumerate(BLENDS):
        plan = plan_tiles((TILE, SIZE), tile_size=TILE, halo=0, overlap=SHARED, blend=blend)
        left, top = number % 2 * (WIDE + GAP), number // 2 * (HIGH + GAP) + 16
        parts += [text(left, top - 4, blend), line(left, top + HIGH, left + WIDE, top + HIGH, stroke_opacity=0.4)]
        sums = plan.normaliser(1)
        for tile, colour in zip(plan, COLOURS, strict=True):
            first, weights = tile.keep.x, plan.weights(tile)[1] / sums[tile.keep.x : tile.keep.x_stop]
            points = " ".join(
                f"{left + (first + at + 0.5) * WIDE / SIZE:.1f},{top + HIGH - weight * (HIGH - 6):.1f}"
                for at, weight in enumerate(weights)
            )
            parts.append(element("polyline", points=points, fill="none", stroke=colour, stroke_width=1.5))
    return svg(2 * WIDE + GAP, 2 * (HIGH + GAP), parts, "weights of three tiles for four blends")


def boundaries() -> str:
    """All windows of two plans of the same image, which reach beyond it or stay inside."""
    from halotile import plan_tiles
    from halotile.notebook.svg import svg, text

    parts = []
    for number, boundary in enumerate(("reflect", "native")):
        plan = plan_tiles((160, 200), tile_size=104, halo=20, overlap=8, boundary=boundary)
        left = 24 + number * 290
        parts += [text(left, 10, f'boundary="{boundary}"'), *windows(plan, left, 40)]
    return svg(560, 226, parts, "windows with boundary reflect and native")


def windows(plan: TilePlan, left: float, top: float) -> list[str]:
    from halotile.notebook.svg import rectangle

    height, width = plan.image_size
    parts = [rectangle(left, top, width, height, fill="currentColor", fill_opacity=0.12, stroke="currentColor")]
    for tile, colour in zip(plan, (*COLOURS, "#862e9c"), strict=True):
        y, x, tall, wide = tile.window
        style = {"stroke": colour, "stroke_width": 1.5, "stroke_dasharray": "4 3", "fill": colour, "fill_opacity": 0.06}
        parts.append(rectangle(left + x, top + y, wide, tall, **style))
    return parts


if __name__ == "__main__":
    for name, drawing in drawings().items():
        (PAGES / name).write_text(drawing)
