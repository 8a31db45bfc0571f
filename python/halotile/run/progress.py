# SPDX-License-Identifier: MIT
"""Progress: none, a tqdm bar, or the user's callable."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ..stages import Listening, Stages, make_bar

__all__ = ["Progress"]


class Cancelled(BaseException):
    """Carries an `error` raised by the user's callable. A BaseException, so that it is not mistaken for a model
    failure."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error


class Progress:
    """Counts tiles. `wanted` is None, True or a callable (done, total), whose exceptions end the run and propagate
    unwrapped."""

    def __init__(self, wanted: Any, unit: str = "tile"):
        self.wanted, self.bar, self.unit = wanted, None, unit
        self.done = self.total = 0
        self.described = False
        self.stages = Stages(True, "") if wanted is True else None
        self._listening = Listening(self._told if wanted is True else None)

    def __enter__(self) -> Progress:
        self._listening.__enter__()
        return self

    def _told(self, stage: str, what: str, done: int, total: int) -> None:
        """Before there are tiles a stage has a bar; then it is named beside the tiles'."""
        assert self.stages is not None
        if self.bar is None:
            self.stages.told(stage, what, done, total)
            return
        self.described = done < total or not total
        self.bar.set_description(f"{stage} {what}".strip() if self.described else "")

    def begin(self, total: int) -> None:
        """Starts the clock; may be called again with a new total."""
        self.total = total
        if self.bar is not None:
            self.bar.total = total
        elif self.stages is not None:
            self.stages.close()
            self.bar = make_bar()(total=total, unit=self.unit, leave=None)  # below another bar, it goes when it is full

    def advance(self, tiles: int) -> None:
        self.done += tiles
        if self.bar is not None:
            if self.described:
                self.described = False
                self.bar.set_description_str("", refresh=False)
            self.bar.update(tiles)
        elif self.wanted is not None:
            try:
                self.wanted(self.done, self.total)
            except Exception as error:
                raise Cancelled(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listening.__exit__()
        if self.stages is not None:
            self.stages.close()
        if self.bar is not None:
            self.bar.close()
        if isinstance(error, Cancelled):
            raise error.error from error.error.__cause__
