# SPDX-License-Identifier: MIT
"""Run by test_no_memory.py with failing_malloc preloaded: allocations of a run into a file fail, each by itself."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import sys
from pathlib import Path

import numpy as np
from failing import failing

from halotile import restore_to

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
OLD = np.zeros((2, 3, 3), np.uint8)
OPTIONS = {"tile_size": 16, "halo": 2, "phase": 1, "scale": 1, "keep_heap": False, "engine": "host"}
POINTS = 150


def restore(path: Path) -> None:
    restore_to(path, IMAGE, lambda windows: windows, **OPTIONS)


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def revived() -> bool:
    """concurrent.futures may keep a lock where no memory is for giving it back. zarr's event loop then waits for it for
    ever, and so does whoever calls zarr: it gets another loop."""
    sync = sys.modules.get("zarr.core.sync")
    if sync is None:
        return False
    try:
        sync.sync(asyncio.sleep(0), timeout=10)
    except TimeoutError:
        sync.reset_resources_after_fork()
        return True
    return False


def allocations(path: Path) -> int:
    """About how many a run makes."""
    most = 1000
    while failing(lambda: restore(path), most, 1)[0]:
        most *= 2
    return most


def main() -> None:
    faulthandler.dump_traceback_later(280, exit=True)
    folder, suffix = Path(sys.argv[1]), sys.argv[2]
    whole, path = folder / f"whole{suffix}", folder / f"out{suffix}"
    restore(whole)
    want = {name.replace("whole", "out"): data for name, data in content(whole).items()}
    most, failures, drafts, stuck = allocations(path), 0, 0, 0
    gc.freeze()
    restore(path)
    for k in range(POINTS):
        before = content(path)
        failed, raised = failing(lambda: restore(path), k * most // POINTS, 1)
        failures += failed
        assert raised is None or isinstance(raised, Exception), (k, repr(raised))  # libraries have their own words
        assert content(path) == (want if raised is None else before), k
        del raised
        gc.collect()
        stuck += revived()
        drafts = sum(name.name.startswith(".halotile-") for name in folder.iterdir())
        restore(path)
        assert content(path) == want, k
    assert drafts < POINTS // 10  # one stays where there is no memory for removing it
    assert stuck < POINTS // 10
    print(f"{failures} of about {most} allocations, each failed")


if __name__ == "__main__":
    main()
