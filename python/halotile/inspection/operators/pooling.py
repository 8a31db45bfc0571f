# SPDX-License-Identifier: MIT
"""Pooling with a stride or to a fixed size. Imports torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from ..info import GlobalOperation
from ..rowmaps import Unknown, Value, dim_size, mixed
from .positions import HOW, NOTHING
from .rows import POOLING, Operation, per_axis, windowed
from .statistic import Call, Statistic
from .streaming import Edge, Refused, StreamNode, Strip, ceil_div, image_like, in_batch, pair, sources, whole_stream
from .table import DECOMPOSED, Family

operator = Family("pooling")


def pooling_rows(op: Operation) -> Value:
    """Each result depends on the elements in its window."""
    value = op.value("self")
    count = 1 if "1d" in op.name else 2
    kernel = per_axis(op["kernel_size"], count)
    stride = per_axis(op["stride"], count) if op["stride"] else kernel
    padding, dilation = per_axis(op["padding"], count), per_axis(op.arguments.get("dilation", 1), count)
    for place in range(count):
        index = len(value.dims) - count + place
        taps = [dilation[place] * tap - padding[place] for tap in range(kernel[place])]
        value = windowed(value, index, op.shape[index], taps, stride[place])
    return value


def adaptive_pooling_rows(op: Operation) -> Value:
    """Pooling to one cell is global; to as many cells as elements it is the identity; otherwise it is unknown."""
    value = op.value("self")
    for index in (len(value.dims) - 2, len(value.dims) - 1):
        if op.shape[index] == 1:
            value = mixed(value, [index], op.event(POOLING)).with_dim(index)
        elif op.shape[index] != dim_size(value.dims[index]):
            raise Unknown("pooling to a fixed size")
    return value


def pooling_positions(results: int):
    def run(mode, func, args, kwargs):
        names = [one.name for one in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        x, kernel = mode.real(args[0]), given["kernel_size"]
        flat = x if x.ndim == 4 else x.unsqueeze(0)
        blank = func(torch.zeros(1, 1, *x.shape[-2:]), *args[1:], **kwargs)
        size = (blank[0] if results > 1 else blank).shape[-2:]
        kernel, stride, padding, dilation = (
            list(v) * (2 if len(v) == 1 else 1)
            for v in (kernel, given.get("stride") or kernel, given.get("padding") or [0], given.get("dilation") or [1])
        )
        for d, end in enumerate(mode.ends(x.shape[-2:])):
            needed = (size[d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1
            right = max(padding[d], needed - padding[d] - x.shape[d - 2])
            if padding[d] == 0 and needed <= x.shape[d - 2]:
                continue
            flat = mode.extended(flat, 2 + d, padding[d], right, end)
        result = torch.max_pool2d(flat, kernel, stride, 0, dilation)[..., : size[0], : size[1]]
        result = result.reshape(*x.shape[:-2], *size).clone()
        result = mode.spread("global pooling", x, result, torch.full_like(result, NOTHING))
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def adaptive_pooling_positions(results: int):
    """Pooling to a fixed number of cells is global if the cell size depends on the image."""

    def run(mode, func, args, kwargs):
        x, size = mode.real(args[0]), args[1]
        result = torch.nn.functional.adaptive_max_pool2d(x, size)
        fixed = torch.full_like(result, NOTHING)
        if max(side / cells for side, cells in zip(x.shape[-2:], size, strict=True)) >= max(x.shape[-2:]) / 16 >= 2:
            mode.found.append(GlobalOperation(mode.running[-1][0] if mode.running else "", "global pooling", HOW))
            mode.taken.append(x)
            result = fixed
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def whole_pooling_statistic(kind: str, results: int):
    """Pooling with one window that covers everything."""

    def build(func: Any, given: dict) -> Call | None:
        x, kernel = given["self"], given.get("kernel_size")
        if kernel is not None:
            kernel = list(kernel) * (2 if len(kernel) == 1 else 1)
            padded = any(given.get("padding") or [0])
            if list(x.shape[-2:]) != list(kernel) or padded or given.get("divisor_override"):
                return None
        elif list(given["output_size"]) != [1, 1]:
            return None

        def result(statistic: Statistic) -> Any:
            value = statistic.first.to(x.dtype)
            return value if results == 1 else (value, torch.zeros_like(value, dtype=torch.int64))

        return Call(func._schema.name, kind, ((x, (x.ndim - 2, x.ndim - 1)),), result)

    return build


def max_pooling_stream(node: StreamNode) -> None:
    """Beyond the image's first and last rows there is nothing larger."""
    if node.output == 1:
        raise node.refuse("it returns places of maxima")
    if in_batch(node):
        return
    if _covers_all(node):
        _reduced_stream(node, torch.ops.aten.amax.default)
        return
    source, kernel, (py, px) = image_like(node), pair(node["kernel_size"]), pair(node["padding"])
    (sy, sx), (dy, dx) = pair(node["stride"], kernel), pair(node.get("dilation", 1))
    reach, ceil = dy * (kernel[0] - 1), node["ceil_mode"]
    node.edges = [Edge(source, lambda a: a * sy - py, lambda b: (b - 1) * sy - py + reach + 1, -math.inf)]
    node.make = lambda strip: functional.max_pool2d(strip.slabs[0], kernel, (sy, sx), (0, px), (dy, dx), ceil)


def average_pooling_stream(node: StreamNode) -> None:
    """The operator pads each strip by itself, so that it counts elements at the image's edges as for the whole image:
    strips start a few rows early, and results of padding between strips are cut off."""
    if in_batch(node):
        return
    if _covers_all(node):
        _reduced_stream(node, torch.ops.aten.mean.dim)
        return
    source, kernel, (py, px) = image_like(node), pair(node["kernel_size"]), pair(node["padding"])
    (sy, sx), before = pair(node["stride"], kernel), ceil_div(py, pair(node["stride"], kernel)[0])
    settings = node["ceil_mode"], node["count_include_pad"], node["divisor_override"]
    node.edges = [Edge(source, lambda a: (a - before) * sy, lambda b: (b - 1) * sy - py + kernel[0])]

    def make(strip: Strip) -> torch.Tensor:
        y = functional.avg_pool2d(strip.slabs[0], kernel, (sy, sx), (py, px), *settings)
        return y.narrow(2, strip.start - strip.first // sy, strip.stop - strip.start)

    node.make = make


def _covers_all(node: StreamNode) -> bool:
    return pair(node["kernel_size"]) == sources(node)[0].shape[-2:] and not any(pair(node["padding"]))


def _reduced_stream(node: StreamNode, func: Any) -> None:
    """Pooling with one window that covers everything is a reduction."""
    node.func, node.output = func, None
    settings = {"self": node["self"], "dim": [-2, -1], "keepdim": True, "dtype": None}
    node.arguments = {argument.name: settings[argument.name] for argument in func._schema.arguments}
    whole_stream(node)


def adaptive_pooling_stream(node: StreamNode) -> None:
    """To one cell, a statistic of the whole image; to cells of a whole number of rows, pooling with a stride."""
    source = sources(node)[0]
    if in_batch(node):
        return
    if node.output == 1:
        raise node.refuse("it returns places of maxima")
    if list(node.shape[-2:]) == [1, 1] and source.axis == len(source.shape) - 2:
        whole_stream(node)
        return
    image_like(node)
    each, rest = divmod(source.rows, node.rows)
    if rest:
        raise node.refuse("it pools to cells of unequal height")
    node.edges = [Edge(source, lambda a: a * each, lambda b: b * each)]

    def make(strip: Strip) -> torch.Tensor:
        result = node.func(strip.slabs[0], [strip.stop - strip.start, node.shape[3]])
        return result if node.output is None else result[node.output]

    node.make = make


ONE_AXIS = Refused("it pools a signal, not an image")
IN_PARTS = {"positions": DECOMPOSED, "statistic": DECOMPOSED}

operator(
    "max_pool2d_with_indices",
    stream=max_pooling_stream,
    rows=pooling_rows,
    positions=pooling_positions(results=2),
    statistic=whole_pooling_statistic("most", results=2),
)
operator(
    "max_pool2d",
    rows=pooling_rows,
    positions=pooling_positions(results=1),
    stream=max_pooling_stream,
    without={"statistic": DECOMPOSED},
)
operator(
    "avg_pool2d",
    stream=average_pooling_stream,
    rows=pooling_rows,
    positions=pooling_positions(results=1),
    statistic=whole_pooling_statistic("mean", results=1),
)
operator("avg_pool1d", "max_pool1d", rows=pooling_rows, stream=ONE_AXIS, without=IN_PARTS)
operator(
    "_adaptive_avg_pool2d",
    stream=adaptive_pooling_stream,
    rows=adaptive_pooling_rows,
    positions=adaptive_pooling_positions(results=1),
    statistic=whole_pooling_statistic("mean", results=1),
)
operator("adaptive_avg_pool2d", rows=adaptive_pooling_rows, stream=adaptive_pooling_stream, without=IN_PARTS)
operator(
    "adaptive_max_pool2d",
    stream=adaptive_pooling_stream,
    rows=adaptive_pooling_rows,
    positions=adaptive_pooling_positions(results=2),
    statistic=whole_pooling_statistic("most", results=2),
)
