# SPDX-License-Identifier: MIT
"""restore_to(): every source and sink gives restore_tiled's bits, holds few rows, leaves a whole file or nothing."""

import contextlib
import os
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
pytest.importorskip("pyvips")

from halotile import TiledRestorer, TileError, iter_bands, restore_tiled, restore_to  # noqa: E402
from halotile.files import npy  # noqa: E402
from halotile.files import picture as files  # noqa: E402
from halotile.files.atomic import replacing  # noqa: E402
from halotile.files.formats import FORMATS, Format  # noqa: E402
from halotile.files.npy import NpySink, NpySource  # noqa: E402
from halotile.files.open import open_source  # noqa: E402
from halotile.files.vips_rows import PictureSink, PictureSource  # noqa: E402
from halotile.files.zarr import ZarrSink  # noqa: E402
from halotile.images.source import HeldRows, Source  # noqa: E402

from .conftest import heed_interrupts  # noqa: E402
from .networks import Chain, ThreeHalves, seeded  # noqa: E402

TILES = {"tile_size": 24, "halo": 3}
SINKS = ("npy", "zarr", "tif", "png")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def noise(rng, shape, dtype="uint8"):
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def content(path):
    """What was written, and nothing beside it."""
    assert not [name for name in os.listdir() if name.startswith(".")]
    if path.endswith(".npy"):
        return np.load(path)
    return zarr.open_array(path, mode="r")[:] if path.endswith(".zarr") else files.read_image(path).pixels


def as_zarr(image, name="in.zarr", chunks=(10, 16)):
    array = zarr.create_array(store=name, shape=image.shape, dtype=image.dtype, chunks=(*chunks, *image.shape[2:]))
    array[...] = image
    return array


def saved(image, name):
    np.save(name, image)
    return name


def written(image, name):
    files.write_image(name, image)
    return name


def tiled_tiff(image, name="tiled.tif"):
    import pyvips

    pyvips.Image.new_from_array(image).tiffsave(name, tile=True, tile_width=16, tile_height=32, compression="deflate")
    return name


def mapped(image, name="in.npy"):
    np.save(name, image)
    return np.load(name, mmap_mode="r")


SOURCES = {
    "array": lambda image: image,
    "memmap": mapped,
    "foreign": lambda image: mapped(image.astype(image.dtype.newbyteorder())),
    "zarr": as_zarr,
    "npy": lambda image: saved(image, "in.npy"),
    "foreign npy": lambda image: saved(image.astype(image.dtype.newbyteorder()), "in.npy"),
    "Fortran npy": lambda image: saved(np.asfortranarray(image), "in.npy"),
    "zarr folder": lambda image: as_zarr(image) and "in.zarr",
    "TIFF": lambda image: written(image, "in.tif"),
    "tiled TIFF": tiled_tiff,
    "PNG": lambda image: written(image, "in.png"),
}


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("source", SOURCES)
def test_sources(rng, source, dtype, boundary):
    if source == "PNG" and dtype == "float32":
        pytest.skip("PNG holds no floats")
    image, model = noise(rng, (83, 61, 3), dtype), seeded(lambda: Chain(3, scale=2))
    want = restore_tiled(image, model, boundary=boundary, **TILES)
    info = restore_to("out.npy", SOURCES[source](image), model, boundary=boundary, **TILES)
    np.testing.assert_array_equal(content("out.npy"), want)
    assert content("out.npy").dtype == dtype
    assert info.halo == (3, 3)


@pytest.mark.parametrize("shape", [(83, 61), (83, 61, 1), (83, 61, 2), (83, 61, 3), (83, 61, 4), (300, 9, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("sink", SINKS)
def test_sinks(rng, sink, dtype, shape):
    if sink == "png" and dtype == "float32":
        pytest.skip("PNG holds no floats")
    image, model = noise(rng, shape, dtype), seeded(lambda: Chain(3, scale=2, channels=1 if shape[2:] < (3,) else 3))
    want = restore_tiled(image, model, **TILES)
    restore_to(f"out.{sink}", image, model, **TILES)
    got = content(f"out.{sink}")
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    if sink in ("npy", "zarr"):
        assert got.shape == want.shape
    else:  # the file that write_image would have made
        files.write_image(f"whole.{sink}", want)
        with open(f"out.{sink}", "rb") as one, open(f"whole.{sink}", "rb") as other:
            assert one.read() == other.read()


@pytest.mark.parametrize(("sink", "quality"), [("jpg", 90), ("webp", 100), ("webp", 80)])
def test_lossy_formats_are_those_of_write_image(rng, sink, quality):
    image, model = noise(rng, (83, 61, 3), "uint16"), seeded(lambda: Chain(3))
    files.write_image(f"whole.{sink}", restore_tiled(image, model, **TILES), quality=quality)
    restore_to(f"out.{sink}", image, model, quality=quality, **TILES)
    with open(f"out.{sink}", "rb") as one, open(f"whole.{sink}", "rb") as other:
        assert one.read() == other.read()


@pytest.mark.parametrize("sink", ["npy", "zarr", "tif"])
@pytest.mark.parametrize(("dtype", "out_dtype"), [("float16", None), ("float64", None), ("uint8", "float32")])
def test_other_dtypes(rng, sink, dtype, out_dtype):
    image, model = noise(rng, (60, 40, 3), dtype), seeded(Chain)
    want = restore_tiled(image, model, out_dtype=out_dtype, **TILES)
    restore_to(f"out.{sink}", image, model, out_dtype=out_dtype, **TILES)
    np.testing.assert_array_equal(content(f"out.{sink}"), want.astype("float32") if sink == "tif" else want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_tensors_become_rows_of_pixels(rng, dtype):
    image, model = noise(rng, (2, 3, 50, 40)), seeded(Chain)
    image = torch.from_numpy(image).to(dtype)
    options = TILES | {"out_dtype": "uint8"}
    want = restore_tiled(image[0], model, **options).numpy().transpose(1, 2, 0)
    for tensor in (image[0], image[:1]):
        restore_to("out.npy", tensor, model, **options)
        np.testing.assert_array_equal(content("out.npy"), want)


@pytest.mark.parametrize("options", [{"batch_size": 5}, {"halo": 40}, {"overlap": 0}, {"tile_size": 500}, {"phase": 4}])
@pytest.mark.parametrize("make", [lambda: Chain(3, valid=True), ThreeHalves, lambda: Chain(2, mode="reflect")])
def test_options(rng, options, make):
    image, model = noise(rng, (101, 61, 3)), seeded(make)
    options = TILES | {"halo": 6} | options
    want = restore_tiled(image, model, **options)
    as_zarr(image)
    for source in ("in.zarr", written(image, "in.png")):
        restore_to("out.zarr", source, model, **options)
        np.testing.assert_array_equal(content("out.zarr"), want)


@pytest.mark.parametrize("size", [(1, 50), (2, 3), (7, 90)])
def test_small_images_with_large_halos(rng, size):
    image = noise(rng, (*size, 3))
    model = seeded(Chain)
    want = restore_tiled(image, model, halo=33, tile_size=16)
    restore_to("out.npy", written(image, "in.png"), model, halo=33, tile_size=16)
    np.testing.assert_array_equal(content("out.npy"), want)


@pytest.mark.parametrize("options", [{"halo": "exact", "phase": None}, {"halo": "auto", "tolerance": 5}])
def test_what_is_found_out_is_found_out_of_rows_too(rng, options):
    image, model = noise(rng, (301, 260, 3)), seeded(lambda: Chain(40, width=3))
    restorer = TiledRestorer(model, tile_size=64, **options)
    want = restorer(image)
    restore_to("out.npy", as_zarr(image), TiledRestorer(model, tile_size=64, **options))
    np.testing.assert_array_equal(content("out.npy"), want)


@pytest.mark.parametrize("global_stats", ["exact", "frozen"])
def test_statistics_of_a_file_are_measured_over_all_of_it(rng, global_stats):
    class Pooled(Chain):
        def forward(self, x):
            return super().forward(x) * (1 + x.mean((2, 3), keepdim=True))

    image, model = noise(rng, (101, 90, 3)), seeded(Pooled)
    want = restore_tiled(image, model, global_stats=global_stats, **TILES)
    restore_to("out.npy", written(image, "in.png"), model, global_stats=global_stats, **TILES)
    np.testing.assert_array_equal(content("out.npy"), want)


def test_zarr_arrays_are_images_everywhere(rng):
    image, model = noise(rng, (83, 61, 3), "uint16"), seeded(lambda: Chain(3, scale=2))
    want = restore_tiled(image, model, **TILES)
    array = as_zarr(image)
    np.testing.assert_array_equal(restore_tiled(array, model, **TILES), want)
    out = np.empty_like(want)
    assert restore_tiled(array, model, out=out, **TILES) is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in iter_bands(array, model, **TILES)]), want)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_engine_torch(rng, dtype):
    image, model = noise(rng, (83, 61, 3), dtype), seeded(lambda: Chain(3, scale=2))
    want = restore_tiled(image, model, **TILES)
    restore_to("out.zarr", as_zarr(image), model, engine="torch", **TILES)
    np.testing.assert_array_equal(content("out.zarr"), want)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_emulated_device(rng, fake_mps, dtype):
    from .fake_mps.attach import DEVICE

    image, model = noise(rng, (83, 61, 3), dtype), seeded(lambda: Chain(3, scale=2))
    want = restore_tiled(image, model, memory_format="contiguous", **TILES)  # which the device's windows are
    restore_to("out.npy", as_zarr(image), model, device=DEVICE, **TILES)
    np.testing.assert_array_equal(content("out.npy"), want)


def test_where_memory_runs_out_it_goes_on_below(rng):
    image, model, calls = noise(rng, (120, 90, 3)), seeded(Chain), []
    want = restore_tiled(image, model, tile_size=32, halo=3, overlap=0)

    def short(windows):
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError
        return model(windows)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        restore_to("out.tif", image, short, tile_size=32, halo=3, overlap=0)
    np.testing.assert_allclose(content("out.tif").astype(int), want.astype(int), atol=1)
    assert len(calls) > 20


def test_metadata_of_a_file_goes_along(rng):
    import pyvips

    profile = (
        pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb").icc_transform("srgb").get("icc-profile-data")
    )
    like = files.Picture(np.empty(0), {"icc-profile-data": profile}, (5.0, 7.0))
    files.write_image("in.png", noise(rng, (40, 30, 3)), like=like)
    for name in ("out.tif", "out.png", "out.jpg"):
        restore_to(name, "in.png", seeded(Chain), **TILES)
        picture = files.read_image(name)
        assert picture.metadata["icc-profile-data"] == profile
        assert picture.resolution == pytest.approx((5, 7), rel=0.02)


def test_shards_are_whole_and_chunks_small(rng):
    restore_to("out.zarr", noise(rng, (300, 290, 3)), seeded(lambda: Chain(scale=2)), tile_size=128, halo=3)
    array = zarr.open_array("out.zarr", mode="r")
    assert (array.chunks, array.shards) == ((256, 256, 3), (256, 768, 3))
    assert array.metadata.dimension_names == ("y", "x", "channel")


# ---- few rows at a time ----------------------------------------------------------------------------------------------


class Counted(Source):
    """Rows of an array, and what was asked for."""

    def __init__(self, image, step=1):
        self.image, self.shape, self.dtype, self.step = image, image.shape, image.dtype, step
        self.reads = []

    def read(self, start, rows):
        self.reads.append((start, start + len(rows)))
        rows[...] = self.image[start : start + len(rows)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("step", [1, 10, 64])
def test_rows_are_read_once_from_the_top_and_few_are_held(rng, step, batch_size, monkeypatch):
    image = noise(rng, (400, 61, 3))
    source, held = Counted(image, step), []
    holding = HeldRows.holding

    def spied(self, start, stop):
        found = holding(self, start, stop)
        held.append(len(self.buffer))
        return found

    monkeypatch.setattr(HeldRows, "holding", spied)
    restore_to("out.npy", source, seeded(Chain), batch_size=batch_size, **TILES)
    edges = [0, *(stop for _, stop in source.reads)]
    assert [start for start, _ in source.reads] == edges[:-1]
    assert edges[-1] == 400
    assert all(edge % step == 0 for edge in edges[:-1])
    rows_of_tiles = -(-batch_size // 3) + 1  # 3 tiles across
    assert max(held) <= (30 * rows_of_tiles + step) * 1.25 + 1


def test_image_files_are_decoded_once(rng, monkeypatch):
    opened = []
    real = PictureSource._open
    monkeypatch.setattr(PictureSource, "_open", lambda self: (opened.append(1), real(self)))
    restore_to("out.npy", written(noise(rng, (200, 61, 3)), "in.png"), seeded(Chain), **TILES)
    assert len(opened) == 1


def test_a_source_can_be_read_again_and_anywhere(rng):
    image = noise(rng, (90, 40, 3))
    as_zarr(image)
    for path in ("in.zarr", saved(image, "in.npy"), written(image, "in.png"), tiled_tiff(image)):
        source = open_source(path, None, None)
        for start, stop in [(50, 90), (0, 30), (20, 25), (60, 61), (0, 90)]:
            rows = np.empty((stop - start, 40, 3), np.uint8)
            source.read(start, rows)
            np.testing.assert_array_equal(rows, image[start:stop])


@pytest.mark.parametrize("window", [(-5, 12), (80, 101), (-89, 179), (-300, -200), (95, 110), (400, 420), (3, 9)])
def test_held_rows_mirror_as_the_image_does(rng, window):
    from halotile import _core

    image = noise(rng, (90, 8, 1))
    rows, first = HeldRows(Counted(image)).holding(*window)
    height = window[1] - window[0]
    got, want = np.empty((1, height, 8), np.float32), np.empty((1, height, 8), np.float32)
    _core.read(got, rows, window[0] - first, 0)
    _core.read(want, image.transpose(2, 0, 1), window[0], 0)
    np.testing.assert_array_equal(got, want)


def test_rows_are_given_up_when_reading_fails(rng):
    image = noise(rng, (90, 8, 3))
    source = Counted(image)
    held = HeldRows(source)
    held.holding(10, 30)
    real, source.read = source.read, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        held.holding(20, 40)
    source.read = real
    np.testing.assert_array_equal(held.holding(25, 35)[0], image[25:35].transpose(2, 0, 1))


def traced(height, sink):
    """NumPy's memory: the most of it, and what is allocated once three rows of tiles are done."""
    image = np.random.default_rng(0).integers(0, 256, (height, 160, 3), np.uint8)
    np.save("tall.npy", image)
    del image
    later = []

    def progress(done, total):
        if done == 12:
            tracemalloc.reset_peak()
            later.append(tracemalloc.get_traced_memory()[0])
        elif done == total - 4:
            later.append(tracemalloc.get_traced_memory()[1])

    model = seeded(lambda: Chain(scale=2))
    restore_to(f"warm.{sink}", "tall.npy", model, tile_size=48, halo=3)
    tracemalloc.start()
    try:
        restore_to(f"out.{sink}", "tall.npy", model, tile_size=48, halo=3, progress=progress)
    finally:
        tracemalloc.stop()
    return later


@pytest.mark.parametrize("sink", ["npy", "tif"])
def test_memory_does_not_grow_after_the_first_tiles(sink):
    (before, most), (_, most_taller) = traced(600, sink), traced(2400, sink)
    band = 96 * 320 * 3
    assert most - before < band  # a band more than at that moment would be a new buffer
    assert abs(most_taller - most) < band / 2
    assert before < 10 * band


# ---- failures --------------------------------------------------------------------------------------------------------


def failing(at, error):
    calls = []

    def model(x):
        calls.append(1)
        if len(calls) == at:
            raise error
        return x

    return model


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 2, 17])
@pytest.mark.parametrize("sink", SINKS)
def test_a_failing_model_leaves_what_was_there(rng, sink, at, error):
    path, image = f"out.{sink}", noise(rng, (120, 61, 3))
    restore_to(path, image, torch.nn.Identity(), **TILES)
    with pytest.raises((TileError, KeyboardInterrupt)):
        restore_to(path, image, failing(at, error), scale=1, **TILES)
    np.testing.assert_array_equal(content(path), image)
    assert os.listdir() == [path]


def test_a_new_format_is_a_sink_and_a_row_of_the_table(rng, monkeypatch):
    class Raw:
        overlaps = True

        def __init__(self, descriptor):
            self.descriptor, self.ended = descriptor, []

        def write(self, rows):
            os.write(self.descriptor, rows.tobytes())

        def close(self):
            self.ended.append("closed")

        def abandon(self):
            self.ended.append("abandoned")

    made = []

    @contextlib.contextmanager
    def open_raw(path, shape, dtype, **_):
        with replacing(path) as draft:
            made.append(Raw(draft.descriptor))
            yield made[-1]

    raw = Format("Raw", "raw", (".raw",), 100, (1, 3), ("uint8",), open_raw, lambda shape, dtype: 0, Raw.overlaps)
    monkeypatch.setitem(FORMATS, ".raw", raw)
    image = noise(rng, (90, 61, 3))
    restore_to("out.raw", image, torch.nn.Identity(), **TILES)
    with open("out.raw", "rb") as file:
        assert file.read() == image.tobytes()
    assert made[0].ended == ["closed", "abandoned"]
    with pytest.raises(TileError):
        restore_to("out.raw", image, failing(2, RuntimeError("boom")), scale=1, **TILES)
    assert made[1].ended[-1:] == ["abandoned"] and "closed" not in made[1].ended
    for refused in (noise(rng, (101, 61, 3)), noise(rng, (90, 61, 3), "uint16")):
        with pytest.raises(ValueError, match="Raw"):
            restore_to("out.raw", refused, torch.nn.Identity(), **TILES)
    assert os.listdir() == ["out.raw"]


@pytest.mark.parametrize("sink", SINKS)
def test_failing_writes_surface(rng, sink, monkeypatch):
    made = {"npy": NpySink, "zarr": ZarrSink}
    kind, real, calls = made.get(sink, PictureSink), None, []
    real = kind.write

    def write(self, rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise OSError(28, "No space left on device", "there")
        real(self, rows)

    monkeypatch.setattr(kind, "write", write)
    with pytest.raises(OSError, match="No space left"):
        restore_to(f"out.{sink}", noise(rng, (150, 61, 3)), torch.nn.Identity(), **TILES)
    assert os.listdir() == []
    assert len(calls) == 2


FULL = """
import resource, sys, numpy as np, zarr
from halotile import restore_to
image = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    restore_to(sys.argv[1], image, lambda x: np.array(x), tile_size=64, halo=2)
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("sink", SINKS)
def test_a_disk_that_fills(sink):
    done = subprocess.run([sys.executable, "-c", FULL, f"out.{sink}"], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert f"out.{sink}" in done.stdout
    assert not done.stderr
    assert os.listdir() == []


def test_a_file_for_which_there_is_no_room_is_refused_at_once(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(npy.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="it takes 5 KiB, 1000 bytes are free"):
        restore_to("out.npy", noise(rng, (40, 40, 3)), lambda x: calls.append(1) or x, scale=1, **TILES)
    assert len(calls) == 1  # the first, which tells the size


def test_a_damaged_file_is_said_where_it_is_met(rng):
    written(noise(rng, (300, 200, 3)), "in.png")
    with open("in.png", "rb") as file:
        start = file.read()[:90_000]
    with open("in.png", "wb") as file:
        file.write(start)
    with pytest.raises(ValueError, match=r"in\.png: not a readable PNG file"):
        restore_to("out.tif", "in.png", torch.nn.Identity(), **TILES)
    assert os.listdir() == ["in.png"]


INTERRUPTED = """
import sys, time, numpy as np, zarr
from halotile import restore_to
def slow(x):
    open("started", "w").close()
    time.sleep(0.1)
    return np.array(x)
restore_to(sys.argv[1], np.zeros((2000, 600, 3), np.uint8), slow, tile_size=64, halo=2)
"""


@pytest.mark.parametrize("sink", SINKS)
def test_ctrl_c_leaves_nothing(sink):
    import signal
    import time

    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, f"out.{sink}"], stderr=subprocess.PIPE, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 60
    while not os.path.exists("started") and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)  # into the second row of tiles
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert os.listdir() == ["started"]


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("out.gif", {}, ValueError, "unknown suffix '.gif'; must be one of .*[.]npy, [.]zarr"),
        ("there/out.npy", {}, FileNotFoundError, "there is no directory"),
        ("folder.npy", {}, OSError, "exists and is not a regular file"),
        ("folder.zarr", {}, OSError, "exists and is not a zarr array"),
        ("group.zarr", {}, OSError, "exists and is not a zarr array"),
        ("out.png", {"out_dtype": "float32"}, ValueError, "out_dtype must be one of uint8, uint16 for PNG"),
        ("out.jpg", {"image": np.zeros((20, 20, 4), np.uint8)}, ValueError, "JPEG has no alpha"),
        ("out.png", {"image": np.zeros((2, 20, 20, 3), np.uint8)}, ValueError, ".npy .* for 2 images.*PNG holds one"),
        ("out.npy", {"image": torch.zeros((3, 8, 8), dtype=torch.bfloat16)}, ValueError, "not 'bfloat16'"),
        ("out.npy", {"out": np.zeros((20, 20, 3), np.uint8)}, ValueError, "out must be None"),
        ("out.npy", {"verify": 3}, ValueError, "verify must be 0 for restore_to.* not 3"),
        ("out.npy", {"tiles": 3}, TypeError, "no option 'tiles'"),
        ("out.png", {"compression": 10}, ValueError, "compression=10; must be 0 to 9"),
        ("out.jpg", {"quality": 0}, ValueError, "quality=0; must be 1 to 100"),
        ("out.npy", {"image": "none.png"}, FileNotFoundError, "none.png"),
        ("out.npy", {"image": "none.npy"}, FileNotFoundError, "none.npy"),
        ("out.npy", {"image": "none.zarr"}, FileNotFoundError, "none.zarr"),
        ("out.npy", {"image": "folder.zarr"}, ValueError, "folder.zarr: not a readable zarr array"),
        ("out.npy", {"image": "text.npy"}, ValueError, "text.npy: not a readable .npy file"),
        ("out.npy", {"image": "short.npy"}, ValueError, "short.npy: was cut short"),
        ("out.npy", {"image": "text.png"}, ValueError, "not a PNG, JPEG, WebP, TIFF or AVIF file"),
        ("out.npy", {"image": "five.zarr"}, ValueError, "image must have 2 to 4 dimensions"),
        ("out.npy", {"image": "first.zarr"}, ValueError, "would have 40 channels"),
        ("out.npy", {"image": "first.zarr", "layout": "NCHW"}, ValueError, "4 dimensions of layout .NCHW."),
        ("out.npy", {"image": "signed.npy"}, TypeError, "image must have one of the dtypes"),
        ("out.npy", {"image": "objects.npy"}, TypeError, "not object"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_runs(name, options, error, text):
    for folder in ("folder.npy", "folder.zarr"):
        os.mkdir(folder)
    zarr.create_group("group.zarr")
    as_zarr(np.zeros((3, 30, 40), np.uint8), "first.zarr", chunks=(3, 10))
    zarr.create_array(store="five.zarr", shape=(1, 1, 3, 8, 8), dtype="uint8")
    np.save("signed.npy", np.zeros((8, 8), np.int32))
    np.save("objects.npy", np.array([[None]]), allow_pickle=True)
    saved(np.zeros((50, 50), np.uint8), "short.npy")
    os.truncate("short.npy", 1000)
    for text_file in ("text.npy", "text.png"):
        with open(text_file, "w") as file:
            file.write("no image")
    before, calls = sorted(os.listdir()), []
    options = {"image": np.zeros((20, 20, 3), np.uint8)} | options
    with pytest.raises(error, match=text):
        restore_to(name, options.pop("image"), lambda x: calls.append(1) or x, **TILES | options)
    assert not calls
    assert sorted(os.listdir()) == before


def test_a_restorer_brings_its_options(rng):
    image, restorer = noise(rng, (50, 40, 3)), TiledRestorer(seeded(Chain), **TILES)
    restore_to("out.npy", image, restorer)
    np.testing.assert_array_equal(content("out.npy"), restorer(image))
    with pytest.raises(TypeError, match="not also halo"):
        restore_to("out.npy", image, restorer, halo=3)


@pytest.mark.parametrize("source", ["memmap", "foreign", "zarr", "npy", "zarr folder", "TIFF"])
def test_the_image_itself_is_no_destination(rng, source):
    image = noise(rng, (50, 40, 3))
    given = SOURCES[source](image)
    (path,) = os.listdir()
    os.symlink(path, "link" + os.path.splitext(path)[1])
    for name in os.listdir():
        with pytest.raises(ValueError, match="path must not be that of the image"):
            restore_to(name, given, torch.nn.Identity(), **TILES)
    np.testing.assert_array_equal(content(path), image)


def test_zarr_arrays_are_replaced_as_a_whole(rng):
    large, small = noise(rng, (600, 40, 3)), noise(rng, (20, 30, 3))
    for image in (large, small):
        restore_to("out.zarr", image, torch.nn.Identity(), **TILES)
        np.testing.assert_array_equal(content("out.zarr"), image)
    assert os.listdir() == ["out.zarr"]


def test_a_file_cut_short_meanwhile(rng):
    source = NpySource(saved(noise(rng, (50, 40)), "in.npy"))
    os.truncate("in.npy", 1000)
    with pytest.raises(ValueError, match="cut short while it was read"):
        source.read(0, np.empty((50, 40), np.uint8))


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["npy", "zarr", "tif"])
@pytest.mark.parametrize("source", ["tiled TIFF", "PNG"])
def test_the_command_line(rng, capsys, sink, source):
    from halotile import cli

    image = noise(rng, (83, 61, 3))
    with open("models.py", "w") as file:
        file.write("def twice(x):\n    return x.repeat(2, 2).repeat(2, 3)\n")
    command = ["restore", SOURCES[source](image), "-o", f"out.{sink}", "-m", "models:twice", "--tile-size", "24"]
    assert cli.main(command) == 0
    np.testing.assert_array_equal(content(f"out.{sink}"), image.repeat(2, 0).repeat(2, 1))
    assert cli.main(command) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert cli.main([*command, "--force", "--verify", "2"]) == 0
    np.testing.assert_array_equal(content(f"out.{sink}"), image.repeat(2, 0).repeat(2, 1))
