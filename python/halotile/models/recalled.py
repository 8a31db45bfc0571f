# SPDX-License-Identifier: MIT
"""What was found out about models in this process, and what users were told about them."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

__all__ = ["recalled", "remember", "told_about", "tried_with"]

_seen: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_tried: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def remember(model: Any, info: Any) -> None:
    """info: a ModelInfo, so that later runs can say what they lack."""
    with contextlib.suppress(TypeError):  # cannot be hashed, or referred to weakly
        _seen[model] = info


def recalled(model: Any) -> Any:
    """What was found out about a model in this process, for whatever reason; a ModelInfo; or None."""
    try:
        return _seen.get(model)
    except TypeError:
        return None


def told_about(model: Any) -> set[Any]:
    """What the user was told about a model."""
    try:
        return _told.setdefault(model, set())
    except TypeError:
        return set()


def tried_with(model: Any) -> dict[Any, Any]:
    """What was found by trying windows of a model, by what was tried."""
    try:
        return _tried.setdefault(model, {})
    except TypeError:
        return {}
