# SPDX-License-Identifier: MIT
"""In-memory sinks: the whole result, or new rows for an iterator."""

from __future__ import annotations

from typing import Any

from ..engine.device_lock import turn
from ..images.image import Image, delivered, new_image, open_output
from . import kept_heap
from .prepared import Prepared

__all__ = ["ArraySink", "NewRows"]


class ArraySink:
    """The whole result: the user's ``out``, or a new array or tensor of the image's type."""

    keeps = False

    def __init__(self, asked: Any):
        self.asked = asked
        self.prepared: Prepared | None = None
        self.result: Image | None = None

    def opened(self, prepared: Prepared) -> ArraySink:
        """Called when the size of the result is known. The result outlives the run, so it bypasses the kept heap."""
        source, engine, size = prepared.image, prepared.windows.engine, prepared.plan.output_size
        made = prepared.made
        with turn(engine.device), kept_heap.aside():
            if self.asked is None:
                result = new_image(source, made.channels, size, made.dtype, engine.device, made.flat)
            else:
                result = open_output(self.asked, source, made.channels, size, engine.device, made.flat)
        self.prepared, self.result, self.pixels = prepared, result, engine.pixels_of(result)
        return self

    def finished(self, index: int) -> int:
        return 0

    def rows(self, index: int, start: int, stop: int) -> Any:
        return self.pixels[index][:, start:stop]

    def done(self, index: int, start: int, stop: int) -> None:
        """Does nothing: rows are written in place."""

    @property
    def original(self) -> Any:
        """The array or tensor that rows are written to, if it is on the run's device; ``out`` before the result is
        opened."""
        return self.asked if self.result is None else self.result.original

    def delivered(self) -> Any:
        """The result for the user; None before it is opened."""
        if self.prepared is None or self.result is None:
            return None
        with turn(self.prepared.windows.engine.device):
            return delivered(self.result, self.prepared.image, self.asked)


class NewRows:
    """New arrays or tensors for the rows of one image, taken by the caller when finished."""

    keeps = False

    def __init__(self) -> None:
        self.made: dict[int, Image] = {}

    def opened(self, prepared: Prepared) -> NewRows:
        self.prepared = prepared
        return self

    def finished(self, index: int) -> int:
        return 0

    def rows(self, index: int, start: int, stop: int) -> Any:
        prepared, engine, made = self.prepared, self.prepared.windows.engine, self.prepared.made
        size = stop - start, prepared.plan.output_size[1]
        self.made[start] = new_image(prepared.image, made.channels, size, made.dtype, engine.device, made.flat)
        return engine.pixels_of(self.made[start])[0]

    def done(self, index: int, start: int, stop: int) -> None:
        """Does nothing: rows wait for `taken`."""

    def taken(self, start: int) -> Any:
        with turn(self.prepared.windows.engine.device):
            return delivered(self.made.pop(start), self.prepared.image, None)
