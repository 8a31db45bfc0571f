# SPDX-License-Identifier: MIT
"""halotile: restore images too large for their model, tile by tile, with results equal to whole-image inference."""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    ColourWarning,
    ModelInputError,
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    SeamWarning,
    TileError,
    TileSizeWarning,
)
from .halo import RunInfo
from .plan import Box, Tile, TilePlan, plan_tiles
from .restore import TiledRestorer, iter_bands, restore_tiled
from .version import __version__

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import testing as testing
    from .curve import ErrorCurve, error_curve
    from .inspection import ModelInfo, inspect_model
    from .loading import load_model
    from .to_file import restore_to
    from .verification import Verification, verify
else:  # where a type checker would take any name for one of them
    # Imported when they are asked for: some need torch, none is needed to restore.
    _LATER = {
        "ErrorCurve": "curve",
        "ModelInfo": "inspection",
        "Verification": "verification",
        "error_curve": "curve",
        "inspect_model": "inspection",
        "load_model": "loading",
        "metrics": "metrics",
        "restore_to": "to_file",
        "testing": "testing",
        "verify": "verification",
    }

    def __getattr__(name: str) -> object:
        if name in _LATER:
            module = import_module(f"{__name__}.{_LATER[name]}")
            return module if _LATER[name] == name else getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__all__ = [
    "Box",
    "ColourWarning",
    "ErrorCurve",
    "ModelInfo",
    "ModelInputError",
    "ModelOutputError",
    "NonFiniteError",
    "NonFiniteWarning",
    "OutOfMemoryError",
    "RunInfo",
    "SeamWarning",
    "Tile",
    "TileError",
    "TilePlan",
    "TileSizeWarning",
    "TiledRestorer",
    "Verification",
    "__version__",
    "error_curve",
    "inspect_model",
    "iter_bands",
    "load_model",
    "plan_tiles",
    "restore_tiled",
    "restore_to",
    "verify",
]
