# SPDX-License-Identifier: MIT
"""Views, permutations and repetition. Imports torch."""

from __future__ import annotations

import torch

from ..rowmaps import Unknown, Value, dim_size, opaque, spatial
from .positions import moved_positions
from .rows import Operation, broadcast, regrouped
from .table import operator


def view_rows(op: Operation) -> Value:
    return regrouped(op.value("self"), op.shape)


def pairs_rows(op: Operation) -> Value:
    value = op.value("self")
    if "view_as_real" in op.name:
        return value.with_dims((*value.dims, opaque(2)))
    if spatial(value.dims[-1]):
        raise Unknown("rows taken for real and imaginary parts")
    return value.with_dims(value.dims[:-1])


def permute_rows(op: Operation) -> Value:
    value = op.value("self")
    return value.with_dims(value.dims[dim] for dim in op["dims"])


def transpose_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = list(value.dims)
    first, second = op.arguments.get("dim0", 0), op.arguments.get("dim1", -1)
    if len(dims) > 1:
        dims[first], dims[second] = dims[second], dims[first]
    return value.with_dims(dims)


def repeat_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = ((),) * (len(op.shape) - len(value.dims)) + value.dims
    if any(spatial(dim) and dim_size(dim) != size for dim, size in zip(dims, op.shape, strict=True)):
        raise Unknown("an image repeated side by side")
    return broadcast(value.with_dims(dims), op.shape)


def expand_rows(op: Operation) -> Value:
    return broadcast(op.value("self"), op.shape)


def view_as_real_positions(mode, func, args, kwargs):
    """The real and imaginary parts have the same dependencies."""
    seen = mode.real(args[0])
    return torch.stack([seen, seen], -1)


def view_as_complex_positions(mode, func, args, kwargs):
    """A complex number has the dependencies of both its parts."""
    seen = mode.real(args[0]).amax(-1)
    return torch.complex(seen, torch.zeros_like(seen))


# For all other operators that torch tags as views, positions use `moved_positions`.
operator("view", "reshape", "_reshape_alias", "flatten", "unflatten", "unsqueeze", "squeeze", rows=view_rows)
operator("_unsafe_view", rows=view_rows, positions=moved_positions)
operator("view_copy", "_reshape_copy", positions=moved_positions)
operator("view_as_real", rows=pairs_rows, positions=view_as_real_positions)
operator("view_as_complex", rows=pairs_rows, positions=view_as_complex_positions)
operator("permute", rows=permute_rows)
operator("permute_copy", rows=permute_rows, positions=moved_positions)
operator("transpose", "t", "swapaxes", "numpy_T", "mT", rows=transpose_rows)
operator("repeat", rows=repeat_rows, positions=moved_positions)
operator("expand", rows=expand_rows)
