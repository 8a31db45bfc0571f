# SPDX-License-Identifier: MIT
"""Streams image files by rows, with libvips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from ..images.source import Source
from .atomic import Draft, replacing
from .codecs import PNG, Codec, check_options, page_options
from .extras import extras_of
from .finish import Colour, Finish, finished_shape
from .metadata import Picture, amend_file, picture_of, with_metadata
from .tiff_feed import STRIP_BYTES, Feed
from .vips import (
    DTYPES,
    MAX_PIXELS,
    Path,
    as_held,
    as_rgb,
    import_pyvips,
    is_turned,
    loaded,
    opened,
    pages_of,
    reason,
    shape_of,
)

if TYPE_CHECKING:
    import pyvips

__all__ = ["PictureSink", "PictureSource", "held_bytes", "open_sink"]

SLAB_BYTES = 2**22  # pixels decoded at a time
ROWS, ROWS_OF_A_THREAD = 1024, 128  # rows that libvips buffers between its operations
BYTES_OF_A_THREAD = 2**23
END_OF_PNG = b"\0\0\0\0IEND\xaeB`\x82"
FIELDS_OF_PIXELS = {"width", "height", "bands", "format", "coding", "interpretation", "xoffset", "yoffset"}
FIELDS_OF_PIXELS |= {"xres", "yres"}


class PictureSource(Source):
    """An image file, decoded from top to bottom; reading earlier rows starts again. Files with an EXIF rotation are
    decoded as a whole, and libvips does the same with interlaced files and WebP.

    Attributes:
        like: the file's metadata, as a Picture without pixels.
    """

    def __init__(
        self, path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None, strict: bool = False
    ):
        """Arguments and errors are those of `read_image`; damage in later rows is reported when they are read."""
        self.path, self.max_pixels, self.page, self.strict = os.fspath(path), max_pixels, page, strict
        self._open()
        self.shape = shape_of(self.image)
        self.layout = "HWC"[: len(self.shape)]
        self.dtype = np.dtype(DTYPES[self.image.format])
        extras = extras_of(self.path, self.image, self.codec, page, self.turned)
        self.like = picture_of(self.image, self.codec, np.empty(0), extras)
        self.page = page or 1  # so that opening it again does not repeat the warning about other pages

    def _open(self) -> None:
        with opened(self.path, self.max_pixels, self.page, self.strict) as (stored, self.codec):
            self.turned = is_turned(stored)
            image = stored.copy_memory() if self.turned else stored
            self.image, self.position = as_rgb(image.autorot()), 0

    def read(self, start: int, rows: np.ndarray) -> None:
        if start < self.position:
            self._open()
        count = max(1, SLAB_BYTES // rows[0].nbytes)
        try:
            for y in range(0, len(rows), count):
                self._read_slab(start + y, rows[y : y + count])
        except import_pyvips().Error as error:
            raise ValueError(f"{self.path}: not a readable {self.codec.name} file: {reason(error)}") from error

    def _read_slab(self, start: int, rows: np.ndarray) -> None:
        region = import_pyvips().Region.new(self.image)  # belongs to this thread
        pixels = region.fetch(0, start, self.image.width, len(rows))
        rows[...] = np.frombuffer(pixels, rows.dtype).reshape(rows.shape)
        self.position = start + len(rows)


@contextmanager
def open_sink(
    codec: Codec,
    path: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    like: Picture | None = None,
    quality: int = 95,
    compression: int = 6,
    pages: int = 1,
    background: Colour | None = None,
    size: tuple[int, int] | None = None,
    **_: object,
) -> Iterator[PictureSink]:
    finish = Finish(background, size, pages, like is not None and like.extras.data)
    with replacing(path) as draft:
        yield PictureSink(codec, draft, shape, dtype, like, quality, compression, finish)


def held_bytes(codec: Codec, shape: Sequence[int], dtype: DTypeLike) -> int:
    """Approximate bytes that a sink allocates beyond the rows that it is given, as measured."""
    threads = import_pyvips().concurrency_get()
    row = int(np.prod(shape[1:], dtype=object)) * min(np.dtype(dtype).itemsize, 4)
    rows = min(shape[0], ROWS + ROWS_OF_A_THREAD * threads)
    return rows * row + codec.held(shape[0] * row) + threads * BYTES_OF_A_THREAD


class PictureSink:
    """Writes an image file from top to bottom in threads of libvips, byte for byte as `write_image` does. PNG, TIFF and
    JPEG are streamed; libvips holds a WebP as a whole.

    Args:
        shape, dtype: those of the whole image.
        like, quality, compression: as for `write_image`.
        finish: what becomes of the pixels before they are written.
    """

    overlaps = True

    def __init__(
        self,
        codec: Codec,
        draft: Draft,
        shape: Sequence[int],
        dtype: DTypeLike,
        like: Picture | None,
        quality: int,
        compression: int,
        finish: Finish,
    ):
        vips, pages = import_pyvips(), finish.pages
        self.draft, self.codec, self.left, path = draft, codec, shape[0], draft.path
        self.dtype = np.dtype("float32" if np.dtype(dtype).kind == "f" else dtype)
        written = finished_shape(shape, finish.background, finish.size, pages)
        size = int(np.prod(written, dtype=object)) * self.dtype.itemsize
        check_options(quality, compression)
        options = codec.options(size, self.dtype, quality, compression) | page_options(path, codec, written[0], pages)
        self.feed = Feed(shape, self.dtype)
        self.source = vips.SourceCustom()  # must live as long as libvips may call it
        self.source.on_read(self.feed.read)
        self.source.on_seek(self.feed.seek)
        self.image = with_metadata(finish(as_held(_plain(self.source), codec)), like, codec, path, pages)
        self.amended = partial(amend_file, draft.descriptor, self.image, like, codec, path, pages)
        save = getattr(self.image, f"{codec.vips}save_target")
        self.thread = ThreadPoolExecutor(1)
        self.saved = self.thread.submit(save, vips.Target.new_to_descriptor(draft.descriptor), **options)
        self.saved.add_done_callback(self.feed.end)
        self.abandoned = False

    def write(self, rows: np.ndarray) -> None:
        self.draft.check()
        self.left -= len(rows)
        count = max(1, STRIP_BYTES // rows[0].nbytes)
        for start in range(0, len(rows), count):
            self.feed.push(np.ascontiguousarray(rows[start : start + count], self.dtype))
        if self.saved.done():
            self.close()

    def close(self) -> None:
        self.feed.end()
        try:
            self.saved.result()
        except import_pyvips().Error as error:
            raise OSError(f"{self.draft.path}: cannot be written: {reason(error)}") from error
        self.amended()
        self.amended = partial(bool)
        if not self.left:
            self._check()

    def _check(self) -> None:
        """Opens what was written."""
        wanted = (self.image.width, self.image.height, self.image.bands)
        try:
            with open(self.draft.descriptor, "rb", buffering=0, closefd=False) as file:
                found = loaded(file, self.codec)
                pages = pages_of(found) if self.codec.pages else 1
                size = (found.width, found.height * pages, found.bands)
                whole = (
                    self.codec is not PNG or (file.seek(-len(END_OF_PNG), os.SEEK_END), file.read())[1] == END_OF_PNG
                )
        except (import_pyvips().Error, OSError) as error:
            raise OSError(f"{self.draft.path}: cannot be written: it cannot be read again: {reason(error)}") from error
        if size[:2] != wanted[:2] or not whole:
            raise OSError(f"{self.draft.path}: cannot be written: {size} is there of {wanted} (width, height, bands)")

    def abandon(self) -> None:
        """Ends the thread, whatever the state of the file. May be called again."""
        if self.abandoned:
            return
        self.abandoned = True
        self.feed.end()
        self.image.set_kill(True)
        self.thread.shutdown()
        del self.saved, self.image, self.source, self.amended  # an error that is kept would keep the draft open


def _plain(source: pyvips.SourceCustom) -> pyvips.Image:
    """The image in a Feed, without the fields that the TIFF loader adds."""
    image = import_pyvips().Operation.call("tiffload_source", source, access="sequential", fail_on="error")
    plain = image.copy(xres=1, yres=1)
    for name in image.get_fields():
        if name not in FIELDS_OF_PIXELS:
            plain.remove(name)
    return plain
