# SPDX-License-Identifier: MIT
"""Which channels of an image go through the model together, and what becomes of its outputs: colour, grey, alpha.

    routes -> what may be tried -> the first window shows how many channels the model makes -> arranged

docs/images.md has a table of what comes out of every kind of image and model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..layouts import PICTURES
from ..optional import torch_if_loaded

__all__ = ["KINDS", "Part", "Unfit", "apart", "arranged", "routes"]

RED, BLUE = 0.299, 0.114  # their shares of grey, after Rec. 601; the rest is green's
KINDS = {1: "grey", 2: "grey and alpha", 3: "colour", 4: "colour and alpha"}


class Unfit(Exception):
    """What the model makes of an image is nothing that can be put together. Internal: users see ModelOutputError."""


@dataclass(frozen=True)
class Part:
    """Channels ``[first, first + count)`` of the image and what becomes of them.

    Attributes:
        feed: channels that the model is given; one channel of the image is repeated if feed is more, the grey of three
            is taken if it is fewer.
        how: "model", "resize" (bilinear, for alpha) or "constant" (for alpha, that nothing needs to be run for).
        averaged: whether the channels that the model makes are averaged to one.
        alpha: whether it is the image's alpha.
        beside_alpha: whether it is of an image with alpha, whose hidden pixels show no colour of their own.
        value: of a constant, in the image's units; None is white.
    """

    first: int
    count: int
    feed: int
    how: str = "model"
    averaged: bool = False
    alpha: bool = False
    beside_alpha: bool = False
    value: float | None = None

    @property
    def repeated(self) -> bool:
        return self.feed > self.count

    @property
    def reads(self) -> int:
        """Channels of its windows as they are read."""
        return max(self.feed, self.count)

    def view(self, pixels: Any) -> Any:
        """(C, H, W) of the image, an array or tensor -> (reads, H, W), without a copy."""
        mine = pixels[self.first : self.first + self.count]
        if not self.repeated:
            return mine
        if isinstance(mine, np.ndarray):
            return np.broadcast_to(mine, (self.feed, *mine.shape[1:]))
        return mine.expand(self.feed, -1, -1)

    def mixed(self, windows: Any) -> Any:
        """Windows (N, reads, h, w) as they are read, an array or tensor -> as the model gets them."""
        return _grey(windows) if self.feed < self.count else windows

    def reduced(self, outputs: Any) -> Any:
        """Outputs (N, C, h, w), an array or tensor -> their float32 mean (N, 1, h, w) if they are averaged."""
        if not self.averaged:
            return outputs
        outputs = _as_float32(outputs)
        total = outputs[:, 0:1] + outputs[:, 1:2]
        for channel in range(2, outputs.shape[1]):
            total += outputs[:, channel : channel + 1]
        total /= outputs.shape[1]
        return total


def apart(outputs: Any) -> float:
    """How far the three channels of outputs (N, 3, h, w), an array or tensor, are apart on average: the largest of a
    pixel less the least. Waits for the device."""
    values = _as_float32(outputs)
    first, second, third = (values[:, channel] for channel in range(3))
    return float((abs(first - second) + abs(second - third) + abs(third - first)).mean()) / 2


def _as_float32(values: Any) -> Any:
    """An array, where uint16 is bfloat16, or a tensor."""
    if not isinstance(values, np.ndarray):
        return values.float()
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _grey(windows: Any) -> Any:
    """The grey of windows (N, 3, h, w) in red, green and blue, of their own dtype: exactly theirs where they are grey.

    Every operation is rounded to float32, so that NumPy and torch give the same bits."""
    red, green, blue = (_as_float32(windows[:, channel : channel + 1]) for channel in range(3))
    if not isinstance(windows, np.ndarray):
        return (green + (red - green) * RED + (blue - green) * BLUE).to(windows.dtype)
    grey = green + (red - green) * np.float32(RED) + (blue - green) * np.float32(BLUE)
    if windows.dtype != np.uint16:
        return grey.astype(windows.dtype, copy=False)
    torch = torch_if_loaded()
    return torch.from_numpy(grey).to(torch.bfloat16).view(torch.uint16).numpy()


# ---- ways through a model --------------------------------------------------------------------------------------------


def routes(channels: int, alpha: str, in_channels: int | None) -> Iterator[tuple[Part, ...]]:
    """Ways to put an image through a model, the one to try first first: its first part is what is tried.

    A model that takes the colours together gets them so, whatever its first convolution takes: that may see their
    brightness alone, or one of them at a time. A model whose first convolution takes three channels gets grey repeated:
    many would take one channel without a word, and make three of it.

    Args:
        channels: of the image.
        alpha: "restore", "resize", "opaque", or "channel" for no alpha.
        in_channels: of the model's first convolution, if known.
    """
    if alpha == "channel" or channels not in KINDS:
        yield (Part(0, channels, channels),)
        return
    has_alpha = channels in (2, 4)
    if has_alpha and in_channels == channels and alpha == "restore":  # a model for RGBA
        yield (Part(0, channels, channels),)
    colours = channels - has_alpha
    for feed in (3, 1) if 3 in (colours, in_channels) else (1, 3):
        step = colours if feed >= colours else 1
        parts = [Part(at, step, feed, beside_alpha=has_alpha) for at in range(0, colours, step)]
        if has_alpha:
            how = {"restore": "model", "resize": "resize", "opaque": "constant"}[alpha]
            parts.append(Part(colours, 1, feed if how == "model" else 1, how, alpha=True, beside_alpha=True))
        yield tuple(parts)


def arranged(parts: tuple[Part, ...], made: int, alpha: str) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """The parts of a way, and how many channels of the result each becomes, once it is known how many channels the
    model makes of the first one.

    Raises:
        Unfit: an image with alpha, and channels to which alpha cannot belong.
    """
    first, *others = parts
    if first.count not in PICTURES or alpha == "channel":  # all channels together
        if first.count in KINDS and made != first.count and alpha != "channel":
            takes = f"the model takes {first.count} channels and returns {made}"
            raise Unfit(f"{takes}; pass alpha='channel' if that is meant")
        return parts, (made,)
    if first.feed == 1 < made:  # it makes colours, or classes, of grey
        colours = sum(part.count for part in parts if not part.alpha)
        parts = (replace(first, count=colours), *(part for part in others if part.alpha))
    if parts[-1].alpha and made != first.feed:
        parts = (*parts[:-1], _apart_from_model(parts[-1], parts[0].count, made))
    parts = tuple(replace(part, averaged=part.repeated and made == part.feed) for part in parts)
    return parts, tuple(1 if part.averaged or part.how != "model" else made for part in parts)


def _apart_from_model(alpha: Part, colours: int, made: int) -> Part:
    """Alpha beside colours that are made of grey, or the reverse: what the model would make of it is no alpha."""
    if made in PICTURES:
        return replace(alpha, feed=1, how="resize" if alpha.how == "model" else alpha.how)
    text = f"the model makes {made} channels of {KINDS[colours]}, to which the image's alpha does not belong"
    raise Unfit(f"{text}; pass the image without alpha, or alpha='channel' if it is none")
