# SPDX-License-Identifier: MIT
"""Which source reads a path, and which path an image comes from."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..images.source import ArraySource
from ..layouts import with_standard_names
from .npy import NpySource
from .vips_rows import PictureSource
from .zarr import opened_zarr

__all__ = ["file_of", "open_source"]


def open_source(path: str, layout: str | None, max_pixels: int | None) -> Any:
    """The image in a .npy file, a zarr array's folder or an image file: a Source, or a memory map of a .npy file that
    rows cannot be read of in the layout, where that is known.

    Raises:
        OSError: it cannot be opened. ValueError: it is no image. ImportError: what reads it is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".npy":
        source = NpySource(path)
        fits = layout is not None and len(layout) == source.ndim
        return source.laid(with_standard_names(layout)) if fits else source
    if suffix == ".zarr" or os.path.isdir(path):
        zarr_array = opened_zarr(path)
        return ArraySource(zarr_array, zarr_array.chunks)
    return PictureSource(path, max_pixels=max_pixels)


def file_of(image: Any) -> str | None:
    """The path that an image comes from, where that is known."""
    if isinstance(image, ArraySource):
        image = image.array
    if hasattr(image, "store"):
        root = getattr(image.store, "root", None)
        return None if root is None else os.path.join(root, image.path)
    while isinstance(image, np.ndarray) and not isinstance(image, np.memmap):
        image = image.base
    name = getattr(image, "path", None) or getattr(image, "filename", None)
    return None if name is None else os.fspath(name)
