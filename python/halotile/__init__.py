# SPDX-License-Identifier: MIT
"""halotile: restore images too large for their model, tile by tile, with results equal to whole-image inference."""

from .errors import (
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    TileError,
    TileSizeWarning,
)
from .plan import Box, Tile, TilePlan, plan_tiles
from .restore import TiledRestorer, iter_bands, restore_tiled

__version__ = "0.1.0"

__all__ = [
    "Box",
    "ModelOutputError",
    "NonFiniteError",
    "NonFiniteWarning",
    "OutOfMemoryError",
    "Tile",
    "TileError",
    "TilePlan",
    "TileSizeWarning",
    "TiledRestorer",
    "__version__",
    "iter_bands",
    "plan_tiles",
    "restore_tiled",
]
