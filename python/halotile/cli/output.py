# SPDX-License-Identifier: MIT
"""The output of `halotile restore`: lines as files are finished, or one JSON document."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..version import __version__
from . import batch
from .bar import Bar
from .common import as_written, shown, size_text
from .work import Work

__all__ = ["Reports"]

NAMED = 10  # failed files that the summary lists
ROWS, WIDEST = 20, 60  # of each status in the table; characters of its second column


class Reports:
    """Prints lines as files are finished, or one JSON document at the end."""

    def __init__(self, asked: argparse.Namespace, alone: bool, work: Work):
        self.asked, self.alone, self.work = asked, alone, work
        self.outcomes: list[batch.Outcome] = []
        self.bar = Bar(0, wanted=False)
        self.started = time.monotonic()
        self._said: list[str] = []  # lines about the previous file's run
        self._talks = not (asked.quiet or asked.json)

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def add(self, outcome: batch.Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.error is not None:
            self.bar.say(f"halotile: error: {outcome.error}", sys.stderr)
        elif self._talks:
            for line in self._lines(outcome):
                self.bar.say(line, sys.stdout)

    def _lines(self, outcome: batch.Outcome) -> Iterator[str]:
        sizes = f"{size_text(outcome.input_shape)} -> {size_text(outcome.output_shape)}"
        pages = f", {outcome.pages} pages" if outcome.pages > 1 else ""
        yield f"{shown(outcome.job.output)}: {sizes}{pages}, {outcome.dtype}, {outcome.seconds:.1f} s"
        said, self._said = self._said, list(_about(outcome.run))
        new = (line for line in self._said if line not in said)  # lines that consecutive files share are printed once
        yield from map(as_written, new)
        if outcome.verified is not None:
            yield str(outcome.verified)

    def end(self, interrupted: bool = False) -> None:
        if self.asked.json:
            print(json.dumps(self._document(interrupted), indent=1, allow_nan=False))
        elif self.alone:
            if self._talks and self.count("skipped"):
                print(f"{shown(self.work.jobs[0].output)} exists, skipped")
        elif self._talks:
            print("\n".join([*self._table(), self._summary()]))
        failed = [outcome.job.input for outcome in self.outcomes if outcome.error is not None]
        if failed and not self.alone:
            names = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
            print(f"halotile: {len(failed)} of {self.work.count} files failed: {names}", file=sys.stderr)

    def _table(self) -> Iterator[str]:
        """What became of each file, and why: a few of each kind."""
        width = max((len(shown(outcome.job.input)) for outcome in self.outcomes), default=0)
        for status in ("restored", "skipped", "failed"):
            those = [outcome for outcome in self.outcomes if outcome.status == status]
            for outcome in those[:ROWS]:
                yield f"{status:<9} {shown(outcome.job.input):<{min(width, WIDEST)}}  {self._why(outcome)}".rstrip()
            if len(those) > ROWS:
                yield f"{status:<9} {len(those) - ROWS} more"

    def _why(self, outcome: batch.Outcome) -> str:
        if outcome.status == "restored":
            return shown(outcome.job.output)
        said = outcome.error or outcome.why or ""
        return as_written(said.removeprefix(f"{outcome.job.input}: "))

    def _summary(self) -> str:
        text = f"restored {self.count('restored')} of {self.work.count} files"
        for status in ("skipped", "failed"):
            text += f", {self.count(status)} {status}" if self.count(status) else ""
        text += f", {self.work.ignored} other files ignored" if self.work.ignored else ""
        return f"{text}, {time.monotonic() - self.started:.1f} s"

    def _document(self, interrupted: bool) -> dict[str, Any]:
        counts = {status: self.count(status) for status in ("restored", "skipped", "failed")}
        totals = {"files": self.work.count, **counts, "ignored": self.work.ignored}
        return {
            "version": __version__,
            "model": self.asked.model,
            "files": [outcome.as_json() for outcome in self.outcomes],
            "totals": totals
            | {"seconds": round(time.monotonic() - self.started, 3), "peak_memory_bytes": batch.peak_memory()},
            "interrupted": interrupted,
        }


TOLD = ("by nature", "low band", "best device", "batches are of 1")  # in the reason of a run


def _about(run: Any) -> Iterator[str]:
    """Lines about the inspected model, about how rows were made, and about tiles and dtype that were chosen
    automatically."""
    if run.model is not None or any(word in run.why for word in TOLD):
        others = ("tuning", "precision", "stream", "filled", "averaged", "retried", "spread")
        yield str(dataclasses.replace(run, **dict.fromkeys(others)))
    if run.stream is not None:
        yield str(run.stream)
    elif run.schedule_why is not None:
        yield run.schedule_why if run.schedule_why.startswith("in tiles") else f"in tiles: {run.schedule_why}"
    chosen = []
    if run.tuning is not None:
        tiles = f"tiles of {size_text(run.tuning.tile_size)} in batches of {run.tuning.batch_size}"
        chosen.append(f"{tiles}, {run.tuning.memory_format}: {run.tuning.why}")
    if run.precision is not None:
        chosen.append(f"dtype {run.precision.dtype}: {run.precision.why}")
    if chosen:
        yield f"chosen: {'; '.join(chosen)}"
    if run.averaged is not None:
        yield str(run.averaged)
    if run.filled is not None:
        yield str(run.filled)
    if run.retried:
        yield run.made_again
    if run.spread is not None:
        yield str(run.spread)
