# SPDX-License-Identifier: MIT
"""halotile: restore images too large for their model, by tiles or streamed rows, equal to whole-image inference."""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    ColourWarning,
    ModelInputError,
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    RangeWarning,
    SeamWarning,
    TileError,
    TileSizeWarning,
)
from .version import __version__

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import testing as testing
    from .before_after import BeforeAfter, show
    from .check.curve import ErrorCurve, error_curve
    from .check.verify import Verification, verify
    from .evaluation import Evaluation, evaluate
    from .inspection import ModelInfo, inspect_model
    from .memory_watch import MemoryWatch, watch_memory
    from .models.load import load_model
    from .plan import Box, Tile, TilePlan, plan_tiles
    from .restore import TiledRestorer, iter_bands, restore_tiled
    from .run.report import RunInfo
    from .to_file import restore_to
else:  # where a type checker would take any name for one of them
    # Imported when they are asked for, so that a program that imports this package starts at once.
    _LATER = {
        "BeforeAfter": "before_after",
        "Box": "plan",
        "ErrorCurve": "check.curve",
        "Evaluation": "evaluation",
        "MemoryWatch": "memory_watch",
        "ModelInfo": "inspection",
        "RunInfo": "run.report",
        "Tile": "plan",
        "TilePlan": "plan",
        "TiledRestorer": "restore",
        "Verification": "check.verify",
        "error_curve": "check.curve",
        "evaluate": "evaluation",
        "inspect_model": "inspection",
        "iter_bands": "restore",
        "load_model": "models.load",
        "metrics": "metrics",
        "plan_tiles": "plan",
        "restore_tiled": "restore",
        "restore_to": "to_file",
        "show": "before_after",
        "testing": "testing",
        "verify": "check.verify",
        "watch_memory": "memory_watch",
    }

    def __getattr__(name: str) -> object:
        if name in _LATER:
            module = import_module(f"{__name__}.{_LATER[name]}")
            globals()[name] = found = module if _LATER[name] == name else getattr(module, name)
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__all__ = [
    "BeforeAfter",
    "Box",
    "ColourWarning",
    "ErrorCurve",
    "Evaluation",
    "MemoryWatch",
    "ModelInfo",
    "ModelInputError",
    "ModelOutputError",
    "NonFiniteError",
    "NonFiniteWarning",
    "OutOfMemoryError",
    "RangeWarning",
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
    "evaluate",
    "inspect_model",
    "iter_bands",
    "load_model",
    "plan_tiles",
    "restore_tiled",
    "restore_to",
    "show",
    "verify",
    "watch_memory",
]
