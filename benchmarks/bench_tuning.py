# SPDX-License-Identifier: MIT
"""What do tile sizes, memory format and the heap that is kept do for the time of a run on a CPU?

Two models with random weights: Real-ESRGAN's compact network x4 (64 features, 16 convolutions between the first and
the last) and a denoiser that works at half the size (96 channels, 12 convolutions). Contenders take turns in one
process, on as many threads as asked. Seconds are of processor time, which other work on the machine disturbs least; on
one thread they are what the clock would show on a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from time import process_time
from typing import Any

import numpy as np
import torch
from common import interleaved, machine, memory, save, summary, table
from torch import nn
from torch.nn import functional as F

from halotile import TiledRestorer, heap

TILE, PAD = 512, 32


class Compact(nn.Module):
    def __init__(self, width: int = 64, layers: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width))
        for _ in range(layers):
            self.body.extend([nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)])
        self.body.append(nn.Conv2d(width, 48, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4, mode="nearest")


class Denoiser(nn.Module):
    def __init__(self, width: int = 96, layers: int = 12):
        super().__init__()
        sides = [12] + [width] * (layers - 1) + [12]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sides))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, 2)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.pixel_shuffle(self.layers[-1](x), 2)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    scale: int
    aim: float  # of the loop's time


CASES = {
    "compact x4": Case(Compact, (720, 1280), 4, 0.40),
    "denoiser, stride 2": Case(Denoiser, (1080, 1920), 1, 0.55),
}


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


def window_cost(model: nn.Module, side: int, layout: torch.memory_format, keep: bool) -> float:
    """Seconds a pixel of the model alone."""
    window = torch.rand(1, 3, side, side).contiguous(memory_format=layout)
    with heap.kept(keep), torch.inference_mode():
        model(window)
        start = process_time()
        model(window)
        return (process_time() - start) / side**2


def measure(name: str, case: Case, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = case.make().eval()
    image = np.random.default_rng(0).integers(0, 256, (*case.size, 3), np.uint8)
    auto = {"tile_size": "auto", "halo": "exact", "phase": None}
    TiledRestorer(model, **auto).inspected()
    start = process_time()
    first = TiledRestorer(model, **auto)
    first(image)
    first_seconds, told = process_time() - start, str(first.last_run)
    runs: dict[str, TiledRestorer] = {
        "halotile, auto": TiledRestorer(model, **auto),
        "halotile, 512/32": TiledRestorer(model, tile_size=TILE, halo=PAD, phase=2 if case.scale == 1 else 1),
        "512/32, heap not kept": TiledRestorer(
            model, tile_size=TILE, halo=PAD, phase=2 if case.scale == 1 else 1, keep_heap=False
        ),
    }
    best: list[float] = []
    contenders: dict[str, Callable[[], Any]] = {"loop, 512/32": lambda: loop(image, model, case.scale)}
    contenders |= {key: lambda run=run: run(image) for key, run in runs.items()}
    contenders["ideal"] = lambda: best.extend(
        window_cost(model, side, torch.channels_last, True) for side in (256, 384, 512)
    )
    seconds = interleaved(contenders, rounds, clock=process_time)
    del seconds["ideal"]
    pixels = case.size[0] * case.size[1]
    ideal = min(best) * pixels
    figures = {key: summary(values) for key, values in seconds.items()}
    base = figures["loop, 512/32"]
    ratios = {
        key: [a / b for a, b in zip(values, seconds["loop, 512/32"], strict=True)] for key, values in seconds.items()
    }
    print(f"\n{name}, {case.size[1]}x{case.size[0]}: {told}\n")
    head = ["", "seconds", "least - most", "of the loop", "of the ideal"]
    rows = [
        [key, f"{of['median']:.2f}", f"{of['least']:.2f} - {of['most']:.2f}", f"{of['median'] / base['median']:.2f}",
         f"{of['median'] / ideal:.2f}"]
        for key, of in figures.items()
    ]  # fmt: skip
    rows.append(["halotile, auto, first run", f"{first_seconds:.2f}", "", f"{first_seconds / base['median']:.2f}",
                 f"{first_seconds / ideal:.2f}"])  # fmt: skip
    print(table(head, rows))
    return {
        "size": case.size,
        "aim": case.aim,
        "figures": figures,
        "ratios": {key: summary(values) for key, values in ratios.items()},
        "first_run_seconds": first_seconds,
        "ideal_seconds": ideal,
        "told": told,
        "apart": apart(model, image, runs["halotile, auto"]),
    }


def apart(model: nn.Module, image: np.ndarray, restorer: TiledRestorer) -> int:
    """Levels between the tiled result and the model on the whole image, mirrored at its edges by the halo."""
    halo = -(-restorer.last_run.halo[0] // 2) * 2
    padded = np.pad(image, ((halo, halo), (halo, halo), (0, 0)), mode="reflect")
    batch = torch.from_numpy(padded.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        output = model(batch)[0].clamp_(0, 1).mul_(255).round_().permute(1, 2, 0).numpy()
    got = restorer(image)
    at = halo * (got.shape[0] // image.shape[0])
    return int(np.abs(output[at : at + got.shape[0], at : at + got.shape[1]] - got).max())


def costs_by_window() -> dict[str, dict[str, float]]:
    """Microseconds a pixel of the compact network alone, in the first thread and in another, and MiB that the process
    grew by."""
    torch.manual_seed(0)
    model, found = Compact().eval(), {}
    settings = [(torch.contiguous_format, False), (torch.channels_last, False), (torch.contiguous_format, True)]

    def go(where: str) -> None:
        for layout, keep in [*settings, (torch.channels_last, True)]:
            key = f"{where}, {str(layout).removeprefix('torch.')}, heap {'kept' if keep else 'default'}"
            found[key] = {str(side): 1e6 * window_cost(model, side, layout, keep) for side in (128, 256, 384, 512)}
            print(key, {side: round(cost, 2) for side, cost in found[key].items()}, flush=True)

    go("first thread")
    thread = Thread(target=go, args=("another thread",))
    thread.start()
    thread.join()
    return found


def heights() -> dict[str, float]:
    """MiB that a process holds before, during and after the heap is kept, with windows of 512."""
    model, before = Compact().eval(), memory()[0]
    with heap.kept():
        window_cost(model, 512, torch.channels_last, True)
        inside = memory()[0]
    return {"before": before / 2**20, "inside": inside / 2**20, "after": memory()[0] / 2**20}


def half(model: nn.Module, dtype: torch.dtype) -> float:
    """Of the time in float32, windows of 256."""
    sides = (model, torch.float32), (model.to(dtype), dtype)
    costs = []
    for one, kind in sides:
        window = torch.rand(1, 3, 256, 256).to(kind).contiguous(memory_format=torch.channels_last)
        one.to(kind)
        with torch.inference_mode():
            one(window)
            start = process_time()
            one(window)
            costs.append(process_time() - start)
    return costs[1] / costs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"threads": arguments.threads, "clock": "processor time"}
    results["memory_MiB"] = heights()
    results["microseconds_a_pixel"] = costs_by_window()
    results["bfloat16_over_float32"] = {name: half(case.make().eval(), torch.bfloat16) for name, case in CASES.items()}
    print(results["memory_MiB"], results["bfloat16_over_float32"], machine()["torch"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HALOTILE_CACHE"] = folder
        results["cases"] = {name: measure(name, case, arguments.rounds) for name, case in CASES.items()}
    save("tuning", results)


if __name__ == "__main__":
    main()
