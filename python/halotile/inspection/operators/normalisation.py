# SPDX-License-Identifier: MIT
"""Layer, group, instance and batch norms. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..rowmaps import Value, joined, mixed
from .rows import Operation
from .statistic import Call, Statistic
from .streaming import StreamNode, local_stream, sources, with_statistic
from .table import DECOMPOSED, ON_DEVICES, UNWRITTEN, Family

operator = Family("normalisation")


def layer_norm_rows(op: Operation) -> Value:
    value = op.value("input")
    count = len(op["normalized_shape"])
    dims = range(len(value.dims) - count, len(value.dims))
    return with_weights(op, mixed(value, dims, op.event("reduction"), keep=True), "weight", "bias")


def with_weights(op: Operation, value: Value, *names: str) -> Value:
    for name in names:
        if op.arguments.get(name) is not None:
            value = joined([value, op.known(op[name])]) if op.known(op[name]) else op.with_constant(value, op[name])
    return value


def group_norm_rows(op: Operation) -> Value:
    value = op.value("input")
    return mixed(value, range(1, len(value.dims)), op.event("group norm"), keep=True)


def batch_norm_rows(op: Operation) -> Value:
    value = op.value("input")
    if not op.arguments.get("training"):
        return value
    return mixed(value, [0, *range(2, len(value.dims))], op.event("instance norm"), keep=True)


def group_norm_positions(mode, func, args, kwargs):
    """Each element depends on its group of channels in the whole image."""
    x, n, groups = mode.real(args[0]), args[3], args[6]
    flat = x.reshape(n * groups, -1)
    seen = flat.amax(1, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(flat.shape).reshape(x.shape).contiguous(), x.clone())
    return result, seen.reshape(n, groups).clone(), seen.reshape(n, groups).clone()


def layer_norm_positions(mode, func, args, kwargs):
    """Each element depends on all elements along the last dimensions."""
    x, dims = mode.real(args[0]), list(range(-len(args[1]), 0))
    seen = x.amax(dims, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
    return result, seen.clone(), seen.clone()


def batch_norm_positions(training: int | None):
    """`training`: index of the argument that selects the batch's own statistics; None: they are never used."""

    def run(mode, func, args, kwargs):
        x = mode.real(args[0])
        taught = x.new_zeros(0)
        if training is None or not args[training]:
            return x.clone(), taught, taught.clone()
        seen = x.amax([0, *range(2, x.ndim)], keepdim=True)
        result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
        return result, seen.flatten(), seen.flatten().clone()

    return run


def group_norm_statistic(func: Any, given: dict) -> Call:
    x, groups = given["input"], given["group"]
    grouped = x.unflatten(1, (groups, -1))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        y = ((grouped - statistic.first) * rest).reshape(x.shape)
        y = affine(y, given["weight"], given["bias"], (-1, *[1] * (x.ndim - 2)))
        return y.to(x.dtype), statistic.first.flatten(1), rest.flatten(1)

    return Call(func._schema.name, "moments", ((grouped, tuple(range(2, grouped.ndim))),), result)


def batch_norm_statistic(func: Any, given: dict) -> Call | None:
    """A batch norm by statistics of the images; an instance norm is one of a single image with more channels."""
    uses_own = given.get("training", given.get("train", False))
    if not uses_own:
        return None
    x = given["input"]
    dims = (0, *range(2, x.ndim))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = affine((x - statistic.first) * rest, given["weight"], given["bias"], shape)
        return y.to(x.dtype), statistic.first.flatten(), rest.flatten()

    return Call(func._schema.name, "moments", ((x, dims),), result)


def layer_norm_statistic(func: Any, given: dict) -> Call:
    x, dims = given["input"], tuple(range(given["input"].ndim - len(given["normalized_shape"]), given["input"].ndim))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        y = affine((x - statistic.first) * rest, given["weight"], given["bias"], given["normalized_shape"])
        return y.to(x.dtype), statistic.first, rest

    return Call(func._schema.name, "moments", ((x, dims),), result)


def affine(
    y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, shape: Sequence[int]
) -> torch.Tensor:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def layer_norm_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    if source.axis >= len(source.shape) - len(node["normalized_shape"]):
        raise node.refuse("it normalises over rows with a weight for every place")
    local_stream(node, source.axis, along=lambda _: 0)


def group_norm_stream(node: StreamNode) -> None:
    with_statistic(node, group_norm_statistic)


def batch_norm_stream(node: StreamNode) -> None:
    if node.get("training", node.get("train", False)):
        with_statistic(node, batch_norm_statistic)
    else:
        local_stream(node, sources(node)[0].axis, along=lambda _: 0)


TRAINED = "its statistics come from training"
operator(
    "native_layer_norm",
    rows=layer_norm_rows,
    positions=layer_norm_positions,
    statistic=layer_norm_statistic,
    stream=layer_norm_stream,
)
operator(
    "_fused_rms_norm",
    rows=layer_norm_rows,
    stream=layer_norm_stream,
    without={"positions": DECOMPOSED, "statistic": DECOMPOSED},
)
operator(
    "native_group_norm",
    rows=group_norm_rows,
    positions=group_norm_positions,
    statistic=group_norm_statistic,
    stream=group_norm_stream,
)
operator(
    *("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"),
    rows=batch_norm_rows,
    positions=batch_norm_positions(training=5),
    statistic=batch_norm_statistic,
    stream=batch_norm_stream,
)
operator(
    "_native_batch_norm_legit_no_training",
    rows=batch_norm_rows,
    positions=batch_norm_positions(training=None),
    stream=batch_norm_stream,
    without={"statistic": TRAINED},
)
operator(
    "_batch_norm_no_update",
    rows=batch_norm_rows,
    stream=batch_norm_stream,
    without={"positions": UNWRITTEN, "statistic": TRAINED},
)
operator(
    "miopen_batch_norm",
    rows=batch_norm_rows,
    stream=batch_norm_stream,
    without={"positions": ON_DEVICES, "statistic": TRAINED},
)
