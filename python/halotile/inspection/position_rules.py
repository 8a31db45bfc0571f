# SPDX-License-Identifier: MIT
"""Operators run on positions: what of all that goes in lies farthest. One table, `TABLE`; see positions.py.

Rules take the mode, the operator and its arguments. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.utils._pytree import tree_iter

from .info import GlobalOperation

__all__ = [
    "CHUNK",
    "EDGE",
    "HOW",
    "MAKING",
    "MOVING",
    "NOTHING",
    "POINTWISE",
    "READING",
    "TABLE",
    "TO_REAL",
    "WRITING",
    "NotInTable",
]

NOTHING = -math.inf  # depends on no input pixel
EDGE = 1e9  # depends on what lies beyond the window's end
HOW = "propagation"
CHUNK = 1 << 24  # elements of a temporary


class NotInTable(Exception):
    """The operator is in the table, but not for such arguments."""


# ---- convolutions and matrix products --------------------------------------------------------------------------------


def convolution_positions(mode, func, args, kwargs):
    seen, weight, _, stride, padding, dilation, transposed, extra, groups = args[:9]
    dims = weight.ndim - 2
    if mode.carries(weight) or seen.ndim != weight.ndim:
        raise NotInTable
    stride, padding, dilation, extra = (
        list(v) * (dims if len(v) == 1 else 1) for v in (stride, padding, dilation, extra)
    )
    taps = weight.detach() != 0
    dense = bool(taps.all())
    if dense:  # the farthest of all channels of a group goes to all its outputs
        seen = seen.unflatten(1, (groups, -1)).amax(2)
    if transposed:
        inputs, outputs, *kernel = taps.shape
        taps = taps.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flip(*range(3, 3 + dims))
        taps = taps.reshape(groups * outputs, inputs // groups, *kernel)
    kernel, ends = taps.shape[2:], mode.ends(seen.shape[2:])
    for d in range(dims):
        reach, size = dilation[d] * (kernel[d] - 1), seen.shape[2 + d]
        if transposed:
            out = (size - 1) * stride[d] - 2 * padding[d] + reach + extra[d] + 1
            seen = _spaced(seen, 2 + d, stride[d])
            left = reach - padding[d]
            seen = mode.extended(seen, 2 + d, left, out + reach - left - seen.shape[2 + d], ends[d])
        else:
            seen = mode.extended(seen, 2 + d, padding[d], padding[d], ends[d])
    stride = [1] * dims if transposed else stride
    if dense:
        pool = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[dims - 1]
        result = pool(seen, list(kernel), stride, 0, dilation).unsqueeze(2)
        return result.expand(-1, -1, len(taps) // groups, *result.shape[3:]).flatten(1, 2).contiguous()
    return farthest_of_taps(seen, taps, stride, dilation, groups)


def _spaced(seen: torch.Tensor, dim: int, stride: int) -> torch.Tensor:
    """With `stride` - 1 elements that depend on nothing behind each."""
    if stride == 1:
        return seen
    shape = [*seen.shape[: dim + 1], stride, *seen.shape[dim + 1 :]]
    spaced = torch.full(shape, NOTHING)
    spaced.select(dim + 1, 0).copy_(seen)
    return spaced.flatten(dim, dim + 1)


def farthest_of_taps(seen: torch.Tensor, taps: torch.Tensor, stride, dilation, groups: int) -> torch.Tensor:
    """The farthest of what the taps (outputs, inputs of a group, *kernel) take, some of which are zero."""
    outputs, inputs, *kernel = taps.shape
    grouped = seen.unflatten(1, (groups, inputs))
    size = [
        (side - reach * (count - 1) - 1) // step + 1
        for side, count, step, reach in zip(seen.shape[2:], kernel, stride, dilation, strict=True)
    ]
    patterns, which = torch.cat([taps.flatten(1).long(), _groups_of(outputs, groups)], 1).unique(
        dim=0, return_inverse=True
    )
    result = torch.full((len(seen), len(patterns), *size), NOTHING)
    for i, pattern in enumerate(patterns):
        group, used = grouped[:, int(pattern[-1])], pattern[:-1].reshape(inputs, *kernel).bool()
        for tap in used.any(0).nonzero().tolist():
            inner = group[:, used[(slice(None), *tap)]].amax(1)
            for d, at in enumerate(tap):
                inner = inner.index_select(1 + d, torch.arange(size[d]) * stride[d] + at * dilation[d])
            torch.maximum(result[:, i], inner, out=result[:, i])
    return result.index_select(1, which)


def _groups_of(outputs: int, groups: int) -> torch.Tensor:
    """The group that each output belongs to, as a column."""
    return (torch.arange(outputs) // (outputs // groups)).unsqueeze(1)


def times_constant(seen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Positions (..., k) in a product with a constant (k, m)."""
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
    return product(mode, args[0], args[1])


def added_product_positions(mode, func, args, kwargs):
    bias, a, b = args[:3]
    result = (
        product(mode, a, b) if mode.carries(a) or mode.carries(b) else torch.full((a.shape[-2], b.shape[-1]), NOTHING)
    )
    return torch.maximum(result, mode.real(bias)).contiguous()


def attention_positions(mode, func, args, kwargs):
    """Scaled dot products: queries with the keys and values that a constant mask leaves them."""
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


# ---- reductions, norms, Fourier transforms ---------------------------------------------------------------------------


def over(mode, seen, dims, keep, kind="global pooling"):
    dims = list(range(seen.ndim)) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else list(dims))
    result = seen.amax(dims, keep) if seen.ndim else seen.clone()
    return mode.spread(kind, seen, result, torch.full_like(result, NOTHING))


def reduction_positions(mode, func, args, kwargs):
    """Several elements become one; with `dim`, along those dimensions."""
    if len(args) > 1 and isinstance(args[1], torch.Tensor):  # max(a, b)
        return mode.pointwise(func, args, kwargs)
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    result = over(mode, mode.real(args[0]), given.get("dim"), given.get("keepdim", False))
    return result if len(func._schema.returns) == 1 else (result, result.clone())


def along_one_positions(kind: str):
    """Softmax and the like: each element takes in all along a dimension, and stays where it is."""

    def run(mode, func, args, kwargs):
        seen = mode.real(args[0])
        result = seen.amax(args[1], keepdim=True).expand(seen.shape).contiguous()
        return mode.spread(kind, seen, result, seen.clone())

    return run


def cumulative_positions(mode, func, args, kwargs):
    seen = mode.real(args[0])
    result = torch.cummax(seen, args[1])[0]
    return mode.spread("sum along an axis", seen, result, seen.clone())


def group_norm_positions(mode, func, args, kwargs):
    x, n, groups = mode.real(args[0]), args[3], args[6]
    flat = x.reshape(n * groups, -1)
    seen = flat.amax(1, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(flat.shape).reshape(x.shape).contiguous(), x.clone())
    return result, seen.reshape(n, groups).clone(), seen.reshape(n, groups).clone()


def layer_norm_positions(mode, func, args, kwargs):
    x, dims = mode.real(args[0]), list(range(-len(args[1]), 0))
    seen = x.amax(dims, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
    return result, seen.clone(), seen.clone()


def batch_norm_positions(training: int | None):
    """Argument `training` says whether the batch's own statistics are used; None: never."""

    def run(mode, func, args, kwargs):
        x = mode.real(args[0])
        taught = x.new_zeros(0)
        if training is None or not args[training]:
            return x.clone(), taught, taught.clone()
        seen = x.amax([0, *range(2, x.ndim)], keepdim=True)
        result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
        return result, seen.flatten(), seen.flatten().clone()

    return run


def fourier_positions(mode, func, args, kwargs):
    x, dims = mode.real(args[0]), args[1]
    blank = func(torch.zeros(x.shape, dtype=args[0].dtype), *args[1:], **kwargs)
    seen = x.amax(dims, keepdim=True)
    result = seen.expand(blank.shape).contiguous()
    result = mode.spread("Fourier transform", x, result, torch.full_like(result, NOTHING))
    return torch.complex(result, torch.zeros_like(result)) if blank.is_complex() else result


# ---- pooling, resampling, padding ------------------------------------------------------------------------------------


def pooling_positions(results: int):
    def run(mode, func, args, kwargs):
        names = [one.name for one in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        x, kernel = mode.real(args[0]), given["kernel_size"]
        flat = x if x.ndim == 4 else x.unsqueeze(0)
        blank = func(torch.zeros(1, 1, *x.shape[-2:]), *args[1:], **kwargs)
        size = (blank[0] if results > 1 else blank).shape[-2:]
        kernel, stride, padding, dilation = (
            list(v) * (2 if len(v) == 1 else 1)
            for v in (kernel, given.get("stride") or kernel, given.get("padding") or [0], given.get("dilation") or [1])
        )
        for d, end in enumerate(mode.ends(x.shape[-2:])):
            needed = (size[d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1
            right = max(padding[d], needed - padding[d] - x.shape[d - 2])
            if padding[d] == 0 and needed <= x.shape[d - 2]:
                continue
            flat = mode.extended(flat, 2 + d, padding[d], right, end)
        result = torch.max_pool2d(flat, kernel, stride, 0, dilation)[..., : size[0], : size[1]]
        result = result.reshape(*x.shape[:-2], *size).clone()
        result = mode.spread("global pooling", x, result, torch.full_like(result, NOTHING))
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def adaptive_pooling_positions(results: int):
    """Into a fixed number of cells: those of a size that the image decides look at all of it."""

    def run(mode, func, args, kwargs):
        x, size = mode.real(args[0]), args[1]
        result = torch.nn.functional.adaptive_max_pool2d(x, size)
        fixed = torch.full_like(result, NOTHING)
        if max(side / cells for side, cells in zip(x.shape[-2:], size, strict=True)) >= max(x.shape[-2:]) / 16 >= 2:
            mode.found.append(GlobalOperation(mode.running[-1][0] if mode.running else "", "global pooling", HOW))
            mode.taken.append(x)
            result = fixed
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def resampling_positions(mode, func, args, kwargs):
    """Interpolation, axis by axis: the operator itself, on unit vectors, shows which pixels go into which."""
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


def padding_positions(mode, func, args, kwargs):
    """What is put beyond the end, mirrored or repeated or a constant, lies there."""
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


# ---- others ----------------------------------------------------------------------------------------------------------


def multiply_positions(mode, func, args, kwargs):
    """A factor that is exactly zero leaves no dependency."""
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
    dim = args[1] if len(args) > 1 else -1
    first, second = mode.real(args[0]).chunk(2, dim)
    return torch.maximum(first, second)


def index_positions(mode, func, args, kwargs):
    """Reads or writes by indices, which must be constant."""
    indices = [leaf for leaf in tree_iter(args[1:]) if isinstance(leaf, torch.Tensor) and not leaf.is_floating_point()]
    if not indices or any(
        mode.carries(leaf) for leaf in tree_iter(args[1:2] if func._schema.name == "aten::index" else ())
    ):
        raise NotInTable
    return mode.moved(func, args, kwargs)


def copy_positions(mode, target, source, non_blocking=False):
    shape = target.shape
    mode.write(target, mode.real(source).expand(shape))
    return target


def fill_positions(mode, target, *_, **__):
    if mode.carries(target):
        target.fill_(NOTHING)
    return target


def cast_positions(mode, func, args, kwargs):
    return args[0].clone()


def view_as_real_positions(mode, func, args, kwargs):
    seen = mode.real(args[0])
    return torch.stack([seen, seen], -1)


def view_as_complex_positions(mode, func, args, kwargs):
    seen = mode.real(args[0]).amax(-1)
    return torch.complex(seen, torch.zeros_like(seen))


MAKING = {
    "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like", "ones_like",
    "full_like", "rand_like", "randn_like", "bernoulli",
}  # fmt: skip
TO_REAL = {"abs", "angle", "view_as_real", "_fft_c2r", "linalg_vector_norm", "norm"}
READING = {"_local_scalar_dense", "equal", "is_nonzero"}
WRITING = {"copy_": copy_positions, "fill_": fill_positions, "zero_": fill_positions}
POINTWISE = {
    "_prelu_kernel", "hardswish", "softplus", "rrelu_with_noise", "celu", "mish", "lerp", "dropout", "contiguous",
}  # fmt: skip
MOVING = {
    "cat", "stack", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "roll", "flip",
    "repeat", "im2col", "slice_scatter", "select_scatter", "upsample_nearest2d", "_upsample_nearest_exact2d",
    "upsample_nearest1d", "upsample_nearest3d", "_unsafe_view", "unfold_copy", "tril", "triu", "rot90",
    "repeat_interleave", "view_copy", "permute_copy", "as_strided", "_reshape_copy"
}  # fmt: skip
TABLE: dict[str, Callable] = {
    **dict.fromkeys(("convolution", "_convolution"), convolution_positions), **dict.fromkeys(("mm", "bmm"),
    product_positions), **dict.fromkeys(("addmm", "baddbmm"), added_product_positions),
    "_scaled_dot_product_flash_attention_for_cpu": attention_positions, **dict.fromkeys( ("mean", "sum", "amax",
    "amin", "var", "std", "prod", "any", "all", "logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin",
    "max", "min", "var_mean", "std_mean", "median"), reduction_positions), **dict.fromkeys(("_softmax",
    "_log_softmax"), along_one_positions("attention")), "cumsum": cumulative_positions, "native_group_norm":
    group_norm_positions, "native_layer_norm": layer_norm_positions, **dict.fromkeys(("native_batch_norm",
    "_native_batch_norm_legit", "cudnn_batch_norm"), batch_norm_positions(5)),
    "_native_batch_norm_legit_no_training": batch_norm_positions(None), **dict.fromkeys(("_fft_r2c", "_fft_c2c",
    "_fft_c2r"), fourier_positions), "max_pool2d_with_indices": pooling_positions(2), **dict.fromkeys(("max_pool2d",
    "avg_pool2d"), pooling_positions(1)), "_adaptive_avg_pool2d": adaptive_pooling_positions(1),
    "adaptive_max_pool2d": adaptive_pooling_positions(2), **dict.fromkeys( ("upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), resampling_positions),
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d", "constant_pad_nd"), padding_positions), "mul":
    multiply_positions, "masked_fill": masked_fill_positions, "where": where_positions, "glu": glu_positions,
    **dict.fromkeys(("index", "index_select", "gather", "index_put", "scatter"), index_positions), "_to_copy":
    cast_positions, "view_as_real": view_as_real_positions, "view_as_complex": view_as_complex_positions,
}  # fmt: skip
