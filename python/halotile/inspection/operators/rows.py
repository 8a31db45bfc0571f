# SPDX-License-Identifier: MIT
"""Shared code of the rules for row maps: a call of an operator, and common steps. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..rowmaps import (
    Dim,
    Event,
    Part,
    RowMap,
    Unknown,
    Value,
    coalesced,
    dim_size,
    joined,
    moved,
    opaque,
    spatial,
    with_constant,
)

POOLING = "global pooling"


@dataclass
class Operation:
    """One call of an operator. `operation[name]` is the argument with that name in the operator's schema."""

    name: str
    path: str
    arguments: dict[str, Any]
    outputs: list[torch.Tensor]
    known: Callable[[torch.Tensor], Value | None]
    is_parameter: Callable[[torch.Tensor], bool]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def value(self, name: str) -> Value:
        """The value of an argument that depends on the image. Raises Unknown if it is a constant."""
        value = self.known(self[name])
        if value is None:
            raise Unknown("a constant where the image is expected")
        return value

    def event(self, kind: str = "", what: str = "global") -> Event:
        return Event(what, self.path, self.name, kind)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.outputs[0].shape)

    def tensors(self, *names: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for name in names or self.arguments:
            argument = self.arguments[name]
            found += [
                t for t in (argument if isinstance(argument, (list, tuple)) else [argument]) if torch.is_tensor(t)
            ]
        return found

    def joined(self, tensors: Sequence[torch.Tensor], drop: int | None = None) -> Value:
        """The result of an elementwise operator on values and constants; `drop` is a dimension to ignore."""
        values = [value for value in map(self.known, tensors) if value is not None]
        if drop is not None:
            values = [value.with_dim(drop) for value in values]
        result = joined(values)
        for tensor in tensors:
            if self.known(tensor) is None:
                constants = [tensor] if drop is None else [part.unsqueeze(drop) for part in tensor.unbind(drop)]
                for constant in constants:
                    result = self.with_constant(result, constant, parameter=self.is_parameter(tensor))
        return result

    def with_constant(self, value: Value, constant: torch.Tensor, *, parameter: bool | None = None) -> Value:
        own = self.is_parameter(constant) if parameter is None else parameter
        return with_constant(value, constant, self.event(), parameter=own)


def dims_of(op: Operation, value: Value, name: str = "dim") -> list[int]:
    """The dimensions that an argument names, or all if it names none."""
    dims, rank = op.arguments.get(name), len(value.dims)
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


def broadcast(value: Value, shape: Sequence[int]) -> Value:
    """A value expanded to a shape: dimensions of size 1 are repeated."""
    dims = ((),) * (len(shape) - len(value.dims)) + value.dims
    return value.with_dims(
        dim if dim_size(dim) == size else opaque(size) for dim, size in zip(dims, shape, strict=True)
    )


def at_edges(op: Operation, result: Value, others: Sequence[Value], count: int) -> Value:
    """A result with foreign rows or columns at an edge, on which the inside does not depend."""
    events = frozenset().union(*(value.events for value in others))
    kept = [event for event in events if event.what != "strip"]
    return result.with_events(*kept, op.event(f"{count} rows or columns at an edge come from elsewhere", "edge"))


def per_axis(setting: Any, count: int, default: int = 0) -> list[int]:
    """A setting of a convolution or pooling for each of its axes."""
    values = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    return [default] * count if not values else values * count if len(values) == 1 else values


def windowed(value: Value, index: int, size: int, taps: Sequence[int], stride: int) -> Value:
    """Makes each result row `o` of a dimension depend on its rows `stride * o + tap`."""
    dim = value.dims[index]
    if list(taps) == [0] and stride == 1:
        return value
    if not spatial(dim):
        return value.with_dim(index, *opaque(size))
    if len(dim) == 1 and not value.is_outermost(dim[0]):  # inside attention windows
        if stride != 1 or size != dim[0].size:
            raise Unknown("windows that do not keep their size")
        return value.with_map(dim[0].axis, _taps_inside(value.maps[dim[0].axis], dim[0], taps))
    return moved(value, index, size, 1, stride, lambda row: [stride * row + tap for tap in taps])


def _taps_inside(rows: RowMap, part: Part, taps: Sequence[int]) -> RowMap:
    window = part.step * part.size

    def sources(row: int) -> list[int]:
        digit = row // part.step % part.size
        return [row + tap * part.step for tap in taps if 0 <= digit + tap < part.size]

    return rows.pull(window, window, sources)


def transposed(value: Value, index: int, size: int, taps: Sequence[int], stride: int) -> Value:
    """Makes result rows `stride * i + tap` depend on row `i` of a dimension."""
    if list(taps) == [0] and stride == 1:
        return value
    if not spatial(value.dims[index]):
        return value.with_dim(index, *opaque(size))
    return moved(
        value, index, size, stride, 1, lambda row: [(row - tap) // stride for tap in taps if (row - tap) % stride == 0]
    )


class Aligned(Exception):
    """align_corners is set: the source of a row depends on the size of the image."""


def regrouped(value: Value, shape: Sequence[int]) -> Value:
    """The same elements in the same order, in other dimensions. Raises Unknown if a dimension would split rows."""
    parts = list(coalesced(part for dim in value.dims for part in dim))[::-1]
    dims: list[Dim] = []
    for size in shape:
        dim: list[Part] = []
        rest = size
        while rest > 1:
            part = parts.pop() if parts else Part(None, 1)
            if rest % part.size == 0 and part.size > 1:
                dim.append(part)
                rest //= part.size
            elif part.size % rest == 0 and part.size > 1:
                dim.append(Part(part.axis, rest, part.step * (part.size // rest)))
                parts.append(Part(part.axis, part.size // rest, part.step))
                rest = 1
            else:
                raise Unknown("a reshape that cuts across rows")
        dims.append(tuple(dim))
    return value.with_dims(dims)
