# SPDX-License-Identifier: MIT
"""Dense tensors for devices whose operations go wrong on views: see docs/mps.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..optional import torch_if_loaded
from .device_lock import is_fragile

if TYPE_CHECKING:
    import torch

__all__ = ["dense"]


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or on a fragile device a contiguous copy of one that is neither contiguous nor
    channels_last."""
    if not is_fragile(tensor.device) or tensor.is_contiguous():
        return tensor
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch_if_loaded().channels_last)
    return tensor if last else tensor.contiguous()
