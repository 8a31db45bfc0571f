# SPDX-License-Identifier: MIT
"""The assertions of halotile.testing about two images and about devices: what is close passes, what is not is told."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import plan_tiles, restore_tiled  # noqa: E402
from halotile.check.close import TOLERANCES, distance_to_edge  # noqa: E402
from halotile.testing import (  # noqa: E402
    ImagesDiffer,
    assert_close,
    assert_exact,
    assert_matches_whole,
    assert_on_device,
    assert_psnr,
    assert_seamless,
    assert_ssim,
)

from .networks import Chain, seeded  # noqa: E402

IMAGE = np.random.default_rng(1).random((60, 50, 3), np.float32)
BYTES = (IMAGE * 255).astype(np.uint8)


# ---- two images ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_tolerances_go_by_the_dtype(dtype):
    rtol, atol = TOLERANCES[dtype]
    expected = torch.full((3, 8, 9), 100 if dtype.startswith("uint") else 0.5).to(getattr(torch, dtype))
    near, far = expected.clone(), expected.clone()
    allowed = atol + rtol * float(expected[0, 0, 0])
    step = {"uint8": 1, "uint16": 1}.get(dtype, allowed * 0.9)
    near[1, 2, 3] = (expected[1, 2, 3].double() + step).to(expected.dtype)
    far[1, 2, 3] = (expected[1, 2, 3].double() + (2 if dtype.startswith("uint") else allowed * 1.6)).to(expected.dtype)
    assert_close(near, expected)
    with pytest.raises(ImagesDiffer, match=r"mismatched values: 1 / 216 \(0.5%\)\n.* row 2, column 3, channel 1\n"):
        assert_close(far, expected)


def test_nan_and_infinity():
    holes = IMAGE.copy()
    holes[3, 4, 1], holes[5, 5, 0] = np.nan, np.inf
    assert_close(holes, holes.copy())
    with pytest.raises(ImagesDiffer, match="greatest absolute difference: inf at row 3, column 4, channel 1"):
        assert_close(holes, np.where(np.isnan(holes), np.float32(0), holes))
    with pytest.raises(ImagesDiffer, match="mismatched values: 1 / 9000"):
        assert_close(holes, np.where(np.isinf(holes), np.float32(9), holes))


def test_the_worst_place_and_the_tile_edge():
    plan = plan_tiles(IMAGE.shape, tile_size=20, halo=2, overlap=0)
    edges = {end for tile in plan for end in (tile.keep.x, tile.keep.x_stop)} - {0, 50}
    column = min(edges) + 3
    wrong = IMAGE.copy()
    wrong[3, column, 2] += 1
    near = min([abs(3 - end) for end in {tile.keep.y_stop for tile in plan} - {60}] + [3])
    with pytest.raises(
        ImagesDiffer, match=rf"row 3, column {column}, channel 2, {near} pixels from the nearest tile edge"
    ):
        assert_close(wrong, IMAGE, plan=plan)
    assert distance_to_edge(plan, 3, min(edges)) == distance_to_edge(plan, 3, min(edges) - 1) == 0
    assert distance_to_edge(plan_tiles(IMAGE.shape, tile_size=100), 3, 3) is None


def test_what_cannot_be_compared():
    with pytest.raises(AssertionError, match="the shapes differ"):
        assert_close(IMAGE, IMAGE[1:])
    with pytest.raises(AssertionError, match="the dtypes differ: float32, expected uint8"):
        assert_close(IMAGE, BYTES)
    with pytest.raises(AssertionError, match="both be arrays or both be tensors"):
        assert_close(IMAGE, torch.from_numpy(IMAGE))
    with pytest.raises(ValueError, match="rtol and atol must both be given"):
        assert_close(IMAGE, IMAGE, atol=1)


def test_psnr_and_ssim():
    worse = BYTES.copy()
    worse[10:20, 10:20] = 255 - worse[10:20, 10:20]
    psnr = 10 * math.log10(255**2 / np.mean((worse.astype(float) - BYTES) ** 2))
    assert assert_psnr(worse, BYTES, psnr - 0.01) == pytest.approx(psnr)
    with pytest.raises(
        ImagesDiffer, match=rf"PSNR {psnr:.6g} dB is below 60 dB\ngreatest absolute difference: \d+ at row 1"
    ):
        assert_psnr(worse, BYTES, 60)
    assert assert_psnr(worse, BYTES, 60, crop_border=20) == math.inf
    assert assert_ssim(BYTES, BYTES, 1 - 1e-9) == pytest.approx(1)
    with pytest.raises(ImagesDiffer, match=r"SSIM 0\.\d+ is below 0.99") as caught:
        assert_ssim(worse, BYTES, 0.99)
    assert caught.value.heatmap().shape == (60, 50, 3)
    with pytest.raises(ValueError, match="larger"):
        assert_ssim(BYTES, BYTES, 0.5, crop_border=25 - 5)


# ---- whole images ----------------------------------------------------------------------------------------------------


def own_tiles(image, model, halo):
    """A loop over tiles as people write it: two halves, with a halo."""
    whole = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        left, right = model(whole[..., : 25 + halo])[..., :25], model(whole[..., 25 - halo :])[..., halo:]
    return torch.cat([left, right], -1)[0].permute(1, 2, 0).numpy()


def test_a_loop_of_ones_own_is_judged():
    model = seeded(lambda: Chain(3)).eval()
    assert_matches_whole(own_tiles(IMAGE, model, 3), IMAGE, model)
    with pytest.raises(ImagesDiffer, match="the result is not whole-image inference\nmismatched") as caught:
        assert_matches_whole(own_tiles(IMAGE, model, 2), IMAGE, model)
    worst = int(str(caught.value).split("column ")[1].split(",")[0])
    assert worst in (24, 25)


@pytest.mark.parametrize("boundary", ["native", "reflect"])
def test_a_plan_says_what_the_reference_is(boundary):
    model = seeded(lambda: Chain(3, scale=2)).eval()
    options = {"tile_size": 24, "overlap": 0, "boundary": boundary}
    for image in (BYTES, torch.from_numpy(BYTES).permute(2, 0, 1)):
        plan = plan_tiles((60, 50), halo=3, scale=2, **options)
        assert_matches_whole(restore_tiled(image, model, halo=3, **options), image, model, plan=plan)
    plan = plan_tiles((60, 50), halo=1, scale=2, **options)
    with pytest.raises(ImagesDiffer, match="pixels from the nearest tile edge"):
        assert_matches_whole(restore_tiled(IMAGE, model, halo=1, **options), IMAGE, model, plan=plan)
    with pytest.raises(TypeError, match="halo must not be given"):
        assert_matches_whole(BYTES, BYTES, model, halo=3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_tolerances_of_its_own(dtype):
    model = seeded(lambda: Chain(3)).to(getattr(torch, dtype)).eval()
    assert_exact(IMAGE, model, halo=3, tile_size=24)
    assert_seamless(IMAGE, model, halo=3, tile_size=24, windows=2)
    with pytest.raises(AssertionError, match="above the tolerance of"):
        assert_exact(IMAGE, model, halo=1, tile_size=24)


# ---- devices ---------------------------------------------------------------------------------------------------------

TILES = {"tile_size": 24, "halo": 3, "overlap": 0, "memory_format": "contiguous"}


class Peeking(torch.nn.Module):
    """A model that looks at its numbers on the host."""

    def __init__(self, how):
        super().__init__()
        self.body, self.how = seeded(lambda: Chain(2)), how

    def forward(self, x):
        y = self.body(x)
        if self.how == "item":
            return y * (1.0 if y.max().item() > 9 else 2.0)
        if self.how == "cpu":
            return torch.relu(y.cpu()).to(y.device)
        return y + torch.ones(3, 1, 1).to(y.device)


def test_a_model_that_stays_on_the_device(fake_mps):
    model = copy.deepcopy(seeded(lambda: Chain(3))).to("fakemps")
    for image in (BYTES, IMAGE, IMAGE.astype(np.float64)):
        found = assert_on_device(image, model, **TILES)
        assert found.up <= image.nbytes and found.down <= image.nbytes and found.by_model == ()
    fake_mps.reset_counts()
    found = assert_on_device(BYTES, model, **TILES)
    counts = fake_mps.counts()  # of both runs
    assert (found.up, found.down) == (counts["upload_bytes"] / 2, counts["download_bytes"] / 2) == (BYTES.nbytes,) * 2
    there = torch.from_numpy(BYTES).permute(2, 0, 1).contiguous().to("fakemps")
    found = assert_on_device(there, model, **TILES)
    assert (found.up, found.down) == (0, 0)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("item", r"to the host: item of float32 \(\)"),
        ("cpu", r"to the host: float32 \(1, 3, \d+, \d+\)"),
        ("ones", r"to the device: float32 \(3, 1, 1\)"),
    ],
)
def test_a_model_that_leaves_the_device_is_named_by_its_line(fake_mps, how, said):
    model = Peeking(how).to("fakemps").eval()
    with pytest.raises(AssertionError, match=r"more than the image and its result crosses:\n") as caught:
        assert_on_device(BYTES, model, **TILES)
    first = str(caught.value).splitlines()[1]
    assert __file__ in first
    line = int(first.split(f"{__file__}:")[1].split(":")[0])
    text = Path(__file__).read_text().splitlines()[line - 1]
    assert {"item": ".item()", "cpu": ".cpu()", "ones": "torch.ones"}[how] in text
    assert re.search(said, first), first


def test_windows_that_are_cut_on_the_host_are_found(fake_mps):
    fine = copy.deepcopy(seeded(lambda: Chain(3))).to("fakemps")
    with pytest.raises(ValueError, match="model must not run on the CPU"):
        assert_on_device(BYTES, lambda x: x, **TILES)
    with pytest.raises(AssertionError, match=r"bytes go up to the device, and 9000 have to"):
        assert_on_device(BYTES, fine, engine="host", **TILES)
