# SPDX-License-Identifier: MIT
"""Models for workers, which import them from here, and what tests of a cluster share."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from .networks import Chain, seeded

TILES = {"tile_size": 100, "halo": 4}
STREAM = {"schedule": "stream", "halo": "exact", "boundary": "native"}


@contextmanager
def cluster_of(workers: int) -> Iterator[Any]:
    """A client of so many processes."""
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of the test's own, in which warnings say nothing."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def content(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The files of an array, by name; and nothing that was left beside it."""
    beside = [name for name in os.listdir(os.path.dirname(os.path.abspath(path))) if name.startswith(".halotile")]
    assert beside == []
    below = (one for one in sorted(Path(path).rglob("*")) if one.is_file())
    return {str(one.relative_to(path)): one.read_bytes() for one in below}


def written(image: np.ndarray, path: str = "in.zarr") -> str:
    import zarr

    array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, chunks=(128, 128, *image.shape[2:]))
    array[:] = image
    return os.path.abspath(path)


def network() -> nn.Module:
    return seeded(lambda: Chain(3, scale=2))


class Squeezed(nn.Module):
    """Takes means over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second(x * torch.sigmoid(4 * x.mean((2, 3), keepdim=True)))


class Slow(nn.Module):
    """Takes its time, and says which process ran it: a byte in a file of its name for every call."""

    def __init__(self, seconds: float = 0.05, folder: str = ""):
        super().__init__()
        self.inner, self.seconds, self.folder = network(), seconds, folder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.folder and not torch.compiler.is_compiling():
            with open(os.path.join(self.folder, str(os.getpid())), "ab") as file:
                file.write(b".")
        time.sleep(self.seconds)
        return self.inner(x)


class Hanging(nn.Module):
    """Hangs in the process whose number a file holds, from the time when it is written."""

    def __init__(self, path: str):
        super().__init__()
        self.inner, self.path = network(), path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        while os.path.exists(self.path) and Path(self.path).read_text() == str(os.getpid()):
            time.sleep(0.05)
        return self.inner(x)


class Failing(nn.Module):
    """Raises for windows that hold a white pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() and float(x.max()) == 1:
            raise RuntimeError("white is too much for me")
        return x * 1


def calls(folder: str) -> dict[int, int]:
    return {int(name): os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)}


def pids(client: Any) -> dict[str, int]:
    return client.run(os.getpid)


def fill_disk(root: str) -> None:
    """In a worker: its disk is full, from now on, for everything below a folder."""
    from halotile.files import disk

    before = disk.write

    def write(descriptor: int, data: bytes) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(root):
            raise OSError(28, os.strerror(28))
        before(descriptor, data)

    disk.write = write
