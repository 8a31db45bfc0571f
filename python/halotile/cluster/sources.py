# SPDX-License-Identifier: MIT
"""What an image is on every worker: a path, an address, a zarr array or a dask array. Pixels do not travel with it."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files.open import open_source
from ..files.zarr import zarr_at
from ..images.image import is_tensor
from ..images.lazy import Computed
from ..images.source import ArraySource, Source, as_source
from .store import is_url

__all__ = ["CountedSource", "Reading", "checked_image", "identity_of", "opened_source"]

IN_MEMORY = "lies in the memory of this process, where no worker can read it: write it to a zarr array first"


def checked_image(image: Any) -> Any:
    """What can be sent of an image. Raises TypeError or ValueError for one that no other process can read."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if is_url(path):
            return path
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return os.path.abspath(path)
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    if kind == "zarr.Array":
        if type(image.store).__name__ == "MemoryStore":
            raise ValueError(f"image must not be a zarr array that {IN_MEMORY}")
        return image
    if kind == "dask.Array":
        from distributed.client import futures_of

        if futures_of(image):
            raise ValueError(
                "image must not be a persisted dask array: its blocks may vanish with a worker; write it to zarr"
            )
        return image
    if isinstance(image, np.ndarray) or is_tensor(image):
        raise TypeError(f"image must not be an array that {IN_MEMORY}")
    raise TypeError(f"image must be a path, an address, a zarr array or a dask array with cluster, not {kind}")


def identity_of(image: Any) -> object:
    """What tells one image from another without reading it: of files their names, sizes and times of change; of dask
    arrays their name, which is made of what they are made of; of stores, sizes and checksums where they tell them."""
    if isinstance(image, str) and not is_url(image):
        return [image, *_files_below(image)]
    if isinstance(image, str):
        return [image, *_objects_below(image)]
    if hasattr(image, "dask"):
        return ["dask", image.name]
    root = getattr(image.store, "root", None)
    if root is not None and os.path.isdir(root):
        path = os.path.join(root, image.path)
        return [str(path), *_files_below(str(path))]
    return [str(image.store), image.path, repr(image.metadata.to_dict())]


def _files_below(path: str) -> list[tuple[str, int, int]]:
    if not os.path.isdir(path):
        found = os.stat(path)
        return [("", found.st_size, found.st_mtime_ns)]
    below = sorted(os.path.join(here, name) for here, _, names in os.walk(path) for name in names)
    stats = ((name, os.stat(name)) for name in below)
    return [(os.path.relpath(name, path), one.st_size, one.st_mtime_ns) for name, one in stats]


def _objects_below(url: str) -> list[tuple[str, str]]:
    from fsspec.core import url_to_fs

    files, base = url_to_fs(url, use_listings_cache=False)
    found = files.find(base, detail=True)
    return [(name, str([about.get(key) for key in ("size", "ETag", "mtime")])) for name, about in sorted(found.items())]


# ---- on a worker -----------------------------------------------------------------------------------------------------


def opened_source(image: Any, layout: str | None, max_pixels: int | None, strict: bool) -> Source | np.ndarray:
    if isinstance(image, str) and is_url(image):
        image = zarr_at(image)
    if isinstance(image, str):
        return open_source(image, layout, max_pixels, strict)
    if hasattr(image, "dask"):
        return ArraySource(Computed(image, "synchronous"), image.chunksize)
    source = as_source(image)
    assert source is not None
    return source


@dataclass
class Reading:
    """What was read so far, decoded: bytes and seconds."""

    bytes: int = 0
    seconds: float = 0.0


class CountedSource(Source):
    """A source that counts what is read."""

    def __init__(self, source: Source, reading: Reading):
        self.source, self.reading = source, reading
        self.shape, self.dtype, self.step, self.layout = source.shape, source.dtype, source.step, source.layout

    def read(self, start: int, rows: np.ndarray) -> None:
        began = time.perf_counter()
        self.source.read(start, rows)
        self.reading.seconds += time.perf_counter() - began
        self.reading.bytes += rows.nbytes

    def laid(self, layout: str) -> Source | np.ndarray:
        laid = self.source.laid(layout)
        return CountedSource(laid, self.reading) if isinstance(laid, Source) else laid

    def single(self, layout: str, index: int) -> Source:
        return CountedSource(self.source.single(layout, index), self.reading)
