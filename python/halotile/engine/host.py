# SPDX-License-Identifier: MIT
"""The engine `host`: the C core on NumPy memory.

    tile 0    [ exclusive   | shared ]
    tile 1                  [ shared |   exclusive ]
                    |           |            |
                    v           v            v
    output row  copied      sums in band   copied

Only pixels shared by tiles are summed (csrc/core/band.c); the others go straight from the model's output to the result.
So a band costs memory for the overlaps, not for full rows of float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..images.channels import Part
from ..images.image import Image, as_words, bfloat16_bits
from ..images.values import Values
from ..models.model import Model
from ..plan import Tile, TilePlan
from .engine import Found, Position

__all__ = ["ConstantBand", "HostBand", "HostEngine"]


class HostEngine:
    name = "host"
    device = None
    fragile = False

    def open(self, image: Image, index: int) -> Any:
        return image.held(index) if image.by_rows else AllRows(image.pixels[index])

    def pixels_of(self, result: Image) -> np.ndarray:
        return result.pixels

    def new_windows(self, model: Model, shape: tuple[int, int, int, int]) -> np.ndarray:
        return model.new_windows(*shape)

    def read(
        self, windows: np.ndarray, source: Any, part: Part, plan: TilePlan, tiles: list[Tile], values: Values
    ) -> None:
        """Fills windows[k] with the window of tile k, padded by reflection."""
        start, stop = min(tile.window.y for tile in tiles), max(tile.window.y_stop for tile in tiles)
        rows, first = source.holding(start, stop)
        pixels = part.view(rows)
        for window, tile in zip(windows, tiles, strict=True):
            _core.read(window, pixels, tile.window.y - first, tile.window.x, values.numbers, values.bfloat16)

    def call(self, model: Model, windows: np.ndarray) -> np.ndarray:
        return model(windows)

    def first_nonfinite(self, output: np.ndarray) -> Position | None:
        """Always None: bands report NaN and infinity at once."""
        return None

    def new_band(self, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int) -> HostBand:
        return HostBand(plan, channels, values, first_row)

    def empty_cache(self) -> None:
        pass


class AllRows(NamedTuple):
    """An image in memory with the interface of `HeldRows`."""

    pixels: np.ndarray

    def holding(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        return self.pixels, 0


class HostBand:
    def __init__(self, plan: TilePlan, channels: int, values: Values, first_row: int = 0):
        self.core = _core.Band(plan.core, channels, values.numbers, values.bfloat16, first_row)

    def add(self, tiles: list[Tile], outputs: np.ndarray, rows: dict[int, np.ndarray]) -> Found:
        """See `Band.add`. Yields each tile with its first NaN or infinity as (channel, row, column), or None."""
        for tile, output in zip(tiles, outputs, strict=True):
            yield tile, self.core.add(tile.index, output, rows[tile.row])

    def close(self) -> None:
        pass

    def nonfinite(self) -> None:
        """Returns None: `add` reports everything."""


class ConstantBand:
    """A constant alpha channel.

    value: in units of the source image, whose values are `given`; None is white.
    """

    def __init__(self, plan: TilePlan, values: Values, given: Values, value: float | None):
        self.plan, white, (peak, _, _, clamp) = plan, given.numbers[0], values.numbers
        self.value = peak if value is None else value / white * peak
        if clamp:
            self.value = min(max(self.value, 0.0), peak)
        self.kind = values.dtype

    def add(self, tiles: list[Tile], outputs: None, rows: dict[int, Any]) -> Found:
        for tile in tiles:
            if tile.column == 0:
                self._fill(rows[tile.row])
            yield tile, None

    def _fill(self, rows: Any) -> None:
        if not isinstance(rows, np.ndarray):
            words = as_words(rows)
            word = round(self.value) if self.kind.startswith("uint") else self.value
            words.fill_(word - 65536 if words is not rows and word > 32767 else word)
        elif self.kind == "bfloat16":
            rows[:] = bfloat16_bits(self.value)
        else:
            rows[:] = round(self.value) if self.kind.startswith("uint") else self.value

    def close(self) -> None:
        pass

    def nonfinite(self) -> None:
        pass
