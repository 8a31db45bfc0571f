# SPDX-License-Identifier: MIT
"""Modules in eval mode while they run, also where several runs share them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["evaluating"]

_lock = threading.Lock()
_evaluating: dict[int, list[Any]] = {}  # id of a submodule -> [runs inside, its own mode]


@contextlib.contextmanager
def evaluating(modules: list[Any]) -> Iterator[None]:
    """The modules in eval mode. Each submodule's own mode returns with the last of the runs that share it."""
    entered: list[list[Any]] = []
    try:
        with _lock:
            for module in modules:
                entered.append(_note_modes(module))
            for module, inners in zip(modules, entered, strict=True):
                if any(inner.training for inner in inners):
                    with contextlib.suppress(NotImplementedError):  # exported programs have no modes
                        module.eval()  # may change those of others
        yield
    finally:
        with _lock:
            _leave_eval(entered)


def _note_modes(module: Any) -> list[Any]:
    inners = [inner for inner in module.modules() if hasattr(inner, "training")]  # frozen TorchScript has no modes
    for inner in inners:
        _evaluating.setdefault(id(inner), [0, inner.training])[0] += 1
    return inners


def _leave_eval(entered: list[list[Any]]) -> None:
    own: dict[int, bool] = {}
    for inner in (inner for inners in entered for inner in inners):
        entry = _evaluating[id(inner)]
        entry[0] -= 1
        if entry[0] == 0:
            own[id(inner)] = _evaluating.pop(id(inner))[1]
    for inners in entered:
        if inners and own.get(id(inners[0])) and all(id(inner) in own for inner in inners):
            with contextlib.suppress(NotImplementedError):
                inners[0].train()  # may do more than set modes
    for inner in (inner for inners in entered for inner in inners):
        if inner.training != own.get(id(inner), inner.training):
            inner.training = own[id(inner)]
