# SPDX-License-Identifier: MIT
"""global_stats: statistics of the whole image, the same in every tile; what cannot be held fixed says so."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import halotile  # noqa: E402
from halotile import TiledRestorer, restore_tiled  # noqa: E402
from halotile.run.statistics import Statistic, measured  # noqa: E402

from . import reference  # noqa: E402
from .architectures import KNOWN, Gate, UNet, chain, conv  # noqa: E402
from .networks import Chain, on_arrays, seeded  # noqa: E402
from .sampled import sampled  # noqa: E402

HELD = [name for name, known in KNOWN.items() if known.globals and known.local]
SLOPE = np.linspace(0.1, 1, 150, dtype=np.float32)[:, None, None]
IMAGE = np.random.default_rng(0).random((150, 131, 3), np.float32) * SLOPE
OPTIONS = {"halo": "exact", "phase": None, "tile_size": 40}


def whole(model, run, boundary="reflect", image=IMAGE):
    output = reference.whole(
        image.transpose(2, 0, 1),
        on_arrays(model),
        halo=max(run.halo),
        phase=run.phase[0],
        boundary=boundary,
        trim=run.model.trim[0],
    )
    return output.transpose(1, 2, 0)


def restored(model, image=IMAGE, **options):
    restorer = TiledRestorer(model, **OPTIONS | options)
    return restorer(image), restorer.last_run


@pytest.mark.parametrize("name", HELD)
def test_exact_equals_the_whole_image(name):
    model = seeded(KNOWN[name].make)
    got, run = restored(model, global_stats="exact", batch_size=3)
    assert (run.how, run.bound, run.global_stats) == ("exact", 0, "exact")
    np.testing.assert_allclose(got, whole(model, run), rtol=0, atol=5e-6)
    if not KNOWN[name].trim:
        got = restored(model, global_stats="exact", boundary="native", tile_size=(37, 200))[0]
        np.testing.assert_allclose(got, whole(model, run, "native"), rtol=0, atol=5e-6)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_gated_u_net_is_within_a_ten_thousandth(depth):
    """The figure that was asked for."""
    model = seeded(lambda: UNet(depth, gate=True, width=16))
    with torch.no_grad():
        model.gate.mix.weight *= 50  # so that it matters
    image = (
        np.random.default_rng(1).random((257, 190, 3), np.float32) * np.linspace(0, 1, 190, dtype=np.float32)[:, None]
    )
    got, run = restored(model, image, global_stats="exact", tile_size=64)
    error = np.abs(got - whole(model, run, image=image)).max()
    assert error < 1e-5
    assert np.abs(restored(model, image, global_stats="tile", tile_size=64)[0] - got).max() > 20 * error


@pytest.mark.parametrize("name", HELD)
def test_frozen_is_nearer_than_tiles_of_their_own(name):
    model = seeded(KNOWN[name].make)
    exact = restored(model, global_stats="exact")[0]
    frozen, run = restored(model, global_stats="frozen")
    assert (run.how, run.bound, run.global_stats) == ("frozen", None, "frozen")
    tile, run = restored(model, global_stats="tile")
    assert (run.how, run.global_stats) == ("tile", "tile")
    assert run.bound > 0
    assert "apart" in run.why
    assert np.abs(frozen - exact).mean() < np.abs(tile - exact).mean()


def test_frozen_statistics_of_an_image_that_fits_are_its_own():
    model = seeded(KNOWN["instance norm"].make)
    frozen, run = restored(model, global_stats="frozen", boundary="native", tile_size=150)
    np.testing.assert_allclose(frozen, whole(model, run, "native"), rtol=0, atol=5e-6)


def test_the_same_on_the_device(fake_mps):
    for name in ("squeeze and excite", "instance norm", "transposed attention", "many statistics"):
        model = seeded(KNOWN[name].make)
        on_device = seeded(KNOWN[name].make).to("fakemps")
        for how in ("exact", "frozen"):
            want = restored(model, global_stats=how)[0]
            got = restored(on_device, global_stats=how)[0]
            np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_tiles_have_their_own_unless_told():
    model = seeded(KNOWN["instance norm"].make)
    with pytest.raises(
        ValueError, match=r"halo must be a number.*in 1 \(.*pass global_stats='exact', 'frozen', 'local' or 'tile'"
    ):
        restored(model)
    own = restore_tiled(IMAGE, model, halo=2, tile_size=40, overlap=0)
    tile = restore_tiled(IMAGE, model, halo=2, tile_size=40, overlap=0, global_stats="tile")
    np.testing.assert_array_equal(own, tile)


def test_every_image_has_its_own():
    model = seeded(KNOWN["group norm"].make)
    images = np.stack([IMAGE, 1 - IMAGE, IMAGE * 0.5])
    for how in ("exact", "frozen"):
        together = restored(model, images, global_stats=how)[0]
        for image, got in zip(images, together, strict=True):
            np.testing.assert_array_equal(got, restored(model, image, global_stats=how)[0])


def test_grey_alpha_and_integers():
    model = seeded(KNOWN["squeeze and excite"].make)
    grey = (IMAGE[..., :1] * 255).astype(np.uint8)
    want = restored(model, np.repeat(grey, 3, 2), global_stats="exact", out_dtype="float32")[0].mean(2)
    got = restored(model, grey[..., 0], global_stats="exact", out_dtype="float32")[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    rgba = np.concatenate([np.repeat(grey, 3, 2), 255 - grey], 2)
    got = restored(model, rgba, global_stats="exact", out_dtype="float32")[0]
    np.testing.assert_allclose(got[..., :3].mean(2), want, rtol=0, atol=2e-6)
    alpha = restored(model, 255 - grey[..., 0], global_stats="exact", out_dtype="float32")[0]
    np.testing.assert_allclose(got[..., 3], alpha, rtol=0, atol=2e-6)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """How often the model reached its end, and how often it was started, on windows of a size."""

    def __init__(self, model, side):
        super().__init__()
        self.model, self.side, self.started, self.ended = model, side, 0, 0

    def forward(self, x):
        counts = x.shape[-1] == self.side
        self.started += counts
        y = self.model(x)
        self.ended += counts
        return y


def test_one_sweep_for_each_level():
    def gates(count):
        return chain(conv(3, 8), *(Gate(8) for _ in range(count)), conv(8, 3))

    for model, levels in ((gates(1), 1), (gates(3), 3), (seeded(KNOWN["many statistics"].make), 2)):
        counting = Counting(model.eval(), 44)
        info = halotile.inspect_model(model)
        restorer = TiledRestorer(counting, **OPTIONS | {"global_stats": "exact", "halo": 2, "phase": 1, "overlap": 0})
        restorer.knowledge.info = info
        seen = []
        restorer.knowledge.options = replace(restorer.options, progress=lambda *counts: seen.append(counts))
        restorer(IMAGE[:120, :120])
        assert counting.started == 9 * levels + 10  # the first window is looked at before
        assert counting.ended == 10  # sweeps stop where they know enough
        assert seen[-1] == (9 * levels + 9, 9 * levels + 9)


def test_running_out_of_memory_during_a_sweep():
    model = seeded(KNOWN["instance norm"].make)

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, x):
            self.calls += x.shape[2] > 40
            if self.calls > 6 and x.shape[2] > 40:
                raise MemoryError("no more")
            return self.model(x)

    small = Small()
    restorer = TiledRestorer(small, **OPTIONS | {"global_stats": "exact", "halo": 2, "phase": 1})
    restorer.knowledge.info = halotile.inspect_model(model)
    with pytest.warns(halotile.TileSizeWarning):
        got = restorer(IMAGE)
    want = restored(model, global_stats="exact")[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6)


def test_the_model_is_not_changed():
    model = seeded(KNOWN["squeeze and excite"].make).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    restored(model, global_stats="exact")
    assert model.training
    assert all(not one._forward_hooks and not one._forward_pre_hooks for one in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scripted_half_and_verified():
    model = seeded(KNOWN["squeeze and excite"].make)
    want, run = restored(model, global_stats="exact", verify=4)
    assert run.verified.seamless(1e-5)
    assert run.verified.windows == 4
    scripted = restored(torch.jit.script(model), global_stats="exact")[0]
    np.testing.assert_allclose(scripted, want, rtol=0, atol=1e-6)
    for dtype, room in (("bfloat16", 2e-2), ("float16", 3e-3)):
        half = restored(model, global_stats="exact", dtype=dtype)[0]
        np.testing.assert_allclose(half, want, rtol=0, atol=room)


def test_a_model_that_takes_nothing_of_the_whole_is_as_ever():
    model = seeded(lambda: Chain(2))
    for how in ("exact", "frozen", "tile"):
        got, run = restored(model, global_stats=how)
        assert (run.how, run.global_stats) == ("exact", None)
        np.testing.assert_array_equal(got, restored(model)[0])


def test_a_halo_that_is_too_small_is_judged():
    model = seeded(KNOWN["squeeze and excite"].make)
    with pytest.warns(halotile.SeamWarning, match="halo=1 is below the receptive field of 3"):
        run = restored(model, global_stats="exact", halo=1)[1]
    assert run.how == "given"
    assert 0 < run.bound < 1


def test_auto_takes_less_where_exact_is_dear():
    model = seeded(lambda: chain(Chain(20, width=4), Gate(3)))
    image = np.random.default_rng(0).random((450, 390, 3), np.float32)
    _, run = restored(model, image, halo="auto", tile_size=24, global_stats="exact")
    assert (run.how, run.halo) == ("measured", (16, 16))
    assert run.bound <= 0.5 / 255


# ---- what cannot be held fixed ---------------------------------------------------------------------------------------


class Strips(nn.Module):
    def forward(self, x):
        return x + x.mean(3, keepdim=True)


class Everything(nn.Module):
    """Attention of every pixel to every other one."""

    def forward(self, x):
        flat = x.flatten(2)
        scores = flat.transpose(1, 2) @ flat
        return (flat @ scores.softmax(-1)).view_as(x)


class Sorted(nn.Module):
    def forward(self, x):
        return x - x.flatten(2).median(-1).values[..., None, None]


class Divided(nn.Module):
    """A sum over everything, in units of a whole image of that size."""

    def forward(self, x):
        return x - x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]) * x.shape[3] / 100


class HalfHeld(nn.Module):
    """A mean, which can be held, and a median, which cannot."""

    def forward(self, x):
        x = x - x.mean((2, 3), keepdim=True)
        return x - x.flatten(2).median(-1).values[..., None, None]


@pytest.mark.parametrize("make", [Strips, Everything, Sorted, Divided, HalfHeld, KNOWN["spectrum"].make])
@pytest.mark.parametrize("how", ["exact", "frozen"])
def test_what_cannot_be_held_says_why(make, how):
    with pytest.raises(ValueError, match=r"global_stats"):
        restored(seeded(make), global_stats=how, halo=4, phase=1)


def test_bad_values():
    with pytest.raises(ValueError, match="global_stats must be one of 'tile', 'frozen', 'exact', 'local', not 'all'"):
        restore_tiled(IMAGE, seeded(lambda: Chain(1)), global_stats="all")
    for value in (-1, True, 1.5):
        with pytest.raises((TypeError, ValueError), match="verify must be"):
            restore_tiled(IMAGE, seeded(lambda: Chain(1)), verify=value)


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "moments", "power", "most"])
def test_parts_add_up(kind):
    x = torch.from_numpy(np.random.default_rng(2).normal(3, 2, (2, 5, 20, 30))).float()
    parts = [x[:, :, :7, :11], x[:, :, :7, 11:], x[:, :, 7:, :11], x[:, :, 7:, 11:]]
    total: Statistic | None = None
    for part in parts:
        one = measured(kind, [(part, (2, 3))], 3)
        total = one if total is None else total.merged(one)
    want = x.double().numpy()
    first = {"power": np.abs(want) ** 3, "most": want}.get(kind, want)
    first = first.max((2, 3)) if kind == "most" else first.mean((2, 3))
    assert total.count == 600
    np.testing.assert_allclose(total.first[..., 0, 0], first, rtol=1e-5)
    if kind == "moments":
        np.testing.assert_allclose(total.variance(1)[..., 0, 0], want.var((2, 3), ddof=1), rtol=1e-5)
    if kind == "most":
        np.testing.assert_array_equal(total.second[..., 0, 0], want.min((2, 3)).astype(np.float32))


# ---- what is no statistic --------------------------------------------------------------------------------------------


class Looking(torch.nn.Module):
    """A convolution, a norm over space, and something that looks at everything in another way."""

    def __init__(self, look, norm=True):
        super().__init__()
        self.into, self.out = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 1)
        self.norm = torch.nn.GroupNorm(2, 8) if norm else torch.nn.Identity()
        self.look = look

    def forward(self, x):
        x = self.into(x)
        return self.out(self.norm(x + self.look(x)))


def tokens(x):
    return x.flatten(2).transpose(1, 2).unsqueeze(1)


def image_again(t, x):
    return t.squeeze(1).transpose(1, 2).reshape(x.shape)


def fused_attention(x):
    t = tokens(x)
    return image_again(torch.nn.functional.scaled_dot_product_attention(t, t, t), x)


def plain_attention(x):
    t = tokens(x)
    return image_again(torch.softmax(t @ t.transpose(2, 3) / 3, -1) @ t, x)


def decoder_attention(x):
    """As in the decoders of latent diffusion: a norm of its own, channels taken apart by strides."""
    t = torch.nn.functional.group_norm(x.flatten(2), 2).transpose(1, 2)[:, None]
    return image_again(torch.nn.functional.scaled_dot_product_attention(t, t, t), x)


LOOKS = {
    "fused attention": (fused_attention, "attention"),
    "plain attention": (plain_attention, "attention"),
    "attention in a decoder": (decoder_attention, "attention"),
    "softmax over space": (lambda x: x * torch.softmax(x.flatten(2), -1).reshape(x.shape), "attention"),
    "spectrum": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.9, s=x.shape[2:]), "fft"),
    "running sum": (lambda x: torch.cumsum(x, -1) * 0.01, "reduction"),
}


@pytest.mark.parametrize("how, norm, phase", sampled(3, ("exact", "frozen"), (True, False), (1, None)))
@pytest.mark.parametrize("name", LOOKS)
def test_what_is_no_statistic_is_refused_by_name(name, how, norm, phase):
    """Before any sweep: what a norm beside it takes could be held, and the result would be wrong without a word."""
    look, kind = LOOKS[name]
    torch.manual_seed(0)
    model, tiles = Looking(look, norm).eval(), []
    with pytest.raises(ValueError, match=rf"global_stats must be 'tile' or None .* the model \({kind}\)"):
        restore_tiled(
            torch.rand(1, 3, 96, 88),
            model,
            tile_size=32,
            halo=4,
            phase=phase,
            boundary="native",
            global_stats=how,
            progress=lambda done, total: tiles.append(done),
        )
    assert not tiles


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.flatten(2).median(-1)[0][..., None, None],
        lambda x: torch.nn.functional.interpolate(torch.nn.functional.adaptive_avg_pool2d(x, 4), x.shape[2:]),
        lambda x: x.flatten(2).sort(-1)[0].reshape(x.shape),
    ],
    ids=["median", "cells", "sorted"],
)
def test_what_else_depends_on_the_window_is_refused(look):
    torch.manual_seed(0)
    model = Looking(look).eval()
    for how in ("exact", "frozen"):
        with pytest.raises(ValueError, match="global_stats must be 'tile'"):
            restore_tiled(torch.rand(1, 3, 96, 88), model, tile_size=32, halo=4, boundary="native", global_stats=how)


class PooledAttention(nn.Module):
    """Attention of every pixel to every other one, and a gate that is pooled, in one module."""

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        seen = ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).transpose(1, 2).reshape(x.shape)
        return seen * x.mean((2, 3), keepdim=True)


def test_attention_beside_pooling_has_its_own_name():
    from halotile import inspect_model

    model = PooledAttention()
    kinds = {one.kind for one in inspect_model(model).global_operations}
    assert "attention" in kinds and len(kinds) == 2, kinds
    with pytest.raises(ValueError, match=r"\(attention\), which is no statistic"):
        restore_tiled(np.zeros((40, 40, 3), np.float32), model, global_stats="exact", tile_size=24)


@pytest.mark.parametrize("pool", [lambda x: x.mean(2).mean(2), lambda x: x.amax(3).mean(2), lambda x: x.sum(2).mean(2)])
def test_statistics_of_rows_then_columns_are_refused_by_name(pool):
    class Pooled(nn.Module):
        def forward(self, x):
            return x - pool(x)[:, :, None, None]

    with pytest.raises(ValueError, match=r"aten::\w+ takes whole rows, columns or windows"):
        restore_tiled(np.zeros((40, 40, 3), np.float32), Pooled(), global_stats="exact", tile_size=24)
