# SPDX-License-Identifier: MIT
"""Whatever fails, wherever: the documented exception, finished rows as they were, nothing left, the next call works.

The full matrix is slow (`make test-slow`); one case in several is in `make test`.
"""

import asyncio
import concurrent.futures
import errno
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("zarr")
pytest.importorskip("pyvips")

from halotile import TiledRestorer, TileError, TileSizeWarning, iter_bands, restore_tiled, restore_to  # noqa: E402
from halotile.files import disk  # noqa: E402
from halotile.files.atomic import sweep  # noqa: E402

from .faults import (  # noqa: E402
    ENGINES,
    FAULTS,
    IMAGE,
    PLACES,
    PLAN,
    STREAM,
    TILES,
    Blur,
    Place,
    Run,
    assert_no_more,
    contents,
    failing_operator,
    nothing_left,
    open_files,
    sampled,
)

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
FILES = tuple(place for place in PLACES if place not in ("array", "memmap"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep.cache_clear()


@pytest.fixture
def engine_ready(request):
    if request.getfixturevalue("engine") == "mps":
        request.getfixturevalue("fake_mps")


def whole(schedule="tiles", image=IMAGE):
    """What a run without a fault gives, on arrays."""
    return restore_tiled(image, Blur().eval(), **(TILES if schedule == "tiles" else STREAM))


WANT: dict[str, np.ndarray] = {}


def want(schedule="tiles"):
    if schedule not in WANT:
        WANT[schedule] = whole(schedule)
    return WANT[schedule]


def close(got, schedule="tiles"):
    """Devices and tile sizes may round a value to the other side."""
    apart = np.abs(got.astype(int) - want(schedule))
    assert got.shape == want(schedule).shape and apart.max() <= 1 and (apart > 0).mean() < 0.01


# ---- models ----------------------------------------------------------------------------------------------------------

INDICES = range(len(PLAN))
STREAM_FAULTS = ("raises", "NaN", "MemoryError", "KeyboardInterrupt")


@pytest.mark.parametrize(
    "fault, engine, at, where", sampled(list(itertools.product(FAULTS, ENGINES, INDICES, PLACES)), 71)
)
def test_a_model_that_fails_at_a_tile(fault, engine, at, where, engine_ready, tmp_path):
    kind, run = FAULTS[fault], Run(engine, Place(where, f"out.{where}"))
    close(run.place.run(run.restorer))  # also: what a file holds before
    with nothing_left(tmp_path) if run.place.is_file and kind.raises else warnings.catch_warnings():
        error = run.fails(kind, at)
        assert type(error) is kind.raises if kind.raises else error is None
    out = run.place.out
    if isinstance(error, TileError):
        above = PLAN[at].row * PLAN.grid[1]
        assert error.rows_done == (PLAN.rows_complete(above - 1) if above else 0)
        assert (error.__cause__ is None) == (fault not in ("raises", "raises without text", "StopIteration", "device"))
        if not run.place.is_file:
            out = error.out if error.out is not None or at else np.empty_like(IMAGE)
            apart = np.abs(np.asarray(out)[: error.rows_done].astype(int) - want()[: error.rows_done])
            assert apart.size == 0 or apart.max() <= 1
    if error is None and kind.same:
        close(np.asarray(out) if not run.place.is_file else run.place.read())
    del error
    close(run.place.run(run.restorer))


@pytest.mark.parametrize(
    "fault, engine, at, where",
    sampled(
        list(itertools.product(("raises", "NaN", "MemoryError", "KeyboardInterrupt"), ENGINES, range(4), PLACES)), 41
    ),
)
def test_an_operator_that_fails_in_a_stream(fault, engine, at, where, engine_ready, tmp_path):
    kind, run = FAULTS[fault], Run(engine, Place(where, f"out.{where}"), "stream")
    with failing_operator(None) as counted:
        close(run.place.run(run.restorer), "stream")
        steps = counted.calls
        close(run.place.run(run.restorer), "stream")
        steps = counted.calls - steps
    with nothing_left(tmp_path) if run.place.is_file and kind.raises else warnings.catch_warnings():
        raises = pytest.raises(kind.raises) if kind.raises else pytest.warns(TileSizeWarning)
        with raises as caught, failing_operator(min(at, steps - 1), fault):
            run.place.run(run.restorer)
        if kind.raises is TileError:
            assert isinstance(caught.value.__cause__, RuntimeError)
        if kind.raises and issubclass(kind.raises, TileError) and not run.place.is_file and caught.value.rows_done:
            done = caught.value.rows_done
            assert np.abs(np.asarray(caught.value.out)[:done].astype(int) - want("stream")[:done]).max() <= 1
        del caught, raises
    close(run.place.run(run.restorer), "stream")


@pytest.mark.parametrize("error", [ValueError, StopIteration, MemoryError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    "schedule, at, where", sampled(list(itertools.product(("tiles", "stream"), (1, 2), PLACES)), 11)
)
def test_a_callback_that_raises(error, schedule, at, where, tmp_path):
    run, calls = Run("host", Place(where, f"out.{where}"), schedule), []

    def progress(done, total):
        calls.append(done)
        if len(calls) == at:
            raise error("from the callback")

    options = TILES if schedule == "tiles" else STREAM
    failing = TiledRestorer(run.model, engine="host", progress=progress, **options)
    run.place.run(run.restorer)
    guard = nothing_left(tmp_path) if run.place.is_file else warnings.catch_warnings()
    with guard, pytest.raises(error, match="from the callback"):
        run.place.run(failing)
    close(run.place.run(run.restorer), schedule)


# ---- disks -----------------------------------------------------------------------------------------------------------


class Layer:
    """Fails at a write, sync or rename, in Python's part of the file layer."""

    def __init__(self, monkeypatch, at=None, code=0):
        self.count = 0
        for name in ("write", "sync", "sync_folder", "sync_tree", "rename"):
            monkeypatch.setattr(disk, name, self.wrapped(getattr(disk, name), at, code))

    def wrapped(self, real, at, code):
        def call(*arguments):
            self.count += 1
            if self.count - 1 == at:
                raise OSError(code, os.strerror(code))
            return real(*arguments)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("where", FILES)
def test_a_disk_that_fails_at_any_write_sync_or_rename(where, code, monkeypatch, tmp_path):
    run = Run("host", Place(where, f"out.{where}"))
    close(run.place.run(run.restorer))
    with monkeypatch.context() as patch:
        counted = Layer(patch)
        close(run.place.run(run.restorer))
    complete = 0
    for at in range(counted.count):
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            Layer(patch, at, code)
            try:
                run.place.run(run.restorer)
            except OSError as error:
                assert error.errno == code and error.filename == f"out.{where}", error
            else:
                complete += 1  # what cannot be synced on some systems
        assert set(contents(tmp_path)) == set(before)
        close(run.place.read())
    assert complete <= counted.count // 2
    close(run.place.run(run.restorer))


@pytest.mark.parametrize("limit", [0, 100, 1000, 3000])
@pytest.mark.parametrize("where", FILES)
def test_files_that_may_not_grow(where, limit, tmp_path):
    """The kernel itself refuses a write in the middle, also of libraries in C."""
    run = Run("host", Place(where, f"out.{where}"))
    close(run.place.run(run.restorer))
    largest = max(len(one) for one in contents(tmp_path).values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with nothing_left(tmp_path):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, largest - 1), hard))
            with pytest.raises(OSError, match=r"cannot be written|File too large"):
                run.place.run(run.restorer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    close(run.place.run(run.restorer))


@pytest.mark.parametrize("where", FILES)
def test_a_folder_that_is_removed(where, tmp_path):
    os.mkdir("gone")
    run = Run("host", Place(where, f"gone/out.{where}"))
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == 4:
            shutil.rmtree("gone")

    before = open_files()
    with pytest.raises(OSError, match=r"cannot be written|No such file"):
        restore_to(run.place.path, IMAGE, run.model, progress=progress, **TILES)
    assert_no_more(before)
    assert os.listdir() == []
    os.mkdir("gone")
    close(run.place.run(run.restorer))


# ---- processes -------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from tests.faults import *
from tests.faults import STREAM, TILES, Blur
from halotile import restore_to
calls = []
def progress(done, total):
    calls.append(done)
    if len(calls) == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
restore_to(sys.argv[2], IMAGE, Blur().eval(), progress=progress, **TILES)
"""


@pytest.mark.parametrize(
    "where, sent", sampled([(where, sent) for where in FILES for sent in ("SIGKILL", "SIGTERM")], 8)
)
def test_a_process_that_is_killed(where, sent, tmp_path):
    run = Run("host", Place(where, f"out.{where}"))
    close(run.place.run(run.restorer))
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), f"out.{where}", sent]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -getattr(signal, sent), done.stderr
    close(run.place.read())
    sweep.cache_clear()  # as in another process
    close(run.place.run(run.restorer))
    assert os.listdir() == [f"out.{where}"]


def in_child(queue):
    queue.put(np.abs(whole().astype(int) - IMAGE).sum())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes(method):
    """A run in this process first, so that a fork has whatever a run leaves behind."""
    expected = int(np.abs(want().astype(int) - IMAGE).sum())
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=in_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    assert [int(queue.get(timeout=120)) for _ in children] == [expected] * 2
    for child in children:
        child.join(60)
        assert child.exitcode == 0


LOCKED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.faults import IMAGE, TILES, Blur
from halotile import restore_to
def progress(done, total):
    if done == 3:
        print("at work", flush=True)
        sys.stdin.readline()
restore_to("out.png", IMAGE, Blur().eval(), resume=True, progress=progress, **TILES)
"""


def test_two_processes_that_make_one_output():
    """The second is refused while the first lives, and not when it is dead."""
    command = [sys.executable, "-c", LOCKED, str(Path(__file__).parents[1])]
    model = Blur().eval()
    for ends in ("finishes", "dies"):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout.readline() == "at work\n"
            before = contents(Path())
            for resume in (True, False):
                with pytest.raises(OSError, match=r"another process is making it: .out.png.") as refused:
                    restore_to("out.png", IMAGE, model, resume=resume, **TILES)
                assert (refused.value.errno, refused.value.filename) == (errno.EBUSY, "out.png")
            now = contents(Path())  # the first may still be writing down what it made
            assert now.keys() == before.keys() and all(now[name].startswith(before[name]) for name in before)
            if ends == "finishes":
                first.stdin.write("\n")
                first.stdin.flush()
                assert first.wait(60) == 0
                close(Place("png", "out.png").read())
                assert os.listdir() == ["out.png"]
                os.unlink("out.png")
            else:
                first.kill()
                first.wait()
    restore_to("out.png", IMAGE, model, resume=True, **TILES)
    close(Place("png", "out.png").read())


# ---- at once, and inside each other ----------------------------------------------------------------------------------


def test_threads_of_which_some_fail():
    """One restorer, many threads: a failure is of its own call alone."""

    class Sometimes(Blur):
        def forward(self, x):
            if threading.current_thread().name.startswith("failing"):
                raise RuntimeError("boom")
            return self.layer(x)

    restorer, results = TiledRestorer(Sometimes().eval(), **TILES), {}
    close(restorer(IMAGE))

    def work(name):
        try:
            results[name] = restorer(IMAGE)
        except TileError as error:
            results[name] = error

    names = [f"{kind} {i}" for i in range(6) for kind in ("failing", "working")]
    threads = [threading.Thread(target=work, args=(name,), name=name) for name in names]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    for name in names:
        if name.startswith("failing"):
            assert isinstance(results[name], TileError)
        else:
            close(results[name])


def test_asyncio():
    restorer = TiledRestorer(Blur().eval(), **TILES)

    async def several():
        return await asyncio.gather(*(asyncio.to_thread(restorer, IMAGE) for _ in range(4)))

    for one in asyncio.run(several()):
        close(one)


@pytest.mark.parametrize("inner_fails", [False, True])
def test_a_model_that_restores_inside(inner_fails):
    inside = Run("host", Place("array", ""))
    if inner_fails:
        inside.model.state.at, inside.model.state.fault = 0, FAULTS["raises"].make

    def outer(x):
        window = (np.asarray(x)[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)
        made = inside.restorer(window).astype(np.float32).transpose(2, 0, 1)[None] / 255
        inside.model.state.calls = 0
        return made

    options = {"tile_size": (75, 50), "halo": 6, "scale": 1, "phase": 1, "boundary": "reflect"}
    if not inner_fails:
        assert restore_tiled(IMAGE, outer, **options).shape == IMAGE.shape
        return
    with pytest.raises(TileError, match="the model raised TileError: tile 0") as caught:
        restore_tiled(IMAGE, outer, **options)
    assert isinstance(caught.value.__cause__, TileError) and isinstance(caught.value.__cause__.__cause__, RuntimeError)


def test_files_of_several_threads_at_once():
    model = Blur().eval()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(restore_to, f"{i}.{where}", IMAGE, model, **TILES) for i in range(2) for where in FILES]
        for one in runs:
            one.result()
    for i in range(2):
        for where in FILES:
            close(Place(where, f"{i}.{where}").read())
    assert len(os.listdir()) == 2 * len(FILES)


def test_bands_that_nobody_reads_on():
    before = open_files()
    for taken in range(4):
        bands = iter_bands(IMAGE, Blur().eval(), **TILES)
        list(itertools.islice(bands, taken))
        bands.close()
    assert_no_more(before)
    close(np.concatenate([rows for _, rows in iter_bands(IMAGE, Blur().eval(), **TILES)]))


# ---- again and again -------------------------------------------------------------------------------------------------


def failures(runs, count):
    kinds = [FAULTS[name] for name in ("raises", "shape", "dtype", "NaN", "KeyboardInterrupt", "MemoryError")]
    for number in range(count):
        runs[number % len(runs)].fails(kinds[number % len(kinds)], number % len(PLAN))


@pytest.mark.parametrize("many", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_memory_and_descriptors_are_flat_over_many_failures(many):
    runs = [Run("host", Place(where, f"out.{where}")) for where in ("array", "npy", "tif", "png", "zarr")]
    failures(runs, 30)
    before = open_files()
    tracemalloc.start()
    try:
        failures(runs, 30)
        start = tracemalloc.get_traced_memory()[0]
        failures(runs, many)
        grown = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    assert_no_more(before)
    assert grown < 200_000, grown
    for run in runs:
        close(run.place.run(run.restorer))
