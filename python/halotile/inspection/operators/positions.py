# SPDX-License-Identifier: MIT
"""What rules for positions share: the values that stand for no pixel and for what lies beyond the end."""

from __future__ import annotations

import math

NOTHING = -math.inf  # depends on no input pixel
EDGE = 1e9  # depends on what lies beyond the window's end
HOW = "propagation"
CHUNK = 1 << 24  # elements of a temporary


class NotInTable(Exception):
    """The operator is in the table, but not for such arguments."""
