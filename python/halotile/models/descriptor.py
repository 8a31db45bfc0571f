# SPDX-License-Identifier: MIT
"""spandrel's descriptors of networks, which are models as they are."""

from __future__ import annotations

import sys
import weakref
from typing import Any

__all__ = ["unwrapped"]

_unwrapped: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # by descriptor


def unwrapped(model: Any) -> Any:
    """The module of a spandrel descriptor, which says what windows it needs; any other model as it is.

    Raises:
        ValueError: the descriptor's network takes more than an image.
    """
    spandrel = sys.modules.get("spandrel")  # nobody holds a descriptor without
    if spandrel is None or not isinstance(model, (spandrel.ImageModelDescriptor, spandrel.MaskedImageModelDescriptor)):
        return model
    if model not in _unwrapped:
        from .checkpoint import open_descriptor

        _unwrapped[model] = open_descriptor(model)
    return _unwrapped[model]
