# SPDX-License-Identifier: MIT
"""A virtual TIFF file that libvips reads while its rows are still being computed.

libvips writers pull pixels, but a run pushes rows. So a Feed appears to libvips as an uncompressed BigTIFF of which
only a few rows exist at a time: the loader reads its strips once, in order.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Sequence

import numpy as np

__all__ = ["STRIP_BYTES", "Feed"]

STRIP_BYTES = 2**20  # a strip has at least one row
UNSIGNED, FLOATS = 1, 3  # TIFF's sample formats
SHORT, LONG, LONG8 = "H", "I", "Q"  # TIFF's types as struct codes
TYPES = {SHORT: 3, LONG: 4, LONG8: 16}  # and as TIFF codes
STRIP_OFFSETS = 273

Entry = tuple[int, str, list[int]]  # tag, type, values


class Feed:
    """Gives libvips a header, then rows that another thread pushes.

    Args:
        shape, dtype: those of the whole image.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype):
        self.header = _header(shape, dtype)
        self.size = len(self.header) + int(np.prod(shape, dtype=object)) * dtype.itemsize
        self.position = 0  # read position of libvips
        self.given = len(self.header)  # end of the delivered pixels
        self.rows = memoryview(b"")
        self.changed, self.ended = threading.Condition(), False

    def push(self, rows: np.ndarray) -> None:
        """Pushes rows, and waits until they are read or the feed ends."""
        with self.changed:
            self.rows = rows.data.cast("B")
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.ended or not self.rows)

    def end(self, *_: object) -> None:
        """Ends the feed after the last row, or when the reader stops."""
        with self.changed:
            self.ended, self.rows = True, memoryview(b"")
            self.changed.notify_all()

    def seek(self, offset: int, whence: int) -> int:
        self.position = (0, self.position, self.size)[whence] + offset
        return self.position

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end, or if pixels are not read in order."""
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


def _header(shape: Sequence[int], dtype: np.dtype) -> bytes:
    """The part before the pixels of an uncompressed BigTIFF in strips, in native byte order."""
    height, width, channels = (*shape, 1)[:3]
    row = width * channels * dtype.itemsize
    strip = max(1, min(height, STRIP_BYTES // row))
    strips = [min(strip, height - y) * row for y in range(0, height, strip)]
    colours = 3 if channels in (3, 4) else 1
    entries: list[Entry] = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [8 * dtype.itemsize] * channels),  # bits
        (259, SHORT, [1]),  # no compression
        (262, SHORT, [2 if colours == 3 else 1]),  # RGB, or black is 0
        (STRIP_OFFSETS, LONG8, [0] * len(strips)),
        (277, SHORT, [channels]),
        (278, LONG, [strip]),  # rows of a strip
        (279, LONG8, strips),  # bytes of each
        *([(338, SHORT, [0] * (channels - colours))] if channels > colours else []),  # extra samples
        (339, SHORT, [FLOATS if dtype.kind == "f" else UNSIGNED] * channels),
    ]
    start = _packed(entries, 0)
    offsets = np.cumsum([len(start), *strips[:-1]], dtype=np.uint64).tolist()
    located = [(tag, kind, offsets if tag == STRIP_OFFSETS else values) for tag, kind, values in entries]
    return _packed(located, len(start))


def _packed(entries: Sequence[Entry], size: int) -> bytes:
    """A BigTIFF's header, directory, and values too long for the directory; at least `size` bytes."""
    directory, rest = struct.pack("=Q", len(entries)), b""
    rest_at = 16 + 8 + 20 * len(entries) + 8
    for tag, kind, values in entries:
        packed = struct.pack(f"={len(values)}{kind}", *values)
        if len(packed) > 8:
            packed, rest = struct.pack("=Q", rest_at + len(rest)), rest + packed
        directory += struct.pack("=HHQ", tag, TYPES[kind], len(values)) + packed.ljust(8, b"\0")
    order = b"II" if sys.byteorder == "little" else b"MM"
    return (struct.pack("=2sHHHQ", order, 43, 8, 0, 16) + directory + bytes(8) + rest).ljust(size, b"\0")
