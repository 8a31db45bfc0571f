# SPDX-License-Identifier: MIT
"""The schedule that streams rows: every row of every layer is computed once, and memory does not know the height.

One stream goes through the whole image if its width fits in memory:

    image  ========  strips go in at the top     model     ========  finished rows go to the sink
           ........  not read yet              ------->    ........

An image too wide for that is cut into tiles, and each tile is a stream. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch

from ...engine.device_lock import turn
from ...engine.engine import Band
from ...engine.host import ConstantBand
from ...errors import TileError
from ...images.channels import Part
from ...images.image import Pixels
from ...inspection.known import state_of
from ...inspection.recorder import Graph, record
from ...plan import Box, Tile, TilePlan, plan_of_rows
from ...texts import named
from ..failures import tile_error
from ..nonfinite import check_finite
from ..prepared import First, Prepared, Sink, Stage
from ..progress import Progress
from ..report import RunInfo
from .again import StripsAgain
from .flow import Flow, reader, rows_of_result, strips, tensor_model
from .steps import Constants, add_statistics

__all__ = ["Recorded", "Stream", "in_one_piece"]

Pair = tuple[int, int]
SMALLEST_STEP = 4  # rows of the image in a step; fewer save no memory


class Recorded:
    """The graphs of a module, by channels of the model's input, size of the image and dtype."""

    def __init__(self, module: torch.nn.Module, device: torch.device | None):
        self.module, self.device = module, device
        self.graphs: dict[tuple[int, Pair, torch.dtype], Graph] = {}
        self.state = state_of(module)

    def changed(self) -> bool:
        """Whether the module is another than before, or may be. Then its graphs are forgotten."""
        state = state_of(self.module)
        if state is not None and state == self.state:
            return False
        self.state, self.graphs = state, {}
        return True

    def graph(self, channels: int, size: Pair, dtype: torch.dtype) -> Graph:
        """Raises NotStreamable."""
        key, graphs = (channels, size, dtype), self.graphs
        found = graphs.get(key)
        if found is None:
            found = record(self.module, (channels, *size), dtype, self.device)
            self.graphs = {other: graph for other, graph in graphs.items() if other[1] == size} | {key: found}
        return found


@dataclass(frozen=True)
class Stream:
    """The implementation of `Schedule` in prepared.py.

    Attributes:
        recorded: the module's graphs.
        step: rows of the image in a step.
        as_is: whether the model takes the image in its own size, without padding to a multiple of the phase.
    """

    recorded: Recorded = field(repr=False)
    step: int
    as_is: bool = False
    smallest = SMALLEST_STEP
    name = "stream"

    def rows(
        self, prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
    ) -> Iterator[int]:
        first.clear()
        plan = prepared.plan
        reported = len(plan) - self.tiles_from(prepared, rows_done)
        watched = _Watched(prepared, index)
        for row, flows in enumerate(self.flows(prepared)):
            band = _rows_of(flows)
            if band[1] <= rows_done:
                continue
            for stop in self._band_rows(prepared, index, sink, flows, max(band[0], rows_done), watched):
                if stop > rows_done:
                    if sink.keeps and prepared.options.refuses_nonfinite:
                        watched.check()
                    rows_done = stop
                    yield stop
                done = _tiles_complete(plan, rows_done) if len(flows) == 1 else (row + 1) * len(flows)
                if done > reported:
                    progress.advance(done - reported)
                    reported = done
        watched.check()

    def flows(self, prepared: Prepared) -> list[list[Flow]]:
        """One stream, or the streams of every tile row."""
        plan = prepared.plan
        if plan.grid[1] > 1:
            return [_flows_of_tiles(plan, row) for row in range(plan.grid[0])]
        first, last = plan[0], plan[len(plan) - 1]
        keep = Box(first.keep.y, first.keep.x, last.keep.y_stop - first.keep.y, first.keep.width)
        if self.as_is:
            return [[Flow(Box(0, 0, *plan.image_size), keep, (0, 0), first)]]
        window = Box(first.window.y, first.window.x, last.window.y_stop - first.window.y, first.window.width)
        return [[Flow(window, keep, first.crop, first)]]

    def _band_rows(
        self, prepared: Prepared, index: int, sink: Sink, flows: list[Flow], start: int, watched: _Watched
    ) -> Iterator[int]:
        """The finished rows of streams beside each other. A single stream delivers row by row; several fill their
        columns of one band, one after the other."""
        if len(flows) == 1:
            for top, stop, pieces in self._pieces(prepared, index, flows[0], start):
                tallest = prepared.plan.tallest_band()
                for y in range(top, stop, tallest):
                    end = min(stop, y + tallest)
                    rows = [None if one is None else one[..., y - top : end - top, :] for one in pieces]
                    watched.finish(flows[0], y, rows, sink.rows(index, y, end))
                    yield end
            return
        top, bottom = _rows_of(flows)
        destination = sink.rows(index, start, bottom)
        for flow in flows:
            x = slice(flow.keep.x, flow.keep.x_stop)
            for y, stop, pieces in self._pieces(prepared, index, flow, start):
                watched.finish(flow, y, pieces, destination[:, y - start : stop - start, x])
        yield bottom

    def _pieces(self, prepared: Prepared, index: int, flow: Flow, start: int) -> Iterator[tuple[int, int, list[Any]]]:
        """Yields (first row, last row, outputs of each part) of one stream from output row `start` on."""
        parts, device = prepared.parts_of(index), prepared.windows.engine.device
        streams = [self._stream_of(prepared, index, part, flow, start) for part in parts if part.how == "model"]
        while True:
            try:
                with turn(device), torch.inference_mode():
                    found = [next(stream, None) for stream in streams]
                    if found[0] is None:
                        return
                    y, outputs = found[0][0], [one[1] for one in found if one is not None]
                    stop = y + outputs[0].shape[2]
                    pieces = _in_order(prepared, index, flow, parts, outputs, y, stop)
            except TileError:
                raise
            except Exception as error:
                text = f"the model raised {named(error)}"
                raise tile_error(TileError, [flow.tile], text, image=prepared.windows.which(index)) from error
            yield y, stop, pieces

    def _stream_of(
        self, prepared: Prepared, index: int, part: Part, flow: Flow, start: int
    ) -> Iterator[tuple[int, Pixels]]:
        """Yields (first output row, rows) of a part of the image, from output row `start` on."""
        windows = prepared.windows
        graph, read = self.graph(prepared, part, flow), reader(prepared.plan, windows, part, index, flow)
        constants = Constants(tensor_model(windows, part).channels_last)
        add_statistics(graph, constants, read, self.step)
        again = None
        if prepared.again is not None:
            again = StripsAgain(prepared.again, windows, prepared.plan, part, index, flow, self.step)
        for first, rows in strips(graph, constants, read, self.step, flow, (start, flow.keep.y_stop)):
            output = rows_of_result(windows, part, flow, rows)
            yield first, output if again is None else again.mended(first, output)

    def graph(self, prepared: Prepared, part: Part, flow: Flow) -> Graph:
        model = prepared.windows.model_of(part)
        dtype = torch.float64 if model.double else getattr(torch, model.dtype)
        return self.recorded.graph(part.feed, (flow.window.height, flow.window.width), dtype)

    def tiles_from(self, prepared: Prepared, rows_done: int) -> int:
        return len(prepared.plan) - _tiles_complete(prepared.plan, rows_done)

    def smaller(self, prepared: Stage) -> tuple[Stage, str] | None:
        """Half the rows of a step; then half the columns, unless the model needs the image in one piece."""
        plan, stream = prepared.plan, prepared.report.stream
        text = f"steps of {self.step} rows, {plan.window[1]} columns: going on with "
        if self.step > SMALLEST_STEP:
            after = replace(prepared, schedule=replace(self, step=max(SMALLEST_STEP, self.step // 2)))
        else:
            width = max(plan.tile[1] // 2, plan.phase[1])
            whole = any(in_one_piece(prepared.report, graph) for graph in self.recorded.graphs.values())
            if width >= plan.tile[1] or plan.tile[1] <= 2 * plan.halo[1] or whole:
                return None
            height = plan.tile[0] if plan.grid[1] > 1 else max(width, plan.phase[0])
            after = replace(prepared.with_tiles((height, width), 1), schedule=replace(self, as_is=False))
        if stream is not None:
            rows, columns = after.schedule.step, after.plan.window[1]
            stream = replace(stream, rows=rows, columns=columns, as_is=after.schedule.as_is)
        text += f"{after.schedule.step} rows, {after.plan.window[1]} columns"
        return replace(after, report=replace(after.report, stream=stream)), text


def in_one_piece(report: RunInfo, graph: Graph) -> str | None:
    """Why an image cannot be cut into tiles with a stream each; None if it can."""
    if graph.levels:
        return "tiles have no statistics of the whole image"
    if report.how == "exact" and report.model is not None and report.model.receptive_field is None:
        return "no halo of tiles is exact"
    return None


def _flows_of_tiles(plan: TilePlan, row: int) -> list[Flow]:
    tiles, (top, bottom) = plan.row(row), plan.core.done(0, row)
    flows = []
    for tile, right in zip(tiles, [*(one.keep.x for one in tiles[1:]), plan.output_size[1]], strict=True):
        keep = Box(top, tile.keep.x, bottom - top, right - tile.keep.x)
        flows.append(Flow(tile.window, keep, (tile.crop[0] + top - tile.keep.y, tile.crop[1]), tile))
    return flows


def _rows_of(flows: list[Flow]) -> Pair:
    return flows[0].keep.y, flows[0].keep.y_stop


def _tiles_complete(plan: TilePlan, rows_done: int) -> int:
    """Tiles in tile rows that are finished."""
    done = (plan.core.done(0, row)[1] for row in range(plan.grid[0]))
    return plan.grid[1] * sum(stop <= rows_done for stop in done)


def _in_order(
    prepared: Prepared, index: int, flow: Flow, parts: tuple[Part, ...], outputs: list[Any], y: int, stop: int
) -> list[Any]:
    """The outputs of all parts for rows [y, stop): those of the model, resized alpha, and None for constants."""
    waiting = iter(outputs)
    return [
        next(waiting)
        if part.how == "model"
        else None
        if part.how == "constant"
        else _resized(prepared, index, part, flow, y, stop)
        for part in parts
    ]


def _resized(prepared: Prepared, index: int, part: Part, flow: Flow, y: int, stop: int) -> Any:
    """Rows of alpha that is resized beside the model."""
    windows, window, scale = prepared.windows, flow.window, prepared.plan.scales[0]
    down, lost, margin = flow.crop[0] - flow.keep.y, 2 * prepared.plan.trim[0], 2 * max(1, scale.denominator)
    first = max(0, int((y + down) / scale) - margin) // scale.denominator * scale.denominator
    last = min(window.height, int(Fraction(stop + down + lost) / scale) + margin)
    last = min(window.height, -(-last // scale.denominator) * scale.denominator)
    box = Box(window.y + first, window.x, last - first, window.width)
    output = windows(part, index, prepared.plan, [replace(flow.tile, window=box)])
    above = y + down - int(first * scale)
    return output[:, :, above : above + stop - y, flow.crop[1] : flow.crop[1] + flow.keep.width]


class _Watched:
    """Finishes rows by the engine's bands, and checks them for NaN and infinity."""

    def __init__(self, prepared: Prepared, index: int):
        self.prepared, self.index = prepared, index
        self.waiting: list[tuple[Band, Tile, Pair]] = []  # bands that may report later, and where their rows start

    def finish(self, flow: Flow, y: int, pieces: list[Any], destination: Any) -> None:
        """Converts outputs of all parts and writes them to the destination (C, rows, W)."""
        prepared, channel = self.prepared, 0
        engine, at = prepared.windows.engine, (y, flow.keep.x)
        plan = plan_of_rows(*destination.shape[1:])
        with turn(engine.device):
            for part, channels, piece in zip(
                prepared.parts_of(self.index), prepared.traits.out_channels, pieces, strict=True
            ):
                if part.how == "constant":
                    values = prepared.out_values, prepared.windows.values
                    band: Band = ConstantBand(plan, *values, part.value)
                else:
                    band = engine.new_band(plan, channels, prepared.out_values, 1, 0)
                rows = destination[channel : channel + channels]
                for _, position in band.add([plan[0]], piece, {0: rows}):
                    self._judge(flow.tile, position, at)
                band.close()
                if engine.device is not None and part.how != "constant":
                    self.waiting.append((band, flow.tile, at))
                channel += channels

    def _judge(self, tile: Tile, position: Any, at: Pair) -> None:
        if position is not None:
            channel, row, column = position
            check_finite(self.prepared, self.index, tile, (channel, row + at[0], column + at[1]), at[0])

    def check(self) -> None:
        """Reports what the device has found, if anybody asks."""
        if self.prepared.options.on_nonfinite == "ignore":
            return
        with turn(self.prepared.windows.engine.device):
            waiting, self.waiting = self.waiting, []
            for band, tile, at in waiting:
                found = band.nonfinite()
                if found is not None:
                    self._judge(tile, found[1], at)
