# SPDX-License-Identifier: MIT
"""The one table of ATen operators: what each does to dependencies, and what it takes of the whole image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..rowmaps import Value
from .rows import Operation
from .statistic import Call

__all__ = ["OPERATORS", "Operator", "RowRule", "entry", "operator"]

RowRule = Callable[[Operation], "Value | list[Value]"]
PositionRule = Callable[[Any, Any, tuple, dict], Any]
StatisticRule = Callable[[Any, dict], "Call | None"]


@dataclass(frozen=True)
class Operator:
    """The entry of one operator, for all of its overloads. A rule that is None says nothing: the pass that needs it
    takes the operator for unknown, never for local.

    A rule of another kind (how an operator runs row after row) is one more attribute here, one more argument of
    `operator`, and a function beside the others in the operator's family.

    Attributes:
        rows: rule(operation) gives the value of the result, or of each result: see rowmaps.py. For the structural pass.
        positions: rule(mode, func, args, kwargs) gives the result of the operator on positions. For propagation.
        statistic: rule(func, arguments by name) gives the `Call` that takes elements of the whole image together; None
            if this one does not. For runs with statistics of the whole image.
    """

    rows: RowRule | None = None
    positions: PositionRule | None = None
    statistic: StatisticRule | None = None


OPERATORS: dict[str, Operator] = {}
NOTHING_KNOWN = Operator()


def operator(
    *names: str,
    rows: RowRule | None = None,
    positions: PositionRule | None = None,
    statistic: StatisticRule | None = None,
) -> None:
    """Enters the operators of these names, as in `aten::name`, into the table.

    Raises:
        ValueError: one has an entry already.
    """
    for name in names:
        if name in OPERATORS:
            raise ValueError(f"the operator {name} has an entry already")
        OPERATORS[name] = Operator(rows, positions, statistic)


def entry(name: str) -> Operator:
    """The entry of an operator; an empty one where it has none."""
    return OPERATORS.get(name, NOTHING_KNOWN)
