# SPDX-License-Identifier: MIT
"""Views, permutations and repetition. Imports torch."""

from __future__ import annotations

from math import prod

import torch

from ..rowmaps import Unknown, Value, dim_size, opaque, spatial
from .positions import moved_positions
from .rows import Operation, broadcast, regrouped
from .streaming import Edge, StreamNode, Strip, ceil_div, local_stream, same, sources
from .table import DECOMPOSED, VIEW, Family

operator = Family("views and permutations", statistic="it reduces nothing")


def view_rows(op: Operation) -> Value:
    return regrouped(op.value("self"), op.shape)


def pairs_rows(op: Operation) -> Value:
    value = op.value("self")
    if "view_as_real" in op.name:
        return value.with_dims((*value.dims, opaque(2)))
    if spatial(value.dims[-1]):
        raise Unknown("rows taken for real and imaginary parts")
    return value.with_dims(value.dims[:-1])


def permute_rows(op: Operation) -> Value:
    value = op.value("self")
    return value.with_dims(value.dims[dim] for dim in op["dims"])


def transpose_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = list(value.dims)
    first, second = op.arguments.get("dim0", 0), op.arguments.get("dim1", -1)
    if len(dims) > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return value.with_dims(dims)


def repeat_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = ((),) * (len(op.shape) - len(value.dims)) + value.dims
    if any(spatial(dim) and dim_size(dim) != size for dim, size in zip(dims, op.shape, strict=True)):
        raise Unknown("an image repeated side by side")
    return broadcast(value.with_dims(dims), op.shape)


def expand_rows(op: Operation) -> Value:
    return broadcast(op.value("self"), op.shape)


def view_as_real_positions(mode, func, args, kwargs):
    """The real and imaginary parts have the same dependencies."""
    seen = mode.real(args[0])
    return torch.stack([seen, seen], -1)


def view_as_complex_positions(mode, func, args, kwargs):
    """A complex number has the dependencies of both its parts."""
    seen = mode.real(args[0]).amax(-1)
    return torch.complex(seen, torch.zeros_like(seen))


def view_stream(node: StreamNode) -> None:
    """Rows stay whole: they take in the dimensions behind them, become groups of rows, or are parted again.

    (1, H, W, C) -> (1, H / 8, 8, W, C): groups of 8 rows; -> (H / 8 * W / 8, 64, C): groups with W / 8 entries each.
    """
    source = sources(node)[0]
    before = prod(source.shape[: source.axis]) * source.outer
    inner = prod(source.shape[source.axis + 1 :]) * source.per
    axis = next((j for j in range(len(node.shape)) if prod(node.shape[: j + 1]) > before), len(node.shape) - 1)
    ahead, behind = prod(node.shape[:axis]), prod(node.shape[axis + 1 :])
    if before % ahead or (inner % behind and behind % inner):
        raise node.refuse("it mixes rows with what lies before them")
    node.axis, node.outer = axis, before // ahead
    node.rows, node.per, times = source.rows, max(1, inner // behind), max(1, behind // inner)
    if times == 1:
        node.edges = [Edge(source, same, same)]
    else:
        node.rows = ceil_div(source.rows, times)
        node.edges = [Edge(source, lambda a: a * times, lambda b: b * times)]

    def make(strip: Strip) -> torch.Tensor:
        count = node.outer * (strip.stop - strip.start) * node.per
        return strip.slabs[0].reshape(*node.shape[:axis], count, *node.shape[axis + 1 :])

    node.make = make


def moved_axes_stream(node: StreamNode) -> None:
    """permute, transpose and their names."""
    source, rank = sources(node)[0], len(node.shape)
    order = list(range(rank))
    if "dims" in node.arguments:
        order = [dim % rank for dim in node["dims"]]
    elif rank > 1:
        names = ("dim0", "dim1") if "dim0" in node.arguments else ("axis0", "axis1")
        a, b = (node.get(name, default) % rank for name, default in zip(names, (rank - 2, rank - 1), strict=True))
        order[a], order[b] = b, a
    local_stream(node, order.index(source.axis))
    node.owns = False


def expand_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    local_stream(node, source.axis + len(node.shape) - len(source.shape), sizes="size")
    node.owns = False


def repeat_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    axis = source.axis + len(node.shape) - len(source.shape)
    if node["repeats"][axis] != 1:
        raise node.refuse("it repeats the image below itself")
    local_stream(node, axis)


def pairs_stream(node: StreamNode) -> None:
    local_stream(node, sources(node)[0].axis)
    node.owns = False


VIEWS = ("view", "_reshape_alias", "unsqueeze", "squeeze")
operator(*VIEWS, rows=view_rows, stream=view_stream, without={"positions": VIEW})
operator("reshape", "flatten", "unflatten", rows=view_rows, stream=view_stream, without={"positions": DECOMPOSED})
operator("_unsafe_view", "view_copy", "_reshape_copy", rows=view_rows, positions=moved_positions, stream=view_stream)
operator("view_as_real", rows=pairs_rows, positions=view_as_real_positions, stream=pairs_stream)
operator("view_as_complex", rows=pairs_rows, positions=view_as_complex_positions, stream=pairs_stream)
operator("permute", rows=permute_rows, stream=moved_axes_stream, without={"positions": VIEW})
operator("permute_copy", rows=permute_rows, positions=moved_positions, stream=moved_axes_stream)
operator("transpose", "t", rows=transpose_rows, stream=moved_axes_stream, without={"positions": VIEW})
operator(
    *("swapaxes", "numpy_T", "mT"), rows=transpose_rows, stream=moved_axes_stream, without={"positions": DECOMPOSED}
)
operator("repeat", rows=repeat_rows, positions=moved_positions, stream=repeat_stream)
operator("expand", rows=expand_rows, stream=expand_stream, without={"positions": VIEW})
