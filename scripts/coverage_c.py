# SPDX-License-Identifier: MIT
"""Line and branch coverage of the C core and of the binding, by gcov (`make coverage-c`).

The core is built without optimisation and run by its C programs and fuzz targets: on this processor with every level of
row kernels that it has, and with those for AArch64 in an emulator. The binding is run by its tests. Prints a table
and the lines that were missed; anything missed that tests/c/not_covered.txt does not explain is an error, and so is an
explanation of something that is covered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[1]
CORE, BINDING, TESTS = ROOT / "csrc" / "core", ROOT / "csrc" / "binding", ROOT / "tests"
BUILD = ROOT / "build" / "coverage"
EXPLAINED = TESTS / "c" / "not_covered.txt"
FLAGS = ["-std=gnu11", "-O0", "-g", "--coverage", "-ffp-contract=off", f"-I{CORE}"]
TARGETS = ("axis", "plan", "read", "accumulate", "finish", "band", "restore", "rows")
PROGRAMS = ("check_band", "check_restore", "check_rows", "check_cpu", "check_plan")
PYTHON_TESTS = ("test_binding", "test_verbs", "test_plan", "test_band", "test_heap", "test_no_memory")

# Of a line: how often it ran, and each of its branches.
Counts: TypeAlias = "dict[tuple[str, int], tuple[int, list[int]]]"


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def objects(compiler: str, folder: Path, *flags: str) -> list[Path]:
    """The core's, each with its counters."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sorted([*CORE.glob("*.c"), *CORE.glob("rows/*.c")]):
        made.append(folder / f"{source.stem}.o")
        run(compiler, *FLAGS, *flags, "-c", source, "-o", made[-1])
    return made


def programs(compiler: str, folder: Path, core: list[Path], names: tuple[str, ...], *flags: str) -> list[Path]:
    plain = [flag for flag in FLAGS if flag != "--coverage"]
    made = []
    for name in names:
        target = name in TARGETS
        sources = [TESTS / "c" / "fuzz" / f"{name}.c", TESTS / "c" / "fuzz" / "replay.c"]
        made.append(folder / name)
        run(compiler, *plain, *flags, *(sources if target else [TESTS / "c" / f"{name}.c"]), *core, "-lm", "--coverage",
            "-o", made[-1])  # fmt: skip
    return made


def exercise(program: Path, *emulator: str) -> None:
    if program.name not in TARGETS:
        run(*emulator, program)
        return
    corpus = sorted((TESTS / "c" / "fuzz" / "corpus" / program.name).glob("*"))
    run(*emulator, program, "-n", "3000", *corpus)


def measure_core(kept: dict[str, str]) -> Counts:
    folder = BUILD / "native"
    made = programs("gcc", folder, objects("gcc", folder), (*TARGETS, *PROGRAMS))
    for program in made:
        exercise(program)
    for level in ("scalar", "avx2", "avx512", "neon", "", "sse9"):  # each is chosen once in a process
        subprocess.run([folder / "check_cpu"], env={**kept, "HALOTILE_CPU": level}, check=True)
    subprocess.run([folder / "check_cpu"], env=kept, check=True)
    return counts(folder, "gcov")


def measure_neon() -> Counts:
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        print("no AArch64 compiler and emulator: NEON kernels are left out")
        return {}
    folder = BUILD / "neon"
    made = programs(compiler, folder, objects(compiler, folder, "-static"), ("check_rows", "check_cpu"), "-static")
    for program in made:
        exercise(program, emulator)
    run(emulator, "-E", "HALOTILE_CPU=scalar", folder / "check_cpu")
    return counts(folder, "aarch64-linux-gnu-gcov")


def measure_binding() -> Counts:
    import numpy

    folder = BUILD / "binding"
    includes = [f"-I{numpy.get_include()}", f"-I{sysconfig.get_path('include')}", "-DPy_LIMITED_API=0x030b0000"]
    core = objects("gcc", folder / "core", "-fPIC")
    made = []
    for source in sorted(BINDING.glob("*.c")):
        made.append(folder / f"{source.stem}.o")
        run("gcc", *FLAGS, *includes, "-fPIC", "-c", source, "-o", made[-1])
    package = folder / "python" / "halotile"
    shutil.copytree(ROOT / "python" / "halotile", package, dirs_exist_ok=True)
    run("gcc", "-shared", "--coverage", *made, *core, "-lm", "-o", package / "_core.abi3.so")
    tests = [TESTS / f"{name}.py" for name in PYTHON_TESTS]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests, cwd=ROOT, env=environment)
    return counts(folder, "gcov")


def counts(folder: Path, gcov: str) -> Counts:
    """Of all objects that were run, added up: headers are part of several."""
    total: Counts = {}
    for notes in sorted(folder.glob("*.gcno")) + sorted(folder.glob("core/*.gcno")):
        report = json.loads(run(gcov, "--json-format", "--stdout", "--branch-probabilities", notes, cwd=folder))
        for file in report["files"]:
            path = (ROOT / file["file"]).resolve()
            if not path.is_relative_to(ROOT / "csrc"):
                continue
            for line in file["lines"]:
                key = str(path.relative_to(ROOT)), line["line_number"]
                branches = [branch["count"] for branch in line["branches"]]
                add(total, key, line["count"], branches)
    return total


def add(total: Counts, key: tuple[str, int], ran: int, branches: list[int]) -> None:
    """Copies of a line with as many branches are the same code; else the richer copy counts."""
    before, known = total.get(key, (0, []))
    if len(known) == len(branches):
        branches = [a + b for a, b in zip(known, branches, strict=True)]
    else:
        branches = max(known, branches, key=len)
    total[key] = before + ran, branches


def merged(*parts: Counts) -> Counts:
    total: Counts = {}
    for part in parts:
        for key, (ran, branches) in part.items():
            add(total, key, ran, branches)
    return total


def explanations() -> dict[tuple[str, str], tuple[int, str]]:
    """(file, text of the line): the branches that are missed at most, or -1 for the whole line, and why."""
    known = {}
    for line in EXPLAINED.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            file, missed, text, why = (part.strip() for part in line.split(" | ", 3))
            known[file, text] = (-1 if missed == "line" else int(missed)), why
    return known


def report(total: Counts, bound: float) -> int:
    known, used, failures = explanations(), set(), 0
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for (file, number), (ran, branches) in sorted(total.items()):
        text = (ROOT / file).read_text().splitlines()[number - 1].strip().rstrip("\\").strip()
        missed = sum(count == 0 for count in branches)
        most, _ = known.get((file, text), (0, ""))
        if missed or not ran:
            used.add((file, text))
        good = (ran or most == -1) and (missed <= most or most == -1)
        if not good:
            failures += 1
            print(f"{file}:{number}: {f'{missed} of {len(branches)} branches' if ran else 'the line'}: {text}")
        explained = missed if good else 0
        for k, value in enumerate(
            (1, ran > 0 or most == -1, len(branches), len(branches) - missed + explained, explained)
        ):
            sums[file][k] += value
    print(f"\n{'file':<32}{'lines':>14}{'branches':>14}{'explained':>11}")
    lines = ran = all_branches = taken = 0
    for file, (n, run_, b, t, e) in sorted(sums.items()):
        print(f"{file:<32}{run_:>7}/{n:<6}{t:>7}/{b:<6}{e:>8}")
        lines, ran, all_branches, taken = lines + n, ran + run_, all_branches + b, taken + t
    share = 100 * (ran + taken) / max(1, lines + all_branches)
    print(f"{'all':<32}{ran:>7}/{lines:<6}{taken:>7}/{all_branches:<6}   {share:.2f} %")
    needless = [key for key in known if key not in used and key[0] in sums]
    for file, text in needless:
        print(f"{EXPLAINED.name}: needless: {file}: {text}")
    return 0 if share >= bound and not needless else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bound", type=float, default=100, help="per cent of lines and branches")
    parser.add_argument("--core-only", action="store_true", help="leave out the binding")
    arguments = parser.parse_args()
    if shutil.which("gcc") is None or shutil.which("gcov") is None:
        print("no gcc and gcov: coverage is not measured")
        return 0
    shutil.rmtree(BUILD, ignore_errors=True)
    parts = [lambda: measure_core(dict(os.environ)), measure_neon] + [measure_binding] * (not arguments.core_only)
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(lambda part: part(), parts))
    return report(merged(*measured), arguments.bound)


if __name__ == "__main__":
    sys.exit(main())
