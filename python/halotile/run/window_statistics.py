# SPDX-License-Identifier: MIT
"""Statistics of a window around every pixel, with the published arithmetic of TLC (arXiv 2112.04491).

    pixel      0 1 2 3 4 5 6 7          a window of 4 starts (4 - 1) // 2 pixels before its pixel and is moved inside
    window of  [0 0 0 1 2 3 4 4]        at the edges, so that the first and last results repeat

Sums of windows are made of sums within blocks of a window's size, forwards and backwards: two additions a pixel for any
size, and no difference of large numbers. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["Gram", "slid", "window_maps"]

Pair = tuple[int, int]
Tensor = torch.Tensor
WIDE = ("cpu", "cuda", "xpu")  # devices with float64


def window_starts(length: int, size: int, device: torch.device) -> Tensor:
    """Where the window of each pixel starts."""
    return (torch.arange(length, device=device) - (size - 1) // 2).clamp(0, length - size)


def slid(x: Tensor, dim: int, size: int, largest: bool = False) -> Tensor:
    """Sums (or the largest) of the windows of `size` elements along a dimension, one for each element."""
    length = x.shape[dim]
    size = min(size, length)
    if size == length:
        return (x.amax(dim, True) if largest else x.sum(dim, True)).expand(x.shape)
    blocks = -(-length // size)
    filler = list(x.shape)
    filler[dim] = blocks * size - length
    whole = torch.cat([x, x.new_full(filler, -math.inf if largest else 0.0)], dim)
    whole = torch.unflatten(whole, dim, (blocks, size))
    ahead = _running(whole, dim + 1, largest).flatten(dim, dim + 1)
    behind = _running(whole.flip(dim + 1), dim + 1, largest).flip(dim + 1).flatten(dim, dim + 1)
    count = length - size + 1
    later, earlier = ahead.narrow(dim, size - 1, count), behind.narrow(dim, 0, count)
    if largest:
        sums = torch.maximum(later, earlier)
    else:  # a window that is a block is whole in one of the two
        split = (torch.arange(count, device=x.device) % size != 0).view(-1, *[1] * (x.ndim - 1 - dim))
        sums = later + torch.where(split, earlier, torch.zeros_like(earlier))
    return sums.index_select(dim, window_starts(length, size, x.device))


def _running(x: Tensor, dim: int, largest: bool) -> Tensor:
    return torch.cummax(x, dim)[0] if largest else torch.cumsum(x, dim)


def window_maps(
    kind: str, x: Tensor, others: Sequence[int], space: Pair, size: Pair, power: float
) -> tuple[Tensor, Tensor | None]:
    """The numbers of a `Statistic` for the window around each pixel, and of all elements along `others`.

    Args:
        space: dimensions of rows and columns of the operand `x`.
        size: of windows, in its elements.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sides = [min(one, x.shape[dim]) for dim, one in zip(space, size, strict=True)]
    count = sides[0] * sides[1]

    def mean(values: Tensor) -> Tensor:
        values = values.mean(tuple(others), True) if others else values
        for dim, side in zip(space, sides, strict=True):
            values = slid(values, dim, side)
        return values / count

    def largest(values: Tensor) -> Tensor:
        values = values.amax(tuple(others), True) if others else values
        for dim, side in zip(space, sides, strict=True):
            values = slid(values, dim, side, largest=True)
        return values

    if kind == "most":
        return largest(x), -largest(-x)
    if kind == "power":
        return mean(x * x if power == 2 else x.abs() ** power), None
    if kind == "mean":
        return mean(x), None
    about = x.nanmean((*others, *space), True)  # a variance does not change with it, and loses fewer digits
    apart = mean(x - about)
    number = count * math.prod(x.shape[dim] for dim in others)
    return apart + about, (mean((x - about).square()) - apart.square()).clamp_min(0) * number


class Gram:
    """Means of products of channels over the window around each pixel: matrices, made row by row, as all of them
    together would be as large as the image times all pairs of channels.

    Args:
        left, right: (matrices, channels, rows, columns).
    """

    def __init__(self, left: Tensor, right: Tensor, size: Pair):
        self.left, self.right = left, right
        height, width = left.shape[2:]
        self.size = min(size[0], height), min(size[1], width)
        self.starts = window_starts(height, self.size[0], torch.device("cpu")).tolist()
        self.columns = window_starts(width, self.size[1], left.device)
        self.dtype = torch.float64 if left.device.type in WIDE else torch.float32
        self.row = -1  # to which row `sums` belong
        self.sums: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        """Matrices (rows times columns, matrices, left channels, right channels)."""
        return torch.cat([self._of_row(row) for row in range(start, stop)])

    def _of_row(self, row: int) -> Tensor:
        tall, wide = self.size
        first = self.starts[row]
        if self.sums is None or row < self.row or first >= self.starts[self.row] + tall:
            self.sums = self._products(first, first + tall)
        else:
            for above in range(self.starts[self.row], first):
                self.sums += self._products(above + tall, above + tall + 1)
                self.sums -= self._products(above, above + 1)
        self.row = row
        means = self.sums
        if wide > 1:
            total = torch.cat([torch.zeros_like(self.sums[:1]), self.sums.cumsum(0)])
            means = total[wide:] - total[: len(total) - wide]
        means = means / (tall * wide)
        return means.to(torch.promote_types(self.left.dtype, torch.float32)).index_select(0, self.columns)

    def _products(self, start: int, stop: int) -> Tensor:
        """Sums over rows of the products of each column: (columns, matrices, left channels, right channels)."""
        one, other = (x[:, :, start:stop].to(self.dtype) for x in (self.left, self.right))
        return torch.matmul(one.permute(3, 0, 1, 2), other.permute(3, 0, 2, 1))
