# SPDX-License-Identifier: MIT
"""Operators that take an image together, seen as they run: what they take, and what they give with other numbers.

Which these are stands in the table of operators (inspection/operators), with what each takes. `Watching` is a torch
dispatch mode, so nothing is changed in the model, and it makes no difference how the operator was called.
Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from ..inspection.operators import entry
from ..inspection.operators.statistic import Call, Statistic, measured
from ..models.around import eagerly

__all__ = ["Call", "Statistic", "Watching", "measured"]


class Watching(TorchDispatchMode):
    """Counts calls of the table's operators in a run of a model, and lets `handle` give results of its own.

    handle(number, call): the result in place of the operator's own; NotImplemented for that one.
    made(inputs, outputs): every other operator's tensors; None: nobody wants to know.
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
        if builder is None and func._can_decompose():  # inference mode leaves the parts that it consists of to us
            with self:
                result = func.decompose(*args, **kwargs)
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
    """Arguments by name, defaults included."""
    schema = func._schema.arguments
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    return given | {one.name: value for one, value in zip(schema, args, strict=False)} | kwargs
