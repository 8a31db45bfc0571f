# SPDX-License-Identifier: MIT
"""Operators that move elements: slices, joins, partial writes, rolls, indices. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_iter

from ..rowmaps import EVERYWHERE, Part, Unknown, Value, dim_size, joined, moved, opaque, spatial
from .positions import NotInTable, moved_positions
from .rows import Operation, at_edges, dims_of, per_axis
from .table import operator


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


def stack_rows(op: Operation) -> Value:
    value = op.joined(op["tensors"])
    dim = op["dim"] % len(op.shape)
    return value.with_dims((*value.dims[:dim], opaque(op.shape[dim]), *value.dims[dim:]))


def select_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    place = op["index"] % dim_size(value.dims[dim])
    value = sliced_dim(op, value, dim, place, place + 1, 1)
    return value.with_dims(value.dims[:dim] + value.dims[dim + 1 :])


def slice_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    start, end, step = slice(op["start"], op["end"], op["step"]).indices(dim_size(value.dims[dim]))
    return sliced_dim(op, value, dim, start, end, step)


def split_rows(op: Operation) -> list[Value]:
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
    """Every `step`-th element of a dimension from `start` to `end`."""
    dim, size = value.dims[index], max(0, -(-(end - start) // step))
    if size == dim_size(dim):
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
    if 4 * size * step <= dim_size(dim):
        return strip(op, value, index, size)
    return moved(value, index, size, 1, step, lambda row: [start + step * row])


def strip(op: Operation, value: Value, index: int, size: int) -> Value:
    """A few rows from one fixed place."""
    for axis in {part.axis for part in spatial(value.dims[index])}:
        others = [part for place, dim in enumerate(value.dims) if place != index for part in dim if part.axis == axis]
        value = value.with_map(axis, value.maps[axis].everywhere() if others else EVERYWHERE)
    return value.with_dim(index, *opaque(size)).with_events(op.event("rows or columns at a fixed place", "strip"))


def slice_scatter_rows(op: Operation) -> Value:
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


def select_scatter_rows(op: Operation) -> Value:
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


def roll_rows(op: Operation) -> Value:
    value = op.value("self")
    if not op["dims"]:
        raise Unknown("an image rolled as one row")
    for dim, by in zip(dims_of(op, value, "dims"), per_axis(op["shifts"], 1), strict=True):
        if by and spatial(value.dims[dim]):
            value = moved(value, dim, op.shape[dim], 1, 1, lambda row, by=by: [row - by])
            value = value.with_events(op.event("what leaves the image at one edge comes in at the other", "edge"))
    return value


def flip_rows(op: Operation) -> Value:
    value = op.value("self")
    if any(spatial(value.dims[dim]) for dim in dims_of(op, value, "dims")):
        raise Unknown("a mirrored image")
    return value


def index_rows(op: Operation) -> Value:
    """Elements chosen by index or by value: allowed for channels, not for rows."""
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


def index_positions(mode, func, args, kwargs):
    """Reads or writes by constant indices."""
    indices = [leaf for leaf in tree_iter(args[1:]) if isinstance(leaf, torch.Tensor) and not leaf.is_floating_point()]
    if not indices or any(
        mode.carries(leaf) for leaf in tree_iter(args[1:2] if func._schema.name == "aten::index" else ())
    ):
        raise NotInTable
    return mode.moved(func, args, kwargs)


operator("cat", rows=cat_rows, positions=moved_positions)
operator("stack", rows=stack_rows, positions=moved_positions)
operator("select", rows=select_rows)
operator("slice", rows=slice_rows)
operator("split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk", rows=split_rows)
operator("slice_scatter", rows=slice_scatter_rows, positions=moved_positions)
operator("select_scatter", rows=select_scatter_rows, positions=moved_positions)
operator("roll", rows=roll_rows, positions=moved_positions)
operator("flip", rows=flip_rows, positions=moved_positions)
operator("rot90", "tril", "triu", "repeat_interleave", "as_strided", positions=moved_positions)
operator("index_select", "index", "gather", rows=index_rows, positions=index_positions)
operator("index_put", "scatter", positions=index_positions)
operator("topk", "sort", "argsort", rows=index_rows)
