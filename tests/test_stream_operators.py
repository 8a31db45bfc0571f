# SPDX-License-Identifier: MIT
"""Operators on strips of rows: each with all its settings, beside the operator on the whole image."""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile.inspection.operators.streaming import NotStreamable  # noqa: E402
from halotile.inspection.recorder import record  # noqa: E402

from .streaming import Calls, assert_streams, image_of, in_steps  # noqa: E402


def check(call, *inner, size=(37, 12), channels=4, around=True):
    """In steps of several heights, and from the middle on; behind a convolution, so that rows come late."""
    torch.manual_seed(0)
    module = Calls(call, *[one() for one in inner])
    if around:
        module = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), module)
    module, image = module.double().eval(), image_of(size, channels)
    graph, want = assert_streams(module, image, (1, 8))
    rows = want.shape[2]
    for begin, end in ((0, None), (rows // 2, rows - rows // 4)):
        first, got = in_steps(graph, image, (2, 7, 1), begin, end)
        assert first <= begin and first + got.shape[2] >= (rows if end is None else end)
        torch.testing.assert_close(got, want[:, :, first : first + got.shape[2]], rtol=1e-12, atol=1e-12)


def some(*settings, count=12):
    """A few of all combinations, the same ones every time."""
    every = list(itertools.product(*settings))
    return random.Random(0).sample(every, min(count, len(every)))


def refusal(call, *inner, size=(36, 12), channels=4):
    module = Calls(call, *[one() for one in inner]).double().eval()
    with pytest.raises(NotStreamable) as caught:
        record(module, (channels, *size), torch.float64)
    return str(caught.value)


# ---- convolutions ----------------------------------------------------------------------------------------------------

KERNELS = [1, 2, 3, 5, (4, 1), (1, 3), (7, 3)]


def rows_of(setting):
    return setting if isinstance(setting, int) else setting[0]


@pytest.mark.parametrize("kernel", KERNELS)
def test_convolutions(kernel):
    for stride, padding, dilation, groups in some((1, 2, (3, 1)), (0, 1, (2, 0), (5, 1)), (1, 2, (3, 1)), (1, 4)):
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        make = partial(nn.Conv2d, 4, 4, kernel, bias=groups == 1, **settings)
        check(lambda x, conv: conv(x), make, size=(29, 15))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("padding", ["same", 1, (3, 2), (6, 0)])
def test_padding_modes_of_convolutions(mode, padding):
    for kernel in ((3, 3), (6, 2), (1, 4)):
        make = partial(nn.Conv2d, 4, 3, kernel, padding=padding, padding_mode=mode)
        check(lambda x, conv: conv(x), make)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (5, 2), (1, 3), (7, 3)])
def test_transposed_convolutions(kernel):
    found = 0
    for stride, padding, more, dilation, groups in some(
        (1, 2, 3, (4, 1)), (0, 1, (2, 0)), (0, 1, (2, 0)), (1, 2, (3, 1)), (1, 2), count=40
    ):
        settings = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation}
        make = partial(nn.ConvTranspose2d, 4, 4, kernel, groups=groups, **settings)
        try:
            with torch.inference_mode():
                make()(torch.zeros(1, 4, 13, 9))
        except RuntimeError:  # more output padding than stride, or nothing left
            continue
        found += 1
        check(lambda x, conv: conv(x), make, size=(13, 9))
        if found == 12:
            return
    assert found > 5


def test_convolutions_whose_weights_are_made_of_the_image_are_refused():
    assert "convolution in the model cannot run on rows" in refusal(lambda x: F.conv2d(x, x[:, :, :3, :3]))


# ---- pooling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [2, 3, (4, 2), (5, 1)])
@pytest.mark.parametrize("ceil", [False, True])
def test_pooling(kernel, ceil):
    for stride, padding, dilation in some((None, 1, 2, 3, (5, 2)), (0, 1, (2, 0)), (1, 2, (3, 1))):
        if rows_of(padding) <= rows_of(kernel) // 2 and (padding != 1 or kernel != (5, 1)):
            check(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=ceil))
    for stride, padding, (counted, divisor) in some(
        (None, 1, 2, 3, (5, 2)), (0, 1, (2, 0)), ((True, None), (False, None), (True, 3))
    ):
        if rows_of(padding) <= rows_of(kernel) // 2 and (padding != 1 or kernel != (5, 1)):
            check(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted, divisor))


@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d])
def test_pooling_to_cells(pool):
    check(lambda x: pool(x, (9, 4)), size=(36, 12))
    check(lambda x: pool(x, (9, 5)), size=(36, 12))
    check(lambda x: x + pool(x, 1), size=(36, 12))
    assert "cells of unequal height" in refusal(lambda x: pool(x, (7, 4)))


def test_pooling_over_everything():
    check(lambda x: x + F.avg_pool2d(x, x.shape[2:]))
    check(lambda x: x + F.max_pool2d(x, x.shape[2:]))
    assert "places of maxima" in refusal(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2))


# ---- resizing --------------------------------------------------------------------------------------------------------

MODES = ["nearest", "nearest-exact", "bilinear", "bicubic", "bilinear, antialiased", "bicubic, antialiased"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("up", "down"), [(2, 1), (3, 1), (1, 2), (3, 2), (2, 3), (1, 1), (1, 4), (5, 4)])
def test_resizing(mode, up, down):
    name, _, smooth = mode.partition(", ")
    options = {"mode": name} | ({"antialias": True} if smooth else {})
    check(lambda x: F.interpolate(x, scale_factor=up / down, **options), size=(36, 12))
    check(lambda x: F.interpolate(x, scale_factor=(up / down, 1.25), **options), size=(36, 12))
    check(lambda x: F.interpolate(x, (36 * up // down, 12 * up // down), **options), size=(36, 12))
    check(lambda x: F.interpolate(x, scale_factor=up / down, recompute_scale_factor=True, **options), size=(36, 12))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_resizing_of_heights_that_do_not_divide(mode, up, down):
    name, _, smooth = mode.partition(", ")
    options = {"mode": name} | ({"antialias": True} if smooth else {})
    for height in (1, 2, 35, 37):
        if height * up // down:
            check(lambda x: F.interpolate(x, scale_factor=up / down, **options), size=(height, 11))


@pytest.mark.parametrize("size", [(72, 24), (18, 6), (50, 17), (37, 12), (41, 12), (1, 1), (71, 23), (5, 40)])
@pytest.mark.parametrize("mode", MODES)
def test_resizing_to_a_size(mode, size):
    name, _, smooth = mode.partition(", ")
    options = {"mode": name} | ({"antialias": True} if smooth else {})
    check(lambda x: F.interpolate(x, size, **options))


@pytest.mark.parametrize("size", [(72, 24), (73, 23), (18, 6), (37, 30), (50, 12), (1, 5), (2, 5)])
def test_resizing_with_aligned_corners(size):
    check(lambda x: F.interpolate(x, size, mode="bilinear", align_corners=True))
    check(lambda x: F.interpolate(x, size, mode="bilinear", align_corners=True), size=(1, 12))
    text = refusal(lambda x: F.interpolate(x, size, mode="bicubic", align_corners=True))
    assert "upsample_bicubic2d" in text and "aligns corners" in text


# ---- movements -------------------------------------------------------------------------------------------------------

PADS = [(1, 2, 3, 4), (0, 0, 12, 0), (0, 0, 0, 12), (3, 1, 0, 0), (0, 0, 1, 1), (0, 0, 36, 36)]


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "constant"])
def test_padding(mode, pads):
    value = {"value": 0.5} if mode == "constant" else {}
    check(lambda x: F.pad(x, pads, mode, **value))
    check(lambda x, conv: conv(F.pad(x, pads, mode, **value)), lambda: nn.Conv2d(4, 4, 3))


def test_padding_that_cuts_off():
    check(lambda x: F.pad(x, (-1, -2, -3, -4)))
    check(lambda x: F.pad(x, (1, -2, 5, -4)))
    check(lambda x: F.pad(F.pad(x, (0, 0, 9, 9), "replicate"), (0, 0, -9, -9)))
    check(lambda x: F.pad(x, (0, 0, 40, 50), "replicate"))
    check(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)))
    assert "copy_ in the model cannot run on rows: it writes to a tensor in place" in refusal(
        lambda x: F.pad(x, (0, 0, 2, 2), "circular")
    )


SLICES = {
    "from the top": lambda x: x[:, :, 3:],
    "to the bottom": lambda x: x[:, :, :-5],
    "every second": lambda x: x[:, :, ::2],
    "every third": lambda x: x[:, :, 1:-2:3],
    "negative": lambda x: x[:, :, -20:-3],
    "columns": lambda x: x[:, :, :, 2:-1:2],
    "channels": lambda x: x[:, 1:3],
    "a channel": lambda x: x[:, 1][:, None],
    "a channel kept": lambda x: x[:, -1:],
    "phases": lambda x: torch.cat([x[:, :, i:36:2, j::2] for i in (0, 1) for j in (0, 1)], 1),
    "chunks": lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "split": lambda x: torch.cat([one * (i + 1) for i, one in enumerate(x.split(3, 1))], 1),
    "split with sizes": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "split columns": lambda x: torch.cat(x.split(4, 3)[::-1], 3),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "stack and flatten": lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2),
    "stack behind": lambda x: torch.stack([x, 2 * x], -1).sum(-1),
    "select columns": lambda x: x[..., 5][..., None] + x,
    "flip columns": lambda x: x.flip(3),
    "flip channels": lambda x: x.flip(1),
    "chosen channels": lambda x: x[:, [2, 0, 0]],
    "chosen columns": lambda x: x[..., torch.tensor([3, 1, 5])],
    "index select": lambda x: x.index_select(1, torch.tensor([1, 3])),
    "pieces of rows": lambda x: torch.cat([x[:, :, :11], 2 * x[:, :, 11:12], x[:, :, 12:]], 2),
    "pieces of rows apart": lambda x: torch.cat([x, x * 2, x[:, :, 4:9]], 2),
    "permuted": lambda x: x.permute(0, 2, 3, 1).mul(2).permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(1, 2).exp().transpose(2, 1),
    "expanded": lambda x: x[:, :1].expand(-1, 5, -1, -1) * 2,
    "expanded columns": lambda x: x.mean(3, keepdim=True).expand(-1, -1, -1, 7),
    "repeated": lambda x: x.repeat(1, 2, 1, 3),
    "unsqueezed": lambda x: (x[:, None] * x[:, :, None]).flatten(1, 2),
    "squeezed": lambda x: x.unsqueeze(0).squeeze(0),
    "roll of columns": lambda x: x.roll(3, 3),
    "roll of channels": lambda x: x.roll((1, -2), (1, 3)),
    "rolls that undo each other": lambda x: (x.roll(-3, 2) * 2).roll(3, 2),
    "rolls of both": lambda x: (x.roll((-3, -2), (2, 3)) * 2).roll((3, 2), (2, 3)),
}


@pytest.mark.parametrize("name", SLICES)
def test_movements(name):
    check(SLICES[name])
    check(SLICES[name], around=False)
    check(SLICES[name], size=(48, 12))


REFUSED = {
    "_fft_r2c": lambda x: torch.fft.irfft2(torch.fft.rfft2(x)),
    "flip": lambda x: x.flip(2),
    "select": lambda x: x[:, :, 3][:, :, None] + x,
    "split": lambda x: torch.cat(x.split(18, 2)[::-1], 2),
    "roll": lambda x: x.roll(3, 2),
    "roll in": lambda x: x.roll(-3, 2),
    "roll in module": lambda x: (x.roll(-3, 2) * 2).roll(2, 2),
    "native_layer_norm": lambda x: F.layer_norm(x, (4, 36, 36)),
    "cumsum": lambda x: x.cumsum(2),
    "_softmax": lambda x: x.softmax(2),
    "sort": lambda x: x.sort(2).values,
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "median": lambda x: x - x.median(2, keepdim=True).values,
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "transpose": lambda x: x.transpose(2, 3),
    "grid_sampler_2d": lambda x: F.grid_sample(x, torch.zeros(1, 5, 5, 2, dtype=x.dtype)),
    "rand_like": lambda x: x + torch.rand_like(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_and_place(name):
    module = nn.Sequential(nn.Identity(), Calls(REFUSED[name])).double()
    with pytest.raises(NotStreamable) as caught:
        record(module, (4, 36, 36), torch.float64)
    assert name in str(caught.value) and "'1'" in str(caught.value), str(caught.value)


# ---- norms and products ----------------------------------------------------------------------------------------------


def over_channels(layer):
    return lambda x, *inner: layer(x.permute(0, 2, 3, 1), *inner).permute(0, 3, 1, 2)


def in_windows(x, window, call):
    n, c, height, width = x.shape
    w = window
    y = x.reshape(n, c, height // w, w, width // w, w).permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, c)
    y = call(y)
    return y.reshape(n, height // w, width // w, w, w, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, height, width)


def attended(x):
    def heads(y):
        return y.reshape(len(y), y.shape[1], 2, -1).transpose(1, 2)

    return in_windows(
        x, 4, lambda y: F.scaled_dot_product_attention(heads(y), heads(2 * y), heads(y)).transpose(1, 2).flatten(2)
    )


def gram(x):
    y = x.flatten(2)
    return x + (F.normalize(y, dim=-1) @ F.normalize(y, dim=-1).transpose(1, 2) @ y).reshape(x.shape)


def ramp(x):
    rows = torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None].expand(-1, x.shape[3])
    columns = torch.arange(x.shape[3]).to(x.dtype).expand(x.shape[2], -1)
    return torch.cat([x, rows[None, None], columns[None, None]], 1)


def sigma_map(x):
    return torch.cat([x, torch.full((1, 1, *x.shape[2:]), 0.2, dtype=x.dtype)], 1)


NORMS = {
    "layer norm of channels": (over_channels(lambda y, norm: norm(y)), lambda: nn.LayerNorm(4)),
    "layer norm of rows": (lambda x, norm: norm(x), lambda: nn.LayerNorm(12)),
    "rms norm": (over_channels(lambda y, norm: norm(y)), lambda: nn.RMSNorm(4)),
    "batch norm": (lambda x, norm: norm(x), lambda: nn.BatchNorm2d(4)),
    "instance norm": (lambda x, norm: norm(x), lambda: nn.InstanceNorm2d(4, affine=True)),
    "group norm": (lambda x, norm: norm(x), lambda: nn.GroupNorm(2, 4)),
    "standardised": (lambda x: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True),),
    "linear": (over_channels(lambda y, layer: layer(y)), lambda: nn.Linear(4, 6)),
    "linear on columns": (lambda x, layer: layer(x), lambda: nn.Linear(12, 5)),
    "bilinear of channels": (lambda x: torch.einsum("nchw,nchw->nhw", x, 2 * x)[:, None],),
    "einsum": (lambda x, layer: torch.einsum("nchw,dc->ndhw", x, layer.weight), lambda: nn.Linear(4, 6)),
    "matmul": (lambda x, layer: (layer.weight @ x.flatten(2)).reshape(1, 6, *x.shape[2:]), lambda: nn.Linear(4, 6)),
    "matmul of columns": (lambda x: x @ torch.eye(12, 5, dtype=x.dtype),),
    "windows": (lambda x: in_windows(x, 4, lambda y: (y @ y.transpose(1, 2)).softmax(-1) @ y),),
    "attention": (attended,),
    "windows shifted": (
        lambda x: in_windows(x.roll((-2, -2), (2, 3)), 4, lambda y: y.softmax(-1)).roll((2, 2), (2, 3)),
    ),
    "squeeze and excite": (
        lambda x, mix: x * torch.sigmoid(mix(F.adaptive_avg_pool2d(x, 1))),
        lambda: nn.Conv2d(4, 4, 1),
    ),
    "gram matrix": (gram,),
    "softmax of channels": (lambda x: x.softmax(1),),
    "softmax of columns": (lambda x: x.softmax(3),),
    "glu": (lambda x: F.glu(x, 1),),
    "prelu": (lambda x, layer: layer(x), lambda: nn.PReLU(4)),
    "normalised channels": (lambda x: F.normalize(x, dim=1),),
    "extremes": (lambda x: x.amax((2, 3), keepdim=True) - x + x.amin((2, 3), keepdim=True),),
    "sigma map": (lambda x, conv: conv(sigma_map(x)), lambda: nn.Conv2d(5, 3, 3, padding=1)),
    "ramps": (lambda x, conv: conv(ramp(x)), lambda: nn.Conv2d(6, 3, 3, padding=1)),
    "mean of rows": (lambda x: x - x.mean(3, keepdim=True),),
    "where": (lambda x: torch.where(x > 0, x, x * 0.1) + x.clamp(-0.5, 0.5) + torch.lerp(x, 2 * x, 0.3),),
    "masked": (lambda x: x.masked_fill(x < 0, 3.0),),
    "shuffled": (lambda x, conv: F.pixel_shuffle(conv(x), 3), lambda: nn.Conv2d(4, 18, 1)),
    "unshuffled": (lambda x, conv: F.pixel_shuffle(conv(F.pixel_unshuffle(x, 4)), 4), lambda: nn.Conv2d(64, 64, 1)),
    "shuffled channels": (lambda x: F.channel_shuffle(x, 2),),
    "patches": (lambda x: F.unfold(x, 3, padding=1).reshape(1, 36, *x.shape[2:]).mean(1, keepdim=True),),
    "norm of everything": (lambda x: x / torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),),
    "sums of rows and all": (lambda x: x.sum(3, keepdim=True) / x.sum((1, 2, 3), keepdim=True).abs(),),
    "cast": (lambda x: x.float().double() + x.half().double() * 0,),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_products_and_others(name):
    call, *inner = NORMS[name]
    check(call, *inner, size=(36, 12))
