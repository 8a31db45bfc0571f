# SPDX-License-Identifier: MIT
"""Interpolation. Imports torch."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import torch

from ..rowmaps import Value, dim_size, moved, opaque, spatial
from .positions import moved_positions
from .rows import Aligned, Operation
from .streaming import Edge, Refused, StreamNode, Strip, ceil_div, image_like, in_batch
from .table import UNWRITTEN, Family

operator = Family("resizing", statistic="it reduces nothing")


def _nearest(place: Fraction) -> list[int]:
    return [math.floor(place)]


def _around(center: Fraction, reach: int) -> list[int]:
    """The `reach` pixels on each side of a position; a single pixel if the position is at its centre."""
    place = center - Fraction(1, 2)
    low = math.floor(place)
    return [low] if place == low else list(range(low - reach + 1, low + reach + 1))


def _support(center: Fraction, reach: Fraction) -> list[int]:
    half = Fraction(1, 2)
    return list(range(math.floor(center - reach + half), max(math.floor(center + reach + half), 1 - 10**9)))


def resampling_rows(op: Operation, kind: str) -> Value:
    """Each result depends on the pixels that its kind of interpolation uses around its position."""
    value = op.value("self" if "self" in op.arguments else "input")
    if op.arguments.get("align_corners"):
        raise Aligned
    count = 1 if "1d" in op.name else 2
    given = op.arguments.get("scale_factors") or [
        op.arguments.get(name) for name in (["scales_h", "scales_w"] if count == 2 else ["scales"])
    ]
    for place in range(count):
        index = len(value.dims) - count + place
        ratio = Fraction(dim_size(value.dims[index]), op.shape[index])
        if given[place]:
            ratio = 1 / Fraction(given[place]).limit_denominator(1000)
        value = resized_axis(value, index, op.shape[index], ratio, kind)
    return value


def resized_axis(value: Value, index: int, size: int, ratio: Fraction, kind: str) -> Value:
    """Args: ratio: input rows per result row."""
    if not spatial(value.dims[index]):
        return value.with_dim(index, *opaque(size))
    wide = max(ratio, Fraction(1))
    half = Fraction(1, 2)
    sources = {
        "nearest": lambda row: _nearest(row * ratio),
        "exact": lambda row: _nearest((row + half) * ratio),
        "linear": lambda row: _around((row + half) * ratio, 1),
        "cubic": lambda row: _around((row + half) * ratio, 2),
        "linear_aa": lambda row: _support((row + half) * ratio, wide),
        "cubic_aa": lambda row: _support((row + half) * ratio, 2 * wide),
    }[kind]
    return moved(value, index, size, ratio.denominator, ratio.numerator, sources)


def resampling_positions(mode, func, args, kwargs):
    """Interpolation, axis by axis: running the operator on unit vectors shows which pixels each result uses."""
    x = mode.real(args[0])
    size, *rest = args[1:]
    for d, end in enumerate(mode.ends(x.shape[-2:])):
        length, out = x.shape[d - 2], size[d]
        copies = 3 if end == "wrap" and length < 64 else 1
        if copies == 3:
            x = torch.cat([x] * 3, d - 2)
        inner = torch.eye(length * copies)[None].unsqueeze(2 if d == 1 else 3)
        target = [1, out * copies] if d == 1 else [out * copies, 1]
        options = [rest[0], *(one if i == d else None for i, one in enumerate(rest[1:3]))]
        weights = func(inner, target, *options, **kwargs).reshape(length * copies, out * copies).T
        used = weights != 0
        most = int(used.sum(1).max())
        order = torch.where(used, torch.arange(length * copies), length * copies).sort(1)[0][:, :most]
        order = torch.where(order < length * copies, order, order[:, :1])
        taken_from = x.index_select(d - 2, order.flatten()).unflatten(d - 2, order.shape)
        x = taken_from.amax(d - 2)
        if copies == 3:
            x = x.narrow(d - 2, out, out)
    return x.contiguous()


REACH = {"nearest": 0, "exact": 0, "linear": 1, "cubic": 2, "linear_aa": 1, "cubic_aa": 2}


def resampling_stream(node: StreamNode, kind: str) -> None:
    """Strips start where rows of source and result fall together, a few rows early for what lies around a position:

    ratio 2/3:   source  | 0   1 | 2   3 |      result rows 3 k start at source rows 2 k
                 result  | 0 1 2 | 3 4 5 |
    """
    if in_batch(node):
        return
    source = image_like(node)
    if node.get("align_corners"):
        _aligned_stream(node, source)
        return
    given = (node.get("scale_factors") or [node.get("scales_h"), node.get("scales_w")])[:2]
    ratio = 1 / Fraction(given[0]).limit_denominator(1000) if given[0] else Fraction(source.rows, node.rows)
    step_in, step_out = ratio.numerator, ratio.denominator
    wide = max(ratio, Fraction(1)) if kind.endswith("_aa") else Fraction(1)
    blocks = ceil_div(math.ceil(REACH[kind] * wide) + 1, step_in) if REACH[kind] else 0
    node.unit = step_out
    node.edges = [
        Edge(
            source,
            lambda a: (a // step_out - blocks) * step_in,
            lambda b: (ceil_div(b, step_out) + blocks) * step_in,
        )
    ]
    arguments = [] if REACH[kind] == 0 else [False]

    def make(strip: Strip) -> torch.Tensor:
        slab, first = strip.slabs[0], strip.first // step_in * step_out
        count = max(strip.stop - first, slab.shape[2] * step_out // step_in)
        scales = float(1 / ratio), given[1]
        y = node.func(slab, [count, node.shape[3]], *arguments, *scales)
        return y.narrow(2, strip.start - first, strip.stop - strip.start)

    if "vec" in node.func._overloadname:
        node.func = getattr(torch.ops.aten, node.name).default
    node.make = make


def _aligned_stream(node: StreamNode, source: StreamNode) -> None:
    """align_corners: the first and last rows of source and result fall together. Rows lie between two of the source,
    columns are left to the operator."""
    if node.name != "upsample_bilinear2d":
        raise node.refuse("it aligns corners")
    # A single row is the first one; a single row of the source moves along with those of the result.
    ratio = Fraction(source.rows - 1, node.rows - 1) if min(source.rows, node.rows) > 1 else Fraction(1)
    last = source.rows - 1

    def low(a: int) -> int:
        row = math.floor(a * ratio)
        return min(row, last) if a < node.rows else row

    node.edges = [Edge(source, low, lambda b: math.floor((b - 1) * ratio) + 2)]

    def make(strip: Strip) -> torch.Tensor:
        slab, width = strip.slabs[0], node.shape[3]
        wide = torch.ops.aten.upsample_bilinear2d.default(slab, [slab.shape[2], width], True)
        places = [row * ratio for row in range(strip.start, strip.stop)]
        rows = [min(math.floor(place), last) - strip.first for place in places]
        part = [float(place - math.floor(place)) for place in places]
        above = torch.cat([wide.narrow(2, row, 1) for row in rows], 2)
        below = torch.cat([wide.narrow(2, min(row + 1, slab.shape[2] - 1), 1) for row in rows], 2)
        exact = torch.promote_types(wide.dtype, torch.float32)
        weights = torch.tensor(part, dtype=exact).to(wide.dtype).to(wide.device).reshape(1, 1, -1, 1)
        return above * (1 - weights) + below * weights

    node.make = make


ONE_AXIS = Refused("it resizes a signal, not an image")

operator(
    "upsample_nearest2d",
    rows=partial(resampling_rows, kind="nearest"),
    positions=moved_positions,
    stream=partial(resampling_stream, kind="nearest"),
)
operator(
    "upsample_nearest1d", rows=partial(resampling_rows, kind="nearest"), positions=moved_positions, stream=ONE_AXIS
)
operator(
    "upsample_nearest3d",
    positions=moved_positions,
    stream=Refused("it resizes a volume"),
    without={"rows": UNWRITTEN},
)
operator(
    "_upsample_nearest_exact2d",
    rows=partial(resampling_rows, kind="exact"),
    positions=moved_positions,
    stream=partial(resampling_stream, kind="exact"),
)
for name, kind in (("_upsample_nearest_exact1d", "exact"), ("upsample_linear1d", "linear")):
    operator(name, rows=partial(resampling_rows, kind=kind), stream=ONE_AXIS, without={"positions": UNWRITTEN})
for name, kind in (
    ("upsample_bilinear2d", "linear"),
    ("upsample_bicubic2d", "cubic"),
    ("_upsample_bilinear2d_aa", "linear_aa"),
    ("_upsample_bicubic2d_aa", "cubic_aa"),
):
    operator(
        name,
        rows=partial(resampling_rows, kind=kind),
        positions=resampling_positions,
        stream=partial(resampling_stream, kind=kind),
    )
