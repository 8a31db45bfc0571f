# SPDX-License-Identifier: MIT
"""Unfold, fold, and pixel shuffle and unshuffle. Imports torch."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..rowmaps import Unknown, Value, dim_size, mixed, opaque
from .positions import moved_positions
from .rows import Operation, regrouped, transposed, windowed
from .streaming import Edge, Refused, StreamNode, Strip, ceil_div, image_like, in_batch, pair, same
from .table import UNWRITTEN, VIEW, Family

operator = Family("patches and pixel shuffling", statistic="it reduces nothing")


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


def col2im_rows(op: Operation) -> Value:
    value = mixed(op.value("self"), [1], op.event("reduction"))
    if len(value.dims[2]) != 2 or [part.axis for part in value.dims[2]] != [0, 1]:
        raise Unknown("patches that are not rows of patches")
    value = value.with_dims((value.dims[0], opaque(op.shape[1]), value.dims[2][:1], value.dims[2][1:]))
    for place in (0, 1):
        taps = [op["dilation"][place] * tap - op["padding"][place] for tap in range(op["kernel_size"][place])]
        value = transposed(value, 2 + place, op.shape[2 + place], taps, op["stride"][place])
    return value


def unfold_rows(op: Operation) -> Value:
    value = op.value("self")
    dim = op["dimension"] % len(value.dims)
    value = windowed(value, dim, op.shape[dim], range(op["size"]), op["step"])
    return value.with_dims((*value.dims, opaque(op["size"])))


def pixel_shuffle_rows(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["upscale_factor"]
    rank = len(batch)
    value = regrouped(op.value("self"), [*batch, channels // factor**2, factor, factor, height, width])
    order = [*range(rank), *(rank + place for place in (0, 3, 1, 4, 2))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)


def pixel_unshuffle_rows(op: Operation) -> Value:
    (*batch, channels, height, width), factor = op.value("self").shape, op["downscale_factor"]
    rank = len(batch)
    shape = [*batch, channels, height // factor, factor, width // factor, factor]
    value = regrouped(op.value("self"), shape)
    order = [*range(rank), *(rank + place for place in (0, 2, 4, 1, 3))]
    return regrouped(value.with_dims(value.dims[index] for index in order), op.shape)


def channel_shuffle_rows(op: Operation) -> Value:
    value = op.value("self")
    return mixed(value, [1], op.event("reduction")).with_dim(1, *opaque(op.shape[1]))


def im2col_stream(node: StreamNode) -> None:
    """Patches lie in one dimension, row by row."""
    source = image_like(node)
    kernel, (dy, dx), (py, px) = pair(node["kernel_size"]), pair(node["dilation"]), pair(node["padding"])
    sy, sx = pair(node["stride"])
    reach = dy * (kernel[0] - 1)
    node.axis, node.rows = 2, (source.rows + 2 * py - reach - 1) // sy + 1
    node.per = node.shape[2] // node.rows
    node.edges = [Edge(source, lambda a: a * sy - py, lambda b: (b - 1) * sy - py + reach + 1, 0.0)]
    node.make = lambda strip: functional.unfold(strip.slabs[0], kernel, (dy, dx), (0, px), (sy, sx))


def pixel_shuffle_stream(node: StreamNode) -> None:
    if in_batch(node):
        return
    source, times = image_like(node), node["upscale_factor"]
    node.unit = times
    node.edges = [Edge(source, lambda a: a // times, lambda b: ceil_div(b, times))]

    def make(strip: Strip) -> torch.Tensor:
        y = functional.pixel_shuffle(strip.slabs[0], times)
        count = strip.stop - strip.start
        return y if y.shape[2] == count else y.narrow(2, strip.start - strip.start // times * times, count)

    node.make = make


def pixel_unshuffle_stream(node: StreamNode) -> None:
    if in_batch(node):
        return
    source, times = image_like(node), node["downscale_factor"]
    node.edges = [Edge(source, lambda a: a * times, lambda b: b * times)]
    node.make = lambda strip: functional.pixel_unshuffle(strip.slabs[0], times)


def channel_shuffle_stream(node: StreamNode) -> None:
    node.edges = [Edge(image_like(node), same, same)]
    node.make = lambda strip: functional.channel_shuffle(strip.slabs[0], node["groups"])


OVERLAPPING = Refused("it makes overlapping views")
operator("im2col", rows=im2col_rows, positions=moved_positions, stream=im2col_stream)
operator(
    "col2im",
    rows=col2im_rows,
    stream=Refused("it adds patches up that overlap"),
    without={"positions": UNWRITTEN},
)
operator("unfold", rows=unfold_rows, stream=OVERLAPPING, without={"positions": VIEW})
operator("unfold_copy", rows=unfold_rows, positions=moved_positions, stream=OVERLAPPING)
operator(
    *("channel_shuffle", "native_channel_shuffle"),
    rows=channel_shuffle_rows,
    positions=moved_positions,
    stream=channel_shuffle_stream,
)
operator("pixel_shuffle", rows=pixel_shuffle_rows, positions=moved_positions, stream=pixel_shuffle_stream)
operator("pixel_unshuffle", rows=pixel_unshuffle_rows, positions=moved_positions, stream=pixel_unshuffle_stream)
