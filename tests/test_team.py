# SPDX-License-Identifier: MIT
"""device=[...]: batches shared out over several devices. Two emulated ones, and the CPU twice."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import (  # noqa: E402
    RangeWarning,
    TiledRestorer,
    TileError,
    TileSizeWarning,
    fragile,
    iter_bands,
    restore_tiled,
    restore_to,
)

from .architectures import KNOWN  # noqa: E402
from .networks import Chain, Strided, seeded  # noqa: E402

TILES = {"tile_size": 24, "halo": 4, "overlap": 6, "engine": "torch", "memory_format": "contiguous"}
TWO = ["fakemps:0", "fakemps:1"]
CPUS = ["cpu", "cpu"]


@pytest.fixture
def gpus(fake_mps, monkeypatch):
    """Two devices as CUDA's are, which several threads may use."""
    monkeypatch.setattr(fragile, "FRAGILE", fragile.FRAGILE - {"fakemps"})
    fake_mps.set_threads(True)
    return fake_mps


class Where(torch.nn.Module):
    """Notes on which device and in which thread it runs."""

    def __init__(self, inner, log):
        super().__init__()
        self.inner, self.log = inner, log

    def __deepcopy__(self, memo):
        import copy

        return Where(copy.deepcopy(self.inner, memo), self.log)

    def forward(self, x):
        self.log.append((str(x.device), threading.get_ident(), len(x)))
        return self.inner(x)


def picture(rng, shape=(97, 131, 3), dtype=np.uint8):
    return rng.integers(0, 256, shape).astype(dtype)


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"blend": "gaussian"}, {"boundary": "native"}])
@pytest.mark.parametrize("make", [Chain, lambda: Chain(2, scale=2), Strided], ids=["plain", "x2", "strided"])
def test_the_bits_are_those_of_one_device(gpus, rng, make, options):
    image, log = picture(rng), []
    model = Where(seeded(make), log)
    options = TILES | options | {"phase": 4, "scale": model.inner.scale}  # given, so that all that is seen are tiles
    want = restore_tiled(image, model, device=TWO[0], **options)
    alone = len(log)
    log.clear()
    np.testing.assert_array_equal(restore_tiled(image, model, device=TWO, **options), want)
    devices = [device for device, _, _ in log]
    assert len(log) == alone and min(map(devices.count, TWO)) >= alone // 4
    assert len({thread for device, thread, _ in log if device == TWO[1]}) == 1  # one at a time on each
    assert len({size for _, _, size in log}) == 1


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_parts_of_an_image(gpus, rng, channels):
    """Grey, and alpha channels that are restored on their own."""
    image, model = picture(rng, (61, 83, channels)), seeded(Chain)
    want = restore_tiled(image, model, device=TWO[0], **TILES)
    np.testing.assert_array_equal(restore_tiled(image, model, device=TWO, **TILES), want)
    want = restore_tiled(image, model, device=TWO[0], alpha="resize", **TILES)
    np.testing.assert_array_equal(restore_tiled(image, model, device=TWO, alpha="resize", **TILES), want)


@pytest.mark.parametrize("devices", [CPUS, ["cpu", "fakemps:1"], ["fakemps:1", "cpu"], ["cpu"] * 5])
def test_all_kinds_of_devices(gpus, rng, devices):
    image, model, options = picture(rng), seeded(Chain), TILES | {"engine": None if devices[0] == "cpu" else "torch"}
    want = restore_tiled(image, model, **options)
    got = restore_tiled(image, model, device=devices, **options)
    np.testing.assert_allclose(got.astype(int), want, atol=1)


def test_several_images_bands_tensors_and_files(gpus, rng, tmp_path):
    images, model = picture(rng, (3, 45, 70, 3)), seeded(lambda: Chain(2, scale=2))
    want = restore_tiled(images, model, device=TWO[0], **TILES)
    restorer = TiledRestorer(model, device=TWO, **TILES)
    for _ in range(2):
        np.testing.assert_array_equal(restorer(images), want)
    bands = [rows for _, rows in iter_bands(images[0], model, device=TWO, **TILES)]
    np.testing.assert_array_equal(np.concatenate(bands), want[0])
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(TWO[1])
    got = restore_tiled(tensor, model, device=TWO, **TILES)
    assert str(got.device) == TWO[1]
    np.testing.assert_array_equal(got.cpu().numpy().transpose(0, 2, 3, 1), want)
    restore_to(tmp_path / "out.npy", images[0], model, device=TWO, **TILES)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want[0])


def test_fragile_devices_take_turns(rng, fake_mps):
    """As Apple GPUs must: one thread at a time, whichever device it is for."""
    image, model = picture(rng), seeded(Chain)
    want = restore_tiled(image, model, device=TWO[0], **TILES)
    fake_mps.set_busy(50)
    np.testing.assert_array_equal(restore_tiled(image, model, device=TWO, **TILES), want)
    assert fake_mps.violations() == []


def test_both_are_at_work_at_once(gpus, rng):
    """Two windows that wait for each other."""
    meeting, met = threading.Barrier(2), []

    class Meets(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                met.append(meeting.wait(20))
            return x * self.gain

    image = picture(rng, (24 * 5, 24 * 3, 3))  # the first of 15 is run while the model is learnt
    got = restore_tiled(image, Meets(), device=TWO, **TILES | {"overlap": 0, "halo": 0, "scale": 1})
    assert len(met) == 14 and np.array_equal(got, image)


def test_an_identity_may_return_its_windows(gpus, rng):
    """They are not overwritten before they were added up."""
    image = picture(rng)
    model = torch.nn.Identity()
    for devices in (TWO, CPUS):
        np.testing.assert_array_equal(restore_tiled(image, model, device=devices, **TILES), image)


class Fails(torch.nn.Module):
    def __init__(self, error, at):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.error, self.at, self.calls = error, at, []

    def __deepcopy__(self, memo):
        other = Fails(self.error, self.at)
        other.calls = self.calls
        return other

    def forward(self, x):
        self.calls.append(x.shape[2])
        if len(self.calls) == self.at:
            raise self.error
        return x * self.gain


@pytest.mark.parametrize("devices", [TWO, CPUS])
def test_failures_name_the_tile_and_end_the_work(gpus, rng, devices):
    before = threading.active_count()
    model = Fails(ValueError("no"), 9)
    with pytest.raises(TileError, match="no") as caught:
        restore_tiled(picture(rng), model, device=devices, scale=1, phase=1, **TILES)
    assert 0 <= caught.value.rows_done < 97  # a device may be slow in the first row
    assert threading.active_count() == before and len(model.calls) <= 9 + 4


@pytest.mark.parametrize("devices", [TWO, CPUS])
def test_out_of_memory_goes_on_smaller(gpus, rng, devices):
    image, model = picture(rng), Fails(MemoryError(), 9)
    with pytest.warns(TileSizeWarning, match="out of memory"):
        got = restore_tiled(image, model, device=devices, **TILES)
    np.testing.assert_array_equal(got, image)
    assert len(set(model.calls)) == 2


def test_a_band_that_is_left_alone_ends_the_work(gpus, rng):
    before = threading.active_count()
    bands = iter_bands(picture(rng), seeded(Chain), device=TWO, **TILES)
    next(bands)
    bands.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("devices", "text"),
    [([], "device"), (["cpu", None], "device"), (["cpu", "nowhere"], "nowhere"), (["cpu", "meta"], "meta")],
)
def test_bad_devices(rng, devices, text):
    with pytest.raises(ValueError, match=text):
        restore_tiled(picture(rng), Fails(AssertionError("it ran"), 1), device=devices, **TILES)


def test_statistics_are_held_on_one_device(rng):
    image, model = picture(rng), seeded(KNOWN["many statistics"].make)
    with pytest.raises(ValueError, match="device must be one with global_stats='exact'"):
        restore_tiled(image, model, device=CPUS, halo=8, global_stats="exact", tile_size=48)


def test_it_finds_out_and_verifies(gpus, rng):
    image, model = picture(rng), seeded(lambda: Chain(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RangeWarning)  # of a network with random weights
        restorer = TiledRestorer(model, device=CPUS, halo="exact", phase=None, tile_size="auto", verify=3)
        got = restorer(image)
    assert restorer.last_run.how == "exact" and restorer.last_run.verified.largest <= 1
    np.testing.assert_allclose(got.astype(int), restore_tiled(image, model, halo=3, tile_size=512), atol=1)


def test_one_in_a_list_is_one(rng):
    image, model = picture(rng), seeded(Chain)
    want = restore_tiled(image, model, tile_size=24, halo=4)
    np.testing.assert_array_equal(restore_tiled(image, model, tile_size=24, halo=4, device=["cpu"]), want)
