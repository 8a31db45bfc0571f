# SPDX-License-Identifier: MIT
"""Elements of SVG, and the card of a report: a picture beside a table. Colours of text and lines are the page's own."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["ACCENT", "SECOND", "Drawing", "Printer", "card", "element", "line", "rectangle", "svg", "text"]

ACCENT, SECOND = "#d9480f", "#1971c2"  # legible on white and on black


class Printer(Protocol):
    """What IPython prints short texts with."""

    def text(self, text: str, /) -> object: ...


STYLE = "display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start;margin:6px 0"


def element(name: str, content: str = "", **attributes: object) -> str:
    """An element; underscores in names of attributes become hyphens."""
    told = "".join(f' {key.replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{told}>{content}</{name}>"


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else html.escape(str(value))


def rectangle(x: float, y: float, width: float, height: float, **style: object) -> str:
    where = {"x": float(x), "y": float(y), "width": float(width), "height": float(height)}
    return element("rect", **where, **{"fill": "none", **style})


def line(x0: float, y0: float, x1: float, y1: float, **style: object) -> str:
    where = {"x1": float(x0), "y1": float(y0), "x2": float(x1), "y2": float(y1)}
    return element("line", **where, **{"stroke": "currentColor", "stroke_width": 1, **style})


def text(x: float, y: float, content: str, **style: object) -> str:
    font = {"font_size": 11, "font_family": "sans-serif", "fill": "currentColor"}
    return element("text", html.escape(content), x=float(x), y=float(y), **{**font, **style})


def svg(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """A drawing, with the label that a screen reader reads."""
    size = {"width": round(width), "height": round(height), "viewBox": f"0 0 {round(width)} {round(height)}"}
    return element("svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", **size, role="img", aria_label=label)


def card(title: str, rows: Iterable[tuple[str, str]], picture: str = "") -> str:
    """A picture beside a table of names and values."""
    cells = "".join(
        f'<tr><th style="text-align:left;vertical-align:top;font-weight:600">{html.escape(name)}</th>'
        f'<td style="text-align:left;max-width:42em">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    table = f"<div><strong>{html.escape(title)}</strong><table>{cells}</table></div>"
    return f'<div style="{STYLE}">{f"<div>{picture}</div>" if picture else ""}{table}</div>'


@dataclass(frozen=True)
class Drawing:
    """A drawing that a notebook shows.

    Attributes:
        title: what it shows. svg: the drawing.
    """

    title: str
    svg: str = field(repr=False)

    def _repr_html_(self) -> str:
        return f"<div>{self.svg}</div>"
