# SPDX-License-Identifier: MIT
"""What operators that move elements do to dependencies: views, slices, padding, windows. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from .operators import Operation, at_edges, broadcast, dims_of, per_axis, rule, transposed, windowed
from .rowmaps import EVERYWHERE, Dim, Part, Unknown, Value, coalesced, dim_size, joined, mixed, moved, opaque, spatial


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
def view_rows(op: Operation) -> Value:
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
def pairs_rows(op: Operation) -> Value:
    value = op.value("self")
    if "view_as_real" in op.name:
        return value.with_dims((*value.dims, opaque(2)))
    if spatial(value.dims[-1]):
        raise Unknown("rows taken for real and imaginary parts")
    return value.with_dims(value.dims[:-1])


@rule("permute", "permute_copy")
def permute_rows(op: Operation) -> Value:
    value = op.value("self")
    return value.with_dims(value.dims[dim] for dim in op["dims"])


@rule("transpose", "t", "swapaxes", "numpy_T", "mT")
def transpose_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = list(value.dims)
    first, second = op.arguments.get("dim0", 0), op.arguments.get("dim1", -1)
    if len(dims) > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return value.with_dims(dims)


@rule("unsqueeze", "squeeze")
def squeeze_rows(op: Operation) -> Value:
    return regrouped(op.value("self"), op.shape)


@rule("repeat")
def repeat_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = ((),) * (len(op.shape) - len(value.dims)) + value.dims
    if any(spatial(dim) and dim_size(dim) != size for dim, size in zip(dims, op.shape, strict=True)):
        raise Unknown("an image repeated side by side")
    return broadcast(value.with_dims(dims), op.shape)


@rule("select")
def select_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    place = op["index"] % dim_size(value.dims[dim])
    value = sliced_dim(op, value, dim, place, place + 1, 1)
    return value.with_dims(value.dims[:dim] + value.dims[dim + 1 :])


@rule("slice")
def slice_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    start, end, step = slice(op["start"], op["end"], op["step"]).indices(dim_size(value.dims[dim]))
    return sliced_dim(op, value, dim, start, end, step)


@rule("split", "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk")
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
    """Every `step`-th of a dimension from `start` up to `end`."""
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
    """A few rows from one place."""
    for axis in {part.axis for part in spatial(value.dims[index])}:
        others = [part for place, dim in enumerate(value.dims) if place != index for part in dim if part.axis == axis]
        value = value.with_map(axis, value.maps[axis].everywhere() if others else EVERYWHERE)
    return value.with_dim(index, *opaque(size)).with_events(op.event("rows or columns at a fixed place", "strip"))


@rule("slice_scatter")
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


@rule("select_scatter")
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


@rule("roll")
def roll_rows(op: Operation) -> Value:
    value = op.value("self")
    if not op["dims"]:
        raise Unknown("an image rolled as one row")
    for dim, by in zip(dims_of(op, value, "dims"), per_axis(op["shifts"], 1), strict=True):
        if by and spatial(value.dims[dim]):
            value = moved(value, dim, op.shape[dim], 1, 1, lambda row, by=by: [row - by])
            value = value.with_events(op.event("what leaves the image at one edge comes in at the other", "edge"))
    return value


@rule("flip")
def flip_rows(op: Operation) -> Value:
    value = op.value("self")
    if any(spatial(value.dims[dim]) for dim in dims_of(op, value, "dims")):
        raise Unknown("a mirrored image")
    return value


@rule("constant_pad_nd", kind="")
@rule("reflection_pad1d", "reflection_pad2d", kind="mirrored")
@rule("replication_pad1d", "replication_pad2d", kind="repeated")
def padding_rows(op: Operation, kind: str) -> Value:
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
def im2col_rows(op: Operation) -> Value:
    value = op.value("self")
    value = mixed(value, [1], op.event("reduction"))
    for place in (0, 1):
        index, kernel, stride = 2 + place, op["kernel_size"][place], op["stride"][place]
        taps = [op["dilation"][place] * tap - op["padding"][place] for tap in range(kernel)]
        size = (
            dim_size(value.dims[index]) + 2 * op["padding"][place] - op["dilation"][place] * (kernel - 1) - 1
        ) // stride
        value = windowed(value, index, size + 1, taps, stride)
    return value.with_dims((value.dims[0], opaque(op.shape[1]), value.dims[2] + value.dims[3]))


@rule("col2im")
def col2im_rows(op: Operation) -> Value:
    value = mixed(op.value("self"), [1], op.event("reduction"))
    if len(value.dims[2]) != 2 or [part.axis for part in value.dims[2]] != [0, 1]:
        raise Unknown("patches that are not rows of patches")
    value = value.with_dims((value.dims[0], opaque(op.shape[1]), value.dims[2][:1], value.dims[2][1:]))
    for place in (0, 1):
        taps = [op["dilation"][place] * tap - op["padding"][place] for tap in range(op["kernel_size"][place])]
        value = transposed(value, 2 + place, op.shape[2 + place], taps, op["stride"][place])
    return value


@rule("unfold")
def unfold_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dimension"] % len(value.dims)
    value = windowed(value, dim, op.shape[dim], range(op["size"]), op["step"])
    return value.with_dims((*value.dims, opaque(op["size"])))


@rule("index_select", "index", "gather", "topk", "sort", "argsort")
def index_rows(op: Operation) -> Value:
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


@rule("pixel_shuffle")
def pixel_shuffle_rows(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["upscale_factor"]
    rank = len(batch)
    value = regrouped(op.value("self"), [*batch, channels // factor**2, factor, factor, height, width])
    order = [*range(rank), *(rank + place for place in (0, 3, 1, 4, 2))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle_rows(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["downscale_factor"]
    rank = len(batch)
    shape = [*batch, channels, height // factor, factor, width // factor, factor]
    value = regrouped(op.value("self"), shape)
    order = [*range(rank), *(rank + place for place in (0, 2, 4, 1, 3))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)
