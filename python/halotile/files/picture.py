# SPDX-License-Identifier: MIT
"""Image files in and out: PNG, JPEG, WebP and TIFF.

Through libvips, because it reads and writes 8 and 16 bits in all of them, keeps ICC profiles and EXIF, and streams;
Pillow has no 16-bit RGB. pyvips is an optional dependency: `pip install 'halotile[cli]'`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from .atomic import replacing
from .codecs import page_options, save_options
from .formats import WEBP, Format, Path, check_output_path
from .metadata import Picture, picture_of, with_metadata
from .previews import one_image_of_tiff, reader_of
from .vips import (
    DTYPES,
    MAX_PIXELS,
    TRUST,
    as_rgb,
    import_pyvips,
    interruptible,
    is_turned,
    loaded,
    opened,
    pages_of,
    reason,
    shape_of,
    to_vips,
)

__all__ = [
    "MAX_PIXELS",
    "Header",
    "Picture",
    "read_header",
    "read_image",
    "read_shape",
    "write_image",
]


@dataclass(frozen=True)
class Header:
    """What is known of an image file before anything is decoded.

    shape, dtype: of its first page, or of the one asked for, as `read_image` would give it.
    kind: the Format.
    pages: how many pages there are that are images of their own, all of this shape and dtype; 1 for the levels of a
        pyramid, thumbnails, masks and the frames of an animation.
    pyramid: whether the other pages are the first one, reduced, or masks of it.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Format
    pages: int = 1
    pyramid: bool = False


def read_image(path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None) -> Picture:
    """Reads a PNG, JPEG, WebP or TIFF file, recognised by its content.

    The EXIF orientation is applied and dropped. 16-bit files give uint16, float TIFFs float32. Palettes and 1 bit are
    expanded to 8 bits; CMYK and 32-bit Lab become sRGB. Tiled TIFFs are read as others are.

    Args:
        max_pixels: bounds height x width, before anything is decoded; None lifts the bound.
        page: of a TIFF with several pages or a WebP with several frames: which, from 1 on. None: the first, with a
            warning if there are more.

    Returns:
        A Picture.

    Raises:
        OSError: the file cannot be opened. ValueError: it cannot be decoded, has no such page, or is a
            camera raw file, or a stack that has one directory for many images.
    """
    with opened(path, max_pixels, page) as (stored, kind):
        # A rotation reads columns, which a file read in order cannot give.
        image = as_rgb((stored.copy_memory() if is_turned(stored) else stored).autorot())
        array = np.ndarray(shape_of(image), DTYPES[image.format], interruptible(image, image.write_to_memory))
        return picture_of(image, kind, array)


def read_shape(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> tuple[tuple[int, ...], str]:
    """The shape and dtype name that `read_image` would give; nothing is decoded. Raises as it does."""
    with opened(path, max_pixels) as (stored, _):
        image = as_rgb(stored.autorot())
        return shape_of(image), DTYPES[image.format]


def read_header(path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None) -> Header:
    """What a file holds, all its pages or the one asked for; nothing is decoded.

    Args:
        max_pixels, page: as for `read_image`; without a page all of them together are bounded.

    Raises:
        OSError: the file cannot be opened. ValueError: it is no such file, or its pages are of several sizes or kinds
            and no pyramid.
    """
    if page is None:
        with opened(path, max_pixels, 1) as (stored, kind):
            count = pages_of(stored)
    if page is not None or kind is WEBP or count == 1:
        with opened(path, max_pixels, 1 if page is None else page) as (stored, kind):
            image = as_rgb(stored.autorot())
            return Header(shape_of(image), DTYPES[image.format], kind)
    return _header_of_pages(path, count, max_pixels)


def _header_of_pages(path: Path, count: int, max_pixels: int | None) -> Header:
    first = read_header(path, max_pixels=max_pixels, page=1)
    height, width = first.shape[:2]
    if not _all_alike(path, max_pixels):
        if _says_one_image(path, count) or _is_pyramid(path, count, (height, width), max_pixels):
            return replace(first, pyramid=True)
        text = f"{os.fspath(path)}: holds {count} pages of several sizes or kinds"
        raise ValueError(f"{text}; page must say which, from 1 to {count}")
    if max_pixels is not None and height * width * count > max_pixels:
        size = f"{count} pages of {width} x {height} pixels"
        raise ValueError(f"{os.fspath(path)}: {size} are more than max_pixels={max_pixels}; {TRUST}")
    return replace(first, pages=count)


def _all_alike(path: Path, max_pixels: int | None) -> bool:
    """Whether libvips sees the pages as one image: it wants one size, sample format and colour space of them."""
    with opened(path, max_pixels, 1) as (_, kind), open(path, "rb", buffering=0) as file:
        try:
            loaded(file, kind, n=-1)
        except import_pyvips().Error:
            return False
    return True


def _says_one_image(path: Path, count: int) -> bool:
    with open(path, "rb", buffering=0) as file:
        return one_image_of_tiff(reader_of(file), count)


def _is_pyramid(path: Path, count: int, size: tuple[int, int], max_pixels: int | None) -> bool:
    """Whether every page has half the sides of the one before, rounded either way."""
    for page in range(2, count + 1):
        with opened(path, max_pixels, page) as (stored, _):
            upright = shape_of(stored.autorot())[:2]
        if any(side not in (before // 2, -(-before // 2)) for side, before in zip(upright, size, strict=True)):
            return False
        size = (upright[0], upright[1])
    return True


def write_image(
    path: Path,
    pixels: np.ndarray,
    *,
    like: Picture | None = None,
    quality: int = 95,
    compression: int = 6,
    pages: int = 1,
) -> None:
    """Writes pixels to a PNG, JPEG, WebP or TIFF file, as its suffix says.

    pixels: (H, W) or (H, W, C), with two and four channels meaning grey and RGB with alpha. uint8 and uint16 go into
        every format, rounded to 8 bits in JPEG and WebP, which have no more; floats go into TIFF alone, as
        float32.
    like: a Picture whose metadata and resolution are kept. A profile for another number of colours is left out. libvips
        writes no EXIF into TIFF, and IPTC into JPEG alone: a warning says what is lost.
    quality: 1 to 100, for JPEG and WebP; a WebP of quality 100 is lossless.
    compression: 0 (none) to 9 (smallest), for PNG and TIFF, which are always lossless.
    pages: into how many pages of one height the rows are cut, for TIFF. A TIFF of nearly 4 GiB or more is a BigTIFF.

    The file appears whole or not at all: it is written under a temporary name beside `path` and then takes its place,
    so an error or Ctrl-C leaves what was there. WebP has no grey: it holds grey as RGB.

    Raises ValueError for pixels or options that do not fit the format (JPEG has no alpha), OSError if writing fails.
    """
    pyvips = import_pyvips()
    path = os.fspath(path)
    pixels = np.asarray(pixels)
    kind = check_output_path(path, pixels.shape, pixels.dtype)
    options = save_options(kind, pixels.nbytes, pixels.dtype, quality, compression)
    options |= page_options(path, kind, len(pixels), pages)
    image = with_metadata(pyvips, to_vips(pyvips, pixels, kind), like, kind, path)
    with replacing(path) as descriptor:
        target = pyvips.Target.new_to_descriptor(descriptor)
        save = getattr(image, f"{kind.codec}save_target")
        try:
            interruptible(image, lambda: save(target, **options))
        except pyvips.Error as error:
            raise OSError(f"{path}: cannot be written: {reason(error)}") from error
