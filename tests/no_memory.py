# SPDX-License-Identifier: MIT
"""Run by test_no_memory.py with failing_malloc preloaded: every allocation of a call fails, alone or with the next."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable

import numpy as np
from failing import OURS, failing

from halotile import _core

IMAGE = np.arange(3 * 40 * 50, dtype=np.uint8).reshape(3, 40, 50)
WINDOW = np.zeros((3, 24, 24), np.float32)
ONES = np.ones(24, np.float32)
NAN = np.full((3, 24, 24), np.nan, np.float32)
ARGUMENTS = ((40, 50), (16, 16), (4, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), (0, 0), 0, 1)
REFUSED = ((0, 5), *ARGUMENTS[1:])
PLAN = _core.Plan(*ARGUMENTS)
VALUES = (255.0, 1.0, 0.0, True)
ATTRIBUTES = ("image_size", "output_size", "grid", "window", "window_output", "halo", "phase", "trim", "scale", "count")


def band() -> _core.Band:
    return _core.Band(PLAN, 3, VALUES)


def add_first_tile(output):
    start, stop = PLAN.done(0, 0)
    return band().add(0, output, np.empty((3, stop - start, 50), np.uint8))


def module_again():
    loader = importlib.machinery.ExtensionFileLoader("halotile._core", _core.__file__)
    return loader.exec_module(importlib.util.module_from_spec(SPEC))


# What CPython 3.11 says when it finds no memory for the traceback of any C function's error, as of chr(-1).
INTERPRETERS = "SystemError: error return without exception set"

SPEC = importlib.util.spec_from_file_location("halotile._core", _core.__file__)
SHAPE = (3, PLAN.window_output[0], PLAN.window_output[1])

CALLS: dict[str, Callable[[], object]] = {
    "Plan": lambda: _core.Plan(*ARGUMENTS, least=(3, 4)),
    "Plan refused": lambda: _core.Plan(*REFUSED),
    "attributes": lambda: [getattr(PLAN, name) for name in ATTRIBUTES],
    "tile": lambda: PLAN.tile(3),
    "ranges": lambda: (PLAN.keep(0, 1), PLAN.exclusive(1, 1), PLAN.done(0, 0), PLAN.starts(0), PLAN.kept(1)),
    "numbers": lambda: (PLAN.rows_complete(10), PLAN.rows_in_progress(3, 0), PLAN.band_floats(3)),
    "tallest_band": PLAN.tallest_band,
    "weights": lambda: PLAN.weights(0, 1),
    "normaliser": lambda: PLAN.normaliser(1, 0, 50),
    "Band": band,
    "Band too large": lambda: _core.Band(PLAN, 2**60, VALUES),
    "Band refused": lambda: _core.Band(PLAN, 3, (0.0, 1.0, 0.0, True)),
    "add": lambda: add_first_tile(np.zeros(SHAPE, np.float32)),
    "add NaN": lambda: add_first_tile(np.full(SHAPE, np.nan, np.float32)),
    "add refused": lambda: band().add(7, np.zeros(SHAPE, np.float32), np.empty((3, 1, 50), np.uint8)),
    "read": lambda: _core.read(WINDOW, IMAGE, -4, -4, VALUES),
    "read refused": lambda: _core.read(WINDOW, IMAGE[:2], -4, -4, VALUES),
    "accumulate": lambda: _core.accumulate(np.zeros_like(WINDOW), WINDOW, ONES, ONES),
    "accumulate NaN": lambda: _core.accumulate(np.zeros_like(WINDOW), NAN, ONES, ONES),
    "finish": lambda: _core.finish(np.empty(WINDOW.shape, np.uint8), WINDOW, ONES, ONES, VALUES),
    "finish NaN": lambda: _core.finish(np.empty(WINDOW.shape, np.uint8), NAN, None, None, VALUES),
    "names": lambda: (_core.rows_name(), _core.reflect(-500, 400)),
    "module": module_again,
}


def outcome(call: Callable[[], object]) -> str:
    """What a call gives or raises, as a text."""
    try:
        return repr(call())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def check(name: str, count: int) -> int:
    """How many allocations the call makes, each of which has failed."""
    call = CALLS[name]
    want, address = outcome(call), " at 0x"
    for after in range(10_000):
        failed, raised = failing(call, after, count)
        if not failed:
            assert after > 0, "no allocation failed"
            return after
        assert raised is None or isinstance(raised, MemoryError) or text_of(raised) in (want, INTERPRETERS), (
            name,
            after,
            raised,
        )
        del raised
        if address not in want:
            assert outcome(call) == want, (name, after)
    raise AssertionError(f"{name} never ends")


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def check_leaks(name: str, count: int) -> None:
    """Whatever fails fifty times, less than one block each is held in the end."""
    call = CALLS[name]
    for after in range(count):
        held = []
        for _ in range(2):
            for _ in range(25):
                failing(call, after, 1)
            gc.collect()
            held.append(OURS.blocks_held())
        assert held[1] - held[0] < 20, (name, after, held)


def main() -> None:
    gc.freeze()
    for name in sys.argv[1:] or CALLS:
        count = max(check(name, 1), check(name, 12))
        check_leaks(name, count)
        print(f"{name}: {count} allocations, each failed")


if __name__ == "__main__":
    main()
