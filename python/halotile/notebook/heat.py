# SPDX-License-Identifier: MIT
"""A heat map beside its scale of colours."""

from __future__ import annotations

import numpy as np

from .png import data_uri
from .svg import element, line, svg, text

__all__ = ["heat_svg"]

SIDE, BAR = 300.0, 14.0


def heat_svg(picture: np.ndarray, colours: np.ndarray, largest: float, label: str) -> str:
    """picture: uint8 (H, W, 3). colours: (256, 3), from no difference to the largest."""
    height, width = picture.shape[:2]
    zoom = SIDE / max(height, width)
    wide, tall = max(1.0, width * zoom), max(1.0, height * zoom)
    left, bar = wide + 16, max(tall, 60.0)
    style = "image-rendering:pixelated" if zoom >= 2 else ""
    whole = {"preserveAspectRatio": "none"}
    parts = [
        element("image", x=0, y=4, width=wide, height=tall, href=data_uri(picture), style=style, **whole),
        element("image", x=left, y=4, width=BAR, height=bar, href=data_uri(colours[::-1][:, np.newaxis]), **whole),
    ]
    for share in (1.0, 0.5, 0.0):
        y = 4 + bar * (1 - share)
        parts += [
            line(left + BAR, y, left + BAR + 4, y),
            text(left + BAR + 7, min(y + 8, bar), f"{largest * share:.3g}"),
        ]
    return svg(left + BAR + 70, bar + 10, parts, label)
