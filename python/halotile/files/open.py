# SPDX-License-Identifier: MIT
"""Opens the image at a path by its suffix, and finds the path of an open image."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..images.source import ArraySource, Source
from ..layouts import with_standard_names
from .npy import NpySource
from .vips_rows import PictureSource
from .zarr import zarr_source

__all__ = ["file_of", "open_source"]


def open_source(path: str, layout: str | None, max_pixels: int | None, strict: bool = False) -> Source | np.ndarray:
    """Opens a .npy file, the folder of a zarr array, or an image file. Returns a memory map if the rows of a .npy file
    cannot be streamed in the given layout.

    Raises:
        OSError: it cannot be opened. ValueError: it is not an image. ImportError: a package to read it is missing.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npy":
        source = NpySource(path)
        if layout is not None and len(layout) == source.ndim:
            return source.laid(with_standard_names(layout))
        return source
    if suffix == ".zarr" or os.path.isdir(path):
        return zarr_source(path)
    return PictureSource(path, max_pixels=max_pixels, strict=strict)


def file_of(image: Any) -> str | None:
    """The path of the file behind an array or source; None if there is none or it is unknown."""
    if isinstance(image, ArraySource):
        image = image.array
    if hasattr(image, "store"):
        root = getattr(image.store, "root", None)
        return None if root is None else os.path.join(root, image.path)
    while isinstance(image, np.ndarray) and not isinstance(image, np.memmap):
        image = image.base
    name = getattr(image, "path", None) or getattr(image, "filename", None)
    return None if name is None else os.fspath(name)
