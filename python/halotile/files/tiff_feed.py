# SPDX-License-Identifier: MIT
"""A TIFF file that libvips reads while its rows are still being made."""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["STRIP_BYTES", "Feed"]

STRIP_BYTES = 2**20  # of a Feed; strips are at least a row
FLOATS = 3  # TIFF's sample format; 1 is unsigned


class Feed:
    """The file that libvips reads while it is made: a header, and rows that another thread hands over."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
        self.header = _tiff_header(shape, dtype)
        self.size = len(self.header) + int(np.prod(shape, dtype=object)) * dtype.itemsize
        self.position, self.given = 0, len(self.header)  # where libvips reads, and up to where it was given pixels
        self.rows = memoryview(b"")
        self.changed, self.ended = threading.Condition(), False

    def push(self, rows: np.ndarray) -> None:
        """Hands rows over, and waits until they are taken or nobody wants any more."""
        with self.changed:
            self.rows = memoryview(rows).cast("B")
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.ended or not self.rows)

    def end(self, *_: Any) -> None:
        """There are no more rows, or nobody wants any."""
        with self.changed:
            self.ended, self.rows = True, memoryview(b"")
            self.changed.notify_all()

    def seek(self, offset: int, whence: int) -> int:
        self.position = (0, self.position, self.size)[whence] + offset
        return self.position

    def read(self, count: int) -> bytes:
        """Up to count bytes; none at the end, or where libvips should not read."""
        if self.position < len(self.header):
            part = self.header[self.position : self.position + count]
        else:
            part = self._pixels(count) if self.position == self.given else b""
            self.given += len(part)
        self.position += len(part)
        return part

    def _pixels(self, count: int) -> bytes:
        with self.changed:
            self.changed.wait_for(lambda: self.ended or self.rows)
            part = b"" if self.ended else bytes(self.rows[:count])
            self.rows = self.rows[len(part) :]
            self.changed.notify_all()
        return part


def _tiff_header(shape: Sequence[int], dtype: np.dtype) -> bytes:
    """All that precedes the pixels of an uncompressed BigTIFF in strips, in native byte order."""
    height, width, channels = (*shape, 1)[:3]
    row = width * channels * dtype.itemsize
    strip = max(1, min(height, STRIP_BYTES // row))
    strips = [min(strip, height - y) * row for y in range(0, height, strip)]
    colours = 3 if channels in (3, 4) else 1
    entries = [  # tag, type, values
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [8 * dtype.itemsize] * channels),
        (259, "H", [1]),
        (262, "H", [2 if colours == 3 else 1]),
        (273, "Q", [0] * len(strips)),
        (277, "H", [channels]),
        (278, "I", [strip]),
        (279, "Q", strips),
        *([(338, "H", [0] * (channels - colours))] if channels > colours else []),
        (339, "H", [FLOATS if dtype.kind == "f" else 1] * channels),
    ]
    start = _tiff_bytes(entries, 0)
    offsets = np.cumsum([len(start), *strips[:-1]], dtype=np.uint64).tolist()
    return _tiff_bytes([(tag, kind, offsets if tag == 273 else values) for tag, kind, values in entries], len(start))


def _tiff_bytes(entries: Sequence[tuple[int, str, list[int]]], size: int) -> bytes:
    """A BigTIFF's header and directory, and the values for which the directory has no room; at least `size` long."""
    directory, rest = struct.pack("=Q", len(entries)), b""
    rest_at = 16 + 8 + 20 * len(entries) + 8
    for tag, kind, values in entries:
        packed = struct.pack(f"={len(values)}{kind}", *values)
        if len(packed) > 8:
            packed, rest = struct.pack("=Q", rest_at + len(rest)), rest + packed
        directory += struct.pack("=HHQ", tag, {"H": 3, "I": 4, "Q": 16}[kind], len(values)) + packed.ljust(8, b"\0")
    order = b"II" if sys.byteorder == "little" else b"MM"
    return (struct.pack("=2sHHHQ", order, 43, 8, 0, 16) + directory + bytes(8) + rest).ljust(size, b"\0")
