# SPDX-License-Identifier: MIT
"""Runs a recorded graph on strips of full-width rows. Every row of every node is made once.

A step asks for the next rows of the result. Backward: up to which row every node must be made. Forward: each node makes
the rows that are missing, from rows that its sources still hold. Then sources forget what no user needs any more.

    rows held     image     ----------[####]=====        # held from the last step: 2 for a 3x3 convolution
                  conv 1    -------[####]=====           = made in this step
                  conv 2    ----[####]=====              - forgotten
                  result    -----=====                   (each node is behind its source by what it sees below)

The ends of a step are not cut off at the image's edges: they start far above it for deep networks. So layers start one
after the other and every step is the same amount of work. Imports torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch

from ...fragile import dense
from ...inspection.operators import entry
from ...inspection.operators.streaming import Edge, StreamNode, Strip, assembled, call, ceil_div, same, strip_values
from ...inspection.recorder import Graph

__all__ = ["Constants", "Stepper", "add_statistics", "idle", "rows_per_step", "rows_seen", "streamed"]

Tensor = torch.Tensor
Slab = tuple[int, int, Tensor]  # rows [first, stop)
Read = Callable[[int, int], Tensor]  # rows [start, stop) of the image, (1, C, rows, W)

NEVER = -(10**12)


class Constants:
    """Tensors that do not depend on rows, computed when first needed. Statistics are added by sweeps."""

    def __init__(self, channels_last: bool):
        self.values: dict[StreamNode, Any] = {}
        self.made: dict[Any, Any] = {}
        self.channels_last = channels_last

    def value(self, argument: StreamNode | Tensor) -> Any:
        if isinstance(argument, Tensor):
            return argument
        if argument not in self.values:
            self.values[argument] = self._computed(argument)
        return self.values[argument]

    def _computed(self, node: StreamNode) -> Tensor:
        if node.name == "full":
            number = torch.full([1] * len(node.shape), node["fill_value"], dtype=node.dtype, device=node.device)
            return number.expand(node.shape)
        result = call(node.func, assembled(node, self.value))
        return result if node.output is None else result[node.output]

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Weights of convolutions, in the memory format of the strips."""
        if key not in self.made:
            made = make()
            if self.channels_last and made.dim() == 4:
                made = made.contiguous(memory_format=torch.channels_last)
            self.made[key] = made
        return self.made[key]


class Stepper:
    """Makes the rows of some nodes of a graph, from the top.

    Args:
        targets: the result, or statistics of one level.
        constants: with the statistics of the levels below.
        read: reads rows of the image, each once, in order.
        begin, end: the rows of the result to make; others are made only as far as these need them. None: to the last.
    """

    def __init__(
        self,
        graph: Graph,
        targets: Sequence[StreamNode],
        constants: Constants,
        read: Read,
        begin: int = 0,
        end: int | None = None,
    ):
        self.image, self.constants, self.read, self.begin, self.end = graph.image, constants, read, begin, end
        self.targets = set(targets)
        self.nodes = _needed(graph, targets)
        self.users: dict[StreamNode, list[tuple[StreamNode, Edge]]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for edge in node.edges:
                self.users[edge.source].append((node, edge))
        self.passing = self._passing()
        self.last_use: dict[StreamNode, list[StreamNode]] = {}
        order = {node: place for place, node in enumerate(self.nodes)}
        for node, users in self.users.items():
            last = max((user for user, _ in users), key=order.__getitem__, default=node)
            self.last_use.setdefault(last, []).append(node)
        self.slabs: dict[StreamNode, deque[Slab]] = {node: deque() for node in self.nodes}
        self.sums: dict[StreamNode, tuple[Any, Any]] = {}  # statistic so far, and the call that it is of
        self.done = self._begins()

    def _passing(self) -> set[StreamNode]:
        """Concatenations with one user are made for it from what their sources hold, and hold nothing: dense blocks
        would hold the same rows up to five times."""
        found = set()
        for node in self.nodes:
            users = self.users[node]
            plain = all(edge.low is same for edge in node.edges) and node not in self.targets
            if node.name == "cat" and plain and len(users) == 1 and users[0][1].low is not same:
                found.add(node)
                user, edge = users[0]
                for inner in node.edges:
                    own = self.users[inner.source]
                    own[:] = [each for each in own if each[0] is not node]
                    own.append((user, Edge(inner.source, edge.low, edge.high)))
        return found

    def _begins(self) -> dict[StreamNode, int]:
        """The first row that every node makes."""
        begins = {node: node.first for node in self.nodes}
        if self.begin == 0:
            return begins
        needed = {node: 10**12 for node in self.nodes}
        for target in self.targets:
            needed[target] = self.begin
        for node in reversed(self.nodes):
            first = max(node.first, needed[node] // node.unit * node.unit)
            begins[node] = first
            for edge in node.edges:
                needed[edge.source] = min(needed[edge.source], edge.low(first))
        return begins

    # ---- ends of steps

    def ends(self, goals: dict[StreamNode, int]) -> dict[StreamNode, int]:
        """Up to which row every node must be made for the goals. Not cut off at the image's edges."""
        ends = dict.fromkeys(self.nodes, NEVER)
        ends.update(goals)
        for node in reversed(self.nodes):
            stop = ends[node]
            if stop == NEVER:
                continue
            if node.unit > 1:
                stop = ends[node] = ceil_div(stop, node.unit) * node.unit
            for edge in node.edges:
                needed = edge.high(stop)
                ends[edge.source] = max(ends[edge.source], needed)
        return ends

    def goals(self, end: int) -> dict[StreamNode, int]:
        """The goals at row `end` of the tallest target."""
        tallest = max(node.rows for node in self.targets)
        return {node: ceil_div(end * node.rows, tallest) for node in self.targets}

    def before_image(self, step: int) -> int:
        """The end, in steps below the first row to make, at which no row of the image is needed yet."""
        end, first = self.begin, self.done[self.image]
        assert self.ends(self.goals(end - (step << 20)))[self.image] <= first, "an operator needs rows of no image"
        while self.ends(self.goals(end))[self.image] > first:
            end -= step
        return end

    # ---- steps

    def run(self, step: int | Iterator[int]) -> Iterator[tuple[int, Tensor]]:
        """Yields (first row, rows) of the result, (1, C, rows, W), from the top.

        Args:
            step: rows of the tallest target in a step; or such numbers, one for each step.
        """
        fixed = step if isinstance(step, int) else None
        heights = iter(step) if not isinstance(step, int) else iter(lambda: step, None)
        end = self.before_image(fixed or 64)
        while any(self.done[node] < (node.rows if self.end is None else self.end) for node in self.targets):
            end += next(heights)
            yield from self._advance(self.ends(self.goals(end)))

    def _advance(self, ends: dict[StreamNode, int]) -> Iterator[tuple[int, Tensor]]:
        for node in self.nodes:
            start, stop = self.done[node], min(ends[node], node.rows)
            if stop > start and node not in self.passing:
                if node.whole:
                    self._measure(node, start, stop)
                else:
                    self._make(node, start, stop)
                self.done[node] = stop
                if node in self.targets and not node.whole:
                    yield start, self._take(node, start, stop)
            for source in self.last_use.get(node, ()):
                self._release(source)

    def _measure(self, node: StreamNode, start: int, stop: int) -> None:
        """Adds rows to a statistic."""
        strip = self._strip(node, start, stop)
        given = dict(zip(node.arguments, assembled(node, strip_values(node, strip)), strict=True))
        rule = entry(node.name).statistic
        assert rule is not None
        operation = rule(node.func, given)
        measured = operation.measured()
        before = self.sums.get(node)
        self.sums[node] = (measured if before is None else before[0].merged(measured)), operation

    def statistics(self) -> dict[StreamNode, Any]:
        """What a sweep has measured, as constants: results of operators, or statistics for nodes that need them."""
        found: dict[StreamNode, Any] = {}
        for node, (statistic, operation) in self.sums.items():
            if node.is_statistic:
                found[node] = statistic
                continue
            result = operation.result(statistic)
            found[node] = result if node.output is None else result[node.output]
        return found

    def _strip(self, node: StreamNode, start: int, stop: int, out: Tensor | None = None) -> Strip:
        slabs, first = [], None
        for edge in node.edges:
            slab, low = self._fetch(edge, start, stop)
            slabs.append(dense(slab))
            first = low if first is None else first
        constants = self.constants
        return Strip(start, stop, slabs, start if first is None else first, constants.value, constants.once, out)

    def _made(self, node: StreamNode, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        if node.make is None:
            return self.read(start, stop)
        return node.make(self._strip(node, start, stop, out))

    def _spare(self, node: StreamNode, start: int, stop: int) -> Tensor | None:
        """The rows of a source, to be overwritten, if nothing else looks at them."""
        if node.out is None:
            return None
        for edge in node.edges:
            source, held = edge.source, self.slabs[edge.source]
            alone = source.owns and len(self.users[source]) == 1 and len(held) == 1 and edge.low is same
            if alone and held[0][:2] == (start, stop) and (source.shape, source.dtype) == (node.shape, node.dtype):
                return held[0][2]
        return None

    def _make(self, node: StreamNode, start: int, stop: int) -> None:
        """Makes rows, behind those that near users still need, so that they see one piece of memory.

        held   [ old slab ]                 window   [ tail | new rows ]
        far users keep the old slab; near users read the window
        """
        near = start
        for user, edge in self.users[node]:
            low = edge.low(self.done[user])
            if start - 2 * (stop - start) <= low < near:  # what lies farther away is taken from older slabs
                near = low
        near = max(near, self._oldest(node))
        if near >= start or node.outer > 1:
            near = start
            value = self._made(node, start, stop, self._spare(node, start, stop))
        else:
            tail = self._take(node, near, start)
            value = self._window(node, tail, near, start, stop)
        self.slabs[node].append((near, stop, value))

    def _window(self, node: StreamNode, tail: Tensor, near: int, start: int, stop: int) -> Tensor:
        axis, per = node.axis, node.per
        if tail.device.type != "cpu":  # dense tensors, without writes to views
            return torch.cat([tail, self._made(node, start, stop)], axis)
        shape = [*node.shape]
        shape[axis] = (stop - near) * per
        dense = torch.channels_last if len(shape) == 4 and axis == 2 and self.constants.channels_last else None
        value = torch.empty(shape, dtype=node.dtype, memory_format=dense or torch.contiguous_format)
        value.narrow(axis, 0, (start - near) * per).copy_(tail)
        fresh = value.narrow(axis, (start - near) * per, (stop - start) * per)
        if node.out is not None:
            self._made(node, start, stop, fresh)
        else:
            fresh.copy_(self._made(node, start, stop))
        return value

    def _oldest(self, node: StreamNode) -> int:
        return self.slabs[node][0][0] if self.slabs[node] else self.done[node]

    def _fetch(self, edge: Edge, start: int, stop: int) -> tuple[Tensor, int]:
        """What an edge brings for rows [start, stop), and its first row."""
        source, low, high = edge.source, edge.low(start), edge.high(stop)
        first, last = max(low, source.first), min(high, source.rows)
        if edge.fill is None:
            first, last = min(first, source.rows), max(last, source.first)
            return self._take(source, first, max(first, last)), first
        if low == first and high == last:
            return self._take(source, low, high), low
        shape, axis = list(source.shape), source.axis

        def blank(count: int) -> list[Tensor]:
            shape[axis] = count * source.per
            return [torch.full(shape, edge.fill, **_like(source))] if count > 0 else []

        between = [self._take(source, first, last)] if last > first else []
        pieces = [*blank(min(first, high) - low), *between, *blank(high - max(last, low))]
        return self._joined(pieces, axis), low

    def _joined(self, pieces: list[Tensor], axis: int) -> Tensor:
        if self.constants.channels_last and pieces[0].dim() == 4:
            pieces = [piece.contiguous(memory_format=torch.channels_last) for piece in pieces]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)

    def _take(self, node: StreamNode, low: int, high: int) -> Tensor:
        if node in self.passing:
            slabs = [dense(self._take(edge.source, low, high)) for edge in node.edges]
            assert node.make is not None
            return node.make(Strip(low, high, slabs, low, self.constants.value, self.constants.once))
        held = self.slabs[node]
        for first, stop, value in reversed(held):
            if first <= low and high <= stop:
                if first == low and high == stop:
                    return value
                return node.rows_of(value, low - first, high - low)
        pieces = []
        for first, stop, value in held:
            last = min(stop, high)
            if first <= low < last:
                pieces.append(node.rows_of(value, low - first, last - low))
                low = last
        assert low == high, f"rows {low} .. {high} of {node.name} in {node.path} are gone"
        if not pieces:
            return torch.empty((*node.shape[: node.axis], 0, *node.shape[node.axis + 1 :]), **_like(node))
        return node.joined(pieces)

    def _release(self, node: StreamNode) -> None:
        """Forgets rows that no user needs any more; a small rest moves to memory of its own."""
        held = self.slabs[node]
        if not held:
            return
        low = self.done[node]
        for user, edge in self.users[node]:
            if self.done[user] < user.rows:
                low = min(low, edge.low(self.done[user]))
        while held and (held[0][1] <= low or (len(held) > 1 and held[1][0] <= max(low, node.first))):
            held.popleft()
        if held and held[0][0] < low:
            first, stop, value = held[0]
            if (stop - low) * 4 <= (stop - first) * 3:
                rest = node.rows_of(value, low - first, stop - low)
                held[0] = (low, stop, rest.clone(memory_format=torch.preserve_format))

    def footprint(self, step: int) -> tuple[int, int]:
        """Bytes of rows held between steps, and the largest number of bytes in use during one, far from the edges."""
        before = self.ends(self.goals((1 << 20) * step))
        after = self.ends(self.goals((1 << 20) * step + step))
        row_bytes = {node: _row_bytes(node) for node in self.nodes}
        held = {node: self._rows_held(node, before, after) for node in self.nodes}
        between = now = most = sum(rows * row_bytes[node] for node, rows in held.items())
        for node in self.nodes:
            fresh = (after[node] - before[node]) * row_bytes[node]
            if node in self.passing or node.whole:
                continue
            near = 0 if node.axis is None else min(held[node], 2 * (after[node] - before[node])) * row_bytes[node]
            made = 0 if node.out is not None else fresh
            now += fresh + near
            most = max(most, now + made + _inside(node, after[node] - before[node]))
            for source in self.last_use.get(node, ()):
                if source not in self.passing and not source.whole:
                    now -= (after[source] - before[source]) * row_bytes[source]
                    now -= min(held[source], 2 * (after[source] - before[source])) * row_bytes[source]
        return between, most

    def _rows_held(self, node: StreamNode, ends: dict[StreamNode, int], later: dict[StreamNode, int]) -> int:
        """Rows that wait for users that go on."""
        if node in self.passing or node.whole:
            return 0
        lows = [edge.low(ends[user]) for user, edge in self.users[node] if later[user] > ends[user]]
        return max(0, ends[node] - min(lows, default=ends[node]))

    @property
    def held_bytes(self) -> int:
        """Bytes of rows that wait for later steps."""
        return sum(value.numel() * value.element_size() for held in self.slabs.values() for _, _, value in held)


def add_statistics(graph: Graph, constants: Constants, read: Read, rows: int) -> None:
    """Measures statistics of the whole image, a sweep for each level, with those of the levels below.

    rows: rows of the image in a step.
    """
    for level in range(1, graph.levels + 1):
        targets = [node for node in graph.nodes if node.whole and node.level == level]
        sweep = Stepper(graph, targets, constants, read)
        tallest = max(node.rows for node in targets)
        for _ in sweep.run(max(1, rows * tallest // graph.image.rows)):
            pass
        constants.values.update(sweep.statistics())


def streamed(graph: Graph, image: Tensor, rows: int = 8, *, channels_last: bool = False) -> Tensor:
    """The whole result for an image in memory (1, C, H, W)."""

    def read(start: int, stop: int) -> Tensor:
        return image[:, :, start:stop].clone(memory_format=torch.preserve_format)

    constants = Constants(channels_last)
    add_statistics(graph, constants, read, rows)
    stepper = Stepper(graph, [graph.result], constants, read)
    return torch.cat([strip.clone() for _, strip in stepper.run(rows_per_step(graph, rows))], 2)


def _like(node: StreamNode) -> dict[str, Any]:
    return {"dtype": node.dtype, "device": node.device}


def _row_bytes(node: StreamNode) -> int:
    return prod(node.shape) * node.dtype.itemsize // max(1, node.rows)


def _inside(node: StreamNode, rows: int) -> int:
    """Bytes in use inside a segment that makes so many rows."""
    if node.segment is None:
        return 0
    return node.segment.peak * rows_seen(node, rows) // max(1, node.edges[0].source.rows)


def rows_seen(node: StreamNode, rows: int) -> int:
    """Rows of a segment's source for so many of its own, far from the edges."""
    edge, far = node.edges[0], (1 << 20) * rows
    return edge.high(far + rows) - edge.low(far)


def _needed(graph: Graph, targets: Sequence[StreamNode]) -> list[StreamNode]:
    needed = set(targets)
    for node in reversed(graph.nodes):
        if node in needed:
            needed |= {edge.source for edge in node.edges}
    return [node for node in graph.nodes if node in needed]


def idle(graph: Graph) -> Stepper:
    """A stepper that reads nothing, to ask about steps."""
    return Stepper(graph, [graph.result], Constants(False), lambda start, stop: torch.empty(0))


def rows_per_step(graph: Graph, rows: int) -> int:
    """Rows of the result in a step for about `rows` rows of the image, so that in every step each node makes the same
    number of rows."""
    output = max(1, round(rows * graph.result.rows / graph.image.rows))
    stepper = idle(graph)
    least = max(node.unit for node in stepper.nodes)
    for step in sorted(least * 2**i * 3**j * 5**k for i in range(9) for j in range(4) for k in range(3)):
        marks = [stepper.ends({graph.result: (1 << 20) * step + n * step}) for n in range(3)]
        if all(c - b == b - a for a, b, c in zip(*(mark.values() for mark in marks), strict=True)):
            return ceil_div(output, step) * step
    return output
