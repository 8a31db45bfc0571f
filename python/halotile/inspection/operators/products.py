# SPDX-License-Identifier: MIT
"""Matrix products and attention. Imports torch."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import torch

from ..rowmaps import Value, joined, mixed, opaque, spatial
from .positions import CHUNK, NOTHING
from .rows import Operation
from .statistic import Call, Statistic
from .streaming import StreamNode, local_stream, sources, whole_stream
from .table import ON_DEVICES, UNWRITTEN, Family

operator = Family("matrix products and attention")


def product_rows(op: Operation, names: tuple[str, str]) -> Value:
    value = contracted_rows(op, op[names[0]], op[names[1]])
    added = op.arguments.get("self") if "add" in op.name else None
    return value if added is None else plus_rows(op, value, added)


def plus_rows(op: Operation, value: Value, added: torch.Tensor) -> Value:
    known = op.known(added)
    return op.with_constant(value, added) if known is None else joined([value, known])


def contracted_rows(op: Operation, left: torch.Tensor, right: torch.Tensor) -> Value:
    """A matrix product. If both sides have rows, each row of the left one depends on all of the right one."""
    a, b, last = op.known(left), op.known(right), left.dim() - 1
    if a is not None:
        a = mixed(a, [last], op.event("reduction" if b is None else "attention")).with_dim(last)
    if b is not None:
        b = mixed(b, [last - 1], op.event("reduction" if a is None else "attention")).with_dim(last - 1)
    if a is not None and b is not None:
        if spatial(a.dims[last - 1]) and spatial(b.dims[last]):
            b = mixed(b, [last], op.event("attention")).with_dim(last)
        result = joined([a, b])
    else:
        result = a or b
        constant = right if b is None else left
        for one in itertools.product(*([range(min(size, 1)) for size in constant.shape[last - 1 :]])):
            result = op.with_constant(result, constant[(..., *(slice(place, place + 1) for place in one))])
    dims = list(result.dims)
    for index in (last - 1, last):
        dims[index] = dims[index] or opaque(op.shape[index])
    return result.with_dims(dims)


def attention_rows(op: Operation) -> Value:
    query, key, content = (op.value(name) for name in ("query", "key", "value"))
    attention = op.event("attention")
    query = mixed(query, [3], attention).with_dim(3)
    key = mixed(key, [2, 3], attention).with_dim(2).with_dim(3)
    content = mixed(content, [2], attention).with_dim(2)
    if spatial(query.dims[2]) and spatial(content.dims[3]):
        content = mixed(content, [3], attention).with_dim(3)
    result = joined([query, key, content])
    for name in ("attn_mask", "attn_bias"):
        mask = op.arguments.get(name)
        if mask is not None:
            result = plus_rows(op, result, mask.amax(-1, keepdim=True))
    return result.with_dim(3, *(result.dims[3] or opaque(op.shape[3])))


def times_constant(seen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Positions (..., k) times a constant (k, m)."""
    used = weight != 0
    if used.all():
        return seen.amax(-1, keepdim=True).expand(*seen.shape[:-1], weight.shape[1]).contiguous()
    flat = seen.reshape(-1, seen.shape[-1])
    step = max(1, CHUNK // max(1, used.numel()))
    parts = [torch.where(used, part.unsqueeze(-1), NOTHING).amax(1) for part in flat.split(step)]
    return torch.cat(parts).reshape(*seen.shape[:-1], weight.shape[1])


def product(mode, a, b):
    """a (..., n, k) times b (..., k, m)."""
    if not mode.carries(b) and b.ndim == 2:
        result = times_constant(mode.real(a), b)
    elif not mode.carries(a) and a.ndim == 2:
        result = times_constant(mode.real(b).transpose(-1, -2), a.transpose(0, 1)).transpose(-1, -2)
    else:
        rows = mode.real(a).amax(-1, keepdim=True) if mode.carries(a) else torch.full((), NOTHING)
        columns = mode.real(b).amax(-2, keepdim=True) if mode.carries(b) else torch.full((), NOTHING)
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        result = torch.maximum(rows, columns).expand(shape).clone()
    taken = [mode.real(one) for one in (a, b.transpose(-1, -2)) if mode.carries(one)]
    parts = [one.flatten() for one in taken]
    kind = "attention" if len(parts) == 2 and a.shape[-1] <= max(result.shape[-2:]) else "matrix product over space"
    return mode.spread(kind, torch.cat(parts), result, torch.full_like(result, NOTHING), taken)


def product_positions(mode, func, args, kwargs):
    """mm, bmm."""
    return product(mode, args[0], args[1])


def added_product_positions(mode, func, args, kwargs):
    """addmm, baddbmm."""
    bias, a, b = args[:3]
    result = (
        product(mode, a, b) if mode.carries(a) or mode.carries(b) else torch.full((a.shape[-2], b.shape[-1]), NOTHING)
    )
    return torch.maximum(result, mode.real(bias)).contiguous()


def attention_positions(mode, func, args, kwargs):
    """Scaled dot-product attention; a constant mask limits the keys and values of each query."""
    query, key, value = (mode.real(one) if mode.carries(one) else torch.full(one.shape, NOTHING) for one in args[:3])
    mask = kwargs.get("attn_mask")
    source = torch.maximum(key.amax(-1), value.amax(-1)).unsqueeze(-2)
    if mask is not None and not mode.carries(mask):
        source = torch.where(mask if mask.dtype == torch.bool else mask != -math.inf, source, NOTHING)
    seen = torch.maximum(query.amax(-1), source.amax(-1)).unsqueeze(-1)
    result = seen.expand(*query.shape[:-1], value.shape[-1]).contiguous()
    result = mode.spread(
        "attention", torch.cat([query.flatten(), value.flatten()]), result, torch.full_like(result, NOTHING)
    )
    return result, result.amax(-1)


def product_statistic(func: Any, given: dict) -> Call | None:
    """(..., n, k) times (..., k, m), which reduces k."""
    a, b = (given[name] for name in (("self", "mat2") if "mat2" in given else ("batch1", "batch2")))
    dims = ((a.ndim - 1,), (b.ndim - 2,))

    def result(statistic: Statistic) -> torch.Tensor:
        return (statistic.first * statistic.count).to(a.dtype)

    return Call(func._schema.name, "product", ((a, dims[0]), (b, dims[1])), result)


def product_stream(node: StreamNode) -> None:
    """Rows are those of the left factor, columns of the right one, or matrices of a batch; a sum over all rows is a
    statistic of the whole image."""
    left, right = next((node[a], node[b]) for a, b in FACTORS if a in node.arguments and b in node.arguments)
    a, b = (getattr(one, "axis", None) for one in (left, right))
    rank = len(node.shape)
    if (a, b) == (rank - 1, rank - 2) and "add" not in node.name:
        whole_stream(node)
        return
    in_batch = max(rank - 2, 0)
    fits = (
        a is not None and b is not None and a == b < in_batch,
        a is not None and b is None and a <= rank - 2,
        a is None and b is not None and (b < in_batch or b == rank - 1),
    )
    if not any(fits):
        raise node.refuse("each row takes all others, as in attention over the image")
    axis = b if a is None else a
    is_sum = "add" in node.name
    local_stream(node, axis, along=lambda name: rank - axis if axis < in_batch or (is_sum and name == "self") else 0)


FACTORS = (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"), ("self", "other"))


def attention_stream(node: StreamNode) -> None:
    """Each window of a batch by itself."""
    axes = {one.axis for one in sources(node)}
    if node.output not in (None, 0) or len(axes) > 1 or max(axes) > 1:
        raise node.refuse("each row takes all others, as in attention over the image")
    local_stream(node, max(axes))


operator(
    "mm",
    "bmm",
    stream=product_stream,
    rows=partial(product_rows, names=("self", "mat2")),
    positions=product_positions,
    statistic=product_statistic,
)
operator(
    "addmm",
    rows=partial(product_rows, names=("mat1", "mat2")),
    positions=added_product_positions,
    stream=product_stream,
    without={"statistic": UNWRITTEN},
)
operator(
    "baddbmm",
    rows=partial(product_rows, names=("batch1", "batch2")),
    positions=added_product_positions,
    stream=product_stream,
    without={"statistic": UNWRITTEN},
)
ATTENTION = "_scaled_dot_product_flash_attention"
WEIGHTED = "each element of the image weighs others by their values"
operator(
    f"{ATTENTION}_for_cpu",
    rows=attention_rows,
    positions=attention_positions,
    stream=attention_stream,
    without={"statistic": WEIGHTED},
)
operator(
    *(ATTENTION, "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    rows=attention_rows,
    stream=attention_stream,
    without={"positions": ON_DEVICES, "statistic": WEIGHTED},
)
