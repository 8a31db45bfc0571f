# SPDX-License-Identifier: MIT
"""Draws docs/streaming.svg: which rows of three layers two steps of a stream make, from a stream itself.

python scripts/draw_streaming.py
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "streaming.svg"
ROWS, STEP, BEFORE = 20, 4, 2  # rows of the image and of a step; steps before the drawn ones
NAMES = ("image", "layer 1", "layer 2", "layer 3")
HIGH, WIDE, GAP, PANEL, TOP, LEFT = 13, 84, 44, 520, 64, 30
MADE, HELD, GONE, EMPTY, TEXT = "#c8442c", "#3d4a56", "#d9dfe4", "#ffffff", "#20262c"


class Layer(NamedTuple):
    """Rows [held, begin) are held from the step before; [begin, end) are made now, of rows [low, high) of the layer
    before."""

    held: int
    begin: int
    end: int
    low: int
    high: int


def steps() -> list[list[Layer]]:
    """The layers in two steps of a stream through three convolutions 3x3."""
    import torch

    from halotile.inspection.recorder import record
    from halotile.run.stream.steps import idle

    layers = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 3, padding=1) for _ in NAMES[1:]))
    stepper = idle(record(layers, (1, ROWS, 4), torch.float32))
    found = []
    for step in (BEFORE, BEFORE + 1):
        before, after = (stepper.ends(stepper.goals(STEP * end)) for end in (step, step + 1))
        found.append([])
        for node in (one for one in stepper.nodes if one.name in ("clone", "convolution")):  # of the image
            begin, end = before[node], min(after[node], ROWS)
            held = min((edge.low(before[user]) for user, edge in stepper.users[node]), default=begin)
            low, high = next(((edge.low(begin), min(edge.high(end), ROWS)) for edge in node.edges), (0, 0))
            found[-1].append(Layer(held, begin, end, low, high))
    return found


def drawing() -> str:
    parts = []
    for number, layers in enumerate(steps()):
        left = LEFT + number * PANEL
        parts.append(_text(left, 26, ("a step", "the next step")[number], "bold 16px"))
        for place, (name, layer) in enumerate(zip(NAMES, layers, strict=True)):
            x = left + place * (WIDE + GAP)
            if place:
                points = [(x - GAP, layer.low), (x, layer.begin), (x, layer.end), (x - GAP, layer.high)]
                corners = " ".join(f"{across},{TOP + row * HIGH}" for across, row in points)
                parts.append(f'<polygon points="{corners}" fill="{MADE}" fill-opacity="0.18"/>')
            parts.append(_text(x, TOP - 10, name, "13px"))
            parts += [_row(x, TOP + row * HIGH, WIDE, _colour(layer, row)) for row in range(ROWS)]
    y = TOP + ROWS * HIGH + 26
    legend = ((MADE, "made now, once"), (HELD, "held from the step before"), (GONE, "let go"), (EMPTY, "not yet there"))
    for place, (colour, text) in enumerate(legend):
        x = LEFT + place * 230
        parts += [_row(x, y, 28, colour), _text(x + 36, y + 11, text, "13px")]
    width, height = LEFT + 2 * PANEL, y + 34
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>", ""])


def _colour(layer: Layer, row: int) -> str:
    if row >= layer.end:
        return EMPTY
    return MADE if row >= layer.begin else HELD if row >= layer.held else GONE


def _row(x: int, y: int, width: int, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{HIGH}" fill="{colour}" stroke="#ffffff"{_edge(colour)}/>'


def _edge(colour: str) -> str:
    return ' style="stroke:#c3ccd4"' if colour == EMPTY else ""


def _text(x: int, y: int, text: str, font: str) -> str:
    return f'<text x="{x}" y="{y}" style="font:{font} sans-serif" fill="{TEXT}">{text}</text>'


if __name__ == "__main__":
    PAGE.write_text(drawing())
