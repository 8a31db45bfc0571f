# SPDX-License-Identifier: MIT
"""Error messages: the tile that failed, and a likely cure if the model rejects the first window."""

from __future__ import annotations

import re

from ..errors import ModelInputError, TileError
from ..images.channels import KINDS
from ..images.image import Image
from ..layouts import PICTURES, others_taken
from ..options import Options
from ..plan import Tile
from ..texts import full_text

__all__ = ["explained", "tile_error"]

ABOUT_CHANNELS = re.compile(r"channel|shape|dimension 1\b|broadcast|should contain", re.IGNORECASE)
# Similar messages about rows and columns: branches of a network whose sizes do not match.
ABOUT_SIDES = re.compile(r"dimension [23]\b|except in dimension 1\b", re.IGNORECASE)


def tile_error(
    kind: type[TileError], tiles: list[Tile], text: str, *, rows_done: int = 0, image: str = ""
) -> TileError:
    first, last = tiles[0], tiles[-1]
    which = f"tile {first.index}" if first.index == last.index else f"tiles {first.index} to {last.index}"
    which += image
    box = first.window
    where = f"row {first.row}, column {first.column}; window rows {box.y}:{box.y_stop}, columns {box.x}:{box.x_stop}"
    return kind(f"{which} ({where}): {text}", tile=first.index, box=tuple(box), rows_done=rows_done)


def explained(failure: TileError, image: Image, options: Options, takes: int | None) -> TileError:
    """Adds a hint to a failure of the first window if its cause mentions channels.

    takes: channels that the model expects, if known.
    """
    said = "" if failure.__cause__ is None else full_text(failure.__cause__)
    if not said or isinstance(failure, ValueError) or ABOUT_SIDES.search(said):
        return failure
    if not ABOUT_CHANNELS.search(said):
        return failure
    if takes is not None and not _may_be_taken(takes, image.channels, options.alpha):
        return _refused(failure, image, options, takes)
    failure.args = (f"{failure}{_about_alpha(image, options.alpha)}{_about_layout(image, options, takes)}",)
    return failure


def _may_be_taken(takes: int, channels: int, alpha: str) -> bool:
    pictures = alpha != "channel" and channels in KINDS and takes in PICTURES
    return takes == channels or pictures


def _refused(failure: TileError, image: Image, options: Options, takes: int) -> TileError:
    where, _, raised = str(failure).partition(": ")
    as_picture = options.alpha != "channel"
    kind = f" ({KINDS[image.channels]})" if image.channels in KINDS and as_picture else ""
    cure = f"pass an image of {_channels(takes)}"
    if takes < image.channels:
        cure += f", such as {_first_channels(image.layout, takes)}"
    if takes in (2, 4) and as_picture:
        cure += f", and alpha='channel' with it if that is no {KINDS[takes].replace('and', 'with')}"
    text = f"{where}: the image has {_channels(image.channels)}{kind} and the model takes {takes}; {cure}"
    text += f"{_about_layout(image, options, takes)} ({raised})"
    error = ModelInputError(text, tile=failure.tile, box=failure.box, rows_done=failure.rows_done)
    error.__cause__ = failure.__cause__
    return error


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _first_channels(layout: str, count: int) -> str:
    before = layout.index("C")
    return f"image[..., :{count}]" if before == len(layout) - 1 else f"image[{':, ' * before}:{count}]"


def _about_alpha(image: Image, alpha: str) -> str:
    if alpha == "channel" or image.channels not in (2, 4):
        return ""
    return f"; if the {image.channels} channels are not {KINDS[image.channels]}, pass alpha='channel'"


def _about_layout(image: Image, options: Options, takes: int | None) -> str:
    shape, certain = tuple(image.original.shape), getattr(image.original, "layout", None)
    if options.layout is not None or len(shape) < 3 or isinstance(certain, str):
        return ""
    others = [f"layout={one.layout!r} ({one})" for one in others_taken(shape, image.layout, takes)]
    return f"; if shape {shape} is not {image.layout!r}, pass {' or '.join(others) or 'layout='}"
