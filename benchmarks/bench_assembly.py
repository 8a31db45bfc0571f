# SPDX-License-Identifier: MIT
"""What does everything but the model cost? A 3840x2160 uint8 RGB image, enlarged four times by a model that only
repeats pixels, to uint8: seconds and peak memory of halotile and of other people's tile loops.

Every measurement is a process of its own: imports, the image, a run on a very small image, a first run on the image
that gives the memory, and a second one that gives the seconds. Contenders take turns. Every result is compared with the
exact one, pixel by pixel, off the clock.

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
from common import MIB, fresh_process, memory, save, summary, table

HEIGHT, WIDTH, SCALE, TILE, HALO = 2160, 3840, 4, 512, 32
OUTPUT_BYTES = HEIGHT * WIDTH * 3 * SCALE**2
COMPARED = ("seconds", "rest_seconds", "above_baseline_bytes")

Figures = dict[str, dict[str, float]]  # by what was measured: median, least, most
Bands = Iterable[tuple[int, np.ndarray]]  # (first row, rows) of the result, from the top
Contender = Callable[[np.ndarray, Any], Bands]

# ---- the contenders --------------------------------------------------------------------------------------------------


def restored(**options: Any) -> Contender:
    def run(image: np.ndarray, model: Any) -> Bands:
        import halotile

        return [(0, halotile.restore_tiled(image, model, tile_size=TILE, halo=HALO, **options))]

    return run


def in_bands(image: np.ndarray, model: Any) -> Bands:
    import halotile

    return halotile.iter_bands(image, model, tile_size=TILE, halo=HALO)


def of_peer(name: str) -> Contender:
    def run(image: np.ndarray, model: Any) -> Bands:
        from peers import PEERS

        return [(0, PEERS[name].restore(image, model, SCALE, TILE, HALO))]

    return run


DEFAULTS = "halotile"
CONTENDERS: dict[str, tuple[Contender, str | None]] = {  # and the distribution it needs
    DEFAULTS: (restored(), None),
    "halotile, overlap=0": (restored(overlap=0), None),
    "halotile.iter_bands": (in_bands, None),
    "Real-ESRGAN loop": (of_peer("Real-ESRGAN loop"), "realesrgan"),
    "sum-and-count loop": (of_peer("sum-and-count loop"), None),
    "MONAI sliding window": (of_peer("MONAI sliding window"), "monai"),
}

# ---- one measurement, in a process of its own ------------------------------------------------------------------------


def timed_model() -> Any:
    import torch

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

    return Repeat()


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
    consume(restore(contender, small, timed_model()), small)
    before, _ = memory()
    model = timed_model()
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


def report(figures: dict[str, Figures]) -> str:
    head = ["", "seconds", "least - most", "model", "rest", "all threads", "MiB", "less the output"]
    rows = []
    for name, of in figures.items():
        median = {key: value["median"] for key, value in of.items()}
        seconds = [median["model_seconds"], median["rest_seconds"], median["cpu_seconds"]]
        mib = [median["above_baseline_bytes"] / MIB, (median["above_baseline_bytes"] - OUTPUT_BYTES) / MIB]
        spread = f"{of['seconds']['least']:.2f} - {of['seconds']['most']:.2f}"
        cells = [f"{median['seconds']:.2f}", spread, *(f"{s:.2f}" for s in seconds), *(f"{m:.0f}" for m in mib)]
        rows.append([name, *cells])
    return table(head, rows)


def ratios(figures: dict[str, Figures]) -> dict[str, dict[str, float]]:
    """halotile's defaults over each peer, of medians."""
    if DEFAULTS not in figures:
        return {}
    ours = figures[DEFAULTS]
    return {
        name: {key: ours[key]["median"] / theirs[key]["median"] for key in COMPARED}
        for name, theirs in figures.items()
        if not name.startswith("halotile")
    }


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
