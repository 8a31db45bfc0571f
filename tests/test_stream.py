# SPDX-License-Identifier: MIT
"""Networks on strips of rows: what they give, whatever the strips, and what is held between them."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile.inspection.operators.streaming import NotStreamable  # noqa: E402
from halotile.inspection.recorder import record  # noqa: E402
from halotile.run.stream.cost import flops, memory  # noqa: E402
from halotile.run.stream.steps import Constants, Stepper, rows_per_step, streamed  # noqa: E402

from .architectures import KNOWN, SRVGG, Noisy, RRDBNet, UNet, chain, conv  # noqa: E402
from .networks import Chain, seeded  # noqa: E402
from .published import PUBLISHED, published  # noqa: E402
from .streaming import Calls, assert_streams, difference, image_of, in_steps  # noqa: E402

REFUSED = {
    "circular padding": "copy_ in module 'layers.0' cannot run on rows: it writes to a tensor in place",
    "spectrum": "_fft_r2c in the model cannot run on rows: every frequency takes all rows",
}
STREAMING = [name for name in KNOWN if name not in REFUSED]
# Rows that the network takes, or with two rows on every level and two windows of attention: one row may be anything.
LEAST = {"reflect padding": 2, "valid": 7, "conditioned": 5, "instance norm": 2, "shifted windows": 8}
LEAST |= {"transposed attention": 4, "valid, gated": 16, "U-Net of norms": 16}


def network(name):
    return seeded(KNOWN[name].make).double()


def graph_of(module, image):
    return record(module, tuple(image.shape[1:]), image.dtype)


# ---- whole images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMING)
def test_networks(name):
    known, module = KNOWN[name], network(name)
    step = known.multiple
    assert_streams(module, image_of((48 // step * step + step, 32)))
    least = -(-LEAST.get(name, 1) // step) * step
    for rows in (least, least + step):
        assert_streams(module, image_of((rows, 48)), (1, 8))
    if step == 1:
        for size in ((23, 17), (64, 7)):
            assert_streams(module, image_of(size), (1, 5))


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_refused(name):
    with pytest.raises(NotStreamable, match=REFUSED[name]):
        record(network(name), (3, 32, 32), torch.float64)


def test_luck_is_refused():
    with pytest.raises(NotStreamable, match=r"rand.* random"):
        record(seeded(Noisy).double(), (3, 32, 32), torch.float64)


# Refused, and by which part.
PARTS = {
    "CRAFT": "flip in the model cannot run on rows: it turns the image upside down",
    "DCTLSA": "depthwise_conv' cannot run on rows: it takes rows from both sides of a rolled image",
    "OmniSR": "bmm in module 'residual_layer.0.residual_layer.0.layer.8.fn' cannot run on rows: each row",
    "RGT": "bmm in module 'layers.0.blocks.1.attn' cannot run on rows: each row takes all others",
    "SeemoRe": "in module 'body.0.local_block.block.moe_layer' cannot run on rows: what follows depends on",
}
SINGLE = ("GRL",)  # runs in float32 alone
SIZES = {
    "SCUNet": (128, 128),
    "UpCunet2x": (36, 36),
    "DAT": (32, 64),
    "HAT": (48, 32),
    "RetinexFormer": (40, 32),
    "FFTformer": (96, 64),
}


# A dozen of all kinds; the others take minutes, together.
FAST = {"Compact", "DRUNet", "DnCNN", "ESRGAN", "MoSR", "NAFNet", "PLKSR", "RCAN", "SAFMN", "SPAN", "SwinIR"}
FAST |= {"UpCunet2x", "CRAFT", "SeemoRe"}


def in_lanes(names):
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", in_lanes(name for name in PUBLISHED if name not in PARTS))
def test_published_networks(name):
    dtype = torch.float32 if name in SINGLE else torch.float64
    module = published(name).to(dtype)
    image = image_of(SIZES.get(name, (64, 48)), 4 if name == "DRUNet" else 3).to(dtype)
    assert_streams(module, image, (12,), exact=1e-12 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("name", in_lanes(PARTS))
def test_published_networks_that_are_refused(name):
    with pytest.raises(NotStreamable) as caught:
        record(published(name), (3, 128, 128), torch.float32)
    assert PARTS[name] in str(caught.value), str(caught.value)


def test_an_image_of_one_row_of_an_instance_norm():
    """Its rows cannot be told from the images that the norm is made of."""
    with pytest.raises(NotStreamable, match="rows are not the third dimension"):
        record(network("instance norm"), (3, 1, 9), torch.float64)


def test_models_that_return_no_rows_of_the_image():
    for call, text in (
        (lambda x: x.mean((2, 3), keepdim=True), "does not depend on the image"),
        (lambda x: x.transpose(2, 3), "transpose in the model cannot run on rows: rows of the result"),
        (lambda x: torch.ones(1, 3, 8, 8, dtype=x.dtype), "does not depend on the image"),
        (lambda x: x[0], "cannot be recorded"),
        (lambda x: (x, x), "cannot be recorded"),
        (
            lambda x: x if float(x.sum()) > 0 else -x,
            "_local_scalar_dense in the model .*: what follows depends on what is in",
        ),
    ):
        with pytest.raises(NotStreamable, match=text):
            record(Calls(call), (3, 24, 16), torch.float64)
    with pytest.raises(NotStreamable, match="only torch modules"):
        record(lambda x: x, (3, 24, 16), torch.float64)


# ---- any strips ------------------------------------------------------------------------------------------------------

SEVERAL = [
    *("plain", "reflect padding", "dilated", "stride 2", "scale 1/2", "scale 3/2", "transposed", "dense", "valid"),
    *("U-Net 2, pooled", "U-Net 2, strided", "unshuffle, shuffle", "bilinear", "shifted windows", "even kernel"),
    *("squeeze and excite", "valid, gated", "NAFNet"),
]


@pytest.mark.parametrize("name", SEVERAL)
def test_any_strips_give_the_same(name):
    known, module = KNOWN[name], network(name)
    image = image_of((40 // known.multiple * known.multiple, 16))
    graph = graph_of(module, image)
    with torch.inference_mode():
        want = module(image.clone())
    luck = random.Random(name)
    for _ in range(6):
        heights = [luck.choice((1, 1, 2, 3, 5, 13, 64)) for _ in range(luck.randint(1, 6))]
        first, got = in_steps(graph, image, heights)
        assert first == 0 and difference(got, want) <= 1e-14, heights


@pytest.mark.parametrize("name", SEVERAL)
def test_rows_from_the_middle_on(name):
    known, module = KNOWN[name], network(name)
    image = image_of((64 // known.multiple * known.multiple, 12))
    graph = graph_of(module, image)
    with torch.inference_mode():
        want = module(image.clone())
    rows, luck = want.shape[2], random.Random(name)
    for _ in range(6):
        begin = luck.randrange(rows)
        end = luck.randint(begin + 1, rows)
        first, got = in_steps(graph, image, [luck.choice((1, 4, 9))], begin, end)
        assert begin - graph.result.unit < first <= begin
        assert end <= first + got.shape[2] <= rows
        assert difference(got, want[:, :, first : first + got.shape[2]]) <= 1e-13, (begin, end)


# Operators that do not round, or round every element by itself: the same bits, whatever the strips.
BITS = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "pooling": lambda x: F.max_pool2d(x, 3, 1, 1),
    "strided pooling": lambda x: F.max_pool2d(x, 3, 2, 1),
    "activation": lambda x: F.leaky_relu(x, 0.1) + x.abs(),
    "shuffle": lambda x: F.pixel_shuffle(x, 2) - 1,
    "unshuffle": lambda x: F.pixel_unshuffle(F.pad(x, (0, 1, 0, 1), "replicate"), 2),
    "reflection": lambda x: F.pad(x, (1, 2, 7, 9), "reflect"),
    "residual": lambda x: torch.cat([x, F.max_pool2d(x, 5, 1, 2)], 1) * 2,
    "rolls": lambda x: (x.roll((-3, -2), (2, 3)) * 2).roll((3, 2), (2, 3)),
}
# Kernels of others round by the number of rows: blocked products, and sums in vectors over what lies in memory. By no
# more than a few units in the last place of the largest value.
NEARLY = {
    "convolution": nn.Conv2d(4, 4, 3, padding=1),
    "strided convolution": nn.Conv2d(4, 4, 3, 2, 1),
    "transposed convolution": nn.ConvTranspose2d(4, 4, 4, 2, 1),
    "depthwise": nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "linear": Calls(lambda x, layer: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.Linear(4, 4)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
    "softmax": nn.Softmax(1),
    "mean of channels": Calls(lambda x: x.mean(1, keepdim=True)),
    "gelu": nn.GELU(),
    "average": nn.AvgPool2d(3, 1, 1),
}
GRAPHS = {}


def same_for(name, module, heights):
    image = image_of((33, 11), 4)
    if name not in GRAPHS:
        graph = graph_of(module.double(), image)
        GRAPHS[name] = graph, in_steps(graph, image, 1000)[1]
    graph, want = GRAPHS[name]
    return in_steps(graph, image, heights)[1], want


@settings(max_examples=60, deadline=None)
@given(heights=st.lists(st.integers(1, 30), min_size=1, max_size=12), name=st.sampled_from(sorted(BITS)))
def test_any_strips_give_the_same_bits(heights, name):
    got, want = same_for(name, Calls(BITS[name]), heights)
    assert torch.equal(got, want)


@settings(max_examples=60, deadline=None)
@given(heights=st.lists(st.integers(1, 30), min_size=1, max_size=12), name=st.sampled_from(sorted(NEARLY)))
def test_any_strips_give_the_same_within_units(heights, name):
    assert difference(*same_for(name, NEARLY[name], heights)) <= 1e-15


def test_each_row_of_each_operator_is_made_once():
    """And every row of the image is read once; for several users, and the last rows too."""
    module, image = network("U-Net 3, pooled"), image_of((80, 24))
    graph = graph_of(module, image)
    made = {}
    for node in graph.nodes:
        if node.make is None:
            continue

        def counted(strip, node=node, make=node.make):
            made.setdefault(node, []).append((strip.start, strip.stop))
            return make(strip)

        node.make = counted
    streamed(graph, image, 8)
    for node, pieces in made.items():
        if node.name != "cat":  # made for its only user from rows that are held
            assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])], node.name
            assert pieces[-1][1] == node.rows


# ---- memory and cost -------------------------------------------------------------------------------------------------

SMALL = {
    "SRVGG": lambda: SRVGG(layers=3, width=8),
    "RRDB": lambda: RRDBNet(blocks=1, features=8, growth=4),
    "U-Net": lambda: UNet(3),
    "gated": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Conv2d(8, 3, 1)),
}


def most_held(graph, image, step):
    """The largest number of bytes that are held between two steps, and the most that are promised."""
    constants = Constants(channels_last=False)
    for node in graph.nodes:
        if node.whole:
            ones = torch.ones(node.shape, dtype=node.dtype)
            constants.values[node] = ones if not node.is_statistic else None
    stepper = Stepper(graph, [graph.result], constants, lambda a, b: image[:, :, a:b].clone())
    with torch.inference_mode():
        return max(stepper.held_bytes for _ in stepper.run(step))


@pytest.mark.parametrize("name", ["SRVGG", "RRDB", "U-Net"])
def test_held_bytes_do_not_know_the_height(name):
    module, found = seeded(SMALL[name]), []
    for rows in (512, 2048):
        image = torch.zeros((1, 3, rows, 8))
        graph = record(module, (3, rows, 8), torch.float32)
        step = rows_per_step(graph, 16)
        found.append(most_held(graph, image, step))
        assert memory(graph, 16)[0] > 0
    assert found[0] == found[1]
    assert found[0] <= 1.1 * memory(graph, 16)[1]


class Beside(nn.Module):
    """Puts rows below each other, or over others."""

    def __init__(self, over):
        super().__init__()
        self.over, self.head, self.tail = over, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        if self.over:
            x = x.slice_scatter(torch.relu(x[:, :, 1:-1]), 2, 1, x.shape[2] - 1)
        else:
            x = torch.cat((x[:, :, :1], torch.relu(x), x[:, :, -1:]), 2)
        return self.tail(x)


SOURCES = {
    "transposed": lambda: chain(conv(3, 8, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 8, 2, stride=2), conv(8, 3, 3)),
    "transposed, overlapping": lambda: chain(
        nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)
    ),
    "corners": lambda: chain(conv(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "below": lambda: Beside(False),
    "over": lambda: Beside(True),
    "reflected": lambda: chain(nn.ReflectionPad2d(3), nn.Conv2d(3, 3, 7)),
    "down": lambda: chain(conv(3, 8, 3), nn.Upsample(scale_factor=0.5, mode="bicubic")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_memory_of_a_step_is_as_measured(name):
    graph = record(seeded(SOURCES[name]), (3, 4096, 8), torch.float32)
    most = most_held(graph, torch.zeros((1, 3, 4096, 8)), rows_per_step(graph, 16))
    held, peak = memory(graph, 16)
    assert 0.6 * held <= most <= 1.2 * peak


def test_costs_of_a_convolution():
    graph = record(nn.Conv2d(3, 8, 3, padding=1), (3, 40, 30), torch.float32)
    assert flops(graph) == 2 * 40 * 30 * 3 * 8 * 9
    held, peak = memory(graph, 8)
    assert held == 2 * 30 * 3 * 4  # two rows of the image
    assert held < peak < 40 * 30 * 11 * 4


# ---- what models do --------------------------------------------------------------------------------------------------


class Writing(nn.Module):
    """Writes to its input, and to what it has made."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.RMSNorm(4)
        self.tail = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x):
        x.mul_(2)
        y = self.conv(x)
        y[:, 1:3].add_(1)
        y[:, :1] = y[:, 3:] * 2
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        F.relu_(y)
        return self.tail(y).add_(x)


def test_models_that_write_in_place():
    assert_streams(seeded(Writing).double(), image_of((29, 14)))


def test_training_mode_and_buffers_stay():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)).double().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph = record(module, (3, 20, 12), torch.float64)
    assert module.training and all(inner.training for inner in module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    image = image_of((20, 12))
    got = streamed(graph, image, 4)
    with torch.inference_mode():
        assert difference(got, module.eval()(image)) <= 1e-12


def test_scripted_and_traced_modules():
    image = image_of((21, 13))
    module = seeded(lambda: Chain(2)).double()
    for made in (torch.jit.script(nn.Sequential(*module.layers, nn.ReLU())), torch.jit.trace(module, image)):
        assert_streams(made, image, (1, 8))


def test_half_precision_models_stay_close():
    for dtype, near in ((torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
        module = seeded(lambda: Chain(3, scale=2)).to(dtype)
        image = image_of((33, 20)).to(dtype)
        graph = graph_of(module, image)
        with torch.inference_mode():
            want, got = module(image), streamed(graph, image, 8)
        assert difference(got, want) <= near


def test_channels_last_gives_the_same():
    module, image = network("U-Net 2, pooled"), image_of((40, 24))
    with torch.inference_mode():
        got = streamed(graph_of(module, image), image.contiguous(memory_format=torch.channels_last), channels_last=True)
        assert difference(got, module(image)) <= 1e-12
