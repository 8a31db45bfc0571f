# SPDX-License-Identifier: MIT
"""How fast do read, accumulate and finish move bytes, beside memcpy? In GB/s, of bytes read plus bytes written.

Each case is compared with a copy of the same access pattern: as many bytes moved in all, half of them read, half
written; row by row, a planar image's rows being a third as long; between an array of as many bytes as the case's image
(or sums) and one that is as large as the window, or used again and again as the window is. np.copyto does that copy: a
memcpy for each row, or a single one where rows lie end to end (most of DRAM), which then may store past the caches.
Case and copy take turns, the time is the thread's own, and the best round of each counts, since noise only slows down.

Two working sets:
    window  the image (or the sums) is of 3840x2160 RGB, the window one of 544x496 that is used for every tile
    DRAM    both are of 7680x4320 RGB, passed over once

    python benchmarks/bench_rows.py [--rounds 25] [--levels] [--only TEXT]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
from common import fresh_process, interleaved, save, table

from halotile import _core

LEVELS = ("scalar", "avx2", "avx512", "neon")
TARGET = 0.7  # of memcpy

DTYPES = {"u8": np.uint8, "u16": np.uint16, "f16": np.float16, "bf16": np.uint16, "f32": np.float32}
PEAKS = {"u8": 255.0, "u16": 65535.0}


@dataclass(frozen=True)
class Set:
    """A working set: sizes (height, width)."""

    name: str
    image: tuple[int, int]
    window: tuple[int, int]


SETS = (Set("window", (2160, 3840), (496, 544)), Set("DRAM", (4320, 7680), (4320, 7680)))


@dataclass(frozen=True)
class Case:
    """One verb between the large array (image or sums) and the window (the model's input or output)."""

    verb: str
    image: str  # such as "u8 HWC"
    window: str
    divided: bool = False

    @property
    def name(self) -> str:
        if self.verb == "read":
            return f"read {self.image} -> {self.window}"
        return f"{self.verb} {self.window} -> {self.image}" + (", normalised" if self.divided else "")


CASES = (
    Case("read", "u8 HWC", "f32 CHW"),
    Case("read", "u16 HWC", "f32 CHW"),
    Case("read", "f16 HWC", "f32 CHW"),
    Case("read", "f32 HWC", "f32 CHW"),
    Case("read", "f32 CHW", "f32 CHW"),
    Case("read", "u8 CHW", "f32 CHW"),
    Case("read", "u8 HWC", "f32 HWC"),
    Case("read", "u8 HWC", "f16 CHW"),
    Case("read", "u8 HWC", "bf16 CHW"),
    Case("read", "u8 HWC", "f16 HWC"),
    Case("accumulate", "f32 CHW", "f32 CHW"),
    Case("accumulate", "f32 CHW", "f16 CHW"),
    Case("accumulate", "f32 CHW", "bf16 CHW"),
    Case("accumulate", "f32 CHW", "f32 HWC"),
    *(
        Case("finish", image, window, divided)
        for image, window in (
            ("u8 HWC", "f32 CHW"),
            ("u16 HWC", "f32 CHW"),
            ("f16 HWC", "f32 CHW"),
            ("f32 HWC", "f32 CHW"),
            ("f32 CHW", "f32 CHW"),
            ("u8 CHW", "f32 CHW"),
            ("u8 HWC", "f16 CHW"),
            ("u8 HWC", "bf16 CHW"),
            ("u8 HWC", "f32 HWC"),
        )
        for divided in (False, True)
    ),
)

# ---- arrays ----------------------------------------------------------------------------------------------------------


def new_array(kind: str, size: tuple[int, int]) -> np.ndarray:
    """(3, height, width) of ordinary values, touched."""
    dtype, layout = kind.split()
    shape = (*size, 3) if layout == "HWC" else (3, *size)
    array = np.empty(shape, DTYPES[dtype])
    array[...] = 0x3F3F if dtype == "bf16" else 200 if dtype in PEAKS else 0.75
    return array.transpose(2, 0, 1) if layout == "HWC" else array


def origins(sizes: Set) -> Iterator[tuple[int, int]]:
    """Of the windows that lie side by side in the image."""
    for y in range(0, sizes.image[0] - sizes.window[0] + 1, sizes.window[0]):
        for x in range(0, sizes.image[1] - sizes.window[1] + 1, sizes.window[1]):
            yield y, x


def bytes_per_window(case: Case, sizes: Set) -> int:
    """Read and written; sums are both."""
    elements = 3 * sizes.window[0] * sizes.window[1]
    image, window = (np.dtype(DTYPES[kind.split()[0]]).itemsize for kind in (case.image, case.window))
    return elements * (image * (2 if case.verb == "accumulate" else 1) + window)


# ---- what is timed ---------------------------------------------------------------------------------------------------


def pass_of(case: Case, sizes: Set) -> Callable[[], None]:
    """One pass over the image, window by window."""
    image, window = new_array(case.image, sizes.image), new_array(case.window, sizes.window)
    height, width = sizes.window
    ny, nx = np.full(height, 2, np.float32), np.full(width, 2, np.float32)
    dtype = case.image.split()[0]
    values = (PEAKS.get(dtype, 1.0), 1.0, 0.0, dtype in PEAKS)

    def read(y: int, x: int) -> None:
        _core.read(window, image, y, x, values)

    def accumulate(y: int, x: int) -> None:
        _core.accumulate(image[:, y : y + height, x : x + width], window, ny, nx)

    def finish(y: int, x: int) -> None:
        divisors = (ny, nx) if case.divided else (None, None)
        _core.finish(image[:, y : y + height, x : x + width], window, *divisors, values)

    verb = {"read": read, "accumulate": accumulate, "finish": finish}[case.verb]
    return lambda: [verb(y, x) for y, x in origins(sizes)] and None


def copy_of(case: Case, sizes: Set) -> tuple[Callable[[], None], int]:
    """A pass of copies of the same pattern, and how many bytes it reads and writes."""
    dtype, layout = case.image.split()
    planes = 1 if layout == "HWC" else 3
    large = np.ones(
        (sizes.image[0] * planes, sizes.image[1] * 3 // planes * np.dtype(DTYPES[dtype]).itemsize), np.uint8
    )
    height = sizes.window[0] * planes
    row = min(bytes_per_window(case, sizes) // height // 2, large.shape[1])
    boxes = [large[y : y + height, x : x + row] for y in _steps(large, 0, height) for x in _steps(large, 1, row)]
    small = np.ones((height, row), np.uint8)

    def run() -> None:
        for box in boxes:
            np.copyto(*((small, box) if case.verb == "read" else (box, small)))

    return run, 2 * small.nbytes * len(boxes)


def _steps(array: np.ndarray, axis: int, step: int) -> range:
    return range(0, array.shape[axis] - step + 1, step)


def measure(case: Case, sizes: Set, rounds: int) -> dict[str, float]:
    copy, copied = copy_of(case, sizes)
    moved = bytes_per_window(case, sizes) * len(list(origins(sizes)))
    seconds = interleaved({"case": pass_of(case, sizes), "copy": copy}, rounds, time.thread_time)
    speed, memcpy = ([n / s / 1e9 for s in seconds[name]] for name, n in (("case", moved), ("copy", copied)))
    return {
        "GB_per_s": max(speed),
        "memcpy_GB_per_s": max(memcpy),
        "ratio": max(speed) / max(memcpy),
        "median_ratio": median(a / b for a, b in zip(speed, memcpy, strict=True)),
    }


# ---- all of them -----------------------------------------------------------------------------------------------------


def measure_all(rounds: int, only: str) -> dict[str, dict[str, dict[str, float]]]:
    """By working set, by case."""
    return {
        sizes.name: {case.name: measure(case, sizes, rounds) for case in CASES if only in case.name} for sizes in SETS
    }


def measure_levels(levels: tuple[str, ...], rounds: int, only: str) -> dict[str, dict]:
    """By row kernels; a level that the processor lacks gives another's kernels and is left out."""
    found = {}
    for level in levels:
        one = fresh_process(__file__, "--measure", f"--rounds={rounds}", f"--only={only}", HALOTILE_CPU=level)
        if one["rows"] == level:
            found[level] = one["figures"]
        else:
            print(f"{level}: not on this processor")
    return found


def report(figures: dict[str, dict], set_name: str) -> str:
    """Cases down, levels across: GB/s, memcpy's, and the ratio."""
    levels = list(figures)
    head = [f"{set_name}", "memcpy", *(f"{level} {what}" for level in levels for what in ("GB/s", "ratio"))]
    rows = []
    for name in figures[levels[0]][set_name]:
        of_levels = [figures[level][set_name][name] for level in levels]
        cells = [cell for f in of_levels for cell in (f"{f['GB_per_s']:.1f}", f"{f['ratio']:.2f}")]
        rows.append([name, f"{median(f['memcpy_GB_per_s'] for f in of_levels):.1f}", *cells])
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--levels", action="store_true", help="every kind of row kernels that the processor has")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds TEXT")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        figures = measure_all(arguments.rounds, arguments.only)
        print(json.dumps({"rows": _core.rows_name(), "figures": figures}))
        return
    levels = LEVELS if arguments.levels else (_core.rows_name(),)
    figures = measure_levels(levels, arguments.rounds, arguments.only)
    best = list(figures)[-1]
    for sizes in SETS:
        print("\n" + report(figures, sizes.name))
    slow = [(s, n, f["ratio"]) for s, of in figures[best].items() for n, f in of.items() if f["ratio"] < TARGET]
    print(f"\n{best}: {len(slow)} of {sum(map(len, figures[best].values()))} below {TARGET} of memcpy")
    for set_name, name, ratio in slow:
        print(f"    {ratio:.2f}  {set_name}: {name}")
    save("rows", {"figures": figures})


if __name__ == "__main__":
    main()
