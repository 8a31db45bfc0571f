# SPDX-License-Identifier: MIT
"""Rows become the bytes of shards, the same that a single process writes; nothing is on a disk here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..files.zarr import CHUNK, new_array, shard_columns
from ..optional import import_zarr

__all__ = ["Encoder"]


class Encoder:
    """Of a result of that shape, (H, W) or (H, W, C)."""

    def __init__(self, shape: tuple[int, ...], dtype: str):
        self.memory: dict[str, Any] = {}
        self.array = new_array(import_zarr().storage.MemoryStore(self.memory), shape, dtype)
        self.height, self.width, self.below = shape[0], shape[1], (0,) * (len(shape) - 2)
        self.description: bytes = self.memory["zarr.json"].to_bytes()  # of the array, the file zarr.json

    def encoded(self, row: int, columns: range, rows: np.ndarray) -> dict[str, bytes]:
        """The files of some shards of a row, by name.

        rows: all columns of the result, (rows, W) or (rows, W, C).
        """
        return dict(self._shard(row, column, rows) for column in columns)

    def _shard(self, row: int, column: int, rows: np.ndarray) -> tuple[str, bytes]:
        side = shard_columns(self.width)
        x = slice(column * side, min(self.width, (column + 1) * side))
        self.array[row * CHUNK : row * CHUNK + len(rows), x] = rows[:, x]
        key = self.array.metadata.encode_chunk_key((row, column, *self.below))
        return key, self.memory.pop(key).to_bytes()

    def last_row(self, row: int, columns: range, get: Callable[[str], bytes | None]) -> np.ndarray:
        """The last row of pixels of a row of shards, (W,) or (W, C), of which only those columns are read.

        get: the content of a file by its name.
        """
        keys = [self.array.metadata.encode_chunk_key((row, column, *self.below)) for column in columns]
        buffer = import_zarr().core.buffer.cpu.Buffer
        for key in keys:
            self.memory[key] = buffer.from_bytes(get(key) or b"")
        try:
            return np.asarray(self.array[min(self.height, (row + 1) * CHUNK) - 1])
        finally:
            for key in keys:
                del self.memory[key]
