# SPDX-License-Identifier: MIT
"""A sink that reduces rows when they are finished, and hands on what is left of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..engine.device_lock import turn
from ..images.image import check_output_dtype
from ..images.nodata import check_nodata
from ..optional import torch_if_loaded
from .prepared import Prepared, Sink
from .reduction import Reduction

__all__ = ["reducing", "with_reduction"]


def with_reduction(prepared: Prepared) -> Prepared:
    """The run, with what reduce= makes of its rows. Raises ValueError if the result cannot be held."""
    how, asked, image = prepared.options.reduce, prepared.options.out_dtype, prepared.image
    if how is None:
        return prepared
    if asked is not None:
        check_output_dtype(image, asked)
    if callable(how):
        found = Reduction.tried(how, image.device is not None, prepared.channels, asked)
    else:
        found = Reduction.labels(prepared.channels, asked)
        if image.nodata is not None and 0 <= image.nodata.value < prepared.channels:
            text = f"nodata must be no label, from 0 to {prepared.channels - 1}, with reduce={how!r}"
            raise ValueError(f"{text}, not {image.nodata.value:g}")
    check_nodata(image, found.dtype)
    return replace(prepared, reduction=found)


def reducing(sink: Sink, prepared: Prepared) -> Sink:
    return sink if prepared.reduction is None else Reducing(sink, prepared, prepared.reduction)


class Reducing:
    """Another sink's rows, made of the model's when these are finished: only those of the bands in progress are held.

    On a device rows stay there until they are reduced.
    """

    def __init__(self, sink: Sink, prepared: Prepared, reduction: Reduction):
        self.sink, self.reduction, self.keeps = sink, reduction, sink.keeps
        self.device, self.channels = prepared.windows.engine.device, prepared.channels
        self.width = prepared.plan.output_size[1]
        self.made: dict[int, Any] = {}  # buffers, by first row
        self.free: list[Any] = []

    def finished(self, index: int) -> int:
        return self.sink.finished(index)

    def rows(self, index: int, start: int, stop: int) -> Any:
        """Discards unfinished rows from `start` on, left by an out-of-memory fallback."""
        for begun in [first for first in self.made if first >= start]:
            self.free.append(self.made.pop(begun))
        buffer = self.free.pop() if self.free else None
        if buffer is None or buffer.shape[1] < stop - start:
            buffer = None  # before another one is made
            buffer = self._new(stop - start)
        self.made[start] = buffer
        return buffer[:, : stop - start]

    def _new(self, rows: int) -> Any:
        shape = (self.channels, rows, self.width)
        if self.device is None:
            return np.empty(shape, np.float32)
        torch = torch_if_loaded()
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def done(self, index: int, start: int, stop: int) -> None:
        buffer, target = self.made.pop(start), self.sink.rows(index, start, stop)
        with turn(self.device):
            self.reduction.put(buffer[:, : stop - start], target)
        self.free.append(buffer)
        self.sink.done(index, start, stop)
