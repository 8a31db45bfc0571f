# SPDX-License-Identifier: MIT
"""How channels of an image pass through the model and become channels of the result: colour, grey, alpha.

    routes -> candidates -> the first window shows how many channels the model returns -> arranged

docs/images.md has a table of results for all kinds of images and models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..fragile import dense
from ..layouts import PICTURES
from ..optional import torch_if_loaded
from .image import Pixels, from_bfloat16

__all__ = ["KINDS", "Part", "Unfit", "apart", "arranged", "routes"]

RED, BLUE = 0.299, 0.114  # weights of Rec. 601 luma; green has the rest
KINDS = {1: "grey", 2: "grey and alpha", 3: "colour", 4: "colour and alpha"}


class Unfit(Exception):
    """The model's output channels do not fit the image. Internal: users see ModelOutputError."""


@dataclass(frozen=True)
class Part:
    """Channels ``[first, first + count)`` of the image and their processing.

    Attributes:
        feed: number of channels fed to the model: one channel is repeated if feed is larger, three are reduced to grey
            if it is smaller.
        how: "model", "resize" (bilinear, for alpha) or "constant" (for alpha, without running anything).
        averaged: whether the output channels are averaged to one.
        alpha: whether this is the alpha channel.
        beside_alpha: whether the image has alpha, so that hidden pixels need filling.
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
        return max(self.feed, self.count)

    def view(self, pixels: Pixels) -> Pixels:
        """(C, H, W) of the image, an array or tensor -> (reads, H, W), without a copy."""
        mine = pixels[self.first : self.first + self.count]
        if not self.repeated:
            return mine
        if isinstance(mine, np.ndarray):
            return np.broadcast_to(mine, (self.feed, *mine.shape[1:]))
        return mine.expand(self.feed, -1, -1)

    def mixed(self, windows: Pixels) -> Pixels:
        """Windows (N, reads, h, w) as read, an array or tensor -> as fed to the model."""
        return _grey(windows) if self.feed < self.count else windows

    def reduced(self, outputs: Pixels) -> Pixels:
        """Outputs (N, C, h, w), an array or tensor -> their float32 mean (N, 1, h, w) if they are averaged."""
        if not self.averaged:
            return outputs
        outputs = _as_float32(outputs)
        total = _channel(outputs, 0) + _channel(outputs, 1)
        for channel in range(2, outputs.shape[1]):
            total += _channel(outputs, channel)
        total /= outputs.shape[1]
        return total


def apart(outputs: Pixels) -> float:
    """The mean over pixels of the spread (maximum - minimum) of three channels (N, 3, h, w), an array or tensor. Waits
    for the device."""
    values = _as_float32(outputs)
    first, second, third = (_channel(values, channel) for channel in range(3))
    return float((abs(first - second) + abs(second - third) + abs(third - first)).mean()) / 2


def _channel(values: Pixels, channel: int) -> Pixels:
    """One channel (N, 1, h, w)."""
    one = values[:, channel : channel + 1]
    return one if isinstance(one, np.ndarray) else dense(one)


def _as_float32(values: Pixels) -> Pixels:
    """In arrays, uint16 stands for bfloat16."""
    if not isinstance(values, np.ndarray):
        return values.float()
    if values.dtype == np.uint16:
        return from_bfloat16(values)
    return values.astype(np.float32, copy=False)


def _grey(windows: Pixels) -> Pixels:
    """Grey of RGB windows (N, 3, h, w), in their dtype; grey inputs stay bit-identical.

    Every operation is rounded to float32, so that NumPy and torch agree bit for bit.
    """
    red, green, blue = (_as_float32(_channel(windows, channel)) for channel in range(3))
    if not isinstance(windows, np.ndarray):
        return (green + (red - green) * RED + (blue - green) * BLUE).to(windows.dtype)
    grey = green + (red - green) * np.float32(RED) + (blue - green) * np.float32(BLUE)
    if windows.dtype != np.uint16:
        return grey.astype(windows.dtype, copy=False)
    torch = torch_if_loaded()
    return torch.from_numpy(grey).to(torch.bfloat16).view(torch.uint16).numpy()


# ---- ways through a model --------------------------------------------------------------------------------------------


def routes(channels: int, alpha: str, in_channels: int | None) -> Iterator[tuple[Part, ...]]:
    """Candidate ways to put an image through a model, best first; the first part of each is tried.

    Colours are first fed together, even if the first convolution takes one channel: a model may split them itself. Grey
    is repeated if the first convolution takes three channels: many such models silently accept one channel and return
    three.

    Args:
        channels: of the image.
        alpha: "restore", "resize", "opaque", or "channel" to treat alpha as data.
        in_channels: of the model's first convolution, if known.
    """
    if alpha == "channel" or channels not in KINDS:
        yield (Part(0, channels, channels),)
        return
    has_alpha = channels in (2, 4)
    if has_alpha and in_channels == channels and alpha == "restore":  # an RGBA model
        yield (Part(0, channels, channels),)
    colours = channels - has_alpha
    for feed in (3, 1) if 3 in (colours, in_channels) else (1, 3):
        step = colours if feed >= colours else 1
        parts = [Part(at, step, feed, beside_alpha=has_alpha) for at in range(0, colours, step)]
        if has_alpha:
            how = {"restore": "model", "resize": "resize", "opaque": "constant"}[alpha]
            parts.append(Part(colours, 1, feed if how == "model" else 1, how, alpha=True, beside_alpha=True))
        yield tuple(parts)


def arranged(
    parts: tuple[Part, ...], made: int, alpha: str, together: bool = False
) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """Completes the parts once the number `made` of output channels of the first one is known. Returns the parts and
    the channels each adds to the result.

    together: all channels that the model makes belong together, as classes do: they are neither averaged nor put beside
    those of another part.

    Raises:
        Unfit: alpha cannot be combined with the output channels.
    """
    first, *others = parts
    if first.count not in PICTURES or alpha == "channel":  # all channels together
        if first.count in KINDS and made != first.count and alpha != "channel":
            takes = f"the model takes {first.count} channels and returns {made}"
            raise Unfit(f"{takes}; pass alpha='channel' if that is meant")
        return parts, (made,)
    if first.feed == 1 < made:  # it turns grey into colours or classes
        colours = sum(part.count for part in parts if not part.alpha)
        parts = (replace(first, count=colours), *(part for part in others if part.alpha))
    if together:
        return _alone(parts, made)
    if parts[-1].alpha and made != first.feed:
        parts = (*parts[:-1], _apart_from_model(parts[-1], parts[0].count, made))
    parts = tuple(replace(part, averaged=part.repeated and made == part.feed) for part in parts)
    return parts, tuple(1 if part.averaged or part.how != "model" else made for part in parts)


def _alone(parts: tuple[Part, ...], made: int) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    if len(parts) == 1:
        return parts, (made,)
    if parts[-1].alpha:
        text = "reduce takes what the model makes, to which the image's alpha does not belong"
        raise Unfit(f"{text}; pass the image without alpha, or alpha='channel' if it is none")
    raise Unfit("reduce takes what the model makes at once, and this model takes each colour by itself: pass one")


def _apart_from_model(alpha: Part, colours: int, made: int) -> Part:
    """Alpha for a model that turns grey into colour or colour into grey, which cannot process it: resized instead."""
    if made in PICTURES:
        return replace(alpha, feed=1, how="resize" if alpha.how == "model" else alpha.how)
    text = f"the model makes {made} channels of {KINDS[colours]}, to which the image's alpha does not belong"
    raise Unfit(f"{text}; pass the image without alpha, or alpha='channel' if it is none")
