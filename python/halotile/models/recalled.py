# SPDX-License-Identifier: MIT
"""Per-model records of this process: inspection results, warnings given, measurements."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

__all__ = ["recalled", "remember", "told_about", "tried_with"]

_seen: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_tried: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def remember(model: Any, info: Any) -> None:
    """Stores a ModelInfo, so that later runs can warn about a halo that is too small."""
    with contextlib.suppress(TypeError):  # cannot be hashed, or referred to weakly
        _seen[model] = info


def recalled(model: Any) -> Any:
    """The ModelInfo of a model that was inspected in this process; else None."""
    try:
        return _seen.get(model)
    except TypeError:
        return None


def told_about(model: Any) -> set[Any]:
    """The keys of warnings that were given about a model."""
    try:
        return _told.setdefault(model, set())
    except TypeError:
        return set()


def tried_with(model: Any) -> dict[Any, Any]:
    """Results of trying windows of a model, by what was tried."""
    try:
        return _tried.setdefault(model, {})
    except TypeError:
        return {}
