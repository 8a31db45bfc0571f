# SPDX-License-Identifier: MIT
"""Statistics of many elements, and calls of operators that use them. Imports torch.

A statistic is a count and one or two tensors, and can be merged over parts of the image. A `Call` is an operator with
its operands, the dimensions that it reduces, and its result for any statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Statistic:
    """Numbers that summarise many elements. The reduced dimensions are kept, with size 1.

    Attributes:
        kind: "mean" or "moments" (mean, and sum of squared deviations), "power" (mean of `x ** p`), "most"
            (largest, smallest), "product" (mean of products).
        count: number of elements that each number summarises.
    """

    kind: str
    count: float
    first: torch.Tensor
    second: torch.Tensor | None = None

    def merged(self, other: Statistic) -> Statistic:
        """The statistic of the elements of both."""
        count = self.count + other.count
        share = other.count / count
        if self.kind == "most":
            return Statistic(
                self.kind, count, torch.maximum(self.first, other.first), torch.minimum(self.second, other.second)
            )
        apart = other.first - self.first
        second = None
        if self.second is not None:
            second = self.second + other.second + apart * apart * (self.count * share)
        return Statistic(self.kind, count, self.first + apart * share, second)

    def of_as_many(self, times: float) -> Statistic:
        """The statistic of `times` copies of the elements."""
        second = self.second * times if self.kind == "moments" else self.second
        return Statistic(self.kind, self.count * times, self.first, second)

    def variance(self, less: float = 0) -> torch.Tensor:
        return self.second / max(self.count - less, 0) if self.count > less else torch.full_like(self.second, math.nan)

    def repeated(self, like: Sequence[int]) -> Statistic:
        """The statistic for several images in one dimension of an operand whose statistic has the sizes `like`."""
        return Statistic(self.kind, self.count, *(_repeated(one, like) for one in (self.first, self.second)))


def _repeated(one: torch.Tensor | None, like: Sequence[int]) -> torch.Tensor | None:
    if one is None or tuple(one.shape) == tuple(like):
        return one
    return one.repeat([want // have for want, have in zip(like, one.shape, strict=True)])


def measured(kind: str, operands: Sequence[tuple[torch.Tensor, tuple[int, ...]]], power: float = 2) -> Statistic:
    """The statistic of the operands' elements, or of two operands' products for the kind "product"."""
    x, dims = operands[0]
    count = float(math.prod(x.shape[dim] for dim in dims))
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if kind == "most":
        return Statistic(kind, count, x.amax(dims, True), x.amin(dims, True))
    if kind == "power":
        return Statistic(kind, count, (x * x if power == 2 else x.abs() ** power).mean(dims, True))
    if kind == "product":
        return Statistic(kind, count, torch.matmul(x, operands[1][0].to(x.dtype)) / count)
    mean = x.mean(dims, True)
    return Statistic(kind, count, mean, (x - mean).square().sum(dims, True) if kind == "moments" else None)


@dataclass
class Call:
    """One call of an operator.

    Attributes:
        name: the operator's name.
        kind, power: see Statistic.
        operands: (tensor, reduced dimensions); two matrices for "product".
        result: maps a statistic of the operands to the operator's result.
    """

    name: str
    kind: str
    operands: tuple[tuple[torch.Tensor, tuple[int, ...]], ...]
    result: Callable[[Statistic], Any]
    power: float = 2

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the statistic."""
        x, dims = self.operands[0]
        if self.kind == "product":
            return (*x.shape[:-1], self.operands[1][0].shape[-1])
        return tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))

    def measured(self, operands: Any = None) -> Statistic:
        """The statistic of the operands, or of parts of them."""
        return measured(self.kind, self.operands if operands is None else operands, self.power)
