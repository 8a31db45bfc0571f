# SPDX-License-Identifier: MIT
"""What does everything but the model cost? A 3840x2160 uint8 RGB image, enlarged four times by a model that only
repeats pixels, to uint8: seconds and peak memory of halotile and of other people's tile loops.

Every measurement is a process of its own: imports, the image, a run on a very small image, a first run on the image
that gives the memory, and a second one that gives the seconds. Contenders take turns. Of seconds the best round counts,
since noise only slows down. Every result is compared with the exact one, pixel by pixel, off the clock.

    python benchmarks/bench_assembly.py [--rounds 5] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from common import MIB, fresh_process, memory, save, summary, table
from loops import PEERS, Peer

from halotile import iter_bands, restore_tiled

HEIGHT, WIDTH, SCALE, TILE, HALO = 2160, 3840, 4, 512, 32
OUTPUT_BYTES = HEIGHT * WIDTH * 3 * SCALE**2
COMPARED = ("seconds", "rest_seconds", "above_baseline_bytes")

Figures = dict[str, dict[str, float]]  # by what was measured: median, least, most
Bands = Iterable[tuple[int, np.ndarray]]  # (first row, rows) of the result, from the top
Contender = Callable[[np.ndarray, Any], Bands]

# ---- the contenders --------------------------------------------------------------------------------------------------


def restored(**options: Any) -> Contender:
    return lambda image, model: [(0, restore_tiled(image, model, tile_size=TILE, halo=HALO, **options))]


def in_bands(image: np.ndarray, model: Any) -> Bands:
    return iter_bands(image, model, tile_size=TILE, halo=HALO)


def of_peer(peer: Peer) -> Contender:
    return lambda image, model: [(0, peer.restore(image, model, SCALE, TILE, HALO))]


DEFAULTS = "halotile"
CONTENDERS: dict[str, tuple[Contender, str | None]] = {  # and the distribution it needs
    DEFAULTS: (restored(), None),
    "halotile, overlap=0": (restored(overlap=0), None),
    "halotile.iter_bands": (in_bands, None),
    **{name: (of_peer(peer), peer.distribution) for name, peer in PEERS.items()},
}

# ---- one measurement, in a process of its own ------------------------------------------------------------------------


class Repeat(torch.nn.Module):
    """Enlarges by repeating pixels, and adds up its own seconds. Memory of outputs that nobody holds any more is
    used again, as accelerators' allocators do: mapping pages is not to be mistaken for work of the loops."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.given: list[tuple[np.ndarray, weakref.ref]] = []  # memory, and the output last made in it

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        batch, channels, height, width = windows.shape
        output = torch.from_numpy(self.new_output(batch, channels, height * SCALE, width * SCALE))
        torch.ops.aten.upsample_nearest2d.out(windows, output.shape[2:], out=output)
        self.seconds += time.perf_counter() - start
        return output

    def new_output(self, *shape: int) -> np.ndarray:
        """An array, since that lives exactly as long as any tensor sees its memory."""
        size = math.prod(shape)
        free = (memory for memory, held in self.given if held() is None and memory.size >= size)
        memory = next(free, None)
        memory = np.empty(size, np.float32) if memory is None else memory
        output = memory[:size].reshape(shape)
        self.given = [(m, held) for m, held in self.given if m is not memory] + [(memory, weakref.ref(output))]
        return output


def restore(contender: Contender, image: np.ndarray, model: Any) -> Iterator[tuple[int, np.ndarray]]:
    """As a generator, so that a contender does all its work inside of consume()."""
    yield from contender(image, model)


def consume(bands: Bands, image: np.ndarray) -> dict[str, float]:
    """Seconds, and those of all the process's threads together, until the last band is there. Exits if the bands do not
    make up the image, repeated."""
    seconds, cpu_seconds, rows_right = 0.0, 0.0, 0
    iterator, band = iter(bands), None
    while True:
        start, cpu_start = time.perf_counter(), time.process_time()
        band = next(iterator, None)
        seconds, cpu_seconds = seconds + time.perf_counter() - start, cpu_seconds + time.process_time() - cpu_start
        if band is None:
            break
        rows_right += count_right(*band, image) if band[0] == rows_right else 0
    if rows_right != image.shape[0] * SCALE:
        raise SystemExit(f"wrong result: only {rows_right} rows are the image's, repeated")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def count_right(first: int, rows: np.ndarray, image: np.ndarray) -> int:
    """Row by row, to need no memory."""
    pairs = ((row, np.repeat(image[(first + k) // SCALE], SCALE, axis=0)) for k, row in enumerate(rows))
    return sum(row.dtype == np.uint8 and np.array_equal(row, expected) for row, expected in pairs)


def measure(name: str) -> dict[str, float]:
    """Memory of a first run, seconds of a second: on a virtual machine the first touch of memory can cost more than all
    else, and most to those who take most."""
    contender, _ = CONTENDERS[name]
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    small = image[:64, :96]
    consume(restore(contender, small, Repeat()), small)
    before, _ = memory()
    model = Repeat()
    first = consume(restore(contender, image, model), image)
    _, peak = memory()
    model.seconds = 0.0
    second = consume(restore(contender, image, model), image)
    return {
        **second,
        "model_seconds": model.seconds,
        "rest_seconds": second["seconds"] - model.seconds,
        "first_seconds": first["seconds"],
        "above_baseline_bytes": peak - before,
        "baseline_bytes": before,
    }


# ---- all of them -----------------------------------------------------------------------------------------------------


def available(names: list[str]) -> list[str]:
    missing = {name for name in names if (needs := CONTENDERS[name][1]) and importlib.util.find_spec(needs) is None}
    for name in sorted(missing):
        print(f"skipped: {name}; python -m pip install --no-deps {CONTENDERS[name][1]}")
    return [name for name in names if name not in missing]


def run_all(names: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names:
            runs[name].append(fresh_process(__file__, "--measure", name))
            print(f"round {round_ + 1}: {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
    return runs


def headline(of: Figures) -> dict[str, float]:
    """Seconds of the best round, bytes of the median one."""
    return {key: value["median" if key.endswith("bytes") else "least"] for key, value in of.items()}


def report(figures: dict[str, Figures]) -> str:
    head = ["", "seconds", "median", "model", "rest", "all threads", "MiB", "less the output"]
    rows = []
    for name, of in figures.items():
        best = headline(of)
        seconds = [best["seconds"], of["seconds"]["median"], *(best[f"{k}_seconds"] for k in ("model", "rest", "cpu"))]
        mib = [best["above_baseline_bytes"] / MIB, (best["above_baseline_bytes"] - OUTPUT_BYTES) / MIB]
        rows.append([name, *(f"{s:.2f}" for s in seconds), *(f"{m:.0f}" for m in mib)])
    return table(head, rows)


def ratios(figures: dict[str, Figures]) -> dict[str, dict[str, float]]:
    """halotile's defaults over each peer."""
    if DEFAULTS not in figures:
        return {}
    best = {name: headline(of) for name, of in figures.items()}
    peers = [name for name in best if name in PEERS]
    return {name: {key: best[DEFAULTS][key] / best[name][key] for key in COMPARED} for name in peers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    runs = run_all(available(arguments.only), arguments.rounds)
    figures = {name: {key: summary([r[key] for r in of]) for key in of[0]} for name, of in runs.items()}
    compared = ratios(figures)
    print(f"\n{report(figures)}\n")
    print(f"MiB are above what the process had before. The output is {OUTPUT_BYTES / MIB:.0f} of them.")
    if compared:
        rows = [[name, *(f"{ratio:.2f}" for ratio in of.values())] for name, of in compared.items()]
        print("\n" + table([f"{DEFAULTS} over", *COMPARED], rows))
    save("assembly", {"figures": figures, "ratios": compared})


if __name__ == "__main__":
    main()
