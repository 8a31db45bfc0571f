# SPDX-License-Identifier: MIT
"""Constant, reflection and replication padding. Imports torch."""

from __future__ import annotations

from functools import partial

from ..rowmaps import Value, moved, opaque, spatial
from .rows import Operation
from .table import operator


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


operator("constant_pad_nd", rows=partial(padding_rows, kind=""), positions=padding_positions)
operator("reflection_pad2d", rows=partial(padding_rows, kind="mirrored"), positions=padding_positions)
operator("replication_pad2d", rows=partial(padding_rows, kind="repeated"), positions=padding_positions)
operator("reflection_pad1d", rows=partial(padding_rows, kind="mirrored"))
operator("replication_pad1d", rows=partial(padding_rows, kind="repeated"))
