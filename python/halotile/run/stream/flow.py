# SPDX-License-Identifier: MIT
"""One stream through a window of the image, and the rows of the result that it makes. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ...images.channels import Part
from ...images.image import Pixels
from ...inspection.recorder import Graph
from ...models.model import TensorModel
from ...plan import Box, Tile, TilePlan
from ..windows import Windows
from .steps import Constants, Stepper, rows_per_step

__all__ = ["Flow", "Read", "reader", "rows_of_result", "strips", "tensor_model"]

Pair = tuple[int, int]
Read = Callable[[int, int], torch.Tensor]  # rows [start, stop) of a window


class Flow(NamedTuple):
    """What one stream reads and makes.

    Attributes:
        window: what goes through the model, input pixels, beyond the image where it is padded by reflection.
        keep: the region of the result that it makes, output pixels.
        crop: where that starts in the model's output for the window, output pixels (y, x).
        tile: stands for it in messages.
    """

    window: Box
    keep: Box
    crop: Pair
    tile: Tile


def tensor_model(windows: Windows, part: Part) -> TensorModel:
    model = windows.model_of(part)
    assert isinstance(model, TensorModel)
    return model


def reader(plan: TilePlan, windows: Windows, part: Part, index: int, flow: Flow) -> Read:
    """Reads rows of a stream's window for the model."""
    window, model = flow.window, tensor_model(windows, part)

    def read(y: int, stop: int) -> torch.Tensor:
        box = Box(window.y + y, window.x, stop - y, window.width)
        found = windows.read(part, index, plan, [replace(flow.tile, window=box)])
        strip = model.tensor_of(found) if isinstance(found, np.ndarray) else found
        return strip.double() if model.double else strip.clone(memory_format=torch.preserve_format)

    return read


def strips(
    graph: Graph, constants: Constants, read: Read, step: int, flow: Flow, rows: Pair
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (first output row, rows as the model returns them) for output rows [start, stop)."""
    (start, end), down = rows, flow.crop[0] - flow.keep.y
    stepper = Stepper(graph, [graph.result], constants, read, start + down, end + down)
    for y, made in stepper.run(rows_per_step(graph, step)):
        first, stop = max(y - down, start), min(y + made.shape[2] - down, end)
        if first < stop:
            yield first, made.narrow(2, first + down - y, stop - first)


def rows_of_result(windows: Windows, part: Part, flow: Flow, rows: torch.Tensor) -> Pixels:
    """What a part of the result takes of rows that the model returned, as the engine's arrays."""
    model = tensor_model(windows, part)
    output = model.output_of(rows.narrow(3, flow.crop[1], flow.keep.width))
    return part.reduced(model.array_of(output) if windows.engine.device is None else output)
