# SPDX-License-Identifier: MIT
"""Models of every kind with schedule="stream": what they keep, how they are made, and options that change nothing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import TiledRestorer, restore_tiled  # noqa: E402

from .architectures import Gate, UNet, chain, conv  # noqa: E402
from .networks import Chain, seeded  # noqa: E402
from .streaming import Calls  # noqa: E402
from .test_engines import pixels_of  # noqa: E402
from .test_untouched import KEEPING, OWN, Keeping, Unchanged, quietly  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGE, FLOATS = pixels_of("uint8", (90, 61, 3)), pixels_of("float32", (90, 61, 3))
STREAM, TILES = {"schedule": "stream"}, {"schedule": "tiles", "tile_size": 32, "global_stats": "exact"}


def largest(got, want):
    assert got.shape == want.shape
    return np.abs(np.asarray(got).astype(float) - np.asarray(want).astype(float)).max()


def check(model, image=FLOATS, near=2e-6, **options):
    """Streams as tiles do."""
    options = {"halo": 4} | options
    restorer = TiledRestorer(model, **options, **STREAM)
    assert largest(restorer(image), restore_tiled(image, model, **options, **TILES)) <= near
    assert restorer.last_run.schedule == "stream"


@pytest.mark.parametrize("keep", KEEPING, ids=lambda keep: keep.__name__)
def test_what_a_model_keeps(keep):
    if keep in OWN:
        pytest.skip("the model's own doing")
    model = seeded(lambda: Keeping(keep))
    restorer = TiledRestorer(model, halo=4, **STREAM)
    with Unchanged(model):
        for image in (IMAGE, IMAGE[:50], IMAGE):
            quietly(lambda image=image: restorer(image))


OPTIONS = {
    "dtype": {"dtype": "auto"},
    "tiles": {"tile_size": "auto", "batch_size": "auto"},
    "batches": {"batch_size": 4, "overlap": 3, "blend": "gaussian"},
    "halo": {"halo": "auto"},
    "torch": {"engine": "torch"},
    "contiguous": {"memory_format": "contiguous"},
    "channels last": {"memory_format": "channels_last"},
    "heap": {"keep_heap": False},
    "statistics": {"global_stats": "exact"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_change_nothing(name):
    for make in (lambda: UNet(2), lambda: chain(conv(3, 8), Gate(8), conv(8, 3))):
        model = seeded(make)
        want = restore_tiled(IMAGE, model, halo="exact", **TILES)
        got = restore_tiled(IMAGE, model, **{"halo": "exact"} | OPTIONS[name] | STREAM)
        assert largest(got, want) <= 1


@pytest.mark.parametrize("first", [70, 20])
def test_half_precision_that_is_chosen(streams_pay, monkeypatch, first):
    """The first image of the second case is too small for a stream."""
    monkeypatch.setattr("halotile.auto.dtype.FASTER", 1e9)
    model = seeded(lambda: UNet(2))
    options = {"halo": "exact", "tile_size": 32, "tolerance": 3}
    restorer = TiledRestorer(model, dtype="auto", **options)
    for side in (first, 70, 50):
        image = IMAGE[:side, :side]
        want = restore_tiled(image, model, **options, schedule="tiles")
        assert largest(restorer(image), want) <= 2
        assert restorer.last_run.precision.dtype in ("bfloat16", "float16")
        assert restorer.last_run.schedule == ("stream" if side > 32 else "tiles")
    single = TiledRestorer(model, **options, **STREAM)
    single(image)
    assert 2 * restorer.last_run.stream.held == single.last_run.stream.held


def test_images_of_any_strides_and_layouts():
    model = seeded(lambda: UNet(2))
    want = restore_tiled(IMAGE, model, halo="exact", **TILES)
    for image, options, back in (
        (IMAGE.transpose(2, 0, 1), {"layout": "CHW"}, lambda got: got.transpose(1, 2, 0)),
        (IMAGE.transpose(1, 0, 2), {"layout": "WHC"}, lambda got: got.transpose(1, 0, 2)),
        (torch.from_numpy(IMAGE).permute(2, 0, 1), {"engine": "host"}, lambda got: got.permute(1, 2, 0)),
        (np.repeat(np.repeat(IMAGE, 2, 0), 3, 1)[::2, ::3], {}, lambda got: got),
    ):
        assert largest(back(restore_tiled(image, model, halo="exact", **options, **STREAM)), want) == 0
    mirrored = IMAGE[::-1, ::-1]
    assert (
        largest(
            restore_tiled(mirrored, model, halo="exact", **STREAM),
            restore_tiled(mirrored, model, halo="exact", **TILES),
        )
        <= 1
    )


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * 1


class Caching(nn.Module):
    """Keeps what it made for a size."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def forward(self, x):
        if x.shape[2:] not in self.made:
            self.made[x.shape[2:]] = torch.linspace(1, 1, x.shape[2])[:, None] * 2
        return x * self.made[x.shape[2:]]


def hooked():
    model = seeded(lambda: Chain(2))
    model.register_forward_hook(lambda module, args, output: output * 2)
    return model


KINDS = {
    "identity": nn.Identity,
    "clamp": lambda: nn.Hardtanh(0.2, 0.8),
    "counting": Counting,
    "caching": Caching,
    "hooked": hooked,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1)).eval(),
    "compiled": lambda: torch.compile(seeded(lambda: Chain(2)), backend="eager"),
    "traced": lambda: torch.jit.trace(seeded(lambda: Chain(2)), torch.rand(1, 3, 40, 40)),
    "frozen": lambda: torch.jit.freeze(torch.jit.trace(seeded(lambda: Chain(2)), torch.rand(1, 3, 40, 40)).eval()),
    "cropping": lambda: Calls(lambda x: x[:, :, 1:-1, 2:-2]),
    "grey": lambda: seeded(lambda: Chain(2, channels=1)),
    "inference": torch.inference_mode()(lambda: seeded(lambda: Chain(2))),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_models(name):
    torch.manual_seed(0)
    check(KINDS[name](), near=4e-6)


def test_sizes_of_what_is_cached_come_and_go():
    model = Caching()
    restorer = TiledRestorer(model, halo=2, **STREAM)
    for rows in (90, 50, 90, 1):
        assert largest(restorer(FLOATS[:rows]), FLOATS[:rows] * 2) == 0


def test_one_row_and_one_column():
    for make in (lambda: UNet(2), lambda: chain(conv(3, 8), Gate(8), conv(8, 3))):
        for image in (IMAGE[:1], IMAGE[:, :1], IMAGE[:1, :1]):
            check(seeded(make), image, near=1, halo="exact")


class Constant(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


REFUSED = {
    "the result does not depend on the image": Constant,
    "it returns 2 tensors": lambda: Calls(lambda x: (x, x)),
    "it rolls the image up, and nothing rolls it down again": lambda: Calls(lambda x: x.roll(-3, 2)),
    "it is random": lambda: Calls(lambda x: x + torch.rand_like(x)),
    "_local_scalar_dense": lambda: Calls(lambda x: x * float(x.mean())),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_stream(text):
    with pytest.raises(ValueError, match=f"schedule must be 'auto' or 'tiles' for this model, not 'stream': .*{text}"):
        restore_tiled(FLOATS, REFUSED[text](), halo=4, phase=1, scale=1, **STREAM)


class Misread(nn.Module):
    """Does not do with the whole image what it does while it is recorded."""

    def forward(self, x):
        return x * (2 if type(x).__name__ == "FakeTensor" or torch._C._functorch.is_functionaltensor(x) else 1)


def test_a_model_that_is_misread_never_streams():
    with pytest.raises(ValueError, match="its result for noise differs by"):
        restore_tiled(FLOATS, Misread(), halo=4, phase=1, **STREAM)
    restorer = TiledRestorer(Misread(), halo=4, phase=1, schedule="auto")
    assert largest(restorer(FLOATS), FLOATS) == 0
