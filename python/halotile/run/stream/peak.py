# SPDX-License-Identifier: MIT
"""How fast this machine computes at best. Imports torch."""

from __future__ import annotations

import functools
import time

import torch

__all__ = ["peak_of_machine"]

SIDE, DEVICE_SIDE = 1024, 4096  # of the matrices, on a CPU and on a device
SECONDS = 0.3


def peak_of_machine(device: str) -> float:
    """Floating-point operations in a second, of a product of large float32 matrices with torch's threads: the fastest
    of those that fit in a few hundred milliseconds. Measured once for a device and a number of threads."""
    return _measured(device, torch.get_num_threads())


@functools.cache
def _measured(device: str, threads: int) -> float:
    side = SIDE if device == "cpu" else DEVICE_SIDE
    a, b = (torch.ones(side, side, device=device) for _ in range(2))
    seconds: list[float] = []
    with torch.inference_mode():
        (a @ b)[0, 0].item()  # the first call is slower
        while sum(seconds) < SECONDS:
            started = time.perf_counter()
            (a @ b)[0, 0].item()  # waits for a device
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds)
