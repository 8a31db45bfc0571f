# SPDX-License-Identifier: MIT
"""Published networks, as spandrel has them, with random weights: first calls, descriptors, and models left alone."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import TiledRestorer, error_curve, inspect_model, restore_tiled, restore_to, verify  # noqa: E402
from halotile.models.activations import largest_activation  # noqa: E402
from halotile.models.kinds import open_model  # noqa: E402

from .published import PUBLISHED, published, spandrel_imported  # noqa: E402
from .sampled import late  # noqa: E402
from .test_untouched import ACTIVITIES, Unchanged, quietly  # noqa: E402

IMAGE = np.random.default_rng(1).random((101, 83, 3), np.float32)
NOISE = {"DRUNet": 4}  # channels that a network takes, where that is not 3


def whole(model, image):
    """What the module makes of the image, whose sides it takes."""
    with torch.inference_mode():
        return model(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0].permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def descriptor():
    """spandrel's descriptor of a network."""
    with spandrel_imported():
        import spandrel

        def describe(name):
            model = published(name)
            return spandrel.ModelLoader().load_from_state_dict(model.state_dict())

        yield describe


@pytest.mark.parametrize("name", ["SPAN", "Compact", *late("DRCT", "SwinIR")])
def test_a_descriptor_is_a_model(descriptor, name, tmp_path):
    found, image = descriptor(name), IMAGE[:96, :80]
    with Unchanged(found.model):
        got = restore_tiled(image, found, tile_size=64, boundary="native")
        assert got.shape == (192, 160, 3)
        restorer = TiledRestorer(found, halo="exact", boundary="native", tile_size=64, verify=1)
        got = restorer(image)
        assert restorer.last_run.how == "exact"
        assert inspect_model(found).scale == 2
        assert restorer.options.needs.scale == 2
        restore_to(tmp_path / "out.npy", IMAGE, found, tile_size=64)
        assert verify(IMAGE, found, windows=1, tile_size=64, halo="exact").largest < 1e-3
        error_curve(IMAGE, found, halos=(8,))
    want = whole(found.model.eval(), image)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_descriptors_say_what_they_need(descriptor):
    found = descriptor("SCUNet")
    needs = TiledRestorer(found).options.needs
    assert (needs.multiple, needs.least[0]) == (
        found.size_requirements.multiple_of,
        max(found.size_requirements.minimum, found.size_requirements.multiple_of),
    )


def test_what_takes_a_mask_is_refused(descriptor):
    import spandrel

    mask = object.__new__(spandrel.MaskedImageModelDescriptor)
    mask._architecture = type("A", (), {"name": "LaMa", "id": "LaMa"})()
    with pytest.raises(ValueError, match="needs a mask in addition to the image"):
        restore_tiled(IMAGE, mask)


@pytest.mark.parametrize(
    "name", ["NAFNet", "SwinIR", "UpCunet2x", "DRUNet", *late("Swin2SR", "DRCT", "KBNet_s", "HAT")]
)
def test_a_first_call_needs_no_option(name):
    """The phase is found; what is farther from a tile's edge than the field is as in the whole image."""
    model = published(name)
    image = np.random.default_rng(2).random((*IMAGE.shape[:2], NOISE.get(name, 3)), np.float32)
    options = {"alpha": "channel"} if name in NOISE else {}
    restorer = TiledRestorer(model, **options)
    result = restorer(image)
    info = inspect_model(model)
    assert restorer.last_run.phase == tuple(info.phase)
    assert np.isfinite(result).all()
    if info.receptive_field is not None:
        tiled = TiledRestorer(model, tile_size=40, halo=info.halo, **options)(image)
        np.testing.assert_allclose(tiled, result, rtol=0, atol=1e-4 * np.abs(result).max())


@pytest.mark.slow
def test_what_fails_when_it_is_inspected_is_a_doubt():
    """RGT takes no windows that are long and thin."""
    info = inspect_model(published("RGT"))
    assert info.receptive_field is None
    assert any("the model raised" in doubt for doubt in info.doubts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert restore_tiled(IMAGE, published("RGT"), tile_size=64).shape == (202, 166, 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_estimating_leaves_them_alone(name):
    model = published(name)
    with Unchanged(model):
        opened = open_model(model, device=None, dtype=None, tensors=True)
        largest_activation(opened, (1, NOISE.get(name, 3), 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.parametrize("name", [one for one in PUBLISHED if one not in NOISE])
def test_they_are_left_alone(name, activity):
    if name in ("CRAFT", "OmniSR", "SCUNet", "DCTLSA") and activity != "inspect in inference mode":
        pytest.skip("minutes")
    model = published(name)
    with Unchanged(model):
        quietly(lambda: ACTIVITIES[activity](model))
