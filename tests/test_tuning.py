# SPDX-License-Identifier: MIT
"""tile_size="auto", batch_size="auto", memory_limit: whatever is chosen, the result is the same, and it is said why."""

import itertools
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import (  # noqa: E402
    OutOfMemoryError,
    TiledRestorer,
    TileError,
    TileSizeWarning,
    iter_bands,
    memory,
    restore_tiled,
    restore_to,
)
from halotile.auto import costs  # noqa: E402
from halotile.auto import tiles as tuning  # noqa: E402
from halotile.files.formats import FORMATS  # noqa: E402

from .networks import Chain, Strided, seeded  # noqa: E402
from .test_exact import check, image_of  # noqa: E402

ROOT = Path(__file__).parents[1]
MODELS = {"plain": lambda: Chain(3), "x3": lambda: Chain(2, scale=3), "stride 4": lambda: Strided(4)}
IMAGE = np.random.default_rng(0).integers(0, 256, (700, 500, 3), np.uint8)


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_that_of_the_whole_image(name, boundary):
    model = seeded(MODELS[name])
    for size in [(300, 411), (90, 1000), (40, 33)]:
        check(model, image_of(*size), tile_size="auto", batch_size="auto", boundary=boundary)


class Clock:
    """Time as a model makes it pass: so many microseconds a pixel of its window."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(tuning.time, "perf_counter", lambda: self.now)

    def model(self, cost):
        class Timed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.seen = []

            def forward(timed, windows):
                batch, _, height, width = windows.shape
                timed.seen.append((height, width, batch))
                self.now += 1e-6 * cost(height, width, batch) * batch * height * width
                return windows.clone()

        return Timed()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def tuned(model, image=IMAGE, **options):
    restorer = TiledRestorer(model, halo=16, overlap=0, **{"tile_size": "auto"} | options)
    assert np.array_equal(restorer(image), image)
    return restorer.last_run.tuning, restorer


def test_where_all_windows_cost_the_same_few_pixels_decide(clock):
    """Two tiles have 1.044 times the pixels of one, and take half the memory."""
    model = clock.model(lambda height, width, batch: 1)
    found, _ = tuned(model)
    plan_pixels = sum(h * w * n for h, w, n in model.seen)
    assert found.tile_size == (350, 500)
    assert plan_pixels < 1.06 * 2 * 382 * 532 + 2 * 96 * 96
    assert found.probed <= 0.05 * found.seconds


def test_windows_beyond_a_cliff_are_not_taken(clock):
    """Every window above 400 pixels square costs four times as much."""
    model = clock.model(lambda height, width, batch: 1 if height * width <= 400**2 else 4)
    found, _ = tuned(model, np.zeros((2000, 2000, 3), np.uint8))
    last = model.seen[-1]
    assert 200**2 < last[0] * last[1] <= 400**2
    assert found.seconds == pytest.approx(1e-6 * sum(h * w for h, w, _ in model.seen if (h, w, 1) == last), rel=0.15)
    assert found.costs
    assert "us a pixel" in found.why


def test_full_width_bands_are_taken_where_they_are_cheaper(clock):
    model = clock.model(lambda height, width, batch: 1 if width >= 500 else 3)
    found, _ = tuned(model, np.zeros((4000, 500, 3), np.uint8), memory_limit=60 << 20)
    assert found.tile_size[1] == 500
    assert found.tile_size[0] < 4000


def test_the_budget_holds(clock):
    model = clock.model(lambda height, width, batch: 1)
    found, _ = tuned(model, np.zeros((1600, 1500, 3), np.uint8))
    assert 0 < found.probed <= 0.05 * 1.6 * 1.5
    assert f"{found.probed:.2g} s went to trying" in found.why


def test_what_is_timed_is_not_compiled(clock, monkeypatch):
    model, shapes = clock.model(lambda height, width, batch: 1), set()

    def compiled(windows):
        if windows.shape not in shapes:
            shapes.add(windows.shape)
            clock.now += 15
        return model(windows)

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled)
    found, restorer = tuned(model, compile=True)
    for image in (IMAGE, IMAGE[:690], IMAGE[:680]):
        assert np.array_equal(restorer(image), image)
        assert restorer.last_run.tuning.seconds == pytest.approx(found.seconds, rel=0.1)
    assert shapes


def test_batches_where_they_pay(clock):
    model = clock.model(lambda height, width, batch: 4 / batch)
    found, _ = tuned(model, tile_size=64, batch_size="auto")
    assert found.batch_size > 1
    assert model.seen[-1][2] == found.batch_size
    model = clock.model(lambda height, width, batch: batch)
    found, _ = tuned(model, tile_size=64, batch_size="auto")
    assert found.batch_size == 1


def test_torch_s_compiler_is_not_imported():
    """It takes seconds, and as much memory as many a limit."""
    code = "import sys, numpy, torch, halotile;"
    code += "model, image = torch.nn.Conv2d(3, 3, 3, padding=1), numpy.zeros((90, 90, 3), 'uint8');"
    code += "halotile.restore_tiled(image, model, halo=2, tile_size='auto');"
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 3, 3, padding=1).eval()


def shapes_of(model):
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    return seen


def test_the_next_run_tries_nothing():
    """Nor does that of another process, which has a model with the same weights."""
    first = TiledRestorer(small(), tile_size="auto", halo=1)
    first(IMAGE)
    again = TiledRestorer(small(), tile_size="auto", halo=1)
    again(IMAGE)
    assert again.last_run.tuning.costs.items() >= first.last_run.tuning.costs.items()
    third = TiledRestorer(small(), tile_size="auto", halo=1)
    third(IMAGE)
    assert third.last_run.tuning.probed == 0 or again.last_run.tuning.tile_size != third.last_run.tuning.tile_size
    assert len(third.last_run.tuning.costs) <= len(again.last_run.tuning.costs) + 1


def test_a_restorer_tunes_once_for_a_size(clock):
    model = clock.model(lambda height, width, batch: 1)
    found, restorer = tuned(model)
    calls = len(model.seen)
    restorer(IMAGE)
    assert model.seen[calls:] == [(382, 532, 1)] * 2
    assert restorer.last_run.tuning is found
    restorer(IMAGE[:600])
    assert len(set(model.seen[calls + 2 :])) == 1  # another size: what is known suffices


def test_other_settings_have_costs_of_their_own():
    restorer = TiledRestorer(small(), tile_size="auto", halo=1)
    restorer(IMAGE)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        restorer(IMAGE[:650])
    finally:
        torch.set_num_threads(threads)
    TiledRestorer(small(), tile_size="auto", halo=1, keep_heap=False)(IMAGE)
    assert len(restorer.knowledge.costs) == 2


def test_something_else_in_the_cache_does_no_harm(monkeypatch):
    sound = {"seconds": {"64 x 64 x 1 contiguous": 1e-6}, "bytes": [[1, 2], [2, 3]], "live": 1.0, "memory_format": None}
    assert costs.Costs.of(sound).live == 1
    wrong = {
        "seconds": (3, {"a b c": 1}, {"64 x 64 x 1 contiguous": "x"}, {"64 x 64 x 1 contiguous": -1}),
        "bytes": ([1, 2], [[1, 2, 3], [4]], [[2, 2], [2, 3]], [[1, 1]] * 3),
        "live": ("x", None, float("nan")),
        "memory_format": (3, "sideways"),
    }
    others = [sound | {name: value} for name, values in wrong.items() for value in values]
    for found in ({"seconds": 3, "colour": "red"}, [1, 2], "text", None, *others):
        assert costs.Costs.of(found) == costs.Costs()
        monkeypatch.setattr(tuning, "kept", lambda name, key, found=found: found)
    restore_tiled(IMAGE[:200], small(), tile_size="auto", halo=1)


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("error", [ValueError("once"), KeyboardInterrupt()])
def test_a_run_that_fails_while_it_tries_leaves_nothing(clock, call, error):
    image, cost = np.zeros((1900, 1800, 3), np.uint8), lambda height, width, batch: 1
    undisturbed, _ = tuned(clock.model(cost), image)
    model = clock.model(cost)
    restorer = TiledRestorer(model, tile_size="auto", halo=16, overlap=0)

    def fails(module, args):
        if len(model.seen) == call - 1:
            raise error

    hook = model.register_forward_pre_hook(fails)
    with pytest.raises((TileError, KeyboardInterrupt)):
        restorer(image)
    hook.remove()
    restorer(image)
    assert 2 * np.prod(restorer.last_run.tuning.tile_size) >= np.prod(undisturbed.tile_size)  # not those it began with


def test_threads_share_what_is_measured(clock):
    """What one of them reads, none of the others changes."""
    model = clock.model(lambda height, width, batch: 1)
    _, restorer = tuned(model)
    (measured,) = restorer.knowledge.costs.values()
    before = measured.seconds
    known = dict(before)
    restorer(np.zeros((2000, 1900, 3), np.uint8))
    assert measured.seconds != known
    assert before == known


# ---- memory ----------------------------------------------------------------------------------------------------------


class Hungry(torch.nn.Module):
    """Holds so many bytes a pixel while it runs."""

    def __init__(self, bytes_a_pixel):
        super().__init__()
        self.planes, self.largest = bytes_a_pixel // 4, 0

    def forward(self, windows):
        batch, _, height, width = windows.shape
        self.largest = max(self.largest, batch * height * width)
        held = torch.ones(batch, self.planes, height, width)
        return windows + 0 * held[:, :1]


@pytest.mark.parametrize("options", [{"tile_size": "auto"}, {"tile_size": 400}, {"tile_size": 100, "batch_size": 8}])
@pytest.mark.parametrize("keep_heap", [False, True])
@pytest.mark.parametrize("limit", [30 << 20, 100 << 20])
def test_the_limit_is_kept_to(options, keep_heap, limit):
    model = Hungry(1000)
    restorer = TiledRestorer(model, halo=8, memory_limit=limit, keep_heap=keep_heap, **options)
    restorer(IMAGE)
    found = restorer.last_run.tuning
    assert model.largest * 1000 <= limit
    assert found.bytes <= found.limit <= limit
    if "batch_size" not in options and options["tile_size"] != "auto":
        assert found.bytes > limit / 8
    assert "MiB" in found.why


PEAK = """
import sys
import numpy as np
import torch
from halotile import restore_tiled
from halotile import memory
from tests.networks import Chain, seeded

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

limit, keep_heap = int(sys.argv[1]), sys.argv[2] == "keep"
model = seeded(lambda: Chain(4, width=48))
restore_tiled(np.zeros((64, 64, 3), np.uint8), model, halo=4)  # libraries set up what they keep
start = memory.resident_bytes()
image = np.zeros((800, 800, 3), np.uint8)
restore_tiled(image, model, halo=4, tile_size=int(sys.argv[3]), memory_limit=limit, keep_heap=keep_heap)
print(peak() - start)
"""


@pytest.mark.skipif(memory.resident_bytes() is None, reason="nobody says what the process holds")
@pytest.mark.parametrize("keep_heap", ["keep", "not"])
@pytest.mark.parametrize("limit", [pytest.param(80 << 20, marks=pytest.mark.slow), 200 << 20])
def test_the_process_stays_below_the_limit(limit, keep_heap):
    command = [sys.executable, "-c", PEAK, str(limit), keep_heap, "800"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert limit / 8 < int(done.stdout) <= limit


TOO_LOW = (
    r"memory_limit must be at least [\d.]+ MiB for this model and image, not {}: pass memory_limit=(\d+) << 20, or "
    r"--memory-limit \1M$"
)


def test_a_limit_that_is_said_to_be_enough_is():
    options = {"halo": 8, "tile_size": 256}
    with pytest.raises(ValueError, match=TOO_LOW.format("97 KiB")) as raised:
        restore_tiled(IMAGE, Hungry(20), memory_limit=100_000, **options)
    megabytes = int(re.search(r"memory_limit=(\d+)", str(raised.value))[1])
    restore_tiled(IMAGE, Hungry(20), memory_limit=megabytes << 20, **options)


def test_a_limit_that_nothing_keeps_to():
    for options in ({"tile_size": "auto"}, {"tile_size": 256}):
        with pytest.raises(ValueError, match=TOO_LOW.format("97 KiB")):
            restore_tiled(IMAGE, Hungry(1000), halo=8, memory_limit=100_000, **options)


def test_a_generous_limit_changes_nothing():
    restorer = TiledRestorer(small(), tile_size=120, halo=1, memory_limit=8 << 30)
    want = restore_tiled(IMAGE, small(), tile_size=120, halo=1)
    assert np.array_equal(restorer(IMAGE), want)
    assert restorer.last_run.tuning.why.startswith("the largest that memory_limit allows")


def test_the_result_counts_where_it_is_held():
    """Rows that are yielded, or written to an array that was there, are not the run's."""
    image, limit = np.zeros((2000, 2000, 3), np.uint8), 20 << 20
    model = torch.nn.Upsample(scale_factor=4)  # 192 MB of result
    with pytest.raises(ValueError, match="memory_limit must be at least"):
        restore_tiled(image, model, halo=0, tile_size="auto", memory_limit=limit)
    assert sum(len(rows) for _, rows in iter_bands(image, model, halo=0, tile_size="auto", memory_limit=limit)) == 8000
    restore_tiled(image, model, halo=0, tile_size="auto", memory_limit=limit, out=np.zeros((8000, 8000, 3), np.uint8))


def test_what_a_file_takes_counts(tmp_path):
    """Rows of the source, bands of the result and the encoder, whichever the tile."""
    pytest.importorskip("pyvips")
    image, model = np.zeros((600, 2000, 3), np.uint8), torch.nn.Upsample(scale_factor=4)
    np.save(tmp_path / "image.npy", image)
    limit = (40 << 20) + FORMATS[".tif"].held_bytes((2400, 8000, 3), "uint8")
    options = {"halo": 8, "overlap": 0, "tile_size": 600, "memory_limit": limit}
    given = TiledRestorer(model, **options)
    given(image, out=np.zeros((2400, 8000, 3), np.uint8))
    taken = {"array": given.last_run.tuning}
    for name in ("b.npy", "b.tif"):
        taken[name] = restore_to(tmp_path / name, tmp_path / "image.npy", model, **options).tuning
    rows = [found.tile_size[0] for found in taken.values()]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]
    for bands, name in ((1, "b.npy"), (2, "b.tif")):
        found = taken[name]
        assert bands * found.tile_size[0] * 4 * 8000 * 3 + found.tile_size[0] * 2000 * 3 < found.bytes <= limit
    for _ in iter_bands(image, model, **options):
        pass
    with pytest.raises(ValueError, match="memory_limit must be at least"):
        restore_to(tmp_path / "c.webp", image, model, **options)  # libvips holds it as a whole


def test_what_is_known_counts_where_the_model_cannot_be_seen():
    def model(windows):
        return windows.repeat(4, 2).repeat(4, 3)

    image, limit = np.zeros((700, 500, 3), np.uint8), 30 << 20
    for tile in (700, "auto"):
        restorer = TiledRestorer(model, halo=8, overlap=0, tile_size=tile, memory_limit=limit, keep_heap=False)
        restorer(image)
        found = restorer.last_run.tuning
        assert 17 * 3 * 4 * found.tile_size[0] * found.tile_size[1] + 16 * image.nbytes < limit
        assert "without what the model itself takes, which cannot be seen" in found.why
        with pytest.raises(ValueError, match=TOO_LOW.format("16 MiB")):
            restore_tiled(image, model, halo=8, tile_size=tile, memory_limit=16 * image.nbytes, keep_heap=False)


def test_control_groups_are_looked_at(monkeypatch, tmp_path):
    most, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_own_groups", lambda: [(str(most), str(used))])
    free = memory.available_bytes()
    most.write_text("max\n")
    used.write_text("1000\n")
    assert memory.available_bytes() == pytest.approx(free, rel=0.2)
    most.write_text("51000\n")
    assert memory.available_bytes() == 50_000
    most.write_text("500\n")
    assert memory.available_bytes() == 0


class Limited(torch.nn.Module):
    """Runs out of memory in windows of more than so many pixels."""

    def __init__(self, largest):
        super().__init__()
        self.largest = largest

    def forward(self, windows):
        if windows.shape[2] * windows.shape[3] > self.largest:
            raise MemoryError("no more")
        return windows.clone()


def test_a_probe_that_runs_out_of_memory_is_no_failure():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        for largest in (150**2, 300**2, 90**2):
            assert np.array_equal(restore_tiled(IMAGE, Limited(largest), tile_size="auto", halo=4), IMAGE)


def test_the_last_failure_says_what_the_limit_allows():
    class Never(Chain):
        def forward(self, windows):
            if windows.device.type == "meta":
                return super().forward(windows)
            raise MemoryError("no more")

    with (
        pytest.warns(TileSizeWarning),
        pytest.raises(OutOfMemoryError, match=r"8 MiB are free on the CPU: a tile of [0-9]+ would fit at most"),
    ):
        restore_tiled(IMAGE, seeded(lambda: Never(3, width=32)), tile_size=64, halo=3, memory_limit=8 << 20)


# ---- models of every kind --------------------------------------------------------------------------------------------


def test_models_on_arrays():
    restorer = TiledRestorer(lambda windows: windows[:, :, ::1] * np.float32(1), tile_size="auto", halo=2)
    assert np.array_equal(restorer(IMAGE), IMAGE)
    assert restorer.last_run.tuning.memory_format == "contiguous"


def test_several_images_grey_alpha_and_an_exact_halo():
    model = seeded(lambda: Chain(2))
    for shape in ((2, 300, 210, 3), (300, 210), (300, 210, 4)):
        image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        want = restore_tiled(image, model, tile_size=64, halo=2, overlap=0)
        got = restore_tiled(image, model, tile_size="auto", halo="exact", phase=None)
        assert np.abs(got.astype(int) - want).max() <= 1


def test_windows_of_the_run_have_one_shape():
    model = small()
    seen = shapes_of(model)
    restorer = TiledRestorer(model, tile_size="auto", halo=1)
    restorer(IMAGE)
    tiles = [len(list(group)) for _, group in itertools.groupby(seen)]
    assert restorer.last_run.tuning.tile_size
    assert tiles[-1] >= 1
    assert "; tiles of " in str(restorer.last_run)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"memory_limit": 0}, ValueError, "memory_limit must be from 1 to"),
        ({"memory_limit": "2GB"}, TypeError, "memory_limit must be a whole number, not '2GB'"),
        ({"batch_size": "many"}, TypeError, "batch_size must be a whole number, not 'many'"),
        ({"tile_size": "largest"}, ValueError, "tile_size must be 'auto', a number or a pair"),
    ],
)
def test_bad_values(options, kind, text):
    with pytest.raises(kind, match=text):
        restore_tiled(IMAGE, small(), **options)
