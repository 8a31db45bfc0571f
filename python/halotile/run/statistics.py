# SPDX-License-Identifier: MIT
"""Intercepts operators that compute global statistics while a model runs, to record or replace them.

The table of operators (inspection/operators) lists them, with the operands they reduce. `Watching` is a torch dispatch
mode: it leaves the model unchanged and sees an operator however it is called. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

from ..inspection.operators import entry
from ..inspection.operators.statistic import Call, Statistic, measured
from ..models.around import decomposed, eagerly

__all__ = ["Call", "Statistic", "Watching", "by_twos", "measured", "merged"]

Sums = dict[int, Statistic]  # by number of the call
T = TypeVar("T")


def by_twos(values: list[T], join: Callable[[T, T], T]) -> T:
    """Joins each two neighbours, then each two of these, and so on. A group of 2, 4, 8, ... values, at a multiple of
    its size, can be joined anywhere before, and everything is rounded as here."""
    while len(values) > 1:
        pairs = [join(*values[at : at + 2]) for at in range(0, len(values) - 1, 2)]
        values = pairs + (values[-1:] if len(values) % 2 else [])
    return values[0]


def merged(one: Sums, other: Sums) -> Sums:
    return {number: statistic.merged(other[number]) for number, statistic in one.items()}


class Watching(TorchDispatchMode):
    """Counts calls of the table's operators and lets `handle` replace their results.

    handle(number, call): the replacement, or NotImplemented for the operator's own result.
    made(inputs, outputs): called with the tensors of every other operator; None to skip this.
    """

    def __init__(self, handle: Callable[[int, Call], Any], made: Callable[[Any, Any], None] | None = None):
        super().__init__()
        self.handle, self.made, self.count = handle, made, 0

    def __enter__(self) -> Watching:
        eagerly.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        eagerly.__exit__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        builder = entry(func._schema.name.removeprefix("aten::")).statistic
        if builder is None:
            result = decomposed(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        call = None if builder is None else builder(func, _given(func, args, kwargs))
        result = NotImplemented
        if call is not None:
            self.count += 1
            result = self.handle(self.count - 1, call)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if self.made is not None:
                self.made((args, kwargs), result)
        return result


def _given(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments by name, with defaults."""
    schema = func._schema.arguments
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    return given | {one.name: value for one, value in zip(schema, args, strict=False)} | kwargs
