# SPDX-License-Identifier: MIT
"""Copies metadata from the image file that is read to the one that is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .codecs import Codec
from .vips import import_pyvips

if TYPE_CHECKING:
    import pyvips

__all__ = ["Picture", "picture_of", "with_metadata"]

Fields = Mapping[str, bytes | str]

MAX_RES = 1e6  # pixels per millimetre, the limit of libvips; damaged files may state more
METADATA = ("icc-profile-data", "exif-", "xmp-data", "iptc-data", "png-comment-", "resolution-unit")


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    Attributes:
        pixels: (H, W) for one channel, else (H, W, C); uint8, uint16 or float32, upright.
        metadata: libvips' header fields for ICC, EXIF, XMP, IPTC and PNG text: bytes for blobs, str for the others.
        resolution: horizontal and vertical, in pixels per millimetre.
    """

    pixels: np.ndarray
    metadata: Fields = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)


def picture_of(image: pyvips.Image, codec: Codec, pixels: np.ndarray) -> Picture:
    """The pixels of a libvips image, with its metadata."""
    return Picture(pixels, _metadata(image, codec), (min(image.xres, MAX_RES), min(image.yres, MAX_RES)))


def _metadata(image: pyvips.Image, codec: Codec) -> dict[str, bytes | str]:
    """The fields to keep. EXIF occurs as a blob and as a text field per entry; libvips merges them when it writes."""
    fields = {}
    for name in image.get_fields():
        if name.startswith(METADATA) and name not in codec.unread:
            with suppress(UnicodeDecodeError):  # damaged text
                fields[name] = image.get(name)
    return fields


def with_metadata(image: pyvips.Image, like: Picture | None, codec: Codec, path: str) -> pyvips.Image:
    """The image with the metadata of `like`. Metadata that libvips cannot write, such as a damaged profile, are dropped
    with a warning; a profile for another number of colours is dropped without one."""
    if like is None:
        return image
    fields = dict(like.metadata)
    if not _profile_fits(fields.get("icc-profile-data", b""), image.bands, codec):
        fields.pop("icc-profile-data", None)
    lost = [label for name, label in codec.unwritten if fields.pop(name, None) is not None]
    if lost:
        warnings.warn(f"{path}: libvips cannot write this into {codec.name}: {', '.join(lost)}", stacklevel=3)
    if not _can_store(image, fields, codec):
        refused = [name for name, value in fields.items() if not _can_store(image, {name: value}, codec)]
        warnings.warn(f"{path}: damaged metadata of the input is not kept: {', '.join(refused)}", stacklevel=3)
        fields = {name: value for name, value in fields.items() if name not in refused}
    xres, yres = like.resolution
    return _set_fields(image.copy(xres=xres, yres=yres), fields)


def _set_fields(image: pyvips.Image, fields: Fields) -> pyvips.Image:
    types = import_pyvips().GValue
    for name, value in fields.items():
        image.set_type(types.gstr_type if isinstance(value, str) else types.blob_type, name, value)
    image.set_type(types.gint_type, "orientation", 1)  # pixels are upright; the EXIF blob may differ
    return image


def _can_store(image: pyvips.Image, fields: Fields, codec: Codec) -> bool:
    """Tries the fields on one black pixel: libvips detects bad ones only when it writes."""
    vips = import_pyvips()
    black = vips.Image.black(1, 1, bands=image.bands).cast(image.format)
    pixel = _set_fields(black.copy(interpretation=image.interpretation), fields)
    try:
        pixel.write_to_buffer(f".{codec.vips}")
    except vips.Error:
        return False
    return True


def _profile_fits(profile: bytes | str, bands: int, codec: Codec) -> bool:
    """Whether an ICC profile has the right number of colours: bytes 16 to 20 name its colour space."""
    grey = bands < 3 and codec.grey
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")
