# SPDX-License-Identifier: MIT
"""Where restored rows go that are not to be in memory: .npy, zarr, image

A sink takes rows from the top, `write(rows)`, until all are there. It appears under its name only then: until
`open_sink` ends it is beside it under a temporary name, which an error or Ctrl-C removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..optional import import_zarr
from .atomic import replacing, replacing_folder
from .formats import BY_SUFFIX, Format, Path, check_output_path
from .npy import NpySink, check_room
from .vips import import_pyvips
from .zarr import CHUNK, ROWS_OF_CHUNKS, ZarrSink

__all__ = ["FORMATS", "NPY", "STACKS", "check_output", "held_bytes", "open_sink"]

SIDE = 2**40
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
NPY = Format("NumPy", "npy", SIDE, None, DTYPES)
ZARR = Format("Zarr", "zarr", SIDE, None, DTYPES, folder=True)
STACKS = (NPY, ZARR)  # what has room for several images
FORMATS = BY_SUFFIX | {".npy": NPY, ".zarr": ZARR}


def check_output(path: Path, shape: Sequence[int] | None = None, dtype: Any = None) -> Format:
    """Checks, before any work, that `open_sink` can write `path`; with a shape and dtype, also that they fit in it.

    Returns the Format. Raises ValueError, OSError as `check_output_path` does; ImportError if the library that
    writes it is not installed.
    """
    kind = check_output_path(path, shape, dtype, FORMATS)
    if kind is ZARR:
        import_zarr()
    elif kind is not NPY:
        import_pyvips()
    return kind


def held_bytes(kind: Format, shape: Sequence[int], dtype: Any) -> int:
    """What the sink for an image takes besides the rows that it is given, about."""
    if kind is NPY:
        return 0
    if kind is not ZARR:
        from . import vips_rows as streaming

        return streaming.held_bytes(kind, shape, dtype)
    rows = min(shape[0], ROWS_OF_CHUNKS * CHUNK)
    return rows * int(np.prod(shape[1:], dtype=object)) * np.dtype(dtype).itemsize


@contextmanager
def open_sink(
    path: Path, shape: Sequence[int], dtype: Any, *, images: int | None = None, **saved: Any
) -> Iterator[Any]:
    """A sink for an image (H, W) or (H, W, C), in the format that its suffix says.

    Args:
        images: how many of that shape come, one after the other, for a file with an axis for them (see `STACKS`); None:
            one, for a file without.
        saved: like, quality, compression, pages: as for `write_image`, and for image files alone.

    Raises:
        ValueError: the format cannot hold it. OSError: it cannot be written, or there is too little room; what was
            there before stays.
    """
    path = os.fspath(path)
    kind = check_output(path, shape, dtype)
    if kind is ZARR:
        with replacing_folder(path) as folder:
            sink = ZarrSink(path, folder, shape, dtype, images)
            yield sink
            sink.close()
        return
    if kind is NPY:
        shape = shape if images is None else (images, *shape)
        check_room(path, int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
    with replacing(path) as descriptor:
        if kind is NPY:
            yield NpySink(path, descriptor, shape, dtype)
            return
        from .vips_rows import PictureSink

        sink = PictureSink(path, descriptor, shape, dtype, **saved)
        try:
            yield sink
            sink.close()
        finally:
            sink.abandon()
