# SPDX-License-Identifier: MIT
"""Constant, reflection and replication padding. Imports torch."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from ..rowmaps import Value, moved, opaque, spatial
from .rows import Operation
from .streaming import Edge, Refused, StreamNode, Strip, image_like, in_batch, local_stream, parted, sources
from .table import UNWRITTEN, Family

operator = Family("padding", statistic="it reduces nothing")

BEYOND_EDGE = "beyond its edge"  # ends what is noted of an image that is mirrored or repeated there


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
                value = value.with_events(op.event(f"the image is {kind} {BEYOND_EDGE}", "edge"))
    return value


def padding_positions(mode, func, args, kwargs):
    """All padding counts as lying beyond the end, whether constant, reflected or replicated."""
    seen, pads = mode.real(args[0]), list(args[1])
    wide = [seen.ndim - 1 - i for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    last = seen.ndim >= 4 and (seen.ndim - 1 in wide or seen.ndim - 3 not in wide)
    spatial = [seen.ndim - 2, seen.ndim - 1] if last or seen.ndim == 3 else [seen.ndim - 3, seen.ndim - 2]
    ends = dict(zip(spatial, mode.ends([seen.shape[d] for d in spatial]), strict=True)) if seen.ndim >= 3 else {}
    for i in range(len(pads) // 2):
        dim = seen.ndim - 1 - i
        if pads[2 * i] or pads[2 * i + 1]:
            seen = mode.extended(seen, dim, pads[2 * i], pads[2 * i + 1], ends.get(dim, "none"))
    return seen.clone()


def constant_pad_stream(node: StreamNode) -> None:
    """Rows beyond the image's first and last are the constant; other dimensions are padded in every strip."""
    source, pads, value = sources(node)[0], list(node["pad"]), float(node["value"])
    place = 2 * (len(source.shape) - 1 - source.axis)
    top, bottom = (*pads[place : place + 2], 0, 0)[:2]
    if not top and not bottom:
        local_stream(node, source.axis)
        return
    if source.outer != 1:
        raise node.refuse("it pads several images")
    source = parted(node, source)
    node.axis, node.rows, node.owns = source.axis, source.rows + top + bottom, True
    pads[place : place + 2] = 0, 0
    node.edges = [Edge(source, lambda a: a - top, lambda b: b - top, value)]
    node.make = lambda strip: functional.pad(strip.slabs[0], pads, value=value) if any(pads) else strip.slabs[0]


def edge_pad_stream(node: StreamNode, mode: str) -> None:
    """Rows beyond the image's first and last are mirrored, or the first and last repeated."""
    if in_batch(node):
        return
    left, right, top, bottom = node["padding"]
    source = image_like(node)
    rows = source.rows
    inner = 1 if mode == "reflect" else 0  # the nearest row to an edge that is taken for the other side of it
    first, last = (top + inner, rows - bottom - inner) if mode == "reflect" else (1, rows - 1)

    def row_of(row: int) -> int:
        row -= top
        if mode == "replicate":
            return min(max(row, 0), rows - 1)
        return -row if row < 0 else 2 * (rows - 1) - row if row >= rows else row

    def low(a: int) -> int:
        return min(a - top, last) if a < node.rows else a - top

    def high(b: int) -> int:
        return max(b - top, first) if 0 < b <= 2 * top + 1 else b - top

    def make(strip: Strip) -> torch.Tensor:
        slab, start, stop = strip.slabs[0], strip.start, strip.stop
        if start < top or stop > top + rows:
            pieces = [slab.narrow(2, row_of(row) - strip.first, 1) for row in range(start, stop)]
            slab = torch.cat(pieces, 2)
        else:
            slab = slab.narrow(2, start - top - strip.first, stop - start)
        return functional.pad(slab, (left, right, 0, 0), mode) if left or right else slab

    node.edges, node.make, node.owns = [Edge(source, low, high)], make, False


ONE_ROW = Refused("it pads a signal, not an image")

operator(
    "constant_pad_nd", rows=partial(padding_rows, kind=""), positions=padding_positions, stream=constant_pad_stream
)
operator(
    "reflection_pad2d",
    rows=partial(padding_rows, kind="mirrored"),
    positions=padding_positions,
    stream=partial(edge_pad_stream, mode="reflect"),
)
operator(
    "replication_pad2d",
    rows=partial(padding_rows, kind="repeated"),
    positions=padding_positions,
    stream=partial(edge_pad_stream, mode="replicate"),
)
for name, kind in (("reflection_pad1d", "mirrored"), ("replication_pad1d", "repeated")):
    operator(name, rows=partial(padding_rows, kind=kind), stream=ONE_ROW, without={"positions": UNWRITTEN})
