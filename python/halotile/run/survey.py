# SPDX-License-Identifier: MIT
"""Which calls of a model take statistics of the whole image, where the image lies in their operands, and which of them
depend on which: found with three small windows (h, w), (H, w), (h, W). Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_iter

from .statistics import Call, Watching

__all__ = ["Cut", "Found", "Survey", "surveyed"]

Pair = tuple[int, int]


@dataclass(frozen=True)
class Side:
    """Maps image pixels to elements along one dimension of an operand: index = rate * pixel - cut."""

    rate: Fraction
    cut: int

    def at(self, pixel: int) -> int:
        index = self.rate * pixel - self.cut
        if index.denominator != 1:
            raise ValueError(f"phase must be a multiple of the model's: input pixel {pixel} lies between its elements")
        return int(index)


@dataclass(frozen=True)
class Lie:
    """Where the image lies in an operand: in two dimensions, or flattened into one.

    Attributes:
        dims: dimensions of rows and columns; equal if flattened.
    """

    dims: Pair
    rows: Side
    columns: Side

    def part(self, x: torch.Tensor, window: Pair, rows: Cut, columns: Cut) -> torch.Tensor:
        row, column = self.dims
        flat = row == column
        if flat:
            x = x.unflatten(
                row, [int(side.rate * n) for side, n in zip((self.rows, self.columns), window, strict=True)]
            )
            column = row + 1
        for dim, side, (start, stop) in ((row, self.rows, rows), (column, self.columns, columns)):
            first = 0 if start is None else side.at(start)
            last = x.shape[dim] if stop is None else side.at(stop)
            x = x.narrow(dim, first, last - first)
        return x.flatten(row, column) if flat else x


Cut = tuple[int | None, int | None]  # (start, stop) in input pixels of a window; None: up to its border


@dataclass(frozen=True)
class Found:
    """A call that reduces over the whole image.

    Attributes:
        level: length of the longest chain of such calls that it depends on.
    """

    name: str
    level: int
    lies: tuple[Lie, ...]


@dataclass(frozen=True)
class Survey:
    """Attributes:
    found: global calls by call number.
    calls: number of all calls of watched operators.
    """

    found: dict[int, Found]
    calls: int

    @property
    def levels(self) -> int:
        return max((one.level for one in self.found.values()), default=-1) + 1


Shapes = list[tuple[str, list[tuple[tuple[int, ...], tuple[int, ...]]], tuple[int, ...]]]


def surveyed(run: Callable[[Pair], None], size: Pair, larger: Pair, even: bool = True) -> Survey:
    """Args:
        run: runs the model on a window of a given size.
        size, larger: two window sizes (rows, columns) that the model accepts, also with their sides mixed.
        even: whether the model scales rows and columns alike.

    Raises:
        ValueError: a call reduces over whole rows or returns something as large as the image, or the calls depend on
            the window size.
    """
    looks = [_shapes(run, one) for one in (size, (larger[0], size[1]), (size[0], larger[1]))]
    if len({tuple(name for name, *_ in look) for look in looks}) > 1:
        raise ValueError("global_stats needs a model that does the same for windows of every size; this one does not")
    lies = {}
    for number, (one, taller, wider) in enumerate(zip(*looks, strict=True)):
        found = _lies(one, taller, wider, size, larger, even)
        if found is not None:
            lies[number] = found
    levels = _levels(run, size, set(lies))
    names = [name for name, *_ in looks[0]]
    return Survey({n: Found(names[n], levels[n], lies[n]) for n in lies}, len(names))


def _shapes(run: Callable[[Pair], None], size: Pair) -> Shapes:
    seen: Shapes = []

    def handle(_: int, call: Call) -> Any:
        seen.append((call.name, [(tuple(x.shape), dims) for x, dims in call.operands], call.sizes))
        return NotImplemented

    with Watching(handle):
        run(size)
    return seen


def _lies(one: Any, taller: Any, wider: Any, size: Pair, larger: Pair, even: bool) -> tuple[Lie, ...] | None:
    name, operands, sizes = one
    grows = [
        {dim for dim in dims if shape[dim] != other[1][i][0][dim]}
        for i, (shape, dims) in enumerate(operands)
        for other in (taller, wider)
    ]
    if not any(grows):
        return None
    if sizes != taller[2] or sizes != wider[2]:
        raise ValueError(f"{name} takes whole rows, columns or windows together, or gives something for every pixel")
    lies = []
    for i, (shape, _) in enumerate(operands):
        rows, columns = grows[2 * i], grows[2 * i + 1]
        if len(rows) != 1 or len(columns) != 1:
            raise ValueError(f"{name} takes whole rows or columns together")
        (row,), (column,) = rows, columns
        if row == column:
            lies.append(_flat(name, row, shape[row], size, even))
            continue
        sides = [
            _side(name, shape[dim], other[1][i][0][dim], size[axis], larger[axis])
            for axis, (dim, other) in enumerate(((row, taller), (column, wider)))
        ]
        lies.append(Lie((row, column), *sides))
    return tuple(lies)


def _side(name: str, length: int, longer: int, side: int, larger: int) -> Side:
    rate = Fraction(longer - length, larger - side)
    twice = rate * side - length
    if twice.denominator != 1 or twice % 2:
        raise ValueError(f"{name} takes an image together that was cropped unevenly")
    return Side(rate, int(twice) // 2)


def _flat(name: str, dim: int, length: int, size: Pair, even: bool) -> Lie:
    square = Fraction(length, size[0] * size[1])
    rate = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
    if rate * rate != square or not even:
        raise ValueError(f"{name} takes {length} elements together, in which rows and columns cannot be told apart")
    return Lie((dim, dim), Side(rate, 0), Side(rate, 0))


def _levels(run: Callable[[Pair], None], size: Pair, numbers: set[int]) -> dict[int, int]:
    """The level of each call: the longest chain of earlier global calls among its inputs."""
    levels: dict[int, int] = {}
    known: dict[int, tuple[StorageWeakRef, int]] = {}  # by storage; the reference prevents reuse of the address

    def level_of(values: object) -> int:
        storages = (one.untyped_storage()._cdata for one in tree_iter(values) if isinstance(one, torch.Tensor))
        return max((known[one][1] for one in storages if one in known), default=0)

    def note(values: object, level: int) -> None:
        for one in tree_iter(values):
            if isinstance(one, torch.Tensor) and level:
                reference = StorageWeakRef(one.untyped_storage())
                known[reference.cdata] = reference, max(level, level_of(one))

    def handle(number: int, call: Call) -> Any:
        if number not in numbers:
            return NotImplemented
        levels[number] = level_of([x for x, _ in call.operands])
        result = call.result(call.measured())
        note(result, levels[number] + 1)
        return result

    with Watching(handle, lambda inputs, outputs: note(outputs, level_of(inputs))):
        run(size)
    return levels
