# SPDX-License-Identifier: MIT
"""restore_tiled on the emulated Apple GPU: the same bits as on the host, and nothing crosses that need not.

The device (tests/fake_mps) runs the same tiles.metal; the host cannot touch its memory, and it counts everything.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import RangeWarning, TiledRestorer, TileSizeWarning, iter_bands, plan_tiles, restore_tiled  # noqa: E402
from halotile.engine import device, metal  # noqa: E402

from .fake_mps.attach import DEVICE, attach  # noqa: E402
from .networks import Chain, Half, Strided, ThreeHalves, seeded  # noqa: E402
from .test_engines import BLENDS, DTYPES, assert_same, pixels_of  # noqa: E402

MODELS = {
    "plain": lambda: Chain(2),
    "x4": lambda: Chain(2, scale=4),
    "stride 4": lambda: Strided(4),
    "1/2": Half,
    "3/2": ThreeHalves,
    "valid": lambda: Chain(2, valid=True),
}
TILES = {"tile_size": 24, "halo": 4, "overlap": 5, "memory_format": "contiguous"}
IMAGE = pixels_of("uint8", (60, 71, 3))


class Watched(torch.nn.Module):
    """A model that notes the shapes it is given."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shapes = model, []

    def forward(self, windows):
        assert windows.is_contiguous()
        assert windows.device.type == DEVICE
        self.shapes.append(tuple(windows.shape))
        return self.model(windows)


@dataclass
class Run:
    result: object
    counts: dict
    launches: dict
    shapes: list


def run(fake, image, model, **options):
    on_device = Watched(copy.deepcopy(model).to(DEVICE))
    fake.reset_counts()
    result = restore_tiled(image, on_device, **options)
    return Run(result, fake.counts(), fake.launches(), on_device.shapes)


def bytes_of(image):
    return image.nbytes if isinstance(image, np.ndarray) else image.numel() * image.element_size()


TRAVELLING = {"float64": 1 / 2}  # no float64 on the device: half as many bytes


def check_run(fake, image, model, **options):
    """Everything that is promised of a run with an image in host memory."""
    got = run(fake, image, model, **options)
    assert_same(got.result, restore_tiled(image, model, engine="host", **options))

    up, down = (TRAVELLING.get(str(array.dtype).removeprefix("torch."), 1) for array in (image, got.result))
    assert got.counts["upload_bytes"] == bytes_of(image) * up
    assert got.counts["download_bytes"] == bytes_of(got.result) * down
    assert got.counts["synchronizes"] == 0
    assert got.counts["scalar_reads"] <= 2  # is the first tile finite, is all: before the loop and after it
    assert len(set(got.shapes)) == 1
    reads = sum(n for name, n in got.launches.items() if name.startswith("read"))
    sums = sum(n for name, n in got.launches.items() if name.startswith("accumulate"))
    assert reads == sums == len(got.shapes)
    keys = ("tile_size", "halo", "overlap", "phase", "boundary", "blend")
    plan = plan_tiles(image.shape, layout=options.get("layout"), **{k: options[k] for k in keys if k in options})
    ends = sum(n for name, n in got.launches.items() if name.startswith("finish"))
    assert ends == plan.grid[0]
    assert fake.violations() == []
    return got


# ---- the same bits, and every byte once ------------------------------------------------------------------------------


@pytest.mark.parametrize("out_dtype", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(fake_mps, dtype, out_dtype):
    check_run(fake_mps, pixels_of(dtype, (60, 71, 3)), seeded(MODELS["plain"]), out_dtype=out_dtype, **TILES)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_only_labels_come_down(fake_mps, dtype):
    torch.manual_seed(1)
    model = torch.nn.Conv2d(3, 9, 3, padding=1)
    image, options = pixels_of(dtype, (60, 71, 3)), TILES | {"reduce": "argmax"}
    got = run(fake_mps, image, model, **options)
    want = restore_tiled(image, model, engine="host", **options)
    assert got.result.dtype == want.dtype
    np.testing.assert_array_equal(np.asarray(got.result), np.asarray(want))
    assert got.counts["download_bytes"] == bytes_of(want) and got.counts["upload_bytes"] == bytes_of(image)
    assert got.counts["scalar_reads"] <= 2 and fake_mps.violations() == []


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("name", MODELS)
def test_models_blends_and_boundaries(fake_mps, name, blend, boundary):
    model = seeded(MODELS[name])
    if name == "valid":
        boundary = "reflect"
    image = pixels_of("uint8", (57, 90, 3))
    options = {"phase": model.phase, "scale": getattr(model, "scale", None), "blend": blend, "boundary": boundary}
    options |= {"tile_size": 28, "halo": 8, "memory_format": "contiguous"}  # else formats are compared first
    for overlap in (0, 7, 19):
        run_ = run(fake_mps, image, model, overlap=overlap, **options)
        assert_same(run_.result, restore_tiled(image, model, overlap=overlap, **options))
        assert run_.counts["upload_bytes"] == image.nbytes
        assert run_.counts["download_bytes"] == run_.result.nbytes
        if name != "valid":  # which sees one larger window, once, to tell its trim
            assert len(set(run_.shapes)) == 1


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("size", [(60, 120), (110, 21), (21, 21)])
def test_batches_across_tile_rows(fake_mps, size, batch):
    got = check_run(fake_mps, pixels_of("uint8", (*size, 3)), seeded(MODELS["plain"]), batch_size=batch, **TILES)
    plan = plan_tiles((*size, 3), **TILES)
    assert len(got.shapes) == -(-len(plan) // batch)


@pytest.mark.parametrize("model_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "bfloat16", "float32"])
def test_tensors_and_model_dtypes(fake_mps, dtype, model_dtype):
    source = torch.from_numpy(pixels_of("float32" if dtype == "bfloat16" else dtype, (3, 40, 51)))
    image = source.to(getattr(torch, dtype))
    model = seeded(MODELS["plain"]).to(getattr(torch, model_dtype))
    check_run(fake_mps, image, model, value_range=(-1, 1), layout="CHW", **TILES)


@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque", "channel"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_and_alpha(fake_mps, channels, alpha):
    model = seeded(lambda: Chain(2, channels=channels if alpha == "channel" else 3, scale=2))
    image = pixels_of("uint8", (40, 50, channels))
    for pixels in (image, np.stack([image, image[::-1]])):
        got = run(fake_mps, pixels, model, alpha=alpha, **TILES)
        assert_same(got.result, restore_tiled(pixels, model, alpha=alpha, **TILES))
        assert got.counts["upload_bytes"] == pixels.nbytes
        opaque = got.result.nbytes // channels if alpha == "opaque" and channels in (2, 4) else 0
        assert got.counts["download_bytes"] == got.result.nbytes - opaque


def test_strides_slabs_and_memory_that_must_not_be_written(fake_mps, monkeypatch):
    monkeypatch.setattr(device, "SLAB", 1000)
    image = pixels_of("uint16", (90, 131, 4))
    for view in (image[::2, ::-1, :3], image.transpose(1, 0, 2)[:, ::3, 1:], image[..., :3]):
        view.flags.writeable = False
        check_run(fake_mps, view, seeded(MODELS["plain"]), **TILES)


def test_rows_and_out(fake_mps):
    image = pixels_of("uint8", (60, 71, 3))
    model = copy.deepcopy(seeded(MODELS["x4"])).to(DEVICE)
    want = restore_tiled(image, seeded(MODELS["x4"]), **TILES)
    rows = [band for _, band in iter_bands(image, model, **TILES)]
    np.testing.assert_array_equal(np.concatenate(rows), want)
    out = np.zeros((240, 284, 6), np.uint8)[:, :, ::2]  # not dense
    assert restore_tiled(image, model, out=out, **TILES) is out
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("argument_bytes", [False, True])
def test_with_the_functions_of_either_torch(fake_mps, argument_bytes):
    """Before torch 2.14 numbers are passed one by one."""
    try:
        attach(argument_bytes)
        fake_mps.reset_counts()
        check_run(fake_mps, pixels_of("uint8", (60, 71, 3)), seeded(MODELS["plain"]), **TILES)
    finally:
        attach()


# ---- images on the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "bfloat16", "float32"])
def test_images_on_the_device_stay_there(fake_mps, dtype):
    source = torch.from_numpy(pixels_of("float32" if dtype == "bfloat16" else dtype, (4, 60, 71)))
    image = source.to(getattr(torch, dtype))
    model = seeded(lambda: Chain(2, scale=2))
    want = restore_tiled(image, model, **TILES)
    on_device, there = copy.deepcopy(model).to(DEVICE), image.to(DEVICE)
    restorer = TiledRestorer(on_device, **TILES)
    fake_mps.reset_counts()
    got = restorer(there)
    counts = fake_mps.counts()
    assert got.device.type == DEVICE
    assert counts["upload_bytes"] == counts["download_bytes"] == 0
    assert_same(got.cpu(), want)
    out = torch.zeros_like(got).transpose(1, 2).contiguous().transpose(1, 2)  # strides of its own
    fake_mps.reset_counts()
    assert restorer(there, out=out) is out
    assert fake_mps.counts()["upload_bytes"] == fake_mps.counts()["download_bytes"] == 0
    assert_same(out.cpu(), want)
    with pytest.raises(ValueError, match="out must not share memory"):
        restorer(out.narrow(1, 0, 60).narrow(2, 0, 71), out=out)


def test_memory_is_shared_only_where_it_is(fake_mps, monkeypatch):
    """On MPS data_ptr() is the address of a handle: those of two images lie close together."""
    handles = {}
    monkeypatch.setattr(
        torch.Tensor, "data_ptr", lambda t: 4096 + 64 * handles.setdefault(t.untyped_storage().data_ptr(), len(handles))
    )
    image = torch.from_numpy(pixels_of("uint8", (3, 60, 71))).to(DEVICE)
    out = torch.zeros_like(image)
    restore_tiled(image, on_device(), out=out, **TILES)
    both = torch.zeros((6, 60, 71), dtype=torch.uint8, device=DEVICE)
    restore_tiled(both[:3], on_device(), out=both[3:], **TILES)
    with pytest.raises(ValueError, match="out must not share memory"):
        restore_tiled(both[:3], on_device(), out=both[2:5], **TILES)
    with torch.inference_mode():
        frozen = torch.zeros_like(image)
    with pytest.raises(ValueError, match="out must not be made in inference mode"):
        restore_tiled(image, on_device(), out=frozen, **TILES)


def test_a_device_without_an_index_is_the_same(fake_mps, monkeypatch):
    from halotile.models import devices

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    own = devices.usable_device
    monkeypatch.setattr(devices, "usable_device", lambda name: own(DEVICE if name == "mps" else name))
    image = torch.from_numpy(pixels_of("uint8", (3, 60, 71))).to(DEVICE)
    fake_mps.reset_counts()
    assert restore_tiled(image, lambda windows: windows * 1, **TILES).device.type == DEVICE
    assert fake_mps.counts()["upload_bytes"] == fake_mps.counts()["download_bytes"] == 0


def test_images_and_models_on_different_devices(fake_mps):
    image = torch.from_numpy(pixels_of("uint8", (3, 60, 71)))
    model = seeded(MODELS["plain"])
    want = restore_tiled(image, model, **TILES)
    got = restore_tiled(image.to(DEVICE), model, device="cpu", **TILES)
    assert got.device.type == DEVICE
    assert_same(got.cpu(), want)
    out = torch.zeros(60, 71, 3, dtype=torch.uint8, device=DEVICE).permute(2, 0, 1)
    assert restore_tiled(image, model, out=out, **TILES) is out
    assert_same(out.cpu(), want)
    moved = restore_tiled(image, model, device=DEVICE, **TILES)
    assert moved.device.type == "cpu"
    assert_same(moved, want)


# ---- how much --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_memory_is_what_the_plan_says(fake_mps, scale, batch):
    class Nearest(torch.nn.Module):
        def forward(self, windows):
            return torch.nn.functional.interpolate(windows, scale_factor=float(scale), mode="nearest")

    image = pixels_of("uint8", (400, 600, 3))
    options = {"tile_size": 96, "halo": 8, "overlap": 8, "batch_size": batch}
    plan = plan_tiles(image.shape, scale=scale, **options)
    expected = plan.estimate_bytes(engine="mps", batch_size=batch)
    gc.collect()
    before = fake_mps.counts()["live_bytes"]
    got = run(fake_mps, image, Nearest(), **options, device=DEVICE, scale=scale)
    peak = got.counts["peak_bytes"] - before
    tables = 4 * (sum(plan.output_size) + sum(n * (plan.tile[i] + 32) * scale for i, n in enumerate(plan.grid)))
    assert peak <= expected["total"] - expected["output"] + tables + 4096
    del got
    gc.collect()
    assert fake_mps.counts()["live_bytes"] == before  # no handle is forgotten


@pytest.mark.parametrize(
    ("name", "batch", "limit"), [("x4", 1, 200_000), ("plain", 1, 40_000), ("clamp", 1, 20_000), ("clamp", 3, 40_000)]
)
def test_tensors_stay_below_the_limit(fake_mps, monkeypatch, name, batch, limit):
    """An image of many strips, bands of many segments: as a gigapixel image would need them."""
    image = pixels_of("uint8", (300, 301, 3))
    model = torch.nn.Hardtanh(0.2, 0.8) if name == "clamp" else seeded(MODELS[name])
    options = TILES | {"batch_size": batch, "device": DEVICE}
    want = restore_tiled(image, model, **options | {"device": "cpu"})
    monkeypatch.setattr(device, "LARGEST", limit)
    fake_mps.set_tensor_limit(limit)
    got = run(fake_mps, image, model, **options)
    np.testing.assert_array_equal(got.result, want)
    assert got.counts["upload_bytes"] == image.nbytes
    assert got.counts["download_bytes"] == want.nbytes
    assert got.counts["largest_allocation"] < limit
    assert got.counts["uploads"] > 1  # strips


def test_windows_that_are_too_large_are_made_smaller(fake_mps, monkeypatch):
    want = restore_tiled(IMAGE, seeded(MODELS["plain"]), **TILES)
    monkeypatch.setattr(device, "LARGEST", 10_000)
    with pytest.warns(TileSizeWarning, match=r"going on with tile_size=\(16, 16\)"):
        got = run(fake_mps, IMAGE, seeded(MODELS["plain"]), **TILES).result
    assert np.abs(got.astype(int) - want).max() <= 1


# ---- a wrong loop is noticed -----------------------------------------------------------------------------------------


def host_copies(monkeypatch):
    own = device.DeviceEngine.call
    monkeypatch.setattr(device.DeviceEngine, "call", lambda self, m, w: own(self, m, w).cpu().to(w.device))


def pad_off_by_one(monkeypatch):
    own = device.DeviceEngine.read

    class Shifted:
        def __init__(self, verbs):
            self.verbs = verbs

        def read_tiles(self, windows, image, size, strip, rows, columns, *rest):
            self.verbs.read_tiles(windows, image, size, strip, [rows[0] - 1, *rows[1:]], columns, *rest)

    def read(self, *args):
        own(device.DeviceEngine(self.name, self.device, Shifted(self.verbs)), *args)

    monkeypatch.setattr(device.DeviceEngine, "read", read)


def dropped_weight(monkeypatch):
    own = device._weight_table

    def table(plan, axis, where):
        weights = own(plan, axis, where)
        weights[0, -1] = 1
        return weights

    monkeypatch.setattr(device, "_weight_table", table)


def a_wait_for_each_tile(monkeypatch):
    own = device.DeviceEngine.call

    def run(self, model, windows):
        torch.get_device_module(DEVICE).synchronize()
        return own(self, model, windows)

    monkeypatch.setattr(device.DeviceEngine, "call", run)


def a_look_at_each_tile(monkeypatch):
    own = device.DeviceEngine.call
    monkeypatch.setattr(
        device.DeviceEngine, "call", lambda self, m, w: own(self, m, w) if w.sum().item() < 1e9 else None
    )


def another_shape(monkeypatch):
    own = device.DeviceEngine.call

    def run(self, model, windows):
        own(self, model, windows.narrow(2, 0, 20).contiguous())
        return own(self, model, windows)

    monkeypatch.setattr(device.DeviceEngine, "call", run)


WRONG = [host_copies, pad_off_by_one, dropped_weight, a_wait_for_each_tile, a_look_at_each_tile, another_shape]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_loops_are_noticed(fake_mps, monkeypatch, wrong):
    image, model, options = pixels_of("uint8", (60, 71, 3)), seeded(MODELS["plain"]), {"blend": "linear"} | TILES
    check_run(fake_mps, image, model, **options)
    wrong(monkeypatch)
    with pytest.raises(AssertionError):
        check_run(fake_mps, image, model, **options)


def test_a_look_from_the_host_kills(fake_mps):
    """The emulation's own promise, on which the others rest, is tested in test_fake_mps.py: here, that results which
    are on the device cannot be read as arrays."""
    tensor = torch.zeros(3, device=DEVICE)
    with pytest.raises((TypeError, RuntimeError)):
        tensor.numpy()


# ---- threads ---------------------------------------------------------------------------------------------------------


def in_two_threads(work):
    errors = []

    def guarded():
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_one_thread_at_a_time(fake_mps, monkeypatch):
    image, model = pixels_of("uint8", (60, 71, 3)), copy.deepcopy(seeded(MODELS["plain"])).to(DEVICE)
    want = restore_tiled(image, model, **TILES)
    fake_mps.set_busy(100)
    results = []
    assert in_two_threads(lambda: results.append(restore_tiled(image, model, **TILES))) == []
    for result in results:
        np.testing.assert_array_equal(result, want)
    assert fake_mps.violations() == []
    for module in ("auto.opening", "auto.prepare", "run.assemble", "run.results", "run.tiles"):
        monkeypatch.setattr(f"halotile.{module}.turn", lambda device=None: contextlib.nullcontext())
    in_two_threads(lambda: restore_tiled(image, model, **TILES))
    assert fake_mps.take_violations()  # so the lock is what prevents it


def test_one_thread_at_a_time_around_runs(fake_mps):
    """Moving a model, results on the device, tiles by free memory, restarts with smaller tiles."""
    model = seeded(MODELS["plain"])
    image = torch.from_numpy(pixels_of("uint8", (3, 60, 71))).to(DEVICE)
    fake_mps.set_busy(50)

    class Limited(torch.nn.Module):
        def forward(self, windows):
            if windows.shape[2] > 30:
                raise RuntimeError("MPS backend out of memory")
            return windows * 1

    def work():
        restore_tiled(image, model, device=DEVICE, tile_size="auto", halo=4)
        restore_tiled(image, Limited(), device=DEVICE, **TILES)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        assert in_two_threads(work) == []
    assert fake_mps.violations() == []


# ---- NaN -------------------------------------------------------------------------------------------------------------


class Poisoned(torch.nn.Module):
    """NaN wherever the input is white."""

    def forward(self, windows):
        return torch.where(windows == 1, torch.full_like(windows, torch.nan), windows)


def position(error):
    return str(error).split("first at ")[1]


@pytest.mark.parametrize("where", [(0, 0, 2), (3, 5, 1), (59, 70, 0), (31, 44, 1)])
def test_nan_is_found_where_it_is(fake_mps, where):
    from halotile import NonFiniteError, NonFiniteWarning

    image = np.zeros((60, 71, 3), np.uint8)
    image[where] = 255
    model = Poisoned()
    with pytest.raises(NonFiniteError) as on_host:
        restore_tiled(image, model, device="cpu", **TILES)
    with pytest.raises(NonFiniteError) as on_device:
        restore_tiled(image, model, device=DEVICE, **TILES)
    assert position(on_device.value) == position(on_host.value)
    with pytest.warns(NonFiniteWarning):
        restore_tiled(image, model, device=DEVICE, on_nonfinite="warn", **TILES)
    fake_mps.reset_counts()
    restore_tiled(image, model, device=DEVICE, on_nonfinite="ignore", **TILES)
    assert fake_mps.counts()["scalar_reads"] == 0


# ---- the kernels are not trusted -------------------------------------------------------------------------------------


@pytest.fixture
def untested(fake_mps, monkeypatch, tmp_path):
    """As at the first use in a process, with results kept in a folder of their own."""
    monkeypatch.setattr(metal, "_failures", {})
    monkeypatch.setattr(metal, "_warned", set())
    monkeypatch.setenv("HALOTILE_CACHE", str(tmp_path / "cache"))
    return fake_mps


def engine_used(fake, image, model, **options):
    fake.reset_counts()
    result = restore_tiled(image, model, **options)
    return ("mps" if fake.launches() else "torch"), result


def on_device():
    return copy.deepcopy(seeded(MODELS["plain"])).to(DEVICE)


def test_a_missing_function_falls_back_once_warned(untested, monkeypatch):
    want = restore_tiled(IMAGE, seeded(MODELS["plain"]), **TILES)
    monkeypatch.setitem(metal.LIBRARIES, DEVICE, ("PrivateUse1", metal._libtorch))
    with pytest.raises(RuntimeError, match="engine='mps' does not work here"):
        restore_tiled(IMAGE, on_device(), engine="mps", **TILES)
    monkeypatch.setenv("HALOTILE_ENGINE", "mps")
    with pytest.raises(RuntimeError, match="HALOTILE_ENGINE='mps' does not work here"):
        restore_tiled(IMAGE, on_device(), **TILES)
    monkeypatch.delenv("HALOTILE_ENGINE")
    with pytest.warns(RuntimeWarning, match="has no function aoti_torch_mps_create_shader_library"):
        engine, got = engine_used(untested, IMAGE, on_device(), **TILES)
    assert engine == "torch"
    np.testing.assert_array_equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RangeWarning)  # of a network with random weights
        assert engine_used(untested, IMAGE, on_device(), **TILES)[0] == "torch"


def test_a_kernel_that_differs_is_not_used(untested, monkeypatch):
    import halotile.engine.kernel_check

    monkeypatch.setattr(halotile.engine.kernel_check, "_units", lambda got, want: 2)
    with pytest.warns(RuntimeWarning, match="self-test found differences in read_u8_f32, "):
        restore_tiled(IMAGE, on_device(), **TILES)
    engine, got = engine_used(untested, IMAGE, on_device(), **TILES)
    assert engine == "torch"
    np.testing.assert_array_equal(got, restore_tiled(IMAGE, seeded(MODELS["plain"]), **TILES))


def test_the_self_test_runs_once_for_a_machine(untested, monkeypatch, tmp_path):
    import halotile.engine.kernel_check

    runs = []
    own = halotile.engine.kernel_check.differing
    monkeypatch.setattr(halotile.engine.kernel_check, "differing", lambda *args: runs.append(1) or own(*args))
    for _ in range(2):
        assert engine_used(untested, IMAGE, on_device(), **TILES)[0] == "mps"
        metal._failures.clear()  # as in another process
    assert len(runs) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("[" * 100_000)
    assert engine_used(untested, IMAGE, on_device(), **TILES)[0] == "mps"
    assert len(runs) == 2


@pytest.mark.parametrize("engine", ["host", "torch", "mps"])
def test_every_engine_can_be_chosen(fake_mps, engine):
    want = restore_tiled(IMAGE, seeded(MODELS["plain"]), **TILES)
    fake_mps.reset_counts()
    got = restore_tiled(IMAGE, on_device(), engine=engine, **TILES)
    np.testing.assert_array_equal(got, want)
    assert bool(fake_mps.launches()) == (engine == "mps")
    assert (fake_mps.counts()["uploads"] > 5) == (engine == "host")  # the model's parameters are four


def test_callables_of_unknown_kind_settle_on_the_device(fake_mps, monkeypatch):
    """What takes tensors is found out by trying; then nothing goes through the host any more."""
    from halotile.models import kinds

    monkeypatch.setattr(kinds, "default_device", lambda device: torch.device(DEVICE))
    want = restore_tiled(IMAGE, torch.nn.Hardtanh(0.2, 0.8), device="cpu", **TILES)
    fake_mps.reset_counts()
    got = restore_tiled(IMAGE, lambda windows: torch.clamp(windows, 0.2, 0.8), scale=1, **TILES)
    np.testing.assert_array_equal(got, want)
    assert fake_mps.launches()
    # the first window went up and came down to find out
    assert fake_mps.counts()["downloads"] == plan_tiles(IMAGE.shape, **TILES).grid[0] + 1
    np.testing.assert_array_equal(restore_tiled(IMAGE, lambda windows: np.clip(windows, 0.2, 0.8), **TILES), want)
