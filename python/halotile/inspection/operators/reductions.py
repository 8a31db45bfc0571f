# SPDX-License-Identifier: MIT
"""Sums, means, extrema and norms along dimensions, and cumulative sums. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..rowmaps import Value, mixed
from .elementwise import pointwise_rows, pointwise_stream
from .positions import NOTHING
from .rows import POOLING, Operation, dims_of
from .statistic import Call, Statistic
from .streaming import StreamNode, local_stream, sources, whole_stream
from .table import DECOMPOSED, UNWRITTEN, Family, entry

operator = Family("reductions")


def reduction_rows(op: Operation, kind: str) -> Value:
    """Each result depends on all elements along the reduced dimensions."""
    if op.name.endswith(".other"):
        return pointwise_rows(op)
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event(kind))
    kept = [() if dim in dims else made for dim, made in enumerate(value.dims)]
    if len(op.shape) != len(kept):
        kept = [made for dim, made in enumerate(value.dims) if dim not in dims]
    return value.with_dims(kept)


def along_one_rows(op: Operation, kind: str) -> Value:
    """Each element stays in place and depends on all elements along a dimension."""
    value = op.value("self")
    return mixed(value, dims_of(op, value), op.event(kind), keep=True)


def over(mode, seen, dims, keep, kind="global pooling"):
    """Positions of a reduction, and whether it is global."""
    dims = list(range(seen.ndim)) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else list(dims))
    result = seen.amax(dims, keep) if seen.ndim else seen.clone()
    return mode.spread(kind, seen, result, torch.full_like(result, NOTHING))


def reduction_positions(mode, func, args, kwargs):
    """A reduction, along the dimensions `dim` if given."""
    if len(args) > 1 and isinstance(args[1], torch.Tensor):  # max(a, b)
        return mode.pointwise(func, args, kwargs)
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    result = over(mode, mode.real(args[0]), given.get("dim"), given.get("keepdim", False))
    return result if len(func._schema.returns) == 1 else (result, result.clone())


def along_one_positions(kind: str):
    """Softmax and similar: each element stays in place and depends on all elements along a dimension."""

    def run(mode, func, args, kwargs):
        seen = mode.real(args[0])
        result = seen.amax(args[1], keepdim=True).expand(seen.shape).contiguous()
        return mode.spread(kind, seen, result, seen.clone())

    return run


def cumulative_positions(mode, func, args, kwargs):
    """Each element depends on all elements before it."""
    seen = mode.real(args[0])
    result = torch.cummax(seen, args[1])[0]
    return mode.spread("sum along an axis", seen, result, seen.clone())


def dims_taken(x: torch.Tensor | StreamNode, dim: Any) -> tuple[int, ...]:
    rank = len(x.shape)
    if dim is None or dim == []:
        return tuple(range(rank))
    return tuple(sorted(one % rank for one in ([dim] if isinstance(dim, int) else dim)))


def as_returned(value: torch.Tensor, dims: tuple[int, ...], given: dict, like: torch.Tensor) -> torch.Tensor:
    """The result in the operator's shape: without the reduced dimensions, unless keepdim is set."""
    value = value if given.get("keepdim") else value.squeeze(dims)
    dtype = given.get("dtype") or like.dtype
    return value.to(dtype)


def reduction_statistic(
    kind: str, value: Callable[[Statistic, dict], Any], power: Callable[[dict], float] | None = None
):
    """An operator that reduces the dimensions `dim`, by default all."""

    def build(func: Any, given: dict) -> Call | None:
        x = given.get("self")
        if not x.is_floating_point():
            return None
        dims = dims_taken(x, given.get("dim"))
        raised = 2.0 if power is None else power(given)
        if not 0 < raised < math.inf:
            return None

        def result(statistic: Statistic) -> Any:
            values = value(statistic, given)
            if isinstance(values, tuple):
                return tuple(as_returned(one, dims, given, x) for one in values)
            return as_returned(values, dims, given, x)

        return Call(func._schema.name, kind, ((x, dims),), result, raised)

    return build


def taken_off(given: dict) -> float:
    """The correction that a variance subtracts from the count."""
    if "correction" in given:
        return 1 if given["correction"] is None else float(given["correction"])
    return float(given.get("unbiased", True))


def norm_power(given: dict) -> float:
    value = given.get("ord", given.get("p"))
    return 2.0 if value is None else float(value)


def root(statistic: Statistic, given: dict) -> torch.Tensor:
    return (statistic.first * statistic.count) ** (1 / norm_power(given))


mean_statistic = reduction_statistic("mean", lambda s, given: s.first)
sum_statistic = reduction_statistic("mean", lambda s, given: s.first * s.count)
variance_statistic = reduction_statistic("moments", lambda s, given: s.variance(taken_off(given)))
deviation_statistic = reduction_statistic("moments", lambda s, given: s.variance(taken_off(given)).sqrt())
norm_statistic = reduction_statistic("power", root, norm_power)
largest_statistic = reduction_statistic("most", lambda s, given: s.first)
smallest_statistic = reduction_statistic("most", lambda s, given: s.second)
variance_and_mean_statistic = reduction_statistic("moments", lambda s, given: (s.variance(taken_off(given)), s.first))
deviation_and_mean_statistic = reduction_statistic(
    "moments", lambda s, given: (s.variance(taken_off(given)).sqrt(), s.first)
)


def reduction_stream(node: StreamNode) -> None:
    """Over other dimensions, row by row; over rows, a statistic of the whole image."""
    if node.func._overloadname == "other":
        pointwise_stream(node)
        return
    source = sources(node)[0]
    dims = dims_taken(source, node.get("dim"))
    if source.axis in dims:
        if entry(node.name).statistic is None:
            raise node.refuse("it takes all rows together, and cannot be summed up")
        whole_stream(node)
        return
    local_stream(node, source.axis - (0 if node.get("keepdim") else sum(dim < source.axis for dim in dims)))


def along_one_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    if source.axis == node["dim"] % len(source.shape):
        raise node.refuse("each row takes all others")
    local_stream(node, source.axis)


POOLED = partial(reduction_rows, kind=POOLING)
REDUCED = partial(reduction_rows, kind="reduction")
KEPT = "its result is as large as what it takes"


operator("mean", rows=POOLED, positions=reduction_positions, statistic=mean_statistic, stream=reduction_stream)
operator("amax", rows=POOLED, positions=reduction_positions, statistic=largest_statistic, stream=reduction_stream)
operator("amin", rows=POOLED, positions=reduction_positions, statistic=smallest_statistic, stream=reduction_stream)
operator(
    *("max", "min"),
    rows=POOLED,
    positions=reduction_positions,
    stream=reduction_stream,
    without={"statistic": UNWRITTEN},
)
operator("sum", rows=REDUCED, positions=reduction_positions, statistic=sum_statistic, stream=reduction_stream)
operator("var", rows=REDUCED, positions=reduction_positions, statistic=variance_statistic, stream=reduction_stream)
operator("std", rows=REDUCED, positions=reduction_positions, statistic=deviation_statistic, stream=reduction_stream)
operator(
    "var_mean",
    rows=REDUCED,
    positions=reduction_positions,
    statistic=variance_and_mean_statistic,
    stream=reduction_stream,
)
operator(
    "std_mean",
    rows=REDUCED,
    positions=reduction_positions,
    statistic=deviation_and_mean_statistic,
    stream=reduction_stream,
)
operator(
    "linalg_vector_norm",
    "norm",
    rows=REDUCED,
    positions=reduction_positions,
    statistic=norm_statistic,
    stream=reduction_stream,
)
operator(
    "prod",
    "logsumexp",
    "any",
    "all",
    "argmax",
    "argmin",
    "median",
    rows=REDUCED,
    positions=reduction_positions,
    stream=reduction_stream,
    without={"statistic": UNWRITTEN},
)
operator(
    *("nansum", "mode", "count_nonzero"),
    rows=REDUCED,
    stream=reduction_stream,
    without={"positions": UNWRITTEN, "statistic": UNWRITTEN},
)
operator(
    *("_softmax", "_log_softmax", "_safe_softmax"),
    rows=partial(along_one_rows, kind="attention"),
    positions=along_one_positions("attention"),
    stream=along_one_stream,
    without={"statistic": KEPT},
)
operator(
    "softmax",
    rows=partial(along_one_rows, kind="attention"),
    stream=along_one_stream,
    without={"positions": DECOMPOSED, "statistic": KEPT},
)
operator(
    *("cumsum", "cumprod", "logcumsumexp"),
    rows=partial(along_one_rows, kind="reduction"),
    positions=cumulative_positions,
    stream=along_one_stream,
    without={"statistic": KEPT},
)
