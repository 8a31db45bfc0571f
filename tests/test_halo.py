# SPDX-License-Identifier: MIT
"""halo="exact", halo="auto", phase=None and error_curve: what inspection finds is used, and said."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import halotile  # noqa: E402
from halotile import SeamWarning, TiledRestorer, error_curve, inspect_model, plan_tiles, restore_tiled  # noqa: E402

from .architectures import Coordinates, Noisy  # noqa: E402
from .networks import Chain, Strided, on_arrays, seeded  # noqa: E402
from .reference import whole  # noqa: E402

IMAGE = np.random.default_rng(0).random((150, 131, 3), np.float32)
LARGE = np.random.default_rng(0).random((450, 390, 3), np.float32)


def whole_image(model, halo, image=IMAGE):
    planes = image.transpose(2, 0, 1)
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
    got = restorer(LARGE)
    run = restorer.last_run
    assert run.how == "measured"
    assert max(run.halo) == 16
    assert run.bound <= 0.5 / 255
    assert "the receptive field is 20" in run.why
    assert np.abs(got - whole_image(model, 20, LARGE)).max() <= 0.5 / 255
    for other in ({"tolerance": 0}, {"tile_size": 1000}):  # nothing less will do; one tile: exact costs nothing
        restorer = TiledRestorer(model, **options | other)
        restorer.knowledge.info = run.model
        restorer(LARGE)
        assert restorer.last_run.how == "exact"
        assert max(restorer.last_run.halo) == 20


def test_auto_does_not_measure_where_that_costs_more_than_the_exact_halo(monkeypatch):
    monkeypatch.setattr("halotile.auto.halo.measured_curve", None)
    restorer = TiledRestorer(seeded(lambda: Chain(20, width=4)), halo="auto", tile_size=24)
    restorer(IMAGE[:60, :60])
    assert (restorer.last_run.how, max(restorer.last_run.halo)) == ("exact", 20)
    assert "to measure smaller halos would cost more" in restorer.last_run.why


def test_a_given_halo_is_judged_when_the_model_is_known():
    model = seeded(lambda: Strided(2))
    inspect_model(model)
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


def warned(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if issubclass(one.category, SeamWarning)]


def test_a_halo_that_is_too_small_is_reported_once():
    model = seeded(lambda: Chain(6))
    image = (IMAGE * 255).astype(np.uint8)
    assert not warned(lambda: restore_tiled(image, model, halo=2))  # nobody knows the model yet
    inspect_model(model)
    restorer = TiledRestorer(model, halo=2, tile_size=48)
    (text,) = warned(lambda: restorer(image))
    assert text.startswith("halo=2 is below the receptive field of 6: up to ")
    assert text.endswith(" of 255 from exact where it was measured")
    assert restorer.last_run.how == "given"
    worst = np.abs(restorer(image).astype(float) - restore_tiled(image, model, halo=6, tile_size=48)).max()
    assert 0.1 * worst < restorer.last_run.bound + 1
    assert not warned(lambda: restorer(image))
    assert not warned(lambda: restore_tiled(image, model, halo=2))
    assert not warned(lambda: restore_tiled(image, model, halo=6))
    assert len(warned(lambda: restore_tiled(image, model, halo=3))) == 1


def test_a_phase_that_is_wrong_is_reported_once():
    model = seeded(lambda: Strided(4))
    inspect_model(model)
    restorer = TiledRestorer(model, halo=16, phase=2, tile_size=48, overlap=0)
    image = IMAGE[:96, :96]  # in windows that the model takes all the same
    (text,) = warned(lambda: restorer(image))
    assert text.startswith("phase=2 is no multiple of the model's, 4: tiles differ")
    assert (restorer.last_run.how, restorer.last_run.bound) == ("given", None)
    assert not warned(lambda: restorer(image))
    assert not warned(lambda: restore_tiled(IMAGE, model, halo=16, phase=8, tile_size=48))


def test_exact_takes_the_phase_that_is_needed():
    """Whatever phase was given; a multiple of that, too."""
    model = seeded(lambda: Strided(4))
    want = whole_image(model, 13)
    for phase, used in ((1, 4), (None, 4), (6, 12)):
        restorer = TiledRestorer(model, halo="exact", phase=phase, tile_size=48)
        np.testing.assert_allclose(restorer(IMAGE), want, rtol=0, atol=2e-6)
        assert (restorer.last_run.how, restorer.last_run.phase) == ("exact", (used, used))
    with pytest.raises(ValueError, match="phase must be given for this model"):
        restore_tiled(IMAGE, seeded(Coordinates), halo="exact")


def test_without_a_phase_nothing_is_said_to_be_exact():
    """The model depends on where a pixel is, so tiles differ from the whole image at any halo."""
    model = seeded(Coordinates)
    inspect_model(model)
    restorer = TiledRestorer(model, halo=8, phase=1, tile_size=48)
    restorer(IMAGE)
    assert restorer.last_run.how == "given" and "its phase was not found: " in restorer.last_run.why


def test_what_is_exact_is_not_blended():
    model = seeded(lambda: Chain(2))
    inspect_model(model)
    plan = TiledRestorer(model, halo=8, phase=None, tile_size=48)
    plan(IMAGE)
    assert plan.last_run.how == "exact"
    calls = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            calls.append(x.shape)
            return x

    restore_tiled(IMAGE, Counting(), halo="exact", tile_size=75, boundary="native")
    assert calls[-1] == (1, 3, 75, 66)  # four windows, nothing shared


def test_verified_runs():
    model = seeded(lambda: Chain(4))
    restorer = TiledRestorer(model, halo="exact", tile_size=48, verify=5)
    assert not warned(lambda: restorer(IMAGE))
    assert restorer.last_run.verified.windows == 5
    assert restorer.last_run.verified.largest < 1e-5
    assert restorer.last_run.how == "exact"
    wrong = TiledRestorer(seeded(lambda: Chain(4)), halo=0, overlap=0, tile_size=48, verify=5)
    (text,) = warned(lambda: wrong(IMAGE))
    assert text.startswith("verify=5: above the tolerance of 0.00196")
    assert "worst at row" in text
    assert wrong.last_run.verified.largest > 0.002
    assert wrong.last_run.verified.edge_ratio > 3
    with pytest.raises(ValueError, match="verify must be 0 for iter_bands"):
        halotile.iter_bands(IMAGE, model, verify=1)
    out = np.empty_like(IMAGE)
    restorer(IMAGE, out=out)
    assert restorer.last_run.verified.largest < 1e-5
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    restorer(tensor)
    assert restorer.last_run.verified.largest < 1e-5


def test_the_run_says_what_it_did_as_bands_too():
    restorer = TiledRestorer(seeded(lambda: Chain(2)), halo="exact")
    for _ in restorer.iter_bands(IMAGE):
        pass
    assert restorer.last_run.how == "exact"
    assert str(restorer.last_run) == "halo 2, phase 1, exact: the receptive field"


def test_what_is_doubtful_is_not_called_exact():
    circular = seeded(lambda: Chain(2, mode="circular"))
    for boundary, how in (("native", "unverified"), ("reflect", "exact")):
        restorer = TiledRestorer(circular, halo="exact", tile_size=48, boundary=boundary)
        restorer(IMAGE)
        assert restorer.last_run.how == how
        assert ("opposite edge" in restorer.last_run.why) is (how == "unverified")
    noise_alone = TiledRestorer(lambda windows: np.roll(windows, 1, 3), halo="exact", tile_size=48)
    noise_alone(IMAGE)
    assert noise_alone.last_run.how == "unverified"
    assert "noise alone" in noise_alone.last_run.why
    random = TiledRestorer(Noisy(), halo="exact", tile_size=48)
    random(IMAGE)
    assert random.last_run.how == "unverified"


def test_a_run_that_fails_to_verify_is_doubtful():
    class Late(torch.nn.Module):
        """Is not what it was when it was inspected."""

        def __init__(self):
            super().__init__()
            self.inner = seeded(lambda: Chain(1))

        def forward(self, x):
            return self.inner(x)

    model = Late()
    restorer = TiledRestorer(model, halo="exact", tile_size=48, verify=6)
    restorer.inspected()
    model.inner = seeded(lambda: Chain(4))
    (text,) = warned(lambda: restorer(IMAGE))
    assert text.startswith("verify=6: above the tolerance")
    run = restorer.last_run
    assert run.how == "unverified"
    assert run.bound == run.verified.largest > 0.002
    assert "but differences of" in run.why


def test_sides_that_are_completed_are_told():
    model = seeded(lambda: Strided(4))
    restorer = TiledRestorer(model, halo="exact", phase=None, tile_size=48, boundary="native")
    restorer(IMAGE)
    assert restorer.last_run.how == "exact"
    assert "completed by reflection" in restorer.last_run.why
    restorer(IMAGE[:148, :128])
    assert "completed by reflection" not in restorer.last_run.why


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
    curve = error_curve(image, model, halos=(0, 3, 8, 10, 16), phase=None)
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
    again = error_curve(image, model, halos=(0, 3, 8, 10, 16), phase=None)
    assert again == curve
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert error_curve(tensor, model, halos=(0, 3, 8, 10, 16), phase=None) == curve
    with pytest.raises(TypeError, match="halos= are what is tried"):
        error_curve(image, model, halo=3)


def test_a_curve_of_nothing():
    model = seeded(lambda: Chain(1))
    for options in ({"halos": [-1]}, {"halos": []}, {"halos": [2.5]}, {"windows": 0}):
        with pytest.raises((ValueError, TypeError), match=r"halos must|windows must"):
            error_curve(IMAGE, model, **options)


def test_the_curve_is_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    curve = error_curve(IMAGE, seeded(lambda: Chain(3)), halos=(0, 1, 3))
    axes = curve.plot()
    assert [line.get_label() for line in axes.lines][:3] == ["largest", "99.9 %", "mean"]
    assert axes.get_yscale() == "log"
    assert curve.plot(axes) is axes
