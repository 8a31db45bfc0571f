# SPDX-License-Identifier: MIT
"""Scale and trim: found whatever the windows' size, never guessed from one of them."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile import ModelOutputError, TiledRestorer, TileError, restore_tiled  # noqa: E402

from . import reference  # noqa: E402
from .networks import on_arrays, seeded  # noqa: E402


class Valid(nn.Module):
    """Enlarges by `scale` and loses `trim` output pixels at each end, `rows` and columns alike, by cropping."""

    def __init__(self, scale, trim):
        super().__init__()
        self.mix, self.scale, self.trim = nn.Conv2d(3, 3, 1), scale, trim

    def forward(self, x):
        y = F.interpolate(self.mix(x), scale_factor=self.scale)
        if min(y.shape[2:]) <= 2 * self.trim:
            raise RuntimeError("the window is too small")
        return y[:, :, self.trim : y.shape[2] - self.trim, self.trim : y.shape[3] - self.trim]


class Convolved(nn.Module):
    """The same by convolutions without padding."""

    def __init__(self, scale, depth):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(depth)))
        self.out, self.scale, self.trim = nn.Conv2d(3, 3 * scale**2, 1), scale, depth * scale

    def forward(self, x):
        return F.pixel_shuffle(self.out(self.layers(x)), self.scale)


def image_of(height, width):
    return np.random.default_rng(height * 100 + width).random((height, width, 3), np.float32)


def check(model, image, call, halo, **options):
    """The result equals the whole image's, or is refused since the halo is smaller than what the model takes."""
    scale, trim = model.scale, model.trim
    if -(-trim // scale) > halo:  # or, where the window is not even as large as that, the model refuses it
        with pytest.raises((TileError, ValueError), match=r"halo must be at least|the window is too small"):
            restore_tiled(image, call, halo=halo, **options)
        return
    got = restore_tiled(image, call, halo=halo, **options)
    want = reference.whole(image.transpose(2, 0, 1), on_arrays(model), halo=halo, scale=scale, trim=trim)
    np.testing.assert_allclose(got, want.transpose(1, 2, 0), rtol=0, atol=2e-6)


WAYS = {
    "module": lambda model: model,
    "wrapped": lambda model: lambda x: model(x) * 1,
    "arrays": lambda model: lambda x: on_arrays(model)(np.asarray(x)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_every_loss_at_every_size(scale, way):
    """Where scale * window - 2 * trim happens to be a multiple of the window, one window alone would tell another
    scale: images, tiles and halos of all sizes meet such cases."""
    random = np.random.default_rng(scale)
    for number, trim in enumerate((*range(1, 12), 16, 18, 20, 24, 28, 32, 36, 40)):
        model = seeded(lambda trim=trim: Valid(scale, trim))
        call = WAYS[way](model)
        for size in ((1, 1), (8, 8), tuple(random.integers(1, 61, 2)), (60, 47)):
            check(model, image_of(*size), call, int(random.choice([4, 10, 16, 32])))
        tile = int(random.choice([8, 24, 40]))
        check(model, image_of(56, 60), call, [16, 32, 40][number % 3], tile_size=tile, overlap=0)


@pytest.mark.parametrize(("scale", "window"), [(s, w) for s in (2, 3, 4) for w in (24, 36, 48, 72)])
def test_every_coincidence(scale, window):
    """Outputs of once, twice, ... the window."""
    for factor in range(1, scale):
        trim, rest = divmod((scale - factor) * window, 2)
        halo = -(-trim // scale)
        if rest or 2 * halo >= window:
            continue
        model = seeded(lambda trim=trim: Valid(scale, trim))
        image = image_of(window - 2 * halo, window - 2 * halo)
        for way, given in itertools.product(WAYS, (None, scale)):
            check(model, image, WAYS[way](model), halo, scale=given)


def test_a_wrong_scale_that_is_given_is_refused():
    for scale, wrong in itertools.permutations((1, 2, 3, 4), 2):
        model = seeded(lambda scale=scale: Valid(scale, 12))
        for image in (image_of(8, 8), image_of(40, 40)):
            with pytest.raises((ModelOutputError, ValueError), match="scale"):
                restore_tiled(image, lambda x, model=model: model(x) * 1, scale=wrong, halo=16)


@pytest.mark.parametrize("way", WAYS)
def test_much_is_taken(way):
    """As HoVer-Net, whose windows of 270 pixels become 80."""
    model = seeded(lambda: Valid(1, 95))
    for size in ((80, 80), (33, 150)):
        check(model, image_of(*size), WAYS[way](model), 95, tile_size=80, overlap=0)


def test_convolutions_and_icons():
    model = seeded(lambda: Convolved(2, 18))
    for size in ((8, 8), (4, 4), (1, 50), (200, 160)):
        check(model, image_of(*size), model, 32)
        check(model, image_of(*size), model, 18, tile_size=40, overlap=0)
    restorer = TiledRestorer(model, halo="exact", phase=None)
    assert restorer(image_of(36, 36)).shape == (72, 72, 3)
    assert restorer.last_run.how == "exact" and restorer.last_run.halo == (18, 18)


@pytest.mark.parametrize("trim", [0, 2, 4, 6])
def test_fractions_with_a_loss(trim):
    """Down by two, by a strided convolution, and then without padding."""

    class Reduced(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 3, 2, 2)

        def forward(self, x):
            y = self.down(x)
            return y[:, :, trim : y.shape[2] - trim, trim : y.shape[3] - trim]

    model = seeded(Reduced)
    for call, phase in itertools.product((model, lambda x: model(x) * 1), (2, None)):
        got = restore_tiled(image_of(60, 44), call, halo=16, phase=phase)
        want = reference.whole(
            image_of(60, 44).transpose(2, 0, 1), on_arrays(model), halo=16, phase=2, scale="1/2", trim=trim
        )
        np.testing.assert_allclose(got, want.transpose(1, 2, 0), rtol=0, atol=2e-6)


class Fractional(Valid):
    """Of 3/2 and 1/2 as well, which leave something over of odd sides."""

    def forward(self, x):
        y = F.avg_pool2d(F.interpolate(self.mix(x), scale_factor=2 * self.scale), 2)
        if min(y.shape[2:]) <= 2 * self.trim:
            raise RuntimeError("the window is too small")
        return y[:, :, self.trim : y.shape[2] - self.trim, self.trim : y.shape[3] - self.trim]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_fractions_with_every_loss(scale, way):
    """What is learned of a first batch, in windows that know nothing of the phase of 2, is not what they are from."""
    random = np.random.default_rng(int(2 * scale))
    for trim in (0, 1, 2, 3, 5, 8, 13, 21, 40, 100):
        model = seeded(lambda trim=trim: Fractional(scale, trim))
        halo = 2 * -(-trim // int(2 * scale))
        for batch, phase in ((1, None), (3, None), (3, 2)):
            image = image_of(*random.integers(2, 61, 2))
            options = {"tile_size": int(random.integers(12, 60)), "overlap": int(random.integers(0, 6))}
            got = restore_tiled(image, WAYS[way](model), halo=halo, phase=phase, batch_size=batch, **options)
            want = reference.whole(
                image.transpose(2, 0, 1), on_arrays(model), halo=halo, phase=2, scale=str(scale), trim=trim
            )
            np.testing.assert_allclose(got, want.transpose(1, 2, 0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_fractions_that_nearly_fit(lost):
    """22/15 of 40, 56, 60 and 88 pixels is 3/2 of them less 2, to within the rounding."""
    model = seeded(lambda: Fractional(1.5, lost))
    for side, halo in itertools.product((16, 17, 21, 28, 36, 60), (2, 4, 12)):
        image = image_of(side, side + 3)
        got = restore_tiled(image, lambda x: model(x) * 1, halo=halo, tile_size=16, overlap=1)
        want = reference.whole(image.transpose(2, 0, 1), on_arrays(model), halo=halo, phase=2, scale="3/2", trim=lost)
        np.testing.assert_allclose(got, want.transpose(1, 2, 0), rtol=0, atol=2e-6)


def test_what_is_too_small_is_called_so():
    """Neither a phase nor another layout would help."""
    for module in (Convolved(2, 18), nn.MaxPool2d(16), nn.Sequential(nn.ReflectionPad2d(20), nn.Conv2d(3, 3, 3))):
        for call in (module, lambda x, module=module: module(x) * 1):
            with pytest.raises(TileError, match=r"too small for it: a larger halo makes them larger$"):
                restore_tiled(image_of(8, 8), call, halo=0, phase=1)


def test_models_of_one_size_only():
    """Nothing tells but the window itself; a scale that is given does."""

    def fixed(x):
        if x.shape[2:] != (64, 64):
            raise RuntimeError("64x64 only")
        return x * 1

    image = image_of(32, 32)
    np.testing.assert_array_equal(restore_tiled(image, fixed, halo=16), image)

    def lossy(x):
        return fixed(x)[:, :, 5:-5, 5:-5]

    with pytest.raises(TileError, match="pass scale="):
        restore_tiled(image, lossy, halo=16, phase=1)
    np.testing.assert_array_equal(restore_tiled(image, lossy, halo=16, scale=1), image)


def test_what_completes_small_windows_inside():
    """Its small windows contradict the larger ones, which decide."""

    def model(x):
        short = [max(0, 40 - side) for side in x.shape[2:]]
        return F.interpolate(F.pad(x, (0, short[1], 0, short[0])), scale_factor=2)

    image = image_of(60, 70)
    got = restore_tiled(torch.from_numpy(image.transpose(2, 0, 1).copy()), model, halo=16)
    assert got.shape == (3, 120, 140)


def test_one_small_window_is_all_that_it_costs():
    shapes = []

    def model(x):
        shapes.append(x.shape[2:])
        return x * 1

    restorer = TiledRestorer(model)
    restorer(image_of(400, 300))
    assert len(shapes) == 2 and max(shapes[1]) < 48
    restorer(image_of(300, 200))
    assert len(shapes) == 3


def test_modules_whose_operators_tell_cost_none():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 12, 3, padding=1), []

        def forward(self, x):
            self.seen.append(tuple(x.shape[2:]))
            return F.pixel_shuffle(self.conv(x), 2)

    for options in ({}, {"phase": 1}, {"phase": 4}):
        model = seeded(Counting)
        restore_tiled(image_of(100, 90), model, **options)
        assert len(model.seen) == 1
