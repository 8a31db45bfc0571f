# SPDX-License-Identifier: MIT
"""What operators that work near each element do to dependencies: element by element, convolutions, pooling, resizing.

A *rule* makes the value of an operator's result from those of its arguments; `RULES` is the one table of them. An
operator without a rule is unknown, never local. More rules: moves.py, mixes.py. Imports torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from .rowmaps import Event, Part, RowMap, Unknown, Value, dim_size, joined, mixed, moved, opaque, spatial, with_constant

__all__ = ["RULES", "Operation", "rule"]


@dataclass
class Operation:
    """One call of an operator. Its arguments are had by their names in the operator's schema."""

    name: str
    path: str
    arguments: dict[str, Any]
    outputs: list[torch.Tensor]
    known: Callable[[torch.Tensor], Value | None]
    is_parameter: Callable[[torch.Tensor], bool]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def value(self, name: str) -> Value:
        """Of an argument that depends on the input. Raises Unknown if it is a constant."""
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
        """Values and constants, element by element; a dimension that does not count may be left out."""
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


Rule = Callable[[Operation], "Value | list[Value]"]
RULES: dict[str, Rule] = {}


def rule(*operators: str, **settings: Any) -> Callable[[Callable], Callable]:
    """Enters a rule into the table, for ATen operators of these names (all overloads)."""

    def enter(function: Callable) -> Callable:
        for name in operators:
            RULES[name] = functools.partial(function, **settings) if settings else function
        return function

    return enter


def dims_of(op: Operation, value: Value, name: str = "dim") -> list[int]:
    """The dimensions that an argument names; all, if it names none."""
    dims, rank = op.arguments.get(name), len(value.dims)
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else [dims])]


# ---- element by element ----------------------------------------------------------------------------------------------


# Beside these, all that torch tags as pointwise.
@rule("_prelu_kernel", "prelu", "rrelu_with_noise_functional", "masked_fill", "where", "complex", "real", "imag")
@rule("addcmul", "addcdiv", "lerp", "fill")
def pointwise_rows(op: Operation) -> Value:
    return with_excitation(op, op.joined(op.tensors()))


def with_excitation(op: Operation, result: Value) -> Value:
    """A product of what has rows and what was pooled over all of them: squeeze-and-excite."""
    values = [value for value in map(op.known, op.tensors()) if value is not None]
    pooled = [value for value in values if not any(rows.shift for rows in value.maps)]
    if len(values) != 2 or len(pooled) != 1 or ".mul" not in op.name:
        return result
    changed = {event: event._replace(kind="squeeze-and-excite") for event in pooled[0].events if event.kind == POOLING}
    return replace(result, events=frozenset(changed.get(event, event) for event in result.events))


POOLING = "global pooling"


@rule("alias", "clone", "detach", "contiguous", "_to_copy", "to", "lift_fresh", "lift_fresh_copy", "_conj")
def same_rows(op: Operation) -> Value:
    return op.joined(op.tensors()[:1])


@rule("copy")
def copy_rows(op: Operation) -> Value:
    return broadcast(op.value("src"), op.shape)


@rule("expand")
def expand_rows(op: Operation) -> Value:
    return broadcast(op.value("self"), op.shape)


def broadcast(value: Value, shape: Sequence[int]) -> Value:
    dims = ((),) * (len(shape) - len(value.dims)) + value.dims
    return value.with_dims(
        dim if dim_size(dim) == size else opaque(size) for dim, size in zip(dims, shape, strict=True)
    )


@rule("cat")
def cat_rows(op: Operation) -> Value:
    tensors = [tensor for tensor in op["tensors"] if tensor.numel()]
    dim = op["dim"] % len(op.shape)
    values = [op.known(tensor) for tensor in tensors]
    if not any(value is not None and spatial(value.dims[dim]) for value in values):
        return op.joined(tensors, drop=dim).with_dim(dim, *opaque(op.shape[dim]))
    sizes = [tensor.shape[dim] for tensor in tensors]
    main = max(range(len(sizes)), key=sizes.__getitem__)
    if values[main] is None or any(4 * size > sum(sizes) for place, size in enumerate(sizes) if place != main):
        raise Unknown("pieces of an image are put side by side")
    before = sum(sizes[:main])
    result = moved(values[main], dim, sum(sizes), 1, 1, lambda row: [row - before])
    return at_edges(op, result, [value for value in values if value is not None], sum(sizes) - sizes[main])


def at_edges(op: Operation, result: Value, others: Sequence[Value], count: int) -> Value:
    """Near an edge something else was put: it does not count for what lies inside."""
    events = frozenset().union(*(value.events for value in others))
    kept = [event for event in events if event.what != "strip"]
    return result.with_events(*kept, op.event(f"{count} rows or columns at an edge come from elsewhere", "edge"))


@rule("stack")
def stack_rows(op: Operation) -> Value:
    value = op.joined(op["tensors"])
    dim = op["dim"] % len(op.shape)
    return value.with_dims((*value.dims[:dim], opaque(op.shape[dim]), *value.dims[dim:]))


# ---- convolutions, pooling -------------------------------------------------------------------------------------------


def per_axis(setting: Any, count: int, default: int = 0) -> list[int]:
    """A setting of a convolution or pooling for each of its axes."""
    values = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    return [default] * count if not values else values * count if len(values) == 1 else values


def windowed(value: Value, index: int, size: int, taps: Sequence[int], stride: int) -> Value:
    """Each result row `o` of a dimension sees rows `stride * o + tap` of it."""
    dim = value.dims[index]
    if list(taps) == [0] and stride == 1:
        return value
    if not spatial(dim):
        return value.with_dim(index, *opaque(size))
    if len(dim) == 1 and not value.is_outermost(dim[0]):  # inside windows of attention
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
    """Each row `i` of a dimension goes to result rows `stride * i + tap`."""
    if list(taps) == [0] and stride == 1:
        return value
    if not spatial(value.dims[index]):
        return value.with_dim(index, *opaque(size))
    return moved(
        value,
        index,
        size,
        stride,
        1,
        lambda row: [(row - tap) // stride for tap in taps if (row - tap) % stride == 0],
    )


@rule("convolution", "_convolution")
def convolution_rows(op: Operation) -> Value:
    value, weight = op.value("input"), op.known(op["weight"])
    count = len(value.dims) - 2
    if weight is not None:  # made from the image: fine if the same for all of it
        if any(rows.shift for rows in weight.maps):
            raise Unknown("the weights of a convolution depend on the place in the image")
        value = joined([value, weight.with_dims([()] * len(value.dims))])
    value = mixed(value, [1], op.event("reduction")).with_dim(1, *opaque(op.shape[1]))
    stride, dilation = per_axis(op["stride"], count), per_axis(op["dilation"], count)
    padding = per_axis(op["padding"], count)
    for place in range(count):
        kernel = op["weight"].shape[2 + place]
        taps = [dilation[place] * tap - padding[place] for tap in range(kernel)]
        spread = transposed if op["transposed"] else windowed
        value = spread(value, 2 + place, op.shape[2 + place], taps, stride[place])
    return value


@rule("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "max_pool1d")
def pooling_rows(op: Operation) -> Value:
    value = op.value("self")
    count = 1 if "1d" in op.name else 2
    kernel = per_axis(op["kernel_size"], count)
    stride = per_axis(op["stride"], count) if op["stride"] else kernel
    padding, dilation = per_axis(op["padding"], count), per_axis(op.arguments.get("dilation", 1), count)
    for place in range(count):
        index = len(value.dims) - count + place
        taps = [dilation[place] * tap - padding[place] for tap in range(kernel[place])]
        value = windowed(value, index, op.shape[index], taps, stride[place])
    return value


@rule("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
def adaptive_pooling_rows(op: Operation) -> Value:
    value = op.value("self")
    for index in (len(value.dims) - 2, len(value.dims) - 1):
        if op.shape[index] == 1:
            value = mixed(value, [index], op.event(POOLING)).with_dim(index)
        elif op.shape[index] != dim_size(value.dims[index]):
            raise Unknown("pooling to a fixed size")
    return value


# ---- resizing --------------------------------------------------------------------------------------------------------


def _nearest(place: Fraction) -> list[int]:
    return [math.floor(place)]


def _around(center: Fraction, reach: int) -> list[int]:
    """The pixels, `reach` on either side, between whose centres a place lies; one alone if it is on it."""
    place = center - Fraction(1, 2)
    low = math.floor(place)
    return [low] if place == low else list(range(low - reach + 1, low + reach + 1))


def _support(center: Fraction, reach: Fraction) -> list[int]:
    half = Fraction(1, 2)
    return list(range(math.floor(center - reach + half), max(math.floor(center + reach + half), 1 - 10**9)))


@rule("upsample_nearest2d", "upsample_nearest1d", kind="nearest")
@rule("_upsample_nearest_exact2d", "_upsample_nearest_exact1d", kind="exact")
@rule("upsample_bilinear2d", "upsample_linear1d", kind="linear")
@rule("upsample_bicubic2d", kind="cubic")
@rule("_upsample_bilinear2d_aa", kind="linear_aa")
@rule("_upsample_bicubic2d_aa", kind="cubic_aa")
def resampling_rows(op: Operation, kind: str) -> Value:
    value = op.value("self" if "self" in op.arguments else "input")
    if op.arguments.get("align_corners"):
        raise Aligned
    count = 1 if "1d" in op.name else 2
    given = op.arguments.get("scale_factors") or [
        op.arguments.get(name) for name in (["scales_h", "scales_w"] if count == 2 else ["scales"])
    ]
    for place in range(count):
        index = len(value.dims) - count + place
        ratio = Fraction(dim_size(value.dims[index]), op.shape[index])
        if given[place]:
            ratio = 1 / Fraction(given[place]).limit_denominator(1000)
        value = resized_axis(value, index, op.shape[index], ratio, kind)
    return value


class Aligned(Exception):
    """Corners are aligned: where a row comes from depends on the size of the image."""


def resized_axis(value: Value, index: int, size: int, ratio: Fraction, kind: str) -> Value:
    """Args: ratio: input rows per result row."""
    if not spatial(value.dims[index]):
        return value.with_dim(index, *opaque(size))
    wide = max(ratio, Fraction(1))
    half = Fraction(1, 2)
    sources = {
        "nearest": lambda row: _nearest(row * ratio),
        "exact": lambda row: _nearest((row + half) * ratio),
        "linear": lambda row: _around((row + half) * ratio, 1),
        "cubic": lambda row: _around((row + half) * ratio, 2),
        "linear_aa": lambda row: _support((row + half) * ratio, wide),
        "cubic_aa": lambda row: _support((row + half) * ratio, 2 * wide),
    }[kind]
    return moved(value, index, size, ratio.denominator, ratio.numerator, sources)
