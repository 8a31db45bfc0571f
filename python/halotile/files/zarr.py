# SPDX-License-Identifier: MIT
"""Streams zarr arrays by rows. zarr is optional: `pip install 'halotile[zarr]'`."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from ..images.source import ArraySource
from ..optional import import_zarr
from ..texts import bytes_text, quoted
from .atomic import Draft, recover, replacing_folder, writing

if TYPE_CHECKING:
    import zarr

__all__ = [
    "CHUNK",
    "ZarrSink",
    "held_bytes",
    "is_zarr_array",
    "new_array",
    "open_sink",
    "shard_columns",
    "zarr_at",
    "zarr_source",
]

CHUNK = 256  # rows and columns of a chunk
SHARD_COLUMNS = 4096  # a shard, which is one file, has CHUNK rows
LARGEST_CHUNK = 2**33  # bytes: it is decoded as a whole
ROWS_OF_CHUNKS = 4  # waiting or being compressed


def is_zarr_array(folder: str) -> bool:
    """Whether a folder is a zarr array; a group has several arrays."""
    if os.path.isfile(os.path.join(folder, ".zarray")):
        return True
    with suppress(OSError, ValueError, AttributeError), open(os.path.join(folder, "zarr.json"), "rb") as file:
        return json.load(file).get("node_type") == "array"
    return False


# ---- reading ---------------------------------------------------------------------------------------------------------


def zarr_source(path: str) -> ArraySource:
    """The array in a folder. Raises OSError or ValueError if there is none."""
    array = _opened(path)
    item = np.dtype(array.dtype).itemsize
    if min(array.chunks, default=0) < 1 or math.prod(array.chunks) * item > LARGEST_CHUNK:
        text = f"its chunks are {'x'.join(map(str, array.chunks))}; each must hold a pixel, and at most"
        raise ValueError(f"{path}: not a readable zarr array: {text} {bytes_text(LARGEST_CHUNK)}")
    return ArraySource(array, array.chunks, path)


def zarr_at(url: str) -> zarr.Array:
    """The array at an address such as s3://bucket/scan.zarr. Raises ValueError if there is none that can be read."""
    library = import_zarr()
    try:
        return library.open_array(url, mode="r")
    except Exception as error:  # of the store, of its library and of zarr's checks
        raise ValueError(f"{url}: not a readable zarr array: {quoted(error)}") from error


def _opened(path: str) -> zarr.Array:
    library = import_zarr()
    recover(path)
    if not os.path.exists(path):
        raise FileNotFoundError(2, os.strerror(2), path)
    try:
        return library.open_array(path, mode="r")
    except Exception as error:  # of JSON, of zarr's checks and of codecs
        inside = _arrays_of_group(library, path)
        if inside:
            text = f"a zarr group, not an array: pass one of its arrays, such as {os.path.join(path, inside[0])}"
            raise ValueError(f"{path}: {text}") from error
        raise ValueError(f"{path}: not a readable zarr array: {quoted(error)}") from error


def _arrays_of_group(library: ModuleType, path: str) -> list[str]:
    """The sorted paths of a group's arrays; none if it is not a group."""
    with suppress(Exception):  # zarr raises many kinds of errors for other folders
        members = library.open_group(path, mode="r").members(max_depth=2)
        return sorted(name for name, member in members if isinstance(member, library.Array))
    return []


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_sink(
    path: str, shape: Sequence[int], dtype: DTypeLike, *, images: int | None = None, **_: object
) -> Iterator[ZarrSink]:
    with replacing_folder(path) as draft:
        yield ZarrSink(draft, shape, dtype, images)


def held_bytes(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Approximate bytes that a sink allocates."""
    rows = min(shape[0], ROWS_OF_CHUNKS * CHUNK)
    return rows * int(np.prod(shape[1:], dtype=object)) * np.dtype(dtype).itemsize


def shard_columns(width: int) -> int:
    """Columns of a shard of an array that wide."""
    return min(SHARD_COLUMNS, -(-width // CHUNK) * CHUNK)


def new_array(store: Any, shape: Sequence[int], dtype: DTypeLike, images: int | None = None) -> zarr.Array:
    """An array of one image, or of several images, without any shard."""
    channels = tuple(shape[2:])
    several, one, name = ((), (), ()) if images is None else ((images,), (1,), ("image",))
    return import_zarr().create_array(
        store=store,
        shape=(*several, *shape),
        dtype=np.dtype(dtype),
        chunks=(*one, CHUNK, CHUNK, *channels),
        shards=(*one, CHUNK, shard_columns(shape[1]), *channels),
        dimension_names=(*name, *("y", "x", "channel")[: len(shape)]),
        config={"write_empty_chunks": True},
    )


class ZarrSink:
    """Writes a zarr v3 array of one image, or of several images one after the other.

    Chunks have 256x256 pixels, shards 256x4096. Each shard is written once, so rows are buffered until a row of shards
    is complete. Every shard is written, also of zeros: readers take a missing one for zeros, so a loss would not
    show."""

    overlaps = True

    def __init__(self, draft: Draft, shape: Sequence[int], dtype: DTypeLike, images: int | None = None):
        self.draft, self.height = draft, shape[0]
        columns, one = shard_columns(shape[1]), () if images is None else (1,)
        self.array = new_array(draft.name, shape, dtype, images)
        self.waiting = np.empty((CHUNK, *shape[1:]), dtype)
        self.held = self.written = 0  # rows of the current image
        self.image: tuple[int, ...] = (0,) * len(one)  # its index, if there are several
        self.sizes = self._sizes(["zarr.json"])  # of the files written
        self.across, self.depth = -(-shape[1] // columns), len(shape) - 2  # shards side by side
        self.files = (images or 1) * -(-shape[0] // CHUNK) * self.across + len(self.sizes)

    def write(self, rows: np.ndarray) -> None:
        while len(rows):
            if not self.held and len(rows) >= CHUNK:
                self._store(rows[:CHUNK])
                rows = rows[CHUNK:]
                continue
            taken = rows[: CHUNK - self.held]
            self.waiting[self.held : self.held + len(taken)] = taken
            self.held += len(taken)
            rows = rows[len(taken) :]
            if self.held == CHUNK or self.written + self.held == self.height:
                self._store_held()

    def close(self) -> None:
        """Writes the buffered rows, and checks that all shards are there."""
        self._store_held()
        lost = self.files - len(self.sizes) + (self.written > 0)
        lost += sum(self._sizes([name])[name] != size for name, size in self.sizes.items())
        if lost:
            text = f"cannot be written: {lost} of its {self.files} files were removed or changed meanwhile"
            raise OSError(errno.EIO, text, self.draft.path)

    def _store_held(self) -> None:
        if self.held:
            self._store(self.waiting[: self.held])
            self.held = 0

    def _sizes(self, names: Sequence[str]) -> dict[str, int]:
        """The sizes of files in the folder; -1 if there is none."""
        paths = {name: os.path.join(self.draft.name, name) for name in names}
        return {name: os.path.getsize(path) if os.path.isfile(path) else -1 for name, path in paths.items()}

    def _store(self, rows: np.ndarray) -> None:
        self.draft.check()
        with writing(self.draft.path):
            self.array[(*self.image, slice(self.written, self.written + len(rows)))] = rows
        at, below = (*self.image, self.written // CHUNK), (0,) * self.depth
        key = self.array.metadata.encode_chunk_key
        self.sizes |= self._sizes([key((*at, column, *below)) for column in range(self.across)])
        self.written += len(rows)
        if self.written == self.height:
            self.image, self.written = tuple(index + 1 for index in self.image), 0

    def abandon(self) -> None:
        """Does nothing: there is no background work."""
