# SPDX-License-Identifier: MIT
"""The table of ATen operators: how each propagates dependencies, which statistics of the whole image it uses, and how
it runs on a strip of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rowmaps import Value
from .rows import Operation
from .statistic import Call
from .streaming import StreamRule

__all__ = [
    "DECOMPOSED",
    "FUNCTIONAL",
    "ON_DEVICES",
    "OPERATORS",
    "OUT_OF_PLACE",
    "POINTWISE",
    "SIDES",
    "UNWRITTEN",
    "VIEW",
    "Family",
    "Operator",
    "RowRule",
    "entry",
]

RowRule = Callable[[Operation], "Value | list[Value]"]
PositionRule = Callable[[Any, Any, tuple, dict], Any]
StatisticRule = Callable[[Any, dict], "Call | None"]

SIDES = ("rows", "positions", "statistic", "stream")

# Why an entry lacks a side. The first three are what torch says of the operator.
POINTWISE = "torch tags it as pointwise, which is rule enough"
VIEW = "torch says that it is a view, which is rule enough"
DECOMPOSED = "torch decomposes it before it is seen"
OUT_OF_PLACE = "functionalisation replaces it by a variant that writes to a new tensor"
FUNCTIONAL = "functionalisation makes it, and propagation runs without that"
ON_DEVICES = "propagation runs on the CPU, which does not have it"
UNWRITTEN = "nobody has written the rule; it is unknown"


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
        family: operators of one kind, in one file.
        without: why a rule is None, by its name in `SIDES`.
    """

    rows: RowRule | None = None
    positions: PositionRule | None = None
    statistic: StatisticRule | None = None
    stream: StreamRule | None = None
    family: str = ""
    without: Mapping[str, str] = field(default_factory=dict)


OPERATORS: dict[str, Operator] = {}
NOTHING_KNOWN = Operator()


class Family:
    """Adds operators of one kind to the table.

    Args:
        without: why those that lack a rule lack it, by the rule's name, unless they say otherwise.
    """

    def __init__(self, name: str, **without: str):
        self.name, self.without = name, without

    def __call__(
        self,
        *names: str,
        rows: RowRule | None = None,
        positions: PositionRule | None = None,
        statistic: StatisticRule | None = None,
        stream: StreamRule | None = None,
        without: Mapping[str, str] | None = None,
    ) -> None:
        """Adds operators, by their names as in `aten::name`.

        Raises:
            ValueError: one already has an entry.
        """
        rules = (rows, positions, statistic, stream)
        reasons = self.without | dict(without or {})
        missing = {side: reasons[side] for side, rule in zip(SIDES, rules, strict=True) if not rule and side in reasons}
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"the operator {name} already has an entry")
            OPERATORS[name] = Operator(rows, positions, statistic, stream, self.name, missing)


def entry(name: str) -> Operator:
    """The entry of an operator; an empty one where it has none."""
    return OPERATORS.get(name, NOTHING_KNOWN)
