# SPDX-License-Identifier: MIT
"""on_nonfinite="retry" for streams: see ../again.py. Imports torch."""

from __future__ import annotations

import numpy as np
import torch

from ...images.channels import Part
from ...images.image import Pixels
from ...images.values import as_floats
from ...inspection.recorder import Graph, record
from ...plan import Box, TilePlan
from ..again import Again, are_finite, plain_arithmetic
from ..windows import Windows
from .flow import Flow, Read, reader, rows_of_result, strips, tensor_model
from .steps import Constants, add_statistics

__all__ = ["StripsAgain"]


class StripsAgain:
    """Makes rows of a stream again in float32, where half precision made NaN or infinity: by another stream, through
    the rows of the image that they depend on. Only such rows change, however rows are cut into strips."""

    def __init__(self, again: Again, windows: Windows, plan: TilePlan, part: Part, index: int, flow: Flow, step: int):
        self.again, self.windows, self.plan = again, windows, plan
        self.part, self.index, self.flow, self.step = part, index, flow, step
        self.ready: tuple[Graph, Constants] | None = None

    def mended(self, first: int, output: Pixels) -> Pixels:
        windows, part = self.windows, self.part
        if not self.again.may_have_overflown(windows.model_of(part), output):
            return output
        rows = output[0].swapaxes(0, 1)[:, None]  # each row as an image of one
        finite = are_finite(rows, [Box(0, 0, *rows.shape[2:])] * len(rows))
        other = None if all(finite) else self.again.in_float32(windows, part)
        if other is None:
            return output
        bad = [y for y, one in enumerate(finite) if not one]
        self.again.made.add((self.index, self.flow.tile.index, first))
        made = self._made(other, first + bad[0], first + bad[-1] + 1)
        pieces = [made[:, :, y - bad[0]] if y in bad else output[:, :, y] for y in range(len(finite))]
        if isinstance(output, np.ndarray):
            return np.stack([as_floats(one) for one in pieces], 2)
        return torch.stack([one.float() for one in pieces], 2)

    def _made(self, windows: Windows, start: int, stop: int) -> Pixels:
        with plain_arithmetic(windows.model_of(self.part)):
            graph, constants, read = self._ready(windows)
            made = [rows for _, rows in strips(graph, constants, read, self.step, self.flow, (start, stop))]
            return rows_of_result(windows, self.part, self.flow, torch.cat(made, 2))

    def _ready(self, windows: Windows) -> tuple[Graph, Constants, Read]:
        """The model's graph in float32, with the statistics of the whole image, and what reads for it."""
        model, flow = tensor_model(windows, self.part), self.flow
        read = reader(self.plan, windows, self.part, self.index, flow)
        if self.ready is None:
            key = self.part.feed, flow.window.height, flow.window.width
            graph = self.again.graphs.get(key)
            if graph is None:
                graph = record(model.modules[0], key, torch.float32, windows.engine.device)
                self.again.graphs = {key: graph}
            constants = Constants(model.channels_last)
            add_statistics(graph, constants, read, self.step)
            self.ready = graph, constants
        return (*self.ready, read)
