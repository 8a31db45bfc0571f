# SPDX-License-Identifier: MIT
"""What can go wrong while tiles are running. Bad options are plain ValueError and TypeError."""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "ColourWarning",
    "ModelInputError",
    "ModelOutputError",
    "NonFiniteError",
    "NonFiniteWarning",
    "OutOfMemoryError",
    "SeamWarning",
    "TileError",
    "TileSizeWarning",
    "frames_inside",
]


class TileError(RuntimeError):
    """A tile failed. The exception that the model raised is chained as ``__cause__``.

    Attributes:
        tile: index of the tile (of the first one, if a batch failed); row-major.
        box: the window it was given: ``(y, x, height, width)`` in input pixels.
        rows_done: output rows finished before it, from the top.
        out: the output so far, rows below ``rows_done`` unfinished; None inside ``iter_bands``.
    """

    def __init__(self, message: str, *, tile: int, box: tuple[int, int, int, int], rows_done: int = 0):
        super().__init__(message)
        self.tile = tile
        self.box = box
        self.rows_done = rows_done
        self.out: Any = None


class ModelInputError(TileError, ValueError):
    """The model does not take as many channels as the image has."""


class ModelOutputError(TileError, ValueError):
    """The model returned something that is not an output for its window: wrong type, shape, scale or dtype."""


class NonFiniteError(TileError):
    """The model returned NaN or infinity and ``on_nonfinite="raise"``."""


class OutOfMemoryError(TileError, MemoryError):
    """Memory ran out with the smallest tiles there are."""


class ColourWarning(UserWarning):
    """A model makes nothing of an image's colours, or of a grey image something colourful that is not returned."""


class TileSizeWarning(UserWarning):
    """Memory ran out, and the run goes on with a smaller tile or batch; or a tile is too large for what MPS can do."""


class NonFiniteWarning(RuntimeWarning):
    """The model returned NaN or infinity and ``on_nonfinite="warn"``."""


class SeamWarning(UserWarning):
    """The halo or the phase is less than the model needs, or ``verify=`` found more than the tolerance."""


def frames_inside() -> int:
    """The stacklevel at which a warning points to whoever called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (frame.f_globals.get("__package__") or "").startswith(__package__):
        frame, level = frame.f_back, level + 1
    return level
