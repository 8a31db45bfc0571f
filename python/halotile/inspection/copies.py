# SPDX-License-Identifier: MIT
"""Copies of models for inspection, which leave the models unchanged, and single-threaded runs."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..models.around import Shared
from ..models.modes import evaluating
from ..models.reach import modules_of, roots_of
from ..models.untouched.copies import copied, uncompiled
from ..models.untouched.snapshot import preserved

if TYPE_CHECKING:
    import torch

__all__ = ["float_copy", "modules_in", "one_thread", "own_copy"]


@contextlib.contextmanager
def own_copy(model: Any) -> Iterator[Any]:
    """A copy to run, so that counters and caches of the model do not change; if it cannot be copied, the model itself,
    which is restored afterwards."""
    own = _own(uncompiled(model))
    with preserved(modules_in(own), values=own is uncompiled(model)):
        yield own


def _own(model: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return model
    try:
        return copied(model)
    except Exception:  # its parts may raise anything
        return model


def modules_in(model: object) -> list[torch.nn.Module]:
    """The torch modules that a model is or holds."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    return roots_of(model) if isinstance(model, torch.nn.Module) else roots_of(*modules_of(model), model)


@contextlib.contextmanager
def float_copy(model: Any, torch: ModuleType, dtype: str = "float32") -> Iterator[tuple[Callable, list]]:
    """A copy in that dtype on the CPU, in eval mode; if the model is not a module, the callable itself."""
    if isinstance(model, torch.nn.Module):
        fixed = type(model).__name__ == "FixedShape"
        module = copied(model.program if fixed else model).to(device="cpu", dtype=getattr(torch, dtype))
        with contextlib.suppress(NotImplementedError):  # exported programs have no mode
            module.eval()
        batch = fixed and model.batch
        with evaluating(roots_of(module)):
            yield (lambda x: module(x.repeat(batch, 1, 1, 1))[:1]) if batch else module, [module]
        return
    modules = modules_of(model)
    everything = roots_of(*modules, model)
    with evaluating(everything), preserved(everything):
        yield model, modules


def _save_threads() -> Callable[[], object]:
    torch = sys.modules.get("torch")
    return (lambda: None) if torch is None else functools.partial(torch.set_num_threads, torch.get_num_threads())


_threads = Shared(_save_threads)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context with a single thread: thousands of tiny operations gain little from more, and lose much on busy
    cores."""
    torch = sys.modules.get("torch")
    with _threads:
        if torch is not None:
            torch.set_num_threads(1)  # for this thread, and for threads without a setting
        try:
            yield
        finally:
            _threads.restore()
