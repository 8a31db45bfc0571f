# SPDX-License-Identifier: MIT
"""Properties of libvips' codecs for PNG, JPEG, WebP, TIFF and AVIF."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .heic import reads_heic
from .previews import kind_of
from .tiff_tags import TIFF_MAGIC

__all__ = [
    "AVIF",
    "CODECS",
    "HEIC",
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
    "Codec",
    "check_options",
    "page_options",
    "recognised",
]

SMALL_JPEG_BYTES = 2**26  # of pixels; libjpeg needs four times as much memory to optimise its Huffman tables
CLASSIC_TIFF_BYTES = 2**32 - 2**26  # of pixels; offsets have 32 bits, and deflate and metadata add a little

Options = dict[str, int | str | bool]  # keyword arguments of libvips' writers


@dataclass(frozen=True, eq=False)
class Codec:
    """A format of image files and its support in libvips.

    Attributes:
        name: its name in errors.
        vips: prefix of libvips' functions for it, as in `pngload_source`.
        start: pattern for the first bytes of its files.
        options: the writer's keyword arguments, from (bytes of pixels, dtype, quality, compression).
        unwritten: metadata of which libvips 8.18 writes nothing or only a quarter: field name and label.
        unread: metadata fields that libvips does not read completely.
        deep: whether it stores 16 bits; if not, they are rounded to 8.
        grey: whether it stores grey; if not, grey becomes RGB.
        pages: whether one file may hold several pages.
        held: measured bytes that the writer allocates beyond a few rows, from bytes of pixels.
        uses: the options that its writer heeds.
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
    uses: tuple[str, ...] = ("quality",)

    @property
    def suffix(self) -> str:
        """The suffix by which libvips knows it."""
        return ".avif" if self.vips == "heif" else f".{self.vips}"


def _png_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    return {
        "compression": compression,
        "filter": "up",
    }  # halves the size of photos compared with libvips' default, no filter


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


def _avif_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    depth = 12 if dtype == np.uint16 else 8
    return {"Q": quality, "lossless": quality == 100, "compression": "av1", "bitdepth": depth, "effort": 4}


def _jxl_options(size: int, dtype: np.dtype, quality: int, compression: int) -> Options:
    return {"Q": quality, "lossless": quality == 100}


IPTC, EXIF = ("iptc-data", "IPTC"), ("exif-data", "EXIF")

PNG = Codec("PNG", "png", re.compile(rb"\x89PNG\r\n\x1a\n"), _png_options, unwritten=(IPTC,), uses=("compression",))
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
    uses=("compression",),
)
AVIF = Codec(
    "AVIF",
    "heif",
    re.compile(rb".{4}ftypavi[fs]", re.DOTALL),
    _avif_options,
    unwritten=(IPTC,),
    grey=False,
    held=lambda size: 10 * size,
)
JXL = Codec(
    "JPEG XL",
    "jxl",
    re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ", re.DOTALL),
    _jxl_options,
    unwritten=(IPTC,),
    held=lambda size: 10 * size,
)
HEIC = Codec("HEIC", "heif", re.compile(rb".{4}ftyp(hei[cxms]|hevc|mif1|msf1)", re.DOTALL), _avif_options, grey=False)
CODECS = (PNG, JPEG, WEBP, TIFF, AVIF, JXL)


def recognised(start: bytes, path: str, has: Callable[[Codec], bool] = lambda _: True) -> Codec:
    """The codec of a file, by its first 12 bytes. Raises ValueError if there is none.

    has: whether this libvips has the codec.
    """
    codec = next((one for one in CODECS if one.start.match(start) and has(one)), None)
    if codec is not None:
        return codec
    if HEIC.start.match(start) and reads_heic():
        return HEIC
    other = kind_of(start)
    what = "it is empty" if not start else f"it starts with {start[:12]!r}"
    if other is not None:
        what = f"it is {other}: convert it to PNG or TIFF first"
        what += ", or pip install 'halotile[heic]'" if other == "HEIF" else ""
    elif start.startswith(b"\x93NUMPY"):
        what = "it is a NumPy array: its name must end in .npy"
    raise ValueError(f"{path}: not a PNG, JPEG, WebP, TIFF or AVIF file ({what})")


def check_options(quality: int, compression: int) -> None:
    """Raises ValueError if one is out of range."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality!r}; must be 1 to 100")
    if not 0 <= compression <= 9:
        raise ValueError(f"compression={compression!r}; must be 0 to 9")


def page_options(path: str, codec: Codec, rows: int, pages: int) -> Options:
    """The writer's keyword arguments that split the rows into pages of equal height. Raises ValueError."""
    if pages == 1:
        return {}
    if not codec.pages:
        raise ValueError(f"{path}: {codec.name} holds one page, not {pages}; use TIFF")
    if pages < 1 or rows % pages:
        raise ValueError(f"pages={pages!r}; must be 1, or a number that divides the {rows} rows")
    return {"page_height": rows // pages}
