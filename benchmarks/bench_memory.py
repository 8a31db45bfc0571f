# SPDX-License-Identifier: MIT
"""How much memory does a large image take, from file to file? See README.md.

    python benchmarks/bench_memory.py            all of it, about fifteen minutes
    python benchmarks/bench_memory.py x1         one part: x1, x4, limit, overlap or reading

Every run is a process of its own. Its figure is the most memory that it ever had (the system's count, files that it
maps included) less what it had before the run, with torch, the model and the libraries for files imported.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

WIDTH = 4096
HEIGHTS = (2048, 4096, 8192, 16384)
PAIRS = (("memmap", "array"), ("npy", "npy"), ("tif", "tif"), ("png", "png"), ("zarr", "zarr"), ("jpg", "npy"))
LARGE = (4320, 7680)
LARGE_PAIRS = (("npy", "npy"), ("tif", "tif"), ("zarr", "zarr"), ("tif", "png"), ("tif", "jpg"))
LIMITED_PAIRS = (("npy", "npy"), ("tif", "tif"))
LIMIT = 600 * common.MIB
ROUNDS = 2


# ---- in a process of its own -----------------------------------------------------------------------------------------


def measured(source: str, sink: str, scale: str, overlaps: str, folder: str, waits: str = "0") -> dict[str, float]:
    """Runs a 3x3 convolution and nearest x scale: the cheapest model that is one. sink "array" is restore_tiled.

    waits: seconds that each window takes elsewhere, as on an accelerator."""
    import pyvips
    import torch
    import zarr  # noqa: F401

    from halotile import restore_tiled, restore_to
    from halotile.files.npy import NpySink
    from halotile.files.vips_rows import PictureSink
    from halotile.files.zarr import ZarrSink

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            time.sleep(float(waits))
            return torch.nn.functional.interpolate(self.conv(x), scale_factor=int(scale), mode="nearest")

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Model().eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 64, 64))
    pyvips.Image.black(1, 1)
    if overlaps != "as it is":
        for kind in (NpySink, ZarrSink, PictureSink):
            kind.overlaps = overlaps == "yes"
    image: Any = f"{folder}/in.{'npy' if source == 'memmap' else source}"
    image = np.load(image, mmap_mode="r") if source == "memmap" else image
    before, start = common.memory()[1], time.perf_counter()
    if sink == "array":
        restore_tiled(image, model, tile_size=512, halo=8)
    else:
        restore_to(f"{folder}/out.{sink}", image, model, tile_size=512, halo=8)
    seconds = time.perf_counter() - start
    return {"above_baseline_bytes": common.memory()[1] - before, "baseline_bytes": before, "seconds": seconds}


def limited(source: str, sink: str, folder: str) -> dict[str, Any]:
    """The same under memory_limit, tiles left open, by a network of 16 features and 5 convolutions, x4."""
    import pyvips
    import torch
    from models import Compact

    from halotile import TiledRestorer, restore_to

    torch.manual_seed(0)
    restorer = TiledRestorer(Compact(16, 4), tile_size="auto", halo="exact", phase=None, memory_limit=LIMIT)
    restorer.inspected()
    pyvips.Image.black(1, 1)
    before, start = common.memory()[0], time.perf_counter()
    restore_to(f"{folder}/out.{sink}", f"{folder}/in.{source}", restorer)
    seconds, told = time.perf_counter() - start, str(restorer.last_run)
    return {"above_baseline_bytes": common.memory()[1] - before, "seconds": seconds, "told": told}


def read(source: str, folder: str) -> dict[str, float]:
    """Seconds to read a file by the rows of its tiles, and no model."""
    from halotile.files.open import open_source
    from halotile.images.source import HeldRows

    held = HeldRows(open_source(f"{folder}/in.{source}", None, None))
    start = time.perf_counter()
    for y in range(0, held.height, 512):
        held.holding(max(0, y - 8), min(held.height, y + 520))
    return {"seconds": time.perf_counter() - start, "pixels": held.height * held.source.shape[1]}


def make(height: str, width: str, kind: str, folder: str) -> None:
    """An image that compresses as photos do, and not as flat colours or noise."""
    import pyvips
    import zarr

    y, x = np.mgrid[: int(height), : int(width)].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 4, y.shape).astype(np.float32)
    colours = (100 * np.sin(x / 300 + y / 900), 100 * np.cos(y / 211), 255 * x / int(width) - 127)
    pixels = np.stack([(127 + colour + grain).clip(0, 255).astype(np.uint8) for colour in colours], -1)
    if kind == "npy":
        np.save(f"{folder}/in.npy", pixels)
    elif kind == "zarr":
        array = zarr.create_array(store=f"{folder}/in.zarr", shape=pixels.shape, dtype="uint8", chunks=(512, 512, 3))
        array[...] = pixels
    else:
        tiles = {"tile": True, "tile_width": 256, "tile_height": 256, "compression": "deflate"}
        options = {"tif": tiles, "png": {"compression": 3}, "jpg": {"Q": 92}}[kind]
        pyvips.Image.new_from_array(pixels).write_to_file(f"{folder}/in.{kind}", **options)


# ---- the parts -------------------------------------------------------------------------------------------------------


def in_a_process(*arguments: str) -> Any:
    return common.fresh_process(__file__, "child", *arguments, OMP_NUM_THREADS="1")


def runs(size: tuple[int, int], pairs: Any, scale: int) -> dict[str, Any]:
    found = {}
    for source, sink in pairs:
        with tempfile.TemporaryDirectory() as folder:
            in_a_process("make", *map(str, size), "npy" if source == "memmap" else source, folder)
            found[f"{source} -> {sink}"] = in_a_process("measured", source, sink, str(scale), "as it is", folder)
        print(size, source, sink, found[f"{source} -> {sink}"], flush=True)
    return found


def x1() -> dict[str, Any]:
    return {f"{WIDTH}x{height}": runs((height, WIDTH), PAIRS, 1) for height in HEIGHTS}


def x4() -> dict[str, Any]:
    return {f"{LARGE[1]}x{LARGE[0]} x4": runs(LARGE, LARGE_PAIRS, 4)}


def limit() -> dict[str, Any]:
    found = {}
    for source, sink in LIMITED_PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            in_a_process("make", *map(str, LARGE), source, folder)
            found[f"{source} -> {sink}"] = common.fresh_process(__file__, "child", "limited", source, sink, folder)
        print(found, flush=True)
    return found


def overlap() -> dict[str, Any]:
    """Seconds with and without the second thread, in turns: of a model that computes here, and of one elsewhere."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("make", "4320", "1920", "npy", folder)
        for waits, sink in itertools.product(("0", "0.15"), ("npy", "zarr", "tif")):
            seconds: dict[str, list[float]] = {"yes": [], "no": []}
            for turn in range(2 * ROUNDS):
                which = "yes" if turn % 2 else "no"
                done = in_a_process("measured", "npy", sink, "4", which, folder, waits)
                seconds[which].append(done["seconds"])
            name = f"{sink}, {'computed elsewhere' if waits != '0' else 'computed here'}"
            found[name] = {which: statistics.median(each) for which, each in seconds.items()}
            print(name, found[name], flush=True)
    return found


def reading() -> dict[str, Any]:
    found = {}
    for source in ("npy", "zarr", "tif", "png", "jpg"):
        with tempfile.TemporaryDirectory() as folder:
            in_a_process("make", *map(str, LARGE), source, folder)
            found[source] = in_a_process("read", source, folder)
    return found


def report(found: dict[str, Any]) -> None:
    mib = "{:.0f}".format
    sizes = [size for size in found["x1"] if found["x1"][size]]
    names = list(found["x1"][sizes[0]])
    rows = [[name, *(mib(found["x1"][s][name]["above_baseline_bytes"] / common.MIB) for s in sizes)] for name in names]
    print("\n" + common.table(["MiB above the model and torch", *sizes], rows))
    for size, pairs in found["x4"].items():
        rows = [[name, mib(a["above_baseline_bytes"] / common.MIB), mib(a["seconds"])] for name, a in pairs.items()]
        print("\n" + common.table([size, "MiB", "seconds"], rows))
    rows = [
        [name, mib(a["above_baseline_bytes"] / common.MIB), mib(a["seconds"])] for name, a in found["limit"].items()
    ]
    print("\n" + common.table([f"memory_limit of {LIMIT // common.MIB} MiB", "MiB", "seconds"], rows))
    rows = [[name, f"{a['no']:.1f}", f"{a['yes']:.1f}"] for name, a in found["overlap"].items()]
    print("\n" + common.table(["1920x4320 x4, seconds", "in the loop", "on a second thread"], rows))
    rows = [[name, f"{a['seconds'] / a['pixels'] * 1e9:.0f}"] for name, a in found["reading"].items()]
    print("\n" + common.table(["reading", "ns a pixel"], rows))


def main() -> None:
    parts = {part.__name__: part for part in (x1, x4, limit, overlap, reading)}
    wanted = sys.argv[1:] or list(parts)
    path = common.RESULTS / "memory.json"
    found = json.loads(path.read_text()) if path.exists() and sys.argv[1:] else {}
    versions = {name: common.version_of(name) for name in ("pyvips", "pyvips-binary", "zarr")}
    for name in wanted:
        found[name] = parts[name]()
        common.save("memory", {"versions": versions, **{part: found[part] for part in parts if part in found}})
    if parts.keys() <= found.keys():
        report(found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        sys.path.insert(0, os.fspath(Path(__file__).parent))
        print(json.dumps(globals()[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
