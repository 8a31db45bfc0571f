# SPDX-License-Identifier: MIT
"""Inspection of published models with their real weights: its claims against numbers worked out by hand, exact, and no
larger than need be."""

import copy
import functools
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import restore_tiled  # noqa: E402
from halotile.inspection import Field  # noqa: E402
from halotile.inspection.known import known_model  # noqa: E402

from . import reference  # noqa: E402
from .networks import on_arrays  # noqa: E402
from .real_models import REAL, drawn, load_real, picture  # noqa: E402

TILE = 24


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept by halotile")


@pytest.fixture(autouse=True)
def cache(monkeypatch, kept):
    """A folder for all tests here, so that each model is inspected once."""
    monkeypatch.setenv("HALOTILE_CACHE", str(kept))


@functools.cache
def inspected(name):
    """What inspect_model finds out about a model, and the seconds of a processor it takes. Kept for halo="exact"."""
    model = load_real(name)
    began = time.process_time()
    return known_model(model), time.process_time() - began


def whole(model, image, known, halo):
    """Whole-image inference, (height, width, 3)."""
    options = {"halo": halo, "scale": known.scale, "trim": known.trim}
    return reference.whole(image.transpose(2, 0, 1), on_arrays(model), **options).transpose(1, 2, 0)


@pytest.mark.parametrize("name", REAL)
def test_what_is_known_is_found(name):
    info, seconds = inspected(name)
    known = REAL[name]
    assert info.receptive_field == info.local_field == Field(*[known.radius] * 4)
    assert (info.scale, info.phase, info.multiple) == (known.scale, (1, 1), (1, 1))
    assert info.trim == (known.trim, known.trim)
    assert (info.in_channels, info.out_channels) == (3, 3)
    assert info.global_operations == () and info.deterministic and info.clamps is False
    assert info.doubts == ()
    for method in ("structure", "propagation", "falsify"):
        assert method in info.how["receptive_field"]
    assert seconds < 12  # 1 to 3 on an idle machine


@pytest.mark.parametrize("name", REAL)
def test_the_halo_found_is_exact(name):
    """Photos only: on noise the real SPAN answers with values of hundreds, and rounding is in proportion."""
    known, model = REAL[name], load_real(name)
    image = picture(34, 41)
    want = whole(model, image, known, known.radius)
    got = restore_tiled(image, model, halo="exact", phase=None, tile_size=TILE, overlap=0)
    assert want.std() > 0.1 and want.min() > -0.5 and want.max() < 1.5  # it is a picture
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", REAL)
def test_no_less_sees_all(name):
    """By gradients in float64: what real weights take from the outermost pixels may be less than the rounding of
    float32 (SPAN: a millionth of the whole), but it is not nothing. No pixel farther away has any influence."""
    known, model = REAL[name], copy.deepcopy(load_real(name)).double()
    side = 2 * known.radius + 5
    image = torch.from_numpy(picture(side, side).transpose(2, 0, 1)[None].astype(np.float64)).requires_grad_()
    output, here, scale = model(image), side // 2, int(known.scale)
    reach = [0, 0, 0, 0]
    for at in range(here * scale - known.trim, (here + 1) * scale - known.trim):
        (gradient,) = torch.autograd.grad(output[0, :, at, at].sum(), image, retain_graph=True)
        rows, columns = gradient[0].abs().amax(0).nonzero(as_tuple=True)
        found = (here - columns.min(), columns.max() - here, here - rows.min(), rows.max() - here)
        reach = [max(far, int(one)) for far, one in zip(reach, found, strict=True)]
    assert reach == [known.radius] * 4


def test_a_pixel_less_is_wrong():
    """Real weights take little from the outermost pixels, but more than rounding is."""
    known, model = REAL["SRVGGNetCompact x4"], load_real("SRVGGNetCompact x4")
    image = picture(28, 40)
    options = {"phase": 1, "tile_size": TILE, "overlap": 0, "scale": known.scale}
    exact, short = (restore_tiled(image, model, halo=known.radius - less, **options) for less in (0, 1))
    want = whole(model, image, known, known.radius)
    assert np.abs(exact - want).max() < 5e-6
    assert np.abs(short - want).max() > 2e-5


def test_a_pixel_less_is_refused_where_borders_are_lost():
    """UpConv7 has no padding: each window comes back 14 pixels of the enlarged image smaller at each end, and its halo
    must bring them along. That is the whole of its field, so there is no smaller halo at all, and none natively."""
    model, image = load_real("UpConv7 photo x2"), picture(48, 64)
    assert tuple(model(torch.zeros(1, 3, 40, 50)).shape) == (1, 3, 2 * 40 - 28, 2 * 50 - 28)
    with pytest.raises(ValueError, match="halo must be at least what the model's valid convolutions take"):
        restore_tiled(image, model, halo=6, tile_size=TILE, overlap=0)
    with pytest.raises(ValueError, match="native"):
        restore_tiled(image, model, halo=7, tile_size=TILE, overlap=0, boundary="native")


def test_the_picture_of_tests_without_scikit_image():
    image = drawn(61, 70)
    assert image.shape == (61, 70, 3) and image.dtype == np.float32 and 0 <= image.min() < image.max() <= 1
    assert np.array_equal(image, drawn(61, 70)) and image.std() > 0.1
