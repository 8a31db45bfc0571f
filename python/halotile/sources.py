# SPDX-License-Identifier: MIT
"""Images that are read by rows: of each no more is held than the windows in work need.

NumPy arrays and tensors are not among them: they are where they are. A memory map is an array; its pages come and go as
the system likes. But one in foreign byte order is read by rows, which are converted.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from .texts import quoted

__all__ = ["ArraySource", "HeldRows", "NpySource", "Source", "as_source", "file_of", "import_zarr", "open_source"]

MARGIN = 4  # a buffer has room for one in so many rows more than were asked for: not all windows take as many


class Source:
    """An image on disk, or far away.

    Attributes:
        shape: (H, W) or (H, W, C).
        dtype: of its rows, in native byte order.
        step: rows that are best read together, from multiples of it on.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    step = 1

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def read(self, start: int, rows: np.ndarray) -> None:
        """Fills rows, (n, W) or (n, W, C) and contiguous, with the image's from `start` on; any order, from any thread,
        one at a time. Raises ValueError or OSError."""
        raise NotImplementedError

    def whole(self) -> np.ndarray:
        rows = np.empty(self.shape, self.dtype)
        self.read(0, rows)
        return rows


class NpySource(Source):
    """A .npy file in C order, read and not mapped: what was read counts as this process's memory no longer.

    Raises ValueError if it is none, or is cut short."""

    def __init__(self, path: str):
        self.path, self.file = path, open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            self.shape, self.fortran, stored = _npy_header(self.file)
        except ValueError as error:
            raise ValueError(f"{path}: not a readable .npy file: {quoted(error)}") from error
        self.dtype, self.foreign = stored.newbyteorder("="), not stored.isnative
        self.offset = self.file.tell()
        wanted = self.offset + int(np.prod(self.shape, dtype=object)) * stored.itemsize
        if os.fstat(self.file.fileno()).st_size < wanted:
            raise ValueError(f"{path}: was cut short: it should have {wanted} bytes")

    def read(self, start: int, rows: np.ndarray) -> None:
        self.file.seek(self.offset + start * rows[0].nbytes)
        left = memoryview(rows).cast("B")
        while left:
            count = self.file.readinto(left)
            if not count:
                raise ValueError(f"{self.path}: was cut short while it was read")
            left = left[count:]
        if self.foreign:
            rows.byteswap(inplace=True)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


class ArraySource(Source):
    """What gives rows as arrays do: a memory map in foreign byte order, a zarr array (by rows of its chunks)."""

    def __init__(self, array: Any, step: int = 1):
        self.array, self.step = array, step
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype).newbyteorder("=")

    def read(self, start: int, rows: np.ndarray) -> None:
        rows[...] = self.array[start : start + len(rows)]


def as_source(image: Any, layout: str | None = None) -> Source | None:
    """What is to be read by rows: a Source, zarr array, or memory map in foreign byte order; None for anything else."""
    if isinstance(image, Source):
        return image
    zarr = sys.modules.get("zarr")  # nobody holds an array of it without
    if zarr is not None and isinstance(image, zarr.Array):
        return ArraySource(image, image.chunks[0] if image.ndim else 1)
    if isinstance(image, np.memmap) and not image.dtype.isnative and _has_rows(image.ndim, layout):
        return ArraySource(image)
    return None


def _has_rows(sides: int, layout: str | None) -> bool:
    return sides in (2, 3) and layout in (None, "HW", "HWC")


def open_source(path: str, layout: str | None, max_pixels: int | None) -> Any:
    """The image in a .npy file, a zarr array's folder or an image file: a Source, or a memory map of a .npy file that
    rows cannot be read of.

    Raises:
        OSError: it cannot be opened. ValueError: it is no image. ImportError: what reads it is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npy":
        source = NpySource(path)
        by_rows = _has_rows(source.ndim, layout) and not source.fortran
        return source if by_rows else np.load(path, mmap_mode="r")
    if suffix == ".zarr" or os.path.isdir(path):
        return as_source(_opened_zarr(path))
    from .streaming import PictureSource

    return PictureSource(path, max_pixels=max_pixels)


def _opened_zarr(path: str) -> Any:
    zarr = import_zarr()
    if not os.path.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    try:
        return zarr.open_array(path, mode="r")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path}: not a readable zarr array: {quoted(error)}") from error


def import_zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"zarr arrays need zarr: pip install 'halotile[zarr]' ({quoted(error)})") from error
    return zarr


def file_of(image: Any) -> str | None:
    """The path that an image comes from, where that is known."""
    if isinstance(image, ArraySource):
        image = image.array
    if hasattr(image, "store"):
        root = getattr(image.store, "root", None)
        return None if root is None else os.path.join(root, image.path)
    while isinstance(image, np.ndarray) and not isinstance(image, np.memmap):
        image = image.base
    name = getattr(image, "path", None) or getattr(image, "filename", None)
    return None if name is None else os.fspath(name)


class HeldRows:
    """The rows of a source that windows need, in a buffer that moves down the image.

    What the next windows share with the last is not read again, so a source is decoded once, from top to bottom.
    """

    def __init__(self, source: Source):
        self.source, self.height = source, source.shape[0]
        self.buffer = np.empty((0, *source.shape[1:]), source.dtype)
        self.start = self.stop = 0  # rows held

    def holding(self, start: int, stop: int) -> tuple[np.ndarray, int]:
        """What windows over rows [start, stop) see, mirrored where they leave the image: (C, rows, W), and which row
        of the image is the first. Valid until the next call."""
        low, high = _seen(start, stop, self.height)
        if not self.start <= low < high <= self.stop:
            self._move(low, high)
        rows = self.buffer[low - self.start : high - self.start]
        return (rows.transpose(2, 0, 1) if rows.ndim == 3 else rows[np.newaxis]), low

    def bytes_for(self, rows: int) -> int:
        """What it takes to hold so many rows, and to move on."""
        row = int(np.prod(self.source.shape[1:], dtype=object)) * self.source.dtype.itemsize
        wanted = min(rows + self.source.step, self.height)
        return (wanted + wanted // MARGIN) * row

    def _move(self, low: int, high: int) -> None:
        step = self.source.step
        down = low - self.start
        kept = self.buffer[down : self.stop - self.start] if down >= 0 else self.buffer[:0]
        self.start = self.stop = 0  # nothing, should reading fail
        wanted = min(-(-high // step) * step, self.height) - low
        if wanted > len(self.buffer):
            self.buffer = np.empty((wanted + wanted // MARGIN, *self.source.shape[1:]), self.source.dtype)
        into, count = self.buffer[: len(kept)], down or len(kept) or 1
        for y in range(0, len(kept), count):  # where both overlap, NumPy would copy them first
            into[y : y + count] = kept[y : y + count]
        self.source.read(low + len(kept), self.buffer[len(kept) : wanted])
        self.start, self.stop = low, low + wanted


def _seen(start: int, stop: int, height: int) -> tuple[int, int]:
    """Rows of the image that rows [start, stop) of the mirrored one need, up to the edge where they pass it: there
    these rows mirror as the image does."""
    low, high = max(start, 0), min(stop, height)
    if start < 0:
        low, high = 0, max(high, 1 - start)
    if stop > height:
        low, high = min(low, 2 * height - 1 - stop), height
    return max(low, 0), min(high, height)
