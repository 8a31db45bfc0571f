# SPDX-License-Identifier: MIT
"""Submodules that cannot run on rows by their operators run as a whole on strips, with a halo of their own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile import TiledRestorer  # noqa: E402
from halotile.inspection.operators.streaming import NotStreamable  # noqa: E402
from halotile.inspection.recorder import record  # noqa: E402
from halotile.run.stream.cost import flops, repeated, usual_rows  # noqa: E402
from halotile.run.stream.steps import streamed  # noqa: E402

from .architectures import chain, conv  # noqa: E402
from .networks import seeded  # noqa: E402
from .test_untouched import Unchanged  # noqa: E402


class Patches(nn.Module):
    """Mixes what is inside patches. col2im has no rule for rows."""

    def __init__(self, channels=8, side=4, times=1):
        super().__init__()
        self.side, self.times, self.mix = side, times, nn.Conv1d(channels * side**2, channels * side**2 * times**2, 1)

    def forward(self, x):
        patches = torch.tanh(self.mix(F.unfold(x, self.side, stride=self.side)))
        side, size = self.side * self.times, [one * self.times for one in x.shape[2:]]
        return F.fold(patches, size, side, stride=side)


class Summed(nn.Module):
    """Adds overlapping patches up, behind a convolution that pads."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        return F.fold(F.unfold(self.conv(x), 3, padding=1), x.shape[2:], 3, padding=1)


class Halved(Patches):
    def forward(self, x):
        return F.avg_pool2d(super().forward(x), 2)


class Sum(nn.Module):
    """Takes two images."""

    def __init__(self):
        super().__init__()
        self.inner = Summed(8)

    def forward(self, x, y):
        return self.inner(x) + y


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.sum, self.tail = nn.Conv2d(3, 8, 3, padding=1), Sum(), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.sum(x, torch.relu(x)))


class Turned(nn.Module):
    """Sees the whole image: no halo is enough."""

    def forward(self, x):
        return x + x.flip(2)


class Rolled(nn.Module):
    def forward(self, x):
        return x.roll(2, 2)


MODELS = {
    "patches": lambda: chain(conv(3, 8, 3), Patches(), nn.ReLU(), conv(8, 3, 3)),
    "summed": lambda: chain(conv(3, 8, 5), Summed(), conv(8, 3, 3)),
    "several": lambda: chain(conv(3, 8, 3), Patches(), conv(8, 8, 7), Patches(), Summed(), nn.ReLU(), conv(8, 3, 3)),
    "of two phases": lambda: chain(conv(3, 8, 3), Patches(), conv(8, 8, 3), Patches(side=2), conv(8, 3, 3)),
    "enlarging": lambda: chain(conv(3, 8, 3), Patches(times=2), conv(8, 3, 3)),
    "halving": lambda: chain(conv(3, 8, 3), Halved(), conv(8, 12, 3), nn.PixelShuffle(2)),
    "in a strided part": lambda: chain(
        nn.Conv2d(3, 8, 2, stride=2), Patches(), nn.ConvTranspose2d(8, 8, 2, stride=2), conv(8, 3, 3)
    ),
    "beside a skip": Two,
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_whole_image(name):
    model = seeded(MODELS[name]).double().eval()
    for height, width in ((64, 24), (128, 40)):
        image = torch.rand(1, 3, height, width, dtype=torch.float64)
        with torch.inference_mode():
            want = model(image)
        with Unchanged(model):
            graph = record(model, (3, height, width), torch.float64)
        assert any(node.segment is not None for node in graph.nodes)
        for rows in (1, 3, 8, 16, height):
            with torch.inference_mode():
                got = streamed(graph, image, rows)
            assert (got - want).abs().max() < 1e-14, (height, rows)


def test_runs_of_every_kind():
    model = seeded(MODELS["several"])
    image = np.random.default_rng(0).random((60, 44, 3)).astype(np.float32)
    want = TiledRestorer(model, boundary="native", schedule="tiles", halo=0, phase=4, tile_size=64)(image)
    with Unchanged(model):
        restorer = TiledRestorer(model, boundary="native", schedule="stream", halo="exact")
        got = restorer(image)
    assert restorer.last_run.schedule == "stream"
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_its_halo_is_counted():
    graph = record(seeded(MODELS["summed"]), (3, 256, 64), torch.float32)
    segment = next(node for node in graph.nodes if node.segment is not None)
    weights = 8 * 8 * 9
    assert segment.segment.flops == 2 * weights * 256 * 64
    assert flops(graph) == 2 * 256 * 64 * (weights + 3 * 8 * 25 + 3 * 8 * 9)
    few, many = repeated(graph, 4), repeated(graph, 64)
    assert 1 < many < few
    assert usual_rows(graph) >= 4 * (segment.segment.above + segment.segment.below)
    assert repeated(record(seeded(lambda: chain(conv(3, 3, 3))), (3, 64, 64), torch.float32), 8) == 1


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: Summed(3), "col2im"),  # nothing is left around it
        (lambda: chain(conv(3, 8, 3), Turned(), conv(8, 3, 3)), "flip"),  # sees the whole image
        (lambda: chain(conv(3, 8, 3), Rolled(), conv(8, 3, 3)), "roll"),  # its first rows are the last ones
        (lambda: chain(conv(3, 8, 3), *[Summed()] * 2, conv(8, 3, 3)), "col2im"),  # one module in two places
    ],
)
def test_refused_by_the_operator(model, named):
    with pytest.raises(NotStreamable, match=named):
        record(seeded(model).eval(), (3, 64, 64), torch.float32)
