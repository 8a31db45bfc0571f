# SPDX-License-Identifier: MIT
"""Fills pixels without a value of their own from their surroundings, such as hidden ones (alpha 0).

Without this, stored values that mean nothing would leak into their neighbours through the model's receptive field. Each
gap gets the mean, weighted by alpha, of the smallest neighbourhood with a visible pixel. A neighbourhood is a block of
1, 2, 4 ... 64 pixels a side and its eight neighbours, on the image's own grid, so results depend on no tile, strip or
engine. Hidden pixels with nothing visible within 64 pixels become mid-grey.

Operations are rounded to float32 and run in a fixed order, so that NumPy and torch agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..optional import torch_if_loaded
from .image import Image, Pixels, as_words, peak_of
from .scan import is_zero, widened, widened_tensor
from .source import HeldRows, Source

if TYPE_CHECKING:
    import torch

__all__ = [
    "REACH",
    "FilledSource",
    "Gaps",
    "HiddenColours",
    "filled",
    "filled_tensor",
    "on_grid",
    "surroundings",
    "with_colours",
]

REACH = 64  # side of the largest block, and the least search distance, input pixels
LEVELS = 7
COLUMNS = 1024  # per step; a multiple of REACH
ROWS = 1024  # per step on a device

Rows = Callable[[int, int], np.ndarray]  # rows [start, stop) of an image: (C, rows, W)


class Gaps(Protocol):
    """What to fill, and with what. Arrays are (C, h, w) as stored, or tensors of words on a device."""

    def where(self, values: Pixels) -> Pixels:
        """A mask (1 or n, h, w) of the first n channels."""

    def colours(self, values: Pixels) -> Pixels:
        """What to fill them with: float32 (n, h', w') with h' >= h and w' >= w; exact at least REACH pixels from sides
        that are not those of the image."""


@dataclass(frozen=True)
class HiddenColours:
    """Colours beside alpha 0. grey: given where nothing is visible."""

    dtype: str
    grey: float

    def where(self, values: Pixels) -> Pixels:
        return is_zero(values[-1:], self.dtype) if isinstance(values, np.ndarray) else values[-1:] == 0

    def colours(self, values: Pixels) -> Pixels:
        if isinstance(values, np.ndarray):
            block = on_grid(widened(values, self.dtype), np)
            return surroundings(block[:-1], block[-1], self.grey, np)
        block = on_grid(widened_tensor(values), torch_if_loaded())
        return surroundings(block[:-1], block[-1], self.grey, torch_if_loaded())


def with_colours(image: Image, index: int) -> Image:
    """Image `index` alone with hidden pixels filled: read by rows, or a copy on its device."""
    return filled(image, index, HiddenColours(image.dtype, image.peak / 2))


def filled(image: Image, index: int, gaps: Gaps) -> Image:
    if not image.on_host:
        tensor = filled_tensor(image.tensor[index], image.dtype, gaps)
        return Image(tensor, image.dtype, "CHW", image.device, white=image.white)
    return Image(FilledSource(image, index, gaps), image.dtype, "HWC", white=image.white)


# ---- in host memory --------------------------------------------------------------------------------------------------


class FilledSource(Source):
    """An image with its gaps filled, in strips of REACH rows that also use REACH rows above and below. Each row is
    read once, from top to bottom."""

    step = REACH

    def __init__(self, image: Image, index: int, gaps: Gaps):
        height, width = image.size
        self.image, self.index, self.gaps = image, index, gaps
        self.shape, self.dtype = (height, width, image.channels), _stored(image)
        self.rows = _rows_of(image, index)

    def read(self, start: int, rows: np.ndarray) -> None:
        stop = start + len(rows)
        for first in range(start // REACH * REACH, stop, REACH):
            low, high = max(start, first), min(stop, first + REACH)
            self._fill_strip(first, low - first, rows[low - start : high - start])

    def _fill_strip(self, first: int, skipped: int, into: np.ndarray) -> None:
        """into: receives rows from `skipped` on of the strip that starts at row `first`."""
        height, width, _ = self.shape
        top, bottom = max(0, first - REACH), min(first + 2 * REACH, height)
        seen = self.rows(top, bottom)
        start = first + skipped - top
        into[...] = seen[:, start : start + len(into)].transpose(1, 2, 0)
        strip = slice(start, start + len(into))
        for left in range(0, width, COLUMNS):
            columns = slice(left, min(left + COLUMNS, width))
            where = self.gaps.where(seen[:, strip, columns])
            if not where.any():
                continue
            low, high = max(0, left - REACH), min(left + COLUMNS + REACH, width)
            with np.errstate(invalid="ignore", over="ignore"):  # non-finite values are ignored
                colours = self.gaps.colours(seen[:, :, low:high])
            wanted = _narrowed(colours[:, strip, left - low : columns.stop - low], self.image.dtype)
            target = into[:, columns, : len(colours)].transpose(2, 0, 1)
            np.copyto(target, wanted, where=where)


def _stored(image: Image) -> np.dtype:
    return np.dtype("uint16" if image.dtype == "bfloat16" else image.dtype)


def _rows_of(image: Image, index: int) -> Rows:
    if not image.by_rows:
        pixels = image.pixels[index]
        return lambda start, stop: pixels[:, start:stop]
    held = HeldRows(image.original.single(image.layout, index))

    def rows(start: int, stop: int) -> np.ndarray:
        found, first = held.holding(start, stop)
        return found[:, start - first : stop - first]

    return rows


def _narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds half to even."""
    if dtype == "bfloat16":
        torch = torch_if_loaded()
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    if dtype.startswith("uint"):
        return np.rint(values).clip(0, peak_of(dtype)).astype(dtype)
    return values.astype(dtype)


# ---- on a device -----------------------------------------------------------------------------------------------------


def filled_tensor(tensor: torch.Tensor, dtype: str, gaps: Gaps) -> torch.Tensor:
    torch = torch_if_loaded()
    filled, words = torch.empty_like(tensor), as_words(tensor)
    as_words(filled).copy_(words)
    _, height, width = tensor.shape
    for top, bottom in _pieces(height, ROWS):
        for left, right in _pieces(width, COLUMNS):
            y, x = max(0, top - REACH), max(0, left - REACH)
            seen = tensor[:, y : bottom + REACH, x : right + REACH]
            wanted = gaps.colours(seen)[:, top - y : bottom - y, left - x : right - x]
            own = as_words(filled[: len(wanted), top:bottom, left:right])
            where = gaps.where(words[:, top:bottom, left:right])
            own.copy_(torch.where(where, _narrowed_tensor(wanted, dtype, own.dtype), own))
    return filled


def _pieces(size: int, length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, length):
        yield start, min(start + length, size)


def _narrowed_tensor(values: torch.Tensor, dtype: str, word: torch.Tensor) -> torch.Tensor:
    """Rounds half to even."""
    if dtype.startswith("uint"):
        values = values.round().clamp(0, peak_of(dtype)).to(torch_if_loaded().int32)
    return values.to(word)


# ---- the same for both -----------------------------------------------------------------------------------------------


def on_grid(block: Pixels, xp: ModuleType) -> Pixels:
    """Zero-pads (C, h, w) at the bottom and right to whole blocks."""
    channels, height, width = block.shape
    shape = (channels, -(-height // REACH) * REACH, -(-width // REACH) * REACH)
    if shape == tuple(block.shape):
        return block
    full = np.zeros(shape, np.float32) if xp is np else block.new_zeros(shape)
    full[:, :height, :width] = block
    return full


def surroundings(colours: Pixels, alpha: Pixels, grey: float, xp: ModuleType) -> Pixels:
    """The mean colour of the smallest visible neighbourhood of every pixel: float32 (C, h, w).

    colours: (C, h, w), alpha: (h, w), float32, sides multiples of REACH. Exact at least REACH pixels from the sides.
    """
    seen = (alpha > 0) & xp.isfinite(alpha) & xp.isfinite(colours).all(0)
    nothing = xp.zeros_like(alpha)
    weight = xp.where(seen, alpha, nothing)
    pyramid = [(xp.where(seen, colours * weight, nothing), weight)]
    for _ in range(LEVELS - 1):
        pyramid.append(tuple(_halved(values) for values in pyramid[-1]))
    found = xp.full_like(pyramid[-1][0], grey)
    for level, (sums, weights) in enumerate(reversed(pyramid)):
        total = _with_neighbours(weights)
        shown = total > 0
        mean = _with_neighbours(sums) / xp.where(shown, total, xp.ones_like(total))
        found = xp.where(shown, mean, _doubled(found, xp) if level else found)
    return found


def _halved(values: Pixels) -> Pixels:
    rows = values[..., 0::2, :] + values[..., 1::2, :]
    return rows[..., 0::2] + rows[..., 1::2]


def _doubled(values: Pixels, xp: ModuleType) -> Pixels:
    channels, height, width = values.shape
    spread = xp.broadcast_to(values[:, :, None, :, None], (channels, height, 2, width, 2))
    return spread.reshape(channels, 2 * height, 2 * width)


def _with_neighbours(values: Pixels) -> Pixels:
    """Sums of 3 x 3 elements, with zeros outside."""
    rows = values + 0
    rows[..., 1:, :] += values[..., :-1, :]
    rows[..., :-1, :] += values[..., 1:, :]
    sums = rows + 0
    sums[..., 1:] += rows[..., :-1]
    sums[..., :-1] += rows[..., 1:]
    return sums
