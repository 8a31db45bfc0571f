# SPDX-License-Identifier: MIT
"""What each ATen operator does to dependencies: row maps, values, and the one table of operators.

A *row map* says on which input rows each row of a tensor may depend. A *value* is what is known of one tensor: how its
dimensions are made of rows, columns and everything else, and the row maps of both. A *rule* makes the value of an
operator's result from those of its arguments. An operator without a rule is unknown, never local. Imports torch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple

import torch

__all__ = ["RULES", "Event", "Operation", "Part", "RowMap", "TooSmall", "Unknown", "Value", "opaque", "unknown_value"]

INF = math.inf
LARGEST_PERIOD = 8192  # of a row map; beyond it, strides and windows have nothing sensible in common


class Unknown(Exception):
    """A rule does not know what its operator does here."""


class TooSmall(Exception):
    """The image is too small for its rows to be told from a single row."""


# ---- row maps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMap:
    """Row `k * period + r` may depend on input rows `k * shift + lo` to `k * shift + hi`, `(lo, hi) = spans[r]`.

    Rows go on without end: edges are left to the caller. A shift of 0: there are no rows, one value holds everywhere.
    """

    period: int
    shift: int
    spans: tuple[tuple[float, float], ...]

    def at(self, row: int) -> tuple[float, float]:
        block, rest = divmod(row, self.period)
        lo, hi = self.spans[rest]
        return lo + block * self.shift, hi + block * self.shift

    def pull(self, step_out: int, step_in: int, rows: Callable[[int], Iterable[int]]) -> RowMap:
        """The map of a tensor whose row `o` is made of `rows(o)` of this one; `rows(o + step_out) = rows(o) + step_in`.

        Raises:
            Unknown: its period would be too long.
        """
        if not self.shift:
            return self
        times = self.period // math.gcd(self.period, step_in)
        period = _bounded(step_out * times)
        return RowMap(period, self.shift * step_in * times // self.period, tuple(self._hull(rows, period)))

    def _hull(self, rows: Callable[[int], Iterable[int]], period: int) -> Iterable[tuple[float, float]]:
        for row in range(period):
            spans = [self.at(source) for source in rows(row)]
            yield min((lo for lo, _ in spans), default=INF), max((hi for _, hi in spans), default=-INF)

    def union(self, other: RowMap) -> RowMap:
        """Depends on what either does. Raises Unknown if their rows are not those of one image."""
        if other in (self, NOWHERE):
            return self
        if self == NOWHERE:
            return other
        if not self.shift or not other.shift:
            return (self if self.shift else other).everywhere()
        if self.period * other.shift != other.period * self.shift:
            raise Unknown("tensors of different scales meet")
        period = _bounded(math.lcm(self.period, other.period))
        pairs = [(self.at(row), other.at(row)) for row in range(period)]
        spans = tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in pairs)
        return RowMap(period, self.shift * period // self.period, spans)

    def everywhere(self) -> RowMap:
        return replace(self, spans=((-INF, INF),) * self.period)

    @property
    def is_global(self) -> bool:
        return any(lo == -INF or hi == INF for lo, hi in self.spans if lo <= hi)


def _bounded(period: int) -> int:
    if period > LARGEST_PERIOD:
        raise Unknown(f"it repeats only after {period} rows")
    return period


IDENTITY = RowMap(1, 1, ((0, 0),))
NOWHERE = RowMap(1, 0, ((INF, -INF),))
EVERYWHERE = RowMap(1, 0, ((-INF, INF),))

# ---- values ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A digit of a dimension. Of rows (axis 0) or columns (1): `size` values, one step being `step` rows of the map.
    Of anything else (None): channels, batch, heads."""

    axis: int | None
    size: int
    step: int = 0


Dim = tuple[Part, ...]  # outermost digit first; () has size 1


class Event(NamedTuple):
    """Attributes:
    what: "global", "unknown", "coordinate", "stochastic", "edge", or "strip" (rows taken from one fixed place).
    path, operator: where. kind: for "global", one of the documented kinds; else words.
    """

    what: str
    path: str
    operator: str
    kind: str = ""


@dataclass(frozen=True)
class Value:
    """Attributes:
    dims: of what each dimension is made.
    maps: of rows and columns. phase: least common multiple of the shifts of all maps that led here.
    events: what was met on the way.
    """

    dims: tuple[Dim, ...]
    maps: tuple[RowMap, RowMap]
    phase: tuple[int, int] = (1, 1)
    events: frozenset[Event] = field(default_factory=frozenset)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_size(dim) for dim in self.dims)

    def parts(self, axis: int) -> list[Part]:
        return [part for dim in self.dims for part in dim if part.axis == axis]

    def is_outermost(self, part: Part) -> bool:
        return all(other.step <= part.step for other in self.parts(part.axis or 0))

    def with_map(self, axis: int, rows: RowMap) -> Value:
        maps = (rows, self.maps[1]) if axis == 0 else (self.maps[0], rows)
        phase = (math.lcm(self.phase[0], maps[0].shift or 1), math.lcm(self.phase[1], maps[1].shift or 1))
        return replace(self, maps=maps, phase=phase)

    def with_dim(self, index: int, *parts: Part) -> Value:
        dims = list(self.dims)
        dims[index] = coalesced(parts)
        return replace(self, dims=tuple(dims))

    def with_dims(self, dims: Iterable[Dim]) -> Value:
        return replace(self, dims=tuple(coalesced(dim) for dim in dims))

    def with_events(self, *events: Event) -> Value:
        return replace(self, events=self.events.union(events))


def _size(dim: Dim) -> int:
    return math.prod(part.size for part in dim)


def opaque(size: int) -> Dim:
    """A dimension, or a digit of one, that is neither rows nor columns."""
    return (Part(None, size),) if size != 1 else ()


def coalesced(parts: Iterable[Part]) -> Dim:
    """Neighbouring digits that are one: channels, or rows that were split and are whole again."""
    done: list[Part] = []
    for part in parts:
        if part.axis is None and part.size == 1:
            continue
        last = done[-1] if done else None
        if last and last.axis == part.axis and (part.axis is None or last.step == part.step * part.size):
            done[-1] = Part(part.axis, last.size * part.size, part.step)
        else:
            done.append(part)
    return tuple(done)


def spatial(dim: Dim) -> list[Part]:
    return [part for part in dim if part.axis is not None]


def unknown_value(shape: Sequence[int], sources: Sequence[Value], *events: Event) -> Value:
    """What may depend on everything."""
    dims = tuple(opaque(size) for size in shape)
    phase, met = _history(sources)
    return Value(dims, (EVERYWHERE, EVERYWHERE), phase, met.union(events))


def _history(sources: Sequence[Value]) -> tuple[tuple[int, int], frozenset[Event]]:
    phase = tuple(math.lcm(*(source.phase[axis] for source in sources)) for axis in (0, 1))
    return phase, frozenset().union(*(source.events for source in sources))  # type: ignore[return-value]


def as_axis(value: Value, index: int) -> Value:
    """Makes a dimension plain rows (or columns) of the map: each index one row, neighbours neighbours.

    Raises:
        Unknown: it is something else.
    """
    dim = value.dims[index]
    axes = {part.axis for part in dim} - {None}
    if len(axes) != 1 or dim[0].axis is None or not value.is_outermost(dim[0]):
        raise Unknown("a dimension that is neither rows nor columns is taken for them")
    axis: int = axes.pop()  # type: ignore[assignment]
    if len(value.parts(axis)) != len(spatial(dim)):
        raise Unknown("rows or columns are spread over several dimensions")
    if len(dim) == 1 and dim[0].step == 1:
        return value
    steps = [_size(dim[place + 1 :]) for place in range(len(dim))]

    def rows(row: int) -> list[int]:
        digits = [row // step % part.size for part, step in zip(dim, steps, strict=True)]
        digits[0] = row // steps[0]
        return [sum(digit * part.step for digit, part in zip(digits, dim, strict=True))]

    moved = value.with_map(axis, value.maps[axis].pull(steps[0], dim[0].step, rows))
    return moved.with_dim(index, Part(axis, _size(dim), 1))


def mixed(value: Value, dims: Iterable[int], event: Event, *, keep: bool = False) -> Value:
    """Each element comes to depend on all along these dimensions: sums, norms, attention.

    Args:
        event: what to note if that is all rows or columns.
        keep: whether the dimensions stay; else they become channels of the same size.
    """
    dims = list(dims)
    for axis in (0, 1):
        parts = [part for index in dims for part in value.dims[index] if part.axis == axis]
        if any(value.is_outermost(part) for part in parts):
            stays = keep or len(parts) < len(value.parts(axis))
            value = value.with_map(axis, value.maps[axis].everywhere() if stays else EVERYWHERE).with_events(event)
        elif parts:
            value = value.with_map(axis, _over_window(value.maps[axis], parts))
    if not keep:
        for index in dims:
            value = value.with_dim(index, *opaque(_size(value.dims[index])))
    return value


def _over_window(rows: RowMap, parts: Sequence[Part]) -> RowMap:
    window = math.lcm(*(part.step * part.size for part in parts))

    def sources(row: int) -> set[int]:
        found = {row}
        for _, size, step in parts:
            found = {r + (digit - r // step % size) * step for r in found for digit in range(size)}
        return found

    return rows.pull(window, window, sources)


def moved(value: Value, index: int, size: int, step_out: int, step_in: int, rows: Callable) -> Value:
    """A dimension of plain rows gets other rows. Raises TooSmall if one is left."""
    value = as_axis(value, index)
    if size < 2:
        raise TooSmall
    axis = value.dims[index][0].axis
    return value.with_map(axis, value.maps[axis].pull(step_out, step_in, rows)).with_dim(index, Part(axis, size, 1))


def joined(values: Sequence[Value]) -> Value:
    """The value of what is computed element by element, with broadcasting. Raises Unknown if they do not match."""
    rank = max(len(value.dims) for value in values)
    result, *others = [replace(value, dims=((),) * (rank - len(value.dims)) + value.dims) for value in values]
    for other in others:
        result = _joined_pair(result, other)
    return result


def _joined_pair(a: Value, b: Value) -> Value:
    if a.dims != b.dims or a.maps != b.maps:
        a, b = _one_unit(a, b)
        for index, (one, two) in enumerate(zip(a.dims, b.dims, strict=True)):
            if one and two and one != two and spatial(one) and spatial(two):
                a, b = _one_unit(as_axis(a, index), as_axis(b, index))
    dims = tuple(_joined_dim(one, two, a, b) for one, two in zip(a.dims, b.dims, strict=True))
    phase, events = _history([a, b])
    result = Value(dims, a.maps, phase, events)
    for axis in (0, 1):
        result = result.with_map(axis, a.maps[axis].union(b.maps[axis]))
    return result


def _joined_dim(one: Dim, two: Dim, a: Value, b: Value) -> Dim:
    if one == two or not two:
        return one
    if not one:
        return two
    for dim, other, value in ((one, two, b), (two, one, a)):
        free = all(not value.maps[part.axis].shift for part in spatial(dim))  # type: ignore[index]
        if _size(dim) == _size(other) and not spatial(other) and free:
            return dim
    raise Unknown("dimensions that are made differently meet")


def _one_unit(a: Value, b: Value) -> tuple[Value, Value]:
    """Both in the finer rows of the two: what was pooled is repeated."""
    for axis in (0, 1):
        if a.maps[axis].shift and b.maps[axis].shift:
            finer = Fraction(a.maps[axis].period * b.maps[axis].shift, a.maps[axis].shift * b.maps[axis].period)
            if finer.denominator == 1:
                b = _finer(b, axis, finer.numerator)
            elif finer.numerator == 1:
                a = _finer(a, axis, finer.denominator)
    return a, b


def _finer(value: Value, axis: int, times: int) -> Value:
    if times == 1:
        return value
    value = value.with_map(axis, value.maps[axis].pull(times, 1, lambda row: [row // times]))
    return value.with_dims(
        [part._replace(step=part.step * times) if part.axis == axis else part for part in dim] for dim in value.dims
    )


def with_constant(value: Value, constant: torch.Tensor, event: Event, *, parameter: bool) -> Value:
    """Element by element with a constant: what varies inside windows gives a period, along the image a coordinate.

    Args:
        event: where; its kind is not looked at.
        parameter: whether it is one of the model's own, and could be anything after training.
    """
    if constant.dim() > len(value.dims):
        raise Unknown("a constant adds dimensions")
    for back in range(1, constant.dim() + 1):
        dim = value.dims[-back]
        if constant.shape[-back] == 1 or not spatial(dim):
            continue
        before, after = constant.shape[: constant.dim() - back], constant.shape[constant.dim() - back + 1 :]
        split = constant.reshape(*before, *(part.size for part in dim), *after)
        for place, part in enumerate(dim):
            if part.axis is not None:
                value = _varying(value, split.movedim(len(before) + place, 0), part, event, parameter)
    return value


def _varying(value: Value, constant: torch.Tensor, part: Part, event: Event, parameter: bool) -> Value:
    axis, count = part.axis, len(constant)
    different = (constant != constant[count // 2]).reshape(count, -1).any(1).tolist()
    outermost = value.is_outermost(part)
    if outermost and parameter:
        return value.with_events(event._replace(what="coordinate", kind="a parameter with an extent in space"))
    if not any(different):
        return value
    if not outermost:
        window = part.step * part.size
        return value.with_map(axis, value.maps[axis].pull(window, window, lambda row: [row]))
    if any(different[count // 4 : count - count // 4]):
        return value.with_events(event._replace(what="coordinate", kind="a constant that varies over the image"))
    first = max((place + 1 for place in range(count // 2) if different[place]), default=0) * part.step
    last = max((count - place for place in range(count // 2, count) if different[place]), default=0) * part.step
    side = "rows" if axis == 0 else "columns"
    return value.with_events(
        event._replace(what="edge", kind=f"a constant differs in the first {first} and last {last} {side}")
    )


# ---- operators -------------------------------------------------------------------------------------------------------


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
def pointwise(op: Operation) -> Value:
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
def same(op: Operation) -> Value:
    return op.joined(op.tensors()[:1])


@rule("copy")
def copied(op: Operation) -> Value:
    return broadcast(op.value("src"), op.shape)


@rule("expand")
def expanded(op: Operation) -> Value:
    return broadcast(op.value("self"), op.shape)


def broadcast(value: Value, shape: Sequence[int]) -> Value:
    dims = ((),) * (len(shape) - len(value.dims)) + value.dims
    return value.with_dims(dim if _size(dim) == size else opaque(size) for dim, size in zip(dims, shape, strict=True))


@rule("cat")
def concatenated(op: Operation) -> Value:
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
def stacked(op: Operation) -> Value:
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
def convolved(op: Operation) -> Value:
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
def pooled(op: Operation) -> Value:
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
def adapted(op: Operation) -> Value:
    value = op.value("self")
    for index in (len(value.dims) - 2, len(value.dims) - 1):
        if op.shape[index] == 1:
            value = mixed(value, [index], op.event(POOLING)).with_dim(index)
        elif op.shape[index] != _size(value.dims[index]):
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
def resized(op: Operation, kind: str) -> Value:
    value = op.value("self" if "self" in op.arguments else "input")
    if op.arguments.get("align_corners"):
        raise Aligned
    count = 1 if "1d" in op.name else 2
    given = op.arguments.get("scale_factors") or [
        op.arguments.get(name) for name in (["scales_h", "scales_w"] if count == 2 else ["scales"])
    ]
    for place in range(count):
        index = len(value.dims) - count + place
        ratio = Fraction(_size(value.dims[index]), op.shape[index])
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


@rule("pixel_shuffle")
def shuffled(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["upscale_factor"]
    rank = len(batch)
    value = regrouped(op.value("self"), [*batch, channels // factor**2, factor, factor, height, width])
    order = [*range(rank), *(rank + place for place in (0, 3, 1, 4, 2))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)


@rule("pixel_unshuffle")
def unshuffled(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["downscale_factor"]
    rank = len(batch)
    shape = [*batch, channels, height // factor, factor, width // factor, factor]
    value = regrouped(op.value("self"), shape)
    order = [*range(rank), *(rank + place for place in (0, 2, 4, 1, 3))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
def viewed(op: Operation) -> Value:
    return regrouped(op.value("self"), op.shape)


def regrouped(value: Value, shape: Sequence[int]) -> Value:
    """The same elements in the same order, in other dimensions. Raises Unknown if rows end inside another's."""
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


@rule("view_as_real", "view_as_complex")
def as_pairs(op: Operation) -> Value:
    value = op.value("self")
    if "view_as_real" in op.name:
        return value.with_dims((*value.dims, opaque(2)))
    if spatial(value.dims[-1]):
        raise Unknown("rows taken for real and imaginary parts")
    return value.with_dims(value.dims[:-1])


@rule("permute", "permute_copy")
def permuted(op: Operation) -> Value:
    value = op.value("self")
    return value.with_dims(value.dims[dim] for dim in op["dims"])


@rule("transpose", "t", "swapaxes", "numpy_T", "mT")
def swapped(op: Operation) -> Value:
    value = op.value("self")
    dims = list(value.dims)
    first, second = op.arguments.get("dim0", 0), op.arguments.get("dim1", -1)
    if len(dims) > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return value.with_dims(dims)


@rule("unsqueeze", "squeeze")
def squeezed(op: Operation) -> Value:
    return regrouped(op.value("self"), op.shape)


@rule("repeat")
def repeated(op: Operation) -> Value:
    value = op.value("self")
    dims = ((),) * (len(op.shape) - len(value.dims)) + value.dims
    if any(spatial(dim) and _size(dim) != size for dim, size in zip(dims, op.shape, strict=True)):
        raise Unknown("an image repeated side by side")
    return broadcast(value.with_dims(dims), op.shape)


@rule("select")
def selected(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    place = op["index"] % _size(value.dims[dim])
    value = sliced_dim(op, value, dim, place, place + 1, 1)
    return value.with_dims(value.dims[:dim] + value.dims[dim + 1 :])


@rule("slice")
def sliced(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    start, end, step = slice(op["start"], op["end"], op["step"]).indices(_size(value.dims[dim]))
    return sliced_dim(op, value, dim, start, end, step)


@rule("split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk")
def divided(op: Operation) -> list[Value]:
    value = op.value("self")
    dim, start, results = op.arguments.get("dim", 0) % len(value.dims), 0, []
    for output in op.outputs:
        size = output.shape[dim] if output.dim() == len(value.dims) else 1
        part = sliced_dim(op, value, dim, start, start + size, 1)
        results.append(
            part if output.dim() == len(value.dims) else part.with_dims(part.dims[:dim] + part.dims[dim + 1 :])
        )
        start += size
    return results


def sliced_dim(op: Operation, value: Value, index: int, start: int, end: int, step: int) -> Value:
    """Every `step`-th of a dimension from `start` up to `end`."""
    dim, size = value.dims[index], max(0, -(-(end - start) // step))
    if size == _size(dim):
        return value
    if not spatial(dim):
        return value.with_dim(index, *opaque(size))
    if len(dim) == 1 and not value.is_outermost(dim[0]):
        part = dim[0]
        window = part.step * part.size

        def rows(row: int) -> list[int]:
            digit = row // part.step % part.size
            return [row + (start + step * digit - digit) * part.step] if digit < size else []

        value = value.with_map(part.axis, value.maps[part.axis].pull(window, window, rows))
        return value.with_dim(index, *([Part(part.axis, size, part.step)] if size > 1 else []))
    if 4 * size * step <= _size(dim):
        return strip(op, value, index, size)
    return moved(value, index, size, 1, step, lambda row: [start + step * row])


def strip(op: Operation, value: Value, index: int, size: int) -> Value:
    """A few rows from one place."""
    for axis in {part.axis for part in spatial(value.dims[index])}:
        others = [part for place, dim in enumerate(value.dims) if place != index for part in dim if part.axis == axis]
        value = value.with_map(axis, value.maps[axis].everywhere() if others else EVERYWHERE)
    return value.with_dim(index, *opaque(size)).with_events(op.event("rows or columns at a fixed place", "strip"))


@rule("slice_scatter")
def scattered(op: Operation) -> Value:
    source, base = op.known(op["src"]), op.known(op["self"])
    dim, extent = op["dim"] % len(op.shape), op.shape[op["dim"]]
    start, end, step = slice(op["start"], op["end"], op["step"]).indices(extent)
    whole = max(0, -(-(end - start) // step)) == extent
    if whole:
        return source if source is not None else op.joined([op["src"]])
    if not any(value is not None and spatial(value.dims[dim]) for value in (source, base)):
        return _over_base(op, [v.with_dim(dim) for v in (source, base) if v is not None], dim).with_dim(
            dim, *opaque(extent)
        )
    if step > 1 and source is not None and -(-(end - start) // step) * step > extent - step:
        return _interleaved(op, source, base, dim, start, step)
    if 4 * (end - start) <= extent and base is not None:
        return at_edges(op, base, [v for v in (source, base) if v is not None], end - start)
    if 2 * (end - start) >= extent and source is not None and step == 1:
        result = moved(source, dim, extent, 1, 1, lambda row: [row - start])
        return at_edges(op, result, [v for v in (source, base) if v is not None], extent - (end - start))
    raise Unknown("a part of an image is overwritten")


def _interleaved(op: Operation, source: Value, base: Value | None, dim: int, start: int, step: int) -> Value:
    extent = op.shape[dim]
    spread = moved(
        source, dim, extent, step, 1, lambda row: [(row - start) // step] if (row - start) % step == 0 else []
    )
    values = [spread]
    if base is not None:
        values.append(moved(base, dim, extent, step, step, lambda row: [row] if (row - start) % step else []))
    return _over_base(op, values, dim)


def _over_base(op: Operation, values: Sequence[Value], dim: int) -> Value:
    result = joined(values)
    if op.known(op["self"]) is None:
        for piece in op["self"].unbind(dim)[: op["step"]]:
            result = op.with_constant(result, piece.unsqueeze(dim), parameter=op.is_parameter(op["self"]))
    return result


@rule("select_scatter")
def scattered_one(op: Operation) -> Value:
    dim = op["dim"] % len(op.shape)
    source = op.known(op["src"])
    base = op.known(op["self"])
    if source is not None:
        source = source.with_dims((*source.dims[:dim], (), *source.dims[dim:]))
    if op.shape[dim] == 1:
        return source if source is not None else op.joined([op["src"].unsqueeze(dim)])
    values = [value for value in (source, base) if value is not None]
    if any(spatial(value.dims[dim]) for value in values):
        raise Unknown("a row of an image is overwritten")
    op.arguments["step"] = op.shape[dim]
    return _over_base(op, [value.with_dim(dim) for value in values], dim).with_dim(dim, *opaque(op.shape[dim]))


@rule("roll")
def rolled(op: Operation) -> Value:
    value = op.value("self")
    if not op["dims"]:
        raise Unknown("an image rolled as one row")
    for dim, by in zip(dims_of(op, value, "dims"), per_axis(op["shifts"], 1), strict=True):
        if by and spatial(value.dims[dim]):
            value = moved(value, dim, op.shape[dim], 1, 1, lambda row, by=by: [row - by])
            value = value.with_events(op.event("what leaves the image at one edge comes in at the other", "edge"))
    return value


@rule("flip")
def flipped(op: Operation) -> Value:
    value = op.value("self")
    if any(spatial(value.dims[dim]) for dim in dims_of(op, value, "dims")):
        raise Unknown("a mirrored image")
    return value


@rule("constant_pad_nd", kind="")
@rule("reflection_pad1d", "reflection_pad2d", kind="mirrored")
@rule("replication_pad1d", "replication_pad2d", kind="repeated")
def padded(op: Operation, kind: str) -> Value:
    value = op.value("self")
    pads = op["pad"] if "pad" in op.arguments else op["padding"]
    for place in range(len(pads) // 2):
        index, before, after = len(value.dims) - 1 - place, pads[2 * place], pads[2 * place + 1]
        if not spatial(value.dims[index]):
            value = value.with_dim(index, *opaque(op.shape[index]))
        elif before or after:
            value = moved(value, index, op.shape[index], 1, 1, lambda row, before=before: [row - before])
            if kind:
                value = value.with_events(op.event(f"the image is {kind} beyond its edge", "edge"))
    return value


@rule("im2col")
def unfolded(op: Operation) -> Value:
    value = op.value("self")
    value = mixed(value, [1], op.event("reduction"))
    for place in (0, 1):
        index, kernel, stride = 2 + place, op["kernel_size"][place], op["stride"][place]
        taps = [op["dilation"][place] * tap - op["padding"][place] for tap in range(kernel)]
        size = (
            _size(value.dims[index]) + 2 * op["padding"][place] - op["dilation"][place] * (kernel - 1) - 1
        ) // stride
        value = windowed(value, index, size + 1, taps, stride)
    return value.with_dims((value.dims[0], opaque(op.shape[1]), value.dims[2] + value.dims[3]))


@rule("col2im")
def folded(op: Operation) -> Value:
    value = mixed(op.value("self"), [1], op.event("reduction"))
    if len(value.dims[2]) != 2 or [part.axis for part in value.dims[2]] != [0, 1]:
        raise Unknown("patches that are not rows of patches")
    value = value.with_dims((value.dims[0], opaque(op.shape[1]), value.dims[2][:1], value.dims[2][1:]))
    for place in (0, 1):
        taps = [op["dilation"][place] * tap - op["padding"][place] for tap in range(op["kernel_size"][place])]
        value = transposed(value, 2 + place, op.shape[2 + place], taps, op["stride"][place])
    return value


@rule("unfold")
def slid(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dimension"] % len(value.dims)
    value = windowed(value, dim, op.shape[dim], range(op["size"]), op["step"])
    return value.with_dims((*value.dims, opaque(op["size"])))


@rule("index_select", "index", "gather", "topk", "sort", "argsort")
def picked(op: Operation) -> Value:
    """Elements chosen by number or by size: channels may be, rows may not."""
    value = op.value("self")
    chosen = op.arguments.get("index", op.arguments.get("indices"))
    if isinstance(chosen, (list, tuple)):  # advanced indexing
        dims = [place for place, index in enumerate(chosen) if index is not None]
        if len(dims) != 1 or chosen[dims[0]].dim() != 1:
            raise Unknown("elements chosen by number")
    else:
        dims = [op.arguments.get("dim", -1) % len(value.dims)]
    if any(spatial(value.dims[dim]) for dim in dims):
        raise Unknown("rows chosen by number or by size")
    if any(op.known(tensor) is not None for tensor in op.tensors()[1:]):
        index = op.known(op.tensors()[1])
        value = joined([value.with_dim(dims[0]), index.with_dim(dims[0])])
    return value.with_dim(dims[0], *opaque(op.shape[dims[0]]))


# ---- over many elements ----------------------------------------------------------------------------------------------


@rule("mean", "amax", "amin", "max", "min", kind=POOLING)
@rule("sum", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm", "norm", kind="reduction")
@rule("any", "all", "argmax", "argmin", "nansum", "median", "mode", "count_nonzero", kind="reduction")
def reduced(op: Operation, kind: str) -> Value:
    if op.name.endswith(".other"):
        return pointwise(op)
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event(kind))
    kept = [() if dim in dims else made for dim, made in enumerate(value.dims)]
    if len(op.shape) != len(kept):
        kept = [made for dim, made in enumerate(value.dims) if dim not in dims]
    return value.with_dims(kept)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", kind="attention")
@rule("cumsum", "cumprod", "logcumsumexp", kind="reduction")
def normalised_along(op: Operation, kind: str) -> Value:
    value = op.value("self")
    return mixed(value, dims_of(op, value), op.event(kind), keep=True)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(op: Operation) -> Value:
    value = op.value("input")
    count = len(op["normalized_shape"])
    dims = range(len(value.dims) - count, len(value.dims))
    return weighed(op, mixed(value, dims, op.event("reduction"), keep=True), "weight", "bias")


def weighed(op: Operation, value: Value, *names: str) -> Value:
    for name in names:
        if op.arguments.get(name) is not None:
            value = joined([value, op.known(op[name])]) if op.known(op[name]) else op.with_constant(value, op[name])
    return value


@rule("native_group_norm")
def group_norm(op: Operation) -> Value:
    value = op.value("input")
    return mixed(value, range(1, len(value.dims)), op.event("group norm"), keep=True)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_batch_norm_no_update", "miopen_batch_norm")
def batch_norm(op: Operation) -> Value:
    value = op.value("input")
    if not op.arguments.get("training"):
        return value
    return mixed(value, [0, *range(2, len(value.dims))], op.event("instance norm"), keep=True)


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def transformed(op: Operation) -> Value:
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event("fft"))
    for dim in dims:
        value = value.with_dim(dim, *opaque(op.shape[dim]))
    return value


@rule("mm", "bmm", names=("self", "mat2"))
@rule("addmm", names=("mat1", "mat2"))
@rule("baddbmm", names=("batch1", "batch2"))
def multiplied(op: Operation, names: tuple[str, str]) -> Value:
    value = contracted(op, op[names[0]], op[names[1]])
    added = op.arguments.get("self") if "add" in op.name else None
    return value if added is None else _plus(op, value, added)


def _plus(op: Operation, value: Value, added: torch.Tensor) -> Value:
    known = op.known(added)
    return op.with_constant(value, added) if known is None else joined([value, known])


def contracted(op: Operation, left: torch.Tensor, right: torch.Tensor) -> Value:
    """A matrix product. Where both sides have rows, each of the left's comes to depend on all of the right's."""
    a, b, last = op.known(left), op.known(right), left.dim() - 1
    if a is not None:
        a = mixed(a, [last], op.event("reduction" if b is None else "attention")).with_dim(last)
    if b is not None:
        b = mixed(b, [last - 1], op.event("reduction" if a is None else "attention")).with_dim(last - 1)
    if a is not None and b is not None:
        if spatial(a.dims[last - 1]) and spatial(b.dims[last]):
            b = mixed(b, [last], op.event("attention")).with_dim(last)
        result = joined([a, b])
    else:
        result = a or b
        constant = right if b is None else left
        for one in itertools.product(*([range(min(size, 1)) for size in constant.shape[last - 1 :]])):
            result = op.with_constant(result, constant[(..., *(slice(place, place + 1) for place in one))])
    dims = list(result.dims)
    for index in (last - 1, last):
        dims[index] = dims[index] or opaque(op.shape[index])
    return result.with_dims(dims)


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
def attended(op: Operation) -> Value:
    query, key, content = (op.value(name) for name in ("query", "key", "value"))
    attention = op.event("attention")
    query = mixed(query, [3], attention).with_dim(3)
    key = mixed(key, [2, 3], attention).with_dim(2).with_dim(3)
    content = mixed(content, [2], attention).with_dim(2)
    if spatial(query.dims[2]) and spatial(content.dims[3]):
        content = mixed(content, [3], attention).with_dim(3)
    result = joined([query, key, content])
    for name in ("attn_mask", "attn_bias"):
        mask = op.arguments.get(name)
        if mask is not None:
            result = _plus(op, result, mask.amax(-1, keepdim=True))
    return result.with_dim(3, *(result.dims[3] or opaque(op.shape[3])))
