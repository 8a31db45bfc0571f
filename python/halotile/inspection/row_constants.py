# SPDX-License-Identifier: MIT
"""Large constants, such as masks of shifted windows, of which a stream needs some rows at a time. Imports torch.

A mask of windows of 8 holds 64 numbers for each pixel of the image. It is made of a few fills and views, so its rows
are made when a strip needs them, by the same rules that make rows of the image:

    rows [a, b) of the mask  <-  rows [8 a, 8 b) of the numbered image  <-  fills
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree

from .operators.streaming import RowsOfConstant, StreamNode, Strip, sources

__all__ = ["rows_of_constant"]

Tensor = torch.Tensor
Assign = Callable[[StreamNode], None]


def rows_of_constant(leaf: StreamNode, like: StreamNode, dim: int, assign: Assign) -> RowsOfConstant | None:
    """A function that makes rows of a constant; None if its rows cannot be made one by one.

    Args:
        like: the node whose rows lie along dimension `dim` of the constant.
        assign: gives a node its rows by the rule of its operator.
    """
    nodes = _lineage(leaf)
    fills = [node for node in nodes if node.name == "full"]
    if not fills:
        return None
    for axis, side in enumerate(fills[0].shape):
        if side == 1:
            continue
        try:
            made = _with_rows(nodes, axis, side, assign)
        except Exception:  # rules may raise anything where rows are not what they take for rows
            continue
        found = made[leaf]
        if found.axis == dim and (found.rows, found.per, found.outer) == (like.rows, like.per, like.outer):
            return lambda start, stop, value: _cyclic(found, start, stop, value)
    return None


def _lineage(leaf: StreamNode) -> list[StreamNode]:
    """The constants that a constant is made of, and itself, in the order of their calls."""
    found, waiting = {leaf}, [leaf]
    while waiting:
        for source in _pytree.tree_leaves(waiting.pop().arguments):
            if isinstance(source, StreamNode) and source not in found:
                found.add(source)
                waiting.append(source)
    return sorted(found, key=lambda node: node.number)


def _with_rows(nodes: Sequence[StreamNode], axis: int, side: int, assign: Assign) -> dict[StreamNode, StreamNode]:
    """Copies of constants with rows, if fills have theirs in dimension `axis`."""
    copies: dict[StreamNode, StreamNode] = {}
    for node in nodes:
        copy = replace(node, arguments=_pytree.tree_map_only(StreamNode, copies.__getitem__, node.arguments))
        copy.edges, copy.before = [], []
        if node.name == "full":
            if len(node.shape) > axis and node.shape[axis] == side:
                copy.axis, copy.rows, copy.make = axis, side, _filled(copy)
        elif sources(copy):
            assign(copy)
            if copy.statistic is not None or copy.whole or any(edge.fill is not None for edge in copy.edges):
                raise copy.refuse("its rows cannot be made one by one")
        copies[node] = copy
    return copies


def _filled(node: StreamNode) -> Callable[[Strip], Tensor]:
    def make(strip: Strip) -> Tensor:
        shape = list(node.shape)
        shape[node.axis] = strip.stop - strip.start
        number = torch.full([1] * len(shape), node["fill_value"], dtype=node.dtype, device=node.device)
        return number.expand(shape)

    return make


def _cyclic(node: StreamNode, start: int, stop: int, value: Callable[[Any], Tensor]) -> Tensor:
    """Rows [start, stop); those before the first are the last ones: see `roll_stream`."""
    rows = Rows(value)
    if start >= 0:
        return rows.of(node, start, stop)
    if stop <= 0:
        return rows.of(node, start + node.rows, stop + node.rows)
    return node.joined([rows.of(node, start + node.rows, node.rows), rows.of(node, 0, stop)])


class Rows:
    """Rows of constants, each made once for a strip."""

    def __init__(self, value: Callable[[Any], Tensor]):
        self.value = value
        self.made: dict[tuple[StreamNode, int, int], Tensor] = {}

    def of(self, node: StreamNode, start: int, stop: int) -> Tensor:
        key = node, start, stop
        if key not in self.made:
            self.made[key] = self._new(node, start, stop)
        return self.made[key]

    def _new(self, node: StreamNode, start: int, stop: int) -> Tensor:
        slabs, first = [], start
        for place, edge in enumerate(node.edges):
            low, high = max(edge.low(start), 0), min(edge.high(stop), edge.source.rows)
            first = low if place == 0 else first
            slabs.append(self.of(edge.source, low, max(low, high)))
        assert node.make is not None
        return node.make(Strip(start, stop, slabs, first, self.value, lambda _, make: make()))
