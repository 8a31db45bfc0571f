# SPDX-License-Identifier: MIT
"""What operators over many elements do to dependencies: reductions, norms, transforms, products, attention.

Imports torch."""

from __future__ import annotations

import itertools

import torch

from .operators import POOLING, Operation, dims_of, pointwise_rows, rule
from .rowmaps import Value, joined, mixed, opaque, spatial


@rule("mean", "amax", "amin", "max", "min", kind=POOLING)
@rule("sum", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm", "norm", kind="reduction")
@rule("any", "all", "argmax", "argmin", "nansum", "median", "mode", "count_nonzero", kind="reduction")
def reduction_rows(op: Operation, kind: str) -> Value:
    if op.name.endswith(".other"):
        return pointwise_rows(op)
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event(kind))
    kept = [() if dim in dims else made for dim, made in enumerate(value.dims)]
    if len(op.shape) != len(kept):
        kept = [made for dim, made in enumerate(value.dims) if dim not in dims]
    return value.with_dims(kept)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", kind="attention")
@rule("cumsum", "cumprod", "logcumsumexp", kind="reduction")
def along_one_rows(op: Operation, kind: str) -> Value:
    value = op.value("self")
    return mixed(value, dims_of(op, value), op.event(kind), keep=True)


@rule("native_layer_norm", "_fused_rms_norm")
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


@rule("native_group_norm")
def group_norm_rows(op: Operation) -> Value:
    value = op.value("input")
    return mixed(value, range(1, len(value.dims)), op.event("group norm"), keep=True)


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("_batch_norm_no_update", "miopen_batch_norm")
def batch_norm_rows(op: Operation) -> Value:
    value = op.value("input")
    if not op.arguments.get("training"):
        return value
    return mixed(value, [0, *range(2, len(value.dims))], op.event("instance norm"), keep=True)


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier_rows(op: Operation) -> Value:
    value = op.value("self")
    dims = dims_of(op, value)
    value = mixed(value, dims, op.event("fft"))
    for dim in dims:
        value = value.with_dim(dim, *opaque(op.shape[dim]))
    return value


@rule("mm", "bmm", names=("self", "mat2"))
@rule("addmm", names=("mat1", "mat2"))
@rule("baddbmm", names=("batch1", "batch2"))
def product_rows(op: Operation, names: tuple[str, str]) -> Value:
    value = contracted_rows(op, op[names[0]], op[names[1]])
    added = op.arguments.get("self") if "add" in op.name else None
    return value if added is None else plus_rows(op, value, added)


def plus_rows(op: Operation, value: Value, added: torch.Tensor) -> Value:
    known = op.known(added)
    return op.with_constant(value, added) if known is None else joined([value, known])


def contracted_rows(op: Operation, left: torch.Tensor, right: torch.Tensor) -> Value:
    """A matrix product. Where both sides have rows, each of the left's comes to depend on all of the right's."""
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


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
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
