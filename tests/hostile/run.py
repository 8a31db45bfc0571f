# SPDX-License-Identifier: MIT
"""Runs cases in children of a zygote, and judges them: restored, or refused with one line, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .case import UNDAMAGED, Case

ROOT = Path(__file__).parents[2]
SECONDS, MEMORY = 2, 500 << 20
REFUSED = (2,)
SECRET = "a secret that no message may quote"


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    what: "restored", "refused", or what is wrong.
    seconds: of the processor; wall: on the clock. memory: bytes beside those of the zygote.
    """

    case: Case
    what: str
    seconds: float
    wall: float
    memory: int
    text: str

    @property
    def fine(self) -> bool:
        return self.what in ("restored", "refused")


class Runner:
    """A zygote, and a folder for the cases."""

    def __init__(self, folder: Path, seconds: int = SECONDS):
        self.folder, self.seconds = folder, seconds
        command = [sys.executable, "-m", "tests.hostile.zygote"]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "python")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "PYTHONPATH": paths}
        environment |= {"HALOTILE_DEBUG": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.zygote = subprocess.Popen(command, **pipes, text=True, env=environment, cwd=ROOT)
        assert self.zygote.stdout.readline() == "ready\n"

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.zygote.stdin.close()
        self.zygote.wait()

    def run(self, case: Case) -> Outcome:
        """Makes the case in a folder of its own, and runs it."""
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        _make(case, place)
        before = _tree(place)
        named = str(place / "in" / case.path) if case.absolute else f"in/{case.path}"
        arguments = ["restore", *(one.replace("{input}", named) for one in case.arguments)]
        job = {"folder": str(place), "arguments": arguments, "processor": self.seconds}
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        found = json.loads(self.zygote.stdout.readline())
        what = _judged(case, found, _changes(before, _tree(place)), place)
        return Outcome(case, what, found["processor"], found["wall"], found["memory"] or 0, found["text"])

    def all(self, cases: Iterable[Case]) -> Iterator[Outcome]:
        return map(self.run, cases)


# ---- the folder of a case --------------------------------------------------------------------------------------------


def _make(case: Case, place: Path) -> None:
    """in/ has the input; out/ is for the result; the rest must stay as it is."""
    for name in ("in", "out", "tmp", "elsewhere/deep"):
        (place / name).mkdir(parents=True)
    (place / "elsewhere" / "secret").write_text(SECRET)
    (place / "elsewhere" / "deep" / "x").write_bytes(b"untouched")
    for name, content in case.files().items():
        path = os.path.join(os.fsencode(place), b"in", os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def _tree(place: Path) -> dict[bytes, str]:
    """Name -> kind and hash of everything."""
    found, top = {}, os.fsencode(place)
    for here, folders, names in os.walk(top):
        for name in folders:
            found[os.path.relpath(os.path.join(here, name), top)] = "folder"
        for name in names:
            path = os.path.join(here, name)
            if os.path.islink(path):
                found[os.path.relpath(path, top)] = f"link to {os.readlink(path)!r}"
            else:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, top)] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def _changes(before: dict[bytes, str], after: dict[bytes, str]) -> set[bytes]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


OURS = (b"text", b"cache")  # what the child writes of its own


def _judged(case: Case, found: dict, changes: set[bytes], place: Path) -> str:
    wrong = _wrong_end(found) or _wrong_text(case, found)
    if wrong:
        return wrong
    changes = {name for name in changes if not name.startswith(OURS)}
    outside = {name for name in changes if not name.startswith(b"out/") and name not in case.changes}
    if outside:
        return f"wrote {sorted(outside)[:3]}"
    if found["status"] in REFUSED:
        if case.how == UNDAMAGED:
            return "refused a good file"
        return f"left {sorted(changes)[:3]}" if changes - set(case.changes) else "refused"
    return _judged_result(case, changes, place)


def _wrong_end(found: dict) -> str | None:
    if found["signal"]:
        return f"killed by signal {found['signal']}"
    if found["memory"] is None:
        return "died"
    return f"took {found['memory'] >> 20} MiB" if found["memory"] > MEMORY else None


def _judged_result(case: Case, changes: set[bytes], place: Path) -> str:
    results = sorted(name for name in changes if name.count(b"/") == 1 and name.startswith(b"out/"))
    if len(results) != 1 or b".halotile-" in results[0]:
        return f"restored {results[:3]}"
    if case.wanted is not None and (place / os.fsdecode(results[0])).read_bytes() != case.wanted:
        return "restored something else"
    return "restored"


def _wrong_text(case: Case, found: dict) -> str | None:
    """What is wrong with the status and the lines on the terminal; None if nothing is."""
    text, status = found["text"], found["status"]
    lines = [line for line in text.splitlines() if not line.startswith("halotile: warning: ")]
    if "Traceback" in text or status not in (0, *REFUSED):
        return f"status {status}: a traceback" if "Traceback" in text else f"status {status}"
    if SECRET in text:
        return "told a secret"
    if status == 0:
        errors = [line for line in lines if "error" in line]
        return f"said {errors[0][:80]!r}" if errors else None
    if len(lines) != 1 or not lines[0].startswith("halotile: error: "):
        return f"refused with {len(lines)} lines"
    if case.named not in lines[0]:
        return "refused without its name"
    return None
