# SPDX-License-Identifier: MIT
"""spandrel's model descriptors, which halotile accepts as models."""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = ["unwrapped"]

_unwrapped: weakref.WeakKeyDictionary[object, Checkpoint] = weakref.WeakKeyDictionary()  # by descriptor


def unwrapped(model: Any) -> Any:
    """The module of a spandrel descriptor, with its size constraints; any other model unchanged.

    Raises:
        ValueError: the descriptor's network takes more than an image.
    """
    spandrel = sys.modules.get("spandrel")  # without it there are no descriptors
    if spandrel is None or not isinstance(model, (spandrel.ImageModelDescriptor, spandrel.MaskedImageModelDescriptor)):
        return model
    if model not in _unwrapped:
        from .checkpoint import open_descriptor

        _unwrapped[model] = open_descriptor(model)
    return _unwrapped[model]
