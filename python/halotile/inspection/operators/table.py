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
    """What is known of one operator, in all of its overloads.

    A rule may be None. The pass that needs it then takes the operator for unknown, never for local, unless torch tags
    it as pointwise or as a view.

    To add a rule of another kind (say, how an operator runs on one row after the other): one more attribute here, one
    more argument of `operator`, and functions `*_stream` beside the others in the files of the families.

    Attributes:
        rows: for the structural pass. rule(operation) returns the `Value` of the result, or one for each result.
        positions: for propagation. rule(mode, func, args, kwargs) returns the result of the operator on positions.
        statistic: for runs with statistics of the whole image. rule(func, arguments by name) returns the `Call` that
            takes many elements together, or None if this call does not.
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
