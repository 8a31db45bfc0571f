# SPDX-License-Identifier: MIT
"""NaN and infinity in model outputs: an error or a warning with the position."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..engine.engine import Band, Position
from ..errors import NonFiniteError, NonFiniteWarning, frames_inside
from ..plan import Tile
from .failures import tile_error
from .prepared import First, Prepared

__all__ = ["check_bands", "check_finite", "check_first_tile"]


def check_first_tile(prepared: Prepared, first: First) -> None:
    """Checks the first tile on devices, where bands report only at the end: a model that returns NaN mostly does so
    everywhere."""
    if prepared.options.on_nonfinite != "raise":
        return
    tile = prepared.plan[0]
    for output in first.values():
        kept = output[0, :, tile.crop[0] :, tile.crop[1] :][:, : tile.keep.height, : tile.keep.width]
        check_finite(prepared, 0, tile, prepared.windows.engine.first_nonfinite(kept), 0)


def check_bands(prepared: Prepared, index: int, bands: Sequence[Band]) -> None:
    if prepared.options.on_nonfinite == "ignore":
        return
    for band in bands:
        found = band.nonfinite()
        if found is not None:
            tile, position = found
            check_finite(prepared, index, tile, position, prepared.plan.core.done(0, tile.row)[0])


def check_finite(prepared: Prepared, index: int, tile: Tile, position: Position | None, rows_done: int) -> None:
    asked = prepared.options.on_nonfinite
    if position is None or asked == "ignore":
        return
    channel, y, x = position
    text = f"the model returned NaN or infinity, first at output row {y}, column {x}, channel {channel}"
    image = prepared.windows.which(index)
    if asked == "raise":
        raise tile_error(NonFiniteError, [tile], text, rows_done=rows_done, image=image)
    message = str(tile_error(NonFiniteError, [tile], text, image=image))
    warnings.warn(message, NonFiniteWarning, stacklevel=frames_inside())
