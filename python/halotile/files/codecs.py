# SPDX-License-Identifier: MIT
"""How libvips' codecs for PNG, JPEG, WebP and TIFF differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .previews import kind_of
from .tiff_tags import TIFF_MAGIC

__all__ = ["CODECS", "JPEG", "PNG", "TIFF", "WEBP", "Codec", "check_options", "page_options", "recognised"]

SMALL_JPEG_BYTES = 2**26  # of pixels; to optimise its Huffman tables, libjpeg holds four times as much
CLASSIC_TIFF_BYTES = 2**32 - 2**26  # of pixels; offsets have 32 bits, and deflate and metadata may add a little

Options = dict[str, int | str | bool]  # keyword arguments of libvips' writers


@dataclass(frozen=True, eq=False)
class Codec:
    """What libvips does for one kind of image file.

    Attributes:
        name: in errors.
        vips: what libvips' functions for it begin with, as in `pngload_source`.
        start: matches the first bytes of its files.
        options: the writer's keyword arguments, from (bytes of pixels, dtype, quality, compression).
        unwritten: metadata that libvips 8.18 does not write, or writes a quarter of: field name and label.
        unread: metadata fields that it does not read completely.
        deep: whether 16 bits are stored; if not, they are rounded to 8.
        grey: whether grey is stored as such; if not, as RGB.
        pages: whether one file may hold several.
        held: what the writer allocates beyond a few rows, from bytes of pixels; as measured.
    """

    name: str
    vips: str
    start: re.Pattern[bytes]
    options: Callable[[int, np.dtype, int, int], Options]
    unwritten: tuple[tuple[str, str], ...] = ()
    unread: tuple[str, ...] = ()
    deep: bool = True
    grey: bool = True
    pages: bool = False
    held: Callable[[int], int] = lambda size: 0


def _png_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    return {"compression": compression, "filter": "up"}  # photos take half of what libvips' default, no filter, does


def _jpeg_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    return {"Q": quality, "optimize_coding": size <= SMALL_JPEG_BYTES}


def _webp_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    return {"Q": quality, "lossless": quality == 100, "exact": True}


def _tiff_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    options: Options = {"bigtiff": size > CLASSIC_TIFF_BYTES}
    if compression:
        predictor = "float" if dtype.kind == "f" else "horizontal"
        options |= {"compression": "deflate", "level": compression, "predictor": predictor}
    return options


IPTC, EXIF = ("iptc-data", "IPTC"), ("exif-data", "EXIF")

PNG = Codec("PNG", "png", re.compile(rb"\x89PNG\r\n\x1a\n"), _png_options, unwritten=(IPTC,))
JPEG = Codec(
    "JPEG",
    "jpeg",
    re.compile(rb"\xff\xd8\xff"),
    _jpeg_options,
    deep=False,
    held=lambda size: 5 * size if size <= SMALL_JPEG_BYTES else 0,
)
WEBP = Codec(
    "WebP",
    "webp",
    re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    _webp_options,
    unwritten=(IPTC,),
    deep=False,
    grey=False,
    held=lambda size: 10 * size,
)
TIFF = Codec(
    "TIFF",
    "tiff",
    re.compile(b"|".join(map(re.escape, TIFF_MAGIC))),
    _tiff_options,
    unwritten=(EXIF, IPTC),
    unread=("iptc-data",),
    pages=True,
)
CODECS = (PNG, JPEG, WEBP, TIFF)


def recognised(start: bytes, path: str) -> Codec:
    """The codec of a file, by its first 12 bytes. Raises ValueError where there is none."""
    codec = next((one for one in CODECS if one.start.match(start)), None)
    if codec is not None:
        return codec
    other = kind_of(start)
    what = "it is empty" if not start else f"it starts with {start[:12]!r}"
    if other is not None:
        what = f"it is {other}: convert it first, into PNG or TIFF"
    elif start.startswith(b"\x93NUMPY"):
        what = "it is a NumPy array: its name must end in .npy"
    raise ValueError(f"{path}: not a PNG, JPEG, WebP or TIFF file ({what})")


def check_options(quality: int, compression: int) -> None:
    """Raises ValueError where one is out of range."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality!r}; must be 1 to 100")
    if not 0 <= compression <= 9:
        raise ValueError(f"compression={compression!r}; must be 0 to 9")


def page_options(path: str, codec: Codec, rows: int, pages: int) -> Options:
    """The writer's keyword arguments that cut the rows into pages of one height. Raises ValueError."""
    if pages == 1:
        return {}
    if not codec.pages:
        raise ValueError(f"{path}: {codec.name} holds one page, not {pages}; use TIFF")
    if pages < 1 or rows % pages:
        raise ValueError(f"pages={pages!r}; must be 1, or a number that divides the {rows} rows")
    return {"page_height": rows // pages}
