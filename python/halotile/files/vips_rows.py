# SPDX-License-Identifier: MIT
"""Image files by rows, through libvips: PictureSource reads them, PictureSink writes them.

libvips asks for what it writes, and a run has rows to give. So the sink looks like a file to libvips, an uncompressed
BigTIFF, of which there is never more than a band: the loader reads it in order, once, as it does every TIFF in strips.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..images.source import Source
from .codecs import SMALL_JPEG_BYTES, page_options, save_options
from .formats import JPEG, Format, Path, check_output_path
from .metadata import Picture, picture_of, with_metadata
from .tiff_feed import STRIP_BYTES, Feed
from .vips import DTYPES, MAX_PIXELS, as_held, as_rgb, import_pyvips, is_turned, opened, reason, shape_of

__all__ = ["PictureSink", "PictureSource", "held_bytes"]

SLAB_BYTES = 2**22  # decoded at a time
ROWS, ROWS_OF_A_THREAD = 1024, 128  # that libvips holds between its operations
BYTES_OF_A_THREAD = 2**23
TIMES_AS_A_WHOLE = {"webp": 10, "jpeg": 5}  # the pixels' bytes is what a codec takes that needs all of them


class PictureSource(Source):
    """An image file. It is decoded from top to bottom; to read what lies above, it starts again. A file that its EXIF
    turns is decoded as a whole, and so are interlaced ones and WebP, which libvips does by itself.

    Attributes:
        like: a Picture without pixels: the file's metadata.
    """

    def __init__(self, path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None):
        """Arguments and errors are those of `read_image`; damage further down shows when it is read."""
        self.path, self.max_pixels, self.page = os.fspath(path), max_pixels, page
        self._open()
        self.shape = shape_of(self.image)
        self.layout = "HWC"[: len(self.shape)]
        self.dtype = np.dtype(DTYPES[self.image.format])
        self.like = picture_of(self.image, self.kind, np.empty(0))
        self.page = page or 1  # without another warning of there being more

    def _open(self) -> None:
        with opened(self.path, self.max_pixels, self.page) as (stored, self.kind):
            image = stored.copy_memory() if is_turned(stored) else stored
            self.image, self.position = as_rgb(image.autorot()), 0

    def read(self, start: int, rows: np.ndarray) -> None:
        if start < self.position:
            self._open()
        count = max(1, SLAB_BYTES // rows[0].nbytes)
        try:
            for y in range(0, len(rows), count):
                self._read_slab(start + y, rows[y : y + count])
        except import_pyvips().Error as error:
            raise ValueError(f"{self.path}: not a readable {self.kind.name} file: {reason(error)}") from error

    def _read_slab(self, start: int, rows: np.ndarray) -> None:
        region = import_pyvips().Region.new(self.image)  # belongs to this thread
        pixels = region.fetch(0, start, self.image.width, len(rows))
        rows[...] = np.frombuffer(pixels, rows.dtype).reshape(rows.shape)
        self.position = start + len(rows)


class PictureSink:
    """An image file that is written from top to bottom, on threads of libvips.

    Of what `write_image` writes, PNG, TIFF and JPEG go out as rows come; libvips holds a WebP as a whole.

    Args:
        path: for messages, and which format.
        descriptor: of the file to write to, open for reading and writing.
        shape, dtype: of the whole image.
        like, quality, compression, pages: as for `write_image`.
    """

    overlaps = True

    def __init__(
        self,
        path: str,
        descriptor: int,
        shape: Sequence[int],
        dtype: Any,
        *,
        like: Picture | None = None,
        quality: int = 95,
        compression: int = 6,
        pages: int = 1,
    ):
        pyvips = import_pyvips()
        kind = check_output_path(path, shape, dtype)
        self.path = path
        self.dtype = np.dtype("float32" if np.dtype(dtype).kind == "f" else dtype)
        size = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
        options = save_options(kind, size, self.dtype, quality, compression)
        options |= page_options(path, kind, shape[0], pages)
        self.feed = Feed(shape, self.dtype)
        self.source = pyvips.SourceCustom()  # as long as libvips may call it: nothing else holds it
        self.source.on_read(self.feed.read)
        self.source.on_seek(self.feed.seek)
        self.image = with_metadata(pyvips, as_held(_plain(pyvips, self.source), kind), like, kind, path)
        save = getattr(self.image, f"{kind.codec}save_target")
        self.thread = ThreadPoolExecutor(1)
        self.saved = self.thread.submit(save, pyvips.Target.new_to_descriptor(descriptor), **options)
        self.saved.add_done_callback(self.feed.end)

    def write(self, rows: np.ndarray) -> None:
        """The next rows, (n, W) or (n, W, C). They may be changed once this returns. Raises OSError."""
        count = max(1, STRIP_BYTES // rows[0].nbytes)
        for start in range(0, len(rows), count):
            self.feed.push(np.ascontiguousarray(rows[start : start + count], self.dtype))
        if self.saved.done():
            self.close()

    def close(self) -> None:
        """All rows were written: completes the file. Raises OSError."""
        self.feed.end()
        try:
            self.saved.result()
        except import_pyvips().Error as error:
            raise OSError(f"{self.path}: cannot be written: {reason(error)}") from error

    def abandon(self) -> None:
        """Ends its thread, whatever the file is then."""
        self.feed.end()
        self.image.set_kill(True)
        self.thread.shutdown()


def held_bytes(kind: Format, shape: Sequence[int], dtype: Any) -> int:
    """What a PictureSink takes besides the rows that it is given, about: as measured."""
    threads = import_pyvips().concurrency_get()
    row = int(np.prod(shape[1:], dtype=object)) * min(np.dtype(dtype).itemsize, 4)
    whole = 0 if kind is JPEG and shape[0] * row > SMALL_JPEG_BYTES else TIMES_AS_A_WHOLE.get(kind.codec, 0)
    return (min(shape[0], ROWS + ROWS_OF_A_THREAD * threads) + whole * shape[0]) * row + threads * BYTES_OF_A_THREAD


def _plain(pyvips: Any, source: Any) -> Any:
    """The image in a TIFF, with nothing that a file says besides its pixels."""
    image = pyvips.Operation.call("tiffload_source", source, access="sequential", fail_on="error")
    plain = image.copy(xres=1, yres=1)
    for name in image.get_fields():
        if name not in HEADER_FIELDS:
            plain.remove(name)
    return plain


HEADER_FIELDS = {"width", "height", "bands", "format", "coding", "interpretation", "xoffset", "yoffset", "xres", "yres"}
