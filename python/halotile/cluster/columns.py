# SPDX-License-Identifier: MIT
"""Some columns of tiles alone: the others of a tile row are zeros, and nobody looks at what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..images.channels import Part
from ..models.model import Model
from ..optional import torch_if_loaded
from ..plan import Tile, TilePlan
from ..run.prepared import Prepared
from ..run.windows import Windows

__all__ = ["with_columns"]


class _SomeColumns(Windows):
    """Runs the model on batches that hold a tile of these columns."""

    wanted: range
    channels_of: dict[Part, int]

    def __call__(self, part: Part, index: int, plan: TilePlan, tiles: list[Tile]) -> Any:
        if any(tile.column in self.wanted for tile in tiles):
            return super().__call__(part, index, plan, tiles)
        shape = (len(tiles), self.channels_of[part], *plan.window_output)
        if self.engine.device is None:
            return np.zeros(shape, np.float32)
        return torch_if_loaded().zeros(shape, device=self.engine.device)


def with_columns(prepared: Prepared, wanted: range) -> Prepared:
    """The run in tiles, in which only these columns of them go through the model."""
    if len(wanted) == prepared.plan.grid[1]:
        return prepared
    before, model = prepared.windows, prepared.windows.opened
    assert isinstance(model, Model)
    windows = _SomeColumns(before.image, model, before.engine, before.values.value_range)
    windows.share(before)
    windows.wanted = wanted
    windows.channels_of = dict(zip(prepared.traits.parts, prepared.traits.out_channels, strict=True))
    return replace(prepared, windows=windows)
