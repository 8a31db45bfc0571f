# SPDX-License-Identifier: MIT
"""Streams .npy files by rows."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from ..images.source import Source, image_shape, in_order
from ..texts import bytes_text, quoted
from . import disk
from .atomic import Draft, replacing, writing

__all__ = ["NpySink", "NpySource", "held_bytes", "open_sink"]


LONGEST_HEADER = 10_000  # bytes: NumPy's own limit, which it checks after reading

# ---- reading ---------------------------------------------------------------------------------------------------------


class NpySource(Source):
    """A .npy file in C order. It is read, not mapped, so that its pages do not count as memory of the process. Raises
    ValueError if it is not such a file or is truncated."""

    def __init__(self, path: str):
        self.path, self.file = path, open(path, "rb", buffering=0)  # noqa: SIM115
        try:
            self.shape, self.fortran, stored = _npy_header(self.file)
        except Exception as error:  # NumPy parses the header as Python, with errors of its tokeniser and parser
            raise ValueError(f"{path}: not a readable .npy file: {quoted(error)}") from error
        self.dtype, self.foreign = stored.newbyteorder("="), not stored.isnative
        self.offset = self.file.tell()
        wanted = self.offset + int(np.prod(self.shape, dtype=object)) * stored.itemsize
        if os.fstat(self.file.fileno()).st_size < wanted:
            raise ValueError(f"{path}: was cut short: it should have {wanted} bytes")

    def read(self, start: int, rows: np.ndarray) -> None:
        self.read_at(self.offset + start * rows[0].nbytes, rows)

    def read_at(self, offset: int, values: np.ndarray) -> None:
        """Fills contiguous values with the bytes of the file from `offset` on. Raises ValueError at its end."""
        self.file.seek(offset)
        left = values.data.cast("B")
        while left:
            count = self.file.readinto(left)
            if not count:
                raise ValueError(f"{self.path}: was cut short while it was read")
            left = left[count:]
        if self.foreign:
            values.byteswap(inplace=True)

    def laid(self, layout: str) -> Source | np.ndarray:
        """The file itself if the rows of an image, or of each of its channels, are contiguous; else a memory map."""
        below_rows = layout[layout.index("H") + 1 :]
        if "W" in below_rows and "N" not in below_rows and not self.fortran:
            return self
        return np.load(self.path, mmap_mode="r")

    def single(self, layout: str, index: int) -> Source:
        return self if layout in ("HW", "HWC") else _NpyImage(self, layout, index)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file)
    else:
        length = int.from_bytes(file.read(4), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header has {length} bytes")
        file.seek(-4, os.SEEK_CUR)
        header = np.lib.format.read_array_header_2_0(file)
    if min(header[0], default=0) < 0:
        raise ValueError(f"its shape is {header[0]}")
    return header


class _NpyImage(Source):
    """One image of a .npy file, in a layout for which `NpySource.laid` returned the file itself."""

    def __init__(self, file: NpySource, layout: str, index: int):
        self.file, self.axes, self.index = file, layout, index
        self.dtype = file.dtype
        self.shape = image_shape(file.shape, layout)

    def read(self, start: int, rows: np.ndarray) -> None:
        at = self.axes.index("H")
        below = self.file.shape[at + 1 :]
        if "C" not in self.axes[:at]:
            values = rows if self.axes[at:] in ("HW", "HWC") else np.empty((len(rows), *below), self.dtype)
            self._read_rows(start, 0, values)
            if values is not rows:
                rows[...] = in_order(values, self.axes[at:])
            return
        values = np.empty((len(rows), *below), self.dtype)
        for channel in range(rows.shape[2]):
            self._read_rows(start, channel, values)
            rows[..., channel] = values

    def _read_rows(self, start: int, channel: int, values: np.ndarray) -> None:
        place = {"N": self.index, "C": channel, "H": start}
        element = 0
        for axis, side in zip(self.axes, self.file.shape, strict=True):
            if axis == "H":
                break
            element = element * side + place[axis]
        element = element * self.file.shape[self.axes.index("H")] + start
        self.file.read_at(self.file.offset + element * values[0].nbytes, values)


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_sink(
    path: str, shape: Sequence[int], dtype: DTypeLike, *, images: int | None = None, **_: object
) -> Iterator[NpySink]:
    """Raises OSError if disk space is too small, and leaves the old file in place."""
    shape = tuple(shape) if images is None else (images, *shape)
    _check_room(path, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
    with replacing(path) as draft:
        yield NpySink(draft, shape, dtype)


def held_bytes(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Bytes that a sink allocates: none."""
    return 0


def _check_room(path: str, size: int) -> None:
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(path))).free
    if size > free:
        needed = f"it takes {bytes_text(size, math.ceil)}, {bytes_text(free, math.floor)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed}", path)


class NpySink:
    """Writes a .npy file from start to end. The caller closes the draft."""

    overlaps = False

    def __init__(self, draft: Draft, shape: Sequence[int], dtype: DTypeLike):
        self.draft, self.dtype = draft, np.dtype(dtype)
        self.file = open(draft.descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.written = self.file.tell()
        self.size = self.written + int(np.prod(shape, dtype=object)) * self.dtype.itemsize

    def write(self, rows: np.ndarray) -> None:
        self.draft.check()
        left = np.ascontiguousarray(rows, self.dtype).data.cast("B")
        self.written += len(left)
        with writing(self.draft.path):
            disk.write(self.draft.descriptor, left)

    def close(self) -> None:
        """Checks that all rows are there."""
        found = os.fstat(self.draft.descriptor).st_size
        if not self.written == found == self.size:
            text = (
                f"cannot be written: it should have {self.size} bytes, {self.written} were written, {found} are there"
            )
            raise OSError(errno.EIO, text, self.draft.path)

    def abandon(self) -> None:
        """Does nothing: there is no background work."""
