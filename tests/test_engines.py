# SPDX-License-Identifier: MIT
"""The engine `torch` gives the same bits as `host`, here on the CPU: every dtype, layout, blend, boundary and alpha.

Its verbs are what the Metal kernels are compared with, so they are held to the C core themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from halotile import ModelOutputError, plan_tiles, restore_tiled  # noqa: E402
from halotile.engine import torch_verbs  # noqa: E402
from halotile.engine.device import spelled  # noqa: E402
from halotile.engine.kernel_check import compare, differing  # noqa: E402

from .networks import Chain, Half, Strided, ThreeHalves, seeded  # noqa: E402

BLENDS = ["average", "linear", "cosine", "gaussian"]
MODELS = {
    "plain": lambda: Chain(2),
    "x3": lambda: Chain(2, scale=3),
    "stride 4": lambda: Strided(4),
    "1/2": Half,
    "3/2": ThreeHalves,
    "valid": lambda: Chain(2, valid=True),
}


def pixels_of(dtype, shape, seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "u":
        return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return random.normal(0.5, 0.4, shape).astype(dtype)


def bits_of(result):
    if isinstance(result, torch.Tensor):
        result = result.cpu()
        return (result.view(torch.int16) if result.dtype == torch.bfloat16 else result).numpy()
    return result


def assert_same(got, want):
    assert type(got) is type(want)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(bits_of(got), bits_of(want))


def check(image, model, **options):
    assert_same(
        restore_tiled(image, model, engine="torch", **options), restore_tiled(image, model, engine="host", **options)
    )


DTYPES = ["uint8", "uint16", "float16", "float32", "float64"]


@pytest.mark.parametrize("out_dtype", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, out_dtype):
    model = seeded(MODELS["plain"])
    check(pixels_of(dtype, (50, 61, 3)), model, tile_size=24, halo=2, overlap=5, out_dtype=out_dtype)


@pytest.mark.parametrize("model_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [*DTYPES, "bfloat16"])
def test_tensors_and_model_dtypes(dtype, model_dtype):
    source = torch.from_numpy(pixels_of("float32" if dtype == "bfloat16" else dtype, (3, 40, 51)))
    image = source.to(getattr(torch, dtype))
    check(image, seeded(MODELS["plain"]), tile_size=24, halo=2, dtype=model_dtype, value_range=(-1, 1))


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("name", MODELS)
def test_blends_and_boundaries(name, blend, boundary):
    model = seeded(MODELS[name])
    if name == "valid":
        boundary = "reflect"  # the only one it can have
    for overlap, batch in [(0, 1), (7, 3), (19, 2)]:
        options = {"tile_size": 28, "overlap": overlap, "phase": model.phase, "batch_size": batch}
        check(pixels_of("uint8", (57, 90, 3)), model, halo=8, blend=blend, boundary=boundary, **options)


@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque", "channel"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_and_alpha(channels, alpha):
    model = seeded(lambda: Chain(2, channels=channels if alpha == "channel" else 3, scale=2))
    image = pixels_of("uint8", (40, 50, channels))
    check(image, model, tile_size=24, halo=4, alpha=alpha)
    check(np.stack([image, image[::-1]]), model, tile_size=24, halo=4, alpha=alpha)
    check(torch.from_numpy(image).permute(2, 0, 1), model, tile_size=24, halo=4, alpha=alpha)


def test_strides_and_memory_that_must_not_be_written():
    image = pixels_of("uint16", (90, 131, 4))
    model = seeded(MODELS["plain"])
    for view in (image[::2, ::-1, :3], image.transpose(1, 0, 2)[:, ::3, 1:]):
        view.flags.writeable = False
        check(view, model, tile_size=24, halo=2)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    tile=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    overlap=st.integers(0, 4),
    blend=st.sampled_from(BLENDS),
    native=st.booleans(),
    batch=st.integers(1, 5),
)
def test_any_combination(name, size, tile, overlap, blend, native, batch):
    model = seeded(MODELS[name])
    boundary = "native" if native and name != "valid" else "reflect"
    options = {"blend": blend, "boundary": boundary, "batch_size": batch, "phase": model.phase}
    check(pixels_of("uint8", (*size, 3)), model, halo=9, tile_size=tile, overlap=overlap, **options)


# ---- parts -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.tuples(st.integers(27, 90), st.integers(27, 90)),
    halo=st.integers(0, 20),
    phase=st.sampled_from([1, 2, 3, 8]),
    scale=st.sampled_from(["1", "4", "3/2", "1/2", "2/3"]),
    boundary=st.sampled_from(["reflect", "native"]),
)
def test_the_arithmetic_of_kernels_is_the_plan(size, tile, halo, phase, scale, boundary):
    plan = plan_tiles(size, tile_size=tile, halo=halo, phase=phase, scale=scale, boundary=boundary)
    for axis in (0, 1):
        starts, kept = plan.core.starts(axis), plan.core.kept(axis)
        for i in range(plan.grid[axis]):
            tile = plan[i * plan.grid[1]] if axis == 0 else plan[i]
            assert torch_verbs._start(starts, i) == tile.window[axis]
            start, stop, origin = torch_verbs._kept(kept, i)
            assert (start, stop) == plan.core.keep(axis, i)
            assert start - origin == tile.crop[axis]


@given(st.lists(st.sampled_from([1.0, 2.0, 0.25, 0.5, 0.75]), min_size=1, max_size=60).map(lambda v: v * 3))
def test_spelled(values):
    wanted = np.array(values, np.float32)
    np.testing.assert_array_equal(spelled(wanted, torch.device("cpu")).numpy(), wanted)


def test_batches_are_balanced_and_all_of_one_shape():
    shapes = []
    model = seeded(MODELS["plain"])

    def watched(windows):
        shapes.append(tuple(windows.shape))
        return model(windows)

    image = pixels_of("uint8", (70, 110, 3))
    for engine in ("host", "torch"):
        shapes.clear()
        restore_tiled(
            image, watched, device="cpu", tile_size=24, halo=2, overlap=4, batch_size=7, engine=engine, scale=1
        )
        plan = plan_tiles(image.shape, tile_size=24, halo=2, overlap=4)
        assert len(plan) % 7
        assert set(shapes) == {(plan.batch(7), 3, *plan.window)}
        assert len(shapes) == -(-len(plan) // 7)


def test_the_self_test_passes_on_the_cpu_and_can_fail():
    assert differing(torch_verbs, torch.device("cpu")) == []

    class Off:
        read_tiles = staticmethod(lambda w, i, *rest: torch_verbs.read_tiles(w, i.roll(1, 2), *rest))
        accumulate = staticmethod(lambda b, o, wy, wx, *rest: torch_verbs.accumulate(b, o, wy, wx * 1.0001, *rest))

        @staticmethod
        def finish_rows(rows, *rest):
            torch_verbs.finish_rows(rows, *rest)
            rows.narrow(1, 3, 1).add_(2)

    results = list(compare(Off, torch.device("cpu")))
    assert len(results) == 23
    assert not any(result.fine for result in results)


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_engines_are_refused_where_they_cannot_serve():
    image = pixels_of("uint8", (20, 20, 3))
    model = seeded(MODELS["plain"])
    with pytest.raises(ValueError, match="engine must be one of 'host', 'torch', 'mps', not 'metal'"):
        restore_tiled(image, model, engine="metal")
    with pytest.raises(ValueError, match="engine must not be 'mps' for a model on cpu"):
        restore_tiled(image, model, engine="mps")


def test_the_environment_chooses_unless_the_option_does(monkeypatch):
    image, model, seen = pixels_of("uint8", (20, 20, 3)), seeded(MODELS["plain"]), []
    verbs = torch_verbs.read_tiles
    monkeypatch.setattr(torch_verbs, "read_tiles", lambda *args: seen.append(1) or verbs(*args))
    monkeypatch.setenv("HALOTILE_ENGINE", "torch")
    restore_tiled(image, model)
    assert seen
    seen.clear()
    restore_tiled(image, model, engine="host")
    assert not seen
    monkeypatch.setenv("HALOTILE_ENGINE", "metal")
    with pytest.raises(ValueError, match="HALOTILE_ENGINE must be one of 'host', 'torch', 'mps', not 'metal'"):
        restore_tiled(image, model)


# ---- what the self-test sees -----------------------------------------------------------------------------------------


def with_read(change):
    """read_tiles with changed arguments."""
    return "read", lambda *args: torch_verbs.read_tiles(*change(list(args)))


def replaced(index, make):
    def change(args):
        args[index] = make(args[index])
        return args

    return change


def after_read(change):
    def read(windows, *rest):
        torch_verbs.read_tiles(windows, *rest)
        change(windows)

    return "read", read


def with_sum(change):
    return "accumulate", lambda *args: torch_verbs.accumulate(*change(list(args)))


def with_end(change):
    return "finish", lambda *args: torch_verbs.finish_rows(*change(list(args)))


def rounded_by(rounding):
    def finish(rows, band, ny, nx, bad, y, x, band_x, peak, gain, offset, clamp):
        torch_verbs.finish_rows(rows, band.clone(), ny, nx, bad.clone(), y, x, band_x, peak, gain, offset, clamp)
        exact = torch.empty(rows.shape, dtype=torch.float32)
        torch_verbs.finish_rows(exact, band, ny, nx, bad, y, x, band_x, peak, gain, offset, clamp)
        if rows.dtype == torch.uint8:
            rows.copy_(rounding(exact).clamp(0, peak).to(torch.uint8))

    return "finish", finish


def one_unit_up(windows):
    windows.copy_(torch.nextafter(windows.float(), torch.tensor(1e9)).to(windows.dtype))


def shifted_strip(strip):
    return [strip[0] + 1, strip[1] + 1] if strip[0] else strip


MUTANTS = {
    "first tile ignored": with_read(replaced(6, lambda first: 0)),
    "tiles in a row": with_read(replaced(7, lambda across: across + 1)),
    "strip": with_read(replaced(3, shifted_strip)),
    "offset": with_read(replaced(10, lambda offset: offset if offset else 0.25)),
    "gain": with_read(replaced(9, lambda gain: 1.0)),
    "peak": with_read(replaced(8, lambda peak: 1.0)),
    "longer ignored": with_read(replaced(4, lambda rows: [*rows[:3], 0])),
    "one window alone": after_read(lambda windows: windows.zero_() if len(windows) == 1 else None),
    "one channel alone": after_read(lambda windows: windows.zero_() if windows.shape[1] == 1 else None),
    "one unit up": after_read(one_unit_up),
    "the last column": after_read(lambda windows: windows[..., -1].zero_()),
    "first tile of a sum": with_sum(replaced(8, lambda first: 0)),
    "a tile dropped": with_sum(replaced(1, lambda outputs: outputs[:-1])),
    "weights of rows": with_sum(replaced(2, lambda wy: wy + 0.125)),
    "weights of columns": with_sum(replaced(3, lambda wx: wx + 0.125)),
    "the band's first column": with_sum(replaced(5, lambda band_x: band_x - 1 if band_x else 0)),
    "the box": with_sum(replaced(4, lambda box: [box[0], box[1], box[2] - 1, box[3]])),
    "stored, not added": ("accumulate", lambda band, *rest: torch_verbs.accumulate(band.zero_(), *rest)),
    "rows of the normaliser": with_end(replaced(2, lambda ny: ny.roll(1))),
    "columns of the normaliser": with_end(replaced(3, lambda nx: nx * 2)),
    "not clamped": with_end(replaced(11, lambda clamp: False)),
    "always clamped": with_end(replaced(11, lambda clamp: True)),
    "gain of the end": with_end(replaced(9, lambda gain: 1.0)),
    "half up": rounded_by(lambda exact: (exact + 0.5).floor()),
    "truncated": rounded_by(torch.floor),
    "sums are left": ("finish", lambda rows, band, *rest: torch_verbs.finish_rows(rows, band.clone(), *rest)),
    "nothing is counted": with_end(replaced(4, torch.clone)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_self_test_sees(name):
    verb, mutant = MUTANTS[name]
    full = {"read": "read_tiles", "finish": "finish_rows"}.get(verb, verb)
    verbs = {each: staticmethod(getattr(torch_verbs, each)) for each in torch_verbs.__all__}
    found = differing(type("Mutant", (), verbs | {full: staticmethod(mutant)}), torch.device("cpu"))
    assert found
    assert all(kernel.startswith(verb) for kernel in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torchs_defaults_change_nothing(dtype):
    image, model = pixels_of("uint8", (50, 61, 3)), seeded(MODELS["plain"])
    want = restore_tiled(image, model, tile_size=24, halo=2)
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device("meta")
        assert_same(restore_tiled(image, model, tile_size=24, halo=2, engine="torch"), want)
        assert differing(torch_verbs, torch.device("cpu")) == []
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_axes_of_one_pixel_may_run_backwards():
    model = seeded(lambda: Chain(2, channels=1))
    for image in (pixels_of("uint8", (20, 30, 1))[..., ::-1], pixels_of("uint8", (1, 30, 1))[::-1]):
        check(image, model, tile_size=16, halo=2)
        out = [np.zeros(image.shape, np.uint8)[::-1, :, ::-1] if image.shape[0] == 1 else None for _ in "ab"]
        if out[0] is not None:
            for engine, target in zip(("host", "torch"), out, strict=True):
                restore_tiled(image, model, tile_size=16, halo=2, engine=engine, out=target)
            assert_same(*out)


def test_sparse_outputs_are_refused():
    image = pixels_of("uint8", (20, 30, 3))
    for engine in ("host", "torch"):
        with pytest.raises(ModelOutputError, match=r"layout torch\.sparse_coo"):
            restore_tiled(image, lambda windows: windows.to_sparse(), device="cpu", engine=engine)
