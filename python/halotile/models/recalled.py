# SPDX-License-Identifier: MIT
"""Per-model records of this process: inspection results, warnings given, measurements."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

__all__ = ["recalled", "remember", "told_about", "tried_with"]

_inspected: weakref.WeakKeyDictionary[object, object] = weakref.WeakKeyDictionary()
_tried: weakref.WeakKeyDictionary[object, dict[object, Any]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakKeyDictionary[object, set[object]] = weakref.WeakKeyDictionary()


def remember(model: object, info: object) -> None:
    """Stores a ModelInfo, so that later runs can warn about a halo that is too small."""
    with contextlib.suppress(TypeError):  # cannot be hashed, or referred to weakly
        _inspected[model] = info


def recalled(model: object) -> Any:
    """The ModelInfo of a model that was inspected in this process; else None."""
    try:
        return _inspected.get(model)
    except TypeError:
        return None


def told_about(model: object) -> set[object]:
    """The keys of warnings that were given about a model."""
    try:
        return _warned.setdefault(model, set())
    except TypeError:
        return set()


def tried_with(model: object) -> dict[object, Any]:
    """Results of trying windows of a model, by what was tried."""
    try:
        return _tried.setdefault(model, {})
    except TypeError:
        return {}
