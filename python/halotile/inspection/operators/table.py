# SPDX-License-Identifier: MIT
"""The table of ATen operators: how each propagates dependencies, which statistics of the whole image it uses, and how
it runs on a strip of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..rowmaps import Value
from .rows import Operation
from .statistic import Call
from .streaming import StreamRule

__all__ = ["OPERATORS", "Operator", "RowRule", "entry", "operator"]

RowRule = Callable[[Operation], "Value | list[Value]"]
PositionRule = Callable[[Any, Any, tuple, dict], Any]
StatisticRule = Callable[[Any, dict], "Call | None"]


@dataclass(frozen=True)
class Operator:
    """The rules for one operator, in all its overloads.

    A rule may be None. The method that needs it then treats the operator as unknown, never as local, unless torch tags
    it as pointwise or as a view.

    Attributes:
        rows: for graph analysis. rule(operation) returns the `Value` of the result, or one for each result.
        positions: for propagation. rule(mode, func, args, kwargs) returns the result of the operator on positions.
        statistic: for runs with statistics of the whole image. rule(func, arguments by name) returns the `Call` that
            reduces many elements, or None if this call does not.
        stream: for runs on rows. rule(node) gives a `StreamNode` its rows, or raises NotStreamable.
    """

    rows: RowRule | None = None
    positions: PositionRule | None = None
    statistic: StatisticRule | None = None
    stream: StreamRule | None = None


OPERATORS: dict[str, Operator] = {}
NOTHING_KNOWN = Operator()


def operator(
    *names: str,
    rows: RowRule | None = None,
    positions: PositionRule | None = None,
    statistic: StatisticRule | None = None,
    stream: StreamRule | None = None,
) -> None:
    """Adds operators to the table, by their names as in `aten::name`.

    Raises:
        ValueError: one already has an entry.
    """
    for name in names:
        if name in OPERATORS:
            raise ValueError(f"the operator {name} already has an entry")
        OPERATORS[name] = Operator(rows, positions, statistic, stream)


def entry(name: str) -> Operator:
    """The entry of an operator; an empty one where it has none."""
    return OPERATORS.get(name, NOTHING_KNOWN)
