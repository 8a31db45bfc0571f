# SPDX-License-Identifier: MIT
"""match_low=: the colours of tiles are those of one pass over the reduced image."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, TileError, load_model, restore_tiled, restore_to  # noqa: E402
from halotile.testing import assert_exact  # noqa: E402

from .networks import Chain, seeded  # noqa: E402

rng = np.random.default_rng(0)
SIZE = (150, 210)
RAMP = np.linspace(0, 0.7, SIZE[1])[None, :, None] * np.linspace(0.3, 1, 3)
IMAGE = np.clip(rng.random((*SIZE, 3)) * 0.3 + RAMP, 0, 1).astype(np.float32)
TILES = {"tile_size": 64, "halo": 8, "phase": 1}


class Shifts(torch.nn.Module):
    """Shifts the colours of its whole input by their mean, as networks with learned colour corrections do."""

    def __init__(self, scale=1, strength=0.2, valid=0):
        super().__init__()
        self.scale, self.strength, self.valid = scale, strength, valid

    def forward(self, x):
        mean = x.mean((2, 3), keepdim=True)
        y = x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3) + self.strength * (mean - 0.5)
        cut = self.valid
        return y[:, :, cut : y.shape[2] - cut, cut : y.shape[3] - cut] if cut else y


def whole(model, image):
    with torch.inference_mode():
        return model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def apart(result, want):
    return np.abs(result - want).max()


def drift(result, want):
    """How much the colours of places differ: a shift of all is none."""
    return np.ptp(result - want, (0, 1)).max()


def test_a_model_that_shifts_colours_does_it_alike_everywhere():
    """Without a halo, the reduced image has exactly the mean of the whole one."""
    model, options = Shifts(), {**TILES, "halo": 0}
    want = whole(model, IMAGE)
    drifting = apart(restore_tiled(IMAGE, model, **options), want)
    restorer = TiledRestorer(model, **options, match_low=75)  # 150 = 2 * 75 and 210 = 3 * 70: factor 3
    tied = restorer(IMAGE)
    assert drifting > 0.04 and apart(tied, want) < 1e-5
    assert "the image reduced by 3" in restorer.last_run.why and restorer.last_run.how == "given"


@pytest.mark.parametrize(
    "options",
    [
        {"match_low": "auto"},
        {"match_low": 40},
        {"match_low": 75, "boundary": "native"},
        {"match_low": 75, "boundary": "wrap"},
        {"match_low": 75, "engine": "torch"},
        {"match_low": 75, "tile_size": (30, 90), "overlap": 8},
        {"match_low": 75, "batch_size": 4},
        {"match_low": 75, "shift_average": 2},
        {"match_low": 75, "phase": 8},
        {"match_low": 1000},
    ],
)
def test_tiles_stay_together(options):
    """The reduced image has a halo, so that its mean is nearly that of the image, and one for all tiles."""
    model = Shifts()
    want = whole(model, IMAGE)
    assert drift(restore_tiled(IMAGE, model, **TILES), want) > 0.08
    tied = restore_tiled(IMAGE, model, **{**TILES, **options})
    assert drift(tied, want) < 1e-5 and apart(tied, want) < 0.01


@pytest.mark.parametrize(("scale", "valid"), [(2, 0), (3, 0), (1, 3), (2, 4)])
def test_scales_and_trims(scale, valid):
    model = Shifts(scale, valid=valid)
    want = whole(Shifts(scale), IMAGE)
    result = restore_tiled(IMAGE, model, **TILES, match_low=75)
    assert result.shape == want.shape
    assert drift(restore_tiled(IMAGE, model, **TILES), want) > 0.08 and drift(result, want) < 1e-5


def test_detail_is_the_tiles_own():
    """The reduced pass of a model that blurs loses detail, which tiles do not take from it."""
    model = seeded(lambda: Chain(2))
    exact = restore_tiled(IMAGE, model, halo=16, tile_size=64)
    tied = restore_tiled(IMAGE, model, halo=16, tile_size=64, match_low=75)
    fine = [np.diff(one, axis=1) for one in (exact, tied)]
    assert 0 < np.abs(fine[1] - fine[0]).max() < 0.03 * np.abs(fine[0]).max()
    run = TiledRestorer(model, halo="exact", tile_size=64, match_low=40)
    run(IMAGE)
    assert run.last_run.how == "given" and run.last_run.bound is None


def test_colours_that_drift_within_a_tile():
    """A drift that changes over a few cells is followed, too."""

    class Tints(torch.nn.Module):
        def forward(self, x):
            local = torch.nn.functional.avg_pool2d(x, 33, 1, 16, count_include_pad=False)
            return x + 0.3 * (local.mean((2, 3), keepdim=True) - 0.5) + 0.1 * (local - 0.5)

    model = Tints()
    loose, tied = (restore_tiled(IMAGE, model, **TILES, match_low=one) for one in (None, 75))

    def seams(result):
        """Differences of neighbouring columns, in the mean over rows, beside those of the image."""
        return np.abs((np.diff(result, axis=1) - np.diff(IMAGE, axis=1)).mean(0)).max()

    assert seams(tied) < seams(loose) / 3


def test_files_and_several_images(tmp_path):
    images = np.stack([IMAGE, 1 - IMAGE])
    model = Shifts()
    result = restore_tiled(images, model, **TILES, match_low=75, batch_size=8)
    for got, image in zip(result, images, strict=True):
        assert drift(got, whole(model, image)) < 1e-5
    np.save(tmp_path / "a.npy", IMAGE)
    restore_to(tmp_path / "b.npy", tmp_path / "a.npy", model, **TILES, match_low=75)
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), result[0], atol=1e-6)


def test_alpha_and_integers():
    alpha = np.broadcast_to(np.linspace(0.2, 1, SIZE[1])[None, :, None], (*SIZE, 1))
    image = (np.concatenate([IMAGE, alpha], 2) * 255).astype(np.uint8)
    result = restore_tiled(image, Shifts(), **TILES, match_low=75)
    want = whole(Shifts(), image[..., :3].astype(np.float32) / 255)
    inside = (want > 0.02) & (want < 0.98)
    assert np.ptp((result[..., :3] - want * 255)[inside]) <= 3 * 1.02
    want = np.clip(image[..., 3] + 0.2 * (image[..., 3].mean() - 127.5), 0, 255)
    np.testing.assert_allclose(result[..., 3], want, atol=2)


def test_half_precision_and_arrays():
    want = whole(Shifts(), IMAGE)
    for dtype in ("float16", "bfloat16"):
        rough = restore_tiled(IMAGE, Shifts(), **TILES, match_low=75, dtype=dtype)
        assert drift(rough, want) < (0.004 if dtype == "float16" else 0.03)
    result = restore_tiled(IMAGE, lambda x: x + 0.2 * (x.mean((2, 3), keepdims=True) - 0.5), **TILES, match_low=75)
    assert drift(result, want) < 1e-5


def test_the_emulated_device_agrees(fake_mps):
    from .fake_mps.attach import DEVICE

    options = {**TILES, "match_low": 75, "memory_format": "contiguous"}
    on_host = restore_tiled(IMAGE, Shifts(), **options)
    np.testing.assert_allclose(restore_tiled(IMAGE, Shifts(), **options, device=DEVICE), on_host, atol=1e-5)


def test_windows_that_are_made_again_are_tied_as_well():
    restorer = TiledRestorer(Shifts(), **TILES, match_low=75, verify=6)
    images = np.stack([IMAGE, 1 - IMAGE])
    restorer(images)
    assert restorer.last_run.verified.largest < 1e-5
    with pytest.raises(AssertionError, match="tiles do not equal whole-image inference"):
        assert_exact(IMAGE, seeded(lambda: Chain(2)), halo="exact", tile_size=64, match_low=40)


def test_the_second_image_is_reported_like_the_first():
    restorer = TiledRestorer(Shifts(), **TILES, match_low=75)
    first = (restorer(IMAGE), restorer.last_run)[1]
    second = (restorer(IMAGE), restorer.last_run)[1]
    assert first.why == second.why


def test_the_included_model_keeps_its_picture():
    model = load_model()
    plain = restore_tiled(IMAGE, model, tile_size=64, halo="exact")
    tied = restore_tiled(IMAGE, model, tile_size=64, halo="exact", match_low="auto")
    assert 0 < np.abs(plain - tied).mean() < 0.01


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"match_low": 0}, ValueError, "match_low must be from 1 to"),
        ({"match_low": "low"}, TypeError, "match_low must be a whole number, not 'low'"),
        ({"match_low": 4}, ValueError, "match_low must be at least about 6 for an image"),
        ({"match_low": 7, "phase": 8}, ValueError, "match_low must be at least 8 for this model, not 7"),
        ({"match_low": 64, "schedule": "stream"}, ValueError, "with match_low=64, which is of tiles"),
    ],
)
def test_what_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        restore_tiled(IMAGE, Shifts(), **{**TILES, **options})


def test_a_failure_of_the_reduced_pass_is_told():
    def model(x):
        if x.shape[2] == 50 + 2 * 8:  # the reduced image's rows, and its halo
            raise RuntimeError("odd")
        return x

    with pytest.raises(TileError, match="odd"):
        restore_tiled(IMAGE, model, **TILES, match_low=75)
