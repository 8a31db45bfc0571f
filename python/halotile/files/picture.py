# SPDX-License-Identifier: MIT
"""Reads and writes whole image files as arrays: PNG, JPEG, WebP, TIFF and AVIF."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from .atomic import replacing
from .codecs import WEBP, check_options, page_options
from .extras import extras_of
from .formats import check_output_path
from .metadata import Picture, amend_file, picture_of, with_metadata
from .previews import one_image_of_tiff, reader_of
from .vips import (
    DTYPES,
    MAX_PIXELS,
    TRUST,
    Path,
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

__all__ = ["MAX_PIXELS", "Header", "Picture", "read_header", "read_image", "read_shape", "write_image"]


@dataclass(frozen=True)
class Header:
    """Properties of a file that are known before decoding.

    Attributes:
        shape, dtype: those that `read_image` would return for the requested or the first page.
        pages: the number of images of this shape and dtype, without pyramid levels, thumbnails, masks and frames of an
            animation.
        pyramid: whether the other pages are reduced versions of the first one, or masks.
    """

    shape: tuple[int, ...]
    dtype: str
    pages: int = 1
    pyramid: bool = False


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_image(
    path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None, strict: bool = False
) -> Picture:
    """Reads a PNG, JPEG, WebP, TIFF or AVIF file, recognised by its content.

    The EXIF orientation is applied and removed. 16-bit files become uint16, float TIFFs float32. Palettes and 1-bit
    images are expanded to 8 bits; CMYK and 32-bit Lab become sRGB.

    Args:
        max_pixels: limit on height x width, checked before decoding; None: no limit.
        page: page of a TIFF or frame of a WebP, from 1 on. None: the first, with a warning if there are more.
        strict: refuse a JPEG that lacks its last bytes; else a warning says so, and what they would show is grey.

    Raises:
        OSError: the file cannot be opened. ValueError: it cannot be decoded, has no such page, is a camera raw file,
            or a stack of images under one TIFF directory.
    """
    with opened(path, max_pixels, page, strict) as (stored, codec):
        # To rotate, libvips reads columns, which is impossible for a file that is decoded row by row.
        turned = is_turned(stored)
        image = as_rgb((stored.copy_memory() if turned else stored).autorot())
        array = np.ndarray(shape_of(image), DTYPES[image.format], interruptible(image, image.write_to_memory))
        return picture_of(image, codec, array, extras_of(os.fspath(path), image, codec, page, turned))


def read_shape(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> tuple[tuple[int, ...], str]:
    """The shape and dtype name that `read_image` would return, without decoding. Raises the same errors."""
    with opened(path, max_pixels) as (stored, _):
        image = as_rgb(stored.autorot())
        return shape_of(image), DTYPES[image.format]


def read_header(path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None) -> Header:
    """The header of a file or of one of its pages, without decoding.

    Args:
        max_pixels, page: as for `read_image`; without a page, the limit applies to all pages together.

    Raises:
        OSError: the file cannot be opened. ValueError: it is not such a file, or its pages differ in size or kind and
            are not a pyramid.
    """
    if page is None:
        with opened(path, max_pixels, 1) as (stored, codec):
            count = pages_of(stored)
    if page is not None or codec is WEBP or count == 1:
        with opened(path, max_pixels, 1 if page is None else page) as (stored, _):
            image = as_rgb(stored.autorot())
            return Header(shape_of(image), DTYPES[image.format])
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
    """Whether the pages have the same size, sample format and colour space: libvips loads only such pages as one
    image."""
    with opened(path, max_pixels, 1) as (_, codec), open(path, "rb", buffering=0) as file:
        try:
            loaded(file, codec, n=-1)
        except import_pyvips().Error:
            return False
    return True


def _says_one_image(path: Path, count: int) -> bool:
    with open(path, "rb", buffering=0) as file:
        return one_image_of_tiff(reader_of(file), count)


def _is_pyramid(path: Path, count: int, size: tuple[int, int], max_pixels: int | None) -> bool:
    """Whether each page has half the sides of the previous one, rounded up or down."""
    for page in range(2, count + 1):
        with opened(path, max_pixels, page) as (stored, _):
            upright = shape_of(stored.autorot())[:2]
        if any(side not in (before // 2, -(-before // 2)) for side, before in zip(upright, size, strict=True)):
            return False
        size = (upright[0], upright[1])
    return True


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_image(
    path: Path,
    pixels: np.ndarray,
    *,
    like: Picture | None = None,
    quality: int = 95,
    compression: int = 6,
    pages: int = 1,
) -> None:
    """Writes pixels to a PNG, JPEG, WebP, TIFF or AVIF file, depending on the suffix.

    The file is replaced atomically: an error or Ctrl-C leaves the old one in place. A TIFF of nearly 4 GiB or more
    becomes a BigTIFF. WebP and AVIF store grey as RGB, AVIF 16 bits as 12.

    Args:
        pixels: (H, W) or (H, W, C); two channels are grey with alpha, four RGB with alpha. All formats take uint8 and
            uint16, which JPEG and WebP round to 8 bits. Only TIFF takes floats, and stores them as float32.
        like: a Picture whose metadata and resolution are kept, except for a profile for another number of colours.
            Metadata that libvips cannot write (EXIF to TIFF, IPTC to anything but JPEG) are dropped with a warning.
        quality: 1 to 100, for JPEG, WebP and AVIF; of quality 100, the latter two are lossless.
        compression: 0 (none) to 9 (smallest), for PNG and TIFF, which are always lossless.
        pages: number of pages of equal height into which the rows of a TIFF are split.

    Raises:
        ValueError: the format cannot hold the pixels, or an option is out of range. OSError: writing fails.
    """
    vips = import_pyvips()
    path = os.fspath(path)
    pixels = np.asarray(pixels)
    codec = check_output_path(path, pixels.shape, pixels.dtype).codec
    assert codec is not None  # all image files have one
    check_options(quality, compression)
    options = codec.options(pixels.nbytes, pixels.dtype, quality, compression)
    options |= page_options(path, codec, len(pixels), pages)
    image = with_metadata(to_vips(pixels, codec), like, codec, path, pages)
    with replacing(path) as draft:
        target = vips.Target.new_to_descriptor(draft.descriptor)
        save = getattr(image, f"{codec.vips}save_target")
        try:
            interruptible(image, lambda: save(target, **options))
        except vips.Error as error:
            raise OSError(f"{path}: cannot be written: {reason(error)}") from error
        amend_file(draft.descriptor, image, like, codec, path, pages)
