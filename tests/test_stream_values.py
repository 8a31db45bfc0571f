# SPDX-License-Identifier: MIT
"""Streams of images of every kind: values without data, white levels, files, statistics, sizes, wide images."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import OutOfMemoryError, TiledRestorer, TileSizeWarning, iter_bands, restore_tiled, restore_to  # noqa: E402
from halotile.auto.comparison import compared  # noqa: E402
from halotile.auto.knowledge import Knowledge  # noqa: E402
from halotile.images.image import open_image  # noqa: E402
from halotile.inspection.recorder import record  # noqa: E402
from halotile.run.stream.steps import rows_per_step, streamed  # noqa: E402

from .architectures import KNOWN, SRVGG, Gate, RRDBNet, UNet, chain, conv  # noqa: E402
from .networks import Chain, Half, seeded  # noqa: E402
from .streaming import Calls, difference  # noqa: E402
from .test_engines import pixels_of  # noqa: E402
from .test_stream import most_held  # noqa: E402
from .test_stream_memory import limited  # noqa: E402

STREAM, TILES = {"schedule": "stream"}, {"schedule": "tiles", "tile_size": 48}


def largest(got, want):
    """The largest difference, where there is data."""
    got, want = (np.asarray(one.float() if isinstance(one, torch.Tensor) else one) for one in (got, want))
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    return np.nanmax(np.abs(got.astype(float) - want.astype(float)))


def check(image, model, near, **options):
    """A stream, its bands, and its result in a file are what tiles give."""
    options = {"value_range": (-1, 1)} | options  # so that little is clamped
    want = restore_tiled(image, model, **options, **TILES)
    assert largest(restore_tiled(image, model, **options, **STREAM), want) <= near
    if image.ndim == 3:
        bands = list(iter_bands(image, model, **options, **STREAM))
        assert largest(np.concatenate([rows for _, rows in bands]), want) <= near
    return want


# ---- values ----------------------------------------------------------------------------------------------------------


def with_gaps(dtype, nodata, shape=(70, 61, 3)):
    image = pixels_of(dtype, shape)
    image[10:20, 5:30], image[-1], image[40, :, 1] = nodata, nodata, nodata
    return image


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "nodata", "options", "near"),
    [
        ("float32", np.nan, {}, 2e-5),
        ("uint16", 65535, {"white": 4095}, 1),
        ("uint8", 0, {"boundary": "native"}, 1),
        ("uint8", 0, {"alpha": "resize"}, 1),
        ("uint8", 0, {"alpha": "restore"}, 1),
    ],
)
def test_values_without_data(dtype, nodata, options, near, scale):
    image = with_gaps(dtype, nodata)
    if "alpha" in options:
        image = np.dstack([image, pixels_of(dtype, (70, 61, 1), 5)])
    model = seeded(lambda: Chain(2, scale=scale))
    want = check(image, model, near, halo=2, nodata=nodata, **options)
    missing = np.isnan(want) if np.isnan(nodata) else want == nodata
    assert missing[10 * scale : 20 * scale, 5 * scale : 30 * scale, :3].all()


def test_values_without_data_of_batches_and_fractions():
    images = np.stack([with_gaps("uint8", 0), with_gaps("uint8", 0)[::-1]])
    check(images, seeded(lambda: Chain(2, scale=2)), 1, halo=2, nodata=0)
    check(with_gaps("float32", np.nan, (70, 62, 3)), seeded(Half), 2e-5, halo=6, phase=2, nodata="nan")


@pytest.mark.parametrize(("rows", "columns", "good"), [(10, 10**9, 3), (10**9, 90, 0), (10, 90, 4)])
def test_values_without_data_where_memory_runs_out(monkeypatch, rows, columns, good):
    image, model = with_gaps("uint8", 0, (300, 211, 3)), seeded(lambda: Chain(3))
    want = restore_tiled(image, model, halo=3, nodata=0, **STREAM)
    limited(monkeypatch, rows, columns, good)
    with pytest.warns(TileSizeWarning):
        assert largest(restore_tiled(image, model, halo=3, nodata=0, **STREAM), want) == 0


def test_white_levels():
    counts = (pixels_of("float32", (70, 61, 3)) * 4000).astype(np.float32)
    model = seeded(lambda: Chain(2, scale=2))
    check(counts, model, 0.1, halo=2, white=4095)
    check(counts.astype(np.uint16), model, 1, halo=2, white="12bit")


def test_images_of_bfloat16():
    image, model = torch.from_numpy(pixels_of("float32", (3, 50, 41))).bfloat16(), seeded(lambda: Chain(2, scale=2))
    want = restore_tiled(image, model, halo=2, **TILES)
    got = restore_tiled(image, model, halo=2, **STREAM)
    assert got.dtype == want.dtype == torch.bfloat16
    assert largest(got, want) <= 1e-2


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".tif", ".png", ".zarr"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_files_in_and_out(tmp_path, ending, dtype):
    pytest.importorskip({".zarr": "zarr", ".png": "pyvips", ".tif": "tifffile"}.get(ending, "numpy"))
    same, image = seeded(lambda: nn.Conv2d(3, 3, 1)), pixels_of(dtype, (90, 37, 3))
    with torch.no_grad():
        same.weight.copy_(torch.eye(3)[:, :, None, None])
        same.bias.zero_()
    restore_to(tmp_path / f"source{ending}", image, same, halo=0, **STREAM)
    model, options = seeded(lambda: Chain(2, scale=2)), {"halo": 2, "boundary": "native", "value_range": (-1, 1)}
    restore_to(tmp_path / f"result{ending}", tmp_path / f"source{ending}", model, **options, **STREAM)
    restore_to(tmp_path / "read.npy", tmp_path / f"result{ending}", same, halo=0, **STREAM)
    want = restore_tiled(image, model, **options, **TILES)
    assert largest(np.load(tmp_path / "read.npy"), want) <= 1


# ---- statistics of the whole image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NAFNet", "valid, gated", "transposed attention", "gated U-Net", "U-Net of norms"])
@pytest.mark.parametrize("boundary", ["native", "reflect"])
def test_exact_statistics(name, boundary):
    """As tiles measure them over the whole image; sweeps are streams, too."""
    known, model = KNOWN[name], seeded(KNOWN[name].make)
    if known.trim:
        boundary = "reflect"
    image = pixels_of("float32", (96, 48, 3))
    image[:40] *= 0.3  # tiles of their own statistics would differ
    options = {"halo": "exact", "boundary": boundary, "global_stats": "exact"}
    restorer = TiledRestorer(model, **options, **STREAM)
    got = restorer(image)
    assert restorer.last_run.global_stats == "exact" and restorer.last_run.stream.streams == 1
    assert largest(got, restore_tiled(image, model, **options, **TILES)) <= 5e-5
    if boundary == "native":
        with torch.inference_mode():
            want = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        assert largest(got, want) <= 5e-5


# ---- what cannot be cut ----------------------------------------------------------------------------------------------


def attention_of_rows(x, layer):
    y = layer(x.permute(0, 2, 3, 1))
    return ((y @ y.mT).softmax(-1) @ x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_models_that_see_whole_rows_are_not_cut_into_columns(monkeypatch):
    """One stream is exact; streams beside each other, each with a part of the row, would not be."""
    model = seeded(lambda: Calls(attention_of_rows, nn.Linear(3, 4)))
    image, options = pixels_of("float32", (97, 61, 3)), {"halo": "exact", "boundary": "native"}
    restorer = TiledRestorer(model, **options, **STREAM)
    got = restorer(image)
    with torch.inference_mode():
        want = model(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert largest(got, want) <= 1e-5
    with pytest.raises(ValueError, match=r"not 'stream': a stream needs .*, and no halo of tiles is exact"):
        restore_tiled(image, model, memory_limit=want.nbytes + 30_000, **options, **STREAM)
    limited(monkeypatch, columns=40)
    with pytest.warns(TileSizeWarning), pytest.raises(OutOfMemoryError):
        restorer(image)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Chain(3, scale=2), lambda: UNet(2), lambda: RRDBNet(1, 8, 4)])
def test_heights_from_one_row_to_many_strips(make):
    model = seeded(make).double()
    for rows in (4, 8, 20, 36, 132, 520):
        image = torch.rand((1, 3, rows, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
        graph = record(model, (3, rows, 8), torch.float64)
        with torch.inference_mode():
            want = model(image)
            for step in (1, 5, 32):
                assert difference(streamed(graph, image, rows_per_step(graph, step)), want) <= 1e-12, (rows, step)


@pytest.mark.slow
def test_a_very_wide_image_of_the_deepest_network():
    """100,000 columns of RRDB-23, which hold about half a MiB each, go in tiles that fit in 4 GiB."""
    image = open_image(np.broadcast_to(np.ones((), np.uint8), (2000, 100_000, 3)), "HWC")
    options = {"halo": 349, "phase": 1, "scale": 4, "memory_limit": 4 << 30, **STREAM}
    with torch.inference_mode():
        found = compared(image, Knowledge.of(seeded(RRDBNet), options))
    assert found.stream is not None, found.no_stream
    assert found.stream.streams > 1 and found.stream.peak <= 4 << 30
    assert 0.2 < found.stream.held_per_column / 2**20 < 0.7


FLAT = """
import sys
import numpy as np
from halotile import TiledRestorer
from tests.architectures import SRVGG, RRDBNet, UNet
from tests.networks import seeded

make = {"SRVGG": lambda: SRVGG(layers=4, width=16), "RRDB": lambda: RRDBNet(1, 16, 8), "U-Net": lambda: UNet(3)}

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

restorer = TiledRestorer(seeded(make[sys.argv[1]]), halo="exact", boundary="native", schedule="stream", keep_heap=False)
for rows in (512, 512, 2048, 16384):
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (rows, 128, 3))
    for _ in restorer.iter_bands(image):
        pass
    print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["SRVGG", "RRDB", "U-Net"])
def test_memory_is_flat_up_to_16384_rows(name):
    done = subprocess.run([sys.executable, "-c", FLAT, name], capture_output=True, text=True, check=True)
    _, low, *higher = (int(line) for line in done.stdout.split())
    assert max(higher) <= low + (24 << 20), done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: SRVGG(4, 16), lambda: UNet(3), lambda: chain(conv(3, 8), Gate(8), conv(8, 3))]
)
def test_held_rows_are_as_many_for_any_height(make):
    found = set()
    for rows in (512, 2048, 16384):
        graph = record(seeded(make), (3, rows, 8), torch.float32)
        found.add(most_held(graph, torch.zeros((1, 3, rows, 8)), rows_per_step(graph, 16)))
    assert len(found) == 1
