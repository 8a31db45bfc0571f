# SPDX-License-Identifier: MIT
"""A run that keeps its finished rows, and goes on from those that an earlier one has kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..files.journal import Journal, discard, open_journal
from ..images.image import Image
from ..options import Options
from ..run.prepared import Prepared
from .identity import about_run, differences
from .settled import first_row_again, fixed, gives_same_bits, manner, with_manner

__all__ = ["Resumed", "checked_resume", "resumed"]

ANEW = "without resume it starts anew"


def checked_resume(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"resume must be True or False, not {value!r}")
    return value


@contextmanager
def resumed(path: str, resume: bool) -> Iterator[Resumed | None]:
    """Keeps the rows of a result, if asked, until it is complete; else what is kept for it is removed, as it is made
    anew.

    Raises:
        OSError: another process is making the result.
    """
    if not resume:
        discard(path)
        yield None
        return
    with open_journal(path) as journal:
        yield Resumed(journal)
        journal.remove()


def _as_if_asked(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was made of what, with on_nonfinite="retry" in place of "raise" where that is asked now: rows that raised
    nothing would not have been made again either."""
    name, changed = "on_nonfinite", (repr("raise"), repr("retry"))
    return before | {name: now[name]} if (before.get(name), now[name]) == changed else before


class Resumed:
    """Images of one file, one after the other.

    Attributes:
        first: rows of the images before those of this run: of earlier pages.
    """

    def __init__(self, journal: Journal):
        self.journal, self.first = journal, 0
        self.before, self.kept = journal.found, journal.rows  # when this process began
        self.about: dict[str, Any] | None = None
        self.begun = False

    def identify(
        self, image: Image, model: Any, options: Options, path: str | None = None, page: int | None = None
    ) -> None:
        """Says what is made of what: of the file at `path`, of one of its pages. Raises ValueError if rows of something
        else are kept."""
        if self.about is None:
            self.about = about_run(image, model, options, path, page)
            if self.journal.found is not None:
                self._refuse(differences(_as_if_asked(self.journal.found["run"], self.about), self.about))

    def settled(self, options: Options) -> Options:
        """The options, with what an earlier run has chosen where they leave it open."""
        if self.before is None:
            return options
        return with_manner(options, self.before["manner"] | {"dtype": self.before["fixed"]["dtype"]})

    def open(self, prepared: Prepared, shape: tuple[int, ...], dtype: str) -> None:
        """Begins with the images of a run, whose results have rows of that shape and dtype."""
        self.prepared, self.shape, self.dtype = prepared, shape, np.dtype(dtype)
        self.height = prepared.plan.output_size[0]
        if self.begun:
            return
        self.begun = True
        row_bytes = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
        found, now = self.journal.found, {"fixed": fixed(prepared), "manner": manner(prepared)}
        if found is None:
            now["manner"] |= {"memory_limit": prepared.options.memory_limit}
            self.journal.start({"run": self.about, **now}, row_bytes)
            return
        self._refuse(differences(found["fixed"], now["fixed"]))
        if self.journal.row_bytes != row_bytes:
            raise ValueError(f"{self.journal.path}: the rows kept of it have another size; {ANEW}")
        self._check_manner(found["manner"], now["manner"])

    def close(self) -> None:
        """Ends the images of a run."""
        self.first += self.height * self.prepared.image.count

    def _refuse(self, apart: list[str]) -> None:
        if apart:
            text = f"the rows kept of it were made of something else: {', '.join(apart)}"
            raise ValueError(f"{self.journal.path}: {text}; {ANEW}")

    def _check_manner(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        apart = differences({name: before[name] for name in now}, now)
        if not apart or not self.kept:
            return
        said = f"{self.journal.path}: {', '.join(apart)}"
        if before["device"] != now["device"]:
            raise ValueError(f"{said}, and devices round differently; {ANEW}")
        index, rows = divmod(self.kept - 1, self.height)
        if index >= self.prepared.image.count:  # of a later page
            index, rows = 0, self.height - 1
        if not gives_same_bits(self.prepared, before, index, rows + 1):
            raise ValueError(f"{said}, and the bits of this model depend on it; {ANEW}")

    # ---- rows --------------------------------------------------------------------------------------------------------

    def kept_of(self, index: int) -> int:
        """Rows of an image of this run that were kept."""
        return max(0, min(self.height, self.kept - self.first - index * self.height))

    def finished(self, index: int) -> int:
        """Rows of an image that are not made again. The last ones are, and compared."""
        kept = self.kept_of(index)
        return kept if kept in (0, self.height) else first_row_again(self.prepared, kept)

    def replay(self, index: int, rows_at_once: int) -> Iterator[np.ndarray]:
        """The rows that were kept of an image."""
        kept, first = self.kept_of(index), self.first + index * self.height
        for start in range(0, kept, rows_at_once):
            yield self._read(first + start, first + min(kept, start + rows_at_once))

    def compare(self, index: int, start: int, rows: np.ndarray) -> int:
        """How many of these rows were kept. Raises ValueError if one of them is another now."""
        count = max(0, min(len(rows), self.kept_of(index) - start))
        if count:
            before = self._read(
                self.first + index * self.height + start, self.first + index * self.height + start + count
            )
            same = (
                (before.view(np.uint8) == np.ascontiguousarray(rows[:count]).view(np.uint8)).reshape(count, -1).all(1)
            )
            if not same.all():
                row = start + int(np.flatnonzero(~same)[0])
                text = f"row {row} is made with other bits than before: this model or its device does not repeat them"
                raise ValueError(f"{self.journal.path}: {text}; {ANEW}")
        return count

    def append(self, rows: np.ndarray) -> None:
        self.journal.append(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def _read(self, start: int, stop: int) -> np.ndarray:
        return np.frombuffer(self.journal.read(start, stop), self.dtype).reshape(stop - start, *self.shape)
