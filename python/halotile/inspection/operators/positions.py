# SPDX-License-Identifier: MIT
"""Shared code of the rules for positions: values for no dependency and for the outside of the window."""

from __future__ import annotations

import math
from typing import Any

NOTHING = -math.inf  # no dependency
EDGE = 1e9  # a dependency beyond the window's end
HOW = "propagation"
CHUNK = 1 << 24  # elements of a temporary


class NotInTable(Exception):
    """The operator's entry does not cover these arguments."""


def pointwise_positions(mode: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Each element of the result depends on the corresponding elements of the operands."""
    return mode.pointwise(func, args, kwargs)


def moved_positions(mode: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Moves elements by indices that do not depend on the image."""
    return mode.moved(func, args, kwargs)
