# SPDX-License-Identifier: MIT
"""The one table of operators. Imports torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..rowmaps import Value
from .rows import Operation

Rule = Callable[[Operation], "Value | list[Value]"]
RULES: dict[str, Rule] = {}


def rule(*operators: str, **settings: Any) -> Callable[[Callable], Callable]:
    """Enters a rule into the table, for ATen operators of these names (all overloads)."""

    def enter(function: Callable) -> Callable:
        for name in operators:
            RULES[name] = functools.partial(function, **settings) if settings else function
        return function

    return enter
