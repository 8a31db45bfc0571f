# SPDX-License-Identifier: MIT
"""verify(), assert_seamless() and assert_exact(): what is exact passes, what is not is found, and where."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import ModelOutputError, TiledRestorer, restore_tiled  # noqa: E402
from halotile.check.verify import remake, verify  # noqa: E402
from halotile.run.remade import beyond_rounding  # noqa: E402
from halotile.run.report import Verification  # noqa: E402
from halotile.testing import assert_exact, assert_seamless  # noqa: E402

from .networks import Chain, Half, Strided, ThreeHalves, on_arrays, seeded  # noqa: E402

IMAGE = np.random.default_rng(0).random((110, 97, 3), np.float32)
BYTES = (IMAGE * 255).astype(np.uint8)
NOISE = 1e-6  # of white: float32 rounding

MODELS = {
    "plain": lambda: Chain(3),
    "x2": lambda: Chain(2, scale=2),
    "stride 4": lambda: Strided(4),
    "1/2": Half,
    "3/2": ThreeHalves,
}


class Mean(torch.nn.Module):
    """Looks at everything."""

    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)


class Noise(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def options_of(model, **options):
    return {"halo": model.radius, "phase": model.phase, "tile_size": 32, "overlap": 0} | options


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_exact_passes(name, boundary):
    model = seeded(MODELS[name])
    options = options_of(model, boundary=boundary)
    assert verify(IMAGE, model, windows=4, **options).seamless(NOISE)
    assert assert_seamless(IMAGE, model, windows=2, **options).seamless(NOISE)
    assert assert_exact(IMAGE, model, **options).windows == 1


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("name", ["plain", "x2"])
def test_a_halo_one_short_is_found_at_a_tile_edge(name, boundary):
    model = seeded(MODELS[name])
    options = options_of(model, halo=model.radius - 1, boundary=boundary)
    found = verify(IMAGE, model, **options)
    assert found.largest > 1e-3
    assert found.edge_ratio > 100
    if boundary == "native":  # else halos end at the image's sides as well
        assert found.edge_distance < model.scale
    assert found.halo == (model.radius - 1,) * 2
    with pytest.raises(AssertionError, match=rf"halo={model.radius}, the model's receptive field") as caught:
        assert_seamless(IMAGE, model, **options)
    for part in (r"worst at row \d+", "nearest tile edge", "times what they are elsewhere", "phase 1"):
        caught.match(part)
    with pytest.raises(AssertionError, match="tiles do not equal whole-image inference"):
        assert_exact(IMAGE, model, **options)


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({"boundary": "native"}, "model(image)"),
        ({"boundary": "native", "phase": 4}, "crop(model(reflect_pad(image, top=0, bottom=3, left=0, right=3)))"),
        ({"boundary": "reflect"}, "crop(model(reflect_pad(image, 5)))"),
        ({"boundary": "reflect", "halo": (5, 7)}, "crop(model(reflect_pad(image, 5x7)))"),
        ({"boundary": "reflect", "phase": 4}, "crop(model(reflect_pad(image, top=8, bottom=7, left=8, right=7)))"),
    ],
)
def test_which_whole_image_was_compared_is_said(options, whole):
    model, image = seeded(MODELS["plain"]), IMAGE[:61, :77]
    options = options_of(model) | {"halo": 5} | options
    found = assert_exact(image, model, **options)
    assert found.whole == whole
    assert f"the whole image at once, {whole}, beside a run with halo" in str(found)
    with pytest.raises(AssertionError) as caught:
        assert_exact(image, model, **options | {"halo": 1})
    first = str(caught.value).splitlines()[0]
    assert first.startswith("tiles do not equal whole-image inference, ")
    assert f"with boundary='{options['boundary']}'" in first
    assert verify(image, model, windows=1, **options).whole is None


def test_worst_lies_at_the_edge_that_is_named():
    model = seeded(MODELS["plain"])
    options = options_of(model, halo=2, boundary="native", tile_size=(1000, 50))
    remade = remake(IMAGE, TiledRestorer(model, **options).knowledge)
    found = remade.compared(remade.places(8, 0))
    edges = {edge for tile in remade.plan for edge in (tile.keep.x, tile.keep.x_stop)} - {0, 97}
    assert remade.edges[0].size == 0
    assert found.edge_distance == 0
    assert {found.worst[1], found.worst[1] + 1} & edges


def test_a_wrong_phase_is_found():
    model = seeded(lambda: Strided(2))
    image = np.random.default_rng(3).random((206, 206, 3), np.float32)
    options = {"halo": 8, "tile_size": 30, "overlap": 0, "boundary": "native"}  # even windows, odd origins
    assert verify(image, model, phase=2, **options).seamless(NOISE)
    assert not verify(image, model, phase=1, **options).seamless(1e-3)
    with pytest.raises(AssertionError, match="phase=2, the model's"):
        assert_seamless(image, model, phase=1, **options)


def test_a_global_operation_is_found():
    with pytest.raises(AssertionError, match="no halo helps: the model sees the whole image in"):
        assert_seamless(IMAGE, Mean(), halo=8, tile_size=32)
    with pytest.raises(AssertionError, match="rounds more than the tolerance allows"):  # not to be inspected
        assert_seamless(IMAGE, on_arrays(Mean()), halo=8, tile_size=32)
    with pytest.raises(AssertionError, match="not deterministic"):
        assert_seamless(IMAGE, Noise(), halo=8, tile_size=32)


def test_one_changed_pixel_is_found():
    model = seeded(MODELS["x2"])
    options = options_of(model)
    result = restore_tiled(IMAGE, model, **options)
    remade = remake(IMAGE, TiledRestorer(model, **options).knowledge, result)
    box = remade._box(remade.places(8, 0)[-1].place)
    row, column = box.y + box.height // 2, box.x + box.width // 2
    result[row, column, 1] += 0.25
    found = verify(IMAGE, model, result, **options)
    assert found.worst == (row, column, 1)
    assert found.largest == pytest.approx(0.25, abs=1e-5)
    assert found.p999 < NOISE
    assert not found.seamless(0.2)
    result[row, column, 1] = np.nan
    assert verify(IMAGE, model, result, **options).largest == math.inf


def test_a_shifted_result_is_found_everywhere():
    model = seeded(MODELS["plain"])
    options = options_of(model)
    result = np.roll(restore_tiled(IMAGE, model, **options), 1, axis=1)
    found = verify(IMAGE, model, result, **options)
    assert found.largest > 0.05
    assert 0.5 < found.edge_ratio < 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rounding_to_integers_is_no_difference(dtype):
    model = seeded(MODELS["plain"])
    white = np.iinfo(dtype).max
    image = (IMAGE * white).astype(dtype)
    for extra in ({}, {"value_range": (-1, 1)}):
        options = options_of(model, **extra)
        result = restore_tiled(image, model, **options)
        found = verify(image, model, result, **options)
        assert found.white == white
        assert found.largest < NOISE * white * 2
        moved = np.where(result < white // 2, result + 1, result - 1).astype(dtype)
        assert 0.4 < verify(image, model, moved, **options).mean <= 1.01


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("engine", ["host", "torch"])
def test_tensors(dtype, engine):
    model = seeded(MODELS["plain"])
    image = torch.from_numpy(BYTES.transpose(2, 0, 1).copy())
    image = image if dtype == torch.uint8 else (image / 255).to(dtype)
    options = options_of(model, engine=engine)
    found = verify(image, model, windows=3, **options)
    assert found.largest < NOISE * found.white * 2
    short = verify(image, model, windows=3, **options | {"halo": 1})
    assert short.largest > found.white * 1e-3
    assert short.edge_ratio > 10


def test_layouts_and_several_images():
    model = seeded(MODELS["x2"])
    options = options_of(model, windows=3)
    assert verify(IMAGE[..., 0], model, **options).seamless(NOISE)
    assert verify(IMAGE.transpose(2, 0, 1), model, layout="CHW", **options).seamless(NOISE)
    several = np.stack([IMAGE, IMAGE[::-1]])
    result = restore_tiled(several, model, halo=2, tile_size=32)
    assert verify(several, model, result, **options).seamless(NOISE)
    result[1] = 0
    assert verify(several, model, result, **options).image == 1


@pytest.mark.parametrize("alpha", ["restore", "resize", "opaque"])
def test_alpha(alpha):
    model = seeded(MODELS["plain"])
    options = options_of(model, alpha=alpha)
    image = np.concatenate([BYTES, BYTES[::-1, :, :1]], axis=2)
    result = restore_tiled(image, model, **options)
    assert verify(image, model, result, **options).seamless(1e-3)
    result[..., 3] ^= 128
    found = verify(image, model, result, **options)
    assert found.seamless(1e-3) == (alpha != "restore")
    result[..., 2] ^= 128
    result[..., 3] ^= 128
    assert verify(image, model, result, **options).worst[2] == 2


def test_models_that_take_four_channels_and_grey_ones():
    four, grey = seeded(lambda: Chain(2, channels=4)), seeded(lambda: Chain(2, channels=1))
    image = np.concatenate([IMAGE, IMAGE[..., :1]], axis=2)
    assert verify(image, four, windows=3, **options_of(four)).seamless(NOISE)
    assert verify(image, four, windows=3, **options_of(four, alpha="channel")).seamless(NOISE)
    short = verify(IMAGE, grey, windows=3, **options_of(grey, halo=1))  # channel by channel
    assert short.edge_ratio > 100


def test_valid_convolutions():
    model = seeded(lambda: Chain(3, valid=True))
    assert assert_seamless(IMAGE, model, windows=3, **options_of(model)).seamless(NOISE)
    assert assert_exact(IMAGE, model, **options_of(model)).seamless(NOISE)


def test_small_and_narrow_images():
    model = seeded(lambda: Strided(4))
    for boundary in ("reflect", "native"):
        for size in [(1, 1), (3, 97), (97, 2), (70, 64), (33, 65)]:
            found = verify(IMAGE[: size[0], : size[1]], model, windows=5, **options_of(model, boundary=boundary))
            assert found.seamless(NOISE)
            assert 1 <= found.windows <= 5


def test_one_tile_has_no_edges():
    model = seeded(MODELS["plain"])
    found = verify(IMAGE, model, windows=3, halo=3, tile_size=512)
    assert found.edge_distance is None
    assert found.edge_ratio == 1
    assert "there is one tile" in str(found)
    for check in (assert_exact, assert_seamless):
        with pytest.raises(ValueError, match="pass a smaller tile_size"):
            check(IMAGE, model, halo=3)


def test_seeds_and_windows():
    model = seeded(MODELS["plain"])
    options = options_of(model, halo=2)
    result = restore_tiled(IMAGE, model, **options)
    first = verify(IMAGE, model, result, **options)
    assert first == verify(IMAGE, model, result, seed=0, **options)
    assert first.windows == 8
    assert first.reference == (22, 22)
    assert first != verify(IMAGE, model, result, seed=1, **options)
    remade = remake(IMAGE, TiledRestorer(model, **options).knowledge, result)
    boxes = [remade._box(window.place) for window in remade.places(8, 0)]
    crossed = [
        any((box.y < edge < box.y_stop) for edge in remade.edges[0])
        or any((box.x < edge < box.x_stop) for edge in remade.edges[1])
        for box in boxes
    ]
    assert sum(crossed) >= 4


def test_what_was_found_out_is_used():
    model = seeded(lambda: Chain(40, width=4))
    restorer = TiledRestorer(model, halo="auto", tile_size=48, tolerance=0.01)
    image = np.random.default_rng(3).random((400, 420, 3), np.float32)
    found = verify(image, restorer, windows=2)
    assert max(found.halo) < 40
    assert min(found.reference) >= 40
    assert found.seamless(0.01)
    strided = seeded(lambda: Strided(4))
    found = verify(IMAGE, strided, windows=2, halo="exact", phase=None, tile_size=32)
    assert found.phase == (4, 4)
    assert found.seamless(NOISE)


def test_edges_where_tiles_overlap():
    model = seeded(MODELS["plain"])
    for blend in ("average", "cosine"):
        found = verify(IMAGE, model, **options_of(model, halo=1, overlap=8, blend=blend))
        assert found.edge_ratio > 3


def test_what_is_refused():
    model = seeded(MODELS["plain"])
    result = restore_tiled(IMAGE, model, **options_of(model))
    cases = [
        ({"result": result[1:]}, ValueError, "result must have shape"),
        ({"result": torch.from_numpy(result)}, TypeError, "result must be of the image's kind"),
        ({"result": [1]}, TypeError, "result must be what restore_tiled returned"),
        ({"windows": 0}, ValueError, "windows must be from 1"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"halos": 3}, TypeError, r"there is no option .halos., did you mean .halo.\?; options are [a-z_, ]*compile$"),
    ]
    for options, kind, text in cases:
        with pytest.raises(kind, match=text):
            verify(IMAGE, model, **options_of(model) | options)
    with pytest.raises(TypeError, match="options must be those of the TiledRestorer"):
        verify(IMAGE, TiledRestorer(model), halo=3)
    with pytest.raises(TypeError, match="out_dtype must not be given"):
        assert_seamless(IMAGE, model, out_dtype="uint8")


@pytest.mark.parametrize("check", [assert_exact, assert_seamless])
def test_bad_tolerances(check):
    for value in ("a", -1, math.nan, True):
        with pytest.raises(ValueError, match="tolerance must be a number from 0 on, as a fraction of white"):
            check(seeded(lambda: Chain(1)), IMAGE, tolerance=value, tile_size=32)


def test_whole_means_the_models_own_statistics():
    """Not those that were held fixed for the tiles."""
    options = {"halo": "exact", "phase": None, "tile_size": 40}
    assert assert_exact(IMAGE, Mean(), global_stats="exact", **options).largest < 1e-5
    with pytest.raises(AssertionError, match="do not equal whole-image inference"):
        assert_exact(IMAGE, Mean(), global_stats="frozen", tolerance=1e-6, **options)


def test_windows_that_a_model_cannot_take():
    def squares(batch):  # 38 pixels are what the run's windows have
        return batch if batch.shape[2] == 38 else batch[:, :, 1:]

    with pytest.raises(ModelOutputError, match="the model made"):
        verify(np.zeros((96, 96, 3), np.float32), squares, halo=3, tile_size=32, overlap=0, scale=1)


def test_beyond_rounding():
    got = np.array([10.0, np.nan, np.nan, np.inf, np.inf])
    want = np.array([11.5, np.nan, 0, np.inf, 0])
    assert beyond_rounding(got, want, "uint8").tolist() == [1, 0, math.inf, 0, math.inf]
    assert beyond_rounding(got[:1], want[:1], "float32").tolist() == [1.5]


def test_it_can_be_read():
    found = Verification(0.5, 0.25, 0.125, (1, 2, 0), 3, math.inf, 255.0, 8, (4, 4), (2, 4), (28, 28))
    assert str(found).splitlines() == [
        "differences up to 0.5, 99.9 % within 0.25, mean 0.125 of 255",
        "worst at row 1, column 2, channel 0: 3 output pixels from the nearest tile edge",
        "near tile edges inf times what they are elsewhere",
        "8 windows with a halo of 28, beside a run with halo 4, phase 2x4",
    ]


def spoilt(which, image):
    """Exact but for one of several images."""
    result = restore_tiled(image, on_arrays(seeded(lambda: Chain(2))), halo=2, phase=1, tile_size=40, scale=1)
    result[which] += 0.25
    return result


@pytest.mark.parametrize("which", range(4))
def test_all_images_of_a_stack_are_compared(which):
    stack, model = np.stack([IMAGE[:64, :60] * (i + 1) / 4 for i in range(4)]), seeded(lambda: Chain(2))
    options = {"halo": 2, "phase": 1, "tile_size": 40}
    found = verify(stack, model, spoilt(which, stack), windows=8, **options)
    assert found.image == which and not found.seamless(0.2)
    assert f"worst at image {which}, row" in str(found)
    assert verify(stack, model, windows=8, **options).seamless(NOISE)
    assert verify(IMAGE, model, windows=2, **options).image is None


def test_exactness_is_asserted_of_every_image():
    class Fussy(torch.nn.Module):
        """Depends on where a window starts, for dark images alone."""

        def forward(self, x):
            ramp = torch.linspace(0, 1, x.shape[3])
            return torch.where(x.amax() < 0.3, x * ramp, x)

    stack = np.stack([IMAGE[:64, :60], IMAGE[:64, :60], IMAGE[:64, :60] / 4])
    options = {"halo": 2, "phase": 1, "tile_size": 40}
    assert assert_exact(stack[:2], Fussy(), **options).windows == 2
    with pytest.raises(AssertionError, match="worst at image 2, row"):
        assert_exact(stack, Fussy(), **options)
    restorer = TiledRestorer(Fussy(), verify=6, **options)
    with pytest.warns(UserWarning, match="worst at image 2"):
        restorer(stack)


def test_statistics_are_held_for_each_image_that_is_compared():
    stack = np.stack([IMAGE[:64, :60], IMAGE[:64, :60] / 4, 1 - IMAGE[:64, :60]])
    options = {"halo": 2, "phase": 1, "tile_size": 40, "global_stats": "exact"}
    found = verify(stack, Mean(), windows=6, **options)
    assert found.seamless(1e-5)
    assert assert_exact(stack, Mean(), **options).seamless(1e-5)
