# SPDX-License-Identifier: MIT
"""Convolutions and transposed convolutions. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..rowmaps import Unknown, Value, joined, mixed, opaque
from .positions import NOTHING, NotInTable
from .rows import Operation, per_axis, transposed, windowed
from .streaming import Edge, StreamNode, Strip, ceil_div, image_like, in_batch, pair
from .table import Family

operator = Family("convolutions", statistic="a kernel sees a few elements, never the whole image")


def convolution_rows(op: Operation) -> Value:
    """Each result depends on the elements under the taps of its kernel."""
    value, weight = op.value("input"), op.known(op["weight"])
    count = len(value.dims) - 2
    if weight is not None:  # computed from the image: valid if it is the same everywhere
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


def convolution_positions(mode, func, args, kwargs):
    """The farthest position under all taps with non-zero weight."""
    seen, weight, _, stride, padding, dilation, transposed, extra, groups = args[:9]
    dims = weight.ndim - 2
    if mode.carries(weight) or seen.ndim != weight.ndim:
        raise NotInTable
    stride, padding, dilation, extra = (
        list(v) * (dims if len(v) == 1 else 1) for v in (stride, padding, dilation, extra)
    )
    taps = weight.detach() != 0
    dense = bool(taps.all())
    if dense:  # all outputs of a group get the farthest position of its channels
        seen = seen.unflatten(1, (groups, -1)).amax(2)
    if transposed:
        inputs, outputs, *kernel = taps.shape
        taps = taps.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flip(*range(3, 3 + dims))
        taps = taps.reshape(groups * outputs, inputs // groups, *kernel)
    kernel, ends = taps.shape[2:], mode.ends(seen.shape[2:])
    for d in range(dims):
        reach, size = dilation[d] * (kernel[d] - 1), seen.shape[2 + d]
        if transposed:
            out = (size - 1) * stride[d] - 2 * padding[d] + reach + extra[d] + 1
            seen = _spaced(seen, 2 + d, stride[d])
            left = reach - padding[d]
            seen = mode.extended(seen, 2 + d, left, out + reach - left - seen.shape[2 + d], ends[d])
        else:
            seen = mode.extended(seen, 2 + d, padding[d], padding[d], ends[d])
    stride = [1] * dims if transposed else stride
    if dense:
        pool = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[dims - 1]
        result = pool(seen, list(kernel), stride, 0, dilation).unsqueeze(2)
        return result.expand(-1, -1, len(taps) // groups, *result.shape[3:]).flatten(1, 2).contiguous()
    return farthest_of_taps(seen, taps, stride, dilation, groups)


def _spaced(seen: torch.Tensor, dim: int, stride: int) -> torch.Tensor:
    """Inserts `stride` - 1 elements that depend on nothing after each element."""
    if stride == 1:
        return seen
    shape = [*seen.shape[: dim + 1], stride, *seen.shape[dim + 1 :]]
    spaced = torch.full(shape, NOTHING)
    spaced.select(dim + 1, 0).copy_(seen)
    return spaced.flatten(dim, dim + 1)


def farthest_of_taps(seen: torch.Tensor, taps: torch.Tensor, stride, dilation, groups: int) -> torch.Tensor:
    """The farthest positions under the taps (outputs, inputs of a group, *kernel), some of which are zero."""
    outputs, inputs, *kernel = taps.shape
    grouped = seen.unflatten(1, (groups, inputs))
    size = [
        (side - reach * (count - 1) - 1) // step + 1
        for side, count, step, reach in zip(seen.shape[2:], kernel, stride, dilation, strict=True)
    ]
    patterns, which = torch.cat([taps.flatten(1).long(), _groups_of(outputs, groups)], 1).unique(
        dim=0, return_inverse=True
    )
    result = torch.full((len(seen), len(patterns), *size), NOTHING)
    for i, pattern in enumerate(patterns):
        group, used = grouped[:, int(pattern[-1])], pattern[:-1].reshape(inputs, *kernel).bool()
        for tap in used.any(0).nonzero().tolist():
            inner = group[:, used[(slice(None), *tap)]].amax(1)
            for d, at in enumerate(tap):
                inner = inner.index_select(1 + d, torch.arange(size[d]) * stride[d] + at * dilation[d])
            torch.maximum(result[:, i], inner, out=result[:, i])
    return result.index_select(1, which)


def _groups_of(outputs: int, groups: int) -> torch.Tensor:
    """The group that each output belongs to, as a column."""
    return (torch.arange(outputs) // (outputs // groups)).unsqueeze(1)


def convolution_stream(node: StreamNode) -> None:
    """Row o sees rows o * stride - padding + dilation * tap. Beyond the image's first and last rows there are zeros."""
    for name in ("weight", "bias"):
        if isinstance(node[name], StreamNode) and node[name].axis is not None:
            raise node.refuse("its weights are made of the image")
    if in_batch(node):
        return
    (sy, sx), (py, px), (dy, dx) = pair(node["stride"]), pair(node["padding"]), pair(node["dilation"])
    source, groups, reach = image_like(node), node["groups"], dy * (node["weight"].shape[2] - 1)

    def weight_and_bias(strip: Strip) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = node["bias"]
        return strip.once(node, lambda: strip.value(node["weight"])), None if bias is None else strip.value(bias)

    if node["transposed"]:
        _transposed_stream(node, source, weight_and_bias)
        return
    node.edges = [Edge(source, lambda a: a * sy - py, lambda b: (b - 1) * sy - py + reach + 1, 0.0)]

    def make(strip: Strip) -> torch.Tensor:
        return torch.conv2d(strip.slabs[0], *weight_and_bias(strip), (sy, sx), (0, px), (dy, dx), groups)

    node.make = make


def _transposed_stream(node: StreamNode, source: StreamNode, weight_and_bias: Callable) -> None:
    """Row i adds to rows i * stride - padding + dilation * tap."""
    (sy, sx), (py, px), (dy, dx) = pair(node["stride"]), pair(node["padding"]), pair(node["dilation"])
    reach, ox, groups = dy * (node["weight"].shape[2] - 1), pair(node["output_padding"])[1], node["groups"]
    node.unit = sy

    def low(a: int) -> int:  # rows of bias alone have no source, and take the one above
        row = min(ceil_div(a + py - reach, sy), (a + py) // sy)
        return min(row, source.rows - 1) if a < node.rows else row

    def high(b: int) -> int:
        return max((b - 1 + py) // sy, ceil_div(b - 1 + py - reach, sy)) + 1

    def make(strip: Strip) -> torch.Tensor:
        slab, count = strip.slabs[0], strip.stop - strip.start
        before = strip.start + py - sy * strip.first
        missing = max(0, before + count - (sy * (slab.shape[2] - 1) + reach + 1))  # rows of bias alone
        size = (missing, ox) if missing < sy or missing < dy else (0, ox)
        y = torch.conv_transpose2d(slab, *weight_and_bias(strip), (sy, sx), (0, px), size, groups, (dy, dx))
        return y.narrow(2, before, count)

    node.edges, node.make = [Edge(source, low, high)], make


operator(
    "convolution",
    "_convolution",
    rows=convolution_rows,
    positions=convolution_positions,
    stream=convolution_stream,
)
