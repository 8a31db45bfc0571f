# SPDX-License-Identifier: MIT
"""Destinations of finished rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..images.image import Pixels, as_words
from ..plan import TilePlan

__all__ = ["Rows", "bytes_of_bands"]


class Rows:
    """Destinations of the tile rows in progress.

    After a restart with smaller tiles the first ones overlap finished rows; those go to scratch memory.
    """

    def __init__(
        self,
        plan: TilePlan,
        destination: Callable[[int, int], Any],
        scratch: Callable[[int], Any],
        rows_done: int,
    ):
        self.plan, self.destination, self.scratch, self.rows_done = plan, destination, scratch, rows_done
        self.rows: dict[int, Any] = {}
        self.copies: dict[int, Any] = {}

    def open(self, row: int) -> None:
        start, stop = self.plan.core.done(0, row)
        above = min(max(self.rows_done - start, 0), stop - start)
        if above == 0:
            self.rows[row] = self.destination(start, stop)
            return
        if above == stop - start:
            self.rows[row] = self.scratch(stop - start)
            return
        wanted = self.destination(start + above, stop)
        self.rows[row] = _empty_like(wanted, stop - start)
        self.copies[row] = wanted, above

    def channels(self, first: int, count: int) -> dict[int, Any]:
        return {row: rows[first : first + count] for row, rows in self.rows.items()}

    def close(self, row: int) -> None:
        rows = self.rows.pop(row)
        if row in self.copies:
            wanted, above = self.copies.pop(row)
            done = rows[:, above:]
            if isinstance(wanted, np.ndarray):
                wanted[:] = done
            else:
                as_words(wanted).copy_(as_words(done))


def bytes_of_bands(plan: TilePlan, batch: int, pixel_bytes: int, waiting: int) -> int:
    """Bytes of finished bands in progress and in the queue."""
    bands = min(plan.rows_at_once(batch) + waiting, plan.grid[0])
    return bands * plan.tallest_band() * plan.output_size[1] * pixel_bytes


def _empty_like(rows: Pixels, height: int) -> Pixels:
    shape = (rows.shape[0], height, rows.shape[2])
    return np.empty(shape, rows.dtype) if isinstance(rows, np.ndarray) else rows.new_empty(shape)
