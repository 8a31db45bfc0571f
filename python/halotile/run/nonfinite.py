# SPDX-License-Identifier: MIT
"""NaN and infinity in model outputs: an error or a warning with the position."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from ..engine.device_lock import turn
from ..engine.engine import Band, Position
from ..errors import NonFiniteError, NonFiniteWarning, frames_inside
from ..images.scan import widened, widened_tensor
from ..plan import Tile
from .failures import tile_error
from .prepared import First, Prepared

__all__ = ["check_bands", "check_finite", "check_first_tile", "check_kept"]


def check_first_tile(prepared: Prepared, first: First) -> None:
    """Checks the first tile on devices, where bands report only at the end: a model that returns NaN mostly does so
    everywhere."""
    if prepared.options.on_nonfinite != "raise":
        return  # with "retry" every batch is checked
    tile = prepared.plan[0]
    for output in first.values():
        kept = output[0, :, tile.crop[0] :, tile.crop[1] :][:, : tile.keep.height, : tile.keep.width]
        windows = prepared.windows
        if windows.in_host_memory or not windows.seen.finite_on_device(kept, prepared.out_values.numbers[3]):
            check_finite(prepared, 0, tile, windows.engine.first_nonfinite(kept), 0)


def check_bands(prepared: Prepared, index: int, bands: Sequence[Band]) -> None:
    if prepared.options.on_nonfinite == "ignore":
        return
    for band in bands:
        found = band.nonfinite()
        if found is not None:
            tile, position = found
            check_finite(prepared, index, tile, position, prepared.plan.core.done(0, tile.row)[0])


def check_kept(prepared: Prepared, index: int, bands: Sequence[Band]) -> None:
    """Checks rows before they are kept for another run, which will not see them."""
    if prepared.options.refuses_nonfinite:
        with turn(prepared.windows.engine.device):
            check_bands(prepared, index, bands)


def _in_image(prepared: Prepared, index: int, tile: Tile) -> str:
    """Says where the image itself holds NaN or infinity in the rows of a window; empty if it does not."""
    image, window = prepared.image, tile.window
    start, stop = max(0, window.y), min(image.size[0], window.y_stop)
    if "float" not in image.dtype or start >= stop:
        return ""
    columns = slice(max(0, window.x), window.x_stop)
    if image.on_host:
        values = widened(image.rows(index, start, stop)[:, :, columns], image.dtype)
    else:
        values = widened_tensor(image.tensor[index, :, start:stop, columns]).cpu().numpy()
    bad = ~np.isfinite(values)
    if image.nodata is not None and math.isnan(image.nodata.value):
        bad &= ~np.isnan(values)  # was filled
    if not bad.any():
        return ""
    row, column, channel = np.argwhere(bad.transpose(1, 2, 0))[0]
    where = f"row {start + row}, column {columns.start + column}, channel {channel}"
    text = f"; the image itself holds NaN or infinity, first at {where}"
    return f"{text}: nodata='nan' fills NaN from its surroundings and puts it back"


def check_finite(prepared: Prepared, index: int, tile: Tile, position: Position | None, rows_done: int) -> None:
    asked = prepared.options.on_nonfinite
    if position is None or asked == "ignore":
        return
    channel, y, x = position
    text = f"the model returned NaN or infinity, first at output row {y}, column {x}, channel {channel}"
    if prepared.again is not None:
        text += prepared.again.said(index, tile)
    text += _in_image(prepared, index, tile)
    image = prepared.windows.which(index)
    if prepared.options.refuses_nonfinite:
        raise tile_error(NonFiniteError, [tile], text, rows_done=rows_done, image=image)
    message = str(tile_error(NonFiniteError, [tile], text, image=image))
    warnings.warn(message, NonFiniteWarning, stacklevel=frames_inside())
