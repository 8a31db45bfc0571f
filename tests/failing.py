# SPDX-License-Identifier: MIT
"""Calls in which an allocation fails, for scripts with failing_malloc preloaded: tests/c/failing_malloc.c."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

OURS = ctypes.PyDLL(None)  # the GIL is kept: nothing is allocated between two calls
OURS.fail_after.argtypes = [ctypes.c_long, ctypes.c_int]
OURS.blocks_held.restype = ctypes.c_long


def failing(call: Callable[[], object], after: int, count: int) -> tuple[bool, BaseException | None]:
    """Whether an allocation failed, and what was raised. What ctypes allocates around the call fails, too."""
    raised = None
    gc.collect()  # also empties the lists of free tuples and the like, which would serve without an allocation
    try:
        OURS.fail_after(after, count)
        call()
    except BaseException as error:  # whatever it is
        raised = error
    while True:
        try:
            return bool(OURS.stop_failing()), raised
        except MemoryError:
            continue
