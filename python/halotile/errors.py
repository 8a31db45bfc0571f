# SPDX-License-Identifier: MIT
"""Errors and warnings of a run. Bad options raise plain ValueError and TypeError."""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "ClusterError",
    "ColourWarning",
    "ModelInputError",
    "ModelOutputError",
    "NonFiniteError",
    "NonFiniteWarning",
    "OutOfMemoryError",
    "RangeWarning",
    "SeamWarning",
    "TileError",
    "TileSizeWarning",
    "frames_inside",
]


class TileError(RuntimeError):
    """The model failed on a tile. Its exception is chained as ``__cause__``.

    Attributes:
        tile: index of the tile, row-major; of the first one if a batch failed.
        box: the window of the tile: ``(y, x, height, width)`` in input pixels.
        rows_done: output rows finished before, from the top.
        out: the output so far, unfinished from row ``rows_done`` on; None inside ``iter_bands``.
    """

    def __init__(self, message: str, *, tile: int, box: tuple[int, int, int, int], rows_done: int = 0):
        super().__init__(message)
        self.tile = tile
        self.box = box
        self.rows_done = rows_done
        self.out: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        where = {"tile": self.tile, "box": self.box, "rows_done": self.rows_done}
        return _remade, (type(self), str(self), where)


def _remade(kind: type[TileError], message: str, where: dict[str, Any]) -> TileError:
    return kind(message, **where)


class ClusterError(RuntimeError):
    """Workers did not complete a result.

    Attributes:
        missing: number of shards that are not there. shards: in all.
    """

    def __init__(self, message: str, missing: int, shards: int):
        super().__init__(message, missing, shards)
        self.missing, self.shards = missing, shards

    def __str__(self) -> str:
        return str(self.args[0])


class ModelInputError(TileError, ValueError):
    """The model does not accept the image's number of channels."""


class ModelOutputError(TileError, ValueError):
    """The model returned an unusable output: wrong type, shape, scale or dtype."""


class NonFiniteError(TileError):
    """The model returned NaN or infinity and ``on_nonfinite="raise"``."""


class OutOfMemoryError(TileError, MemoryError):
    """Memory ran out with the smallest tiles."""


class ColourWarning(UserWarning):
    """The model ignores an image's colours, or turns a grey image into colours that are averaged."""


class RangeWarning(UserWarning):
    """Values are far outside the range that is expected of an image, or much of a result was clamped."""


class TileSizeWarning(UserWarning):
    """Memory ran out and the run continues with a smaller tile or batch, or a tile is too large for MPS."""


class NonFiniteWarning(RuntimeWarning):
    """The model returned NaN or infinity and ``on_nonfinite="warn"``."""


class SeamWarning(UserWarning):
    """Halo or phase are below what the model needs, or ``verify=`` found differences above the tolerance."""


def frames_inside() -> int:
    """The stacklevel that makes a warning point to the caller of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (frame.f_globals.get("__package__") or "").startswith(__package__):
        frame, level = frame.f_back, level + 1
    return level
