# SPDX-License-Identifier: MIT
"""boundary="wrap": a window that leaves the image goes on at the opposite edge, as seamless textures do.

    image             a b c d            the window over [-2, 3) is read in two pieces
    window        c d|a b c

The pieces lie inside the image, so every engine reads them as it reads any window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..engine.engine import Engine
from ..images.channels import Part
from ..images.image import Pixels
from ..images.values import Values
from ..models.model import Model
from ..plan import Box, Tile, TilePlan

__all__ = ["leaves", "read_wrapped"]

Pair = tuple[int, int]


class Piece(NamedTuple):
    """Pixels [start, stop) of the image at pixel `at` of a window, along one axis."""

    at: int
    start: int
    stop: int


def leaves(tiles: list[Tile], size: Pair) -> bool:
    """Whether a window leaves an image of this size."""
    return any(min(one.window[:2]) < 0 or one.window.y_stop > size[0] or one.window.x_stop > size[1] for one in tiles)


def pieces(start: int, count: int, size: int) -> Iterator[Piece]:
    at = 0
    while at < count:
        inside = (start + at) % size
        length = min(count - at, size - inside)
        yield Piece(at, inside, inside + length)
        at += length


def read_wrapped(
    engine: Engine,
    model: Model,
    windows: Pixels,
    source_of: Callable[[bool], Any],
    part: Part,
    plan: TilePlan,
    tiles: list[Tile],
    values: Values,
) -> None:
    """Fills windows[k] with the window of tile k, wrapped around.

    source_of: the image as the engine takes it, by whether the rows wanted are those of the opposite edge: what reads
        rows from a file holds these beside the others.
    """
    for k, tile in enumerate(tiles):
        box = tile.window
        for row in pieces(box.y, box.height, plan.image_size[0]):
            source = source_of(row.start != box.y + row.at)
            for column in pieces(box.x, box.width, plan.image_size[1]):
                inner = Box(row.start, column.start, row.stop - row.start, column.stop - column.start)
                one = [replace(tile, window=inner)]
                into = windows[k : k + 1, :, row.at : row.at + inner.height, column.at : column.at + inner.width]
                if isinstance(into, np.ndarray):
                    engine.read(into, source, part, plan, one, values)
                    continue
                count, channels, height, width = into.shape
                read = engine.new_windows(model, (count, channels, height, width))  # kernels write to dense windows
                engine.read(read, source, part, plan, one, values)
                into.copy_(read)
