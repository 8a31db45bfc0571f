# SPDX-License-Identifier: MIT
"""What long work beside tiles says of itself (inspecting, tuning, verifying), and who listens: a bar, or a callable."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

__all__ = ["Listening", "Stages", "make_bar", "reached", "shown"]

Listener = Callable[[str, str, int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("halotile_stages", default=None)


def reached(stage: str, what: str, done: int, total: int) -> None:
    """Says that so many of all steps of a stage are done, and what comes next. The last one ends the stage."""
    listener = _listener.get()
    if listener is not None:
        listener(stage, what, done, total)


def make_bar() -> Any:
    """tqdm's class for the terminal or the notebook."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass a callable (done, total)") from None
    return tqdm


class Listening:
    """While it is open, stages are told to `listener`, and to nobody else."""

    def __init__(self, listener: Listener | None):
        self.listener = listener
        self._token: Token[Listener | None] | None = None

    def __enter__(self) -> None:
        self._token = _listener.set(self.listener)

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _listener.reset(self._token)


class Stages:
    """Shows stages: all of them by a bar that goes when it is full, or its own one to a callable (done, total)."""

    def __init__(self, wanted: Any, own: str):
        self.wanted, self.own = wanted, own
        self.make_bar = make_bar() if wanted is True else None
        self.bar: Any = None
        self.stage = ""
        self._listening = Listening(self.told if wanted is not None else None)

    def __enter__(self) -> Stages:
        self._listening.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listening.__exit__()
        self.close()

    def told(self, stage: str, what: str, done: int, total: int) -> None:
        if self.make_bar is None:
            if stage == self.own:
                self.wanted(done, total)
            return
        if self.bar is None or stage != self.stage:
            self.close()
            name = f"{stage} {what}".strip()
            self.stage, self.bar = stage, self.make_bar(total=total, desc=name, unit="step", leave=False)
        self.bar.set_description(f"{stage} {what}".strip(), refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total > 0:
            self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shown(wanted: Any, own: str) -> AbstractContextManager[object]:
    """Shows stages if that is wanted; else whoever showed them before goes on doing so."""
    return nullcontext() if wanted is None else Stages(wanted, own)
