# SPDX-License-Identifier: MIT
"""Operators run on positions: what of all that goes in lies farthest. One table, `TABLE`; see positions.py.

Rules take the mode, the operator and its arguments. Imports torch."""

from __future__ import annotations

from collections.abc import Callable

from .operators.convolutions import convolution_positions
from .operators.elementwise import (
    cast_positions,
    copy_positions,
    fill_positions,
    glu_positions,
    masked_fill_positions,
    multiply_positions,
    where_positions,
)
from .operators.fourier import fourier_positions
from .operators.movements import index_positions
from .operators.normalisation import batch_norm_positions, group_norm_positions, layer_norm_positions
from .operators.padding import padding_positions
from .operators.pooling import adaptive_pooling_positions, pooling_positions
from .operators.positions import CHUNK, EDGE, HOW, NOTHING, NotInTable
from .operators.products import added_product_positions, attention_positions, product_positions
from .operators.reductions import along_one_positions, cumulative_positions, reduction_positions
from .operators.resampling import resampling_positions
from .operators.reshaping import view_as_complex_positions, view_as_real_positions

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
