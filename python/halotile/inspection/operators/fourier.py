# SPDX-License-Identifier: MIT
"""Fourier transforms. Imports torch."""

from __future__ import annotations

import torch

from ..rowmaps import Value, mixed, opaque
from .positions import NOTHING
from .rows import Operation, dims_of
from .streaming import Refused
from .table import Family

operator = Family("Fourier transforms", statistic="frequencies cannot be held fixed")


def fourier_rows(op: Operation) -> Value:
    """Each frequency depends on all elements along the dimensions."""
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event("fft"))
    for dim in dims:
        value = value.with_dim(dim, *opaque(op.shape[dim]))
    return value


def fourier_positions(mode, func, args, kwargs):
    """Each frequency depends on all elements along the dimensions."""
    x, dims = mode.real(args[0]), args[1]
    blank = func(torch.zeros(x.shape, dtype=args[0].dtype), *args[1:], **kwargs)
    seen = x.amax(dims, keepdim=True)
    result = seen.expand(blank.shape).contiguous()
    result = mode.spread("Fourier transform", x, result, torch.full_like(result, NOTHING))
    return torch.complex(result, torch.zeros_like(result)) if blank.is_complex() else result


operator(
    *("_fft_r2c", "_fft_c2c", "_fft_c2r"),
    rows=fourier_rows,
    positions=fourier_positions,
    stream=Refused("every frequency takes all rows"),
)
