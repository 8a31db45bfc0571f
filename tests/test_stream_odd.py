# SPDX-License-Identifier: MIT
"""Streams of networks as users write them: odd ones, and ones that change between two images."""

from __future__ import annotations

import types
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from halotile import TiledRestorer  # noqa: E402
from halotile.inspection.operators.streaming import NotStreamable  # noqa: E402
from halotile.inspection.recorder import record  # noqa: E402

from .networks import seeded  # noqa: E402
from .streaming import Calls, difference, image_of, in_steps  # noqa: E402
from .test_engines import pixels_of  # noqa: E402


def conv(a, b, kernel=3, **options):
    return nn.Conv2d(a, b, kernel, **{"padding": kernel // 2} | options)


# ---- what they do ----------------------------------------------------------------------------------------------------


def by_size(x, first, deep, last):
    y = first(x)
    if x.shape[2] >= 50:
        y = deep(y).relu()
    for _ in range(x.shape[3] // 20):
        y = y.tanh()
    return last(y)


def branches(x, a, b, c, d):
    return d(torch.cat([a(x), x, b(x).relu(), F.max_pool2d(c(x), 3, 1, 1)], 1)) + x


def views(x, first, last):
    y = first(x)
    n, channels, height, width = y.shape
    y = (
        y.view(n, channels, height // 2, 2, width // 2, 2)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(n, -1, height // 2, width // 2)
    )
    y = y * torch.arange(1, 4 * channels + 1, dtype=y.dtype).view(1, -1, 1, 1) / 30
    y = y.unflatten(1, (channels, 2, 2)).movedim((2, 3), (3, 5)).flatten(4, 5).flatten(2, 3)
    return last(y.swapaxes(2, 3).contiguous().swapaxes(2, 3))


def in_place(x, first, last):
    y = first(x)
    z = y.clone()
    z.mul_(0.5)
    z.sub_(y.detach() * 0.1).clamp_(-1, 1)
    y.add_(z).relu_()
    y *= 2
    out = last(y)
    out += x
    return out


def in_place_on_views(x, first, last):
    y = first(x)
    even = y[:, ::2]
    even.mul_(3)
    y.narrow(1, 1, 2).add_(even[:, :2])
    return last(y)


def made_in_forward(x, last):
    """A mask of the border, a blur and a ramp."""
    mask = torch.zeros(1, 1, *x.shape[2:], dtype=x.dtype)
    mask[:, :, 2:-2, 2:-2] = 1
    blurred = F.conv2d(x, torch.ones(3, 1, 3, 3, dtype=x.dtype) / 9, padding=1, groups=3)
    ramp = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype).view(1, 1, -1, 1).expand_as(mask)
    return last(torch.cat([blurred, mask, ramp], 1)) * mask


class Configured(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {"scale": 0.7, "layers": [{"act": "relu"}, {"act": "gelu"}], "norm": True}
        self.convs = nn.ModuleDict({f"layer {i}": conv(3, 3) for i in range(2)})
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        for i, layer in enumerate(self.config["layers"]):
            x = x + getattr(F, layer["act"])(self.convs[f"layer {i}"](x)) * self.config["scale"]
        return self.norm(x) if self.config["norm"] else x


def shared_modules():
    one, act = conv(4, 4), nn.LeakyReLU(0.2, inplace=True)
    body = nn.Sequential(one, act, nn.Sequential(one, act, nn.Sequential(one, act)))
    tail = nn.Sequential(body, nn.AvgPool2d(2), one, nn.Upsample(scale_factor=2), body, conv(4, 3))
    return nn.Sequential(conv(3, 4), tail)


def odd_strides(x, down, up, last):
    y = F.pad(up(down(x).relu()), (0, 8, 0, 8), "replicate")[:, :, : x.shape[2], : x.shape[3]]
    return last(y) + x


def asymmetric(x, first, last):
    y = first(F.pad(x, (2, 0, 1, 2), value=0.3))
    return last(F.pad(y, (1, 3, 1, 0), "reflect"))


def cropped(x, first, last):
    y = F.pixel_shuffle(last(F.elu(first(F.pad(x, (6, 6, 6, 6), "reflect")))), 2)
    off = (y.shape[2] - 2 * x.shape[2]) // 2
    return y[..., off : off + 2 * x.shape[2], off:-off]


def pyramid(x, first, *levels):
    images = [first(x)]
    for i in range(2):
        images.append(F.interpolate(images[-1], scale_factor=0.5, mode="area" if i else "bilinear"))
    sizes = x.shape[2:]
    modes = ("nearest", "bicubic", "bilinear")
    return sum(F.interpolate(f(y), sizes, mode=mode) for y, f, mode in zip(images, levels, modes, strict=True))[:, :3]


class Recursive(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 3, 2, 1), nn.ConvTranspose2d(3, 3, 2, 2)
        self.inner = Recursive(depth - 1) if depth else conv(3, 3)

    def forward(self, x):
        return torch.lerp(x, self.up(self.inner(self.down(x))), 0.4)


def local_norm(x, last):
    mean = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    variance = F.avg_pool2d(x * x, 5, 1, 2, count_include_pad=False) - mean**2
    return last((x - mean) / (variance.clamp_min(0) + 1e-2).sqrt())


def history(x, step):
    states = [x]
    while len(states) < 4:
        states.append(step(sum(states) / len(states)).sin())
    return torch.stack(states).mean(0)


def fields(x, even, odd):
    return torch.stack([even(x[:, :, 0::2]), odd(x[:, :, 1::2])], 3).flatten(2, 3)


def gradients(x):
    down = F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 1))
    return down * 0.5 + F.pad(torch.diff(x, dim=3), (1, 0)) + x


def every_third_row(x):
    every = torch.arange(x.shape[2]).view(-1, 1) % 3 == 0
    return torch.where(every, x, x.flip(3)) + torch.ones_like(x).tril() * x


def vignette(x):
    spaces = (torch.linspace(-1, 1, size, dtype=x.dtype) for size in x.shape[2:])
    y, z = torch.meshgrid(*spaces, indexing="ij")
    return x * (1 - 0.3 * (y**2 + z**2))


def norm_of_bands(x):
    y = x.unflatten(2, (-1, 8))
    return ((y - y.mean((3, 4), keepdim=True)) / (y.std((3, 4), keepdim=True) + 0.1)).flatten(2, 3)


def mean_of_the_upper_half(x):
    return x - x[:, :, : x.shape[2] // 2].mean((2, 3), keepdim=True)


def soft_pooling(x):
    powers = x.exp()
    pooled = F.avg_pool2d(powers * x, 2) / F.avg_pool2d(powers, 2)
    return pooled.repeat_interleave(2, 2).repeat_interleave(2, 3)


def signals(x, layer):
    n, channels, height, width = x.shape
    y = layer(x.permute(0, 2, 1, 3).reshape(n * height, channels, width))
    return y.reshape(n, height, channels, width).permute(0, 2, 1, 3)


def attention_of_rows(x, layer):
    y = x.permute(0, 2, 3, 1)
    z = layer(y)
    return ((z @ z.mT).softmax(-1) @ y).permute(0, 3, 1, 2)


def size_of_its_own(x, down, up):
    """Completes both ends to multiples of 7 and 6, and crops."""
    rows, columns = -x.shape[2] % 7, -x.shape[3] % 6
    pads = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    y = F.pad(x, pads, mode="reflect")
    y = F.interpolate(up(down(y)), y.shape[2:], mode="bilinear")
    return y[:, :, pads[2] : pads[2] + x.shape[2], pads[0] : pads[0] + x.shape[3]]


def kernel_of_the_image(x, layer):
    kernel = layer(x.mean((2, 3))).view(3, 1, 3, 3).softmax(0)
    return F.conv2d(x, kernel, padding=1, groups=3)


def kernel_of_every_pixel(x, layer):
    kernels = layer(x).softmax(1).unsqueeze(1)
    patches = F.unfold(x, 3, padding=1).view(x.shape[0], 3, 9, *x.shape[2:])
    return (patches * kernels).sum(2)


def functional(x, layer):
    doubled = {name: value * 2 for name, value in layer.named_parameters()}
    return torch.func.functional_call(layer, doubled, (x,)) + checkpoint(layer, x, use_reentrant=False)


def halves(x, above, below):
    half = x.shape[2] // 2
    return torch.cat([above(x[:, :, :half]), below(x[:, :, half:])], 2)


def halves_that_overlap(x, layer):
    half = x.shape[2] // 2
    a, b = layer(x[:, :, : half + 2]), layer(x[:, :, half - 2 :])
    return torch.cat([a[:, :, :-4], (a[:, :, -4:] + b[:, :, :4]) / 2, b[:, :, 4:]], 2)


def calls(call, *inner):
    return lambda: Calls(call, *[one() for one in inner])


def layer(*given, **options):
    return lambda: conv(*given, **options)


DOWN = {"stride": (3, 2), "padding": (4, 1), "dilation": (2, 1)}
UP = {"stride": (3, 2), "padding": (1, 1), "output_padding": (2, 0)}
# What makes a network, and what its sides must be multiples of.
ODD = {
    "by size": (calls(by_size, layer(3, 4), layer(4, 4, 5), layer(4, 3)), 1),
    "branches": (
        calls(branches, layer(3, 4, 1), layer(3, 4, 7), layer(3, 4, dilation=3, padding=3), layer(15, 3, 1)),
        1,
    ),
    "views": (calls(views, layer(3, 8), layer(8, 3)), 2),
    "in place": (calls(in_place, layer(3, 6), layer(6, 3)), 1),
    "in place on views": (calls(in_place_on_views, layer(3, 6), layer(6, 3)), 1),
    "made in forward": (calls(made_in_forward, layer(5, 3)), 1),
    "configured": (Configured, 1),
    "shared modules": (shared_modules, 2),
    "odd strides": (
        calls(
            odd_strides,
            lambda: nn.Conv2d(3, 4, (5, 3), **DOWN),
            lambda: nn.ConvTranspose2d(4, 3, (5, 4), **UP),
            layer(3, 3, padding=2, dilation=2),
        ),
        1,
    ),
    "asymmetric": (calls(asymmetric, lambda: nn.Conv2d(3, 4, (4, 3)), lambda: nn.Conv2d(4, 3, (2, 5))), 1),
    "cropped": (calls(cropped, layer(3, 8, padding=0), layer(8, 12)), 1),
    "pyramid": (calls(pyramid, layer(3, 4), *[layer(4, 4)] * 3), 4),
    "recursive": (Recursive, 8),
    "local norm": (calls(local_norm, layer(3, 3)), 1),
    "history": (calls(history, layer(3, 3)), 1),
    "fields": (calls(fields, layer(3, 3), layer(3, 3, 5)), 2),
    "gradients": (calls(gradients), 1),
    "every third row": (calls(every_third_row), 1),
    "vignette": (calls(vignette), 1),
    "norm of bands": (calls(norm_of_bands), 8),
    "mean of the upper half": (calls(mean_of_the_upper_half), 1),
    "soft pooling": (calls(soft_pooling), 2),
    "signals": (calls(signals, lambda: nn.Conv1d(3, 3, 5, padding=2)), 1),
    "attention of rows": (calls(attention_of_rows, lambda: nn.Linear(3, 4)), 1),
    "size of its own": (
        calls(
            size_of_its_own,
            lambda: nn.Conv2d(3, 6, 3, 2, 1),
            lambda: nn.ConvTranspose2d(6, 3, 3, 2, 1, output_padding=1),
        ),
        1,
    ),
    "kernel of the image": (calls(kernel_of_the_image, lambda: nn.Linear(3, 27)), 1),
    "kernel of every pixel": (calls(kernel_of_every_pixel, layer(3, 9)), 1),
    "functional": (calls(functional, layer(3, 3)), 1),
    "halves": (calls(halves, layer(3, 3), layer(3, 3, 5)), 1),
    "halves that overlap": (calls(halves_that_overlap, layer(3, 3)), 1),
}


@pytest.mark.parametrize("name", ODD)
def test_the_whole_image_to_the_last_digits(name):
    make, step = ODD[name]
    module = seeded(make).double()
    for size in ((80, 48), (97, 61), (51, 19), (8, 9)):
        image = image_of(tuple(-(-side // step) * step for side in size)).abs()
        graph = record(module, tuple(image.shape[1:]), image.dtype)
        with torch.inference_mode():
            want = module(image.clone())
        for heights in (1, (3, 1, 7), 16, 1000):
            assert difference(in_steps(graph, image, heights)[1], want) <= 1e-14, (size, heights)


@pytest.mark.parametrize("name", ["by size", "made in forward", "vignette", "halves", "size of its own", "fields"])
@pytest.mark.parametrize("options", [{}, {"memory_limit": 400_000}], ids=["", "limited"])
def test_through_the_public_functions(name, options):
    """A stream is the whole image, wherever the model looks; no halo has to be known for that."""
    make, step = ODD[name]
    model, image = seeded(make), pixels_of("float32", (98, 62, 3))
    restorer = TiledRestorer(model, halo=0, phase=step, boundary="native", schedule="stream", **options)
    with torch.inference_mode():
        want = model(torch.from_numpy(image).permute(2, 0, 1)[None].clone())[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(restorer(image), want, rtol=0, atol=1e-6)
    assert restorer.last_run.stream.streams == 1 and restorer.last_run.stream.as_is


def written_fields(x):
    result = torch.empty_like(x)
    result[:, :, 0::2] = x[:, :, 0::2] * 2
    result[:, :, 1::2] = x[:, :, 1::2]
    return result


REFUSED = {
    "slice_scatter": written_fields,
    "topk": lambda x: x - x.flatten(2).topk(5).values.mean(-1)[:, :, None, None],
    "col2im": lambda x: F.fold(F.unfold(x, 4, stride=2, padding=1), x.shape[2:], 4, stride=2, padding=1),
    "bucketize": lambda x: torch.bucketize(x, torch.linspace(0, 1, 9, dtype=x.dtype)).to(x.dtype),
    "sort": lambda x: x + x.sort(1).values,
    "unfold": lambda x: F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(-1).values,
    "as_strided": lambda x: x.as_strided((1, 1, 9, 9), (1, 1, 9, 1)),
    "sub": lambda x: x - x[:, :, :1].mean(3, keepdim=True),
    "bmm": lambda x: (x @ x.mT).softmax(-1) @ x,
    "convolution": lambda x: F.conv2d(torch.cat([x, x.flip(3)]), torch.ones(3, 3, 1, 1, dtype=x.dtype)).sum(
        0, keepdim=True
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_the_name_of_its_operator(name):
    with pytest.raises(NotStreamable, match=f"{name} in the model cannot run on rows"):
        record(Calls(REFUSED[name]).double(), (3, 24, 20), torch.float64)


def test_a_mean_of_no_rows_is_refused():
    """The upper half of a single row is empty."""
    with pytest.raises(NotStreamable, match="mean in the model cannot run on rows: it takes no rows"):
        record(Calls(mean_of_the_upper_half).double(), (3, 1, 12), torch.float64)


# ---- what changes between two images ---------------------------------------------------------------------------------


@dataclass
class Setting:
    gain: float = 1.0


class Reaching(nn.Module):
    """Depends on all that Python lets it reach."""

    gain = 1.0

    def __init__(self, outside):
        super().__init__()
        self.conv, self.layers = conv(3, 3), nn.ModuleList([nn.Conv2d(3, 3, 1), nn.ReLU()])
        self.norm, self.vector = nn.BatchNorm2d(3), nn.Parameter(torch.ones(3, 1, 1))
        self.config, self.setting, self.array = (
            {"inner": {"gain": 1.0}, "list": [1, 2]},
            Setting(),
            np.ones(3, np.float32),
        )
        self.tensor, self.double_it, self.own = torch.ones(3, 1, 1), False, lambda x: x * outside[0]

    def forward(self, x):
        x = self.conv(x)
        for one in self.layers:
            x = one(x)
        x = self.norm(x) * self.config["inner"]["gain"] * self.setting.gain * self.gain * self.tensor
        x = self.own(x * torch.from_numpy(self.array)[:, None, None]) * torch.sigmoid(self.vector)
        x = x + self.config["list"][0]
        return x * 2 if self.double_it else x


def patched(model):
    model.conv.forward = types.MethodType(lambda self, x: F.relu(F.conv2d(x, self.weight, padding=1)), model.conv)


def dilated(model):
    model.conv.dilation, model.conv.padding = (2, 2), (2, 2)


CHANGES = {
    "load_state_dict(assign=True)": lambda m, _: m.load_state_dict(
        {name: value * 2 for name, value in m.state_dict().items()}, assign=True
    ),
    "flag": lambda m, _: setattr(m, "double_it", True),
    "dictionary": lambda m, _: m.config["inner"].update(gain=2.0),
    "list": lambda m, _: m.config["list"].__setitem__(0, 5),
    "object": lambda m, _: setattr(m.setting, "gain", 2.0),
    "array": lambda m, _: m.array.__setitem__(slice(None), 4.0),
    "tensor that is no buffer": lambda m, _: m.tensor.mul_(2),
    "class": lambda m, patch: patch.setattr(Reaching, "gain", 2.0),
    "what a function reaches": lambda m, _: m.own.__closure__[0].cell_contents.__setitem__(0, 2.0),
    "hook": lambda m, _: m.conv.register_forward_hook(lambda module, given, result: result * 2),
    "method": lambda m, _: patched(m),
    "module of a list": lambda m, _: m.layers.__setitem__(1, nn.Tanh()),
    "wider module": lambda m, _: m.layers.__setitem__(0, conv(3, 3, 5)),
    "longer list": lambda m, _: m.layers.append(nn.Conv2d(3, 3, 1)),
    "memory of a weight": lambda m, _: m.conv.weight.detach().numpy().__imul__(2),
    "memory of a vector": lambda m, _: m.vector.detach().numpy().__imul__(3),
    "data": lambda m, _: setattr(m.vector, "data", m.vector.data * 3),
    "setting of a norm": lambda m, _: setattr(m.norm, "eps", 1.0),
    "dilation": lambda m, _: dilated(m),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_models_give_the_new_result(name, monkeypatch):
    image = pixels_of("float32", (60, 40, 3))
    model = seeded(lambda: Reaching([1.0]))

    def whole():
        with torch.inference_mode():
            return model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    restorer = TiledRestorer(model, halo=8, phase=1, boundary="native", schedule="stream")
    restorer(image)
    before = whole()
    np.testing.assert_allclose(restorer(image), before, rtol=0, atol=1e-5)
    CHANGES[name](model, monkeypatch)
    after = whole()
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(restorer(image), after, rtol=0, atol=1e-5)
