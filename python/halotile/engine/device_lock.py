# SPDX-License-Identifier: MIT
"""Serialises access to devices that crash when several threads use them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from ..fragile import is_fragile

if TYPE_CHECKING:
    import torch

__all__ = ["turn"]

_one_at_a_time = threading.RLock()


def turn(device: torch.device | str | None = "unknown") -> contextlib.AbstractContextManager[Any]:
    """The lock to hold while using a device. An unknown device is treated as fragile."""
    return _one_at_a_time if device == "unknown" or is_fragile(device) else contextlib.nullcontext()
