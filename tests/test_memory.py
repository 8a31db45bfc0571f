# SPDX-License-Identifier: MIT
"""Tile sizes by free memory, and going on with smaller tiles where it runs out."""

import contextlib
import copy
import gc
import itertools
import traceback
import types
import warnings
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import (  # noqa: E402
    NonFiniteError,
    OutOfMemoryError,
    TiledRestorer,
    TileSizeWarning,
    iter_bands,
    restore_tiled,
)
from halotile.auto.memory import (  # noqa: E402
    auto_tile_size,
    tile_size_for,
    tiles_by_free_memory,
)
from halotile.auto.prepare import open_run  # noqa: E402
from halotile.images.image import open_image  # noqa: E402
from halotile.memory import is_out_of_memory, plannable_bytes  # noqa: E402
from halotile.models import activations  # noqa: E402
from halotile.models.activations import largest_activation  # noqa: E402
from halotile.models.kinds import open_model  # noqa: E402
from halotile.run import tiles  # noqa: E402

from .networks import Chain, seeded  # noqa: E402

MPS_TEXT = (
    "MPS backend out of memory (MPS allocated: 8.88 GB, other allocations: 384.00 KB, max allowed: 9.07 GB). Tried to "
    "allocate 1.25 GB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
    "allocations (may cause system failure)."
)
IMAGE = np.random.default_rng(0).integers(0, 256, (300, 211, 3), np.uint8)

# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "tile"), [(8, 512), (16, 512), (24, 1024), (32, 1024), (64, 2048), (96, 2048), (192, 2048)]
)
def test_the_table(machine, tile):
    """By what Apple's driver recommends on a machine of so many GB."""
    recommended = machine * (2 / 3 if machine <= 36 else 3 / 4)
    assert tile_size_for(int(recommended * 2**30)) == tile
    assert tile_size_for(int(recommended * 2**30 * 1.001)) >= tile


def test_between_and_below_its_entries_the_table_grows_steadily():
    sizes = [tile_size_for(mib << 20) for mib in range(0, 70_000, 37)]
    assert all(a <= b for a, b in itertools.pairwise(sizes))
    assert sizes[0] == 32
    assert not [size for size in sizes if size % 32]
    assert 512 < tile_size_for(13 << 30) < 1024 < tile_size_for(40 << 30) < 2048
    assert 128 <= tile_size_for(1 << 30) < 256


def test_what_the_driver_holds_is_not_free(fake_mps):
    where = torch.device("fakemps")
    fake_mps.set_recommended_max_memory(48 << 30)
    assert auto_tile_size(where) in (2016, 2048)  # a little is held already
    held = torch.empty((1 << 30), dtype=torch.uint8, device=where)
    assert auto_tile_size(where) < 2016
    del held
    assert auto_tile_size(torch.device("cpu")) == 512
    assert auto_tile_size(None) == 512


def held_by_the_driver(monkeypatch, gibibytes):
    monkeypatch.setattr(torch.fakemps, "driver_allocated_memory", lambda: int(gibibytes * 2**30))


@pytest.mark.parametrize(
    ("recommended", "held", "tile"),
    [
        (36, 40, 384),  # 40 GB of other allocations at idle: an absurd number, but no absurd tile
        (36, 0, 1568),
        (36, 14, 1024),
        (36, 27, 384),  # within the quarter that is left to others: as if all were held
        (5 + 1 / 3, 0, 512),
        (5 + 1 / 3, 100, 128),
        (1, 0.9, 128),
        (1000, 0, 2048),
    ],
)
def test_tiles_are_never_absurd(fake_mps, monkeypatch, recommended, held, tile):
    fake_mps.set_recommended_max_memory(int(recommended * 2**30))
    held_by_the_driver(monkeypatch, held)
    where = torch.device("fakemps")
    assert auto_tile_size(where) == tile
    room, share = plannable_bytes(where)
    assert share == 3 / 4 and room == max(int((recommended * 3 / 4 - held) * 2**30), int(recommended * 2**30) // 16)
    assert auto_tile_size(where, 1 << 20) < 128  # a limit that is asked for has no floor


def test_a_run_at_idle_with_everything_held_by_others(fake_mps, monkeypatch):
    fake_mps.set_recommended_max_memory(36 << 30)
    held_by_the_driver(monkeypatch, 40)
    model = copy.deepcopy(seeded(lambda: Chain(1))).to("fakemps")
    restorer = TiledRestorer(model, tile_size="auto", halo=1)
    image = np.zeros((700, 90, 3), np.uint8)
    np.testing.assert_array_equal(restorer(image), restore_tiled(image, seeded(lambda: Chain(1)), halo=1))
    assert restorer.last_run.tuning.tile_size == (358, 90)


def test_activations_leave_a_quarter_of_the_memory(fake_mps, monkeypatch):
    """Two of the largest fit into what may be planned with: 1 GiB of tiles would be 600, but the layer is wide."""
    fake_mps.set_recommended_max_memory(4 << 30)
    held_by_the_driver(monkeypatch, 2.75)
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 2000, 1), torch.nn.Conv2d(2000, 3, 1)).to("fakemps")
    opened = open_run(
        open_image(np.zeros((900, 900, 3), np.uint8), None), TiledRestorer(wide, halo=0, tile_size="auto").knowledge
    )
    shape = tiles_by_free_memory(opened).batch_shape
    largest = largest_activation(opened.windows.model, shape)
    room, _ = plannable_bytes(torch.device("fakemps"))
    assert room == 1 << 28 and room // 16 < largest < room // 2


def windows_seen(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[2:])))
    return seen


def test_auto_tiles_on_a_device(fake_mps):
    model = copy.deepcopy(seeded(lambda: Chain(1))).to("fakemps")
    seen = windows_seen(model)
    image = np.zeros((700, 90, 3), np.uint8)
    fake_mps.set_recommended_max_memory(1 << 30)
    restorer = TiledRestorer(model, tile_size="auto", halo=1)
    restorer(image)
    tile = tile_size_for(1 << 30)
    assert max(seen[0]) - 2 <= tile
    assert max(seen[0]) - 2 > tile // 2
    assert len(set(seen)) == 1
    tuning = restorer.last_run.tuning
    assert tuning.tile_size == tuple(side - 2 for side in seen[0]) and tuning.batch_size == 1
    assert tuning.why == f"the device's free memory allows tiles of {tile}x{tile}"
    restore_tiled(image, seeded(lambda: Chain(1)), tile_size="auto", halo=1)
    with pytest.raises(ValueError, match="tile_size must be 'auto', a number or a pair"):
        restore_tiled(image, model, tile_size="large")


# ---- what running out looks like -------------------------------------------------------------------------------------


def test_errors_that_mean_out_of_memory():
    class OutOfMemoryError(RuntimeError):  # as torch.OutOfMemoryError is called
        pass

    chained = RuntimeError("tile 3 failed")
    chained.__cause__ = RuntimeError(MPS_TEXT)
    for error in (RuntimeError(MPS_TEXT), MemoryError(), OutOfMemoryError("?"), RuntimeError("CUDA out of memory.")):
        assert is_out_of_memory(error)
    assert is_out_of_memory(chained)
    for error in (RuntimeError("shape"), ValueError("out of memory"), KeyboardInterrupt(), None):
        assert not is_out_of_memory(error)


def test_what_torch_says_on_a_cpu():
    with pytest.raises(RuntimeError, match="you tried to allocate") as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))

    class Greedy(torch.nn.Module):
        def forward(self, windows):
            return windows + torch.empty(2**60 if windows.shape[3] > 50 else 1, dtype=torch.uint8)[0] * 0

    with pytest.warns(TileSizeWarning, match="going on with tile_size="):
        assert np.array_equal(restore_tiled(IMAGE, Greedy(), tile_size=64, halo=4), IMAGE)

    class Never(Greedy):
        def forward(self, windows):
            return windows + torch.empty(2**60, dtype=torch.uint8)[0]

    with pytest.warns(TileSizeWarning), pytest.raises(OutOfMemoryError, match="a smaller tile_size needs less memory"):
        restore_tiled(IMAGE, Never(), tile_size=32, halo=4)


class Limited(torch.nn.Module):
    """Runs out of memory in windows of more than `largest` pixels; says in its output how often it did before."""

    def __init__(self, largest, text=MPS_TEXT, good_calls=0):
        super().__init__()
        self.largest, self.text, self.good_calls = largest, text, good_calls
        self.failures, self.calls, self.shapes = 0, 0, []

    def forward(self, windows):
        self.calls += 1
        if windows.shape[2] * windows.shape[3] * windows.shape[0] > self.largest and self.calls > self.good_calls:
            self.failures += 1
            raise RuntimeError(self.text)
        self.shapes.append(tuple(windows.shape))
        return windows + self.failures / 255


OPTIONS = {"tile_size": 64, "halo": 4, "overlap": 8, "out_dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_the_tile_is_halved_until_it_fits(engine):
    model = Limited(24 * 24)
    with pytest.warns(TileSizeWarning, match="going on with tile_size=") as warned:
        got = restore_tiled(IMAGE, model, engine=engine, **OPTIONS)
    assert len(warned) == model.failures == 2
    np.testing.assert_allclose(got, IMAGE / 255 + 2 / 255, atol=1e-6)
    assert len(set(model.shapes)) == 1


@pytest.mark.filterwarnings("ignore::halotile.TileSizeWarning")
def test_what_was_chosen_is_what_it_came_to():
    restorer = TiledRestorer(Limited(24 * 24, good_calls=3), tile_size=(64, 64), halo=4, batch_size="auto")
    restorer(IMAGE)
    tuning = restorer.last_run.tuning
    assert tuning.why.endswith("; then memory ran out")
    assert max(tuning.tile_size) <= 16 and tuning.batch_size == 1


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_the_batch_is_halved_first(engine):
    model = Limited(72 * 72)
    with pytest.warns(TileSizeWarning, match="batch_size=2"):
        restore_tiled(IMAGE, model, engine=engine, batch_size=4, **OPTIONS)
    assert model.shapes[-1][2] > 60
    assert model.shapes[-1][0] == 1


@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.parametrize("good", [1, 5, 13, 18])
@pytest.mark.parametrize("engine", ["host", "torch"])
def test_finished_rows_are_kept(engine, good, blend):
    """What was finished before memory ran out is not touched again; what was not is made anew, all of it."""
    model = Limited(30 * 30, good_calls=good)
    out = np.full(IMAGE.shape, -1, np.float32)
    with pytest.warns(TileSizeWarning):
        restore_tiled(IMAGE, model, engine=engine, out=out, blend=blend, **OPTIONS)
    failures = np.rint((out - IMAGE / 255) * 255).astype(int)
    assert np.allclose(out, (IMAGE + failures) / 255, atol=1e-6)
    assert (failures == failures[:, :1, :1]).all()  # rows are of one kind
    kinds = failures[:, 0, 0]
    assert set(kinds) <= {0, model.failures}
    assert (np.diff(kinds) >= 0).all()
    assert (kinds == 0).any() == (good > 4)  # there are four tiles in a row


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_rows_that_were_yielded_are_not_yielded_again(engine):
    model = Limited(30 * 30, good_calls=9)
    with pytest.warns(TileSizeWarning):
        bands = list(iter_bands(IMAGE, model, engine=engine, **OPTIONS))
    starts = [y for y, _ in bands]
    assert starts == np.cumsum([0, *(len(rows) for _, rows in bands[:-1])]).tolist()
    np.testing.assert_allclose(np.concatenate([rows for _, rows in bands]), IMAGE / 255, atol=2.1 / 255)
    assert sum(len(rows) for _, rows in bands) == len(IMAGE)


def test_progress_goes_on_to_its_end():
    seen = []
    with pytest.warns(TileSizeWarning):
        restore_tiled(IMAGE, Limited(900, good_calls=9), progress=lambda *now: seen.append(now), **OPTIONS)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_restorer_remembers_what_fits():
    model = Limited(24 * 24)
    restorer = TiledRestorer(model, **OPTIONS)
    with pytest.warns(TileSizeWarning):
        restorer(IMAGE)
    failures = model.failures
    restorer(IMAGE)
    assert model.failures == failures


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_the_end_of_the_ladder(engine):
    out = np.zeros(IMAGE.shape, np.float32)
    with (
        pytest.warns(TileSizeWarning),
        pytest.raises(OutOfMemoryError, match=r"smallest windows, \d+x\d+ with halo 4: .*MPS allocated") as caught,
    ):
        restore_tiled(IMAGE, Limited(0), engine=engine, out=out, **OPTIONS)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.out is out
    with pytest.raises(RuntimeError, match="something else"):
        restore_tiled(IMAGE, Limited(0, text="something else"), engine=engine, **OPTIONS)


# ---- on the device ---------------------------------------------------------------------------------------------------


def test_memory_of_the_device_runs_out(fake_mps):
    model = seeded(lambda: Chain(3, scale=2, width=32))
    on_device = copy.deepcopy(model).to("fakemps")
    want = restore_tiled(IMAGE, model, tile_size=300, halo=3)
    for mib in (12, 4, 2):
        fake_mps.set_memory_limit(mib << 20)
        fake_mps.reset_counts()
        with pytest.warns(TileSizeWarning):
            got = restore_tiled(IMAGE, on_device, tile_size=300, halo=3)
        assert np.abs(got.astype(int) - want).max() <= 1
        assert fake_mps.counts()["cache_empties"] > 0
        assert fake_mps.counts()["upload_bytes"] == IMAGE.nbytes  # the image stays where it is


def test_the_end_says_what_would_fit(fake_mps):
    on_device = copy.deepcopy(seeded(lambda: Chain(3, width=512))).to("fakemps")
    held = fake_mps.counts()["live_bytes"]
    fake_mps.set_recommended_max_memory(held + (1 << 20))
    fake_mps.set_memory_limit(held + (1 << 20))
    with (
        pytest.warns(TileSizeWarning),
        pytest.raises(OutOfMemoryError, match="; 839 KiB are free on fakemps:0: ") as e,
    ):
        restore_tiled(IMAGE, on_device, tile_size=100, halo=16)
    assert "no tile fits with a halo of 16" in str(e.value)


# ---- activations -----------------------------------------------------------------------------------------------------


def test_the_largest_activation_is_found_without_running():
    module = seeded(lambda: Chain(3, width=64, scale=4)).half()
    calls = windows_seen(module)
    model = open_model(module, device=None, dtype=None, tensors=True)
    assert largest_activation(model, (2, 3, 50, 60)) == 2 * 2 * 64 * 50 * 60
    assert calls == [(50, 60)]
    big = (1, 3, 20_000, 30_000)  # would be 77 GB
    assert largest_activation(model, big) == 2 * 64 * 20_000 * 30_000
    assert next(module.parameters()).device.type == "cpu"

    class Looks(torch.nn.Module):
        def forward(self, windows):
            return windows * float(windows.max())

    assert largest_activation(open_model(Looks(), device=None, dtype=None, tensors=True), big) is None
    assert largest_activation(open_model(lambda windows: windows, device=None, dtype=None, tensors=True), big) is None


@pytest.mark.parametrize(("side", "text"), [(4200, "MPS aborts the process"), (3000, "MPS may return wrong values")])
def test_activations_that_mps_cannot_have_are_warned_about(side, text):
    model = open_model(seeded(lambda: Chain(2, width=64)), device=None, dtype=None, tensors=True)
    fragile = types.SimpleNamespace(fragile=True)
    with pytest.warns(TileSizeWarning, match=text):
        activations.warn_about_device(model, (1, 3, side, side), fragile)


def test_the_fallback_variable_is_warned_about(fake_mps, monkeypatch):
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    with pytest.warns(RuntimeWarning, match="PYTORCH_ENABLE_MPS_FALLBACK is set"):
        restore_tiled(IMAGE, copy.deepcopy(seeded(lambda: Chain(1))).to("fakemps"), halo=1)


class PoisonedThenLimited(torch.nn.Module):
    """NaN in the first rows, found on a device only when all is done; then memory runs out."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, windows):
        self.calls += 1
        if self.calls > 12 and windows.shape[2] > 30:
            raise RuntimeError(MPS_TEXT)
        return torch.where(windows == 1, torch.full_like(windows, torch.nan), windows)


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_nan_is_not_forgotten_over_a_restart(engine):
    image = np.zeros_like(IMAGE)
    image[60, 100, 2] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        with pytest.raises(NonFiniteError, match="first at output row 60, column 100, channel 2"):
            restore_tiled(image, PoisonedThenLimited(), engine=engine, **OPTIONS)


# ---- tiles of every kind ---------------------------------------------------------------------------------------------


def test_pairs_shrink_along_their_longer_side():
    model = Limited(40 * 200)
    image = np.zeros((300, 1000, 3), np.uint8)
    with pytest.warns(TileSizeWarning):
        restore_tiled(image, model, **OPTIONS | {"tile_size": (32, 800), "batch_size": 4})
    areas = [batch * height * width for batch, _, height, width in model.shapes]
    assert max(areas) <= 40 * 200
    assert {shape[2] for shape in model.shapes} == {model.shapes[0][2]}


@pytest.mark.parametrize(("phase", "overlap", "tile"), [(32, 20, 64), (24, 30, 96), (16, 0, 300), (50, "auto", 60)])
def test_phases_and_overlaps_that_a_smaller_tile_cannot_have(phase, overlap, tile):
    options = OPTIONS | {"tile_size": tile, "overlap": overlap, "phase": phase}
    model = Limited(10**9, good_calls=0)
    model.largest = (phase + 8 + 2 * phase) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        got = restore_tiled(IMAGE, model, **options)
    np.testing.assert_allclose(got, (IMAGE + float(model.failures)) / 255, atol=1e-6)


def test_auto_tiles_hold_a_phase_and_end(fake_mps):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Upsample(scale_factor=4), torch.nn.Conv2d(64, 3, 3, padding=1)
    )
    held = fake_mps.counts()["live_bytes"]
    fake_mps.set_recommended_max_memory(held + (20 << 20))
    small = copy.deepcopy(seeded(lambda: Chain(1))).to("fakemps")
    restore_tiled(IMAGE, small, tile_size="auto", phase=64, halo=1)
    restorer = TiledRestorer(model.to("fakemps"), tile_size="auto", halo=600)
    opened = open_run(open_image(np.zeros((600, 600, 3), np.uint8), None), restorer.knowledge)
    fitting = tiles_by_free_memory(opened)  # the halo alone is too much: the smallest tile, and a warning later
    assert fitting.options.tile_size == (16, 16)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_activations_are_those_of_what_the_model_sees(fake_mps, channels):
    model = copy.deepcopy(seeded(lambda: Chain(1, width=64))).to("fakemps")
    image = open_image(np.zeros((20, 20, channels), np.uint8), None)
    assert open_run(image, TiledRestorer(model).knowledge).batch_shape[1] == 3


def test_memory_that_runs_out_at_the_very_end(fake_mps):
    """The image is finished; what is left to find out is one number."""
    model = copy.deepcopy(seeded(lambda: Chain(1))).to("fakemps")

    def full(done, total):
        if done == total:
            fake_mps.set_memory_limit(fake_mps.counts()["live_bytes"])

    with pytest.raises(RuntimeError, match="MPS backend out of memory"):
        restore_tiled(IMAGE, model, tile_size=64, halo=1, progress=full)


def test_a_run_does_not_go_on_below_rows_that_could_not_be_checked(monkeypatch):
    """Memory runs out, and then again while NaN is looked for in the rows that are done."""
    own, failures = tiles.check_bands, [RuntimeError("MPS backend out of memory")]

    def check(*given):
        if failures:
            raise failures.pop()
        own(*given)

    class Once(torch.nn.Module):
        calls = 0

        def forward(self, windows):
            self.calls += 1
            if self.calls == 6:
                raise RuntimeError("MPS backend out of memory")
            return windows * 1

    monkeypatch.setattr(tiles, "check_bands", check)
    with pytest.raises(OutOfMemoryError, match="could not be checked for NaN") as caught:
        restore_tiled(IMAGE, Once(), tile_size=64, halo=1, phase=1, scale=1, engine="torch")
    assert not failures and caught.value.rows_done > 0


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_failures_keep_nothing(engine):
    """An error that was caught and dropped leaves no cycle that holds the image."""
    gc.collect()
    gc.disable()
    try:
        for model in (Limited(0), Limited(0, text="something else"), Limited(10**9, good_calls=9)):
            image = np.zeros(IMAGE.shape, np.uint8)
            alive = weakref.ref(image)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TileSizeWarning)
                with contextlib.suppress(RuntimeError):
                    restore_tiled(image, model, engine=engine, **OPTIONS)
            del image
            assert alive() is None
    finally:
        gc.enable()


def test_the_error_at_the_end_names_its_tile():
    model = Limited(0, good_calls=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        with pytest.raises(OutOfMemoryError) as caught:
            restore_tiled(IMAGE, model, **OPTIONS)
    assert caught.value.rows_done > 0
    assert caught.value.tile > 0
    cause = caught.value.__cause__.__cause__
    assert "forward" in "".join(traceback.format_tb(cause.__traceback__))  # where in the model


def test_only_memory_is_out_of_memory():
    assert not is_out_of_memory(RuntimeError("cache is out of memory-mapped slots"))
