# SPDX-License-Identifier: MIT
"""What rules for positions share: the values that stand for no pixel and for what lies beyond the end."""

from __future__ import annotations

import math
from typing import Any

NOTHING = -math.inf  # depends on no input pixel
EDGE = 1e9  # depends on what lies beyond the window's end
HOW = "propagation"
CHUNK = 1 << 24  # elements of a temporary


class NotInTable(Exception):
    """The operator is in the table, but not for such arguments."""


def pointwise_positions(mode: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Each element of the result depends on what the operands have in its place."""
    return mode.pointwise(func, args, kwargs)


def moved_positions(mode: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Elements go elsewhere, by indices that do not depend on the image."""
    return mode.moved(func, args, kwargs)
