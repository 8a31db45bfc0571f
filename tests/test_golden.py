# SPDX-License-Identifier: MIT
"""The rails on which the house is rebuilt: bytes of results and counts of model calls, as they were before.

Models here consist of operations that give the same bits on every processor (products, sums of two, maxima, copies), so
hashes do not depend on the machine. ``python -m tests.test_golden`` writes golden.json anew; what a mended fault
changes there, the commit names.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile import TiledRestorer, iter_bands, restore_tiled, restore_to  # noqa: E402

FILE = Path(__file__).with_name("golden.json")
ENGINES = ("host", "torch", "mps")
DTYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")
BLENDS = ("average", "linear", "cosine", "gaussian")


class Same(nn.Module):
    """Counts its calls. Sees one pixel around."""

    scale, trim = 1, 0

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.75), requires_grad=False)
        self.calls: list[tuple[int, ...]] = []
        self.fails_at: set[int] = set()

    def forward(self, x):
        if x.device.type != "meta":
            self.calls.append(tuple(x.shape))
            if len(self.calls) in self.fails_at:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return self.made(F.max_pool2d(x, 3, 1, 1) * self.gain)

    def made(self, y):
        return y


class Larger(Same):
    scale = 2

    def made(self, y):
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Smaller(Same):
    """Half the size, at phase 2."""

    scale = "1/2"

    def made(self, y):
        return y[:, :, ::2, ::2] * 1


class Lossy(Same):
    trim = 2

    def made(self, y):
        return y[:, :, 2:-2, 2:-2] * 1


MODELS = {one.__name__: one for one in (Same, Larger, Smaller, Lossy)}


def image_of(dtype: str, shape: tuple[int, ...] = (61, 47, 3)) -> Any:
    random = np.random.default_rng(len(shape) * 1000 + shape[0])
    if dtype.startswith("uint"):
        return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    values = random.random(shape, np.float32)
    if dtype == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))).bfloat16()
    return values.astype(dtype)


def cases() -> Iterator[tuple[str, Callable[[str], tuple[Any, Same]]]]:
    """(name, how to run it on an engine): the result, and the model that was called."""

    def plain(model: str, dtype: str, shape: Any = (61, 47, 3), **options: Any):
        def run(engine: str) -> tuple[Any, Same]:
            made = MODELS[model]().eval()
            given = {"tile_size": 16, "halo": 4, "phase": 2, "scale": made.scale, **options}
            if engine == "mps":
                from .fake_mps.attach import DEVICE

                made = made.to(DEVICE)
            return restore_tiled(image_of(dtype, shape), made, engine=engine, **given), made

        return run

    for dtype in DTYPES:
        yield f"dtype {dtype}", plain("Same", dtype)
    for model, boundary in itertools.product(MODELS, ("reflect", "native")):
        if not (model == "Lossy" and boundary == "native"):
            yield f"{model} {boundary}", plain(model, "uint8", boundary=boundary)
    for blend, overlap in itertools.product(BLENDS, (0, 5, 10)):
        yield f"blend {blend} {overlap}", plain("Larger", "uint8", blend=blend, overlap=overlap)
    for batch in (1, 3, 100):
        yield f"batch {batch}", plain("Same", "uint8", batch_size=batch)
    for shape in ((61, 47), (61, 47, 1), (61, 47, 2), (61, 47, 4), (2, 33, 47, 3), (1, 1, 3), (200, 5, 3)):
        yield f"shape {shape}", plain("Same", "uint8", shape)
    yield "range", plain("Same", "uint8", value_range=(-1.0, 1.0))
    yield "float out", plain("Same", "uint8", out_dtype="float32")
    for alpha in ("resize", "opaque", "channel"):
        yield f"alpha {alpha}", plain("Same", "uint8", (61, 47, 4), alpha=alpha)


def other_cases() -> Iterator[tuple[str, Callable[[], tuple[Any, Same]]]]:
    """Of the engine host alone."""
    image = image_of("uint8", (90, 47, 3))
    options: dict[str, Any] = {"tile_size": 16, "halo": 4, "phase": 2, "overlap": 4}

    def short_of_memory(fails_at: set[int], batch: int):
        def run() -> tuple[Any, Same]:
            model = Larger().eval()
            model.fails_at = fails_at
            return restore_tiled(image, model, scale=2, batch_size=batch, **options | {"tile_size": 40}), model

        return run

    def by_bands() -> tuple[Any, Same]:
        model = Larger().eval()
        return np.concatenate([rows for _, rows in iter_bands(image, model, scale=2, **options)]), model

    def to_file(suffix: str):
        def run() -> tuple[Any, Same]:
            model = Larger().eval()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"out{suffix}"
                restore_to(path, image, model, scale=2, **options)
                if suffix == ".npy":
                    return np.load(path), model
                if suffix == ".zarr":
                    zarr = pytest.importorskip("zarr")
                    return zarr.open_array(path, mode="r")[:], model
                files = pytest.importorskip("halotile.files.picture")
                return files.read_image(str(path)).pixels, model

        return run

    def learned() -> tuple[Any, Same]:
        model = Larger().eval()
        restorer = TiledRestorer(model, tile_size=16, halo="exact")
        return restorer(image), model

    yield "out of memory at batch 3", short_of_memory({4}, 3)
    yield "out of memory twice", short_of_memory({2, 3}, 2)
    yield "out of memory at first", short_of_memory({1}, 1)
    yield "bands", by_bands
    for suffix in (".npy", ".zarr", ".png", ".tif"):
        yield f"file {suffix}", to_file(suffix)
    yield "exact", learned


def told(result: Any, model: Same) -> dict[str, Any]:
    if isinstance(result, torch.Tensor):
        result = result.contiguous().view(torch.uint8 if result.element_size() == 1 else torch.int16).numpy()
    array = np.ascontiguousarray(result)
    return {
        "shape": list(array.shape),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "calls": len(model.calls),
        "windows": sorted({"x".join(map(str, shape)) for shape in model.calls}),
    }


def run_quietly(run: Callable[[], tuple[Any, Same]]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return told(*run())


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [name for name, _ in cases()])
def test_every_engine_gives_what_it_gave(golden, name, engine, request):
    if engine == "mps":
        request.getfixturevalue("fake_mps")
    run = dict(cases())[name]
    assert run_quietly(lambda: run(engine)) == golden[name]


@pytest.mark.parametrize("name", [name for name, _ in other_cases()])
def test_every_way_gives_what_it_gave(golden, name):
    assert run_quietly(dict(other_cases())[name]) == golden[name]


def test_nothing_is_left_over(golden):
    assert set(golden) == {name for name, _ in (*cases(), *other_cases())}


if __name__ == "__main__":
    found = {name: run_quietly(lambda run=run: run("host")) for name, run in cases()}
    found |= {name: run_quietly(run) for name, run in other_cases()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} cases\n")
