# SPDX-License-Identifier: MIT
"""Memory of the machine and the process, and detection of out-of-memory errors."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from .optional import torch_if_loaded
from .texts import full_text

if TYPE_CHECKING:
    import torch

__all__ = [
    "allocated_bytes",
    "available_bytes",
    "forget_frames",
    "free_bytes",
    "is_out_of_memory",
    "plannable_bytes",
    "resident_bytes",
]

SPARED = 4  # a quarter of what Metal recommends is left to others: the GPU has no memory of its own
LEAST = 16  # a sixteenth of it is planned with, whatever others hold: idle programs may hold more than all of it

SAYS_SO = re.compile(r"out of memory(?!-)|(can't allocate|not enough) memory: you tried to allocate")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception or its cause means out of memory: torch mostly raises a plain RuntimeError."""
    while error is not None:
        if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__:
            return True
        if isinstance(error, RuntimeError) and SAYS_SO.search(full_text(error).lower()):
            return True
        error = error.__cause__
    return False


def forget_frames(error: BaseException | None) -> None:
    """Releases the tensors that an error's frames refer to."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def available_bytes() -> int | None:
    """Free memory of the machine within the limits of the process's control groups; None if unknown."""
    free = [_machine_bytes()]
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        *_own_groups(),
    ):
        most, used = _number_in(limit), _number_in(usage)
        free.append(None if most is None or used is None else max(0, most - used))
    known = [one for one in free if one is not None]
    return min(known) if known else None


def _machine_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:  # free memory is unknown: assume half
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return None


def _own_groups() -> list[tuple[str, str]]:
    """Limit and usage files of the process's control group (version 2) and its parents."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths = [Path("/sys/fs/cgroup" + line[3:]) for line in lines if line.startswith("0::/")]
    return [
        (f"{group}/memory.max", f"{group}/memory.current")
        for path in paths
        for group in (path, *path.parents)
        if str(group).startswith("/sys/fs/cgroup/")
    ]


def _number_in(file: str) -> int | None:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def resident_bytes() -> int | None:
    """Memory of the process that is not swapped out; None if unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def allocated_bytes() -> int:
    """Bytes of torch's tensors on CUDA devices that are in use; 0 if there are none."""
    torch = torch_if_loaded()
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))


def free_bytes(device: torch.device | None) -> int | None:
    """Free memory of a device, bytes; None if unknown."""
    module = getattr(torch_if_loaded(), device.type, None) if device is not None else None
    if hasattr(module, "recommended_max_memory"):
        return max(0, module.recommended_max_memory() - module.driver_allocated_memory())
    if hasattr(module, "mem_get_info"):
        return module.mem_get_info(device)[0]
    return None


def plannable_bytes(device: torch.device | None) -> tuple[int, float] | None:
    """Memory of a device that tiles may be planned with, bytes, and its share of what is free when nothing runs; None
    if unknown."""
    free = free_bytes(device)
    module = getattr(torch_if_loaded(), device.type, None) if device is not None else None
    if free is None or not hasattr(module, "recommended_max_memory"):
        return None if free is None else (free, 1.0)
    whole = module.recommended_max_memory()
    return max(free - whole // SPARED, whole // LEAST), 1 - 1 / SPARED
