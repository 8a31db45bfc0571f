# SPDX-License-Identifier: MIT
"""The table of output formats, and the functions that use it.

To add a format, write a file like `npy.py` with a sink, and add a row to TABLE.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from ..optional import import_zarr
from . import npy, vips_rows, zarr
from .codecs import AVIF, JPEG, JXL, PNG, TIFF, WEBP, Codec
from .finish import Colour, finished_shape
from .heic import reads_heic
from .metadata import Picture
from .vips import Path, import_writer

__all__ = [
    "FORMATS",
    "PICTURES",
    "READ_ONLY",
    "TABLE",
    "FileSink",
    "Format",
    "check_lossless",
    "check_output",
    "check_output_path",
    "is_read",
    "open_sink",
]


class FileSink(Protocol):
    """Writes the rows of a result from top to bottom.

    Attributes:
        overlaps: whether writing is so slow that it should run in parallel with the model.
    """

    overlaps: bool

    def write(self, rows: np.ndarray) -> None:
        """Writes the next rows, (n, W) or (n, W, C), which the caller may reuse afterwards. Raises OSError."""

    def close(self) -> None:
        """Completes the file after the last row. Raises OSError."""

    def abandon(self) -> None:
        """Stops all work on the file, whether or not it is complete."""


class SinkOpener(Protocol):
    """Opens a sink for an image (H, W) or (H, W, C). The file replaces `path` when the context ends.

    Each format uses the keyword arguments of `open_sink` that it supports and ignores the others."""

    def __call__(
        self,
        path: str,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        images: int | None,
        like: Picture | None,
        quality: int,
        compression: int,
        pages: int,
        background: Colour | None,
        size: tuple[int, int] | None,
    ) -> AbstractContextManager[FileSink]: ...


@dataclass(frozen=True, eq=False)
class Format:
    """An output format: what it can hold, and its writer.

    Attributes:
        name: its name in errors.
        key: its name for --format.
        suffixes: in lower case, the usual one first.
        max_side: the largest height and width.
        channels: the supported channel counts; None: any.
        dtypes: names of the supported dtypes.
        open_sink: opens a sink.
        held_bytes: approximate bytes that a sink allocates for an image of (shape, dtype), beyond the rows it is given.
        overlaps: `overlaps` of its sinks.
        stack: whether a file can hold several images of one size.
        library: imports the package that writes it. Raises ImportError.
        replaces: what may be overwritten: a description, and a test for a path.
        codec: libvips' codec, for an image file.
    """

    name: str
    key: str
    suffixes: tuple[str, ...]
    max_side: int
    channels: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    open_sink: SinkOpener
    held_bytes: Callable[[Sequence[int], DTypeLike], int]
    overlaps: bool
    stack: bool = False
    library: Callable[[], object] = lambda: None
    replaces: tuple[str, Callable[[str], bool]] = ("regular file", os.path.isfile)
    codec: Codec | None = None

    @property
    def uses(self) -> tuple[str, ...]:
        """Which of the options quality, compression, background and size it heeds."""
        return () if self.codec is None else (*self.codec.uses, "background", "size")

    @property
    def pages(self) -> bool:
        """Whether an image file may hold several pages."""
        return self.codec is not None and self.codec.pages


def _image_file(
    codec: Codec, suffixes: tuple[str, ...], max_side: int, channels: tuple[int, ...] | None, dtypes: tuple[str, ...]
) -> Format:
    return Format(
        codec.name,
        codec.name.lower().replace(" ", "-"),
        suffixes,
        max_side,
        channels,
        dtypes,
        partial(vips_rows.open_sink, codec),
        partial(vips_rows.held_bytes, codec),
        vips_rows.PictureSink.overlaps,
        library=partial(import_writer, codec),
        codec=codec,
    )


INTEGERS = ("uint8", "uint16")
NUMBERS = (*INTEGERS, "float16", "float32", "float64")
VIPS_SIDE, ANY_SIDE = 2**31 - 1, 2**40

TABLE = (
    _image_file(PNG, (".png",), VIPS_SIDE, (1, 2, 3, 4), INTEGERS),
    _image_file(JPEG, (".jpg", ".jpeg", ".jfif"), 65535, (1, 3), INTEGERS),
    _image_file(WEBP, (".webp",), 16383, (1, 2, 3, 4), INTEGERS),
    _image_file(TIFF, (".tif", ".tiff"), VIPS_SIDE, None, NUMBERS),
    _image_file(AVIF, (".avif",), 16384, (1, 2, 3, 4), INTEGERS),
    _image_file(JXL, (".jxl",), 2**28, (1, 2, 3, 4), INTEGERS),
    Format(
        "NumPy",
        "npy",
        (".npy",),
        ANY_SIDE,
        None,
        NUMBERS,
        npy.open_sink,
        npy.held_bytes,
        npy.NpySink.overlaps,
        stack=True,
    ),
    Format(
        "Zarr",
        "zarr",
        (".zarr",),
        ANY_SIDE,
        None,
        NUMBERS,
        zarr.open_sink,
        zarr.held_bytes,
        zarr.ZarrSink.overlaps,
        stack=True,
        library=import_zarr,
        replaces=("zarr array", zarr.is_zarr_array),
    ),
)

FORMATS = {suffix: kind for kind in TABLE for suffix in kind.suffixes}
READ_ONLY = (".heic", ".heif", ".hif")
PICTURES = {suffix: kind for suffix, kind in FORMATS.items() if kind.codec is not None}  # image files


def is_read(suffix: str) -> bool:
    """Whether image files of that suffix, in lower case, are read."""
    return suffix in PICTURES or (suffix in READ_ONLY and reads_heic())


def check_lossless(path: Path, kind: Format) -> None:
    """Raises ValueError for formats that change values, as nothing that is a number of its own survives that."""
    if "quality" in kind.uses:
        text = "labels must be in a file that changes no value, such as PNG or TIFF"
        raise ValueError(f"{os.fspath(path)}: {text}, not {kind.name}")


def check_output(path: Path, shape: Sequence[int] | None = None, dtype: DTypeLike | None = None) -> Format:
    """Checks, before any work, that `open_sink` can write `path`: `check_output_path` for all formats. Also raises
    ImportError if the package that writes it is not installed."""
    kind = check_output_path(path, shape, dtype, FORMATS)
    kind.library()
    return kind


def check_output_path(
    path: Path,
    shape: Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    formats: Mapping[str, Format] = PICTURES,
) -> Format:
    """Checks, before any work, that a file can be written, and that its format can hold the shape and dtype, if given.

    Args:
        formats: the allowed formats, by suffix; by default those of `write_image`.

    Raises:
        ValueError: the suffix is unknown, or the format cannot hold the image. OSError: the directory is missing or not
            writable, or the path exists and must not be replaced.
    """
    if not isinstance(path, str | os.PathLike):
        text = f"path must be that of the result, not {type(path).__name__}"
        raise TypeError(f"{text}: arguments swapped? (path, image, model) is their order")
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    if suffix.lower() not in formats:
        raise ValueError(f"{path}: unknown suffix {suffix!r}; must be one of {', '.join(formats)}")
    kind = formats[suffix.lower()]
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{path}: there is no directory {directory}")
    what, may_replace = kind.replaces
    if os.path.lexists(target) and not may_replace(target):
        raise OSError(f"{path}: exists and is not a {what}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the directory {directory} is not writable")
    if shape is not None:
        _check_fits(path, kind, shape)
    if dtype is not None and np.dtype(dtype).name not in kind.dtypes:
        allowed = f"it takes {', '.join(kind.dtypes)}, see out_dtype="
        raise ValueError(f"{path}: {kind.name} cannot hold {np.dtype(dtype)}; {allowed}")
    return kind


def _check_fits(path: str, kind: Format, shape: Sequence[int]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"{path}: pixels of shape {tuple(shape)}; must be (H, W) or (H, W, C), none of them 0")
    channels = shape[2] if len(shape) == 3 else 1
    if kind.channels is not None and channels not in kind.channels:
        if channels in (2, 4):
            text = f"{kind.name} has no alpha channel, pixels of shape {tuple(shape)} have one; use PNG or TIFF"
            text += ", or background= for the colour behind them"
            raise ValueError(f"{path}: {text}")
        allowed = ", ".join(map(str, kind.channels))
        raise ValueError(f"{path}: {kind.name} cannot hold {channels} channels; it takes {allowed}")
    if max(shape[:2]) > kind.max_side:
        size = f"{shape[1]} x {shape[0]}"
        raise ValueError(f"{path}: {kind.name} holds up to {kind.max_side} pixels a side, not {size}; use PNG or TIFF")


@contextmanager
def open_sink(
    path: Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    images: int | None = None,
    like: Picture | None = None,
    quality: int = 95,
    compression: int = 6,
    pages: int = 1,
    background: Colour | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[FileSink]:
    """Opens a sink for an image (H, W) or (H, W, C), in the format of the suffix.

    The file is written beside `path` under a temporary name and replaces `path` when the context ends. An error or
    Ctrl-C removes it and leaves the old file in place.

    Args:
        images: the number of images of that shape, one after the other, for a file with an image axis, if the format
            is a `stack`; None: one image without such an axis.
        like, quality, compression, pages: as for `write_image`; only for image files.
        background: the colour in front of which pixels with alpha are laid; None keeps alpha. Only for image files.
        size: (height, width) to which the image is resampled. Only for image files.

    Raises:
        ValueError: the format cannot hold the image. OSError: it cannot be written, or disk space is too small.
    """
    path = os.fspath(path)
    kind = check_output(path, finished_shape(shape, background, size, pages), dtype)
    with kind.open_sink(
        path,
        shape,
        dtype,
        images=images,
        like=like,
        quality=quality,
        compression=compression,
        pages=pages,
        background=background,
        size=size,
    ) as sink:
        try:
            yield sink
            sink.close()
        finally:
            sink.abandon()
