# SPDX-License-Identifier: MIT
"""The engine `host`: the C core on NumPy memory.

Sums are kept only where tiles share pixels, in a band of the core's (csrc/core/band.c). What one tile alone
contributes goes straight from the model's output to the output rows, so that a band costs the overlaps and not full
rows of float32.
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
    """The C core on NumPy memory, for models of every kind: what runs elsewhere gets its windows from here."""

    name = "host"
    device = None
    fragile = False

    def open(self, image: Image, index: int) -> Any:
        """Image `index` as what `read` takes."""
        return image.held(index) if image.by_rows else AllRows(image.pixels[index])

    def pixels_of(self, result: Image) -> np.ndarray:
        return result.pixels

    def new_windows(self, model: Model, shape: tuple[int, int, int, int]) -> np.ndarray:
        return model.new_windows(*shape)

    def read(
        self, windows: np.ndarray, source: Any, part: Part, plan: TilePlan, tiles: list[Tile], values: Values
    ) -> None:
        """READ: windows[k] <- tile k's window of the part's channels, reflected where it leaves the image."""
        start, stop = min(tile.window.y for tile in tiles), max(tile.window.y_stop for tile in tiles)
        rows, first = source.holding(start, stop)
        pixels = part.view(rows)
        for window, tile in zip(windows, tiles, strict=True):
            _core.read(window, pixels, tile.window.y - first, tile.window.x, values.numbers, values.bfloat16)

    def call(self, model: Model, windows: np.ndarray) -> np.ndarray:
        return model(windows)

    def first_nonfinite(self, output: np.ndarray) -> Position | None:
        """Bands tell at once."""
        return None

    def new_band(self, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int) -> HostBand:
        return HostBand(plan, channels, values, first_row)

    def empty_cache(self) -> None:
        pass


class AllRows(NamedTuple):
    """An image in memory (C, H, W), as `HeldRows` would hold it."""

    pixels: np.ndarray

    def holding(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        return self.pixels, 0


class HostBand:
    """The rows still being made: the core's, on its own buffer."""

    def __init__(self, plan: TilePlan, channels: int, values: Values, first_row: int = 0):
        self.core = _core.Band(plan.core, channels, values.numbers, values.bfloat16, first_row)

    def add(self, tiles: list[Tile], outputs: np.ndarray, rows: dict[int, np.ndarray]) -> Found:
        """Takes the model's outputs (k, C, height, width) for consecutive tiles, in the plan's order.

        rows: for each tile row, where its finished rows go: (C, rows, W) in the output dtype, `plan.core.done(0, row)`
        of the output. Those of a tile row are complete once its last tile was added.

        Yields for every tile the first NaN or infinity met, as (channel, row, column) of the output image, or None."""
        for tile, output in zip(tiles, outputs, strict=True):
            yield tile, self.core.add(tile.index, output, rows[tile.row])

    def nonfinite(self) -> None:
        """What is known only when all is done: nothing here."""


class ConstantBand:
    """An alpha channel that has one value everywhere.

    value: in units of the image that it comes from, which has values `given`; None is white."""

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
        """rows: an array, or a tensor on the device."""
        if not isinstance(rows, np.ndarray):
            words = as_words(rows)
            word = round(self.value) if self.kind.startswith("uint") else self.value
            words.fill_(word - 65536 if words is not rows and word > 32767 else word)
        elif self.kind == "bfloat16":
            rows[:] = bfloat16_bits(self.value)
        else:
            rows[:] = round(self.value) if self.kind.startswith("uint") else self.value

    def nonfinite(self) -> None:
        pass
