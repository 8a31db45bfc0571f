# SPDX-License-Identifier: MIT
"""window=: windows of one size, that of training."""

from __future__ import annotations

import numpy as np
import pytest

import halotile
from halotile import TiledRestorer, plan_tiles, restore_tiled
from halotile.models.needs import Needs

IMAGE = np.random.default_rng(0).random((90, 130, 3)).astype(np.float32)


class Trained:
    """Takes windows of 48x48 only, as networks with learned positions do, and adds them."""

    img_size = 48

    def __init__(self):
        self.shapes = set()

    def __call__(self, windows):
        self.shapes.add(windows.shape[2:])
        if windows.shape[2:] != (48, 48):
            raise ValueError(f"positions of (48, 48) do not fit {windows.shape[2:]}")
        ramp = np.linspace(0, 0.1, 48, dtype=np.float32)
        return windows + ramp[:, None] + ramp


@pytest.mark.parametrize("window", ["trained", 48, (48, 48)])
def test_every_window_has_its_size(window):
    model = Trained()
    restorer = TiledRestorer(model, window=window)
    result = restorer(IMAGE)
    assert model.shapes == {(48, 48)} and np.abs(result - IMAGE - 0.1).max() < 0.08
    options, run = restorer.options, restorer.last_run
    assert (options.halo, options.overlap, options.blend, options.window) == ((6, 6), (6, 6), "cosine", (48, 48))
    assert run.how == "given" and "windows of 48, always of that size" in run.why and "not exact by nature" in str(run)
    assert restore_tiled(IMAGE[:20, :30], model, window=window).shape == (20, 30, 3) and model.shapes == {(48, 48)}


def test_blends_hide_what_cuts_show():
    """Without blending, the ramps' ends meet."""

    def jumps(**options):
        return np.abs(np.diff(restore_tiled(IMAGE * 0, Trained(), window="trained", **options), axis=1)).max()

    assert jumps() < 0.3 * jumps(overlap=0)
    assert jumps(shift_average=4) < 0.6 * jumps()


def test_what_is_given_is_kept():
    restorer = TiledRestorer(Trained(), window=48, halo=4, overlap=10, blend="linear", batch_size=3)
    restorer(IMAGE)
    assert (restorer.options.halo, restorer.options.overlap, restorer.options.blend) == ((4, 4), 10, "linear")
    assert restorer.last_run.halo == (4, 4)


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("train_size", (3, 40, 56), (40, 56)),
        ("training_size", 32, (32, 32)),
        ("img_size", [64, 48], (64, 48)),
        ("needs", Needs(window=(24, 32)), (24, 32)),
    ],
)
def test_who_names_the_size(name, size, found):
    def model(windows):
        assert windows.shape[2:] == found
        return windows

    setattr(model, name, size)
    np.testing.assert_allclose(restore_tiled(IMAGE, model, window="trained"), IMAGE, atol=1e-6)


def test_an_inner_module_may_name_it():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU()).eval()
    model[1].img_size = (40, 40)
    restorer = TiledRestorer(model, window="trained")
    restorer(IMAGE)
    assert restorer.options.window == (40, 40)


def test_the_phase_of_the_model_is_kept():
    """Without a phase, that of the operators is found before the halo is chosen."""
    torch = pytest.importorskip("torch")
    from .networks import Strided, seeded

    restorer = TiledRestorer(seeded(lambda: Strided(8)), window=96)
    restorer(IMAGE)
    assert restorer.last_run.phase == (8, 8) and restorer.options.halo == (8, 8)
    with torch.inference_mode():
        assert plan_tiles(IMAGE.shape, window=96, phase=8).window == (96, 96)


def test_statistics_of_a_fixed_file_are_of_its_size():
    torch = pytest.importorskip("torch")

    class Pools(torch.nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    model = Pools()
    model.train_size = 24
    restorer = TiledRestorer(model, global_stats="local", halo="exact")
    restorer(IMAGE)
    same = restore_tiled(IMAGE, model, global_stats="local", halo="exact", stats_size=24)
    np.testing.assert_allclose(restorer(IMAGE), same, atol=1e-6)


def test_plans_have_the_same_windows():
    plan = plan_tiles(IMAGE.shape, window=(48, 64))
    assert plan.window == (48, 64) and plan.halo == (6, 8) and plan.blend == "cosine"
    wide = plan_tiles(IMAGE.shape, window=64, phase=32)
    assert wide.window == (64, 64) and wide.halo == (0, 0)
    assert plan_tiles(IMAGE.shape, window=64, phase=16).halo == (16, 16)


def test_files_keep_it(tmp_path):
    restorer = TiledRestorer(Trained(), window="trained")
    np.save(tmp_path / "a.npy", IMAGE)
    run = halotile.restore_to(tmp_path / "b.npy", tmp_path / "a.npy", restorer)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), restorer(IMAGE))
    assert "not exact by nature" in run.why


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"window": "trained"}, ValueError, "not 'trained': no attribute of it tells the size"),
        ({"window": "large"}, ValueError, "window must be 'trained', a number or a pair"),
        ({"window": 0}, ValueError, "window must be from 1 to"),
        ({"window": (1, 2, 3)}, ValueError, "window must be a number or a pair"),
        ({"window": 1.5}, TypeError, "window must be a whole number"),
        ({"window": 16, "halo": 8}, ValueError, "halo must be at most 7"),
        ({"window": 20, "phase": 8}, ValueError, "phase must divide 20"),
        ({"window": 32, "verify": 2}, ValueError, "verify must be 0 for this model"),
        ({"window": 32, "schedule": "stream"}, ValueError, "with window=32, which is of tiles"),
    ],
)
def test_what_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        restore_tiled(IMAGE, lambda x: x, **options)


def test_a_plan_asks_no_model():
    with pytest.raises(ValueError, match="no model is asked"):
        plan_tiles(IMAGE.shape, window="trained")
