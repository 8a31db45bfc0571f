# SPDX-License-Identifier: MIT
"""Operators that move elements: slices, joins, partial writes, rolls, indices. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_iter

from ..rowmaps import EVERYWHERE, Part, Unknown, Value, dim_size, joined, moved, opaque, spatial
from .positions import NotInTable, moved_positions
from .rows import Operation, at_edges, dims_of, per_axis
from .streaming import Edge, Refused, StreamNode, Strip, ceil_div, local_stream, parted, pieces_stream, same, sources
from .table import DECOMPOSED, UNWRITTEN, VIEW, Family

operator = Family("parts and movements", statistic="it reduces nothing")


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


def cat_stream(node: StreamNode) -> None:
    source, dim = sources(node)[0], node["dim"] % len(node.shape)
    if dim == source.axis:
        pieces_stream(node, [one for one in node["tensors"] if 0 not in one.shape])
        return
    local_stream(node, source.axis)
    node.out = torch.ops.aten.cat.out


def stack_stream(node: StreamNode) -> None:
    axis, dim = sources(node)[0].axis, node["dim"] % len(node.shape)
    local_stream(node, axis + (dim <= axis), along=lambda _: len(node.shape) - 1 - axis)


def taken_stream(node: StreamNode) -> None:
    """Slices: of other dimensions, or every `step`-th row of a range."""
    source = sources(node)[0]
    dim, is_split = node.get("dim", 0) % len(source.shape), node.output is not None
    gone = len(node.shape) < len(source.shape)
    if dim != source.axis:
        local_stream(node, source.axis - (gone and dim < source.axis))
        node.owns = False
        return
    if is_split or gone or source.outer != 1:
        raise node.refuse("it takes rows from fixed places")
    source = parted(node, source)
    start, _, step = slice(node["start"], node["end"], node["step"]).indices(source.rows)
    node.axis, node.rows = source.axis, node.shape[source.axis]
    node.edges = [Edge(source, lambda a: a * step + start, lambda b: (b - 1) * step + start + 1)]
    every = (*[slice(None)] * node.axis, slice(None, None, step))
    node.make = lambda strip: strip.slabs[0] if step == 1 else strip.slabs[0][every]


def scatter_stream(node: StreamNode) -> None:
    """A part is overwritten: of another dimension, or rows."""
    axis = next(one.axis for one in sources(node) if len(one.shape) == len(node.shape))
    dim = node["dim"] % len(node.shape)
    if dim == axis:
        _rows_overwritten(node, axis)
        return
    gone = node.name == "select_scatter"
    local_stream(node, axis, along=lambda name: len(node.shape) - axis - (gone and name == "src" and dim > axis))


def _rows_overwritten(node: StreamNode, axis: int) -> None:
    base, source = node["self"], node["src"]
    if node.name != "slice_scatter" or any(getattr(one, "axis", None) != axis for one in (base, source)):
        raise node.refuse("it overwrites rows by something else than rows")
    start, end, step = slice(node["start"], node["end"], node["step"]).indices(node.shape[axis])
    if step != 1 or base.per * source.per * base.outer * source.outer != 1:
        raise node.refuse("it overwrites every other row, or groups of rows")
    end = max(start, end)
    node.axis, node.rows, node.owns = axis, base.rows, True

    # Rows outside the image are asked for only to weigh a step far from the edges.
    def low(row: int) -> int:
        return min(max(row - start, 0), end - start) if row < node.rows else row - start

    def high(row: int) -> int:
        return min(row - start, end - start) if row <= node.rows else row - start

    def make(strip: Strip) -> torch.Tensor:
        around, over = strip.slabs
        above, below = max(0, min(start, strip.stop) - strip.start), max(0, strip.stop - max(end, strip.start))
        count = strip.stop - strip.start
        pieces = [around.narrow(axis, 0, above), over, around.narrow(axis, count - below, below)]
        return torch.cat([piece for piece in pieces if piece.shape[axis]] or pieces[:1], axis)

    node.edges, node.make = [Edge(base, same, same), Edge(source, low, high)], make


def roll_stream(node: StreamNode) -> None:
    """Shifted windows: the image is rolled up, and down again afterwards.

        rolled up by 4, windows of 8:   row -4 .. -1   0 .. 3 | 4 .. 11 | ...
        row of the image                 (none)        0 .. 3   4 .. 11

    The window that joins the last rows with the first ones, which its mask keeps apart, is taken twice: at the top
    with the first rows alone, at the bottom with the last ones alone. So the rolled image starts before row 0.
    """
    source, dims = sources(node)[0], [dim % len(node.shape) for dim in node["dims"]]
    if not dims:
        raise node.refuse("it rolls the image as one row")
    shifts = dict(zip(dims, node["shifts"], strict=True))
    by = shifts.pop(source.axis, 0)
    axis, per = source.axis, source.per
    if source.outer > 1:
        raise node.refuse("it rolls what lies before the rows too")
    if not by:
        local_stream(node, axis)
        return
    node.axis, node.rows, node.turn, node.owns = axis, source.shape[axis], by, True
    node.edges = [
        Edge(source, lambda a: (a - by) // per, lambda b: ceil_div(b - by, per), 0.0 if by < 0 else None),
    ]

    def make(strip: Strip) -> torch.Tensor:
        above = strip.start - by - (strip.start - by) // per * per
        rows = strip.slabs[0].narrow(axis, above, strip.stop - strip.start)
        return torch.roll(rows, list(shifts.values()), list(shifts)) if shifts else rows

    node.make = make


def flip_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    if source.axis in [dim % len(source.shape) for dim in node["dims"]]:
        raise node.refuse("it turns the image upside down")
    local_stream(node, source.axis)


def index_stream(node: StreamNode) -> None:
    """Elements of other dimensions, chosen by one constant index."""
    source = node["self"]
    chosen = node.get("indices", node.get("index"))
    if isinstance(chosen, (list, tuple)):
        dims = [place for place, one in enumerate(chosen) if one is not None]
        if len(dims) != 1 or len(chosen[dims[0]].shape) != 1:
            raise node.refuse("it chooses elements by several numbers")
    else:
        dims = [node["dim"] % len(node.shape)]
    if len(sources(node)) != 1 or getattr(source, "axis", None) in (None, *dims):
        raise node.refuse("it chooses rows by number, or by what is in them")
    local_stream(node, source.axis, along=lambda _: len(node.shape) - source.axis if node.name == "gather" else 0)


BY_NUMBER = Refused("it chooses rows by number")
operator("cat", rows=cat_rows, positions=moved_positions, stream=cat_stream)
operator("stack", rows=stack_rows, positions=moved_positions, stream=stack_stream)
operator("select", rows=select_rows, stream=taken_stream, without={"positions": VIEW})
operator("slice", rows=slice_rows, stream=taken_stream, without={"positions": VIEW})
operator("split", "split_with_sizes", "unbind", rows=split_rows, stream=taken_stream, without={"positions": VIEW})
operator("chunk", rows=split_rows, stream=taken_stream, without={"positions": DECOMPOSED})
operator("unsafe_split", "unsafe_chunk", rows=split_rows, positions=moved_positions, stream=taken_stream)
operator("slice_scatter", rows=slice_scatter_rows, positions=moved_positions, stream=scatter_stream)
operator("select_scatter", rows=select_scatter_rows, positions=moved_positions, stream=scatter_stream)
operator("roll", rows=roll_rows, positions=moved_positions, stream=roll_stream)
operator("flip", rows=flip_rows, positions=moved_positions, stream=flip_stream)
operator(
    "rot90",
    positions=moved_positions,
    stream=Refused("it turns rows into columns"),
    without={"rows": UNWRITTEN},
)
operator("tril", "triu", positions=moved_positions, stream=BY_NUMBER, without={"rows": UNWRITTEN})
operator("repeat_interleave", positions=moved_positions, stream=BY_NUMBER, without={"rows": DECOMPOSED})
operator(
    "as_strided",
    positions=moved_positions,
    stream=BY_NUMBER,
    without={"rows": "it reads memory by addresses, which say nothing of rows; it is unknown"},
)
operator("index_select", "index", "gather", rows=index_rows, positions=index_positions, stream=index_stream)
operator("index_put", "scatter", positions=index_positions, stream=BY_NUMBER, without={"rows": UNWRITTEN})
BY_VALUE = Refused("it orders elements by value")
operator("topk", "sort", rows=index_rows, stream=BY_VALUE, without={"positions": UNWRITTEN})
operator("argsort", rows=index_rows, stream=BY_VALUE, without={"positions": DECOMPOSED})
