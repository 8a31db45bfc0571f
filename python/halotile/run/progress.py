# SPDX-License-Identifier: MIT
"""Progress: none, a tqdm bar, or the user's callable."""

from __future__ import annotations

from types import TracebackType
from typing import Any

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
        if wanted is True:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ImportError(
                    "progress=True needs tqdm: pip install tqdm, or pass a callable (done, total)"
                ) from None
            self.make_bar = tqdm

    def __enter__(self) -> Progress:
        return self

    def begin(self, total: int) -> None:
        """Starts the clock; may be called again with a new total."""
        self.total = total
        if self.bar is not None:
            self.bar.total = total
        elif self.wanted is True:
            self.bar = self.make_bar(total=total, unit=self.unit)

    def advance(self, tiles: int) -> None:
        self.done += tiles
        if self.bar is not None:
            self.bar.update(tiles)
        elif self.wanted is not None:
            try:
                self.wanted(self.done, self.total)
            except Exception as error:
                raise Cancelled(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        if isinstance(error, Cancelled):
            raise error.error from error.error.__cause__
