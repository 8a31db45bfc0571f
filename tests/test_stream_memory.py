# SPDX-License-Identifier: MIT
"""Streams in little memory, and on the emulated Apple GPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import (  # noqa: E402
    OutOfMemoryError,
    TiledRestorer,
    TileSizeWarning,
    iter_bands,
    restore_tiled,
    restore_to,
)
from halotile.run.stream import schedule  # noqa: E402
from halotile.run.stream.steps import Stepper  # noqa: E402

from .architectures import KNOWN, SRVGG, RRDBNet, UNet, chain, conv  # noqa: E402
from .networks import Chain, seeded  # noqa: E402
from .sampled import late  # noqa: E402
from .test_device import in_two_threads  # noqa: E402
from .test_engines import pixels_of  # noqa: E402
from .test_memory import MPS_TEXT  # noqa: E402

IMAGE = pixels_of("uint8", (300, 211, 3))
STREAM = {"schedule": "stream"}
OPTIONS = {"halo": 4, "phase": 1, "overlap": 0, **STREAM}


def limited(monkeypatch, rows=10**9, columns=10**9, good=0):
    """Makes steps of more rows or columns run out of memory, after some good ones. Returns what steps began with."""
    own, steps = Stepper._make, []

    def make(self, node, start, stop):
        if node is self.image:
            steps.append(self.begin)
            if len(steps) > good and (stop - start > rows or node.shape[3] > columns):
                raise RuntimeError(MPS_TEXT)
        own(self, node, start, stop)

    monkeypatch.setattr(Stepper, "_make", make)
    return steps


def largest(got, want):
    assert got.shape == want.shape
    return np.abs(got.astype(float) - want.astype(float)).max()


# ---- where memory runs out -------------------------------------------------------------------------------------------


def test_steps_have_fewer_rows_until_they_fit(monkeypatch):
    model = seeded(lambda: Chain(3))
    want = restore_tiled(IMAGE, model, **OPTIONS)
    limited(monkeypatch, rows=10)
    restorer = TiledRestorer(model, **OPTIONS)
    with pytest.warns(TileSizeWarning, match="steps of .* rows, .* columns: going on with") as warned:
        assert largest(restorer(IMAGE), want) == 0
    assert len(warned) == 3
    assert restorer.last_run.stream.rows <= 10 and restorer.last_run.stream.streams == 1
    restorer(IMAGE)  # remembers what fits
    assert restorer.last_run.stream.rows <= 10


@pytest.mark.parametrize("boundary", ["native", "reflect"])
@pytest.mark.parametrize("name", ["x4", "dense", "U-Net 2, pooled"])
def test_then_columns_are_halved(monkeypatch, name, boundary):
    model = seeded(KNOWN[name].make)
    options = {"halo": "exact", "boundary": boundary, "out_dtype": "float32", **STREAM}
    want = restore_tiled(IMAGE, model, **options)
    steps = limited(monkeypatch, columns=90)
    with pytest.warns(TileSizeWarning, match="columns: going on with"):
        got = restore_tiled(IMAGE, model, **options)
    assert largest(got, want) <= 2e-5
    assert steps


@pytest.mark.parametrize("good", [1, 3, 4])
def test_finished_rows_are_kept(monkeypatch, good):
    restorer = TiledRestorer(seeded(lambda: Chain(3, scale=2)), **OPTIONS)
    want = restorer(IMAGE)
    steps = limited(monkeypatch, rows=30, good=good)
    with pytest.warns(TileSizeWarning):
        bands = list(restorer.iter_bands(IMAGE))
    assert [y for y, _ in bands] == np.cumsum([0, *(len(rows) for _, rows in bands[:-1])]).tolist()
    assert largest(np.concatenate([rows for _, rows in bands]), want) == 0
    assert len(set(steps)) == (2 if good > 1 else 1)  # the second stream goes on behind what was finished
    assert steps == sorted(steps)


def test_finished_rows_of_out_are_not_touched(monkeypatch):
    restorer, out = TiledRestorer(seeded(lambda: Chain(3)), **OPTIONS), np.zeros_like(IMAGE)
    want = restorer(IMAGE)
    limited(monkeypatch, rows=0, good=3)
    with pytest.warns(TileSizeWarning), pytest.raises(OutOfMemoryError, match="MPS allocated") as caught:
        restorer(IMAGE, out=out)
    assert isinstance(caught.value, MemoryError) and caught.value.out is out
    done = int((out != 0).any((1, 2)).sum())
    assert 50 < done < 250
    np.testing.assert_array_equal(out[:done], want[:done])


def test_progress_goes_on_to_its_end(monkeypatch):
    seen = []
    limited(monkeypatch, rows=20, columns=120, good=3)
    with pytest.warns(TileSizeWarning):
        restore_tiled(IMAGE, seeded(lambda: Chain(3)), progress=lambda *now: seen.append(now), **OPTIONS)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_other_errors_are_none_of_memory(monkeypatch):
    def make(self, node, start, stop):
        raise RuntimeError("something else")

    model = seeded(lambda: Chain(3))
    restorer = TiledRestorer(model, **OPTIONS)
    restorer(IMAGE)
    monkeypatch.setattr(Stepper, "_make", make)
    with pytest.raises(RuntimeError, match="something else"):
        restorer(IMAGE)


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "x4", "U-Net 2, pooled", "batch norm"])
@pytest.mark.parametrize("boundary", ["native", "reflect"])
def test_a_limit_cuts_the_image_into_several_streams(tmp_path, name, boundary):
    model = seeded(KNOWN[name].make)
    image = pixels_of("uint8", (260, 400, 3))
    options = {"halo": "exact", "boundary": boundary, **STREAM}
    one = TiledRestorer(model, **options)
    want = one(image)
    assert one.last_run.stream.streams == 1
    limit = want.nbytes + one.last_run.stream.held // 2 + 120_000
    several = TiledRestorer(model, memory_limit=limit, **options)
    assert largest(several(image), want) <= 1
    found = several.last_run.stream
    assert found.streams > 1 and found.columns < one.last_run.stream.columns and found.recompute > 1
    assert found.peak <= limit
    restore_to(tmp_path / "result.npy", image, model, memory_limit=limit, **options)
    assert largest(np.load(tmp_path / "result.npy"), want) <= 1
    bands = list(iter_bands(image, model, memory_limit=limit, **options))
    assert largest(np.concatenate([rows for _, rows in bands]), want) <= 1


def test_streams_beside_each_other_have_no_statistics_of_the_whole_image(monkeypatch):
    """Each would have its own; tiles measure them together."""
    model = seeded(lambda: chain(conv(3, 32), torch.nn.InstanceNorm2d(32), conv(32, 3)))
    image = pixels_of("float32", (120, 300, 3))
    image[:, :150] *= 0.1
    options = {"halo": "exact", "boundary": "native"}
    one = TiledRestorer(model, **options, **STREAM)
    want = one(image)
    with pytest.raises(ValueError, match=r"not 'stream': a stream needs .*, and tiles have no statistics"):
        restore_tiled(image, model, memory_limit=want.nbytes + 250_000, **options, **STREAM)
    limited(monkeypatch, columns=200)
    with pytest.warns(TileSizeWarning), pytest.raises(OutOfMemoryError):
        one(image)


def test_a_limit_that_nothing_fits_is_refused():
    with pytest.raises(ValueError, match="schedule must be 'auto' or 'tiles' for this model, not 'stream': a stream"):
        restore_tiled(IMAGE, seeded(lambda: Chain(3)), memory_limit=IMAGE.nbytes + 1000, **OPTIONS)


# ---- on the device ---------------------------------------------------------------------------------------------------

SMALL = {
    "SRVGG": lambda: SRVGG(layers=3, width=8),
    "RRDB": lambda: RRDBNet(blocks=6, features=8, growth=4),
    "U-Net": lambda: UNet(2),
}
DEVICE = "fakemps"


def on_device(model):
    return copy.deepcopy(model).to(DEVICE)


@pytest.mark.parametrize("boundary", ["native", "reflect"])
@pytest.mark.parametrize("name", ["SRVGG", "U-Net", *late("RRDB")])
def test_the_same_on_the_device_and_each_byte_travels_once(fake_mps, name, boundary):
    model = seeded(SMALL[name])
    image = pixels_of("uint8", (160, 48, 3))
    options = {"halo": "exact", "boundary": boundary, **STREAM}
    want = restore_tiled(image, model, **options)
    restorer = TiledRestorer(on_device(model), **options)
    assert largest(restorer(image), want) <= 1  # records, tries
    fake_mps.reset_counts()
    assert largest(restorer(image), want) <= 1
    counts = fake_mps.counts()
    assert counts["upload_bytes"] == image.nbytes
    assert counts["download_bytes"] == want.nbytes
    assert counts["synchronizes"] == 0
    steps = -(-image.shape[0] // restorer.last_run.stream.rows)
    assert counts["scalar_reads"] <= steps + 2  # whether each strip was finite, at the end; two at the edges
    assert restorer.last_run.schedule == "stream"
    ignoring = TiledRestorer(on_device(model), on_nonfinite="ignore", **options)
    ignoring(image)
    fake_mps.reset_counts()
    ignoring(image)
    assert fake_mps.counts()["scalar_reads"] == fake_mps.counts()["synchronizes"] == 0


@pytest.mark.parametrize("name", SMALL)
def test_operators_have_few_shapes(fake_mps, monkeypatch, name):
    """In the steady state each has one; a few more at the top and the bottom, however high the image is."""
    model, most = on_device(seeded(SMALL[name])), []
    own, shapes = Stepper._made, {}

    def made(self, node, start, stop, out=None):
        found = own(self, node, start, stop, out)
        assert found.device.type == DEVICE
        shapes.setdefault((node.number, node.name), set()).add(tuple(found.shape))
        return found

    monkeypatch.setattr(Stepper, "_made", made)
    for rows in (640, 1280):
        shapes.clear()
        restore_tiled(pixels_of("uint8", (rows, 16, 3)), model, halo="exact", boundary="native", **STREAM)
        most.append(max(len(found) for found in shapes.values()))
    assert max(most) <= 6 and most[1] <= most[0] + 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
def test_images_on_the_device_stay_there(fake_mps, dtype):
    model = seeded(SMALL["SRVGG"])
    image = torch.from_numpy(pixels_of(dtype, (3, 90, 40)))
    want = restore_tiled(image, model, halo=8, **STREAM)
    restorer, there = TiledRestorer(on_device(model), halo=8, **STREAM), image.to(DEVICE)
    restorer(there)
    fake_mps.reset_counts()
    got = restorer(there)
    assert got.device.type == DEVICE
    assert fake_mps.counts()["upload_bytes"] == fake_mps.counts()["download_bytes"] == 0
    near = {"float32": 2e-5, "float16": 2e-3, "uint16": 1}[dtype]
    assert largest(got.cpu().numpy(), want.numpy()) <= near


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_on_the_device(fake_mps, dtype):
    image = pixels_of("uint8", (90, 40, 3))
    model = seeded(SMALL["U-Net"])
    want = restore_tiled(image, model, halo="exact", **STREAM)
    assert largest(restore_tiled(image, on_device(model), halo="exact", dtype=dtype, **STREAM), want) <= 4


def test_memory_of_the_device_runs_out(fake_mps):
    model = seeded(lambda: Chain(3, scale=2, width=32))
    want = restore_tiled(IMAGE, model, halo=3, **STREAM)
    moved = on_device(model)
    restorer = TiledRestorer(moved, halo=3, **STREAM)
    restorer(IMAGE)
    fake_mps.set_memory_limit(fake_mps.counts()["live_bytes"] + (3 << 20))
    with pytest.warns(TileSizeWarning):
        assert largest(restorer(IMAGE), want) <= 1


def test_nan_on_the_device_is_found_where_it_is(fake_mps):
    from halotile import NonFiniteError

    from .test_stream_runs import Poisoned

    for where in ((0, 0, 2), (119, 39, 0), (70, 5, 1)):
        image = np.zeros((120, 40, 3), np.uint8)
        image[where] = 255
        with pytest.raises(NonFiniteError, match="first at output row {}, column {}, channel {}".format(*where)):
            restore_tiled(image, Poisoned().to(DEVICE), device=DEVICE, halo=0, **STREAM)


def test_the_smallest_step_is_the_end_of_the_ladder():
    assert schedule.Stream.smallest == schedule.SMALLEST_STEP


def test_one_thread_at_a_time_uses_the_device(fake_mps):
    model, results = on_device(seeded(SMALL["U-Net"])), []
    image = pixels_of("uint8", (90, 40, 3))
    restorer = TiledRestorer(model, halo="exact", **STREAM)
    want = restorer(image)
    fake_mps.set_busy(50)
    assert in_two_threads(lambda: results.append(restorer(image))) == []
    for result in results:
        np.testing.assert_array_equal(result, want)
    assert fake_mps.violations() == []
