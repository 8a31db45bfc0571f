# SPDX-License-Identifier: MIT
"""Zarr arrays, read and written by rows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..optional import import_zarr
from ..texts import quoted
from .atomic import writing

__all__ = ["CHUNK", "ROWS_OF_CHUNKS", "ZarrSink", "opened_zarr"]

CHUNK = 256  # rows and columns of a zarr array that are compressed together
ROWS_OF_CHUNKS = 4  # that wait, or are being compressed
SHARD_COLUMNS = 4096  # of a file of it, which is CHUNK rows high: so many rows wait to be written at most


def opened_zarr(path: str) -> Any:
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


class ZarrSink:
    """A zarr v3 array in a folder: chunks of 256x256 pixels, shards of 256x4096, each written once and whole.

    Rows wait in memory until a row of shards is complete. Of several images one comes after the other."""

    overlaps = True

    def __init__(self, path: str, folder: str, shape: Sequence[int], dtype: Any, images: int | None = None):
        self.path, self.height, channels = path, shape[0], tuple(shape[2:])
        columns = min(SHARD_COLUMNS, -(-shape[1] // CHUNK) * CHUNK)
        several, one, name = ((), (), ()) if images is None else ((images,), (1,), ("image",))
        self.array = import_zarr().create_array(
            store=folder,
            shape=(*several, *shape),
            dtype=np.dtype(dtype),
            chunks=(*one, CHUNK, CHUNK, *channels),
            shards=(*one, CHUNK, columns, *channels),
            dimension_names=(*name, *("y", "x", "channel")[: len(shape)]),
        )
        self.waiting = np.empty((CHUNK, *shape[1:]), dtype)
        self.held = self.written = 0  # rows; of the image in work
        self.image: tuple[int, ...] = (0,) * len(one)

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
                self.close()

    def close(self) -> None:
        """Writes the rows that wait."""
        if self.held:
            self._store(self.waiting[: self.held])
            self.held = 0

    def _store(self, rows: np.ndarray) -> None:
        with writing(self.path):
            self.array[(*self.image, slice(self.written, self.written + len(rows)))] = rows
        self.written += len(rows)
        if self.written == self.height:
            self.image, self.written = tuple(index + 1 for index in self.image), 0

    def abandon(self) -> None:
        """Nothing needs to be stopped."""
