# SPDX-License-Identifier: MIT
"""Forces every branch of the C core's plans and verbs either way: a test must fail (`make mutate`).

A mutant is a source in which one condition (of an if, a loop or a choice, or an operand of && and ||) is always true or
always false. It is compiled, linked to the tests' objects and run against the fuzz targets and C programs that concern
it; one that never ends, crashes or fails is killed. Survivors must be in tests/c/mutants.txt, each with its reason.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE, TESTS = ROOT / "csrc" / "core", ROOT / "tests" / "c"
BUILD = ROOT / "build" / "mutants"
EXPLAINED = TESTS / "mutants.txt"
FLAGS = ["-std=gnu11", "-O1", "-w", "-ffp-contract=off", f"-I{CORE}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SECONDS = 10  # of processor time: a mutant that takes longer never ends

# What is run for each file, the quickest killer first; then, for survivors, all of it with sanitizers.
PROGRAMS = {
    "axis.c": ("axis", "plan", "check_band"),
    "plan.c": ("plan", "axis", "check_band"),
    "kinds.c": ("plan", "check_band"),
    "window.c": ("axis", "band"),
    "reflect.c": ("read", "axis"),
    "read.c": ("read",),
    "band.c": ("band", "check_band", "restore"),
    "band_buffer.c": ("band", "plan", "check_band", "restore"),
    "accumulate.c": ("accumulate", "band"),
    "finish.c": ("finish", "band"),
    "nonfinite.c": ("finish", "accumulate"),
    "restore.c": ("restore", "plan", "check_restore"),
}


@dataclass(frozen=True)
class Mutant:
    file: str
    start: int
    stop: int
    condition: str
    forced: int

    @property
    def name(self) -> str:
        return f"{self.file} | {' '.join(self.condition.split())} | {'true' if self.forced else 'false'}"

    def text(self, source: str) -> str:
        return f"{source[: self.start]}((void)({self.condition}), {self.forced}){source[self.stop :]}"


# ---- conditions ------------------------------------------------------------------------------------------------------


def blanked(source: str) -> str:
    """The same without comments and directives, at the same places."""

    def spaces(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"])*\"|^#[^\n]*", spaces, source, flags=re.DOTALL | re.MULTILINE)


def closing(text: str, at: int) -> int:
    """Of the parenthesis at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError("no closing parenthesis")


def split(text: str, start: int, stop: int, separators: tuple[str, ...]) -> list[tuple[int, int]]:
    """Pieces between separators outside parentheses."""
    pieces, depth, first = [], 0, start
    i = start
    while i < stop:
        depth += (text[i] in "([{") - (text[i] in ")]}")
        found = next((s for s in separators if depth == 0 and text.startswith(s, i)), None)
        if found:
            pieces.append((first, i))
            first = i = i + len(found)
        else:
            i += 1
    return [*pieces, (first, stop)]


def operands(text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The condition and all that && and || join in it."""
    yield start, stop
    for separators in (("||",), ("&&",)):
        pieces = split(text, start, stop, separators)
        if len(pieces) > 1:
            for piece in pieces:
                yield from operands(text, *piece)
            return


def conditions(source: str) -> Iterator[tuple[int, int]]:
    text = blanked(source)
    for match in re.finditer(r"\b(if|while) \(", text):
        yield from operands(text, match.end(), closing(text, match.end() - 1))
    for match in re.finditer(r"\bfor \(", text):
        parts = split(text, match.end(), closing(text, match.end() - 1), (";",))
        if len(parts) == 3 and text[slice(*parts[1])].strip():
            yield from operands(text, *parts[1])
    for match in re.finditer(r" \? ", text):  # back to where the condition begins
        depth, at = 0, match.start()
        while at > 0:
            depth += (text[at] == ")") - (text[at] == "(")
            if depth < 0 or (
                depth == 0 and (text[at] in ",;{?:" or re.match(r"[^=!<>+|&*-]= ", text[at - 1 : at + 2]))
            ):
                break
            at -= 1
        start = at + 1
        if text[start:].lstrip().startswith("return "):
            start = text.index("return ", start) + len("return ")
        yield from operands(text, start, match.start())
    for match in re.finditer(r"(?:return|bool \w+ =) ([^;?]*(?:&&|\|\|)[^;?]*);", text):
        pieces = list(operands(text, match.start(1), match.end(1)))
        yield from pieces[1:] if len(pieces) > 1 else []


def mutants(file: str) -> list[Mutant]:
    source = (CORE / file).read_text()
    found = {}
    for first, stop in conditions(source):
        start = stop - len(source[first:stop].lstrip())
        condition = source[start:stop].rstrip()
        for forced in (0, 1):
            found[start, stop, forced] = Mutant(file, start, start + len(condition), condition, forced)
    return list(found.values())


# ---- running ---------------------------------------------------------------------------------------------------------


def objects(folder: Path, *flags: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    used = {program for programs in PROGRAMS.values() for program in programs}
    sources = [*CORE.glob("*.c"), *CORE.glob("rows/*.c"), TESTS / "fuzz" / "replay.c"]
    for source in sources:
        subprocess.run(["cc", *FLAGS, *flags, "-c", source, "-o", folder / f"{source.stem}.o"], check=True)
    for name in used:
        source = TESTS / (f"{name}.c" if name.startswith("check") else f"fuzz/{name}.c")
        subprocess.run(["cc", *FLAGS, *flags, "-c", source, "-o", folder / f"test_{name}.o"], check=True)


def core_objects(folder: Path, but: str) -> list[Path]:
    names = [path.stem for path in [*CORE.glob("*.c"), *CORE.glob("rows/*.c")]]
    return [folder / f"{name}.o" for name in names if f"{name}.c" != but]


def survives(mutant: Mutant, folder: Path, *flags: str) -> bool:
    changed, made = folder / "mutant.c", folder / "mutant.o"
    changed.write_text(mutant.text((CORE / mutant.file).read_text()))
    compiled = subprocess.run(["cc", *FLAGS, *flags, "-c", changed, "-o", made], capture_output=True, check=False)
    if compiled.returncode != 0:
        raise SystemExit(f"{mutant.name} does not compile:\n{compiled.stderr.decode()[-1000:]}")
    for name in PROGRAMS[mutant.file]:
        replayed = not name.startswith("check")
        program, helper = folder / "run", [folder / "replay.o"] * replayed
        rest = core_objects(folder, mutant.file)
        subprocess.run(
            ["cc", *flags, made, folder / f"test_{name}.o", *helper, *rest, "-lm", "-o", program], check=True
        )
        corpus = sorted((TESTS / "fuzz" / "corpus" / name).glob("*"))
        arguments = ["-n", "3000", *map(str, corpus)] if replayed else []
        command = ["sh", "-c", f'ulimit -t {SECONDS * (5 if flags else 1)}; exec "$0" "$@"', str(program), *arguments]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            return False
    return True


def explanations() -> dict[str, str]:
    lines = [line for line in EXPLAINED.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return {line.rsplit(" | ", 1)[0]: line.rsplit(" | ", 1)[1] for line in lines}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--sample", type=int, help="so many of them, chosen anew each day")
    arguments = parser.parse_args()
    if shutil.which("cc") is None:
        print("no C compiler: nothing is mutated")
        return 0
    plain, careful = BUILD / "plain", BUILD / "sanitized"
    objects(plain)
    chosen = [mutant for file in arguments.files for mutant in mutants(file)]
    if arguments.sample:
        chosen = random.Random(time.strftime("%Y-%m-%d")).sample(chosen, min(arguments.sample, len(chosen)))
    known, survivors, explained = explanations(), 0, 0
    for mutant in chosen:
        if mutant.name in known:
            explained += 1
            continue
        if not survives(mutant, plain):
            continue
        if not careful.exists():
            objects(careful, *SANITIZE)
        if survives(mutant, careful, *SANITIZE):
            survivors += 1
            print(f"survives: {mutant.name}", flush=True)
    print(
        f"{len(chosen)} mutants: {len(chosen) - survivors - explained} killed, {explained} explained, {survivors} left"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
