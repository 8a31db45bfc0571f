# SPDX-License-Identifier: MIT
"""global_stats="local": statistics of a window around each pixel, against local networks that are written out here,
with the published arithmetic (TLC, arXiv 2112.04491)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import halotile  # noqa: E402
from halotile import TiledRestorer, restore_tiled  # noqa: E402
from halotile.testing import assert_exact  # noqa: E402

from . import reference  # noqa: E402
from .architectures import KNOWN, chain, conv  # noqa: E402
from .networks import Chain, on_arrays, seeded  # noqa: E402
from .test_global_stats import LOOKS, Looking  # noqa: E402

IMAGE = (
    np.random.default_rng(0).random((71, 83, 3), np.float32) * np.linspace(0.1, 1, 71, dtype=np.float32)[:, None, None]
)
OPTIONS = {"halo": "exact", "phase": None, "tile_size": 24, "global_stats": "local"}


# ---- the published arithmetic, from the sums of rows and columns -----------------------------------------------------


def pooled(x, size):
    """The mean of a window around each pixel; the results at the edges are repeated."""
    height, width = x.shape[2:]
    k1, k2 = min(height, size[0]), min(width, size[1])
    s = F.pad(x.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    out = (s[..., k1:, k2:] + s[..., :-k1, :-k2] - s[..., :-k1, k2:] - s[..., k1:, :-k2]) / (k1 * k2)
    rows, columns = height - out.shape[2], width - out.shape[3]
    pads = (columns // 2, (columns + 1) // 2, rows // 2, (rows + 1) // 2)
    return F.pad(out, pads, mode="replicate").to(x.dtype)


class Part(nn.Module):
    """What takes statistics: of everything, or of windows once `size` is set, in elements of its own resolution."""

    size = None


class Mean(Part):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True) if self.size is None else pooled(x, self.size)


class Pool(Part):
    def forward(self, x):
        return F.adaptive_avg_pool2d(x, 1) if self.size is None else pooled(x, self.size)


class Norm(Part):
    """An instance norm."""

    def __init__(self, width):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x):
        if self.size is None:
            return F.instance_norm(x, weight=self.gain, bias=self.bias)
        wide = x.double()
        mean = pooled(wide, self.size)
        variance = pooled(wide * wide, self.size) - mean * mean
        y = (wide - mean) / (variance + 1e-5).sqrt()
        return (y * self.gain.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


class Channels(Part):
    """Restormer's attention between channels; locally, that of each pixel's window, for this pixel."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.heat = heads, nn.Parameter(torch.rand(heads, 1, 1) * 4)
        self.qkv = chain(conv(width, 3 * width, 1), conv(3 * width, 3 * width, groups=3 * width))
        self.out = conv(width, width, 1)

    def attended(self, q, k, v):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.heat
        return scores.softmax(-1) @ v

    def forward(self, x):
        b, c, h, w = x.shape
        maps = [one.reshape(b, self.heads, c // self.heads, h, w) for one in self.qkv(x).chunk(3, 1)]
        if self.size is None:
            return x + self.out(self.attended(*(one.flatten(3) for one in maps)).reshape(b, c, h, w))
        made = torch.empty_like(x)
        k1, k2 = min(h, self.size[0]), min(w, self.size[1])
        for i in range(h):
            for j in range(w):
                y, z = min(max(i - (k1 - 1) // 2, 0), h - k1), min(max(j - (k2 - 1) // 2, 0), w - k2)
                q, k, _ = (one[..., y : y + k1, z : z + k2].flatten(3) for one in maps)
                made[:, :, i, j] = self.attended(q, k, maps[2][..., i, j, None]).reshape(b, c)
        return x + self.out(made)


class Squeeze(nn.Module):
    """Squeeze and excite through linear layers, by its usual reshapes."""

    def __init__(self, width):
        super().__init__()
        self.pool = Pool()
        self.mix = nn.Sequential(
            nn.Linear(width, 4), nn.LeakyReLU(0.2, inplace=True), nn.Linear(4, width), nn.Sigmoid()
        )

    def forward(self, x):
        b, c = x.shape[:2]
        y = self.pool(x) * 8
        if self.pool.size is None:
            return x * self.mix(y.view(b, c)).view(b, c, 1, 1)
        return x * self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NAFBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head, self.deep = conv(width, 2 * width, 1), conv(2 * width, 2 * width, groups=2 * width)
        self.pool, self.mix, self.out = Pool(), conv(width, width, 1), conv(width, width, 1)

    def forward(self, x):
        one, other = self.deep(self.head(x)).chunk(2, 1)
        y = one * other
        return x + self.out(y * (1 + self.mix(self.pool(y))))


class HalfNorm(nn.Module):
    """HINet's block: half of the channels are normalised."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two, self.norm = conv(width, width), conv(width, width), Norm(width // 2)

    def forward(self, x):
        half, rest = self.one(x).chunk(2, 1)
        return x + F.leaky_relu(self.two(F.leaky_relu(torch.cat([self.norm(half), rest], 1), 0.2)), 0.2)


class Down(nn.Module):
    """Head, a part in full resolution, one in a quarter of it, and back."""

    def __init__(self, fine, coarse):
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)
        self.fine, self.coarse = fine, coarse
        self.down, self.up = nn.Conv2d(8, 16, 4, 4), nn.Sequential(conv(16, 128, 1), nn.PixelShuffle(4))

    def forward(self, x):
        y = self.fine(self.head(x))
        return x + self.tail(y + self.up(self.coarse(self.down(y))))


NETWORKS = {
    "NAFNet": (lambda: Down(NAFBlock(8), NAFBlock(16)), 2),
    "Restormer": (lambda: Down(Channels(8, 2), Channels(16, 4)), 2),
    "HINet": (lambda: Down(HalfNorm(8), HalfNorm(16)), 2),
    "linear squeeze": (lambda: Down(Squeeze(8), nn.Identity()), 1),
    "mean": (lambda: Down(nn.Identity(), chain(Residual(Mean()), conv(16, 16))), 1),
}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x - self.inner(x)


def localised(model, size):
    """The network with windows, of a quarter of the size where the resolution is a quarter."""
    for name, one in model.named_modules():
        if isinstance(one, Part):
            share = 4 if name.startswith("coarse") else 1
            one.size = tuple(side // share for side in size)
    return model


def restored(model, image=IMAGE, **options):
    restorer = TiledRestorer(model, **OPTIONS | options)
    return restorer(image), restorer.last_run


def expected(name, run, size, boundary, image=IMAGE):
    model = localised(seeded(NETWORKS[name][0]), size)
    whole = reference.whole(
        image.transpose(2, 0, 1), on_arrays(model), halo=max(run.halo), phase=run.phase[0], boundary=boundary
    )
    return whole.transpose(1, 2, 0)


@pytest.mark.parametrize("boundary", ["native", "reflect"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_a_network_that_is_local_itself(name, boundary):
    size = (24, 13)
    got, run = restored(seeded(NETWORKS[name][0]), stats_size=size, boundary=boundary)
    assert (run.how, run.bound, run.global_stats, run.schedule) == ("exact", 0, "local", "tiles")
    want = expected(name, run, size, boundary)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    elsewhere = expected(name, run, (48, 48), boundary)  # so that windows matter
    assert np.abs(elsewhere - want).max() > 1e-4
    levels, (rows, columns) = NETWORKS[name][1], run.model.local_field.halo
    assert run.halo == (rows + levels * 12, columns + levels * 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_windows_as_large_as_the_image_are_whole_image_inference(name):
    model = seeded(NETWORKS[name][0])
    got = restored(model, stats_size=200, boundary="native")[0]
    want = restored(model, global_stats="exact", boundary="native")[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_single_statistic_needs_its_field_and_half_a_window():
    model = seeded(lambda: chain(conv(3, 8), Pooling(8), conv(8, 3)))
    _, run = restored(model, stats_size=(20, 31))
    assert run.halo == (2 + 10, 2 + 16)
    assert "half a window of 20x31" in run.why


class Pooling(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool, self.mix = Pool(), conv(width, width, 1)

    def forward(self, x):
        return x * torch.sigmoid(8 * self.mix(self.pool(x)))


class Branches(nn.Module):
    """A statistic of one branch sets what the other one is multiplied by."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.pool = Chain(4), Chain(4), Pool()

    def forward(self, x):
        return self.other(x * self.pool(self.one(x)))


def test_a_statistic_of_another_branch_sees_farther():
    """4 pixels to the statistic, half a window, and 4 more: beyond the field and half a window."""
    model = seeded(Branches)
    got, run = restored(model, stats_size=12, boundary="native")
    assert run.halo == (8 + 6, 8 + 6)
    model.pool.size = (12, 12)
    want = reference.whole(IMAGE.transpose(2, 0, 1), on_arrays(model), boundary="native").transpose(1, 2, 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


HELD = [name for name, known in KNOWN.items() if known.globals and known.local and name != "conditioned"]


@pytest.mark.parametrize("name", HELD)
def test_tiles_agree_whatever_their_size(name):
    """Every kind of statistic; windows larger than the image give its own."""
    model = seeded(KNOWN[name].make)
    options = {"stats_size": 16, "boundary": "reflect" if KNOWN[name].trim else "native"}
    small, run = restored(model, **options, batch_size=2)
    assert run.how == "exact"
    large = restored(model, **options, tile_size=200)[0]
    np.testing.assert_allclose(small, large, rtol=0, atol=1e-5)
    exact = restored(model, **options | {"stats_size": None, "global_stats": "exact"}, tile_size=200)[0]
    assert np.abs(large - exact).max() > 1e-6


def test_the_same_on_the_device(fake_mps):
    for name in ("NAFNet", "Restormer", "HINet"):
        want = restored(seeded(NETWORKS[name][0]), stats_size=24)[0]
        got = restored(seeded(NETWORKS[name][0]).to("fakemps"), stats_size=24)[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("error:invalid value encountered in cast:RuntimeWarning")
def test_scripted_half_and_verified():
    make = NETWORKS["NAFNet"][0]
    want, full = restored(seeded(make), stats_size=24, verify=4)
    assert full.verified.seamless(1e-5)
    plain, run = restored(seeded(KNOWN["squeeze and excite"].make), stats_size=24)
    scripted = restored(torch.jit.script(seeded(KNOWN["squeeze and excite"].make)), stats_size=24)[0]
    np.testing.assert_allclose(scripted, plain, rtol=0, atol=1e-6)
    half, run = restored(seeded(make), stats_size=24, dtype="bfloat16")
    assert run.halo == full.halo
    np.testing.assert_allclose(half, want, rtol=0, atol=3e-2)


def test_the_size_may_be_the_models_own():
    model = seeded(NETWORKS["NAFNet"][0])
    want = restored(model, stats_size=(24, 13))[0]
    model.train_size = (1, 3, 24, 13)
    np.testing.assert_array_equal(restored(model)[0], want)
    model.stats_size = 24  # before what the model was trained on
    np.testing.assert_array_equal(restored(model)[0], restored(model, stats_size=24)[0])


def test_several_images_and_several_runs():
    model = seeded(NETWORKS["HINet"][0])
    images = np.stack([IMAGE, 1 - IMAGE])
    both = restored(model, images, stats_size=24)[0]
    for image, got in zip(images, both, strict=True):
        np.testing.assert_array_equal(got, restored(model, image, stats_size=24)[0])
    before = model(torch.zeros(1, 3, 32, 32))
    assert torch.equal(model(torch.zeros(1, 3, 32, 32)), before)  # nothing stays in the model


def test_auto_takes_less_where_exact_is_dear():
    model = seeded(lambda: chain(*(Residual(Pooling(3)) for _ in range(4)), conv(3, 3)))
    _, run = restored(model, halo="auto", stats_size=96)
    assert run.how in ("measured", "exact")
    assert max(run.halo) <= 4 * 48 + 1
    assert "reach" in run.why or "field" in run.why


def test_a_halo_below_the_reach_is_judged():
    model = seeded(NETWORKS["HINet"][0])
    with pytest.warns(halotile.SeamWarning, match="halo=8 is below the receptive field"):
        run = restored(model, stats_size=32, halo=8)[1]
    assert 0 < run.bound < 1


def test_curves_of_local_statistics_fall():
    curve = halotile.error_curve(
        IMAGE, seeded(NETWORKS["NAFNet"][0]), halos=(0, 48), global_stats="local", stats_size=24
    )
    assert curve.largest[1] < 1e-5 < curve.largest[0]


def test_inspection_advises_it():
    info = halotile.inspect_model(seeded(NETWORKS["HINet"][0]))
    assert info.takes_statistics
    assert "global_stats='local'" in str(info) and "global_stats='local'" in info._repr_html_().replace("&#x27;", "'")
    for make in (lambda: Chain(2), lambda: Looking(LOOKS["plain attention"][0])):
        info = halotile.inspect_model(seeded(make))
        assert not info.takes_statistics and "advice" not in str(info)


class InPlace(nn.Module):
    """Products of what was normalised and then changed in place, which is no longer what was divided."""

    def __init__(self):
        super().__init__()
        self.head, self.tail = conv(3, 8), conv(8, 3)

    def forward(self, x):
        b, c, h, w = (y := self.head(x)).shape
        q = F.normalize(y.flatten(2), dim=-1)
        q.mul_(3)
        return self.tail(((q @ q.transpose(1, 2)).softmax(-1) @ y.flatten(2)).reshape(b, c, h, w))


class OutOfPlace(InPlace):
    def forward(self, x):
        b, c, h, w = (y := self.head(x)).shape
        q = F.normalize(y.flatten(2), dim=-1) * 3
        return self.tail(((q @ q.transpose(1, 2)).softmax(-1) @ y.flatten(2)).reshape(b, c, h, w))


def test_what_is_changed_in_place_is_followed_no_longer():
    got, want = (restored(seeded(make), stats_size=24, boundary="native")[0] for make in (InPlace, OutOfPlace))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_exact_is_asserted_of_the_local_model():
    found = assert_exact(
        IMAGE, seeded(NETWORKS["HINet"][0]), global_stats="local", stats_size=24, halo="exact", tile_size=24
    )
    assert found.largest < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_the_command_line(tmp_path, capsys):
    from halotile.cli import main

    np.save(tmp_path / "in.npy", IMAGE)
    norm = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3)).eval()
    torch.jit.script(norm).save(tmp_path / "norm.pt")
    command = ["restore", str(tmp_path / "in.npy"), "-m", str(tmp_path / "norm.pt"), "-o", str(tmp_path / "out.npy")]
    command += ["--value-range", "-9", "10", "--tile", "24", "--halo", "exact", "--global-stats", "local", "--force"]
    assert main([*command, "--stats-size", "24x13"]) == 0
    assert "half a window of 24x13" in capsys.readouterr().out
    options = {"value_range": (-9, 10), "stats_size": (24, 13)}
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), restored(norm, **options)[0], rtol=0, atol=1e-5)
    assert main(command) == 2
    assert "stats_size must be given with --global-stats local" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--stats-size", "24x"])


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_options_that_do_not_fit():
    model = seeded(NETWORKS["NAFNet"][0])
    with pytest.raises(ValueError, match="stats_size must be given with global_stats='local'"):
        restored(model)
    with pytest.raises(ValueError, match="stats_size must be None unless global_stats is 'local', not"):
        restore_tiled(IMAGE, model, stats_size=24)
    with pytest.raises(ValueError, match="stats_size must be from 1"):
        restored(model, stats_size=0)
    with pytest.raises(ValueError, match="schedule must be 'auto' or 'tiles' with global_stats='local'"):
        restored(model, stats_size=24, schedule="stream")
    assert restored(seeded(lambda: Chain(2)), stats_size=24)[1].global_stats is None


class AsNumber(nn.Module):
    def forward(self, x):
        return x * x.mean((2, 3)).max().item()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (KNOWN["conditioned"].make, "uses a statistic of .* elements where"),
        (AsNumber, "as a number"),
        (lambda: Looking(LOOKS["plain attention"][0]), "attention"),
    ],
)
def test_what_cannot_be_local_says_why(make, why):
    with pytest.raises(ValueError, match=rf"global_stats must be .*not 'local': .*{why}"):
        restored(seeded(make), stats_size=24)
