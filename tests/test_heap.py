# SPDX-License-Identifier: MIT
"""The heap kept during a run: as long as any run lasts, and no longer."""

import contextlib
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from halotile import TileError, _core, iter_bands, restore_tiled, restore_to
from halotile.run import kept_heap as heap

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
OPTIONS = {"tile_size": 32, "halo": 4}
GLIBC = pytest.mark.skipif(sys.platform != "linux" or not _core.heap_keep(), reason="the C library is not glibc")
_core.heap_release()


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the C library, in order, but pauses in which results are allocated; nothing reaches it."""
    seen, pauses = [], []
    monkeypatch.setattr(_core, "heap_keep", lambda: (pauses.pop() if pauses else seen.append("keep")) or True)
    monkeypatch.setattr(_core, "heap_pause", lambda: pauses.append(True))
    monkeypatch.setattr(_core, "heap_release", lambda: seen.append("release"))
    for name in ("HALOTILE_KEEP_HEAP", "GLIBC_TUNABLES", *heap.SET_BY_HAND):
        monkeypatch.delenv(name, raising=False)
    yield seen
    assert heap._runs.count == 0 and not pauses


def noting(calls):
    """A model that notes that it was called."""

    def model(windows):
        calls.append("model")
        return windows

    return model


def test_a_run_keeps_it(calls):
    got = restore_tiled(IMAGE, noting(calls), **OPTIONS)
    assert np.array_equal(got, IMAGE)
    assert calls[0] == "keep"
    assert calls[-1] == "release"
    assert set(calls[1:-1]) == {"model"}


def test_a_run_into_a_file_does_not_where_it_is_asked_not_to(calls, tmp_path):
    restore_to(tmp_path / "a.npy", IMAGE, noting(calls), keep_heap=False, **OPTIONS)
    assert set(calls) == {"model"}


def test_a_run_into_a_file_keeps_it(calls, tmp_path):
    restore_to(tmp_path / "a.npy", IMAGE, noting(calls), **OPTIONS)
    assert np.array_equal(np.load(tmp_path / "a.npy"), IMAGE)
    assert calls[0] == "keep"
    assert calls[-1] == "release"
    assert set(calls[1:-1]) == {"model"}
    with pytest.raises(TileError):
        restore_to(tmp_path / "b.npy", IMAGE, lambda windows: None, **OPTIONS)
    assert calls[-2:] == ["keep", "release"]


@pytest.mark.filterwarnings("ignore::halotile.TileSizeWarning")
@pytest.mark.parametrize("error", [ValueError("something"), MemoryError("none left"), KeyboardInterrupt()])
def test_it_is_given_back_when_a_run_fails(calls, error):
    def fails(windows):
        raise error

    with contextlib.suppress(TileError, KeyboardInterrupt, MemoryError):
        restore_tiled(IMAGE, fails, **OPTIONS)
    assert calls == ["keep", "release"]


@pytest.mark.parametrize("how", ["option", "HALOTILE_KEEP_HEAP", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_off(calls, monkeypatch, how):
    options = dict(OPTIONS)
    if how == "option":
        options["keep_heap"] = False
    else:
        values = {"HALOTILE_KEEP_HEAP": "0", "MALLOC_TRIM_THRESHOLD_": "1000000"}
        value = values.get(how, "glibc.malloc.mmap_max=3")
        monkeypatch.setenv(how, value)
        monkeypatch.setattr(heap, "environment_at_start", lambda: {how: value})
    restore_tiled(IMAGE, noting(calls), **options)
    list(iter_bands(IMAGE, noting(calls), **options))
    assert set(calls) == {"model"}


def test_what_is_set_later_is_for_other_processes(calls, monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    restore_tiled(IMAGE, noting(calls), **OPTIONS)
    assert {"keep", "release"} <= set(calls)


def test_what_the_process_began_with_is_known():
    script = "import os; os.environ.clear(); from halotile.run.kept_heap import environment_at_start\n"
    script += "print(environment_at_start()['A'])"
    command, environment = [sys.executable, "-c", script], {**os.environ, "A": "b=c"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "b=c\n", done.stderr


def test_bad_values(calls, monkeypatch):
    with pytest.raises(TypeError, match="keep_heap must be True or False, not 'no'"):
        restore_tiled(IMAGE, noting(calls), keep_heap="no", **OPTIONS)
    monkeypatch.setenv("HALOTILE_KEEP_HEAP", "off")
    with pytest.raises(ValueError, match="HALOTILE_KEEP_HEAP must be 0 or 1, not 'off'"):
        restore_tiled(IMAGE, noting(calls), **OPTIONS)
    assert calls == []


def test_where_it_cannot_be_kept_nothing_is_given_back(calls, monkeypatch):
    monkeypatch.setattr(_core, "heap_keep", lambda: False)
    with heap.kept() as held:
        assert held is False
    assert calls == []


# ---- several runs ----------------------------------------------------------------------------------------------------


def test_runs_inside_each_other_and_in_threads_share_it(calls):
    with heap.kept():
        with heap.kept() as inner:
            assert inner
        assert calls == ["keep"]
        threads = [threading.Thread(target=restore_tiled, args=(IMAGE, lambda w: w), kwargs=OPTIONS) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert calls == ["keep"]
    assert calls == ["keep", "release"]


def test_the_last_of_several_threads_gives_it_back(calls):
    """The second run starts while the first lasts, and ends after it."""
    entered, first_is_done = threading.Event(), threading.Event()

    def second(windows):
        entered.set()
        assert first_is_done.wait(10)
        assert "release" not in calls
        return windows

    thread = threading.Thread(target=restore_tiled, args=(IMAGE, second), kwargs=OPTIONS)
    with heap.kept():
        thread.start()
        assert entered.wait(10)
    first_is_done.set()
    thread.join()
    assert calls == ["keep", "release"]


def test_bands_keep_it_only_while_they_are_made(calls):
    for _ in iter_bands(IMAGE, noting(calls), **OPTIONS):
        assert calls[-1] == "release"
        assert heap._runs.count == 0
        calls.append("user")
    assert calls[-2:] == ["keep", "release"]  # nothing was left to make
    assert calls.count("keep") == calls.count("release") > 3


@pytest.mark.parametrize("how", ["close", "forgotten", "never begun", "kept for ever", "raised in"])
def test_bands_that_nobody_wants_any_more(calls, how):
    bands = iter_bands(IMAGE, noting(calls), **OPTIONS)
    if how != "never begun":
        next(bands)
    if how == "close":
        bands.close()
    elif how == "raised in":
        with pytest.raises(RuntimeError, match="enough"):
            bands.throw(RuntimeError("enough"))
    elif how != "kept for ever":
        del bands
        gc.collect()
    assert heap._runs.count == 0
    assert calls.count("keep") == calls.count("release")


# ---- on glibc --------------------------------------------------------------------------------------------------------

BLOCKS = """
import ctypes, sys, threading
from halotile.run import kept_heap as heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def block(mib=200):
    where = libc.malloc(mib << 20)
    ctypes.memset(where, 1, mib << 20)
    libc.free(where)

def main():
    start = resident()
    block()
    told = [resident() - start]
    with heap.kept():
        block()
        told.append(resident() - start)
    told.append(resident() - start)
    block()
    told.append(resident() - start)
    print(*told)

thread = threading.Thread(target=main)
if sys.argv[1] == "main":
    main()
else:
    thread.start()
    thread.join()
"""


@GLIBC
@pytest.mark.parametrize("where", ["main", "worker"])
def test_what_is_freed_stays_until_the_end_and_no_longer(where):
    done = subprocess.run([sys.executable, "-c", BLOCKS, where], capture_output=True, text=True, check=True)
    before, inside, after, later = map(int, done.stdout.split())
    assert before < 20
    if where == "main":
        assert inside > 180
    else:
        assert inside < 20  # heaps of other threads hold 64 MiB: larger blocks are mapped
    assert after < 20
    assert later < 20


@GLIBC
def test_a_worker_thread_keeps_no_more_than_its_heap():
    """glibc trims the end of the first thread's heap only: of another's, 64 MiB at most, that stays."""
    code = BLOCKS.replace("mib=200", "mib=48")
    done = subprocess.run([sys.executable, "-c", code, "worker"], capture_output=True, text=True, check=True)
    before, inside, after, later = map(int, done.stdout.split())
    assert before < 20
    assert inside > 40
    assert max(after, later) < 64


RESULTS = """
import gc, sys
import numpy as np
from halotile import restore_tiled, restore_to

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

image = np.ones((2000, 2000, 3), np.uint8)
enlarge = lambda windows: windows.repeat(3, 2).repeat(3, 3)
restore_tiled(image[:64, :64], enlarge, tile_size=64, halo=0)
start = resident()
result = restore_tiled(image, enlarge, tile_size=1000, halo=0)
held = resident() - start
del result
gc.collect()
print(held, resident() - start)
"""


@GLIBC
def test_a_result_that_is_dropped_goes_back():
    done = subprocess.run([sys.executable, "-c", RESULTS], capture_output=True, text=True, check=True)
    held, later = map(int, done.stdout.split())
    assert held > 100 and later < 25


@GLIBC
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_process_that_leaves_a_run_may_begin_another():
    read, write = os.pipe()
    with heap.kept():
        child = os.fork()
    if child == 0:
        with heap.kept():
            inside = heap._runs.count
        os.write(write, f"{inside} {heap._runs.count}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"1 0"


@GLIBC
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_process_is_in_no_run():
    with heap.kept() as held:
        assert held
        child = os.fork()
        if child == 0:
            os._exit(0 if heap._runs.count == 0 and not heap._runs.lock.locked() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert heap._runs.count == 1


PEAK = """
import numpy as np
import torch
from halotile import restore_tiled

class Enlarging(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return torch.nn.functional.interpolate(self.conv(x), scale_factor=4)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

torch.set_num_threads(1)
model = Enlarging().eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 64, 64))
image = np.zeros((1440, 2560, 3), np.uint8)
image[...] = 90
before = peak()
result = restore_tiled(image, model, tile_size=512, halo=8, phase=1, scale=4)
print((peak() - before - result.nbytes) >> 20)
"""


@GLIBC
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="nobody says what the process held")
def test_bands_do_not_keep_the_blocks_of_windows_apart():
    """Else every gap between two of them costs a model's output, 50 MiB here, again: 160 to 210 MiB in all."""
    pytest.importorskip("torch")
    peaks = []
    for _ in range(3):  # where blocks lie is a matter of chance, too
        done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert min(peaks) < 100, peaks
