# SPDX-License-Identifier: MIT
"""Models that fail at a window, places for results, and what must be true after any failure."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from halotile import (
    ModelOutputError,
    NonFiniteError,
    TiledRestorer,
    TileError,
    TileSizeWarning,
    plan_tiles,
    restore_to,
)

__all__ = [
    "FAULTS",
    "IMAGE",
    "PLACES",
    "PLAN",
    "Place",
    "Run",
    "assert_no_more",
    "failing_operator",
    "open_files",
    "sampled",
]

IMAGE = np.random.default_rng(7).integers(0, 256, (150, 50, 3), np.uint8)
TILES = {"tile_size": 40, "halo": 2, "overlap": 4, "phase": 1, "scale": 1, "memory_format": "contiguous"}
STREAM = {"schedule": "stream", "halo": 2, "phase": 1, "boundary": "native", "memory_format": "contiguous"}
PLAN = plan_tiles(IMAGE.shape, tile_size=40, halo=2, overlap=4, phase=1, scale=1)
ENGINES = ("host", "torch", "mps")


class State:
    """Attributes:
    calls: how often a model ran. at: the call that fails, from 0; None: none does. fault: what it does then.
    """

    def __init__(self) -> None:
        self.calls, self.at, self.fault = 0, None, None

    def __deepcopy__(self, memo: Any) -> State:
        return self  # copies of a model on other devices fail as it does


class Blur(nn.Module):
    """A convolution, and a fault at one of its calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv2d(3, 3, 5, padding=2)
        with torch.no_grad():
            self.layer.weight.mul_(0.4)
            self.layer.bias.fill_(0.5)  # nothing is clamped
        self.state = State()

    def forward(self, x):
        state = self.state
        state.calls += 1
        if state.at is not None and state.calls == state.at + 1:
            return state.fault(self, x)
        return self.layer(x)


# ---- what may go wrong in a model ------------------------------------------------------------------------------------


def _raises(error: Callable[[], BaseException]) -> Callable[[Any, Any], Any]:
    def fault(model, x):
        raise error()

    return fault


def _changes_its_input(model, x):
    result = model.layer(x)
    x.zero_()
    return result


def _gradient(model, x):
    with torch.inference_mode(False), torch.enable_grad():
        return nn.functional.conv2d(x.clone(), model.layer.weight, model.layer.bias, padding=2)


@dataclass(frozen=True)
class Fault:
    """Attributes:
    raises: what the caller gets; None: the run succeeds all the same.
    warns: what is said meanwhile.
    """

    make: Callable[[Any, Any], Any]
    raises: type[BaseException] | None = None
    warns: type[Warning] | None = None
    same: bool = True  # whether the result is that of a model without a fault


FAULTS = {
    "raises": Fault(_raises(lambda: RuntimeError("boom")), TileError),
    "raises without text": Fault(_raises(lambda: AssertionError()), TileError),
    "StopIteration": Fault(_raises(lambda: StopIteration()), TileError),
    "shape": Fault(lambda model, x: model.layer(x)[:, :, :-1], ModelOutputError),
    "channels": Fault(lambda model, x: model.layer(x)[:, :2], ModelOutputError),
    "no tensor": Fault(lambda model, x: [model.layer(x)] * 2, ModelOutputError),
    "dtype": Fault(lambda model, x: model.layer(x).int(), ModelOutputError),
    "device": Fault(lambda model, x: model.layer(x).to("meta"), TileError),
    "NaN": Fault(lambda model, x: model.layer(x) * torch.nan, NonFiniteError),
    "view": Fault(lambda model, x: x.mul_(0).add_(model.layer(x))[:, :, :], None, None, False),
    "changes its input": Fault(_changes_its_input),
    "gradient": Fault(_gradient),
    "MemoryError": Fault(_raises(lambda: MemoryError("full")), None, TileSizeWarning),
    "KeyboardInterrupt": Fault(_raises(KeyboardInterrupt), KeyboardInterrupt),
    "SystemExit": Fault(_raises(lambda: SystemExit(3)), SystemExit),
}


class failing_operator(TorchDispatchMode):
    """Makes one convolution on real memory fail: what streams run are operators, not the module's own code."""

    def __init__(self, at: int | None, fault: str = ""):
        super().__init__()
        self.at, self.fault, self.calls = at, fault, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        ours = func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.conv2d)
        if not ours or type(args[0]) is not torch.Tensor or args[0].shape[3] != IMAGE.shape[1]:
            return result  # or of the small image on which a stream is tried
        self.calls += 1
        if self.at is None or self.calls != self.at + 1:
            return result
        if self.fault == "NaN":
            return torch.full_like(result, torch.nan)
        raise {"raises": RuntimeError("boom"), "MemoryError": MemoryError("full")}.get(self.fault) or KeyboardInterrupt


# ---- where results go ------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A destination. `run` makes the result there, `read` returns it."""

    name: str
    path: str
    out: Any = None

    def run(self, restorer: TiledRestorer, image: Any = IMAGE, **options: Any) -> Any:
        if self.name == "array":
            self.out = None
            self.out = restorer(image)
            return self.out
        if self.name == "memmap":
            self.out = np.memmap(self.path, np.uint8, "w+", shape=image.shape)
            restorer(image, out=self.out)
            return np.asarray(self.out)
        restore_to(self.path, image, restorer, **options)
        return self.read()

    def read(self) -> np.ndarray:
        from halotile.files.open import open_source

        source, rows = open_source(self.path, None, None), np.empty(IMAGE.shape, np.uint8)
        source.read(0, rows)
        return rows

    @property
    def is_file(self) -> bool:
        return self.name not in ("array", "memmap")


PLACES = ("array", "memmap", "npy", "zarr", "tif", "png")


@dataclass
class Run:
    """A restorer whose model may fail, on an engine, and a place."""

    engine: str
    place: Place
    schedule: str = "tiles"
    restorer: TiledRestorer = field(init=False)

    def __post_init__(self) -> None:
        options = dict(TILES if self.schedule == "tiles" else STREAM)
        if self.engine == "mps":
            from .fake_mps.attach import DEVICE

            options["device"] = DEVICE
        self.model = Blur().eval()
        self.restorer = TiledRestorer(self.model, engine=self.engine, **options)

    def fails(self, fault: Fault, at: int) -> BaseException | None:
        """Runs with a fault at a window, and returns what it raised."""
        state = self.model.state
        state.calls, state.at, state.fault = 0, at, fault.make
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self.place.run(self.restorer)
        except BaseException as error:
            if isinstance(error, (pytest.fail.Exception, AssertionError)):
                raise
            return error
        finally:
            state.at = None
            kinds = {one.category for one in said if issubclass(one.category, (RuntimeWarning, UserWarning))}
        assert kinds == ({fault.warns} if fault.warns else set())
        return None


def open_files() -> dict[str, int]:
    """Open descriptors, and threads that Python has started; libvips has its own."""
    gc.collect()
    threads = [one for one in threading.enumerate() if not isinstance(one, threading._DummyThread)]
    return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": len(threads)}


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """No file, descriptor or thread is left; the files that were there are as they were."""
    before, files = open_files(), contents(folder)
    yield
    assert contents(folder) == files
    assert_no_more(before)


def assert_no_more(before: dict[str, int]) -> None:
    """There may be fewer: libraries close what they have kept of earlier files."""
    now = open_files()
    assert all(now[name] <= count for name, count in before.items()), (now, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def sampled(cases: list[Any], every: int) -> list[Any]:
    """All cases; one in so many is in the short form, the others are slow."""
    return [case if i % every == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]
