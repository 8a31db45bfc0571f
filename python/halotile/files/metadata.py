# SPDX-License-Identifier: MIT
"""Copies metadata from the image file that is read to the one that is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .codecs import TIFF, Codec
from .extras import (
    BLACK_IS_ZERO,
    EXTRA_SAMPLES,
    NO_EXTRAS,
    PHOTOMETRIC,
    RGB,
    UNSPECIFIED,
    Extras,
    mended_description,
    mended_tags,
)
from .tiff_patch import SHORT, Tag, amend
from .vips import import_pyvips

if TYPE_CHECKING:
    import pyvips

__all__ = ["Picture", "amend_file", "picture_of", "with_metadata"]

Fields = Mapping[str, bytes | str]

DESCRIPTION = "image-description"
MAX_RES = 1e6  # pixels per millimetre, the limit of libvips; damaged files may state more
METADATA = ("icc-profile-data", "exif-", "xmp-data", "iptc-data", "png-comment-", "resolution-unit", DESCRIPTION)


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    Attributes:
        pixels: (H, W) for one channel, else (H, W, C); uint8, uint16 or float32, upright.
        metadata: libvips' header fields for ICC, EXIF, XMP, IPTC and PNG text: bytes for blobs, str for the others.
        resolution: horizontal and vertical, in pixels per millimetre.
        extras: what libvips does not carry.
    """

    pixels: np.ndarray
    metadata: Fields = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)
    extras: Extras = field(default=NO_EXTRAS, repr=False)


def picture_of(image: pyvips.Image, codec: Codec, pixels: np.ndarray, extras: Extras) -> Picture:
    """The pixels of a libvips image, with its metadata."""
    return Picture(pixels, _metadata(image, codec), (min(image.xres, MAX_RES), min(image.yres, MAX_RES)), extras)


def _metadata(image: pyvips.Image, codec: Codec) -> dict[str, bytes | str]:
    """The fields to keep. EXIF occurs as a blob and as a text field per entry; libvips merges them when it writes."""
    fields = {}
    for name in image.get_fields():
        if name.startswith(METADATA) and name not in codec.unread:
            with suppress(UnicodeDecodeError):  # damaged text
                fields[name] = image.get(name)
    return fields


def with_metadata(image: pyvips.Image, like: Picture | None, codec: Codec, path: str, pages: int = 1) -> pyvips.Image:
    """The image with the metadata of `like`. One warning names what the file cannot get, another what is damaged; a
    profile for another number of colours is dropped without one."""
    if like is None:
        return image
    fields, extras = dict(like.metadata), like.extras
    if not _profile_fits(fields.get("icc-profile-data", b""), image.bands, codec):
        fields.pop("icc-profile-data", None)
    if extras.without_xmp:
        fields.pop("xmp-data", None)
    lost = [label for name, label in codec.unwritten if fields.pop(name, None) is not None]
    lost += [*_described(image, fields, extras, codec, pages), *extras.lost]
    if codec is not TIFF:
        lost += extras.texts
    if extras.has_place and (codec is not TIFF or extras.turned):
        lost.append("georeference")
    if lost:
        warnings.warn(f"{path}: of the input, {codec.name} does not get this: {', '.join(lost)}", stacklevel=3)
    if not _can_store(image, fields, codec):
        refused = [name for name, value in fields.items() if not _can_store(image, {name: value}, codec)]
        warnings.warn(f"{path}: damaged metadata of the input is not kept: {', '.join(refused)}", stacklevel=3)
        fields = {name: value for name, value in fields.items() if name not in refused}
    xres, yres = _resolution(image, like, pages)
    return _set_fields(image.copy(xres=xres, yres=yres), fields)


def _described(
    image: pyvips.Image, fields: dict[str, bytes | str], extras: Extras, codec: Codec, pages: int
) -> Iterator[str]:
    """Mends the description, or removes it and yields its name."""
    text = fields.pop(DESCRIPTION, "")
    if not isinstance(text, str) or not text:
        return
    same = (pages, image.bands, image.format) == (extras.pages, extras.bands, extras.format)
    mended = mended_description(text, extras, (image.height // pages, image.width), same)
    if mended and codec is TIFF:
        fields[DESCRIPTION] = mended
    elif mended != "":
        yield "OME-XML" if "<OME" in text else "ImageJ's description" if text.startswith("ImageJ=") else "description"


def _resolution(image: pyvips.Image, like: Picture, pages: int) -> tuple[float, float]:
    """Pixels per millimetre. ImageJ's are those of what is seen, not of a print."""
    (xres, yres), size = like.resolution, like.extras.size
    if size is not None and str(like.metadata.get(DESCRIPTION, "")).startswith("ImageJ="):
        xres, yres = xres * image.width / size[1], yres * (image.height // pages) / size[0]
    return min(xres, MAX_RES), min(yres, MAX_RES)


def amend_file(descriptor: int, image: pyvips.Image, like: Picture | None, codec: Codec, path: str, pages: int) -> None:
    """Adds to a file that libvips has written what it does not know of. Raises OSError."""
    if codec is not TIFF:
        return
    extras, bands = NO_EXTRAS if like is None else like.extras, image.bands
    of_pixels = like is not None and str(like.metadata.get(DESCRIPTION, "")).startswith("ImageJ=")
    first, every = mended_tags(extras, (image.height // pages, image.width), of_pixels), {}
    if bands > 4 or (extras.data and bands == extras.bands):
        colours = 3 if extras.rgb and bands == extras.bands and bands >= 3 else 1
        every[EXTRA_SAMPLES] = Tag(SHORT, (UNSPECIFIED,) * (bands - colours))
        every[PHOTOMETRIC] = Tag(SHORT, (RGB if colours == 3 else BLACK_IS_ZERO,))
        if bands == colours:
            del every[EXTRA_SAMPLES]
    if not amend(descriptor, first, every):
        warnings.warn(f"{path}: there was no room for the georeference, or for what bands are", stacklevel=3)


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
        pixel.write_to_buffer(codec.suffix)
    except vips.Error:
        return False
    return True


def _profile_fits(profile: bytes | str, bands: int, codec: Codec) -> bool:
    """Whether an ICC profile has the right number of colours: bytes 16 to 20 name its colour space."""
    grey = bands < 3 and codec.grey
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")
