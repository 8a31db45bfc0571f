# SPDX-License-Identifier: MIT
"""What libvips' codecs do differently: how a file begins, what may be asked of its writer, what it drops."""

from __future__ import annotations

from typing import Any

import numpy as np

from .formats import JPEG, PNG, TIFF, WEBP, Format
from .previews import kind_of
from .tiff_tags import TIFF_MAGIC

__all__ = ["SMALL_JPEG_BYTES", "UNKEPT", "page_options", "recognised", "save_options"]

SMALL_JPEG_BYTES = 2**26  # of pixels; libjpeg holds four times as much to find the tables that suit an image best
CLASSIC_TIFF_BYTES = 2**32 - 2**26  # offsets in a classic TIFF have 32 bits; deflate may add a little, metadata too

UNKEPT = {  # what libvips 8.18 does not write, or writes a quarter of
    "PNG": {"iptc-data": "IPTC"},
    "JPEG": {},
    "WebP": {"iptc-data": "IPTC"},
    "TIFF": {"exif-data": "EXIF", "iptc-data": "IPTC"},
}


def recognised(start: bytes, path: str) -> Format:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if start.startswith(b"\xff\xd8\xff"):
        return JPEG
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WEBP
    if start.startswith(TIFF_MAGIC):
        return TIFF
    other = kind_of(start)
    what = "it is empty" if not start else f"it starts with {start[:12]!r}"
    if other is not None:
        what = f"it is {other}: convert it first, into PNG or TIFF"
    elif start.startswith(b"\x93NUMPY"):
        what = "it is a NumPy array: its name must end in .npy"
    raise ValueError(f"{path}: not a PNG, JPEG, WebP or TIFF file ({what})")


def save_options(kind: Format, size: int, dtype: Any, quality: int, compression: int) -> dict[str, Any]:
    """libvips' options for a file of so many bytes of pixels. Tables of its own for a JPEG need all of it in memory."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality!r}; must be 1 to 100")
    if not 0 <= compression <= 9:
        raise ValueError(f"compression={compression!r}; must be 0 to 9")
    if kind is JPEG:
        return {"Q": quality, "optimize_coding": size <= SMALL_JPEG_BYTES}
    if kind is WEBP:
        return {"Q": quality, "lossless": quality == 100, "exact": True}
    if kind is PNG:
        return {"compression": compression, "filter": "up"}  # photos: half the size of libvips' default, no filter
    predictor = "float" if np.dtype(dtype).kind == "f" else "horizontal"
    method = {"compression": "deflate", "level": compression, "predictor": predictor} if compression else {}
    return method | {"bigtiff": size > CLASSIC_TIFF_BYTES}


def page_options(path: str, kind: Format, rows: int, pages: int) -> dict[str, Any]:
    if pages == 1:
        return {}
    if kind is not TIFF:
        raise ValueError(f"{path}: {kind.name} holds one page, not {pages}; use TIFF")
    if pages < 1 or rows % pages:
        raise ValueError(f"pages={pages!r}; must be 1, or a number that divides the {rows} rows")
    return {"page_height": rows // pages}
