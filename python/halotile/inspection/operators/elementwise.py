# SPDX-License-Identifier: MIT
"""Elementwise operators. Imports torch."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..rowmaps import Value, mixed, opaque
from .positions import NOTHING, pointwise_positions
from .rows import POOLING, Operation, broadcast
from .streaming import IN_PLACE, RANDOM, Refused, StreamNode, local_stream, sources
from .table import DECOMPOSED, FUNCTIONAL, OUT_OF_PLACE, POINTWISE, UNWRITTEN, VIEW, Family

operator = Family("elementwise", statistic="it reduces nothing")


def pointwise_rows(op: Operation) -> Value:
    """Each element depends on the corresponding elements of all operands."""
    return with_excitation(op, op.joined(op.tensors()))


def with_excitation(op: Operation, result: Value) -> Value:
    """A product of a tensor with rows and one that is pooled over all rows is squeeze-and-excite."""
    values = [value for value in map(op.known, op.tensors()) if value is not None]
    pooled = [value for value in values if not any(rows.shift for rows in value.maps)]
    if len(values) != 2 or len(pooled) != 1 or ".mul" not in op.name:
        return result
    changed = {event: event._replace(kind="squeeze-and-excite") for event in pooled[0].events if event.kind == POOLING}
    return replace(result, events=frozenset(changed.get(event, event) for event in result.events))


def same_rows(op: Operation) -> Value:
    """The result has the elements of the first operand in place."""
    return op.joined(op.tensors()[:1])


def copy_rows(op: Operation) -> Value:
    return broadcast(op.value("src"), op.shape)


def glu_rows(op: Operation) -> Value:
    """One half of a dimension, usually the channels, times a function of the other half."""
    value = op.value("self")
    dim = op["dim"] % len(value.dims)
    return mixed(value, [dim], op.event("reduction")).with_dim(dim, *opaque(op.shape[dim]))


def multiply_positions(mode, func, args, kwargs):
    """A factor of exactly zero removes the dependency."""
    result = mode.pointwise(func, args, kwargs)
    for factor in args[:2]:
        if isinstance(factor, torch.Tensor) and not mode.carries(factor) and factor.is_floating_point():
            result = torch.where(factor == 0, NOTHING, result)
        elif isinstance(factor, (int, float)) and factor == 0:
            result = torch.full_like(result, NOTHING)
    return result


def masked_fill_positions(mode, func, args, kwargs):
    """Elements that a constant mask replaces by a constant depend on nothing."""
    result = mode.pointwise(func, args[:1] + args[2:], kwargs).expand(
        torch.broadcast_shapes(args[0].shape, args[1].shape)
    )
    if mode.carries(args[1]):
        return torch.maximum(result, mode.real(args[1])).contiguous()
    inner = mode.real(args[2]) if len(args) > 2 else torch.full((), NOTHING)
    return torch.where(args[1], inner, result).contiguous()


def where_positions(mode, func, args, kwargs):
    """where(condition, a, b)."""
    condition, a, b = args
    if mode.carries(condition):
        return mode.pointwise(func, args, kwargs)
    return torch.where(condition, mode.real(a), mode.real(b)).contiguous()


def glu_positions(mode, func, args, kwargs):
    """One half of a dimension, usually the channels, times a function of the other half."""
    dim = args[1] if len(args) > 1 else -1
    first, second = mode.real(args[0]).chunk(2, dim)
    return torch.maximum(first, second)


def copy_positions(mode, func, args, kwargs):
    """In place: the target takes over the dependencies of the source."""
    target, source = args[:2]
    shape = target.shape
    mode.write(target, mode.real(source).expand(shape))
    return target


def fill_positions(mode, func, args, kwargs):
    """In place: the target no longer depends on anything."""
    target = args[0]
    if mode.carries(target):
        target.fill_(NOTHING)
    return target


def cast_positions(mode, func, args, kwargs):
    """Positions stay float32, whatever dtype the model casts to."""
    return args[0].clone()


def pointwise_stream(node: StreamNode) -> None:
    """Rows are written where the next operator reads them, if a variant of the operator writes to a given tensor."""
    local_stream(node, axis_of_result(node))
    name = node.name
    node.out = WRITING.get(name) if node.func._overloadname in ("default", "Tensor") else None
    if name in UNCHANGED:
        node.owns = False


def axis_of_result(node: StreamNode) -> int:
    """The dimension of rows after broadcasting."""
    source = max(sources(node), key=lambda one: (len(one.shape), one.rows))
    return source.axis + len(node.shape) - len(source.shape)


def cast_stream(node: StreamNode) -> None:
    """Strips keep their memory format; only the dtype changes."""
    local_stream(node, sources(node)[0].axis)
    node.make, node.owns = lambda strip: strip.slabs[0].to(node.dtype), False


def glu_stream(node: StreamNode) -> None:
    source = sources(node)[0]
    if node["dim"] % len(source.shape) == source.axis:
        raise node.refuse("it splits the rows")
    local_stream(node, source.axis)


# Variants that really write to a given tensor; others make a new one and copy it.
WRITING = {
    name: getattr(torch.ops.aten, name).out
    for name in (
        *("leaky_relu", "silu", "gelu", "sigmoid", "tanh", "hardtanh", "elu", "add", "sub", "mul", "div"),
        *("abs", "neg", "exp", "sqrt", "rsqrt", "clamp", "maximum", "minimum"),
    )
}
UNCHANGED = ("alias", "detach", "contiguous", "lift_fresh", "_conj")

# Operators that torch tags as pointwise need no entry: all methods treat them as elementwise.
operator("_prelu_kernel", "lerp", rows=pointwise_rows, positions=pointwise_positions, stream=pointwise_stream)
operator("hardswish", rows=pointwise_rows, positions=pointwise_positions, stream=pointwise_stream)
operator(
    *("softplus", "celu", "mish"),
    positions=pointwise_positions,
    stream=pointwise_stream,
    without={"rows": POINTWISE},
)
NOISE = "it writes its noise to an operand; it is unknown"
operator("rrelu_with_noise", stream=Refused(RANDOM), without={"rows": NOISE, "positions": NOISE})
operator("dropout", positions=pointwise_positions, stream=Refused(RANDOM), without={"rows": DECOMPOSED})
operator(
    "rrelu_with_noise_functional",
    rows=pointwise_rows,
    stream=Refused(RANDOM),
    without={"positions": FUNCTIONAL},
)
operator(*("prelu", "real", "imag"), rows=pointwise_rows, stream=pointwise_stream, without={"positions": DECOMPOSED})
operator("complex", rows=pointwise_rows, stream=pointwise_stream, without={"positions": UNWRITTEN})
operator("addcmul", "addcdiv", rows=pointwise_rows, stream=pointwise_stream, without={"positions": POINTWISE})
operator("fill", "zero", rows=pointwise_rows, stream=pointwise_stream, without={"positions": FUNCTIONAL})
operator("mul", rows=pointwise_rows, positions=multiply_positions, stream=pointwise_stream)
operator("masked_fill", rows=pointwise_rows, positions=masked_fill_positions, stream=pointwise_stream)
operator("where", rows=pointwise_rows, positions=where_positions, stream=pointwise_stream)
operator("glu", rows=glu_rows, positions=glu_positions, stream=glu_stream)
operator("_to_copy", rows=same_rows, positions=cast_positions, stream=cast_stream)
operator("clone", rows=same_rows, stream=cast_stream, without={"positions": POINTWISE})
operator("to", rows=same_rows, stream=cast_stream, without={"positions": DECOMPOSED})
operator("lift_fresh_copy", rows=same_rows, stream=cast_stream, without={"positions": FUNCTIONAL})
operator("contiguous", rows=same_rows, positions=pointwise_positions, stream=pointwise_stream)
operator(
    *("alias", "detach", "lift_fresh", "_conj"), rows=same_rows, stream=pointwise_stream, without={"positions": VIEW}
)
operator("copy", rows=copy_rows, stream=pointwise_stream, without={"positions": FUNCTIONAL})
operator("copy_", positions=copy_positions, stream=Refused(IN_PLACE), without={"rows": OUT_OF_PLACE})
operator("fill_", "zero_", positions=fill_positions, stream=Refused(IN_PLACE), without={"rows": OUT_OF_PLACE})
