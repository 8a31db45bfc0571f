# SPDX-License-Identifier: MIT
"""Shared code of the rules for streaming: calls of operators as nodes of a graph, and from which rows they make theirs.

A rule gives a node its rows and the function that makes some of them:

    rows [a, b) of a node   <-   rows [low(a), high(b)) of each source, e.g. a - 1 and b + 1 for a 3x3 convolution

Both functions are monotone, and defined above the first row and below the last. Imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

from .segment import Segment

__all__ = [
    "DECIDES",
    "IN_PLACE",
    "RANDOM",
    "Edge",
    "NotStreamable",
    "Refused",
    "RowsOfConstant",
    "StreamNode",
    "StreamRule",
    "Strip",
    "assembled",
    "call",
    "ceil_div",
    "image_like",
    "in_batch",
    "local_stream",
    "pair",
    "parted",
    "parted_rows",
    "pieces_stream",
    "place_of",
    "same",
    "sources",
    "whole_stream",
    "with_statistic",
]

Tensor = torch.Tensor


class NotStreamable(ValueError):
    """A model cannot be run on rows: the operator, its module and the reason.

    path: that of the module; None if no submodule could do without the operator.
    """

    def __init__(self, text: str, path: str | None = None):
        super().__init__(text)
        self.path = path

    @classmethod
    def of(cls, name: str, path: str, why: str) -> NotStreamable:
        """Of an operator in a module."""
        return cls(f"{name} in {place_of(path)} cannot run on rows: {why}", path)


@dataclass(frozen=True)
class Edge:
    """Rows [a, b) of a node are made of rows [low(a), high(b)) of `source`.

    Attributes:
        fill: value of rows outside the source; None: they are left out.
    """

    source: StreamNode
    low: Callable[[int], int]
    high: Callable[[int], int]
    fill: float | None = None


class Strip(NamedTuple):
    """What a node makes rows [start, stop) from.

    Attributes:
        slabs: rows of the source of each edge.
        first: the first row of the first slab.
        value: the tensor of a constant argument.
        once: once(key, make) computes something of constants once for a run.
        out: where to write the rows, only for nodes with `out`; None: to a new tensor.
    """

    start: int
    stop: int
    slabs: Sequence[Tensor]
    first: int
    value: Callable[[Any], Tensor]
    once: Callable[[Any, Callable[[], Any]], Any]
    out: Tensor | None = None


@dataclass(eq=False)
class StreamNode:
    """One result of one call of an operator.

    Attributes:
        arguments: by name, in the order of the schema: nodes, tensors (constants) and plain values.
        output: index of the result; None for operators with one.
        axis: the dimension that holds rows; None for constants. It holds `outer` times `rows` rows of `per` entries.
        unit: rows are made in multiples of this.
        edges, make: the sources, and the function that makes rows from them.
        out: the operator's variant that writes to a given tensor, if there is a fast one.
        owns: whether its rows have memory of their own.
        whole: whether it takes all rows together, to a value without rows: a statistic of the whole image.
        along: dimensions along the rows, by the id of constant arguments that have some.
        by_rows: functions that make rows of a constant, by its id; others are computed whole.
        before: nodes made for it: of a statistic, or of the rows of groups.
        statistic: the node of the statistic that its rows need; None for most.
        is_statistic: whether it is such a node: its value is a `Statistic`, not the operator's result.
        segment: what runs as a whole instead of an operator, see segments.py.
        turn: rows by which it rolls the image up (negative) or down; 0 for others.
        first: the first row: below 0 between two rolls, see `roll_stream`.
        level: the number of sweeps before it can be computed.
    """

    number: int
    path: str
    func: Any
    arguments: dict[str, Any]
    output: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    axis: int | None = None
    rows: int = 0
    per: int = 1
    outer: int = 1
    unit: int = 1
    edges: list[Edge] = field(default_factory=list)
    make: Callable[[Strip], Tensor] | None = None
    out: Any = None
    owns: bool = False
    whole: bool = False
    along: dict[int, int] = field(default_factory=dict)
    by_rows: dict[int, RowsOfConstant] = field(default_factory=dict)
    before: list[StreamNode] = field(default_factory=list)
    statistic: StreamNode | None = None
    is_statistic: bool = False
    segment: Segment | None = None
    turn: int = 0
    first: int = 0
    level: int = 0

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def rows_of(self, slab: Tensor, first: int, count: int) -> Tensor:
        """Rows [first, first + count) of a slab of this node, counted from the slab's own first row."""
        axis, per = self.axis, self.per
        if self.outer == 1:
            return slab.narrow(axis, first * per, count * per)
        return slab.unflatten(axis, (self.outer, -1)).narrow(axis + 1, first * per, count * per).flatten(axis, axis + 1)

    def joined(self, slabs: list[Tensor]) -> Tensor:
        """Slabs of this node, one below the other."""
        if len(slabs) == 1 or self.outer == 1:
            return slabs[0] if len(slabs) == 1 else torch.cat(slabs, self.axis)
        apart = [slab.unflatten(self.axis, (self.outer, -1)) for slab in slabs]
        return torch.cat(apart, self.axis + 1).flatten(self.axis, self.axis + 1)

    @property
    def name(self) -> str:
        return "the image" if self.func is None else self.func._schema.name.removeprefix("aten::")

    def refuse(self, why: str) -> NotStreamable:
        return NotStreamable.of(self.name, self.path, why)


RowsOfConstant = Callable[[int, int, Callable[[Any], Tensor]], Tensor]
StreamRule = Callable[[StreamNode], None]

IN_PLACE, RANDOM = "it writes to a tensor in place", "it is random"
DECIDES = "what follows depends on what is in the image"


@dataclass(frozen=True)
class Refused:
    """The rule of operators that cannot run on rows."""

    why: str

    def __call__(self, node: StreamNode) -> None:
        raise node.refuse(self.why)


def place_of(path: str) -> str:
    return f"module {path!r}" if path else "the model"


def same(row: int) -> int:
    return row


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pair(setting: Any, default: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    values = list(setting) if isinstance(setting, (list, tuple)) else [setting]
    return (values[0], values[-1]) if values else default


def sources(node: StreamNode) -> list[StreamNode]:
    """The arguments that have rows."""
    leaves = _pytree.tree_leaves(node.arguments)
    return [leaf for leaf in leaves if isinstance(leaf, StreamNode) and leaf.axis is not None]


def call(func: Any, values: Sequence[Any]) -> Any:
    """Calls an operator with all its arguments in the order of the schema."""
    positional, names = _signature(func)
    return func(*values[:positional], **dict(zip(names, values[positional:], strict=True)))


@functools.cache
def _signature(func: Any) -> tuple[int, tuple[str, ...]]:
    """The number of positional arguments of an operator, and the names of the others."""
    arguments = func._schema.arguments
    return sum(not one.kwarg_only for one in arguments), tuple(one.name for one in arguments if one.kwarg_only)


def assembled(node: StreamNode, replaced: Callable[[Any], Any]) -> list[Any]:
    """All arguments, in the order of the schema, with nodes and tensors replaced."""
    return [
        replaced(value)
        if isinstance(value, (StreamNode, Tensor))
        else [replaced(one) if isinstance(one, (StreamNode, Tensor)) else one for one in value]
        if isinstance(value, (list, tuple))
        else value
        for value in node.arguments.values()
    ]


# ---- rules -----------------------------------------------------------------------------------------------------------


def local_stream(
    node: StreamNode, axis: int, *, along: Callable[[str], int] | None = None, sizes: str | None = None
) -> None:
    """Each row of the result is made of the corresponding row of every operand.

    Args:
        along: the dimension, counted from the end, in which a constant argument of this name lies along the rows; 0 for
            none. By default that of the result.
        sizes: name of an argument that lists the sizes of the result.
    """
    inputs = sources(node)
    _with_finest_rows(node, inputs, axis)
    back = len(node.shape) - axis
    node.along = _constants_along(node, along or (lambda _: back))
    places = {id(source): place for place, source in reversed(list(enumerate(inputs)))}
    func, output, edges, per = node.func, node.output, node.edges, node.per
    order = [argument.name for argument in func._schema.arguments]
    listed = None if sizes is None else order.index(sizes)

    def make(strip: Strip) -> Tensor:
        start, stop = strip.start, strip.stop

        def value(argument: Any) -> Tensor:
            place = places.get(id(argument))
            if place is not None:
                return _cut(node, strip.slabs[place], edges[place], start, stop)
            if id(argument) in node.by_rows:
                return node.by_rows[id(argument)](start, stop, strip.value)
            constant, dim = strip.value(argument), node.along.get(id(argument))
            return constant if dim is None else _narrowed(node, constant, dim, start, stop - start)

        values = assembled(node, value)
        if listed is not None:
            values[listed] = list(values[listed])
            values[listed][axis] = node.outer * (stop - start) * per
        if strip.out is not None:
            positional, names = _signature(func)
            return node.out(*values[:positional], **dict(zip(names, values[positional:], strict=True)), out=strip.out)
        result = call(func, values)
        return result if output is None else result[output]

    node.make, node.owns = make, True


def _with_finest_rows(node: StreamNode, inputs: list[StreamNode], axis: int) -> None:
    """Rows as fine as the finest of the operands'; others have rows that stand for several of them."""
    finest = max(inputs, key=lambda source: source.rows)
    node.axis, node.rows, node.per, node.outer = axis, finest.rows, finest.per, finest.outer
    for source in inputs:
        times = finest.rows // source.rows if source.rows else 1
        if (source.rows * times, source.per, source.outer) != (finest.rows, times * finest.per, finest.outer):
            raise node.refuse("its operands have different heights")
        if times == 1:
            node.edges.append(Edge(source, same, same))
        else:
            node.edges.append(Edge(source, lambda a, t=times: a // t, lambda b, t=times: ceil_div(b, t)))


def _constants_along(node: StreamNode, along: Callable[[str], int]) -> dict[int, int]:
    """The dimension that is narrowed to the rows of a strip, by constant argument."""
    found = {}
    for name, argument in node.arguments.items():
        back = along(name)
        for leaf in argument if isinstance(argument, (list, tuple)) else [argument]:
            is_node = isinstance(leaf, StreamNode)
            if not back or not ((is_node and leaf.axis is None) or isinstance(leaf, Tensor)) or len(leaf.shape) < back:
                continue
            dim = len(leaf.shape) - back
            if leaf.shape[dim] == 1:
                continue
            if leaf.shape[dim] != node.outer * node.rows * node.per:
                raise node.refuse("a constant operand has another height")
            found[id(leaf)] = dim
    return found


def _narrowed(node: StreamNode, constant: Tensor, dim: int, start: int, count: int) -> Tensor:
    """Rows of a constant; those before the first are the last ones: see `roll_stream`."""
    start, count = start * node.per, count * node.per
    if node.outer > 1:
        apart = constant.unflatten(dim, (node.outer, -1))
        return apart.narrow(dim + 1, start, count).flatten(dim, dim + 1)
    if start >= 0:
        return constant.narrow(dim, start, count)
    size = constant.shape[dim]
    if start + count <= 0:
        return constant.narrow(dim, start + size, count)
    return torch.cat([constant.narrow(dim, start + size, -start), constant.narrow(dim, 0, start + count)], dim)


def _cut(node: StreamNode, slab: Tensor, edge: Edge, start: int, stop: int) -> Tensor:
    """The rows [start, stop) out of a slab whose rows stand for several."""
    if edge.low is same:
        return slab
    source = edge.source
    above = start - edge.low(start) * (source.per // node.per)
    if node.outer == 1:
        return slab.narrow(source.axis, above * node.per, (stop - start) * node.per)
    apart = slab.unflatten(source.axis, (node.outer, -1))
    return apart.narrow(source.axis + 1, above * node.per, (stop - start) * node.per).flatten(
        source.axis, source.axis + 1
    )


def in_batch(node: StreamNode) -> bool:
    """Whether an operator on images has its rows in the batch, as windows: then each image of it is treated by
    itself, and the node is done."""
    source = sources(node)[0]
    if source.axis != 0 or len(source.shape) != len(node.shape) or source.shape[0] != node.shape[0]:
        return False
    local_stream(node, 0, along=lambda _: 0)
    return True


def image_like(node: StreamNode) -> StreamNode:
    """The source of an operator on images: (1, channels, rows, columns)."""
    source = sources(node)[0]
    if len(source.shape) != 4 or source.axis != 2 or source.outer != 1 or source.shape[0] != 1:
        raise node.refuse("rows are not the third dimension of one image")
    node.axis, node.rows, node.owns = 2, node.shape[2], True
    return parted(node, source)


def parted(node: StreamNode, source: StreamNode) -> StreamNode:
    """A source whose groups of rows are single rows again, as after windows are joined."""
    if source.per == 1:
        return source
    rows = parted_rows(source)
    node.before.append(rows)
    return rows


def parted_rows(source: StreamNode) -> StreamNode:
    """Groups of rows as single rows."""
    rows = StreamNode(source.number, source.path, source.func, {}, None, source.shape, source.dtype, source.device)
    per = source.per
    rows.axis, rows.rows = source.axis, source.rows * per
    rows.edges = [Edge(source, lambda a: a // per, lambda b: ceil_div(b, per))]
    rows.make = lambda strip: rows.rows_of(strip.slabs[0], strip.start % per, strip.stop - strip.start)
    return rows


def whole_stream(node: StreamNode) -> None:
    """All rows are taken together: they are summed up by a sweep of their own."""
    _with_finest_rows(node, sources(node), 0)
    if not node.rows:
        raise node.refuse("it takes no rows")
    if any(edge.low is not same for edge in node.edges):
        raise node.refuse("its operands have different heights")
    node.axis, node.whole = None, True


def with_statistic(node: StreamNode, rule: Callable[[Any, dict], Any]) -> None:
    """Each row is made of the same row and a statistic of the whole image: see statistic.py."""
    statistic = StreamNode(
        node.number, node.path, node.func, node.arguments, None, node.shape, node.dtype, device=node.device
    )
    whole_stream(statistic)
    statistic.is_statistic = True
    node.before.append(statistic)
    node.statistic, node.axis, node.owns = statistic, sources(node)[0].axis, True
    _with_finest_rows(node, sources(node), node.axis)

    def make(strip: Strip) -> Tensor:
        given = dict(zip(node.arguments, assembled(node, strip_values(node, strip)), strict=True))
        result = rule(node.func, given).result(strip.value(statistic))
        return result if node.output is None else result[node.output]

    node.make = make


def strip_values(node: StreamNode, strip: Strip) -> Callable[[Any], Tensor]:
    """Operands that have rows are the slabs, in the order of the edges; others are constants."""
    places = {id(source): place for place, source in reversed(list(enumerate(sources(node))))}
    return lambda argument: strip.slabs[places[id(argument)]] if id(argument) in places else strip.value(argument)


def pieces_stream(node: StreamNode, pieces: Sequence[Any]) -> None:
    """Images below each other. Each piece gives the rows of a strip that fall into it."""
    axis = next(one.axis for one in pieces if isinstance(one, StreamNode) and one.axis is not None)
    if any(not isinstance(one, StreamNode) or one.axis != axis or one.per * one.outer != 1 for one in pieces):
        raise node.refuse("it puts an image and something else below each other")
    node.axis, node.rows, node.owns = axis, node.shape[axis], True
    stops = list(accumulate(one.rows for one in pieces))
    tallest = max(one.rows for one in pieces)
    for one, stop in zip(pieces, stops, strict=True):
        # Rows below the last are asked for only to weigh a step far from the edges: they are of the tallest piece.
        above, last = stop - one.rows, 1 << 62 if one.rows == tallest else one.rows

        def low(row: int, above: int = above, rows: int = one.rows) -> int:
            return min(max(row - above, 0), rows) if row < node.rows else row - above

        def high(row: int, above: int = above, rows: int = one.rows, last: int = last) -> int:
            return min(row - above, rows if row <= node.rows else last)  # far above the piece it needs nothing

        node.edges.append(Edge(one, low, high))
    node.make = lambda strip: torch.cat([slab for slab in strip.slabs if slab.shape[axis]], axis)
