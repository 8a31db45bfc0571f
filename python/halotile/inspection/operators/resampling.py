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
from .table import operator


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


operator(
    "upsample_nearest2d", "upsample_nearest1d", rows=partial(resampling_rows, kind="nearest"), positions=moved_positions
)
operator("upsample_nearest3d", positions=moved_positions)
operator("_upsample_nearest_exact2d", rows=partial(resampling_rows, kind="exact"), positions=moved_positions)
operator("_upsample_nearest_exact1d", rows=partial(resampling_rows, kind="exact"))
operator("upsample_bilinear2d", rows=partial(resampling_rows, kind="linear"), positions=resampling_positions)
operator("upsample_linear1d", rows=partial(resampling_rows, kind="linear"))
operator("upsample_bicubic2d", rows=partial(resampling_rows, kind="cubic"), positions=resampling_positions)
operator("_upsample_bilinear2d_aa", rows=partial(resampling_rows, kind="linear_aa"), positions=resampling_positions)
operator("_upsample_bicubic2d_aa", rows=partial(resampling_rows, kind="cubic_aa"), positions=resampling_positions)
