# SPDX-License-Identifier: MIT
"""shift_average=: several grids of tiles, averaged."""

from __future__ import annotations

import numpy as np
import pytest

import halotile
from halotile import TiledRestorer, restore_tiled, restore_to
from halotile.plan import plan_tiles
from tests import reference

IMAGE = np.random.default_rng(0).random((61, 83, 3)).astype(np.float32)
TILES = {"tile_size": 24, "halo": 4, "overlap": 2, "phase": 2}


def ramps(windows, scale=1):
    """Adds what depends on the place in the window: no halo is exact for it."""
    x = np.asarray(windows).repeat(scale, 2).repeat(scale, 3)
    height, width = x.shape[2:]
    return x + np.linspace(0, 0.1, height, dtype=np.float32)[:, None] + np.linspace(-0.05, 0, width, dtype=np.float32)


def ramps_of_torch(scale):
    torch = pytest.importorskip("torch")

    class Ramps(torch.nn.Module):
        def forward(self, windows):
            x = windows.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
            height, width = x.shape[2:]
            down = torch.linspace(0, 0.1, height, device=x.device)[:, None]
            return x + down + torch.linspace(-0.05, 0, width, device=x.device)

    return Ramps()


def one_grid(image, model, plan, boundary="reflect"):
    """A grid by hand: windows, their parts, weights."""
    source = image.transpose(2, 0, 1)
    total = np.zeros((3, *plan.output_size))
    weights = np.zeros(plan.output_size)
    for tile in plan:
        y, x, height, width = tile.window
        if boundary == "wrap":
            rows, columns = (np.arange(at, at + side) for at, side in ((y, height), (x, width)))
            window = source[:, rows % image.shape[0]][:, :, columns % image.shape[1]]
        else:
            window = reference.read(source, *tile.window)
        output = model(window[None])[0]
        keep, (top, left) = tile.keep, tile.crop
        down, across = slice(keep.y, keep.y_stop), slice(keep.x, keep.x_stop)
        total[:, down, across] += output[:, top : top + keep.height, left : left + keep.width]
        weights[down, across] += 1
    return (total / weights).transpose(1, 2, 0)


def grids(plan, count):
    """Their windows begin at other places, spread evenly over a step."""
    found = []
    for shift in range(count):
        rows = plan.core.starts(0)[1] * shift // count // 2 * 2
        found.append(rows)
    return found


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize(("count", "boundary", "scale"), [(2, "reflect", 1), (3, "wrap", 1), (4, "reflect", 2)])
def test_it_is_the_mean_of_whole_results(engine, count, boundary, scale):
    model = (lambda windows: ramps(windows, scale)) if engine == "host" else ramps_of_torch(scale)
    restorer = TiledRestorer(model, **TILES, shift_average=count, boundary=boundary, engine=engine)
    result = restorer(IMAGE)
    plan = plan_tiles(IMAGE.shape, **TILES, boundary=boundary, scale=scale)
    from halotile.run.shifted import shifts_of

    shifts = shifts_of(plan, count)
    assert sorted(rows for rows, _ in shifts) == grids(plan, count)
    assert len({columns for _, columns in shifts}) == len(shifts) == count
    results = [one_grid(IMAGE, lambda x: ramps(x, scale), plan.shifted(one), boundary) for one in shifts]
    mean = np.mean(results, 0)
    np.testing.assert_allclose(result, mean, atol=1e-6)
    run = restorer.last_run
    assert (run.how, run.averaged.grids) == ("averaged", count)
    largest = max(np.abs(one - mean).max() for one in results)
    assert abs(run.bound - largest) < 1e-6 and run.bound == run.averaged.largest > 0.01
    assert 0 < run.averaged.mean < run.averaged.largest
    assert f"average of {count} grids" in str(run)


def seams(result):
    """The largest jump between neighbouring pixels of the result of a black image."""
    return max(np.abs(np.diff(result, axis=axis)).max() for axis in (0, 1))


def test_seams_are_lower_with_every_grid():
    black = np.zeros((96, 120, 3), np.float32)
    found = [seams(restore_tiled(black, ramps, **TILES | {"overlap": 0}, shift_average=k)) for k in (1, 2, 4)]
    assert found[1] < 0.6 * found[0] and found[2] < 0.35 * found[0]


def test_exact_models_stay_exact():
    torch = pytest.importorskip("torch")
    model = torch.nn.Conv2d(3, 3, 5, padding=2).eval()
    restorer = TiledRestorer(model, halo="exact", tile_size=24, shift_average=3)
    result = restorer(IMAGE)
    single = restore_tiled(IMAGE, model, halo="exact", tile_size=24)
    np.testing.assert_allclose(result, single, atol=1e-6)
    run = restorer.last_run
    assert (run.how, run.bound) == ("exact", 0.0) and run.averaged.largest < 1e-5


def test_integers_are_rounded_once():
    image = (IMAGE * 255).astype(np.uint8)
    result = restore_tiled(image, ramps, **TILES, shift_average=4, value_range=(-0.5, 0.5))
    precise = restore_tiled(image, ramps, **TILES, shift_average=4, value_range=(-0.5, 0.5), out_dtype="float32")
    np.testing.assert_array_equal(result, np.rint(precise.astype(np.float64) * 255).astype(np.uint8))
    restorer = TiledRestorer(ramps, **TILES, shift_average=4, value_range=(-0.5, 0.5))
    restorer(image)
    fine = TiledRestorer(ramps, **TILES, shift_average=4, value_range=(-0.5, 0.5), out_dtype="float32")
    fine(image)
    assert (
        restorer.last_run.bound == pytest.approx(255 * fine.last_run.bound) and restorer.last_run.averaged.white == 255
    )


def test_files_bands_and_alpha(tmp_path):
    image = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 0.5, np.float32)])
    options = {**TILES, "shift_average": 3}
    result = restore_tiled(image, ramps, **options)
    np.testing.assert_array_equal(result[..., 3], 0.5)
    np.testing.assert_allclose(result[..., :3], restore_tiled(IMAGE, ramps, **options), atol=1e-6)
    bands = list(halotile.iter_bands(image, ramps, **options))
    assert len(bands) > 2 and [y for y, _ in bands] == np.cumsum([0, *(len(rows) for _, rows in bands)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in bands]), result)
    np.save(tmp_path / "a.npy", image)
    run = restore_to(tmp_path / "b.npy", tmp_path / "a.npy", ramps, **options)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), result)
    assert run.averaged.grids == 3


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
def test_a_run_that_was_stopped_goes_on(tmp_path, suffix):
    options = {**TILES, "shift_average": 3, "resume": True}
    restore_to(tmp_path / f"whole{suffix}", IMAGE, ramps, **options)
    seen = []

    def stop(done, total):
        seen.append(done)
        if len(seen) == 45:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        restore_to(tmp_path / f"out{suffix}", IMAGE, ramps, progress=stop, **options)
    again = []
    restore_to(tmp_path / f"out{suffix}", IMAGE, ramps, progress=lambda done, total: again.append(done), **options)
    assert 0 < len(again) < 2 * len(seen)
    assert content(tmp_path / f"out{suffix}") == content(tmp_path / f"whole{suffix}")


def content(path):
    return path.read_bytes() if path.is_file() else [one.read_bytes() for one in sorted(path.rglob("c/*/*/*"))]


@pytest.mark.parametrize("batch", [1, 2, 7, 13])
def test_a_file_is_read_from_top_to_bottom(tmp_path, batch):
    """A picture that goes back is decoded anew; the grid that is farthest behind goes on, and needs no earlier rows."""
    from halotile.images.source import Source

    image = np.random.default_rng(1).random((300, 40, 3)).astype(np.float32)

    class Counted(Source):
        shape, dtype, step = image.shape, image.dtype, 1

        def __init__(self):
            self.starts = []

        def read(self, start, rows):
            self.starts.append(start)
            rows[:] = image[start : start + len(rows)]

    source = Counted()
    restore_to(tmp_path / "b.npy", source, ramps, **TILES, shift_average=4, batch_size=batch)
    np.testing.assert_array_equal(
        np.load(tmp_path / "b.npy"), restore_tiled(image, ramps, **TILES, shift_average=4, batch_size=batch)
    )
    assert len(source.starts) > 4 and source.starts == sorted(source.starts)


def test_tensors_and_several_images():
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(np.stack([IMAGE, IMAGE[::-1]])).permute(0, 3, 1, 2)

    def model(windows):
        return torch.from_numpy(ramps(windows.numpy()))

    result = restore_tiled(images, model, **TILES, shift_average=2, batch_size=4)
    for got, image in zip(result, images, strict=True):
        np.testing.assert_array_equal(got, restore_tiled(image, model, **TILES, shift_average=2, batch_size=4))


def test_a_single_tile_has_no_other_grids():
    restorer = TiledRestorer(ramps, tile_size=128, halo=4, shift_average=4)
    result = restorer(IMAGE)
    np.testing.assert_array_equal(result, restore_tiled(IMAGE, ramps, tile_size=128, halo=4))
    assert restorer.last_run.averaged.grids == 1 and "one tile" in str(restorer.last_run)


def test_memory_that_runs_out_makes_tiles_smaller():
    def model(windows):
        if windows.shape[2] > 24:
            raise MemoryError("too large")
        return ramps(windows)

    with pytest.warns(halotile.TileSizeWarning):
        restorer = TiledRestorer(model, tile_size=32, halo=4, shift_average=2)
        result = restorer(IMAGE)
    tile = restorer.knowledge.chosen[IMAGE.shape[:2]][0].tile_size
    np.testing.assert_array_equal(
        result, restore_tiled(IMAGE, model, tile_size=tile, halo=4, overlap=2, shift_average=2)
    )


def test_progress_counts_all_grids():
    steps = []
    restore_tiled(IMAGE, ramps, **TILES, shift_average=3, progress=lambda done, total: steps.append((done, total)))
    plan = plan_tiles(IMAGE.shape, **TILES)
    from halotile.run.shifted import shifts_of

    tiles = sum(len(plan.shifted(one)) for one in shifts_of(plan, 3))
    assert steps[-1] == (tiles, tiles) and tiles > 3 * len(plan)


def test_nan_is_reported():
    def model(windows):
        made = ramps(windows)
        made[..., 10, 10] = np.nan
        return made

    with pytest.raises(halotile.NonFiniteError):
        restore_tiled(IMAGE, model, **TILES, shift_average=2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"shift_average": 0}, ValueError, "shift_average must be from 1 to 64, not 0"),
        ({"shift_average": 65}, ValueError, "shift_average must be from 1 to 64, not 65"),
        ({"shift_average": 2.5}, TypeError, "shift_average must be a whole number"),
        (
            {"shift_average": 2, "boundary": "native"},
            ValueError,
            "boundary must be 'reflect' or 'wrap' with shift_average",
        ),
        ({"shift_average": 2, "schedule": "stream"}, ValueError, "with shift_average=2, which is of tiles"),
        ({"shift_average": 2, "device": ["cpu", "cpu"]}, ValueError, "device must be one with shift_average=2"),
    ],
)
def test_what_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        restore_tiled(IMAGE, ramps_of_torch(1), **options)


def test_rows_that_stream_give_way():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(12))).eval()
    restorer = TiledRestorer(model, halo="exact", tile_size=24, shift_average=2)
    restorer(IMAGE)
    assert restorer.last_run.schedule == "tiles" and "shift_average=2" in restorer.last_run.schedule_why


@pytest.mark.parametrize("alpha", [None, 0.5, "ramp"])
def test_the_emulated_device_agrees(fake_mps, alpha):
    """Host and device average and round alike."""
    from .fake_mps.attach import DEVICE

    image = IMAGE
    if alpha is not None:
        ramp = np.broadcast_to(np.linspace(0.1, 0.9, 83, dtype=np.float32), (61, 83)) if alpha == "ramp" else alpha
        image = np.dstack([image, np.broadcast_to(np.float32(ramp), (61, 83))])
    image = (image * 255).astype(np.uint8)
    options = {**TILES, "shift_average": 3, "scale": 2, "memory_format": "contiguous"}
    on_host = TiledRestorer(ramps_of_torch(2), **options)
    want = on_host(image)
    on_device = TiledRestorer(ramps_of_torch(2), **options, device=DEVICE)
    got = on_device(image)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
    assert on_device.last_run.bound == pytest.approx(on_host.last_run.bound, rel=1e-3)
