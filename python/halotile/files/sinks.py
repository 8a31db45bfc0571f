# SPDX-License-Identifier: MIT
"""Where restored rows go that are not to be in memory: .npy, zarr, image files.

A sink takes rows from the top, `write(rows)`, until all are there. It appears under its name only then: until
`open_sink` ends it is beside it under a temporary name, which an error or Ctrl-C removes.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..optional import import_zarr
from ..texts import bytes_text, quoted
from . import picture as files
from .picture import Format

__all__ = ["FORMATS", "NPY", "STACKS", "NpySink", "ZarrSink", "check_output", "held_bytes", "open_sink"]

SIDE = 2**40
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
NPY = Format("NumPy", "npy", SIDE, None, DTYPES)
ZARR = Format("Zarr", "zarr", SIDE, None, DTYPES, folder=True)
STACKS = (NPY, ZARR)  # what has room for several images
FORMATS = files.BY_SUFFIX | {".npy": NPY, ".zarr": ZARR}

CHUNK = 256  # rows and columns of a zarr array that are compressed together
ROWS_OF_CHUNKS = 4  # that wait, or are being compressed
SHARD_COLUMNS = 4096  # of a file of it, which is CHUNK rows high: so many rows wait to be written at most


def check_output(path: files.Path, shape: Sequence[int] | None = None, dtype: Any = None) -> Format:
    """Checks, before any work, that `open_sink` can write `path`; with a shape and dtype, also that they fit in it.

    Returns the Format. Raises ValueError, OSError as `files.check_output_path` does; ImportError if the library that
    writes it is not installed.
    """
    kind = files.check_output_path(path, shape, dtype, FORMATS)
    if kind is ZARR:
        import_zarr()
    elif kind is not NPY:
        files.import_pyvips()
    return kind


def held_bytes(kind: Format, shape: Sequence[int], dtype: Any) -> int:
    """What the sink for an image takes besides the rows that it is given, about."""
    if kind is NPY:
        return 0
    if kind is not ZARR:
        from . import vips_rows as streaming

        return streaming.held_bytes(kind, shape, dtype)
    rows = min(shape[0], ROWS_OF_CHUNKS * CHUNK)
    return rows * int(np.prod(shape[1:], dtype=object)) * np.dtype(dtype).itemsize


@contextmanager
def open_sink(
    path: files.Path, shape: Sequence[int], dtype: Any, *, images: int | None = None, **saved: Any
) -> Iterator[Any]:
    """A sink for an image (H, W) or (H, W, C), in the format that its suffix says.

    Args:
        images: how many of that shape come, one after the other, for a file with an axis for them (see `STACKS`); None:
            one, for a file without.
        saved: like, quality, compression, pages: as for `files.write_image`, and for image files alone.

    Raises:
        ValueError: the format cannot hold it. OSError: it cannot be written, or there is too little room; what was
            there before stays.
    """
    path = os.fspath(path)
    kind = check_output(path, shape, dtype)
    if kind is ZARR:
        with _replacing_folder(path) as folder:
            sink = ZarrSink(path, folder, shape, dtype, images)
            yield sink
            sink.close()
        return
    if kind is NPY:
        shape = shape if images is None else (images, *shape)
        _check_room(path, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
    with files.replacing(path) as descriptor:
        if kind is NPY:
            yield NpySink(path, descriptor, shape, dtype)
            return
        from .vips_rows import PictureSink

        sink = PictureSink(path, descriptor, shape, dtype, **saved)
        try:
            yield sink
            sink.close()
        finally:
            sink.abandon()


def _check_room(path: str, size: int) -> None:
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if size > free:
        needed = f"it takes {bytes_text(size, math.ceil)}, {bytes_text(free, math.floor)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed}", path)


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Errors of the system say what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error


class NpySink:
    """A .npy file, written from its start to its end; whoever opened it closes it."""

    overlaps = False

    def __init__(self, path: str, descriptor: int, shape: Sequence[int], dtype: Any):
        self.path, self.dtype = path, np.dtype(dtype)
        self.file = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, rows: np.ndarray) -> None:
        left = memoryview(np.ascontiguousarray(rows, self.dtype)).cast("B")
        with _writing(self.path):
            while left:
                left = left[self.file.write(left) :]

    def abandon(self) -> None:
        """Nothing needs to be stopped."""


class ZarrSink:
    """A zarr v3 array in a folder: chunks of 256x256 pixels, shards of 256x4096, each written once and whole.

    Rows wait in memory until a row of shards is complete. Of several images one comes after the other."""

    overlaps = True

    def __init__(self, path: str, folder: str, shape: Sequence[int], dtype: Any, images: int | None = None):
        self.path, self.height, channels = path, shape[0], tuple(shape[2:])
        columns = min(SHARD_COLUMNS, -(-shape[1] // CHUNK) * CHUNK)
        several, one, name = ((), (), ()) if images is None else ((images,), (1,), ("image",))
        self.array = import_zarr().create_array(
            store=folder,
            shape=(*several, *shape),
            dtype=np.dtype(dtype),
            chunks=(*one, CHUNK, CHUNK, *channels),
            shards=(*one, CHUNK, columns, *channels),
            dimension_names=(*name, *("y", "x", "channel")[: len(shape)]),
        )
        self.waiting = np.empty((CHUNK, *shape[1:]), dtype)
        self.held = self.written = 0  # rows; of the image in work
        self.image: tuple[int, ...] = (0,) * len(one)

    def write(self, rows: np.ndarray) -> None:
        while len(rows):
            if not self.held and len(rows) >= CHUNK:
                self._store(rows[:CHUNK])
                rows = rows[CHUNK:]
                continue
            taken = rows[: CHUNK - self.held]
            self.waiting[self.held : self.held + len(taken)] = taken
            self.held += len(taken)
            rows = rows[len(taken) :]
            if self.held == CHUNK or self.written + self.held == self.height:
                self.close()

    def close(self) -> None:
        """Writes the rows that wait."""
        if self.held:
            self._store(self.waiting[: self.held])
            self.held = 0

    def _store(self, rows: np.ndarray) -> None:
        with _writing(self.path):
            self.array[(*self.image, slice(self.written, self.written + len(rows)))] = rows
        self.written += len(rows)
        if self.written == self.height:
            self.image, self.written = tuple(index + 1 for index in self.image), 0

    def abandon(self) -> None:
        """Nothing needs to be stopped."""


@contextmanager
def _replacing_folder(path: str) -> Iterator[str]:
    """A new folder, which takes the place of `path` if the body ends well and disappears if not."""
    target = os.path.realpath(path)
    name = os.path.join(os.path.dirname(target), f".halotile-{secrets.token_hex(8)}.tmp")
    before = f"{name}.before"
    try:
        os.mkdir(name)
        yield name
        if os.path.lexists(target):  # no system puts one folder in another's place
            os.rename(target, before)
        try:
            os.rename(name, target)
        except BaseException:
            if os.path.lexists(before):
                os.rename(before, target)
            raise
    finally:
        shutil.rmtree(name, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
