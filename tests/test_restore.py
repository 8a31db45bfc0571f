# SPDX-License-Identifier: MIT
"""What happens when things go wrong, and what a run holds: errors, interruption, progress, memory, threads."""

import gc
import resource
import subprocess
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest

from halotile import NonFiniteError, NonFiniteWarning, TileError, iter_bands, plan_tiles, restore_tiled, restore_to

OPTIONS = {"tile_size": 16, "halo": 4, "overlap": 0, "scale": 1}  # given, so that no window is run to find it
IMAGE = np.random.default_rng(5).integers(0, 256, (64, 48, 3), np.uint8)  # 4 x 3 tiles


def failing_at(call, error):
    calls = []

    def model(x):
        calls.append(1)
        if len(calls) == call + 1:
            raise error
        return np.array(x)

    return model


@pytest.mark.parametrize("call", [0, 1, 7, 11])
def test_a_raising_model_is_a_tile_error_that_names_tile_box_and_cause(call):
    cause = RuntimeError("boom")
    with pytest.raises(
        TileError, match=rf"tile {call} \(row {call // 3}, column {call % 3};.*RuntimeError: boom"
    ) as caught:
        restore_tiled(IMAGE, failing_at(call, cause), **OPTIONS)
    error = caught.value
    assert error.__cause__ is cause
    assert error.tile == call
    assert error.box == tuple(plan_tiles(IMAGE.shape, **OPTIONS)[call].window)
    assert error.rows_done == call // 3 * 16
    if call:
        np.testing.assert_array_equal(error.out[: error.rows_done], IMAGE[: error.rows_done])


def test_a_failing_batch_names_its_tiles():
    with pytest.raises(TileError, match="tiles 4 to 7"):
        restore_tiled(IMAGE, failing_at(1, RuntimeError("boom")), batch_size=4, **OPTIONS)


def test_running_out_of_memory_says_what_helps():
    for error in (MemoryError("no"), RuntimeError("CUDA out of memory. Tried")):
        with pytest.raises(TileError, match="a smaller tile_size needs less memory"):
            restore_tiled(IMAGE, failing_at(2, error), **OPTIONS)


def test_interruption_leaves_finished_rows_in_out():
    out = np.zeros_like(IMAGE)
    with pytest.raises(KeyboardInterrupt):
        restore_tiled(IMAGE, failing_at(7, KeyboardInterrupt()), out=out, **OPTIONS)
    np.testing.assert_array_equal(out[:32], IMAGE[:32])
    assert not out[48:].any()


def test_progress_counts_tiles_and_may_cancel():
    seen = []
    restore_tiled(IMAGE, np.array, progress=lambda done, total: seen.append((done, total)), batch_size=5, **OPTIONS)
    assert seen == [(4, 12), (8, 12), (12, 12)]  # batches are balanced as tiles are
    many = np.stack([IMAGE, IMAGE])
    seen.clear()
    restore_tiled(many, np.array, progress=lambda done, total: seen.append((done, total)), **OPTIONS)
    assert seen == [(i + 1, 24) for i in range(24)]

    class Cancelled(Exception):
        pass

    def cancel(done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        restore_tiled(IMAGE, np.array, progress=cancel, **OPTIONS)


WAYS = {
    "restore_tiled": lambda progress, path: restore_tiled(IMAGE, np.array, progress=progress, **OPTIONS),
    "iter_bands": lambda progress, path: list(iter_bands(IMAGE, np.array, progress=progress, **OPTIONS)),
    "restore_to": lambda progress, path: restore_to(path, IMAGE, np.array, progress=progress, **OPTIONS),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("mine"),
        StopIteration(),
        GeneratorExit(),
        RuntimeError("out of memory"),
        KeyError("k"),
        SystemExit(3),
    ],
    ids=repr,
)
def test_what_progress_raises_is_not_the_model_s(error, way, tmp_path):
    """It ends the run as it is, also where it looks like running out of memory, and leaves nothing behind."""
    cause, calls = ArithmeticError("why"), []

    def progress(done, total):
        calls.append(done)
        if done == 5:
            raise error from cause

    kind = RuntimeError if way == "iter_bands" and isinstance(error, StopIteration) else type(error)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind) as caught:
            WAYS[way](progress, tmp_path / "out.npy")
    if kind is type(error):
        assert caught.value is error and error.__cause__ is cause
    assert calls == [1, 2, 3, 4, 5] and not list(tmp_path.glob("*out*"))
    WAYS[way](None, tmp_path / "out.npy")


def test_a_progress_bar(capsys):
    pytest.importorskip("tqdm")
    restore_tiled(IMAGE, np.array, progress=True, **OPTIONS)
    assert "12/12" in capsys.readouterr().err


# ---- NaN and infinity ------------------------------------------------------------------------------------------------


def spoiling(tile, value, overlap=0):
    """Returns its input, but one bad value inside the keep box of a tile."""
    calls = []

    def model(x):
        y = np.array(x)
        if len(calls) == tile:
            y[0, 1, 12, 13] = value
        calls.append(1)
        return y

    return model


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("overlap", [0, 6, 14])
def test_nan_raises_with_its_tile(value, overlap):
    options = OPTIONS | {"overlap": overlap}
    plan = plan_tiles(IMAGE.shape, **options)
    for index in (0, 4, len(plan) - 1):
        tile = plan[index]
        y, x = tile.keep.y + 12 - tile.crop[0], tile.keep.x + 13 - tile.crop[1]
        with pytest.raises(NonFiniteError, match=rf"tile {index} .*output row {y}, column {x}, channel 1") as caught:
            restore_tiled(IMAGE, spoiling(index, value), **options)
        assert caught.value.tile == index


def test_nan_warns_once_for_each_tile_that_returns_it():
    options = OPTIONS | {"overlap": 6}
    for index in range(len(plan_tiles(IMAGE.shape, **options))):
        with pytest.warns(NonFiniteWarning) as caught:
            restore_tiled(IMAGE, spoiling(index, np.nan), on_nonfinite="warn", **options)
        assert len(caught) == 1


def test_nan_may_warn_or_be_ignored():
    with pytest.warns(NonFiniteWarning, match="tile 4"):
        got = restore_tiled(IMAGE, spoiling(4, np.nan), on_nonfinite="warn", **OPTIONS)
    assert (got != IMAGE).sum() <= 1
    floats = (IMAGE / 255).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = restore_tiled(floats, spoiling(4, np.inf), on_nonfinite="ignore", **OPTIONS)
    assert np.isinf(got).sum() == 1 and (got != floats).sum() == 1


# ---- what a run holds ------------------------------------------------------------------------------------------------


def nearest_x4(x):
    return np.repeat(np.repeat(x, 4, axis=2), 4, axis=3)


def peak_bytes(run):
    """The most that Python and NumPy, which reports its buffers to tracemalloc, hold at once."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_bounded_by_band_and_windows():
    """Beyond the output, a run holds windows and shared pixels, nothing of
    the size of the image in float."""
    image = np.zeros((1500, 1200, 3), np.uint8)
    options = {"tile_size": 128, "halo": 16, "overlap": 8}
    estimate = plan_tiles(image.shape, scale=4, **options).estimate_bytes()
    output = estimate["output"]
    peak = peak_bytes(lambda: restore_tiled(image, nearest_x4, **options))
    assert peak < estimate["total"] - estimate["image"] + 2 * estimate["model output"] + 2**20
    assert peak < 1.25 * output  # sums of float32 alone would be 4 x


def test_bands_hold_nothing_of_the_size_of_the_output():
    image = np.zeros((3000, 500, 3), np.uint8)

    def run():
        for _, _rows in iter_bands(image, nearest_x4, tile_size=64, halo=8):
            pass

    peak = peak_bytes(run)
    assert peak < 0.15 * image.size * 16


def test_images_out_of_memory_mapped_files(tmp_path):
    image = np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.uint8, (700, 500, 3))
    image[:] = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, (2800, 2000, 3))
    restore_tiled(image, nearest_x4, out=out, tile_size=128, halo=8)
    np.testing.assert_array_equal(out, image.repeat(4, 0).repeat(4, 1))


def test_threads_run_side_by_side():
    want = restore_tiled(IMAGE, nearest_x4, **OPTIONS | {"scale": 4})
    wrong = []

    def work():
        for _ in range(5):
            if not np.array_equal(restore_tiled(IMAGE, nearest_x4, **OPTIONS | {"scale": 4}), want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


LEAK_SCRIPT = """
import gc, resource, sys
import numpy as np
import halotile
from halotile import _core
image = np.random.default_rng(0).integers(0, 256, (200, 200, 4), np.uint8)
def failing(x):
    raise RuntimeError("boom")
def once():
    halotile.restore_tiled(image, np.array, tile_size=64, halo=8)
    for bad in (lambda: halotile.restore_tiled(image, failing), lambda: halotile.plan_tiles((0, 1)),
                lambda: _core.read(image, image, 0, 0), lambda: _core.finish(image, image),
                lambda: halotile.plan_tiles((5, 5))[9], lambda: _core.Plan(1, 2, 3)):
        try:
            bad()
        except Exception:
            pass
    plan = halotile.plan_tiles((999, 999), tile_size=10)
    [plan[i] for i in range(len(plan))], plan.weight_map(), plan.rows_complete(5)
def settled():
    gc.collect()
    return len(gc.get_objects()), sys.gettotalrefcount() if hasattr(sys, "gettotalrefcount") else 0
for _ in range(5):
    once()
objects, memory = settled()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = [sys.getrefcount(value) for value in (None, _core.Plan, image)]
for _ in range(25):
    once()
after = [sys.getrefcount(value) for value in (None, _core.Plan, image)]
assert settled()[0] <= objects + 20, (objects, settled())
assert all(b - a < 20 for a, b in zip(counts, after)), (counts, after)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
assert grown < 9_000, grown
print("no leak")
"""


def test_nothing_leaks():
    done = subprocess.run([sys.executable, "-c", LEAK_SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "no leak", done.stderr


def test_nothing_is_kept_after_a_failure():
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        with pytest.raises(TileError):
            restore_tiled(np.zeros((1000, 1000, 3), np.uint8), failing_at(3, RuntimeError("boom")), phase=1)
    gc.collect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


# ---- what a hostile user found ---------------------------------------------------------------------------------------


def test_the_first_tile_may_fail_too():
    out = np.zeros_like(IMAGE)
    with pytest.raises(TileError) as caught:
        restore_tiled(IMAGE, failing_at(0, RuntimeError("boom")), out=out, **OPTIONS)
    assert caught.value.out is out and caught.value.rows_done == 0


def test_failures_say_which_of_several_images():
    many = np.stack([IMAGE] * 3)
    with pytest.raises(TileError, match="tile 5 of image 2 "):
        restore_tiled(many, failing_at(29, RuntimeError("boom")), **OPTIONS, phase=1)


def test_an_error_without_a_text_is_a_tile_error():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    with pytest.raises(TileError, match="Mute"):
        restore_tiled(IMAGE, failing_at(2, Mute()), **OPTIONS)


def test_sums_that_overflow_are_reported():
    image = np.full((40, 40), 3e38, np.float32)
    with pytest.raises(NonFiniteError, match="tile"):
        restore_tiled(image, np.array, tile_size=16, halo=4, overlap=8)
    with pytest.warns(NonFiniteWarning) as caught:
        restore_tiled(image, np.array, tile_size=16, halo=4, overlap=8, on_nonfinite="warn")
    assert caught[0].filename == __file__


def test_windows_too_large_for_memory():
    with pytest.raises((TileError, MemoryError), match=r"windows of shape .* cannot be allocated"):
        restore_tiled(IMAGE, np.array, halo=2**30)


def test_parts_do_not_pile_up():
    """Colour and alpha run one after the other: windows and outputs of one part at a time."""
    image = np.zeros((600, 600, 4), np.uint8)
    options = {"tile_size": 300, "halo": 8, "overlap": 0}
    plan = plan_tiles(image.shape, scale=4, **options)
    peak = peak_bytes(lambda: restore_tiled(image, nearest_x4, **options))
    output = 4 * plan.output_size[0] * plan.output_size[1]
    window = 4 * 3 * plan.window_output[0] * plan.window_output[1]
    assert peak < output + 1.6 * window + 4 * 3 * 2 * plan.window[0] * plan.window[1] + 2**20


@pytest.mark.parametrize("where", ["array", "rows", "file"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_nothing_is_allocated_after_the_first_tiles(where, batch_size, tmp_path):
    """Of what NumPy allocates: a window has 48 KiB here, a band 180."""
    image, peaks = np.random.default_rng(0).integers(0, 256, (900, 1020, 3), np.uint8), []
    output = np.empty((batch_size, 3, 64, 64), np.float32)  # the model's own

    def model(windows):
        np.copyto(output, windows)
        return output

    def progress(done, total):
        now, most = tracemalloc.get_traced_memory()
        peaks.append(most - now)
        tracemalloc.reset_peak()

    options = {"tile_size": (60, 60), "halo": 2, "overlap": 0, "progress": progress, "batch_size": batch_size}
    np.save(tmp_path / "image.npy", image)
    tracemalloc.start()
    try:
        if where == "array":
            assert np.array_equal(restore_tiled(image, model, **options), image)
        elif where == "rows":
            restore_tiled(image, model, out=np.empty_like(image), **options)
        else:
            restore_to(tmp_path / "result.npy", tmp_path / "image.npy", model, **options)
    finally:
        tracemalloc.stop()
    assert len(peaks) > 50
    assert max(peaks[20:]) < 16 << 10
