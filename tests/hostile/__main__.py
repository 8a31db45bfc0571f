# SPDX-License-Identifier: MIT
"""Runs the corpus and prints a table: `python -m tests.hostile [--each N] [PART ...]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from . import corpus
from .run import Outcome, Runner


def table(outcomes: list[Outcome]) -> str:
    """A row for each kind: inputs, restored, refused, wrong, and the most seconds and MiB."""
    rows = defaultdict(list)
    for one in outcomes:
        rows[one.case.kind].append(one)
    rows["all"] = outcomes
    lines = [
        "| reader | inputs | restored | refused | wrong | longest, s | most, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, found in rows.items():
        counts = [sum(one.what == what for one in found) for what in ("restored", "refused")]
        wrong, slowest = sum(not one.fine for one in found), max(one.seconds for one in found)
        most = max(one.memory for one in found) >> 20
        lines.append(f"| {kind} | {len(found)} | {counts[0]} | {counts[1]} | {wrong} | {slowest:.2f} | {most} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=corpus.EACH, help="inputs of each damage to each good file")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(corpus.PARTS)}")
    parser.add_argument("--seconds", type=int, default=2, help="of the processor, for each input")
    parser.add_argument("--show", action="store_true", help="what became of each input")
    asked = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, Runner(Path(folder), asked.seconds) as runner:
        for outcome in runner.all(corpus.cases(asked.each, tuple(asked.parts) or tuple(corpus.PARTS))):
            outcomes.append(outcome)
            if asked.show or not outcome.fine:
                tail = " ".join(outcome.text.split())[-300:]
                print(f"{outcome.case}: {outcome.what} ({outcome.seconds:.2f} s) {tail}", flush=True)
    print(table(outcomes))
    return 0 if all(one.fine for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
