# SPDX-License-Identifier: MIT
"""Which channels of an image go through the model together: colour, grey shown as colour, alpha."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Part", "routes"]


@dataclass(frozen=True)
class Part:
    """Channels ``[first, first + count)`` of the image and what becomes of them.

    Attributes:
        feed: channels that the model is given; one channel of the image is repeated if feed is more.
        how: "model", "resize" (bilinear, for alpha) or "opaque" (alpha is set to white).
    """

    first: int
    count: int
    feed: int
    how: str = "model"

    @property
    def repeated(self) -> bool:
        return self.feed > self.count

    def view(self, pixels: Any) -> Any:
        """(C, H, W) of the image, an array or tensor -> (feed, H, W), without a copy."""
        mine = pixels[self.first : self.first + self.count]
        if not self.repeated:
            return mine
        if isinstance(mine, np.ndarray):
            return np.broadcast_to(mine, (self.feed, *mine.shape[1:]))
        return mine.expand(self.feed, -1, -1)

    def reduced(self, outputs: Any) -> Any:
        """Outputs (N, C, h, w) for a repeated channel, an array or tensor -> their float32 mean (N, 1, h, w)."""
        if not self.repeated or outputs.shape[1] == 1:
            return outputs
        if isinstance(outputs, np.ndarray):
            if outputs.dtype == np.uint16:  # bfloat16
                outputs = (outputs.astype(np.uint32) << 16).view(np.float32)
            outputs = outputs.astype(np.float32, copy=False)
        else:
            outputs = outputs.float()
        total = outputs[:, 0:1] + outputs[:, 1:2]
        for channel in range(2, outputs.shape[1]):
            total += outputs[:, channel : channel + 1]
        total /= outputs.shape[1]
        return total


def routes(channels: int, alpha: str, in_channels: int | None) -> Iterator[tuple[Part, ...]]:
    """Ways to put an image through a model, likeliest first.

    Args:
        channels: of the image.
        alpha: "restore", "resize", "opaque", or "channel" for no alpha.
        in_channels: what the model takes, if known.
    """
    if alpha == "channel" or channels not in (1, 2, 3, 4):
        yield (Part(0, channels, channels),)
        return
    has_alpha = channels in (2, 4)
    if has_alpha and in_channels == channels and alpha == "restore":  # a model for RGBA
        yield (Part(0, channels, channels),)
    colours = channels - has_alpha
    for feed in sorted((1, 3), key=lambda feed: (feed != in_channels, feed != colours)):
        parts = [Part(0, colours, feed)] if feed >= colours else [Part(c, 1, 1) for c in range(colours)]
        if has_alpha:
            parts.append(Part(colours, 1, feed) if alpha == "restore" else Part(colours, 1, 1, alpha))
        yield tuple(parts)
