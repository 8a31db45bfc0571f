# SPDX-License-Identifier: MIT
"""halo="exact", halo="auto", phase=None and error_curve: what inspection finds is used, and said."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import halotile  # noqa: E402
from halotile import TiledRestorer, error_curve, plan_tiles, restore_tiled  # noqa: E402

from .networks import Chain, Strided, on_arrays, seeded  # noqa: E402
from .reference import whole  # noqa: E402

IMAGE = np.random.default_rng(0).random((150, 131, 3), np.float32)


def whole_image(model, halo):
    planes = IMAGE.transpose(2, 0, 1)
    output = whole(planes, on_arrays(model), halo=halo, phase=model.phase, scale=model.scale, boundary="reflect")
    return output.transpose(1, 2, 0)


@pytest.mark.parametrize("make", [lambda: Chain(3), lambda: Chain(2, scale=2), lambda: Strided(4)])
def test_exact_is_exact_and_no_more(make):
    model = seeded(make)
    restorer = TiledRestorer(model, halo="exact", phase=None, tile_size=48)
    got = restorer(IMAGE)
    run = restorer.last_run
    assert run.how == "exact"
    assert run.bound == 0
    assert max(run.halo) <= model.radius
    assert run.phase == (model.phase, model.phase)
    np.testing.assert_allclose(got, whole_image(model, max(run.halo)), rtol=0, atol=2e-6)
    short = restore_tiled(IMAGE, model, halo=max(run.halo) - model.phase, phase=model.phase, tile_size=48, overlap=0)
    assert np.abs(short - whole_image(model, max(run.halo))).max() > 1e-5


def test_auto_takes_less_where_exact_is_dear():
    model = seeded(lambda: Chain(20, width=4))
    options = {"halo": "auto", "tile_size": 24}
    restorer = TiledRestorer(model, **options)
    got = restorer(IMAGE)
    run = restorer.last_run
    assert run.how == "measured"
    assert max(run.halo) == 16
    assert run.bound <= 0.5 / 255
    assert "the receptive field is 20" in run.why
    assert np.abs(got - whole_image(model, 20)).max() <= 0.5 / 255
    for other in ({"tolerance": 0}, {"tile_size": 1000}):  # nothing less will do; one tile: exact costs nothing
        restorer = TiledRestorer(model, **options | other)
        restorer._inspected = run.model
        restorer(IMAGE)
        assert restorer.last_run.how == "exact"
        assert max(restorer.last_run.halo) == 20


def test_a_given_halo_is_judged_when_the_model_is_known():
    model = seeded(lambda: Strided(2))
    restorer = TiledRestorer(model, halo=2, phase=None, tile_size=48)
    restorer(IMAGE)
    assert (restorer.last_run.how, restorer.last_run.phase) == ("given", (2, 2))
    assert "below the receptive field of 7" in restorer.last_run.why
    assert 0 < restorer.last_run.bound < 1
    restorer = TiledRestorer(model, halo=30, phase=None, tile_size=48)
    restorer(IMAGE)
    assert restorer.last_run.how == "exact"
    restorer = TiledRestorer(seeded(lambda: Chain(1)))
    restorer(IMAGE)
    assert (restorer.last_run.how, restorer.last_run.bound, restorer.last_run.model) == ("given", None, None)


def test_global_operations_are_named():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.InstanceNorm2d(8), torch.nn.Conv2d(8, 3, 3, padding=1)
    )
    with pytest.raises(ValueError, match=r"halo must be a number for this model, not 'exact': .* whole image in 1 \("):
        restore_tiled(IMAGE, model.eval(), halo="exact")


def test_bad_values():
    model = seeded(lambda: Chain(1))
    with pytest.raises(ValueError, match="halo must be 'exact', 'auto', a number or a pair"):
        restore_tiled(IMAGE, model, halo="all")
    for tolerance in (-1, "much", float("nan"), True):
        with pytest.raises(ValueError, match="tolerance must be a number from 0 on"):
            restore_tiled(IMAGE, model, halo="auto", tolerance=tolerance)
    for options in ({"halo": "exact"}, {"phase": None}):
        with pytest.raises(ValueError, match="halo and phase must be numbers here"):
            plan_tiles(IMAGE.shape, **options)


def test_the_error_curve():
    model = seeded(lambda: Strided(4))
    image = (IMAGE * 255).astype(np.uint8)
    curve = error_curve(model, image, halos=(0, 3, 8, 10, 16), phase=None)
    exact = halotile.inspect_model(model).halo[0]
    assert curve.exact
    assert curve.reference == exact
    assert curve.white == 255
    assert curve.largest[0] > curve.largest[2] > 0
    for halo, largest, p999, mean in zip(curve.halos, curve.largest, curve.p999, curve.mean, strict=True):
        assert largest >= p999 >= mean >= 0
        if halo >= exact:
            assert largest < 1e-3
    assert "the receptive field" in str(curve)
    again = error_curve(model, image, halos=(0, 3, 8, 10, 16), phase=None)
    assert again == curve
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert error_curve(model, tensor, halos=(0, 3, 8, 10, 16), phase=None) == curve
