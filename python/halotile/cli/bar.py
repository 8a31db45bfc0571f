# SPDX-License-Identifier: MIT
"""A progress bar over the pixels of all files."""

from __future__ import annotations

from typing import Any

__all__ = ["Bar"]


class Bar:
    """A progress bar over the pixels of all files, or none if tqdm is missing. Pass it as `progress` to the restorer.

    Args:
        total: pixels of all files.
        wanted: whether to show anything.
    """

    def __init__(self, total: int, wanted: bool = True):
        self.bar: Any = None
        self._before = self._page = 0
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, unit="px", unit_scale=True)

    def begin_page(self, pixels: int) -> None:
        """Starts the next page, which has that many pixels."""
        self._before, self._page = self._before + self._page, pixels
        self._show(0)

    def end_file(self, pixels: int, before: int) -> None:
        """Ends a file of `pixels` pixels after `before` pixels in earlier files, whether or not it was restored."""
        self._before, self._page = before + pixels, 0
        self._show(0)

    def __call__(self, done: int, total: int) -> None:
        self._show(self._page * done // max(total, 1))

    def _show(self, pixels: int) -> None:
        if self.bar is not None:
            self.bar.update(max(0, self._before + pixels - int(self.bar.n)))

    def say(self, text: str, file: Any) -> None:
        """Prints a line without breaking the bar."""
        if self.bar is None:
            print(text, file=file, flush=True)
        else:
            self.bar.write(text, file=file)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
