# SPDX-License-Identifier: MIT
"""The schedule of tiles: read a batch, run the model, add the outputs to the open bands.

tile row 0   [ 0 ][ 1 ][ 2 ]   tile 2 closes the row: rows above tile row 1 are complete and go to the sink
tile row 1   [ 3 ][ 4 ][ 5 ]   its upper rows overlap tile row 0 and are still open in the band
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

from ..engine.device_lock import turn
from ..engine.engine import Band
from ..engine.host import ConstantBand
from ..errors import ModelOutputError, OutOfMemoryError
from ..images.channels import Part
from ..images.image import copied, new_image
from ..memory import is_out_of_memory
from ..plan import Box, Tile, TilePlan
from ..texts import quoted
from . import kept_heap
from .again import Again
from .failures import tile_error
from .held import hold_statistics
from .low_band import tie_low_bands
from .nonfinite import check_bands, check_finite, check_kept
from .out_of_memory import let_go, smaller_tiles
from .prepared import First, Prepared, Sink, Stage
from .progress import Progress
from .rows import Rows

__all__ = ["TILES", "Tiles"]


class Tiles:
    """The stateless implementation of `Schedule` in prepared.py."""

    name = "tiles"

    def rows(
        self, prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
    ) -> Iterator[int]:
        hold_statistics(prepared, index, first, progress)
        tie_low_bands(prepared, index, first)
        plan, device = prepared.plan, prepared.windows.engine.device
        first_row = _first_row(plan, rows_done)
        with turn(device), kept_heap.aside():
            parts = prepared.parts_of(index)
            bands = _new_bands(prepared, parts, first_row)
        rows = Rows(plan, partial(sink.rows, index), partial(_scratch, prepared), rows_done)
        try:
            with closing(_batches(prepared, parts, index, first_row, first)) as batches:
                for tiles in batches:
                    with turn(device):
                        _add(prepared, parts, index, tiles, bands, rows, first, rows_done)
                    for stop in (plan.rows_complete(tile.index) for tile in tiles if _ends_row(plan, tile)):
                        if rows_done < stop:
                            if sink.keeps:
                                check_kept(prepared, index, bands)
                            rows_done = stop
                            yield stop
                    progress.advance(len(tiles))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):  # the run continues below with smaller tiles, so check these bands now
                with turn(device):
                    let_go(prepared, error, first)
                    _check_before_restart(prepared, index, bands, rows_done)
            raise
        with turn(device):
            check_bands(prepared, index, bands)

    def tiles_from(self, prepared: Prepared, rows_done: int) -> int:
        plan = prepared.plan
        return len(plan) - _first_row(plan, rows_done) * plan.grid[1]

    def smaller(self, prepared: Stage) -> tuple[Stage, str] | None:
        return smaller_tiles(prepared)


TILES = Tiles()


def _first_row(plan: TilePlan, rows_done: int) -> int:
    keeps = (plan.core.keep(0, row) for row in range(plan.grid[0]))
    return next(row for row, (_, stop) in enumerate(keeps) if stop > rows_done)


def _ends_row(plan: TilePlan, tile: Tile) -> bool:
    return tile.column == plan.grid[1] - 1


def _new_bands(prepared: Prepared, parts: tuple[Part, ...], first_row: int) -> list[Band]:
    plan, values, windows = prepared.plan, prepared.out_values, prepared.windows
    return [
        ConstantBand(plan, values, windows.values, part.value)
        if part.how == "constant"
        else windows.engine.new_band(plan, channels, values, prepared.batch, first_row)
        for part, channels in zip(parts, prepared.traits.out_channels, strict=True)
    ]


def _check_before_restart(prepared: Prepared, index: int, bands: list[Band], rows_done: int) -> None:
    """Raises OutOfMemoryError if the rows above cannot be checked: a run must not continue below unchecked rows."""
    try:
        check_bands(prepared, index, bands)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        text = f"finished rows could not be checked for NaN: {quoted(error)}"
        raise tile_error(OutOfMemoryError, [prepared.plan[0]], text, rows_done=rows_done) from error


def _scratch(prepared: Prepared, rows: int) -> Any:
    """Discarded rows: after a restart with smaller tiles, those above the unfinished ones."""
    size, engine = (rows, prepared.plan.output_size[1]), prepared.windows.engine
    image = new_image(prepared.image, prepared.channels, size, prepared.out_dtype, engine.device)
    return engine.pixels_of(image)[0]


def _batches(
    prepared: Prepared, parts: tuple[Part, ...], index: int, first_row: int, first: First
) -> Iterator[list[Tile]]:
    """Several devices work ahead of the batch yielded."""
    plan, devices = prepared.plan, prepared.devices
    batches = plan.batches(prepared.batch, first_row * plan.grid[1])
    if devices is None:
        yield from batches
        return
    if first:
        yield next(batches)
    run = [part for part in parts if part.how != "constant"]
    yield from devices.ahead(index, plan, run, ((tiles, prepared.full(tiles)) for tiles in batches))


def _add(
    prepared: Prepared,
    parts: tuple[Part, ...],
    index: int,
    tiles: list[Tile],
    bands: list[Band],
    rows: Rows,
    first: First,
    rows_done: int,
) -> None:
    for tile in tiles:
        if tile.column == 0:
            rows.open(tile.row)
    channel = 0
    for part, channels, band in zip(parts, prepared.traits.out_channels, bands, strict=True):
        outputs = _outputs(prepared, part, channels, index, tiles, first, rows_done)
        for tile, position in band.add(tiles, outputs, rows.channels(channel, channels)):
            check_finite(prepared, index, tile, position, rows_done)
        channel += channels
        del outputs  # frees memory before the next part runs
    for tile in tiles:
        if _ends_row(prepared.plan, tile):
            rows.close(tile.row)


def _outputs(
    prepared: Prepared, part: Part, channels: int, index: int, tiles: list[Tile], first: First, rows_done: int
) -> Any:
    if part.how == "constant":
        return None
    output = first.pop(part, None)
    if output is None and prepared.devices is not None:
        output = prepared.devices.outputs.pop(part, None)
    if prepared.together > 1 and len(tiles) == len(prepared.plan):
        output = _of_several(prepared, part, index, tiles, output)
    if output is None:
        output = prepared.windows(part, index, prepared.plan, prepared.full(tiles))
    expected = (channels, *prepared.plan.window_output)
    if output.shape[1:] != expected:
        text = f"the model returned an output of shape {tuple(output.shape[1:])}, after {expected} before"
        raise tile_error(ModelOutputError, tiles, text)
    output = output[-len(tiles) :]
    return (
        output if prepared.again is None else _mended(prepared, prepared.again, part, index, tiles, output, rows_done)
    )


def _mended(
    prepared: Prepared, again: Again, part: Part, index: int, tiles: list[Tile], output: Any, rows_done: int
) -> Any:
    """The output, made again where half precision made NaN or infinity. Bands of devices tell of the rest only at the
    end, so it is looked for here."""
    windows, plan, before = prepared.windows, prepared.plan, len(again.made)
    boxes = [Box(*tile.crop, tile.keep.height, tile.keep.width) for tile in tiles]
    output = again.mended(windows, part, index, plan, tiles, output, boxes)
    if len(again.made) > before or again.why_not:
        for tile, box, one in zip(tiles, boxes, output, strict=True):
            found = windows.engine.first_nonfinite(one[:, box.y : box.y_stop, box.x : box.x_stop])
            if found is not None:
                channel, y, x = found
                check_finite(prepared, index, tile, (channel, y + tile.keep.y, x + tile.keep.x), rows_done)
    return output


def _of_several(prepared: Prepared, part: Part, index: int, tiles: list[Tile], output: Any) -> Any:
    """The output of all tiles of an image; those of the images after it come from the same call, and are kept.

    output: that of the first batch, if it is given.
    """
    kept = prepared.ahead.pop((part, index), None)
    if kept is not None:
        return kept
    those = range(index, min(index + prepared.together, prepared.image.count))
    indices = [one for one in those if part in prepared.parts_of(one)]
    if output is None:
        filled = indices + indices[-1:] * (prepared.together - len(indices))  # every call has the same shape
        output = prepared.windows.of_images(part, filled, prepared.plan, tiles)
    elif len(output) < len(indices) * len(tiles):
        return output
    pieces = {one: output[at * len(tiles) : (at + 1) * len(tiles)] for at, one in enumerate(indices)}
    several = len(prepared.traits.parts) > 1  # the model runs again before they are used, maybe into the same memory
    for one in indices[1:]:
        prepared.ahead[part, one] = copied(pieces[one]) if several else pieces[one]
    return pieces[index]
