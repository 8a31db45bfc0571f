# SPDX-License-Identifier: MIT
"""What to say where a model takes none of the ways in which an image could be put to it: the likely cure."""

from __future__ import annotations

import re

from .channels import KINDS
from .errors import ModelInputError, TileError
from .images import Image
from .options import Options

__all__ = ["explained"]

ABOUT_CHANNELS = re.compile(r"channel|shape|dimension|size of tensor|broadcast|should contain", re.IGNORECASE)
# The same words, about rows and columns: parts of a network that do not meet.
ABOUT_SIDES = re.compile(r"dimension [23]\b|except in dimension 1\b", re.IGNORECASE)


def explained(failure: TileError, image: Image, options: Options, takes: int | None) -> TileError:
    """A failure of the first window, with what would help if its cause speaks of channels.

    takes: channels that the model takes, as far as that is known."""
    said = str(failure.__cause__)
    if failure.__cause__ is None or isinstance(failure, ValueError) or ABOUT_SIDES.search(said):
        return failure
    if not ABOUT_CHANNELS.search(said):
        return failure
    if takes is not None and not _may_be_taken(takes, image.channels, options.alpha):
        return _refused(failure, image, options.alpha, takes)
    advice = "".join(f"; {one}" for one in (_about_alpha(image, options.alpha), _about_layout(image, options)) if one)
    failure.args = (f"{failure}{advice}",)
    return failure


def _may_be_taken(takes: int, channels: int, alpha: str) -> bool:
    pictures = alpha != "channel" and channels in KINDS and takes in (1, 3)
    return takes == channels or pictures


def _refused(failure: TileError, image: Image, alpha: str, takes: int) -> TileError:
    where, _, raised = str(failure).partition(": ")
    kind = f" ({KINDS[image.channels]})" if image.channels in KINDS and alpha != "channel" else ""
    cure = f"pass an image of {takes} channel{'s' if takes > 1 else ''}"
    if takes < image.channels:
        cure += f", such as {_first_channels(image.layout, takes)}"
    if takes in (2, 4) and alpha != "channel":
        cure += f", and alpha='channel' with it if that is no {KINDS[takes].replace('and', 'with')}"
    text = f"{where}: the image has {image.channels} channel{'s' if image.channels > 1 else ''}{kind} and the model "
    text += f"takes {takes}; {cure} ({raised})"
    error = ModelInputError(text, tile=failure.tile, box=failure.box, rows_done=failure.rows_done)
    error.__cause__ = failure.__cause__
    return error


def _first_channels(layout: str, count: int) -> str:
    """How to write that, for the axes of the user's image."""
    before = layout.index("C")
    return f"image[..., :{count}]" if before == len(layout) - 1 else f"image[{':, ' * before}:{count}]"


def _about_alpha(image: Image, alpha: str) -> str:
    if alpha == "channel" or image.channels not in (2, 4):
        return ""
    return f"if the {image.channels} channels are not {KINDS[image.channels]}, pass alpha='channel'"


def _about_layout(image: Image, options: Options) -> str:
    shape, certain = tuple(image.original.shape), getattr(image.original, "layout", None)
    if options.layout is not None or len(shape) < 3 or isinstance(certain, str):
        return ""
    return f"if shape {shape} is not {image.layout!r}, pass layout="
