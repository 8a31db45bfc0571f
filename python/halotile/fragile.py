# SPDX-License-Identifier: MIT
"""Devices that crash when several threads use them, and whose operations go wrong on views: see docs/mps.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .optional import torch_if_loaded

if TYPE_CHECKING:
    import torch

__all__ = ["FRAGILE", "dense", "is_fragile", "moved"]

FRAGILE = {"mps"}  # device types limited to one thread, small tensors and no views


def is_fragile(device: torch.device | None) -> bool:
    return device is not None and device.type in FRAGILE


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or on a fragile device a contiguous copy of one that is neither contiguous nor
    channels_last."""
    if not is_fragile(tensor.device) or tensor.is_contiguous():
        return tensor
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch_if_loaded().channels_last)
    return tensor if last else tensor.contiguous()


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; one that is channels_last travels as what it is in memory, without gaps."""
    if tensor.is_contiguous():
        return tensor.to(device)
    return tensor.permute(0, 2, 3, 1).to(device).permute(0, 3, 1, 2)
