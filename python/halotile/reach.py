# SPDX-License-Identifier: MIT
"""What a callable reaches: what it is bound to, closes over, holds or names."""

from __future__ import annotations

import contextlib
import dis
import functools
import types
import weakref
from collections.abc import Iterator
from typing import Any

__all__ = ["reachable"]


def reachable(value: Any, depth: int = 2) -> Iterator[Any]:
    """A value, and what it leads to in so many steps."""
    yield value
    if depth:
        for one in _next_to(value):
            yield from reachable(one, depth - 1)


def _next_to(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    if isinstance(value, weakref.ref):
        yield value()
    if isinstance(value, types.FunctionType):
        yield from _named_by(value)
    elif not isinstance(value, (type, types.ModuleType)):
        yield from list(getattr(value, "__dict__", {}).values())
        yield from _in_slots(value)
        yield from (one for name, one in vars(type(value)).items() if name == "__call__")


def _in_slots(value: Any) -> Iterator[Any]:
    for kind in type(value).__mro__:
        for slot in vars(kind).values():
            if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins":
                with contextlib.suppress(AttributeError):  # an empty slot
                    yield slot.__get__(value)


def _named_by(function: types.FunctionType) -> list[Any]:
    """What it closes over, its defaults, and the globals in its code; those of torch's own functions are torch's."""
    names, codes = set(), [function.__code__]
    while codes and (function.__module__ or "").split(".")[0] != "torch":
        code = codes.pop()
        names.update(step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            values.append(cell.cell_contents)
    return values
