# SPDX-License-Identifier: MIT
"""Row maps and values, which describe the dependencies of a tensor, and operations on them.

A *row map* states on which input rows each row of a tensor may depend. A *value* describes one tensor: how its
dimensions consist of rows, columns and everything else, and the row maps of both axes. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import torch

__all__ = ["Event", "Part", "RowMap", "TooSmall", "Unknown", "Value"]

INF = math.inf
LARGEST_PERIOD = 8192  # of a row map; strides and windows of real models have smaller common multiples


class Unknown(Exception):
    """A rule cannot describe what its operator does in this case."""


class TooSmall(Exception):
    """The image is so small that its rows become a single row, which hides dependencies."""


# ---- row maps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMap:
    """Row `k * period + r` may depend on input rows `k * shift + lo` to `k * shift + hi`, `(lo, hi) = spans[r]`.

    Rows are unbounded: the caller handles edges. A shift of 0 means no rows: one value for the whole image.
    """

    period: int
    shift: int
    spans: tuple[tuple[float, float], ...]

    def at(self, row: int) -> tuple[float, float]:
        block, rest = divmod(row, self.period)
        lo, hi = self.spans[rest]
        return lo + block * self.shift, hi + block * self.shift

    def pull(self, step_out: int, step_in: int, rows: Callable[[int], Iterable[int]]) -> RowMap:
        """The map of a tensor whose row `o` depends on `rows(o)` of this one; `rows(o + step_out) = rows(o) + step_in`.

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
        """The union of both dependencies. Raises Unknown if their scales differ."""
        if other in (self, NOWHERE):
            return self
        if self == NOWHERE:
            return other
        if not self.shift or not other.shift:
            return (self if self.shift else other).everywhere()
        if self.period * other.shift != other.period * self.shift:
            raise Unknown("it combines tensors of different scales")
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
    """A digit of a dimension: `size` values of rows (axis 0) or columns (1), `step` rows of the map apart, or of
    anything else (axis None), such as channels, batch or heads."""

    axis: int | None
    size: int
    step: int = 0


Dim = tuple[Part, ...]  # outermost digit first; () has size 1


class Event(NamedTuple):
    """Attributes:
    what: "global", "unknown", "coordinate", "stochastic", "edge", or "strip" (rows taken from one fixed place).
    path, operator: its module and operator. kind: for "global", one of the documented kinds; else a description.
    """

    what: str
    path: str
    operator: str
    kind: str = ""


@dataclass(frozen=True)
class Value:
    """Attributes:
    dims: the parts of each dimension.
    maps: row maps of rows and columns. phase: least common multiple of the shifts of all maps on the way here.
    events: the events on the way here.
    """

    dims: tuple[Dim, ...]
    maps: tuple[RowMap, RowMap]
    phase: tuple[int, int] = (1, 1)
    events: frozenset[Event] = field(default_factory=frozenset)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(dim_size(dim) for dim in self.dims)

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


def dim_size(dim: Dim) -> int:
    return math.prod(part.size for part in dim)


def opaque(size: int) -> Dim:
    """A dimension or digit that is neither rows nor columns."""
    return (Part(None, size),) if size != 1 else ()


def coalesced(parts: Iterable[Part]) -> Dim:
    """Merges neighbouring digits that form one: channels, or rows that were split and are whole again."""
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
    """A value that may depend on everything."""
    dims = tuple(opaque(size) for size in shape)
    phase, met = _history(sources)
    return Value(dims, (EVERYWHERE, EVERYWHERE), phase, met.union(events))


def _history(sources: Sequence[Value]) -> tuple[tuple[int, int], frozenset[Event]]:
    phase = tuple(math.lcm(*(source.phase[axis] for source in sources)) for axis in (0, 1))
    return phase, frozenset().union(*(source.events for source in sources))  # type: ignore[return-value]


def as_axis(value: Value, index: int) -> Value:
    """Makes a dimension plain rows (or columns) of the map: one row for each index, in order.

    Raises:
        Unknown: the dimension is something else.
    """
    dim = value.dims[index]
    axes = {part.axis for part in dim} - {None}
    if len(axes) != 1 or dim[0].axis is None or not value.is_outermost(dim[0]):
        raise Unknown("a dimension that is neither rows nor columns is used as such")
    axis: int = axes.pop()  # type: ignore[assignment]
    if len(value.parts(axis)) != len(spatial(dim)):
        raise Unknown("rows or columns are spread over several dimensions")
    if len(dim) == 1 and dim[0].step == 1:
        return value
    steps = [dim_size(dim[place + 1 :]) for place in range(len(dim))]

    def rows(row: int) -> list[int]:
        digits = [row // step % part.size for part, step in zip(dim, steps, strict=True)]
        digits[0] = row // steps[0]
        return [sum(digit * part.step for digit, part in zip(digits, dim, strict=True))]

    moved = value.with_map(axis, value.maps[axis].pull(steps[0], dim[0].step, rows))
    return moved.with_dim(index, Part(axis, dim_size(dim), 1))


def mixed(value: Value, dims: Iterable[int], event: Event, *, keep: bool = False) -> Value:
    """Makes each element depend on all elements along these dimensions, as for sums, norms and attention.

    Args:
        event: recorded if these are all rows or columns.
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
            value = value.with_dim(index, *opaque(dim_size(value.dims[index])))
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
    """Replaces the rows of a dimension of plain rows. Raises TooSmall if one is left."""
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
        if dim_size(dim) == dim_size(other) and not spatial(other) and free:
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
    """The result of an elementwise operator with a constant. A constant that varies inside windows gives a period; one
    that varies along the image is a coordinate.

    Args:
        event: the place; its kind is ignored.
        parameter: whether the constant is a parameter, which training may set to any value.
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
