# SPDX-License-Identifier: MIT
"""Which source reads a path, and which path an image comes from."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np

from ..images.source import ArraySource, NpySource
from ..layouts import with_standard_names
from ..optional import import_zarr
from ..texts import quoted
from .vips_rows import PictureSource

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
        zarr_array = _opened_zarr(path)
        return ArraySource(zarr_array, zarr_array.chunks)
    return PictureSource(path, max_pixels=max_pixels)


def _opened_zarr(path: str) -> Any:
    zarr = import_zarr()
    if not os.path.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    try:
        return zarr.open_array(path, mode="r")
    except (ValueError, KeyError, TypeError, OSError) as error:
        inside = _arrays_of_group(zarr, path)
        if inside:
            text = f"a zarr group, not an array: pass one of its arrays, such as {os.path.join(path, inside[0])}"
            raise ValueError(f"{path}: {text}") from error
        raise ValueError(f"{path}: not a readable zarr array: {quoted(error)}") from error


def _arrays_of_group(zarr: Any, path: str) -> list[str]:
    """Their paths in it, sorted; none where it is no group."""
    with contextlib.suppress(Exception):  # whatever zarr raises about what is no zarr
        members = zarr.open_group(path, mode="r").members(max_depth=2)
        return sorted(name for name, member in members if isinstance(member, zarr.Array))
    return []


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
