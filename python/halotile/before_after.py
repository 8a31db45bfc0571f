# SPDX-License-Identifier: MIT
"""show(): two images with a divider between them that can be dragged, in a notebook or in a file of its own."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .images.shown import picture_of
from .notebook.png import data_uri
from .option_checks import integer

__all__ = ["BeforeAfter", "show"]

# A slider without looks lies over both pictures; it says where the upper one ends. Nothing is fetched, and no script
# is needed but the one line that carries its value over. The mouse, a finger and the arrow keys all move it.
MOVE = "this.parentNode.style.setProperty('--at', this.value + '%')"
FRAME = "position:relative;width:{width}px;max-width:100%;line-height:0;--at:50%;overflow:hidden"
PICTURE = "width:100%;height:auto;display:block;image-rendering:{rendering};margin:0"
OVER = "position:absolute;inset:0;clip-path:inset(0 calc(100% - var(--at)) 0 0)"
LINE = (
    "position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#fff;"
    "box-shadow:0 0 3px #000;pointer-events:none"
)
SLIDER = (
    "position:absolute;top:0;left:-8px;width:calc(100% + 16px);height:100%;margin:0;opacity:0;cursor:ew-resize;"
    "-webkit-appearance:none;appearance:none"
)
NAME = "position:absolute;bottom:6px;{side}:6px;font:12px sans-serif;color:#fff;background:#0008;padding:2px 6px;"


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """Two pictures and a divider: shown by a notebook, or saved as a page of its own. Nothing is fetched from anywhere.

    Attributes:
        before, after: uint8 (H, W, C).
        names: of both, as the pictures bear them. width: CSS pixels.
    """

    before: np.ndarray
    after: np.ndarray
    names: tuple[str, str]
    width: int

    def _repr_html_(self) -> str:
        rendering = "pixelated" if self.width >= 2 * self.after.shape[1] else "auto"
        first, second = (
            f'<img src="{data_uri(one)}" alt="{html.escape(name)}" style="{PICTURE.format(rendering=rendering)}">'
            for one, name in zip((self.before, self.after), self.names, strict=True)
        )
        labels = (
            f'<span style="{NAME.format(side=side)}pointer-events:none;line-height:1.2">{html.escape(name)}</span>'
            for side, name in zip(("left", "right"), self.names, strict=True)
        )
        slider = (
            f'<input type="range" min="0" max="100" step="0.1" value="50" aria-label="divider between '
            f'{html.escape(self.names[0])} and {html.escape(self.names[1])}" oninput="{MOVE}" style="{SLIDER}">'
        )
        parts = f'{second}<div style="{OVER}">{first}</div><div style="{LINE}"></div>{"".join(labels)}{slider}'
        return f'<div class="halotile-show" style="{FRAME.format(width=self.width)}">{parts}</div>'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a page of HTML that needs nothing else."""
        title = f"{html.escape(self.names[0])} and {html.escape(self.names[1])}"
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><body>{self._repr_html_()}'
        with open(path, "w", encoding="utf-8") as file:
            file.write(page + "</body></html>\n")

    def __repr__(self) -> str:
        sizes = " and ".join(
            f"{name} {one.shape[1]}x{one.shape[0]}" for name, one in zip(self.names, self._both, strict=True)
        )
        return f"<BeforeAfter {sizes} (width x height): shown in a notebook; save('page.html') writes a page>"

    @property
    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        return self.before, self.after


def show(
    before: Any,
    after: Any,
    *,
    names: tuple[str, str] = ("before", "after"),
    width: int | None = None,
    longest: int = 1600,
    layout: str | None = None,
) -> BeforeAfter:
    """Two images with a divider that can be dragged, for notebooks and their exports: works offline.

    Args:
        before, after: single images, arrays or tensors as for `restore_tiled`, of one shape of picture; the sizes may
            differ, as by a model that enlarges.

    Keyword Args:
        names: what the pictures bear.
        width: CSS pixels. None: that of `after`, up to 900, and at least 300.
        longest: side above which pictures are reduced by a whole number, so that the page stays small.
        layout: the order of the images' axes, as for `restore_tiled`.

    Raises:
        ValueError, TypeError: an argument is wrong, or the images are of different shapes of picture.

    >>> show(photo, restore_tiled(photo, model)).save("page.html")
    """
    longest = integer("longest", longest, 16)
    pictures = [picture_of(name, image, longest, layout) for name, image in (("before", before), ("after", after))]
    ratios = [one.shape[1] / one.shape[0] for one in pictures]
    if not 0.97 < ratios[0] / ratios[1] < 1.03:
        sizes = " and ".join(f"{one.shape[0]}x{one.shape[1]}" for one in pictures)
        raise ValueError(f"before and after must have the same proportions, not {sizes} (height x width)")
    wide = min(900, max(300, pictures[1].shape[1])) if width is None else integer("width", width, 16)
    return BeforeAfter(pictures[0], pictures[1], (str(names[0]), str(names[1])), wide)
