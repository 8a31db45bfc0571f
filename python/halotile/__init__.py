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


def __getattr__(name: str) -> object:
    """What needs torch is imported when it is asked for."""
    if name in ("ModelInfo", "inspect_model"):
        from . import inspection

        return getattr(inspection, name)
    if name in ("ErrorCurve", "error_curve"):
        from . import curve

        return getattr(curve, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "Box",
    "ErrorCurve",
    "ModelInfo",
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
    "error_curve",
    "inspect_model",
    "iter_bands",
    "plan_tiles",
    "restore_tiled",
]
