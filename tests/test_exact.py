# SPDX-License-Identifier: MIT
"""The oracle: tiled equals whole-image inference, over models, scales, strides, odd sizes and every option."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, restore_tiled  # noqa: E402

from . import reference  # noqa: E402
from .networks import Chain, Half, Strided, ThreeHalves, on_arrays, seeded  # noqa: E402

BLENDS = ["average", "linear", "cosine", "gaussian"]
TOLERANCE = 2e-6  # outputs are of order 1

MODELS = {
    "plain": lambda: Chain(3),
    "x2": lambda: Chain(2, scale=2),
    "x3": lambda: Chain(2, scale=3),
    "x4": lambda: Chain(2, scale=4),
    "reflect padding": lambda: Chain(2, mode="reflect"),
    "stride 2": lambda: Strided(2),
    "stride 4": lambda: Strided(4),
    "stride 2, x2": lambda: Strided(2, scale=2),
    "1/2": Half,
    "3/2": ThreeHalves,
}


def image_of(height, width, channels=3):
    return np.random.default_rng(height * 1000 + width).random((height, width, channels), np.float32)


def whole(model, image, halo, boundary):
    planes = image.transpose(2, 0, 1)
    output = reference.whole(
        planes, on_arrays(model), halo=halo, phase=model.phase, scale=model.scale, boundary=boundary
    )
    return output.transpose(1, 2, 0)


def check(model, image, halo=None, **options):
    halo = model.radius if halo is None else halo
    options = {"phase": model.phase, "boundary": "reflect"} | options
    got = restore_tiled(image, model, halo=halo, **options)
    want = whole(model, image, halo, options["boundary"])
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, boundary):
    model = seeded(MODELS[name])
    for size in [(61, 83), (64, 64), (40, 121), (33, 32)]:
        check(model, image_of(*size), tile_size=24, overlap=4, boundary=boundary)


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("overlap", [0, 1, 7, 12, 20, "auto"])
def test_blends_overlaps_boundaries(blend, overlap, boundary):
    model = seeded(lambda: Strided(2))
    check(model, image_of(57, 75), tile_size=24, overlap=overlap, blend=blend, boundary=boundary)


@pytest.mark.parametrize("boundary", ["reflect", "native"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_sizes_around_every_multiple(stride, boundary):
    model = seeded(lambda: Strided(stride)) if stride > 1 else seeded(lambda: Chain(2))
    for height, width in itertools.product([1, 2, 15, 16, 17, 31, 33, 47, 48, 49], [1, 3, 16, 32, 50]):
        check(model, image_of(height, width), tile_size=16, overlap=4, boundary=boundary)


def test_sides_below_the_halo_and_tiles_above_the_image():
    model = seeded(lambda: Chain(3))
    for size in [(1, 1), (1, 50), (2, 3), (5, 64)]:
        check(model, image_of(*size), halo=40, tile_size=16, overlap=2)
        check(model, image_of(*size), halo=40, tile_size=10_000)
        check(model, image_of(*size), halo=40, tile_size=16, overlap=2, boundary="native")


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 1000])
def test_batches_and_their_remainders(batch):
    check(seeded(lambda: Chain(2)), image_of(70, 50), tile_size=16, overlap=4, batch_size=batch)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    tile=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    extra=st.integers(0, 6),
    overlap=st.integers(0, 4),
    blend=st.sampled_from(BLENDS),
    boundary=st.sampled_from(["reflect", "native"]),
    batch=st.integers(1, 4),
)
def test_any_combination(name, size, tile, extra, overlap, blend, boundary, batch):
    assume(not (name == "reflect padding" and boundary == "native" and min(size) < 2))  # torch cannot reflect one pixel
    model = seeded(MODELS[name])
    check(
        model,
        image_of(*size),
        halo=model.radius + extra,
        tile_size=tile,
        overlap=overlap,
        blend=blend,
        boundary=boundary,
        batch_size=batch,
    )


@pytest.mark.parametrize("name", ["plain", "stride 2", "x2"])
def test_a_halo_one_short_must_not_match(name):
    """The receptive field's outermost ring counts: the test itself can fail."""
    model = seeded(MODELS[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # no cancellation at the outermost taps
    image = image_of(60, 60)
    want = whole(model, image, model.radius, "reflect")
    options = {"tile_size": 20, "overlap": 0, "phase": model.phase}
    exact = restore_tiled(image, model, halo=model.radius, **options)
    np.testing.assert_allclose(exact, want, rtol=1e-5, atol=TOLERANCE)
    short = restore_tiled(image, model, halo=tight_radius(model) - model.phase, **options)
    assert abs(short - want).max() > 1e-3


def tight_radius(model):
    """How far an output pixel really sees, measured: the largest distance at which the input's gradient is not zero."""
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    reach = 0
    for phase in range(model.phase * 2):
        row = (48 + phase) * int(model.scale)
        model(image)[0, :, row, row].sum().backward()
        touched = image.grad.abs().sum((0, 1, 3)).nonzero()
        reach = max(reach, 48 + phase - touched.min().item(), touched.max().item() - 48 - phase)
        image.grad = None
    return reach


def test_a_wrong_phase_must_not_match():
    model = seeded(lambda: Strided(4))
    image = image_of(80, 80)
    wrong = restore_tiled(image, model, halo=26, tile_size=22, overlap=0, phase=1, scale=1)
    assert abs(wrong - whole(model, image, model.radius, "reflect")).max() > 1e-3


def test_valid_convolutions_take_their_loss_from_the_halo():
    model = seeded(lambda: Chain(3, valid=True))
    image = image_of(50, 70)
    planes = image.transpose(2, 0, 1)
    for halo, batch in [(3, 1), (4, 2), (9, 1)]:
        want = reference.whole(planes, on_arrays(model), halo=halo, trim=3).transpose(1, 2, 0)
        for tile in (16, 200):  # 200: one window, nearly square, where the scale could be mistaken
            got = restore_tiled(image, model, halo=halo, tile_size=tile, overlap=4, batch_size=batch)
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    square = image_of(40, 40)
    want = reference.whole(square.transpose(2, 0, 1), on_arrays(model), halo=4, trim=3).transpose(1, 2, 0)
    np.testing.assert_allclose(restore_tiled(square, model, halo=4), want, rtol=0, atol=TOLERANCE)


def test_valid_convolutions_with_a_scale():
    model = seeded(lambda: Chain(2, scale=2, valid=True))
    image = image_of(44, 61)
    want = reference.whole(image.transpose(2, 0, 1), on_arrays(model), halo=5, scale=2, trim=4).transpose(1, 2, 0)
    got = restore_tiled(image, model, halo=5, tile_size=20, overlap=2)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_valid_convolutions_need_halo_and_reflection():
    model = seeded(lambda: Chain(3, valid=True))
    with pytest.raises(ValueError, match=r"halo must be at least.*halo 2.*trim 3"):
        restore_tiled(image_of(50, 50), model, halo=2)
    with pytest.raises(ValueError, match="native"):
        restore_tiled(image_of(50, 50), model, halo=8, boundary="native")


def test_results_do_not_depend_on_how_the_image_is_cut():
    model = seeded(lambda: Strided(2))
    image = image_of(90, 110)
    results = [
        restore_tiled(image, model, halo=model.radius, phase=2, tile_size=tile, overlap=overlap, blend=blend)
        for tile, overlap, blend in [(200, 0, "average"), (16, 0, "average"), (32, 12, "gaussian"), (24, 20, "linear")]
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0, atol=TOLERANCE)


def test_a_restorer_serves_many_sizes():
    model = seeded(lambda: Chain(2, scale=2))
    restorer = TiledRestorer(model, tile_size=20, halo=2, overlap=2)
    for size in [(50, 40), (7, 90), (1, 1), (50, 40)]:
        image = image_of(*size)
        np.testing.assert_allclose(restorer(image), whole(model, image, 2, "reflect"), rtol=0, atol=TOLERANCE)
