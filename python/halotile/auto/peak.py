# SPDX-License-Identifier: MIT
"""How fast this machine computes at best. Imports torch."""

from __future__ import annotations

import functools
import time

import torch

__all__ = ["peak_of_machine"]

SIDE = 1024  # of the matrices
SECONDS = 0.3


@functools.cache
def peak_of_machine(device: str) -> float:
    """Floating-point operations in a second, of a product of large float32 matrices with torch's threads: the fastest
    of those that fit in a few hundred milliseconds. Measured once for a device."""
    a, b = (torch.ones(SIDE, SIDE, device=device) for _ in range(2))
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    with torch.inference_mode():
        (a @ b)[0, 0].item()  # the first call is slower
        while time.perf_counter() < end:
            started = time.perf_counter()
            (a @ b)[0, 0].item()  # waits for a device
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * SIDE**3 / fastest
