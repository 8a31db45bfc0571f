# SPDX-License-Identifier: MIT
"""Opens the image at a path, by its suffix, and finds the path of an image."""

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


def open_source(path: str, layout: str | None, max_pixels: int | None) -> Source | np.ndarray:
    """The image in a .npy file, a zarr array's folder or an image file; a memory map where the rows of a .npy file
    cannot be read in the layout, if there is one.

    Raises:
        OSError: it cannot be opened. ValueError: it is no image. ImportError: what reads it is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npy":
        source = NpySource(path)
        if layout is not None and len(layout) == source.ndim:
            return source.laid(with_standard_names(layout))
        return source
    if suffix == ".zarr" or os.path.isdir(path):
        return zarr_source(path)
    return PictureSource(path, max_pixels=max_pixels)


def file_of(image: Any) -> str | None:
    """The path of the file that an array or a source reads; None where there is none or it is not known."""
    if isinstance(image, ArraySource):
        image = image.array
    if hasattr(image, "store"):
        root = getattr(image.store, "root", None)
        return None if root is None else os.path.join(root, image.path)
    while isinstance(image, np.ndarray) and not isinstance(image, np.memmap):
        image = image.base
    name = getattr(image, "path", None) or getattr(image, "filename", None)
    return None if name is None else os.fspath(name)
