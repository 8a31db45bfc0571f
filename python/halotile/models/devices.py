# SPDX-License-Identifier: MIT
"""The device to run on, and why torch cannot use a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ..optional import torch_if_loaded
from ..texts import quoted

if TYPE_CHECKING:
    import torch

__all__ = ["ACCELERATORS", "BEST", "Device", "default_device", "usable_device"]

Device: TypeAlias = "str | int | torch.device"

BEST = "best"  # an Apple GPU, else CUDA, else XPU, else the CPU: what there is first

ACCELERATORS = {"mps": "Apple GPU", "cuda": "NVIDIA or AMD GPU", "xpu": "Intel GPU"}


def usable_device(device: Device | None) -> torch.device | None:
    """The torch.device for what the user gave; None for None. Raises ValueError if torch cannot use it."""
    if device is None:
        return None
    if device == BEST:
        return default_device(None)
    torch = torch_if_loaded()
    text = f"device {device!r:.80} is not available"
    try:
        requested = torch.device(device)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{text}: torch has no such device") from error
    missing = _why_missing(requested)
    if missing is not None:
        raise ValueError(f"{text}: {missing}")
    try:
        return torch.empty(0, device=requested).device
    except Exception as error:  # drivers raise any kind
        raise ValueError(f"{text}: {quoted(error)}") from error


def _why_missing(device: torch.device) -> str | None:
    """The reason why torch cannot use a device, if that is known without using it; else None."""
    torch = torch_if_loaded()
    if device.type == "meta":
        return "meta tensors hold no values"
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    name = ACCELERATORS.get(device.type, f"{device.type} device")
    if hasattr(backend, "is_available") and not backend.is_available():
        return f"this PyTorch finds no {name}"
    count = backend.device_count() if device.index is not None and hasattr(backend, "device_count") else None
    if count is not None and device.index >= count:
        return f"this PyTorch finds {count} {name}{'' if count == 1 else 's'}, counted from 0"
    return None


def default_device(device: Device | None) -> torch.device:
    """The device the user asked for, else the first available of MPS, CUDA, XPU and CPU."""
    if device is not None:
        return usable_device(device)
    torch = torch_if_loaded()
    backends = {"mps": torch.backends.mps, "cuda": torch.cuda, "xpu": getattr(torch, "xpu", None)}
    there = (name for name, backend in backends.items() if backend is not None and backend.is_available())
    return usable_device(next(there, "cpu"))  # with its index, as tensors have it
