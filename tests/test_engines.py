# SPDX-License-Identifier: MIT
"""The engine `torch` gives the same bits as `host`, here on the CPU: every dtype, layout, blend, boundary and alpha.

Its verbs are what the Metal kernels are compared with, so they are held to the C core themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from halotile import plan_tiles, restore_tiled, torch_verbs  # noqa: E402
from halotile.device import kept_numbers, spelled  # noqa: E402
from halotile.selftest import compare, differing  # noqa: E402

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
        starts, kept = plan.core.starts(axis), kept_numbers(plan, axis)
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
        restore_tiled(image, watched, device="cpu", tile_size=24, halo=2, overlap=4, batch_size=7, engine=engine)
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
    assert seen.pop()
    restore_tiled(image, model, engine="host")
    assert not seen
    monkeypatch.setenv("HALOTILE_ENGINE", "metal")
    with pytest.raises(ValueError, match="HALOTILE_ENGINE must be one of 'host', 'torch', 'mps', not 'metal'"):
        restore_tiled(image, model)
