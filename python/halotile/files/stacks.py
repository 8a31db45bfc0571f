# SPDX-License-Identifier: MIT
"""Reads stacks whose images lie one after the other under a single TIFF directory, as ImageJ writes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from .previews import BITS, COMPRESSION, HEIGHT, PHOTOMETRIC, SAMPLES, WIDTH
from .tiff_tags import Directory, ReadAt, directories

if TYPE_CHECKING:
    import pyvips

__all__ = ["Stack", "stack_of_tiff"]

STRIP_OFFSETS, STRIP_BYTES, PLANAR, SAMPLE_FORMAT = 273, 279, 284, 339
UNCOMPRESSED, BLACK_IS_ZERO, RGB = 1, 1, 2
FORMATS = {(8, 1): "uchar", (16, 1): "ushort", (32, 3): "float"}  # libvips' name by bits and TIFF's sample format
KEPT = ("image-description", "resolution-unit", "icc-profile-data", "xmp-data")


@dataclass(frozen=True)
class Stack:
    """Attributes:
    count: number of images.
    offset: of the first one's pixels; the others follow without gaps.
    size: of each, bytes.
    swapped: whether the byte order is foreign.
    """

    count: int
    offset: int
    size: int
    swapped: bool

    def page(self, path: str, index: int, first: pyvips.Image, vips: ModuleType) -> pyvips.Image:
        """Image `index`, with the metadata of the first one as libvips loaded it."""
        start = self.offset + index * self.size  # libvips' own reader of raw pixels remembers files by their names
        pixels = np.memmap(path, np.uint8, "r", start, (self.size,))
        sizes = first.width, first.height, first.bands, first.format
        image = vips.Image.new_from_memory(pixels.data, *sizes)
        image = image.copy(interpretation=first.interpretation)
        image = (image.byteswap() if self.swapped else image).copy(xres=first.xres, yres=first.yres)
        for name in KEPT:
            if first.get_typeof(name):
                image.set_type(first.get_typeof(name), name, first.get(name))
        image.set_type(vips.GValue.gint_type, "n-pages", self.count)
        return image


def stack_of_tiff(read_at: ReadAt, count: int) -> Stack | None:
    """How to read the `count` images under a file's first directory; None if they do not lie there as plain pixels."""
    first = next(iter(directories(read_at, most=1)), Directory())
    bits, sides = first.number(BITS), first.number(WIDTH) * first.number(HEIGHT)
    samples = max(1, first.number(SAMPLES))
    plain = first.number(COMPRESSION) == UNCOMPRESSED and first.number(PHOTOMETRIC) in (BLACK_IS_ZERO, RGB)
    planar = samples > 1 and first.number(PLANAR) == 2
    if not plain or planar or (bits, first.number(SAMPLE_FORMAT) or 1) not in FORMATS:
        return None
    size = sides * samples * bits // 8
    offset = first.number(STRIP_OFFSETS)
    if not size or not offset or not _without_gaps(first) or not read_at(offset + count * size - 1, 1):
        return None
    little = read_at(0, 2) == b"II"
    return Stack(count, offset, size, bits > 8 and little != (sys.byteorder == "little"))


def _without_gaps(first: Directory) -> bool:
    offsets, sizes = first.numbers.get(STRIP_OFFSETS, ()), first.numbers.get(STRIP_BYTES, ())
    return all(a + size == b for a, b, size in zip(offsets, offsets[1:], sizes, strict=False))
