# SPDX-License-Identifier: MIT
"""One large scan over workers, beside one process and beside other people's ways. See docs/cluster.md.

    python benchmarks/bench_cluster.py                    20,000 x 20,000 pixels: hours
    python benchmarks/bench_cluster.py 2048               a side of its own
    python benchmarks/bench_cluster.py validate           the simulator beside runs of 1, 2 and 4 workers

Each way runs in a process of its own, with workers of one thread. Memory is the most that a worker ever had, less what
it had with torch and the model imported; for one process the same. Bytes read are those of all read calls of the
workers, as a multiple of the scan's files. The seam is the largest difference from one process, in grey levels.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import numpy as np

SIDE, HALO, TILE = 20_000, 8, 512
WAYS = ("one process", "1 worker", "2 workers", "dask map_overlap", "taper per block", "sum and count on disk")
WAIT = 0.1  # seconds of a window of the model that waits, for the simulator: two cores cannot compute for four workers


def scan(side: int, path: str) -> None:
    """A slide: mostly white, with round pieces of tissue."""
    import zarr

    rng = np.random.default_rng(7)
    array = zarr.create_array(path, shape=(side, side, 3), dtype="uint8", chunks=(256, 256, 3))
    spots = [(rng.uniform(0, side, 2), rng.uniform(0.03, 0.15) * side) for _ in range(6)]
    x = np.arange(side)
    for top in range(0, side, 256):
        y = np.arange(top, min(side, top + 256))[:, None]
        inside = np.any([(y - at[0]) ** 2 + (x - at[1]) ** 2 < size**2 for at, size in spots], 0)[..., None]
        tissue = rng.integers(60, 220, (len(y), side, 3))
        array[top : top + 256] = np.where(inside, tissue, 244).astype(np.uint8)


def model() -> Any:
    import torch

    torch.manual_seed(3)
    sides = [3, *[16] * 7, 3]
    layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sides)]
    for layer in layers:  # so that values stay between black and white
        torch.nn.init.dirac_(layer.weight)
        layer.weight.data += 0.02 * torch.randn_like(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(*layers).eval()


class Waiting:
    """A window takes a tenth of a second, as on a device elsewhere."""

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        time.sleep(WAIT)
        return windows


# ---- other people's ways ---------------------------------------------------------------------------------------------


def on_array(block: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        x = torch.from_numpy(block.astype(np.float32) / 255).permute(2, 0, 1)[None]
        made = _own_model()(x)[0].permute(1, 2, 0).numpy()
    return (made.clip(0, 1) * 255).round().astype(np.uint8)


def _own_model() -> Any:
    if "model" not in _KEPT:
        _KEPT["model"] = model()
    return _KEPT["model"]


_KEPT: dict[str, Any] = {}


def map_overlap(source: str, target: str, client: Any) -> None:
    import dask.array as da

    blocks = da.from_zarr(source).rechunk((TILE, TILE, 3))
    made = da.map_overlap(on_array, blocks, depth={0: HALO, 1: HALO, 2: 0}, boundary="none", dtype=np.uint8)
    made.rechunk((TILE, TILE, 3)).to_zarr(target, overwrite=True)


def tapered(source: str, target: str, client: Any) -> None:
    """As cellpose's distributed loop: blocks of a zarr array with an overlap, in each tiles of 256 that overlap by a
    tenth, whose sum is weighted by a taper; the whole block in float."""
    import zarr

    array = zarr.open_array(source, mode="r")
    zarr.create_array(target, shape=array.shape, dtype="uint8", chunks=(TILE, TILE, 3), overwrite=True)
    starts = [(y, x) for y in range(0, array.shape[0], TILE) for x in range(0, array.shape[1], TILE)]
    client.gather(client.map(_tapered_block, [source] * len(starts), [target] * len(starts), starts, pure=False))


def _tapered_block(source: str, target: str, start: tuple[int, int]) -> None:
    import zarr

    array, made = zarr.open_array(source, mode="r"), zarr.open_array(target, mode="r+")
    low = [max(0, at - 16) for at in start]
    block = array[low[0] : start[0] + TILE + 16, low[1] : start[1] + TILE + 16]
    sums, counts = np.zeros(block.shape), np.zeros((*block.shape[:2], 1))
    side = 256
    ys, xs = (sorted({*range(0, max(1, n - side), side * 9 // 10), max(0, n - side)}) for n in block.shape[:2])
    for y in ys:
        for x in xs:
            tile = block[y : y + side, x : x + side]
            ramps = [1 / (1 + np.exp((np.abs(np.arange(n) - (n - 1) / 2) - n / 2 + 10) / 5)) for n in tile.shape[:2]]
            weight = (ramps[0][:, None] * ramps[1])[..., None]
            sums[y : y + side, x : x + side] += weight * on_array(tile)
            counts[y : y + side, x : x + side] += weight
    own = (sums / counts).round().astype(np.uint8)[start[0] - low[0] :, start[1] - low[1] :][:TILE, :TILE]
    made[start[0] : start[0] + TILE, start[1] : start[1] + TILE] = own


def sum_and_count(source: str, target: str, client: Any) -> None:
    """As tiatoolbox's semantic segmentor: patches at a stride, a canvas of sums and one of counts on disk, divided at
    the end; workers make patches, the client merges them."""
    import zarr

    array = zarr.open_array(source, mode="r")
    height, width = array.shape[:2]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(target)) as folder:
        sums = np.memmap(f"{folder}/sums", np.float32, "w+", shape=array.shape)
        counts = np.memmap(f"{folder}/counts", np.float32, "w+", shape=(height, width, 1))
        step = TILE - 2 * HALO
        starts = [(y, x) for y in range(0, height, step) for x in range(0, width, step)]
        for at in range(0, len(starts), 16):
            those = starts[at : at + 16]
            for (y, x), patch in zip(those, client.gather(client.map(_patch, [source] * 16, those)), strict=False):
                sums[y : y + TILE, x : x + TILE] += patch
                counts[y : y + TILE, x : x + TILE] += 1
        made = zarr.create_array(target, shape=array.shape, dtype="uint8", chunks=(TILE, TILE, 3), overwrite=True)
        for y in range(0, height, TILE):
            made[y : y + TILE] = (sums[y : y + TILE] / counts[y : y + TILE]).round().astype(np.uint8)


def _patch(source: str, start: tuple[int, int]) -> np.ndarray:
    import zarr

    y, x = start
    return on_array(zarr.open_array(source, mode="r")[y : y + TILE, x : x + TILE])


# ---- in a process of its own -----------------------------------------------------------------------------------------


def _state() -> tuple[int, int]:
    """Most bytes so far, and bytes of all read calls."""
    import torch  # noqa: F401
    import zarr  # noqa: F401

    calls = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return common.memory()[1], int(calls["rchar"])


def measured(way: str, source: str, target: str, size: str) -> dict[str, Any]:
    from distributed import Client, LocalCluster

    from halotile import restore_to

    options: dict[str, Any] = {"tile_size": TILE, "halo": HALO, "phase": 1, "boundary": "native", "overlap": 0}
    workers = 1 if way in ("one process", "1 worker") else 2
    if way == "one process":
        before, began = _state(), time.perf_counter()
        restore_to(target, source, model(), **options)
        states, starts, seconds, told = [_state()], [before], time.perf_counter() - began, {}
    else:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            starts, began, told = list(client.run(_state).values()), time.perf_counter(), {}
            if way.endswith(("worker", "workers")):
                spread = restore_to(target, source, model(), cluster=client, **options).spread
                assert spread is not None
                told = {"recompute": spread.recompute, "seam_seen": spread.seam, "settling": spread.settling}
            else:
                others = dict(zip(WAYS[3:], (map_overlap, tapered, sum_and_count), strict=True))
                others[way](source, target, client)
            seconds = time.perf_counter() - began
            states = list(client.run(_state).values())
    memory = max(state[0] - start[0] for state, start in zip(states, starts, strict=True)) / common.MIB
    read = sum(state[1] - start[1] for state, start in zip(states, starts, strict=True)) / int(size)
    return {"seconds": round(seconds, 2), "worker_MiB": round(memory, 1), "read": round(read, 2), **told}


def validated(workers: str, source: str, target: str) -> dict[str, float]:
    from distributed import Client, LocalCluster

    from halotile import restore_to
    from halotile.run.report import RunInfo

    with (
        LocalCluster(n_workers=int(workers), threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.run(_state)
        options: dict[str, Any] = {"tile_size": 128, "halo": HALO, "phase": 1, "scale": 1, "overlap": 0}
        run: RunInfo = restore_to(target, source, "bench_cluster:Waiting()", cluster=client, **options)
    assert run.spread is not None
    shares = run.spread.workers
    return {
        "seconds": run.spread.seconds - run.spread.settling,
        "recompute": run.spread.recompute,
        "pixel": sum(one.seconds for one in shares) / sum(one.pixels for one in shares),
    }


# ---- all of it -------------------------------------------------------------------------------------------------------


def difference(one: str, other: str) -> int:
    import zarr

    a, b = zarr.open_array(one, mode="r"), zarr.open_array(other, mode="r")
    parts = range(0, a.shape[0], 256)
    return max(int(np.abs(a[y : y + 256].astype(int) - b[y : y + 256]).max()) for y in parts)


def compare(side: int) -> None:
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        source, first = f"{folder}/in.zarr", f"{folder}/one process.zarr"
        scan(side, source)
        size = sum(one.stat().st_size for one in Path(source).rglob("*") if one.is_file())
        for way in WAYS:
            target = f"{folder}/{way}.zarr"
            rows[way] = common.fresh_process(__file__, "measured", way, source, target, str(size))
            rows[way]["seam"] = difference(first, target)
            print(f"{way:<24}{rows[way]}", flush=True)
    result = {"machine": common.machine(), "side": side, "files_MiB": round(size / common.MIB, 1), "ways": rows}
    (common.RESULTS / "cluster.json").write_text(json.dumps(result, indent=1) + "\n")


def validate() -> None:
    from halotile import plan_tiles
    from halotile.cluster.blocks import Grid
    from halotile.cluster.simulate import Costs, simulate
    from halotile.cluster.work import TilesWork

    side, rows = (8192, 512), {}
    plan = plan_tiles(side, tile_size=128, halo=HALO, overlap=0)
    with tempfile.TemporaryDirectory() as folder:
        import zarr

        zarr.create_array(f"{folder}/in.zarr", shape=(*side, 3), dtype="uint8", chunks=(256, 256, 3))
        found = {
            n: common.fresh_process(__file__, "validated", n, f"{folder}/in.zarr", f"{folder}/{n}.zarr") for n in "124"
        }
    alone = found["1"]
    for count, one in found.items():
        told = simulate(Grid(*side), TilesWork(plan, 1), Costs(pixel=alone["pixel"]), int(count))
        rows[count] = {**one, "simulated": told.seconds, "simulated_recompute": told.recompute}
        print(count, rows[count], flush=True)
    path = common.RESULTS / "cluster_simulation.json"
    path.write_text(json.dumps({"machine": common.machine(), "wait": WAIT, "workers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measured", *rest]:
            print(json.dumps(measured(*rest)))
        case ["validated", *rest]:
            print(json.dumps(validated(*rest)))
        case ["validate"]:
            validate()
        case [side]:
            compare(int(side))
        case _:
            compare(SIDE)
