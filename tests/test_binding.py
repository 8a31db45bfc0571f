# SPDX-License-Identifier: MIT
"""halotile._core takes anything at all without crashing: wrong arguments are Python errors."""

import importlib.machinery
import importlib.util
import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from halotile import _core

U8 = np.zeros((3, 8, 9), np.uint8)
WINDOW = np.zeros((3, 8, 9), np.float32)
ONES8, ONES9 = np.ones(8, np.float32), np.ones(9, np.float32)


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


BAD_ARRAYS = [
    (None, TypeError),
    ([[[1.0]]], TypeError),
    (WINDOW[0], ValueError),
    (WINDOW[None], ValueError),
    (WINDOW.astype(np.int32), TypeError),
    (WINDOW.astype(complex), TypeError),
    (WINDOW.astype(object), TypeError),
    (WINDOW.astype(">f4"), TypeError),
    (np.zeros((3, 0, 9), np.float32), ValueError),
    (np.zeros((3, 8 * 9 * 4 + 1), np.uint8)[:, 1:].view(np.float32).reshape(3, 8, 9), ValueError),  # unaligned
    (np.zeros((3, 8, 9), [("a", "u1"), ("b", "<f4")])["b"], ValueError),  # strides of 5 bytes
]


@pytest.mark.parametrize(("bad", "kind"), BAD_ARRAYS)
def test_bad_arrays(bad, kind):
    for call in [
        lambda: _core.read(bad, U8, 0, 0),
        lambda: _core.accumulate(bad, WINDOW, ONES8, ONES9),
        lambda: _core.accumulate(np.zeros_like(WINDOW), bad, ONES8, ONES9),
        lambda: _core.finish(bad, WINDOW),
        lambda: _core.finish(np.zeros_like(U8), bad),
        lambda: _core.read(np.zeros_like(WINDOW), bad, 0, 0),
    ]:
        with pytest.raises(kind):
            call()


def test_read_only_and_shared_memory():
    for call in [
        lambda: _core.read(frozen(WINDOW), U8, 0, 0),
        lambda: _core.accumulate(frozen(WINDOW), WINDOW, ONES8, ONES9),
        lambda: _core.finish(frozen(WINDOW), WINDOW),
    ]:
        with pytest.raises(ValueError, match="writeable"):
            call()
    both = np.zeros((6, 8, 9), np.float32)
    for call in [
        lambda: _core.read(both[:3], both[2:5], 0, 0),
        lambda: _core.accumulate(both[:3], both[::-1][3:6], ONES8, ONES9),
        lambda: _core.finish(both[:3], both[:3]),
    ]:
        with pytest.raises(ValueError, match="share memory"):
            call()
    _core.read(both[:3], both[3:], 0, 0)  # side by side is fine


def test_shapes_and_dtypes_must_fit():
    with pytest.raises(ValueError, match="as many channels"):
        _core.read(np.zeros((2, 8, 9), np.float32), U8, 0, 0)
    for window in (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4))):
        with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
            _core.read(window, U8, 0, 0)
    with pytest.raises(ValueError, match="one shape"):
        _core.accumulate(np.zeros((3, 8, 8), np.float32), WINDOW, ONES8, ONES9)
    with pytest.raises(ValueError, match="contiguous rows"):
        _core.accumulate(np.zeros((3, 8, 18), np.float32)[:, :, ::2], WINDOW, ONES8, ONES9)
    with pytest.raises(ValueError, match="sums must be float32"):
        _core.accumulate(np.zeros((3, 8, 9), np.float16), WINDOW, ONES8, ONES9)
    for wy, wx in [
        (ONES9, ONES9),
        (ONES8, ONES8),
        (ONES8[::2], ONES9),
        (ONES8.astype(float), ONES9),
        (None, ONES9),
        (3, 4),
    ]:
        with pytest.raises((TypeError, ValueError)):
            _core.accumulate(np.zeros_like(WINDOW), WINDOW, wy, wx)
        with pytest.raises((TypeError, ValueError)):
            _core.finish(np.zeros_like(WINDOW), WINDOW, wy, wx)
    with pytest.raises(ValueError, match="peak at most"):
        _core.finish(np.zeros_like(U8), WINDOW, None, None, (256.0, 1.0, 0.0, True))


@pytest.mark.parametrize(
    "values", [(0, 1, 0, 0), (-1, 1, 0, 0), (1, 0, 0, 0), (np.nan, 1, 0, 0), (1, np.inf, 0, 0), (1, 1, np.nan, 0)]
)
def test_bad_values(values):
    with pytest.raises(ValueError, match="values must be"):
        _core.read(np.zeros_like(WINDOW), U8, 0, 0, values)
    with pytest.raises(ValueError, match="values must be"):
        _core.finish(np.zeros_like(WINDOW), WINDOW, None, None, values)


def test_far_away_windows():
    for y, x in [(2**40, -(2**40)), (-(2**40), 2**40)]:
        _core.read(np.zeros((3, 2, 2), np.float32), U8, y, x)
    with pytest.raises(ValueError, match="2\\^40"):
        _core.read(np.zeros((3, 2, 2), np.float32), U8, 2**40 + 1, 0)
    with pytest.raises(OverflowError):
        _core.read(np.zeros((3, 2, 2), np.float32), U8, 2**70, 0)


def plan(**changes):
    arguments = {
        "size": (50, 60), "tile": (16, 16), "halo": (4, 4), "overlap": (2, 2), "phase": (1, 1),
        "scale": ((1, 1), (1, 1)),
        "trim": (0, 0), "boundary": 0, "blend": 0,
    }  # fmt: skip
    return _core.Plan(**arguments | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (0, 5)}, {"size": (5, -1)}, {"size": (2**41, 5)}, {"tile": (0, 1)}, {"tile": (2**62, 2**62)},
        {"halo": (-1, 0)}, {"halo": (2**62, 0)}, {"overlap": (16, 0)}, {"overlap": (-1, 0)}, {"phase": (0, 1)},
        {"phase": (2**62, 1)}, {"phase": (15, 1)}, {"scale": ((0, 1), (1, 1))},
        {"scale": ((1, 1), (1, 0))}, {"scale": ((1, 1), (2000, 1))},
        {"trim": (-1, 0)}, {"trim": (5, 0)}, {"trim": (1, 1), "boundary": 1}, {"boundary": 2}, {"boundary": -1},
        {"blend": 4}, {"blend": -1}, {"least": (-1, 0)}, {"least": (0, 2**62)},
        {"shift": (-1, 0)}, {"shift": (0, 12)}, {"shift": (2**62, 0)}, {"shift": (1, 0), "boundary": 1},
        {"shift": (3, 0), "phase": (2, 2)},
    ],
)  # fmt: skip
def test_bad_plans(changes):
    with pytest.raises(ValueError):
        plan(**changes)


@pytest.mark.parametrize(
    "changes", [{"size": 5}, {"size": (1, 2, 3)}, {"size": "ab"}, {"size": (1.5, 2)}, {"blend": None}]
)
def test_plans_of_wrong_types(changes):
    with pytest.raises(TypeError):
        plan(**changes)


def test_plan_methods_check_their_arguments():
    p = plan()
    for index in (-1, p.count, 2**62):
        with pytest.raises(IndexError):
            p.tile(index)
    with pytest.raises(IndexError):
        p.rows_complete(-2)
    for method in (p.keep, p.exclusive, p.done, p.weights):
        with pytest.raises(IndexError):
            method(0, p.grid[0])
        with pytest.raises(ValueError, match="axis"):
            method(2, 0)
        with pytest.raises(TypeError):
            method()
    for start, stop in [(-1, 5), (5, 4), (0, 51)]:
        with pytest.raises(ValueError, match="start and stop"):
            p.normaliser(0, start, stop)
    with pytest.raises((OverflowError, ValueError)):
        p.tile(2**70)
    with pytest.raises(AttributeError):
        p.window = (1, 2)
    with pytest.raises(TypeError):
        _core.Plan.anything = 1
    for bad in [(1, 0), (1, 2**41), (2**41, 3)]:
        with pytest.raises(ValueError):
            _core.reflect(*bad)


FAR = 2**40 + 1
METHODS_WITH_MORE = {
    "starts": (),
    "kept": (),
    "normaliser": (0, 1),
    "rows_in_progress": (0,),
    "tile": (),
    "reflect": (5,),
}
PLAN = plan()
WRONG_ARGUMENTS = [
    *((method, ("x", *more)) for method, more in METHODS_WITH_MORE.items()),
    *(("read", (WINDOW, U8, *where)) for where in ((FAR, 0), (-FAR, 0), (0, FAR), (0, -FAR))),
    *(("reflect", wrong) for wrong in (("x", 5), (0, 0), (0, FAR), (FAR, 5), (-FAR, 5))),
    *((method, (9, *more)) for method, more in METHODS_WITH_MORE.items() if method in ("starts", "kept", "normaliser")),
    *(("rows_in_progress", wrong) for wrong in ((0, 0), (1, 99), (1, -1), (2**70, 0))),
    *((method, (2**70,)) for method in ("tile", "rows_complete", "band_floats")),
    ("band_floats", ("x",)),
    ("band_floats", (-1,)),
    ("rows_complete", ("x",)),
]


@pytest.mark.parametrize("name, wrong", WRONG_ARGUMENTS, ids=range(len(WRONG_ARGUMENTS)))
def test_wrong_arguments_are_python_errors(name, wrong):
    function = getattr(PLAN, name, None) or getattr(_core, name)
    with pytest.raises((TypeError, ValueError, IndexError, OverflowError)):
        function(*wrong)


def test_a_band_writes_no_rows_into_a_model_s_output():
    p = plan()
    shared = np.zeros((1, *p.window_output), np.float32)
    with pytest.raises(ValueError, match="share memory"):
        _core.Band(p, 1, (1.0, 1.0, 0.0, False)).add(0, shared, shared)


def test_random_calls_do_not_crash():
    rng = np.random.default_rng(0)
    pool = [U8.copy(), WINDOW.copy(), WINDOW.astype(np.float16), WINDOW.T, WINDOW[::-1], frozen(WINDOW)]
    pool += [np.zeros((1, 1, 1), np.uint16), np.zeros((3, 8, 9), np.float64), ONES8, ONES9]
    pool += [None, 3, "x", -1.5, (1.0, 1.0, 0.0, False)]
    outcomes = set()
    for function, count in itertools.product((_core.read, _core.accumulate, _core.finish), range(1, 7)):
        for _ in range(300):
            arguments = [pool[i] for i in rng.integers(0, len(pool), count)]
            try:
                function(*arguments)
                outcomes.add("fine")
            except (TypeError, ValueError, OverflowError) as error:
                outcomes.add(type(error))
    assert {"fine", TypeError, ValueError} <= outcomes


def test_threads_share_one_image():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (3, 300, 400), np.uint8)
    want = np.empty((3, 100, 100), np.float32)
    _core.read(want, image, 50, 60)
    results = [np.empty_like(want) for _ in range(8)]

    def work(result):
        for _ in range(50):
            _core.read(result, image, 50, 60)

    threads = [threading.Thread(target=work, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, want) for result in results)


def test_the_gil_is_released():
    """While a long read runs, another thread is never held up for as long as the read takes."""
    image = np.zeros((3, 8, 8), np.uint8)
    window = np.empty((3, 1500, 1500), np.float32)  # nearly all of it reflected, which is slow
    longest, stop = [0.0], threading.Event()

    def watch():
        last = time.perf_counter()
        while not stop.is_set():
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now
            time.sleep(0)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    for _ in range(3):
        _core.read(window, image, 0, 0)
    seconds = (time.perf_counter() - start) / 3
    stop.set()
    thread.join()
    assert longest[0] < 0.9 * seconds


def test_the_module_can_be_loaded_twice():
    """Multi-phase initialisation: a second copy with types of its own, and both can go."""
    loader = importlib.machinery.ExtensionFileLoader("halotile._core", _core.__file__)
    spec = importlib.util.spec_from_file_location("halotile._core", _core.__file__, loader=loader)
    second = importlib.util.module_from_spec(spec)
    loader.exec_module(second)
    assert second is not _core and second.Plan is not _core.Plan
    assert second.rows_name() == _core.rows_name()
    del second


@pytest.mark.parametrize("mask", ["scalar", "avx2", "avx512", "neon", ""])
def test_row_kernels_can_be_masked(mask):
    names = {"scalar", "avx2", "avx512", "neon"}
    done = subprocess.run(
        [sys.executable, "-c", "from halotile import _core; print(_core.rows_name())"],
        env={**os.environ, "HALOTILE_CPU": mask}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() in names, done.stderr
    if mask == "scalar":
        assert done.stdout.strip() == "scalar"


def test_an_unknown_mask_is_an_error():
    done = subprocess.run(
        [sys.executable, "-c", "import halotile._core"],
        env={**os.environ, "HALOTILE_CPU": "sse9"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "HALOTILE_CPU is 'sse9'; it must be scalar, avx2, avx512 or neon" in done.stderr
