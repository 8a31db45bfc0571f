# SPDX-License-Identifier: MIT
"""Which device is meant, and why torch cannot use it."""

from __future__ import annotations

from typing import Any

from ..optional import torch_if_loaded
from ..texts import quoted

__all__ = ["default_device", "usable_device"]

ACCELERATORS = {"mps": "Apple GPU", "cuda": "NVIDIA or AMD GPU", "xpu": "Intel GPU"}


def usable_device(device: Any) -> Any:
    """The torch.device that is meant; None for None. Raises ValueError."""
    if device is None:
        return None
    torch = torch_if_loaded()
    text = f"device must be one that torch can use here, not {device!r:.80}"
    try:
        asked = torch.device(device)
    except Exception as error:  # whatever torch raises about names and things
        raise ValueError(f"{text}: torch has no such device") from error
    missing = _why_missing(asked)
    if missing is not None:
        raise ValueError(f"{text}: {missing}")
    try:
        return torch.empty(0, device=asked).device
    except Exception as error:  # a driver may raise anything
        raise ValueError(f"{text}: {quoted(error)}") from error


def _why_missing(device: Any) -> str | None:
    """Why torch cannot use a device, as far as it can be asked without trying."""
    torch = torch_if_loaded()
    if device.type == "meta":
        return "meta tensors hold no values"
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    name = ACCELERATORS.get(device.type, f"{device.type} device")
    if hasattr(backend, "is_available") and not backend.is_available():
        return f"this torch sees no {name}"
    count = backend.device_count() if device.index is not None and hasattr(backend, "device_count") else None
    if count is not None and device.index >= count:
        return f"this torch sees {count} {name}{'' if count == 1 else 's'}, counted from 0"
    return None


def default_device(device: Any) -> Any:
    """The device asked for, else MPS, CUDA, CPU."""
    if device is not None:
        return usable_device(device)
    torch = torch_if_loaded()
    if torch.backends.mps.is_available():
        return usable_device("mps")  # with the index that tensors there have
    return usable_device("cuda" if torch.cuda.is_available() else "cpu")
