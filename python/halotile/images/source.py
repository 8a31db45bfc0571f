# SPDX-License-Identifier: MIT
"""Images read by rows; only the rows of the current windows are buffered.

NumPy arrays, tensors and memory maps are used in place, except memory maps in foreign byte order, whose rows are
converted.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..texts import named
from .lazy import lazy_array

__all__ = ["ArraySource", "HeldRows", "Source", "as_source", "image_shape", "in_order"]

MARGIN = 4  # the buffer is a quarter larger than requested, because windows differ in height


class Source:
    """An image on disk or elsewhere, or several of one size. Subclasses set shape and dtype, and implement `read`.

    Attributes:
        shape: of the whole, in the order of its axes.
        dtype: of its rows, in native byte order.
        step: reads are fastest in multiples of this many rows.
        layout: order of its axes if certain, as for image files.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    step = 1
    layout: str | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def read(self, start: int, rows: np.ndarray) -> None:
        """Fills rows, (n, W) or (n, W, C) and contiguous, with the rows from `start` on; in other layouts, with slices
        of the first axis. Calls come in any order and from any thread, one at a time. Raises ValueError or OSError."""
        raise NotImplementedError

    def laid(self, layout: str) -> Source | np.ndarray:
        """The source in a layout; an array if its rows cannot be read separately. Raises ValueError."""
        if layout not in ("HW", "HWC"):
            raise ValueError(f"layout must be 'HW' or 'HWC' for an image that is read by rows, not {layout!r}")
        return self

    def single(self, layout: str, index: int) -> Source:
        """One image, (H, W) or (H, W, C), in a layout for which `laid` returned a source."""
        return self

    def whole(self) -> np.ndarray:
        rows = np.empty(self.shape, self.dtype)
        self.read(0, rows)
        return rows


class ArraySource(Source):
    """Rows of an object that slices like an array: a zarr array, a memory map in foreign byte order.

    Args:
        chunks: elements stored together along each axis, if chunked.
        name: for errors.
        layout: order of its axes, if certain.
    """

    def __init__(
        self, array: Any, chunks: tuple[int, ...] | None = None, name: str = "the image", layout: str | None = None
    ):
        self.layout = layout
        self.array, self.chunks, self.name = array, chunks or (1,) * array.ndim, name
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype).newbyteorder("=")
        self.step = self.chunks[0] if self.chunks else 1

    def read(self, start: int, rows: np.ndarray) -> None:
        rows[...] = self.sliced((slice(start, start + len(rows)),))

    def laid(self, layout: str) -> Source:
        return self

    def single(self, layout: str, index: int) -> Source:
        return self if layout in ("HW", "HWC") else _ArrayImage(self, layout, index)

    def sliced(self, where: tuple[Any, ...]) -> Any:
        """A part of the array. Damage that codecs find, with errors of their own, is a ValueError with the name."""
        try:
            return self.array[where]
        except MemoryError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{self.name} cannot be read: {named(error)}") from error


class _ArrayImage(Source):
    def __init__(self, source: ArraySource, layout: str, index: int):
        self.source, self.axes, self.index = source, layout, index
        self.dtype, self.step = source.dtype, source.chunks[layout.index("H")]
        self.shape = image_shape(source.shape, layout)

    def read(self, start: int, rows: np.ndarray) -> None:
        where = {"N": self.index, "H": slice(start, start + len(rows))}
        values = np.asarray(self.source.sliced(tuple(where.get(axis, slice(None)) for axis in self.axes)))
        rows[...] = in_order(values, self.axes.replace("N", ""))


def image_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return tuple(shape[layout.index(axis)] for axis in "HWC" if axis in layout)


def in_order(values: np.ndarray, layout: str) -> np.ndarray:
    return values.transpose([layout.index(axis) for axis in "HWC" if axis in layout])


def as_source(image: Any) -> Source | None:
    """A Source for a Source, a zarr, dask or xarray array, another that has chunks, or a memory map in foreign byte
    order; else None."""
    if isinstance(image, Source):
        return image
    zarr = sys.modules.get("zarr")  # whoever passes a zarr array has imported zarr
    if zarr is not None and isinstance(image, zarr.Array):
        return ArraySource(image, image.chunks)
    if isinstance(image, np.memmap) and not image.dtype.isnative:
        return ArraySource(image)
    if not isinstance(image, np.ndarray) and (lazy := lazy_array(image)) is not None:
        array, chunks, layout = lazy
        return ArraySource(array, chunks, layout=layout)
    return None


class HeldRows:
    """The rows of a source that windows need, in a buffer that moves down the image.

    Rows shared by consecutive windows stay in the buffer, so a source is decoded once, from top to bottom.
    """

    def __init__(self, source: Source):
        self.source, self.height = source, source.shape[0]
        self.buffer = np.empty((0, *source.shape[1:]), source.dtype)
        self.start = self.stop = 0  # rows in the buffer

    def holding(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """The rows that windows over [start, stop) see, reflected at the image border: (C, rows, W), and the index of
        the first. Valid until the next call."""
        low, high = _seen(start, stop, self.height)
        if not self.start <= low < high <= self.stop:
            self._move(low, high)
        rows = self.buffer[low - self.start : high - self.start]
        return (rows.transpose(2, 0, 1) if rows.ndim == 3 else rows[np.newaxis]), low

    def bytes_for(self, rows: int) -> int:
        row = int(np.prod(self.source.shape[1:], dtype=object)) * self.source.dtype.itemsize
        wanted = min(rows + self.source.step, self.height)
        return (wanted + wanted // MARGIN) * row

    def _move(self, low: int, high: int) -> None:
        step = self.source.step
        down = low - self.start
        kept = self.buffer[down : self.stop - self.start] if down >= 0 else self.buffer[:0]
        self.start = self.stop = 0  # the buffer is empty if reading fails
        wanted = min(-(-high // step) * step, self.height) - low
        if wanted > len(self.buffer):
            self.buffer = np.empty((wanted + wanted // MARGIN, *self.source.shape[1:]), self.source.dtype)
        into, count = self.buffer[: len(kept)], down or len(kept) or 1
        for y in range(0, len(kept), count):  # in pieces: NumPy would copy overlapping memory first
            into[y : y + count] = kept[y : y + count]
        self.source.read(low + len(kept), self.buffer[len(kept) : wanted])
        self.start, self.stop = low, low + wanted


def _seen(start: int, stop: int, height: int) -> tuple[int, int]:
    """The image rows needed for rows [start, stop) of the reflected image. A range that crosses the border ends at the
    border, so that it reflects like the image."""
    low, high = max(start, 0), min(stop, height)
    if start < 0:
        low, high = 0, max(high, 1 - start)
    if stop > height:
        low, high = min(low, 2 * height - 1 - stop), height
    return max(low, 0), min(high, height)
