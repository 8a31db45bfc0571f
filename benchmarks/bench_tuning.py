# SPDX-License-Identifier: MIT
"""How long does a run take on a CPU with tile_size="auto", beside Real-ESRGAN's loop with tiles of 512 and 32 pixels?

Every contender has a process of its own, since one that has kept the heap leaves large free blocks that others would
profit from; they take turns. Seconds are of processor time on one thread, which other work on the machine disturbs
least. "ideal" is the least cost of a pixel that the model was seen to have, times the image's pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import torch
from common import save, summary, table
from models import Compact, Denoiser, window_cost
from torch import nn

from halotile import TiledRestorer

TILE, PAD = 512, 32


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    scale: int
    phase: int
    aim: float  # of the loop's time


CASES = {
    "compact x4": Case(Compact, (720, 1280), 4, 1, 0.40),
    "denoiser, stride 2": Case(Denoiser, (1080, 1920), 1, 2, 0.55),
}
CONTENDERS = ("loop, 512/32", "halotile, auto", "halotile, 512/32", "the same, heap not kept")


def loop(image: np.ndarray, model: nn.Module, scale: int) -> np.ndarray:
    """Real-ESRGAN's loop as its authors wrote it, without printing: tiles of 512 with 32 pixels around them, into one
    float32 result; then NumPy clamps, scales, rounds and converts the whole."""
    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    height, width = image.shape[:2]
    result = pixels.new_zeros(1, 3, height * scale, width * scale)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            y1, x1 = min(y + TILE, height), min(x + TILE, width)
            top, left = max(y - PAD, 0), max(x - PAD, 0)
            window = pixels[:, :, top : min(y1 + PAD, height), left : min(x1 + PAD, width)]
            with torch.no_grad():
                output = model(window)
            rows = slice((y - top) * scale, (y1 - top) * scale)
            columns = slice((x - left) * scale, (x1 - left) * scale)
            result[:, :, y * scale : y1 * scale, x * scale : x1 * scale] = output[:, :, rows, columns]
    planes = result[0].clamp_(0, 1).numpy()
    return (planes.transpose(1, 2, 0) * 255.0).round().astype(np.uint8)


def contender(name: str, case: Case) -> Callable[[np.ndarray], np.ndarray]:
    torch.manual_seed(0)
    model = case.make().eval()
    if name == "loop, 512/32":
        return lambda image: loop(image, model, case.scale)
    if name == "halotile, auto":
        restorer = TiledRestorer(model, tile_size="auto", halo="exact", phase=None)
        restorer.inspected()
        return restorer
    keeps = "not kept" not in name
    return TiledRestorer(model, tile_size=TILE, halo=PAD, phase=case.phase, keep_heap=keeps)


def serve(name: str, which: str) -> None:
    """A contender in its process: for every line that it reads a run, and a line with its seconds."""
    torch.set_num_threads(1)
    case = CASES[which]
    image = np.random.default_rng(0).integers(0, 256, (*case.size, 3), np.uint8)
    run = contender(name, case)
    for line in sys.stdin:
        start = process_time()
        told = facts(run, image) if line == "facts\n" else run(image) is None
        print(json.dumps(told or {"seconds": process_time() - start}), flush=True)


def facts(restorer: TiledRestorer, image: np.ndarray) -> dict[str, Any]:
    """What a run says of itself, the least cost of a pixel, and levels between its result and the model on the whole
    image, mirrored at its edges by the halo."""
    model, halo = restorer.model, -(-restorer.last_run.halo[0] // 2) * 2
    got = restorer(image)
    costs = [window_cost(model, side, torch.channels_last, True) for side in (256, 384, 512)]
    padded = np.pad(image, ((halo, halo), (halo, halo), (0, 0)), mode="reflect")
    batch = torch.from_numpy(padded.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        whole = model(batch)[0].clamp_(0, 1).mul_(255).round_().permute(1, 2, 0).numpy()
    at = halo * (got.shape[0] // image.shape[0])
    apart = np.abs(whole[at : at + got.shape[0], at : at + got.shape[1]] - got).max()
    return {"told": str(restorer.last_run), "cost": min(costs), "levels_apart": int(apart)}


def ask(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure(which: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {name: subprocess.Popen([*command, name, which], **pipes) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    first = ask(processes["halotile, auto"], "run")["seconds"]
    for _ in range(rounds):
        for name, process in processes.items():
            seconds[name].append(ask(process, "run")["seconds"])
            print(f"{which}: {name}: {seconds[name][-1]:.2f}", flush=True)
    told = ask(processes["halotile, auto"], "facts")
    for process in processes.values():
        process.communicate()
    seconds["halotile, auto, first run"] = [first]
    ideal = told["cost"] * CASES[which].size[0] * CASES[which].size[1]
    figures = {name: summary(values) for name, values in seconds.items()}
    loops = figures["loop, 512/32"]["median"]
    rows = [
        [
            name,
            f"{of['median']:.2f}",
            f"{of['least']:.2f} - {of['most']:.2f}",
            f"{of['median'] / loops:.2f}",
            f"{of['median'] / ideal:.2f}",
        ]
        for name, of in figures.items()
    ]
    print(f"\n{told['told']}\n\n{table([which, 'seconds', 'least - most', 'of the loop', 'of the ideal'], rows)}")
    return {
        "size": CASES[which].size,
        "aim_of_the_loop": CASES[which].aim,
        "seconds": figures,
        "of_the_loop": {name: of["median"] / loops for name, of in figures.items()},
        "ideal_seconds": ideal,
        **told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HALOTILE_CACHE"] = folder
        cases = {which: measure(which, arguments.rounds) for which in CASES}
    save("tuning", {"threads": 1, "clock": "processor time", "cases": cases})


if __name__ == "__main__":
    main()
