# SPDX-License-Identifier: MIT
"""restore_to(resume=True): whatever ends a run, another one goes on, and the result has the bytes of a single run."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
pytest.importorskip("pyvips")

from halotile import TiledRestorer, TileError, restore_to  # noqa: E402
from halotile.files import disk, journal  # noqa: E402
from halotile.files import picture as files  # noqa: E402
from halotile.files.atomic import hidden_name  # noqa: E402
from halotile.options import Options  # noqa: E402
from halotile.resume import identity  # noqa: E402

from .networks import Chain, seeded  # noqa: E402
from .sampled import sampled  # noqa: E402

SINKS = ("npy", "zarr", "tif", "png")
TILES = {"tile_size": 24, "halo": 3}
STREAM = {"schedule": "stream", "halo": "exact", "boundary": "native"}
SCHEDULES = {"tiles": TILES, "stream": STREAM}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal, "SHARE", float("inf"))  # rows are kept as soon as they are written


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (150, 61, 3), np.uint8)


def model():
    return seeded(lambda: Chain(3, scale=2))


class Stopped(Exception):
    pass


def stopping(at):
    """A progress callback that raises at a call."""
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == at:
            raise Stopped

    return progress


def stopped(path, image, network, at, **options):
    with pytest.raises(Stopped):
        restore_to(path, image, network, resume=True, progress=stopping(at), **options)
    assert not os.path.exists(path)


def rows_kept(path):
    with journal.open_journal(path) as kept:
        return kept.rows


def content(path):
    """The bytes of a file, or of the files of an array; and nothing beside them."""
    assert not [name for name in os.listdir(os.path.dirname(path) or ".") if name.startswith(".")]
    below = [one for one in sorted(Path(path).rglob("*")) if one.is_file()] if os.path.isdir(path) else [Path(path)]
    return [(str(one.relative_to(path)), one.read_bytes()) for one in below]


def whole(sink, image, network, **options):
    restore_to(f"whole.{sink}", image, network, **options)
    return content(f"whole.{sink}")


class Counting(torch.nn.Module):
    """A model that says how often it ran."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        return self.inner(x)


# ---- the bytes of a single run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sink", SINKS)
def test_a_run_goes_on_where_another_was_stopped(image, sink, schedule):
    options, path = SCHEDULES[schedule], f"out.{sink}"
    want = whole(sink, image, model(), **options)
    steps = []
    restore_to("steps.npy", image, model(), progress=lambda done, total: steps.append((done, total)), **options)
    for at in {1, 2, len(steps) // 2, len(steps) - 1} - {0}:
        stopped(path, image, model(), at, **options)
        progress = []
        restore_to(path, image, model(), resume=True, progress=lambda *now: progress.append(now), **options)
        assert content(path) == want, at
        assert progress[-1] == steps[-1]
        os.rename(path, f"{at}.{sink}")


def test_what_is_kept_is_not_made_again(image):
    want = whole("png", image, model(), **TILES)
    network = Counting(model())
    restore_to("all.npy", image, network, **TILES)
    everything, network.calls[0] = network.calls[0], 0
    stopped("out.png", image, Counting(model()), everything * 3 // 4, **TILES)
    kept = rows_kept("out.png")
    assert kept > 100
    restore_to("out.png", image, network, resume=True, **TILES)
    assert content("out.png") == want
    across = 3  # tiles; the last row of tiles is made again, and the first batch tells what the model does
    assert network.calls[0] <= everything - (everything * 3 // 4) + 2 * across + 4


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": 8, "blend": "cosine"},
        {"batch_size": 5},
        {"batch_size": 4, "overlap": 0},
        {"boundary": "native"},
        {"out_dtype": "float32"},
        {"out_dtype": "uint16"},
        {"phase": 4, "halo": 8},
        {"halo": "exact"},
        {"engine": "torch"},
        {"tile_size": 500},
        {"value_range": (-1, 1)},
    ],
)
def test_options(image, options):
    options = TILES | options
    want = whole("npy", image, model(), **options)
    for at in (2, 4 if "batch_size" in options else 9):
        if options["tile_size"] == 500:
            with pytest.raises(Stopped):
                restore_to("out.npy", image, model(), resume=True, progress=stopping(1), **options)
        else:
            stopped("out.npy", image, model(), at, **options)
        restore_to("out.npy", image, model(), resume=True, **options)
        assert content("out.npy") == want
        os.unlink("out.npy")


@pytest.mark.parametrize("global_stats", ["exact", "frozen"])
def test_statistics_of_the_whole_image(image, global_stats):
    class Pooled(Chain):
        def forward(self, x):
            return super().forward(x) * (1 + x.mean((2, 3), keepdim=True))

    options = TILES | {"global_stats": global_stats}
    want = whole("npy", image, seeded(Pooled), **options)
    stopped("out.npy", image, seeded(Pooled), 40 if global_stats == "exact" else 15, **options)
    assert rows_kept("out.npy")
    restore_to("out.npy", image, seeded(Pooled), resume=True, **options)
    assert content("out.npy") == want


@pytest.mark.parametrize("kind", ["alpha", "nodata", "path", "zarr"])
def test_images(image, rng, kind):
    options = dict(TILES)
    if kind == "alpha":
        image = np.dstack([image, rng.integers(0, 2, image.shape[:2], np.uint8) * 255])
    if kind == "nodata":
        image[image < 9] = 0
        options["nodata"] = 0
    if kind == "path":
        files.write_image("in.png", image)
    if kind == "zarr":
        zarr.create_array(store="in.zarr", shape=image.shape, dtype=image.dtype, chunks=(10, 16, 3))[...] = image
    given = {"path": "in.png", "zarr": "in.zarr"}.get(kind, image)
    want = whole("tif", given, model(), **options)
    stopped("out.tif", given, model(), 12, **options)
    restore_to("out.tif", given, model(), resume=True, **options)
    assert content("out.tif") == want


@pytest.mark.parametrize("sink", ["npy", "zarr"])
def test_several_images(rng, sink):
    images = rng.integers(0, 256, (3, 70, 61, 3), np.uint8)
    want = whole(sink, images, model(), **TILES)
    for at in (3, 10, 14, 25):
        stopped(f"out.{sink}", images, model(), at, **TILES)
        restore_to(f"out.{sink}", images, model(), resume=True, **TILES)
        assert content(f"out.{sink}") == want
        os.rename(f"out.{sink}", f"{at}.{sink}")


def test_stopped_again_and_again(image):
    want, times = whole("png", image, model(), **TILES), 0
    while not os.path.exists("out.png"):
        times += 1
        try:
            restore_to("out.png", image, model(), resume=True, progress=stopping(12), **TILES)
        except Stopped:
            assert times < 30
    assert times > 3
    assert content("out.png") == want


@pytest.mark.parametrize("sink", SINKS)
def test_the_old_file_stays_until_the_new_one_is_complete(image, sink):
    path, old = f"out.{sink}", image[::-1].copy()
    restore_to(path, old, torch.nn.Identity(), **TILES)
    before = content(path)
    with pytest.raises(Stopped):
        restore_to(path, image, model(), resume=True, progress=stopping(9), **TILES)
    kept = {hidden_name(os.path.realpath(path), suffix) for suffix in ("rows", "journal")}
    assert {os.path.realpath(name) for name in os.listdir() if name.startswith(".")} == kept
    restore_to(path, image, model(), resume=True, **TILES)
    assert content(path) != before
    assert content(path) == whole(sink, image, model(), **TILES)


def test_a_complete_journal_gives_its_file(image, monkeypatch):
    """As after a kill when the file had its name."""
    want = whole("png", image, model(), **TILES)
    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "remove", lambda self: None)
        restore_to("out.png", image, Counting(model()), resume=True, **TILES)
    os.unlink("out.png")
    network = Counting(model())
    assert rows_kept("out.png") == 300
    restore_to("out.png", image, network, resume=True, **TILES)
    assert content("out.png") == want
    assert network.calls[0] <= 3  # what the first batch tells


# ---- what ends a run -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_model_that_fails(image, sink, error):
    network, calls = model(), []
    want = whole(sink, image, network, **TILES)

    class Failing(type(network)):
        def forward(self, x):
            calls.append(1)
            if len(calls) == 13:
                raise error
            return super().forward(x)

    network.__class__ = Failing
    with pytest.raises((TileError, KeyboardInterrupt)):
        restore_to(f"out.{sink}", image, network, resume=True, **TILES)
    assert rows_kept(f"out.{sink}")
    restore_to(f"out.{sink}", image, network, resume=True, **TILES)
    assert content(f"out.{sink}") == want


KILLED = """
import os, signal, sys, numpy as np, torch, zarr, pyvips
sys.path.insert(0, sys.argv[3])
from halotile import restore_to
from halotile.files import journal
from tests.test_resume import SCHEDULES, model
journal.SHARE = float("inf")
calls = []
def progress(done, total):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), getattr(signal, sys.argv[5]))
restore_to(sys.argv[1], np.load("in.npy"), model(), resume=True, progress=progress, **SCHEDULES[sys.argv[4]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("sink, schedule, sent", sampled(3, SINKS, SCHEDULES, ("SIGKILL", "SIGTERM")))
def test_a_process_that_is_killed(image, sink, schedule, sent):
    np.save("in.npy", image)
    want = whole(sink, image, model(), **SCHEDULES[schedule])
    root = str(Path(__file__).parents[1])
    at = {"tiles": 13, "stream": 2}[schedule]
    command = [sys.executable, "-c", KILLED, f"out.{sink}", str(at), root, schedule, sent]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -getattr(signal, sent), done.stderr
    assert not os.path.exists(f"out.{sink}")
    restore_to(f"out.{sink}", image, model(), resume=True, **SCHEDULES[schedule])
    for name in os.listdir():  # the draft of the dead may be one of a folder that this process has swept
        if name.endswith(".tmp"):
            from halotile.files.atomic import sweep

            sweep.cache_clear()
            sweep(os.getcwd())
            break
    assert content(f"out.{sink}") == want


class Power(BaseException):
    """The power fails."""


class Layer:
    """A disk that loses what was not synced, or some of it. It fails at a write or sync.

    Attributes:
        synced: the sizes of files, by name, that a loss of power leaves.
        named: files whose names are on the disk.
    """

    def __init__(self, monkeypatch, at=None, error=Power):
        self.at, self.error, self.count = at, error, 0
        self.synced, self.named, self.log = {}, set(), []
        for name in ("write", "sync", "sync_folder"):
            monkeypatch.setattr(disk, name, self.wrapped(name, getattr(disk, name)))

    def wrapped(self, name, real):
        def call(where, *data):
            path = where if isinstance(where, str) else os.readlink(f"/proc/self/fd/{where}")
            self.count += 1
            self.log.append((name, path))
            if self.at is not None and (self.count == self.at or (self.error is Power and self.count > self.at)):
                if name == "write" and self.error is Power:
                    real(where, memoryview(data[0]).cast("B")[: len(data[0]) // 2])  # half of it comes through
                raise self.error() if self.error is Power else self.error
            if name == "sync_folder":
                self.named |= {os.path.join(path, one) for one in os.listdir(path)}
                return
            real(where, *data)
            if name == "sync":
                self.synced[path] = os.path.getsize(path)

        return call

    def lose(self, kept, garbage):
        """What is found after the power came back: of what was not synced, a share is there, partly as garbage."""
        for name in os.listdir():
            path = os.path.realpath(name)
            if not name.startswith(".halotile-"):
                continue
            if path not in self.named:
                os.unlink(path)
                continue
            synced, size = self.synced.get(path, 0), os.path.getsize(path)
            end = synced + int(kept * (size - synced))
            os.truncate(path, end)
            if garbage:
                with open(path, "r+b") as file:
                    file.seek(synced)
                    file.write(os.urandom(end - synced))


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sink", SINKS)
def test_the_power_fails_at_any_write_or_sync(image, sink, schedule, monkeypatch):
    options, path, image = SCHEDULES[schedule], f"out.{sink}", image[:80]
    want = whole(sink, image, model(), **options)
    with monkeypatch.context() as patch:
        count = Layer(patch)
        restore_to(path, image, model(), resume=True, **options)
    os.rename(path, f"first.{sink}")
    random, restorer, kept = np.random.default_rng(0), TiledRestorer(model(), **options), 0
    assert count.count > 10
    for at in range(1, count.count + 1):
        with monkeypatch.context() as patch:
            layer = Layer(patch, at)
            with pytest.raises(Power):
                restore_to(path, image, restorer, resume=True)
        layer.lose(random.choice([0, 0.5, 1]), random.random() < 0.5)
        if os.path.exists(path):  # it had its name already
            assert content_of_result(path) == want
        kept += journal.has_journal(path) and rows_kept(path) > 0
        restore_to(path, image, restorer, resume=True)
        assert content(path) == want, at
        os.rename(path, f"{at}.{sink}")
    assert kept > 5


def content_of_result(path):
    hidden = {name: os.rename(name, f"hidden{name}") for name in os.listdir() if name.startswith(".")}
    found = content(path)
    for name in hidden:
        os.rename(f"hidden{name}", name)
    return found


@needs_proc
def test_rows_are_on_the_disk_before_the_line_that_counts_them(image, monkeypatch):
    layer = Layer(monkeypatch)
    stopped("out.npy", image, model(), 18, **TILES)
    kept = hidden_name(os.path.realpath("out.npy"), "journal"), hidden_name(os.path.realpath("out.npy"), "rows")
    log = [(what, "journal" if path == kept[0] else "rows") for what, path in layer.log if path in kept]
    assert log[:2] == [("write", "journal"), ("sync", "journal")]
    each = [("write", "rows"), ("sync", "rows"), ("write", "journal"), ("sync", "journal")]
    bands = len(log) // 4
    assert bands > 3
    assert log[2:] == each * bands
    assert layer.log[2] == ("sync_folder", os.getcwd())  # their names, before anything is counted


@needs_proc
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("sink", SINKS)
def test_a_disk_that_fails_at_any_write(image, sink, code, monkeypatch):
    image, path, restorer = image[:80], f"out.{sink}", TiledRestorer(model(), **TILES)
    want = whole(sink, image, model(), **TILES)
    with monkeypatch.context() as patch:
        count = Layer(patch)
        restore_to(path, image, restorer, resume=True)
    os.rename(path, f"first.{sink}")
    for at in range(1, count.count + 1):
        with monkeypatch.context() as patch:
            Layer(patch, at, OSError(code, os.strerror(code)))
            with pytest.raises(OSError, match=os.strerror(code)):
                restore_to(path, image, restorer, resume=True)
        restore_to(path, image, restorer, resume=True)
        assert content(path) == want, at
        os.rename(path, f"{at}.{sink}")


# ---- a journal -------------------------------------------------------------------------------------------------------


ROW = 12


def journal_of(rows):
    """A journal of such bands, each a number of rows; and their bytes."""
    random, parts = np.random.default_rng(0), []
    with journal.open_journal("out.npy") as kept:
        kept.start({"run": {}}, ROW)
        for count in rows:
            parts.append(random.bytes(count * ROW))
            kept.append(memoryview(parts[-1]))
            kept.commit()
    return parts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    file=st.sampled_from(["rows", "journal"]),
    at=st.floats(0, 1, exclude_max=True),
    change=st.sampled_from(["cut", "flip", "zero", "double"]),
)
def test_a_damaged_journal_keeps_only_rows_that_are_right(rows, file, at, change):
    parts = b"".join(journal_of(rows))
    name = hidden_name(os.path.realpath("out.npy"), file)
    found = bytearray(Path(name).read_bytes())
    place = int(at * len(found))
    if change == "cut":
        del found[place:]
    elif change == "flip":
        found[place] ^= 1 << int(at * 64) % 8
    elif change == "zero":
        found[place:] = bytes(len(found) - place)
    else:
        found[place:place] = found[place : place + 40]
    Path(name).write_bytes(found)
    with journal.open_journal("out.npy") as kept:
        assert kept.read(0, kept.rows) == parts[: kept.rows * ROW] if kept.found else kept.rows == 0
        counted = {sum(rows[:many]) for many in range(len(rows) + 1)}
        assert kept.rows in counted
        if file == "rows" and change == "cut":
            assert kept.rows == max(one for one in counted if one * ROW <= place)
        kept.remove()


def test_what_is_no_journal_is_none():
    name = hidden_name(os.path.realpath("out.npy"), "journal")
    for text in (b"", b"\0" * 1000, b"00000000 {}\n", b"[" * 100_000 + b"\n", journal._line({"about": 3}), b"\xff\n"):
        Path(name).write_bytes(text)
        with journal.open_journal("out.npy") as kept:
            assert (kept.found, kept.rows) == (None, 0)
    assert os.listdir() == []


def test_syncs_take_a_small_share_of_the_time(monkeypatch):
    """The next one waits until fifty times as long has passed."""
    now, synced = [0.0], []
    monkeypatch.setattr(journal, "SHARE", 0.02)
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])

    def slow(descriptor):
        now[0] += 0.5
        synced.append(now[0])

    with journal.open_journal("out.npy") as kept:
        kept.start({"run": {}}, ROW)
        monkeypatch.setattr(disk, "sync", slow)
        for _ in range(1000):
            now[0] += 1
            kept.append(memoryview(bytes(ROW)))
        assert 0.5 * len(synced) <= 0.021 * now[0]
        assert 0.5 * len(synced) >= 0.015 * now[0]
        kept.remove()


# ---- something else --------------------------------------------------------------------------------------------------


def other_weights():
    network = model()
    with torch.no_grad():
        network.layers[1].bias[3] += 1e-6
    return network


DIFFERENT = {
    "the image": ({"image": "changed"}, "the image is another"),
    "its size": ({"image": "cut"}, "the image's axes is .* and was .*"),
    "the model": ({"model": other_weights}, "the model is another"),
    "halo": ({"halo": 4}, "halo is 4x4 and was 3x3"),
    "overlap": ({"overlap": 2}, "overlap is 2 and was 'auto'"),
    "blend": ({"blend": "cosine"}, "blend is 'cosine' and was 'average'"),
    "boundary": ({"boundary": "native"}, "boundary is 'native' and was 'reflect'"),
    "phase": ({"phase": 2, "halo": 4}, "phase is 2x2 and was 1x1"),
    "value_range": ({"value_range": (0, 2)}, "value_range is .0.0, 2.0. and was None"),
    "out_dtype": ({"out_dtype": "uint16"}, "out_dtype is 'uint16' and was None"),
    "dtype": ({"dtype": "bfloat16"}, "dtype is bfloat16 and was float32"),
    "white": ({"white": 200}, "white is 200.0 and was None"),
    "on_nonfinite": ({"on_nonfinite": "ignore"}, "on_nonfinite is 'ignore' and was 'raise'"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named_and_nothing_is_touched(image, name):
    changes, text = DIFFERENT[name]
    stopped("out.png", image, model(), 9, **TILES)
    before = {one: Path(one).read_bytes() for one in os.listdir()}
    changes = dict(changes)
    given = {"changed": image ^ 1, "cut": image[:-1].copy(), None: image}[changes.pop("image", None)]
    network = changes.pop("model", model)()
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"out.png: .*{text}.*without resume"):
        warnings.simplefilter("ignore")
        restore_to("out.png", given, network, resume=True, **TILES | changes)
    assert {one: Path(one).read_bytes() for one in os.listdir()} == before
    restore_to("out.png", image, model(), resume=True, **TILES)
    assert content("out.png") == whole("png", image, model(), **TILES)


@pytest.mark.parametrize("what", ["__version__"])
def test_another_version(image, monkeypatch, what):
    stopped("out.png", image, model(), 9, **TILES)
    monkeypatch.setattr(identity, what, "99")
    with pytest.raises(ValueError, match="version is 99 and was"):
        restore_to("out.png", image, model(), resume=True, **TILES)


def test_without_resume_it_starts_anew_and_keeps_nothing(image):
    stopped("out.png", image, model(), 9, **TILES)
    network = other_weights()
    restore_to("out.png", image, network, **TILES)
    assert content("out.png") == whole("png", image, network, **TILES)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_resume_is_true_or_false(image, value):
    with pytest.raises(TypeError, match="resume must be True or False"):
        restore_to("out.png", image, model(), resume=value, **TILES)
    assert os.listdir() == []


# ---- in another manner -----------------------------------------------------------------------------------------------


class Pointwise(torch.nn.Module):
    """The same bits whatever the window."""

    def forward(self, x):
        return x * 0.75 + 0.1


class Sized(torch.nn.Module):
    """Bits that depend on the window's size, hidden by rounding to 8 bits."""

    def forward(self, x):
        return x * (0.75 + 1e-7 * x.shape[-1])


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("after", [{"tile_size": 37}, {"tile_size": 500}, {"tile_size": 16, "batch_size": 3}])
def test_other_tiles_where_they_change_no_bits(image, sink, after):
    options = TILES | {"overlap": 0}
    want = whole(sink, image, Pointwise(), **options)
    stopped(f"out.{sink}", image, Pointwise(), 13, **options)
    network = Counting(Pointwise())
    stopped_with = restore_to(f"out.{sink}", image, Pointwise(), resume=True, **options | after)
    assert stopped_with.schedule == "tiles"
    assert content(f"out.{sink}") == want
    assert network.calls == [0]


@pytest.mark.parametrize("after", [{"tile_size": 37}, {"tile_size": 20, "batch_size": 3}])
def test_other_tiles_where_they_change_bits(image, after):
    stopped("out.png", image, Sized(), 13, **TILES)
    text = "tile_size is .* and was 2.x2., .*and the bits of this model depend on it"
    with pytest.raises(ValueError, match=text):
        restore_to("out.png", image, Sized(), resume=True, **TILES | after)
    restore_to("out.png", image, Sized(), resume=True, **TILES)
    assert content("out.png") == whole("png", image, Sized(), **TILES)


def test_other_strips(image, monkeypatch):
    from halotile.run.stream import cost

    want = whole("png", image, Pointwise(), **STREAM)
    monkeypatch.setattr(cost, "usual_rows", lambda graph: 32)
    stopped("out.png", image, Pointwise(), 2, **STREAM)
    assert rows_kept("out.png")
    monkeypatch.setattr(cost, "usual_rows", lambda graph: 12)
    restore_to("out.png", image, Pointwise(), resume=True, **STREAM)
    assert content("out.png") == want


def test_another_schedule(image):
    """A stream is not made again to be compared with tiles."""
    options = STREAM | {"tile_size": 24}
    stopped("out.png", image, Pointwise(), 1, **options)
    assert rows_kept("out.png")
    with pytest.raises(ValueError, match="schedule is tiles and was stream"):
        restore_to("out.png", image, Pointwise(), resume=True, **options | {"schedule": "tiles"})


def test_what_was_left_open_is_what_it_was(image, monkeypatch):
    """tile_size="auto" depends on what else the machine does."""
    from halotile.auto.tiles import Tuner

    options = {"halo": 3, "tile_size": "auto"}
    network = Sized()
    monkeypatch.setattr("halotile.auto.tiles.SIZES", (24, 32), raising=False)
    with pytest.raises(Stopped):
        restore_to("out.npy", image, network, resume=True, progress=stopping(1), **options)
    restorer = TiledRestorer(network, **options)
    monkeypatch.setattr(Tuner, "started", lambda self: pytest.fail("it was settled"))
    restore_to("out.npy", image, restorer, resume=True)
    tile = restorer.last_run
    assert tile is not None


def test_another_device(image, fake_mps):
    from .fake_mps.attach import DEVICE

    stopped("out.png", image, model(), 9, **TILES)
    with pytest.raises(ValueError, match=r"device is .* and was cpu.* devices round differently"):
        restore_to("out.png", image, model(), resume=True, device=DEVICE, **TILES)


def test_on_the_emulated_device(image, fake_mps):
    from .fake_mps.attach import DEVICE

    options = TILES | {"device": DEVICE}
    want = whole("png", image, model(), **options)
    stopped("out.png", image, model(), 9, **options)
    assert rows_kept("out.png")
    restore_to("out.png", image, model(), resume=True, **options)
    assert content("out.png") == want


class Spoilt(torch.nn.Module):
    """NaN in one row of tiles, which a device reports only at the end of an image."""

    def forward(self, x):
        return torch.where(x > 0.9, torch.nan, x)


def test_rows_that_are_not_finite_are_not_kept(image, fake_mps):
    from halotile import NonFiniteError

    from .fake_mps.attach import DEVICE

    image = image // 2
    image[80, 30] = 255
    options = TILES | {"device": DEVICE, "out_dtype": "float32"}
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            restore_to("out.npy", image, Spoilt(), resume=True, **options)
        assert 0 < rows_kept("out.npy") <= 80


def test_a_model_that_does_not_repeat_its_bits(image):
    class Random(torch.nn.Module):
        def forward(self, x):
            return x * torch.rand(1)

    network = Random()
    stopped("out.png", image, network, 13, scale=1, **TILES)
    with pytest.raises(ValueError, match=r"row .* is made with other bits than before"):
        torch.manual_seed(5)
        restore_to("out.png", image, network, resume=True, scale=1, **TILES)
    assert not os.path.exists("out.png")


# ---- two writers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False])
def test_two_writers_of_one_output(image, resume):
    failures = []

    def progress(done, total):
        if done == 9:
            with pytest.raises(OSError, match="another process is making it") as failed:
                restore_to("out.png", image, model(), resume=resume, **TILES)
            failures.append(failed.value.errno)

    restore_to("out.png", image, model(), resume=True, progress=progress, **TILES)
    assert failures == [errno.EBUSY]
    assert content("out.png") == whole("png", image, model(), **TILES)


def test_a_lock_ends_with_its_process(image):
    command = [sys.executable, "-c", KILLED, "out.png", "9", str(Path(__file__).parents[1]), "tiles", "SIGKILL"]
    np.save("in.npy", image)
    subprocess.run(command, check=False, capture_output=True)
    assert rows_kept("out.png")


def test_a_journal_that_is_a_link_is_not_followed(image, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "kept"
    other.write_text("kept")
    os.symlink(other, hidden_name(os.path.realpath("out.png"), "journal"))
    with pytest.raises(OSError, match="cannot be written"):
        restore_to("out.png", image, model(), resume=True, **TILES)
    assert other.read_text() == "kept"


# What a journal tells in other ways (how rows are made, and with which model), or what changes no pixel.
ELSEWHERE = {
    "tile_size",
    "halo",
    "scale",
    "phase",
    "tolerance",
    "schedule",
    "verify",
    "batch_size",
    "device",
    "dtype",
    "engine",
    "out",
    "reduce",
    "output",
    "extra",
    "progress",
    "keep_heap",
    "memory_format",
    "memory_limit",
    "compile",
    "needs",
}


def test_a_new_option_is_thought_of():
    """An option that changes pixels must stand in CHANGE_PIXELS, or a run goes on with another one."""
    assert ELSEWHERE.isdisjoint(identity.CHANGE_PIXELS)
    assert ELSEWHERE | set(identity.CHANGE_PIXELS) == {one.name for one in dataclasses.fields(Options)}


def test_a_model_without_torch(tmp_path):
    code = """
import sys
import numpy as np
from halotile import restore_to

restore_to("out.npy", np.zeros((40, 30, 3), np.uint8), lambda windows: windows, tile_size=16, halo=0, resume=True)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["out.npy"]
