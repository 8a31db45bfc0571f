# SPDX-License-Identifier: MIT
"""Metadata of image files: read with the pixels, kept when they are written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .codecs import UNKEPT
from .formats import TIFF, WEBP, Format

__all__ = ["Picture", "picture_of", "with_metadata"]

MAX_RES = 1e6  # pixels per millimetre, libvips' own limit; damaged files claim more
METADATA = ("icc-profile-data", "exif-", "xmp-data", "iptc-data", "png-comment-", "resolution-unit")


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    pixels: (H, W) for one channel, else (H, W, C); uint8, uint16 or float32, upright.
    metadata: libvips header fields (ICC, EXIF, XMP, IPTC, PNG text) by name; bytes for blobs, str for the rest.
    resolution: horizontal and vertical, in pixels per millimetre.
    """

    pixels: np.ndarray
    metadata: Mapping[str, bytes | str] = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)


def picture_of(image: Any, kind: Format, pixels: np.ndarray) -> Picture:
    """Pixels with the metadata of the libvips image that they are of."""
    return Picture(pixels, _metadata(image, kind), (min(image.xres, MAX_RES), min(image.yres, MAX_RES)))


def _metadata(image: Any, kind: Format) -> dict[str, bytes | str]:
    """The fields to keep. EXIF is both a blob and one text field per entry; libvips writes what both of them hold."""
    names = [name for name in image.get_fields() if name.startswith(METADATA)]
    if kind is TIFF:
        names = [name for name in names if name != "iptc-data"]  # libvips 8.18 reads a quarter of it
    fields = {}
    for name in names:
        with suppress(UnicodeDecodeError):  # damaged text
            fields[name] = image.get(name)
    return fields


def with_metadata(pyvips: Any, image: Any, like: Picture | None, kind: Format, path: str) -> Any:
    """The image with like's metadata, less what libvips cannot or will not store, such as a damaged profile."""
    if like is None:
        return image
    fields = dict(like.metadata)
    if not _profile_fits(fields.get("icc-profile-data", b""), image.bands, kind):
        fields.pop("icc-profile-data", None)
    lost = [label for name, label in UNKEPT[kind.name].items() if fields.pop(name, None) is not None]
    if lost:
        warnings.warn(f"{path}: libvips cannot write this into {kind.name}: {', '.join(lost)}", stacklevel=3)
    if not _can_store(pyvips, image, fields, kind):
        refused = [name for name, value in fields.items() if not _can_store(pyvips, image, {name: value}, kind)]
        warnings.warn(f"{path}: damaged metadata of the input is not kept: {', '.join(refused)}", stacklevel=3)
        fields = {name: value for name, value in fields.items() if name not in refused}
    xres, yres = like.resolution
    return _set_fields(pyvips, image.copy(xres=xres, yres=yres), fields)


def _set_fields(pyvips: Any, image: Any, fields: Mapping[str, bytes | str]) -> Any:
    for name, value in fields.items():
        kind = pyvips.GValue.gstr_type if isinstance(value, str) else pyvips.GValue.blob_type
        image.set_type(kind, name, value)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # the EXIF blob still holds the one that was applied
    return image


def _can_store(pyvips: Any, image: Any, fields: Mapping[str, bytes | str], kind: Format) -> bool:
    """Tries the fields on one black pixel, since libvips finds out only while it writes."""
    black = pyvips.Image.black(1, 1, bands=image.bands).cast(image.format)
    pixel = _set_fields(pyvips, black.copy(interpretation=image.interpretation), fields)
    try:
        pixel.write_to_buffer(f".{kind.codec}")
    except pyvips.Error:
        return False
    return True


def _profile_fits(profile: Any, bands: int, kind: Format) -> bool:
    """Whether an ICC profile, which names its colour space in bytes 16 to 20, describes an image of so many bands."""
    grey = bands < 3 and kind is not WEBP
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")
