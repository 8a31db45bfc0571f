# SPDX-License-Identifier: MIT
"""Modules run in eval mode and get their own modes back, even if several threads run them at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .untouched.tensors import modules_in

if TYPE_CHECKING:
    import torch

__all__ = ["evaluating"]

_lock = threading.Lock()
_evaluating: dict[int, _Mode] = {}  # by the submodule's id


@dataclass
class _Mode:
    """A submodule's own mode, and how many runs use the submodule now."""

    training: bool
    runs: int = 0


@contextlib.contextmanager
def evaluating(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """A context with the modules in eval mode. The last run that uses a submodule restores its mode."""
    entered: list[list[torch.nn.Module]] = []
    try:
        with _lock:
            for module in modules:
                entered.append(_enter(module))
            for module, inners in zip(modules, entered, strict=True):
                if any(inner.training for inner in inners):
                    with contextlib.suppress(NotImplementedError):  # exported programs have no mode
                        module.eval()  # may be overridden, and change other modules
        yield
    finally:
        with _lock:
            _leave(entered)


def _enter(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Counts a run and notes the submodules' modes. Returns the submodules."""
    inners = [inner for inner in modules_in(module) if hasattr(inner, "training")]  # frozen TorchScript has no mode
    for inner in inners:
        _evaluating.setdefault(id(inner), _Mode(inner.training)).runs += 1
    return inners


def _leave(entered: list[list[torch.nn.Module]]) -> None:
    """Restores the modes of submodules that no other run uses."""
    everything = [inner for inners in entered for inner in inners]
    own: dict[int, bool] = {}
    for inner in everything:
        mode = _evaluating[id(inner)]
        mode.runs -= 1
        if mode.runs == 0:
            own[id(inner)] = _evaluating.pop(id(inner)).training
    for inners in entered:
        if inners and own.get(id(inners[0])) and all(id(inner) in own for inner in inners):
            with contextlib.suppress(NotImplementedError):
                inners[0].train()  # may be overridden, and do more than set modes
    for inner in everything:
        if inner.training != own.get(id(inner), inner.training):
            inner.training = own[id(inner)]
