# SPDX-License-Identifier: MIT
"""Rows that stream, beside whole-image inference, exact tiles and other loops. See README.md.

    python benchmarks/bench_stream.py                 all networks but RRDB-23, about half an hour
    python benchmarks/bench_stream.py srvgg unet      some of them: srvgg, unet, rrdb6, denoiser
    python benchmarks/bench_stream.py rrdb23          by measured rows, about five minutes

Every run is a process of its own; contenders take turns. What is known before a run (the halo, the recorded graph) is
not timed, and told apart. Memory is the most that a run ever had above the process with torch, model and image, less
the result.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common

ROUNDS = 3
CONTENDERS = (
    "whole image",
    "halotile, stream",
    "halotile, exact tiles of 512",
    "Real-ESRGAN loop",
    "MONAI sliding window",
)
DISTRIBUTIONS = {"Real-ESRGAN loop": "realesrgan", "MONAI sliding window": "monai"}
OTHERS_TILE, OTHERS_HALO = 512, 10  # Real-ESRGAN's own halo


@dataclass(frozen=True)
class Case:
    """A network, a size (height, width) and a scale, with the figures to reach: time over that of the whole image, and
    MiB beside image and result."""

    make: Callable[[], Any]
    size: tuple[int, int]
    scale: int
    time: float
    mib: float


def cases() -> dict[str, Case]:
    from models import RRDB, Compact, Denoiser, UNet

    return {
        "srvgg": Case(Compact, (720, 1280), 4, 0.97, 120),
        "unet": Case(UNet, (1024, 2048), 1, 1.05, 200),
        "rrdb6": Case(partial(RRDB, 6), (480, 640), 4, 1.08, 350),
        "denoiser": Case(Denoiser, (1080, 1920), 1, 1.0, math.inf),
    }


# ---- in a process of its own -----------------------------------------------------------------------------------------


def run(case_name: str, contender: str) -> dict[str, Any]:
    import numpy as np
    import torch

    case = cases()[case_name]
    torch.manual_seed(0)
    model = case.make().eval()
    image = np.random.default_rng(0).integers(0, 256, (*case.size, 3), dtype=np.uint8)
    if contender == "whole image":
        return _whole(model, image)
    if contender.startswith("halotile"):
        return _halotile(model, image, "stream" if "stream" in contender else "tiles")
    from loops import PEERS

    restore = PEERS[contender].restore
    restore(image[:64, :96], model, case.scale, OTHERS_TILE, OTHERS_HALO)
    return _measured(lambda: restore(image, model, case.scale, OTHERS_TILE, OTHERS_HALO))


def _whole(model: Any, image: Any) -> dict[str, Any]:
    """Float32 to float32, in channels_last, with the heap kept: the model alone."""
    import torch

    from halotile.run import kept_heap

    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), kept_heap.kept(True):
        model(x[:, :, :64, :96])
        return _measured(lambda: model(x).numpy())


def _halotile(model: Any, image: Any, schedule: str) -> dict[str, Any]:
    from halotile import TiledRestorer
    from halotile.auto.prepare import open_run, prepare
    from halotile.run.progress import Progress

    restorer = TiledRestorer(model, halo="exact", boundary="native", schedule=schedule, tile_size=512)
    restorer.inspected()
    start = time.perf_counter()
    if schedule == "stream":
        prepare(open_run(restorer.open(image), restorer.knowledge), restorer.knowledge, Progress(None))
    else:
        restorer(image[:64, :96])
    before = time.perf_counter() - start
    figures = _measured(lambda: restorer(image))
    return figures | {"prepared_seconds": before, "why": str(restorer.last_run)}


def _measured(restore: Callable[[], Any]) -> dict[str, Any]:
    before, start, busy = common.memory()[0], time.perf_counter(), time.process_time()
    result = restore()
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    return {"seconds": seconds, "cpu_seconds": cpu, "bytes": common.memory()[1] - before - result.nbytes}


def error(case_name: str, contender: str) -> dict[str, float]:
    """The largest difference from the whole image, in grey levels."""
    import numpy as np
    import torch

    case = cases()[case_name]
    torch.manual_seed(0)
    model = case.make().eval()
    image = np.random.default_rng(0).integers(0, 256, (*(min(320, side) for side in case.size), 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float().div_(255)
    with torch.inference_mode():
        exact = model(x)[0].permute(1, 2, 0).clamp_(0, 1).mul_(255).numpy()
    if contender.startswith("halotile"):
        from halotile import restore_tiled

        schedule = "stream" if "stream" in contender else "tiles"
        got = restore_tiled(image, model, halo="exact", boundary="native", schedule=schedule, tile_size=128)
    else:
        from loops import PEERS

        got = PEERS[contender].restore(image, model, case.scale, 128, OTHERS_HALO)
    return {"largest": max(0.0, float(np.abs(got.astype(np.float32) - exact).max()) - 0.5)}


# ---- RRDB-23, by measured rows ---------------------------------------------------------------------------------------

WIDE, RRDB23_ROUNDS = 1920, 1
STRIP, TALL = 64, 256  # rows of the image whole, and streamed
WINDOW = 512 + 2 * 349  # side of a tile's window


def ideal_rrdb23() -> dict[str, Any]:
    """Seconds a pixel of the model on a low image of full width, and on a window of an exact tile of 512."""
    import torch
    from models import RRDB

    from halotile.run import kept_heap

    torch.manual_seed(0)
    model, found = RRDB(23).eval(), {}
    for name, size in (("whole", (STRIP, WIDE)), ("window", (WINDOW // 4, WINDOW))):
        x = torch.rand(1, 3, *size).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), kept_heap.kept(True):
            model(x[:, :, :16, :64])
            figures = _measured(lambda x=x: model(x).numpy())
        found[f"{name}_seconds_per_pixel"] = figures["seconds"] / (size[0] * size[1])
    return found


def stream_rrdb23() -> dict[str, Any]:
    import numpy as np
    import torch
    from models import RRDB

    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (TALL, WIDE, 3), dtype=np.uint8)
    figures = _halotile(RRDB(23).eval(), image, "stream")
    return figures | {"seconds_per_pixel": figures["seconds"] / (TALL * WIDE)}


# ---- the parent ------------------------------------------------------------------------------------------------------


def child(*arguments: str) -> Any:
    return common.fresh_process(os.fspath(Path(__file__)), "child", *arguments)


def measure(case_name: str) -> dict[str, Any]:
    there = [name for name in CONTENDERS if name not in DISTRIBUTIONS or common.version_of(DISTRIBUTIONS[name])]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in there}
    for turn in range(ROUNDS):
        for name in list(runs):
            try:
                runs[name].append(child("run", case_name, name))
            except subprocess.CalledProcessError:  # windows that the network does not take
                if name not in DISTRIBUTIONS or turn:
                    raise
                print(f"  {case_name}, {name}: fails", flush=True)
                del runs[name]
                continue
            print(f"  {case_name}, {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
    found: dict[str, Any] = {}
    for name, one in runs.items():
        found[name] = {key: common.summary([each[key] for each in one]) for key in ("seconds", "cpu_seconds", "bytes")}
        found[name]["over_whole"] = common.summary(
            [each["seconds"] / whole["seconds"] for each, whole in zip(one, runs["whole image"], strict=True)]
        )
        found[name] |= {key: one[0][key] for key in ("why", "prepared_seconds") if key in one[0]}
        if name != "whole image":
            found[name] |= child("error", case_name, name)
    return found


def rrdb23() -> dict[str, Any]:
    rounds = [(child("ideal_rrdb23"), child("stream_rrdb23")) for _ in range(RRDB23_ROUNDS)]
    ideal = statistics.median(one["whole_seconds_per_pixel"] for one, _ in rounds)
    window = statistics.median(one["window_seconds_per_pixel"] for one, _ in rounds)
    stream = statistics.median(one["seconds_per_pixel"] for _, one in rounds)
    from halotile import plan_tiles

    plan = plan_tiles((2160, 3840, 3), tile_size=512, halo=349, overlap=0, boundary="native")
    tiles = plan.processed_pixels / plan.ideal_pixels * window
    return {
        "rows": TALL,
        "stream_over_ideal": stream / ideal,
        "stream_over_exact_tiles_at_4K": stream / tiles,
        "bytes": statistics.median(one["bytes"] for _, one in rounds),
        "rounds": rounds,
    }


def report(found: dict[str, Any]) -> None:
    wanted = cases()
    for case_name, one in found.items():
        if case_name == "rrdb23":
            ideal, tiles = one["stream_over_ideal"], one["stream_over_exact_tiles_at_4K"]
            print(f"\nRRDB-23, {WIDE} columns: {ideal:.2f} of its ideal, {tiles:.2f} of exact tiles at 4K")
            print(f"{one['bytes'] / common.MIB:.0f} MiB")
            continue
        case = wanted[case_name]
        print(
            f"\n{case_name}, {case.size[1]}x{case.size[0]}: at most {case.time} of whole in {case.mib} MiB are aimed at"
        )
        head = ("", "seconds", "of whole", "cpu s", "MiB", "error")
        rows = [
            (
                name,
                f"{figures['seconds']['median']:.2f}",
                f"{figures['over_whole']['median']:.2f}",
                f"{figures['cpu_seconds']['median']:.2f}",
                f"{figures['bytes']['median'] / common.MIB:.0f}",
                f"{figures.get('largest', 0.0):.3g}",
            )
            for name, figures in one.items()
        ]
        print(common.table(head, rows))


def main() -> None:
    parts = {**dict.fromkeys(cases(), measure), "rrdb23": lambda _: rrdb23()}
    wanted = sys.argv[1:] or [name for name in parts if name != "rrdb23"]
    path = common.RESULTS / "stream.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found.pop("machine", None)
    for name in wanted:
        found[name] = parts[name](name)
        common.save("stream", found)
    report(found)
    from drawings import streams

    streams({name: one for name, one in found.items() if name != "rrdb23"})


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        sys.path.insert(0, os.fspath(Path(__file__).parent))
        print(json.dumps(globals()[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
