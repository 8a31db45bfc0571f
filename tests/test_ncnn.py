# SPDX-License-Identifier: MIT
"""ncnn's files: every kind of layer against torch, what is refused, and damaged files."""

import copy
import itertools
import pickle
import resource
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile.models.ncnn import load_ncnn  # noqa: E402
from halotile.models.ncnn.modules import aligned  # noqa: E402

F32, RAW_F32, F16, INT8 = 0, 0x0002C056, 0x01306B47, 0x000D4B38
IMAGE = torch.rand(2, 4, 9, 10, generator=torch.Generator().manual_seed(0)) - 0.4


def values(*shape, seed=0):
    """Numbers that float16 holds exactly."""
    return (np.random.default_rng(seed).normal(size=shape)).astype("<f2").astype("<f4")


def tagged(array, tag=F32):
    raw = array.astype("<f2" if tag == F16 else "<f4").tobytes()
    return np.uint32(tag).tobytes() + raw + bytes(-len(raw) % 4)


def raw(*arrays):
    return b"".join(array.astype("<f4").tobytes() for array in arrays)


def param(*lines):
    return "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n"


def load(*lines, data=b""):
    """A model of the layers after its input, whose blob is x."""
    return load_ncnn(param("Input in 0 1 x 0=9 1=9 2=4", *lines), data)


def equal(model, want, image=IMAGE):
    torch.testing.assert_close(model(image), want)


# ---- layers without weights ------------------------------------------------------------------------------------------


def shuffled(x, by=2):
    """(row, column, output channel) -> channels"""
    n, c, _, _ = x.shape
    return F.pixel_shuffle(x.view(n, by * by, c // by**2, 9, 10).transpose(1, 2).reshape(x.shape), by)


PLAIN = {
    "Sigmoid": torch.sigmoid,
    "TanH": torch.tanh,
    "Swish": F.silu,
    "Mish": F.mish,
    "GELU": F.gelu,
    "GELU 0=1": lambda x: F.gelu(x, approximate="tanh"),
    "HardSwish": lambda x: x * (0.2 * x + 0.5).clamp(0, 1),
    "HardSwish 0=0.1666667 1=0.5": F.hardswish,
    "HardSigmoid 0=0.1666667 1=0.5": F.hardsigmoid,
    "ReLU": F.relu,
    "ReLU 0=2.000000e-01": lambda x: F.leaky_relu(x, 0.2),
    "Clip 0=-0.1 1=0.2": lambda x: x.clamp(-0.1, 0.2),
    "Clip 1=0.2": lambda x: x.clamp(max=0.2),
    "Clip": lambda x: x,
    "Dropout": lambda x: x,
    "Dropout 0=0.5": lambda x: x / 2,
    "Noop": lambda x: x,
    "AbsVal": torch.abs,
    "UnaryOp": torch.abs,
    "UnaryOp 0=1": torch.neg,
    "UnaryOp 0=4": torch.square,
    "UnaryOp 0=7": torch.exp,
    "UnaryOp 0=15": torch.reciprocal,
    "UnaryOp 0=19": torch.trunc,
    "BinaryOp 0=0 1=1 2=0.5": lambda x: x + 0.5,
    "BinaryOp 0=1 1=1 2=0.5": lambda x: x - 0.5,
    "BinaryOp 0=2 1=1 2=0.5": lambda x: x * 0.5,
    "BinaryOp 0=3 1=1 2=0.5": lambda x: x / 0.5,
    "BinaryOp 0=4 1=1 2=0.5": lambda x: x.clamp(min=0.5),
    "BinaryOp 0=5 1=1 2=0.5": lambda x: x.clamp(max=0.5),
    "BinaryOp 0=6 1=1 2=2.0": torch.square,
    "BinaryOp 0=7 1=1 2=0.5": lambda x: 0.5 - x,
    "BinaryOp 0=8 1=1 2=0.5": lambda x: 0.5 / x,
    "BinaryOp 0=9 1=1 2=2.0": torch.exp2,
    "Crop 0=1 1=2 2=1 3=5 4=4 5=2": lambda x: x[:, 1:3, 2:6, 1:6],
    "Crop 0=1 3=-233 4=-233 5=-233 6=2 7=3": lambda x: x[:, :, :-3, 1:-2],
    "Crop -23309=2,1,2 -23310=2,-1,-3 -23311=2,-2,-1": lambda x: x[:, :, 1:-1, 2:-3],
    "Crop -23309=2,-3,0 -23310=2,0,4 -23311=2,0,2": lambda x: x[:, -3:, :, :4],
    "Crop -23309=2,-233,2 -23310=2,3,-233 -23311=2,1,2": lambda x: x[:, :, :3, 2:],
    "Crop -23309=3,1,0,0 -23310=3,2,999,5": lambda x: x[:, 1:2, :, :5],
    "Padding 0=1 1=2 2=3 3=4 5=0.5": lambda x: F.pad(x, (3, 4, 1, 2), value=0.5),
    "Padding 0=1 1=2 2=3 3=4 4=1": lambda x: F.pad(x, (3, 4, 1, 2), mode="replicate"),
    "Padding 0=1 1=2 2=3 3=4 4=2": lambda x: F.pad(x, (3, 4, 1, 2), mode="reflect"),
    "Interp 0=1 1=2.0 2=3.0": lambda x: F.interpolate(x, scale_factor=(2, 3)),
    "Interp 0=2 1=2.0 2=2.0": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "Interp 0=2 1=0.5 2=0.5": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "Interp 0=2 3=7 4=20 6=1": lambda x: F.interpolate(x, (7, 20), mode="bilinear", align_corners=True),
    "Interp 0=3 1=1.5 2=1.5": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "PixelShuffle 0=2": lambda x: F.pixel_shuffle(x, 2),
    "PixelShuffle 0=2 1=1": shuffled,
    "Pooling 1=2 2=2": lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    "Pooling 1=2 2=2 5=1": lambda x: F.max_pool2d(x, 2),
    "Pooling 0=1 1=3 2=2 3=1 5=1": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "Pooling 0=1 1=3 2=2 3=1 5=1 6=1": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "Pooling 0=1 1=3 2=1 3=1 11=1 13=0": lambda x: F.avg_pool2d(x, (1, 3), 1, (0, 1), count_include_pad=False),
    "Pooling 4=1": lambda x: x.amax((2, 3)),
    "Pooling 0=1 4=1": lambda x: x.mean((2, 3)),
    "Pooling 0=1 7=1 8=1": lambda x: x.mean((2, 3), keepdim=True),
    "Pooling 7=1 8=2 18=3": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "Reshape 0=1 1=1 2=-1": lambda x: x.reshape(2, 360, 1, 1),
    "Reshape 0=0 1=-1": lambda x: x.reshape(2, 36, 10),
    "Reshape 0=-1": lambda x: x.reshape(2, 360),
    "Reshape 0=5 1=18 2=0": lambda x: x.reshape(2, 4, 18, 5),
    "Flatten": lambda x: x.flatten(1),
    "Permute 0=0": lambda x: x,
    "Permute 0=1": lambda x: x.permute(0, 1, 3, 2),
    "Permute 0=2": lambda x: x.permute(0, 2, 1, 3),
    "Permute 0=3": lambda x: x.permute(0, 2, 3, 1),
    "Permute 0=4": lambda x: x.permute(0, 3, 1, 2),
    "Permute 0=5": lambda x: x.permute(0, 3, 2, 1),
}


@pytest.mark.parametrize("layer", PLAIN)
def test_layers_without_weights(layer):
    kind, *settings = layer.split()
    equal(load(f"{kind} one 1 1 x y {' '.join(settings)}"), PLAIN[layer](IMAGE))


# ---- layers with weights ---------------------------------------------------------------------------------------------

WEIGHT, WIDE, BIAS = values(6, 4, 3, 3), values(6, 4, 1, 5), values(6, seed=1)
DEEP = values(8, 2, 3, 3)  # two groups


def t(array):
    return torch.from_numpy(array)


def back(x, weight, *args, groups=1, **options):
    """ncnn's order (groups, out / groups, in / groups, ...) as torch wants it."""
    weight = t(weight).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return F.conv_transpose2d(x, weight, *args, groups=groups, **options)


WEIGHTED = {
    "Convolution 0=6 1=3 4=1 5=1 6=216": (WEIGHT, lambda x: F.conv2d(x, t(WEIGHT), t(BIAS), padding=1)),
    "Convolution 0=6 1=3 5=1 6=216 3=2 2=2": (WEIGHT, lambda x: F.conv2d(x, t(WEIGHT), t(BIAS), 2, dilation=2)),
    "Convolution 0=6 1=5 11=1 4=2 14=0 5=1 6=120": (WIDE, lambda x: F.conv2d(x, t(WIDE), t(BIAS), padding=(0, 2))),
    "Convolution 0=6 1=3 4=-233 5=1 6=216": (WEIGHT, lambda x: F.conv2d(x, t(WEIGHT), t(BIAS), padding=1)),
    "Convolution 0=6 1=3 4=1 15=2 14=0 16=3 5=1 6=216 18=0.5": (
        WEIGHT,
        lambda x: F.conv2d(F.pad(x, (1, 2, 0, 3), value=0.5), t(WEIGHT), t(BIAS)),
    ),
    "ConvolutionDepthWise 0=8 1=3 4=1 5=1 6=144 7=2": (
        DEEP,
        lambda x: F.conv2d(x, t(DEEP), t(values(8, seed=1)), padding=1, groups=2),
    ),
    "Deconvolution 0=6 1=3 3=2 4=1 5=1 6=216": (WEIGHT, lambda x: back(x, WEIGHT, t(BIAS), 2, 1)),
    "Deconvolution 0=6 1=3 3=2 4=1 5=1 6=216 18=1": (WEIGHT, lambda x: back(x, WEIGHT, t(BIAS), 2, 1, 1)),
    "Deconvolution 0=6 1=3 3=2 4=1 15=0 14=2 16=1 5=1 6=216": (
        WEIGHT,
        lambda x: back(x, WEIGHT, t(BIAS), 2)[:, :, 2:-1, 1:],
    ),
    "DeconvolutionDepthWise 0=8 1=3 3=2 5=1 6=144 7=2": (
        DEEP,
        lambda x: back(x, DEEP, t(values(8, seed=1)), 2, groups=2),
    ),
    "InnerProduct 0=6 1=1 2=2160": (values(6, 360), lambda x: F.linear(x.flatten(1), t(values(6, 360)), t(BIAS))),
}


@pytest.mark.parametrize("tag", [F32, RAW_F32, F16])
@pytest.mark.parametrize("layer", WEIGHTED)
def test_layers_with_weights(layer, tag):
    kind, *settings = layer.split()
    weight, want = WEIGHTED[layer]
    model = load(
        f"{kind} one 1 1 x y {' '.join(settings)}", data=tagged(weight, tag) + raw(values(len(weight), seed=1))
    )
    equal(model, want(IMAGE))


def test_weights_of_an_odd_count_in_float16():
    weight, bias = values(1, 1, 3, 3), values(1)
    model = load("Convolution one 1 1 x y 0=1 1=3 5=1 6=9", data=tagged(weight, F16) + raw(bias))
    equal(model, F.conv2d(IMAGE[:, :1], t(weight), t(bias)), IMAGE[:, :1])


ACTIVATIONS = {
    "9=1": F.relu,
    "9=2 -23310=1,0.1": lambda x: F.leaky_relu(x, 0.1),
    "9=3 -23310=2,-0.5,1.0": lambda x: x.clamp(-0.5, 1),
    "9=4": torch.sigmoid,
    "9=5": F.mish,
    "9=6 -23310=2,0.2,0.4": lambda x: x * (0.2 * x + 0.4).clamp(0, 1),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_within_layers(activation):
    after = ACTIVATIONS[activation]
    weight = values(6, 4)
    model = load(f"Convolution one 1 1 x y 0=6 1=1 6=24 {activation}", data=tagged(weight))
    equal(model, after(F.conv2d(IMAGE, t(weight)[..., None, None])))
    assert isinstance(model.one[0], nn.Conv2d)
    model = load(f"Deconvolution one 1 1 x y 0=6 1=1 6=24 {activation}", data=tagged(weight))
    equal(model, after(F.conv2d(IMAGE, t(weight)[..., None, None])))
    model = load("Pooling pool 1 1 x p 0=1 4=1", f"InnerProduct one 1 1 p y 0=6 2=24 {activation}", data=tagged(weight))
    equal(model, after(F.linear(IMAGE.mean((2, 3)), t(weight))))


def test_slopes_and_scales():
    slopes, factors, summands = (values(4, seed=i) for i in range(3))
    equal(load("PReLU one 1 1 x y 0=4", data=raw(slopes)), F.prelu(IMAGE, t(slopes)))
    equal(load("PReLU one 1 1 x y 0=1", data=raw(slopes[:1])), F.prelu(IMAGE, t(slopes[:1])))
    across = (4, 1, 1)
    equal(load("Scale one 1 1 x y 0=4", data=raw(factors)), IMAGE * t(factors).view(across))
    both = IMAGE * t(factors).view(across) + t(summands).view(across)
    equal(load("Scale one 1 1 x y 0=4 1=1", data=raw(factors, summands)), both)
    model = load("Split s 1 2 x a b", "Pooling p 1 1 a f 0=1 4=1", "Scale one 2 1 b f y 0=-233")
    equal(model, IMAGE * IMAGE.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("sides", "shape"),
    [("0=10", (10,)), ("0=10 1=9", (9, 10)), ("0=1 1=1 2=4", (4, 1, 1)), ("0=10 1=9 2=4", (4, 9, 10))],
)
def test_constants(sides, shape):
    data = values(*shape)
    model = load(f"MemoryData m 0 1 c {sides}", "BinaryOp add 2 1 x c y", data=raw(data))
    wide, image = data, IMAGE
    if len(shape) == 2:  # along channels and rows: there must be as many
        wide = data.reshape(9, 10, 1)
        image = torch.rand(1, 9, 10, 5)
    equal(model, image + t(wide), image)
    typed = load(f"MemoryData m 0 1 c {sides} 21=0", "BinaryOp add 2 1 x c y", data=tagged(data, F16))
    equal(typed, image + t(wide), image)


# ---- layers of several inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        ("BinaryOp one 2 1 a b y 0=0", lambda a, b: a + b),
        ("BinaryOp one 2 1 a b y 0=1", lambda a, b: a - b),
        ("BinaryOp one 2 1 a b y 0=2", lambda a, b: a * b),
        ("BinaryOp one 2 1 a b y 0=3", lambda a, b: a / b),
        ("BinaryOp one 2 1 a b y 0=4", torch.maximum),
        ("BinaryOp one 2 1 a b y 0=5", torch.minimum),
        ("BinaryOp one 2 1 a b y 0=7", lambda a, b: b - a),
        ("BinaryOp one 2 1 a b y 0=8", lambda a, b: b / a),
        ("Eltwise one 2 1 a b y", lambda a, b: a * b),
        ("Eltwise one 2 1 a b y 0=1", lambda a, b: a + b),
        ("Eltwise one 2 1 a b y 0=1 -23301=2,0.5,1.0", lambda a, b: 0.5 * a + b),
        ("Eltwise one 3 1 a b a y 0=2", torch.maximum),
        ("Concat one 2 1 a b y", lambda a, b: torch.cat([a, b], 1)),
        ("Concat one 2 1 a b y 0=2", lambda a, b: torch.cat([a, b], 3)),
        ("Concat one 2 1 a b y 0=-2", lambda a, b: torch.cat([a, b], 2)),
    ],
)
def test_layers_of_two_inputs(layer, want):
    equal(load("Split s 1 2 x a c", "Sigmoid t 1 1 c b", layer), want(IMAGE, IMAGE.sigmoid()))


def test_sizes_taken_from_another_blob():
    smaller = "Crop small 1 1 b s -23309=2,2,2 -23310=2,-2,-2 -23311=2,1,2"
    equal(load("Split t 1 2 x a b", smaller, "Crop one 2 1 a s y 0=1 1=2"), IMAGE[:, :, 2:7, 1:7])
    larger = "PixelShuffle large 1 1 b s 0=2"
    twice = F.interpolate(IMAGE, (18, 20))
    equal(load("Split t 1 2 x a b", larger, "Interp one 2 1 a s y 0=1 5=1"), twice)


def test_vectors_become_images():
    pooled = IMAGE.mean((2, 3), keepdim=True)
    pooling = "Pooling p 1 1 x v 0=1 4=1"
    equal(load(pooling, "Interp one 1 1 v y 0=2 3=5 4=6"), pooled.expand(2, 4, 5, 6))
    weight = values(6, 4, 1, 1)
    one = "Convolution one 1 1 v y 0=6 1=1 6=24"
    equal(load(pooling, one, data=tagged(weight)), F.conv2d(pooled, t(weight))[:, :, 0, 0])


def test_ncnn_broadcasts_in_its_own_way():
    image = torch.rand(2, 4, 9, 10)
    for shape, wide in [
        ((2, 4), (2, 4, 1, 1)),
        ((1, 10), (1, 1, 1, 10)),
        ((2, 4, 9), (2, 4, 9, 1)),
        ((2, 1), (2, 1, 1, 1)),
        ((2, 4, 1, 1), (2, 4, 1, 1)),
    ]:
        assert tuple(aligned(torch.rand(shape), image).shape) == wide
    assert aligned(image, torch.rand(2, 4)) is image
    assert tuple(aligned(torch.rand(2, 10), torch.rand(2, 9, 10)).shape) == (2, 1, 10)


# ---- a whole model ---------------------------------------------------------------------------------------------------

GATED = (
    "Convolution /body/0.conv 1 1 x a 0=6 1=3 4=1 5=1 6=216 9=2 -23310=1,0.1",
    "PReLU forward 1 1 a p 0=6",
    "Split split 1 2 p b c",
    "Pooling pool 1 1 b d 0=1 4=1",
    "InnerProduct twin 1 1 d e 0=2 1=1 2=12 9=1",
    "InnerProduct twin 1 1 e f 0=6 1=1 2=12 9=4",
    "BinaryOp gate 2 1 c f g 0=2",
    "Deconvolution ... 1 1 g h 0=3 1=4 3=2 4=1 5=1 6=288",
    "Clip 🙂 1 1 h y 0=0.0 1=1.0",
)


def gated_data(tag=F16):
    parts = [tagged(WEIGHT, tag), raw(BIAS, BIAS)]
    parts += [tagged(values(2, 6), tag), raw(values(2)), tagged(values(6, 2), tag), raw(BIAS)]
    return b"".join([*parts, tagged(values(3, 6, 4, 4), tag), raw(values(3))])


def by_hand(x):
    x = F.prelu(F.leaky_relu(F.conv2d(x, t(WEIGHT), t(BIAS), padding=1), 0.1), t(BIAS))
    gate = F.linear(F.relu(F.linear(x.mean((2, 3)), t(values(2, 6)), t(values(2)))), t(values(6, 2)), t(BIAS))
    x = x * gate.sigmoid()[:, :, None, None]
    return back(x, values(3, 6, 4, 4), t(values(3)), 2, 1).clamp(0, 1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("tag", [F32, F16])
def test_a_whole_model(tag):
    model = load(*GATED, data=gated_data(tag))
    equal(model, by_hand(IMAGE))
    assert not model.training and not any(one.requires_grad for one in model.parameters())
    equal(pickle.loads(pickle.dumps(model)), by_hand(IMAGE))
    twice = copy.deepcopy(model).double()(IMAGE.double())
    torch.testing.assert_close(twice.float(), by_hand(IMAGE), rtol=1e-4, atol=1e-5)
    equal(torch.jit.trace(model, IMAGE), by_hand(IMAGE))


def test_submodules_have_the_names_of_the_layers():
    model = load(*GATED, data=gated_data())
    names = [name for name, _ in model.named_children()]
    assert names == ["body_0_conv", "forward_2", "pool", "twin", "twin_2", "gate", "layer", "layer_2"]
    assert isinstance(model.body_0_conv.convolution, nn.Conv2d)
    assert isinstance(model.forward_2, nn.PReLU)


def test_another_wiring_is_printed_as_another_model():
    lines = ["Split s 1 2 x a b", "ReLU r 1 1 b c", "BinaryOp sub 2 1 a c y 0=1"]
    swapped = [*lines[:2], "BinaryOp sub 2 1 c a y 0=1"]
    assert repr(load(*lines)) != repr(load(*swapped))
    assert repr(load(*lines)) != repr(load(*lines[:2], "BinaryOp sub 2 1 a c y 0=2"))


def test_loading_leaves_random_numbers_alone():
    torch.manual_seed(3)
    load(*GATED, data=gated_data())
    first = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(3))


# ---- what is refused -------------------------------------------------------------------------------------------------

CONV = "Convolution one 1 1 x y 0=6 1=3 4=1 5=1 6=216"
GOOD = tagged(WEIGHT) + raw(BIAS)


@pytest.mark.parametrize(
    ("line", "data", "message"),
    [
        ("Warp one 1 1 x y", b"", r"layer one \(Warp\) is of a kind that is not understood"),
        (CONV, tagged(WEIGHT, INT8) + raw(BIAS), "layer one .* has int8 weights"),
        (CONV + " 8=2", GOOD, "has int8 weights"),
        (CONV, np.uint32(5).tobytes() + GOOD[4:], r"has quantised weights \(tag 0x00000005\)"),
        (CONV, GOOD[:-1], r"the \.bin file ends inside layer one .*: 892 bytes are needed, it has 891"),
        (CONV, GOOD[:3], "ends inside layer one"),
        (CONV, b"", "ends inside layer one"),
        (CONV, GOOD + b"\0", r"the \.bin file has 893 bytes and the layers need 892"),
        (CONV.replace("6=216", "6=217"), GOOD, "217 weights do not make 6 outputs"),
        (CONV.replace("0=6", "0=0"), GOOD, "parameter 0 is 0, and must be from 1"),
        (CONV.replace("0=6", ""), GOOD, "216 weights do not make 0 outputs"),
        (CONV.replace("6=216", ""), GOOD, "0 weights do not make 6 outputs"),
        (CONV.replace("1=3", ""), GOOD, "parameter 1 is 0, and must be at least 1"),
        (CONV.replace("0=6", "0=2147483647"), GOOD, "do not make 2147483647 outputs"),
        (CONV.replace("6=216", "6=1944000000"), GOOD, "bytes are needed"),
        (CONV.replace("6=216", "6=1e300"), GOOD, "parameter 6 is 1e[+]300, and must be from"),
        (CONV.replace("1=3", "1=2.5"), GOOD, "parameter 1 is 2.5, and must be a whole number"),
        (CONV.replace("1=3", "1=0"), GOOD, "parameter 1 is 0, and must be"),
        (CONV.replace("4=1", "4=99999"), GOOD, "parameter 4 is 99999, and must be from"),
        (CONV.replace("4=1", "4=-1"), GOOD, r"paddings \(-1, -1, -1, -1\)"),
        (CONV.replace("4=1", "4=-233 3=2"), GOOD, "depends on the size of the image"),
        (CONV + " 19=1", GOOD, "parameter 19 is not understood"),
        (CONV + " 4=2", GOOD, "the setting '4=2', which is not understood"),
        (CONV + " 9=7", GOOD, "activation 7"),
        (CONV + " 9=2", GOOD, "activation 2 of 0 numbers"),
        (CONV + " 7", GOOD, "the setting '7', which is not understood"),
        (CONV + " 9=inf", GOOD, "the setting '9=inf', which is not understood"),
        (CONV + " 9=two", GOOD, "the setting '9=two', which is not understood"),
        (CONV + " -23310=2,0.1", GOOD, "the setting '-23310=2,0.1', which is not understood"),
        (CONV + " 10=1,2", GOOD, "the setting '10=1,2', which is not understood"),
        ("ConvolutionDepthWise one 1 1 x y 0=6 1=3 6=216 7=4", GOOD, "in 4 groups"),
        ("Deconvolution one 1 1 x y 0=6 1=3 6=216 20=64", tagged(WEIGHT), "fixed output size"),
        ("Deconvolution one 1 1 x y 0=6 1=3 6=216 18=1", tagged(WEIGHT), "output padding"),
        ("InnerProduct one 1 1 x y 0=7 2=12", b"", "12 weights do not make 7 outputs"),
        ("PReLU one 1 1 x y", b"", "has no slopes"),
        ("PReLU one 1 1 x y 0=2000000000", b"", "8000000000 bytes are needed"),
        ("MemoryData one 0 1 y 0=2000000000 1=2000000000 2=2000000000", b"", "bytes are needed"),
        ("MemoryData one 0 1 y 0=2 2=2", b"", "sides"),
        ("Crop one 1 1 x y -23309=1,1 -23310=2,1,2", b"", "do not fit"),
        ("Crop one 1 1 x y -23309=1,1.5 -23310=1,2", b"", "parameter 9 must be whole numbers"),
        ("Interp one 1 1 x y", b"", "does not tell how it interpolates"),
        ("Interp one 1 1 x y 0=1 1=1e9 2=1e9", b"", "scales by"),
        ("Pooling one 1 1 x y 1=3 2=3 5=2", b"", "parameter 5 is 2"),
        ("Pooling one 1 1 x y 1=2 2=2 3=1", b"", "not supported"),
        ("Pooling one 1 1 x y 1=2 2=2 3=2", b"", "not supported"),
        ("Pooling one 1 1 x y 0=1 1=2 2=2 6=1", b"", "not supported"),
        ("Reshape one 1 1 x y", b"", "sides"),
        ("Reshape one 1 1 x y 0=-1 1=-1", b"", "sides"),
        ("Reshape one 1 1 x y 0=1 6=w", b"", "the setting '6=w'"),
        ("Eltwise one 1 1 x y 0=1 -23301=2,1.0,1.0", b"", "2 factors for 1 inputs"),
        ("BinaryOp one 1 1 x y", b"", "reads 1 blobs"),
        ("BinaryOp one 1 1 x y 0=11 1=1", b"", "parameter 0 is 11, and must be from 0 to 9"),
        ("ReLU one 0 1 y", b"", "reads 0 blobs"),
        ("ReLU one 1 2 x y z", b"", "writes 2 blobs"),
        ("ReLU one 1 1 z y", b"", "reads 'z', which no layer before it writes"),
        ("ReLU one 1 1 x x", b"", "writes 'x', which was written before"),
        ("ReLU one 1 2000000000 x y", b"", "announces 1 inputs and 2000000000 outputs, and does not name them"),
        ("ReLU one 1 -1 x", b"", "must tell how many"),
        ("ReLU one 1", b"", "describes no layer"),
        ("Input two 0 1 y", b"", "second input"),
        ("Split one 1 2 x y z", b"", "1 inputs and 2 outputs, and must have one of each: y, z"),
    ],
)
def test_refused(line, data, message):
    with pytest.raises(ValueError, match=message):
        load(line, data=data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with 7767517"),
        ("7767518\n1 1\n", "starts with 7767517"),
        ("7767517", "second line"),
        ("7767517\nmany few\n", "second line"),
        ("7767517\n" + "9" * 5000 + " 1\n", "second line"),
        ("7767517\n2 1\nInput data 0 1 in\n", "announces 2 layers and holds 1"),
        ("7767517\n0 0\n", "0 inputs and 0 outputs"),
        ("7767517\n1 1\nInput data 0 1 in\n", "1 inputs and 0 outputs"),
        ("7767517\n1 1\nInput data 0 1 in width=3\n", "the setting 'width=3'"),
    ],
)
def test_malformed_text(text, message):
    with pytest.raises(ValueError, match=message):
        load_ncnn(text, b"")


# ---- damaged files ---------------------------------------------------------------------------------------------------

TEXT = param(
    "Input in 0 1 x 0=9 1=9 2=4",
    *GATED[:-1],
    "Split again 1 3 h i j k",
    "Interp up 1 1 i l 0=2 1=2.0 2=2.0",
    "Crop cut 2 1 l j m 0=1 1=1",
    "Crop inner 1 1 k n -23309=2,1,1 -23310=2,-1,-1 -23311=2,1,2",
    "Padding pad 1 1 n o 0=1 1=1 2=1 3=1 4=2",
    "Concat cat 2 1 m o q",
    "MemoryData means 0 1 r 0=1 1=1 2=6",
    "BinaryOp sub 2 1 q r s 0=1",
    "Pooling small 1 1 s u 1=2 2=2",
    "Reshape flat 1 1 u v 0=-1",
    "Reshape wide 1 1 v w 0=9 1=-1 2=6",
    "Permute turn 1 1 w y 0=1",
)
NUMBERS = [
    "0",
    "-1",
    "-233",
    "1e9",
    "99999999999",
    "nan",
    "-inf",
    "2147483647",
    "1e400",
    "0.5",
    "=",
    "1,2",
    "",
    "٣",
    "9" * 5000,
]
JUNK = ["", "\0", "=", ",", "\n", " ", "x", "-", "9", "é", "\u2028", "Convolution", "\r"]


def mutants(count):
    """(text, data) with something changed, each with its seed."""
    data = gated_data() + raw(values(6))
    for seed in range(count):
        rng = np.random.default_rng(seed)
        text, weights = TEXT, bytearray(data)
        for _ in range(rng.integers(1, 4)):
            how = rng.integers(5)
            if how == 0:  # a character
                at = rng.integers(len(text))
                text = text[:at] + str(rng.choice(JUNK)) + text[at + rng.integers(3) :]
            elif how == 1:  # the value of a setting
                words = text.split(" ")
                at = rng.integers(len(words))
                words[at] = words[at].partition("=")[0] + "=" * ("=" in words[at]) + str(rng.choice(NUMBERS))
                text = " ".join(words)
            elif how == 2:  # the order of lines
                lines = text.split("\n")
                a, b = rng.integers(len(lines), size=2)
                lines[a], lines[b] = lines[b], lines[a] if rng.random() < 0.5 else lines[b]
                text = "\n".join(lines)
            elif how == 3:
                weights = weights[: rng.integers(len(weights) + 1)]
            elif weights:
                weights[rng.integers(len(weights))] ^= 1 << rng.integers(8)
        yield seed, text, bytes(weights)


def test_the_file_that_is_damaged_is_whole():
    assert load_ncnn(TEXT, gated_data() + raw(values(6)))(IMAGE).shape == (2, 6, 9, 10)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_damaged_files_are_refused_or_read():
    before, began = peak(), time.monotonic()
    refused = 0
    for seed, text, data in mutants(600):
        try:
            assert isinstance(load_ncnn(text, data), nn.Module)
        except ValueError as error:
            refused += 1
            assert 10 < len(str(error)) < 400, (seed, error)
    assert refused > 300
    assert peak() - before < 64 << 20
    assert time.monotonic() - began < 30


def test_every_cut_is_refused():
    data = gated_data() + raw(values(6))
    for end in itertools.chain(range(0, len(data), 37), [len(data) - 1]):
        with pytest.raises(ValueError, match=r"the \.bin file ends inside layer"):
            load_ncnn(TEXT, data[:end])
    for end in range(0, len(TEXT) - 2, 11):
        with pytest.raises(ValueError, match=r"\.param|layer|model"):
            load_ncnn(TEXT[:end], data)


def test_long_hostile_files_take_no_time():
    lines = [f"ReLU same 1 1 {f'b{i}' if i else 'x'} b{i + 1}" for i in range(5000)]
    began = time.monotonic()
    assert len(list(load(*lines).children())) == 5000
    assert time.monotonic() - began < 20
