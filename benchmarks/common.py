# SPDX-License-Identifier: MIT
"""What the benchmarks share: the machine, interleaved timing, memory, fresh processes, tables, results.

Nothing here imports torch, so that a parent process stays small beside the children that it measures.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from halotile import _core

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
LOAD_AT_START = round(os.getloadavg()[0], 2)

# ---- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a reader needs to know about where figures come from; nothing that names the machine or its user."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": _caches(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": _system(),
        "load_at_start": LOAD_AT_START,
        "rows": _core.rows_name(),
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("halotile", "numpy", "torch")},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    numbers = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    return " ".join([fields.get("model name", platform.machine()), *([f"({', '.join(numbers)})"] if numbers else [])])


def _caches() -> list[str]:
    """Of the first core, smallest first, such as 'L2 512K'."""
    found = []
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return found


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.platform(terse=True)
    return f"{name}, {platform.machine()}"


def version_of(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


# ---- measuring -------------------------------------------------------------------------------------------------------


def interleaved(
    contenders: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each contender in each round. They take turns, so that what disturbs the machine disturbs them alike;
    a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, run in contenders.items():
            start = clock()
            run()
            if round_:
                seconds[name].append(clock() - start)
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def memory() -> tuple[int, int]:
    """Resident bytes of this process: now, and at most so far. Where the first is not to be had, the second twice."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return most, most
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(kilobytes["VmRSS"]) * 1024, int(kilobytes["VmHWM"]) * 1024


def fresh_process(script: str, *arguments: str, **environment: str) -> Any:
    """What `python script arguments` prints as JSON, run on its own."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


# ---- reporting -------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded to be read as it is: the first column to the left, numbers to the right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    padded = [[cell.rjust(w) if i else cell.ljust(w) for cell in columns[i]] for i, w in enumerate(widths)]
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in zip(*padded, strict=True))
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([first, rule, *rest])


def save(name: str, results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    print(f"\nwritten: {path.relative_to(Path(__file__).parent)}")
