# SPDX-License-Identifier: MIT
"""What crosses to the device and back, and what runs there besides the model? A 3840x2160 uint8 RGB image through a 3x3
blur, and through one that also enlarges four times, as array in and array out: halotile and other people's tile loops.

The device is the tests' emulated Apple GPU, which counts. **It says nothing about time**, and nothing here does: its
operations run on the CPU. Counts do not depend on what the model costs.

Real-ESRGAN's loop is its own code from first to last. MONAI's takes and returns tensors: with everything on the device
the image goes up and the result comes down as bytes, converted there, which is the least that can be moved.

It needs the repository (the emulation is part of its tests), a C++20 compiler and pytest. It exits with 1 if halotile
moves, launches or waits for more than it should, or if its result is wrong.

    python benchmarks/bench_device.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from common import MIB, save, table, version_of
from loops import monai, real_esrgan
from torch.nn import functional

from halotile import plan_tiles, restore_tiled

HEIGHT, WIDTH, SCALES, TILE, HALO = 2160, 3840, (1, 4), 512, 32
DEVICE = "fakemps"
NO_TIMES = "The device is emulated and counts: these are no figures of speed."

Figures = dict[str, Any]  # of one contender at one scale

# ---- the contenders --------------------------------------------------------------------------------------------------

Restore = Callable[[np.ndarray, torch.nn.Module, int, int, int], np.ndarray]  # as in loops.py


def halotile(image: np.ndarray, model: torch.nn.Module, scale: int, tile: int, halo: int) -> np.ndarray:
    return restore_tiled(image, model, tile_size=tile, halo=halo)


@dataclass(frozen=True)
class Contender:
    """A loop, the distribution it needs, and whether the image goes on mirrored beyond its edge or ends there."""

    restore: Restore
    distribution: str | None = None
    mirrored: bool = False


DEFAULTS = "halotile"
CONTENDERS = {
    DEFAULTS: Contender(halotile, mirrored=True),
    "Real-ESRGAN loop": Contender(partial(real_esrgan, device=DEVICE), "realesrgan"),
    "MONAI": Contender(partial(monai, sw_device=DEVICE, device=DEVICE), "monai"),
    "MONAI, device=cpu": Contender(partial(monai, sw_device=DEVICE, device="cpu"), "monai"),
}

# ---- the model -------------------------------------------------------------------------------------------------------


class Blur(torch.nn.Module):
    """Blurs each channel, then repeats pixels. All channels alike: Real-ESRGAN's loop takes them in another order."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.blur = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False).requires_grad_(False)
        weights = torch.rand((1, 1, 3, 3), generator=torch.Generator().manual_seed(0))
        self.blur.weight.copy_((weights / weights.sum()).expand(3, 1, 3, 3))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        output = self.blur(windows)
        return output if self.scale == 1 else functional.interpolate(output, scale_factor=self.scale, mode="nearest")


class Noted(torch.nn.Module):
    """A model that notes the shapes it is called with on the device, and how many scalars had been read by then.

    halotile also asks it once, without memory, how large its activations get: nothing runs for that, nor is noted."""

    def __init__(self, model: torch.nn.Module, fake: ModuleType):
        super().__init__()
        self.model, self.fake = model, fake
        self.shapes: list[tuple[int, ...]] = []
        self.scalar_reads: list[int] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        if windows.device.type == DEVICE:
            self.shapes.append(tuple(windows.shape))
            self.scalar_reads.append(self.fake.counts()["scalar_reads"])
        return self.model(windows)


def whole_image(image: np.ndarray, mirrored: bool) -> np.ndarray:
    """The image blurred at once on the CPU, to bytes: any result is that, its pixels repeated."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    if mirrored:
        pixels = functional.pad(pixels, (HALO,) * 4, "reflect")
    blurred = Blur(1)(pixels)[0, :, HALO:-HALO, HALO:-HALO] if mirrored else Blur(1)(pixels)[0]
    return (blurred.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def largest_difference(result: np.ndarray, expected: np.ndarray, scale: int) -> int:
    """In grey levels. Row by row, to need no memory."""
    if result.dtype != np.uint8 or result.shape != (HEIGHT * scale, WIDTH * scale, 3):
        raise SystemExit(f"wrong result: {result.dtype} of shape {result.shape}")
    most = 0
    for y, row in enumerate(expected):
        got = result[y * scale : (y + 1) * scale].astype(np.int16)
        most = max(most, int(np.abs(got - np.repeat(row, scale, axis=0)).max()))
    return most


# ---- one measurement -------------------------------------------------------------------------------------------------


def attached() -> ModuleType:
    """The emulated device, with halotile's engine `mps` on it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.fake_mps.attach import attach
    from tests.fake_mps.build import NoCompiler

    try:
        return attach()
    except NoCompiler as missing:
        raise SystemExit(str(missing)) from missing


def measure(fake: ModuleType, contender: Contender, image: np.ndarray, scale: int) -> Figures:
    """What a run does, after one on a part of the image."""
    model = Blur(scale).to(DEVICE)
    contender.restore(image[: 2 * TILE, : 2 * TILE], model, scale, TILE, HALO)
    noted = Noted(model, fake)
    gc.collect()
    fake.take_violations()
    fake.reset_counts()
    held = fake.counts()["live_bytes"]
    result = contender.restore(image, noted, scale, TILE, HALO)
    gc.collect()
    counts, operators, launches = fake.counts(), Counter(fake.operators()), fake.launches()
    own_operators, own_copies = of_the_model(fake, model, Counter(noted.shapes))
    expected = whole_image(image, contender.mirrored)
    return {
        "image_bytes": image.nbytes,
        "output_bytes": result.nbytes,
        **{name: counts[name] for name in ("uploads", "upload_bytes", "downloads", "download_bytes")},
        "model_calls": len(noted.shapes),
        "window_shapes": sorted(set(noted.shapes)),
        "launches": launches,
        "operators": dict(operators - own_operators),
        "device_copies": counts["device_copies"] - own_copies,
        "synchronizes": counts["synchronizes"],
        "scalar_reads": counts["scalar_reads"],
        "scalar_reads_from_second_call_to_last": noted.scalar_reads[-1] - noted.scalar_reads[1],
        "peak_bytes": counts["peak_bytes"] - held,
        "kept_bytes": counts["live_bytes"] - held,
        "largest_tensor_bytes": counts["largest_allocation"],
        "largest_difference": largest_difference(result, expected, scale),
        "violations": fake.take_violations(),
    }


def of_the_model(fake: ModuleType, model: torch.nn.Module, shapes: Counter) -> tuple[Counter, int]:
    """The operators and copies of the model alone, called as often with windows of these shapes."""
    operators, copies = Counter(), 0
    for shape, calls in shapes.items():
        windows = torch.zeros(shape, device=DEVICE)
        fake.reset_counts()
        model(windows)
        operators.update({name: count * calls for name, count in fake.operators().items()})
        copies += fake.counts()["device_copies"] * calls
    return operators, copies


def of_first_use(fake: ModuleType, image: np.ndarray) -> dict[str, int]:
    """What halotile moves once in a process, to test its kernels: all until a first run is done, less a second run."""
    names, runs = ("uploads", "upload_bytes", "downloads", "download_bytes"), []
    for _ in range(2):
        restore_tiled(image[:TILE, :TILE], Blur(1).to(DEVICE))
        runs.append(fake.counts())
        fake.reset_counts()
    return {name: runs[0][name] - runs[1][name] for name in names}


# ---- what halotile has to keep to ------------------------------------------------------------------------------------


def excesses(of: Figures, scale: int) -> Iterator[str]:
    plan = plan_tiles((HEIGHT, WIDTH, 3), scale=scale, tile_size=TILE, halo=HALO)
    launches, most = sum(of["launches"].values()), 2 * len(plan) + plan.grid[0]
    must_be = {
        "upload_bytes": of["image_bytes"],
        "download_bytes": of["output_bytes"],
        "model_calls": len(plan),
        "synchronizes": 0,
        "scalar_reads_from_second_call_to_last": 0,
        "kept_bytes": 0,
        "violations": [],
    }
    yield from (f"{name} is {of[name]}, not {value}" for name, value in must_be.items() if of[name] != value)
    if len(of["window_shapes"]) != 1:
        yield f"the model got windows of {len(of['window_shapes'])} shapes, not 1"
    if per_call(of) > 2:
        yield f"{per_call(of):.2f} launches for each batch, not 2"
    if not 0 < launches <= most:
        yield f"{launches} launches, not {most}: 2 for each batch and 1 for each band"
    if of["largest_difference"] > 1:
        yield f"a difference of {of['largest_difference']} grey levels from whole-image inference"


def per_call(of: Figures) -> float:
    """Launches that read and accumulate, for each batch."""
    return sum(n for name, n in of["launches"].items() if not name.startswith("finish_")) / of["model_calls"]


# ---- reporting -------------------------------------------------------------------------------------------------------


def launched(of: Figures) -> str:
    finishing = sum(n for name, n in of["launches"].items() if name.startswith("finish_"))
    return f"{per_call(of):g}, and {finishing}" if of["launches"] else "none"


LINES: dict[str, Callable[[Figures], str]] = {
    "bytes up / image": lambda of: f"{of['upload_bytes'] / of['image_bytes']:.2f}",
    "bytes down / output": lambda of: f"{of['download_bytes'] / of['output_bytes']:.2f}",
    "uploads": lambda of: f"{of['uploads']}",
    "downloads": lambda of: f"{of['downloads']}",
    "scalars read": lambda of: f"{of['scalar_reads']}",
    "synchronisations": lambda of: f"{of['synchronizes']}",
    "calls of the model": lambda of: f"{of['model_calls']}",
    "shapes of windows": lambda of: f"{len(of['window_shapes'])}",
    "own kernels: a call, and in all to finish": launched,
    "operations besides the model's": lambda of: f"{sum(of['operators'].values())}",
    "copies within the device": lambda of: f"{of['device_copies']}",
    "device memory, MiB": lambda of: f"{of['peak_bytes'] / MIB:.0f}",
    "device memory / output": lambda of: f"{of['peak_bytes'] / of['output_bytes']:.2f}",
    "largest tensor, MiB": lambda of: f"{of['largest_tensor_bytes'] / MIB:.0f}",
    "grey levels from whole-image inference": lambda of: f"{of['largest_difference']}",
}


def report(scale: int, figures: dict[str, Figures]) -> str:
    rows = [[label, *(show(of) for of in figures.values())] for label, show in LINES.items()]
    return table([f"x{scale}", *figures], rows)


def scalars_read(scales: dict[str, dict[str, Figures]]) -> str:
    ours = [figures[DEFAULTS] for figures in scales.values() if DEFAULTS in figures]
    if not ours:
        return ""
    reads, inside = (max(of[name] for of in ours) for name in ("scalar_reads", "scalar_reads_from_second_call_to_last"))
    return f"halotile reads {reads}, {inside or 'none'} of them between the model's second call and its last."


def available(names: list[str]) -> list[str]:
    missing = [n for n in names if (needs := CONTENDERS[n].distribution) and importlib.util.find_spec(needs) is None]
    for name in missing:
        print(f"skipped: {name}; python -m pip install --no-deps {CONTENDERS[name].distribution}")
    return [name for name in names if name not in missing]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    names = available(parser.parse_args().only)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    fake = attached()
    first_use = of_first_use(fake, image)
    scales: dict[str, dict[str, Figures]] = {}
    wrong: list[str] = []
    for scale in SCALES:
        figures = scales[f"x{scale}"] = {name: measure(fake, CONTENDERS[name], image, scale) for name in names}
        print(f"\n{report(scale, figures)}", flush=True)
        wrong += [f"x{scale}: {text}" for text in excesses(figures[DEFAULTS], scale)] if DEFAULTS in figures else []
    moved = "{uploads} uploads of {upload_bytes} bytes, {downloads} downloads of {download_bytes}".format(**first_use)
    print(f"\n{NO_TIMES}\nOnce in a process halotile tests its kernels, which is not in the tables: {moved}.")
    print(f"Downloads wait for the device, and so does reading a scalar. {scalars_read(scales)}")
    if wrong:
        raise SystemExit("\n".join(["halotile does more than it should:", *wrong]))
    peers = {name: version_of(name) for name in ("realesrgan", "monai")}
    save("device", {"note": NO_TIMES, "peers": peers, "first_use": first_use, "figures": scales})


if __name__ == "__main__":
    main()
