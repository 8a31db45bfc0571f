# SPDX-License-Identifier: MIT
"""Fuzzes the C core: targets of tests/c/fuzz, built plainly, with ASan and UBSan, and with MSan (`make fuzz`).

Each target starts from its corpus in tests/c/fuzz/corpus and keeps what it finds in build/fuzz/corpus. A finding ends
the script with the file that shows it. Without clang's libFuzzer, targets are built with the C compiler and run on the
corpus and on random inputs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "csrc" / "core"
SOURCES = sorted(map(str, [*CORE.glob("*.c"), *CORE.glob("rows/*.c")]))
TARGETS = ("axis", "plan", "read", "accumulate", "finish", "band", "restore", "rows")
SANITIZERS = {"plain": "", "address": "address,undefined", "memory": "memory"}
CORPUS = ROOT / "tests" / "c" / "fuzz" / "corpus"
BUILD = ROOT / "build" / "fuzz"
FLAGS = ["-std=gnu11", "-g", "-O1", "-ffp-contract=off", f"-I{CORE}", "-fno-sanitize-recover=all"]
ENDS = [f"-{name}=1" for name in ("print_final_stats", "reload", "reduce_inputs")]


def has_fuzzer() -> bool:
    if shutil.which("clang") is None:
        return False
    empty = "#include <stddef.h>\nint LLVMFuzzerTestOneInput(const char *d, size_t n) { return d && n > 9; }"
    command = ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(command, input=empty.encode(), capture_output=True, check=False).returncode == 0


def build(target: str, kind: str, fuzzer: bool) -> Path:
    program = BUILD / kind / target
    program.parent.mkdir(parents=True, exist_ok=True)
    asked = ["fuzzer"] * fuzzer + [SANITIZERS[kind]] * bool(SANITIZERS[kind])
    sources = [str(ROOT / "tests" / "c" / "fuzz" / f"{target}.c"), *SOURCES]
    sources += [] if fuzzer else [str(ROOT / "tests" / "c" / "fuzz" / "replay.c")]
    compiler = "clang" if fuzzer else os.environ.get("CC", "cc")
    sanitize = [f"-fsanitize={','.join(asked)}"] if asked else []
    subprocess.run([compiler, *FLAGS, *sanitize, *sources, "-lm", "-o", str(program)], check=True)
    return program


def seeds(target: str) -> list[Path]:
    return sorted((CORPUS / target).glob("*"))


def fuzz(target: str, kind: str, seconds: int) -> tuple[int, str]:
    """How many inputs were run, and the output if one of them failed."""
    found = BUILD / "corpus" / target
    found.mkdir(parents=True, exist_ok=True)
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    command = [str(build(target, kind, True)), *ENDS, f"-max_total_time={seconds}", "-max_len=400", "-timeout=60"]
    command += [f"-artifact_prefix={BUILD}/{target}-{kind}-", str(found), str(CORPUS / target)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    units = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    return int(units[1]) if units else 0, "" if done.returncode == 0 else done.stderr[-4000:]


def replay(target: str, kind: str, inputs: int) -> tuple[int, str]:
    """The same without a fuzzer."""
    files = [str(path) for path in seeds(target)]
    command = [str(build(target, kind, False)), "-n", str(inputs), *files]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return inputs + len(files), "" if done.returncode == 0 else done.stdout + done.stderr[-4000:]


def minimise(target: str, most: int) -> None:
    """Writes the corpus anew: as many of the smallest inputs that each add something as fit into `most` bytes."""
    small = BUILD / "small" / target
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir(parents=True)
    program = build(target, "plain", True)
    subprocess.run(
        [str(program), "-merge=1", str(small), str(BUILD / "corpus" / target)], check=True, capture_output=True
    )
    shutil.rmtree(CORPUS / target, ignore_errors=True)
    (CORPUS / target).mkdir(parents=True)
    held = 0
    for path in sorted(small.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        held += path.stat().st_size
        if held > most:
            break
        shutil.copy(path, CORPUS / target / path.name[:12])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=20, help="for each target and kind of build")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kinds", nargs="+", choices=list(SANITIZERS), default=list(SANITIZERS))
    parser.add_argument("--minimise", type=int, metavar="BYTES", help="write the corpora anew, of at most so many each")
    arguments = parser.parse_args()
    fuzzer = has_fuzzer()
    if arguments.minimise is not None:
        for target in arguments.targets:
            minimise(target, arguments.minimise)
        return 0
    if not fuzzer:
        print("no libFuzzer: the corpus and random inputs are run instead, without MSan")
    for kind in arguments.kinds:
        for target in arguments.targets:
            if kind == "memory" and not fuzzer:
                continue
            start = time.monotonic()
            count, problem = fuzz(target, kind, arguments.seconds) if fuzzer else replay(target, kind, 2000)
            print(f"{target:<11}{kind:<8}{count:>10} inputs {time.monotonic() - start:>6.0f} s", flush=True)
            if problem:
                print(problem, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
