# SPDX-License-Identifier: MIT
"""One thread at a time on devices that crash otherwise."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

__all__ = ["FRAGILE", "is_fragile", "turn"]

FRAGILE = {"mps"}  # device types with one thread and small tensors: see docs/mps.md

_one_at_a_time = threading.RLock()


def is_fragile(device: Any) -> bool:
    return device is not None and device.type in FRAGILE


def turn(device: Any = "unknown") -> contextlib.AbstractContextManager[Any]:
    """What may touch a device: inside this. A device that is not known yet may be a fragile one."""
    return _one_at_a_time if device == "unknown" or is_fragile(device) else contextlib.nullcontext()
