# SPDX-License-Identifier: MIT
"""Quality figures: by hand, by known values, and beside scikit-image."""

import json
import math
import sys

import numpy as np
import pytest

from halotile import cli, metrics, plan_tiles
from halotile.metrics import compare, heatmap, largest_difference, mae, psnr, seam_score, ssim

KINDS = ["uint8", "uint16", "float32", "float64", "float16"]


def noise(rng, shape, dtype="uint8"):
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(height=96, width=128, channels=3, seed=0):
    """Like a photo: some low frequencies and a little noise; float64 in 0 to 1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    planes = [np.sin(y * (1 + c) + c) + np.cos(x * 1.7 + y * c) for c in range(channels)]
    return 0.5 + 0.2 * np.stack(planes, -1) + 0.01 * random.normal(size=(height, width, channels))


# ---- psnr, mae, largest ----------------------------------------------------------------------------------------------


def test_psnr_of_known_values():
    a = np.zeros((4, 5), np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + np.uint8(255)) == 0
    assert psnr(a, a + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    b = a.copy()
    b[0, 0] = 255  # one of twenty
    assert psnr(a, b) == pytest.approx(10 * math.log10(20))
    assert psnr(np.zeros((4, 5), np.float32), np.full((4, 5), 0.1, np.float32)) == pytest.approx(20, abs=1e-5)
    assert psnr(np.zeros((4, 5), np.float32), np.ones((4, 5), np.float32), data_range=10) == pytest.approx(20)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(13, 17), (13, 17, 3), (2, 13, 17, 3)])
def test_figures_by_hand(rng, dtype, shape):
    a, b = noise(rng, shape, dtype), noise(rng, shape, dtype)
    white = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    difference = a.astype(float) - b.astype(float)
    assert psnr(a, b) == pytest.approx(20 * math.log10(white) - 10 * math.log10((difference**2).mean()))
    assert mae(a, b) == pytest.approx(abs(difference).mean())
    found = largest_difference(a, b)
    assert found.value == abs(difference).max()
    at = {2: (found.row, found.column), 3: (found.row, found.column, found.channel)}
    at[4] = (found.image, *at[3])
    assert abs(difference)[at[len(shape)]] == found.value


@pytest.mark.parametrize("dtype", [*KINDS, "bfloat16"])
def test_tensors_are_as_arrays(rng, dtype):
    torch = pytest.importorskip("torch")
    if dtype == "bfloat16":
        first, second = (torch.from_numpy(noise(rng, (3, 20, 24), "float32")).bfloat16() for _ in range(2))
        a, b = (tensor.float().numpy().transpose(1, 2, 0) for tensor in (first, second))
    else:
        a, b = noise(rng, (20, 24, 3), dtype), noise(rng, (20, 24, 3), dtype)
        first, second = (torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in (a, b))
    assert psnr(first, second) == pytest.approx(psnr(a, b))
    assert mae(first, second) == pytest.approx(mae(a, b))
    assert largest_difference(first, second) == largest_difference(a, b)
    assert seam_score(first, ([10], [8])) == pytest.approx(seam_score(a, ([10], [8])))
    np.testing.assert_array_equal(heatmap(first, second)[0], heatmap(a, b)[0])


def test_what_is_not_finite():
    a = np.zeros((4, 5), np.float32)
    b = a.copy()
    b[2, 3] = np.nan
    assert math.isnan(psnr(a, b)) and math.isnan(mae(a, b))
    assert largest_difference(a, b)[1:] == (0, 2, 3, 0)
    b[2, 3] = np.inf
    assert psnr(a, b) == -math.inf and largest_difference(a, b).value == math.inf
    assert (heatmap(a, b)[0][2, 3] == metrics.VIRIDIS[-1]).all()
    text = json.dumps(compare(a, b).as_json(), allow_nan=False)
    assert json.loads(text)["psnr"] is None


@pytest.mark.parametrize("measure", [psnr, mae, ssim, largest_difference, heatmap, compare])
def test_what_cannot_be_compared(measure):
    a = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"one shape, not \(20, 30, 3\) and \(20, 31, 3\)"):
        measure(a, np.zeros((20, 31, 3), np.uint8))
    with pytest.raises(ValueError, match="one dtype, not uint8 and uint16"):
        measure(a, a.astype(np.uint16))
    with pytest.raises(TypeError, match="must be a NumPy array, a torch tensor, a Pillow image, or a zarr"):
        measure(a, [1])


def test_bad_options():
    a = np.zeros((4, 5), np.uint8)
    for white in (0, -1, math.nan, True):
        with pytest.raises(ValueError, match="data_range must be a number above 0, 'max'"):
            psnr(a, a, data_range=white)
    with pytest.raises(ValueError, match="scale must be a number above 0, not 0"):
        heatmap(a, a, scale=0)
    with pytest.raises(ValueError, match="must be single ones"):
        heatmap(np.zeros((2, 4, 5, 3)), np.zeros((2, 4, 5, 3)))


# ---- ssim ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
@pytest.mark.parametrize("channels", [None, 3])
def test_ssim_is_that_of_scikit_image(rng, dtype, channels):
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    white = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    a = smooth() if channels else smooth()[..., 0]
    b = a + rng.normal(0, 0.03, a.shape)
    a, b = ((np.clip(image, 0, 1) * white).astype(dtype) for image in (a, b))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": white}
    expected = similarity(a, b, channel_axis=-1 if channels else None, **options)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-12)
    assert 0.2 < expected < 0.99


def test_ssim_of_known_values(rng):
    pytest.importorskip("skimage")
    a = noise(rng, (20, 30))
    assert ssim(a, a) == pytest.approx(1)
    # Of two flat images only the first factor is left: (2 m n + C1) / (m m + n n + C1) with C1 = (0.01 * 255)**2.
    one, other = np.full((20, 30), 100, np.uint8), np.full((20, 30), 50, np.uint8)
    constant = (0.01 * 255) ** 2
    assert ssim(one, other) == pytest.approx((2 * 5000 + constant) / (10000 + 2500 + constant))


def test_ssim_by_hand(rng):
    """At one pixel, with Wang's own window of 11 pixels."""
    pytest.importorskip("skimage")
    a, b = noise(rng, (11, 11), "float64"), noise(rng, (11, 11), "float64")
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    means = [(weight * image).sum() for image in (a, b)]
    variances = [(weight * image**2).sum() - mean**2 for image, mean in zip((a, b), means, strict=True)]
    both = (weight * a * b).sum() - means[0] * means[1]
    one, two = 0.01**2, 0.03**2
    expected = (2 * means[0] * means[1] + one) * (2 * both + two)
    expected /= (means[0] ** 2 + means[1] ** 2 + one) * (sum(variances) + two)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)  # scikit-image leaves a border out: one pixel remains


def test_ssim_needs_scikit_image_and_some_pixels(monkeypatch):
    a = np.zeros((10, 30), np.uint8)
    with pytest.raises(ValueError, match=r"at least 11 pixels a side for SSIM, not 10x30"):
        ssim(a, a)
    assert compare(a, a).ssim is None
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    b = np.zeros((30, 30), np.uint8)
    with pytest.raises(ImportError, match=r"pip install 'halotile\[metrics\]'"):
        ssim(b, b)
    assert compare(b, b).ssim is None and "needs scikit-image" in str(compare(b, b))


# ---- seams -----------------------------------------------------------------------------------------------------------


def test_seam_score_by_hand():
    """Steps of 0 and 1 in turn beside one of 9: every number here can be followed on paper."""
    steps = np.array([0, 1] * 10, float)
    steps[10] = 9  # into row 10; its neighbours are 1: a gradient difference of 8, elsewhere 1
    column = np.cumsum(steps)
    assert seam_score(np.repeat(column[:, None], 6, 1), ([10], [])) == pytest.approx(8)
    assert seam_score(np.repeat(column[None], 6, 0), ([], [10])) == pytest.approx(8)


def test_a_slope_has_no_seams_and_a_flat_image_neither():
    y, x = np.mgrid[:40, :50]
    assert seam_score((2 * y + 3 * x).astype(np.uint8), ([20], [20, 30])) == 1
    flat = np.zeros((40, 50), np.uint8)
    assert seam_score(flat, ([], [])) == seam_score(flat, ([0, 40], [1])) == 1
    flat[20:] = 1
    assert seam_score(flat, ([20], [])) == math.inf


@pytest.mark.parametrize(("step", "least"), [(0.03, 1.4), (0.05, 2)])
def test_a_synthetic_seam_shows(step, least):
    plan = plan_tiles((96, 128), tile_size=48, halo=8, overlap=0)
    clean = smooth()
    scores = [seam_score(smooth(seed=seed), plan) for seed in range(8)]
    assert np.mean(scores) == pytest.approx(1, abs=0.05)
    assert max(abs(score - 1) for score in scores) < 0.25
    seamed = clean.copy()
    for tile in plan:
        keep = tile.keep
        seamed[keep.y : keep.y_stop, keep.x : keep.x_stop] += step * ((tile.row + tile.column) % 2)
    assert seam_score(seamed, plan) > least
    elsewhere = plan_tiles((96, 128), tile_size=40, halo=8, overlap=0)
    assert abs(seam_score(seamed, elsewhere) - 1) < 0.25


def test_seams_of_tiles_without_enough_halo():
    """What the score is for: a blur of tiles that do not know their neighbours."""
    from halotile import restore_tiled

    def blur(windows):
        padded = np.pad(windows, ((0, 0), (0, 0), (6, 6), (6, 6)), constant_values=0.5)
        sums = sum(padded[:, :, y : y + windows.shape[2]] for y in range(13)) / 13
        return sum(sums[..., x : x + windows.shape[3]] for x in range(13)) / 13

    image = smooth().astype(np.float32)
    options = {"tile_size": 48, "overlap": 0}
    plan = plan_tiles(image.shape, halo=0, **options)
    good = seam_score(restore_tiled(image, blur, halo=8, **options), plan_tiles(image.shape, halo=8, **options))
    bad = seam_score(restore_tiled(image, blur, halo=0, **options), plan)
    assert bad > 3 * good and good < 1.5


def test_edges_that_are_none():
    image = np.zeros((40, 50), np.uint8)
    with pytest.raises(ValueError, match=r"edges must lie within 0 to 40 along rows, not \[41\]"):
        seam_score(image, ([41], []))
    with pytest.raises(ValueError, match=r"results of 80x100 \(height x width\), not 40x50"):
        seam_score(image, plan_tiles((40, 50), scale=2))


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_heatmap():
    a = np.zeros((3, 4, 3), np.uint8)
    b = a.copy()
    b[1, 2] = 0, 7, 3
    picture, scale = heatmap(a, b)
    assert (picture.shape, picture.dtype, scale) == ((3, 4, 3), np.uint8, 7)
    assert tuple(picture[1, 2]) == metrics.VIRIDIS[-1] and tuple(picture[0, 0]) == metrics.VIRIDIS[0]
    assert heatmap(a, b, scale=14)[1] == 14
    assert tuple(heatmap(a, b, scale=14)[0][1, 2]) == tuple(metrics._viridis()[128])
    assert (heatmap(a, a)[0] == metrics.VIRIDIS[0]).all() and heatmap(a, a)[1] == 0


def test_colours_are_viridis_and_grow_evenly():
    table = metrics._viridis()
    red, green, blue = (table.astype(float) / 255).T
    light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    steps = np.diff(np.cbrt(light[::8]))  # as L* is
    assert (steps > 0).all() and steps.max() < 4 * steps.mean()
    matplotlib = pytest.importorskip("matplotlib")
    theirs = np.rint(matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255)
    assert np.abs(table - theirs).mean() < 2 and np.abs(table - theirs).max() < 20


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path, monkeypatch, rng):
    files = pytest.importorskip("halotile.files.picture")
    pytest.importorskip("pyvips")
    monkeypatch.chdir(tmp_path)
    a = noise(rng, (45, 70, 3))
    b = np.clip(a.astype(int) + rng.integers(-3, 4, a.shape), 0, 255).astype(np.uint8)
    b[30, 60, 1] = a[30, 60, 1] ^ 128
    files.write_image("a.png", a)
    files.write_image("b.png", b)
    return a, b


def run(*arguments):
    try:
        return cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code


def test_compare(pair, capsys):
    pytest.importorskip("skimage")
    assert run("compare", "a.png", "b.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"psnr            {psnr(*pair):.4f} dB"
    assert lines[1] == f"ssim            {ssim(*pair):.6f}"
    assert lines[3] == "largest         128, at row 30, column 60, channel 1"
    assert len(lines) == 4


def test_compare_json_and_limits(pair, capsys):
    tiles = ("--tile", 32, "--halo", 4, "--overlap", 0)
    assert run("compare", "a.png", "b.png", "--json", *tiles) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["psnr"] == pytest.approx(psnr(*pair)) and found["size"] == [70, 45] and found["equal"] is False
    plan = plan_tiles((45, 70), tile_size=32, halo=4, overlap=0)
    assert found["seam_score"] == {"a": seam_score(pair[0], plan), "b": seam_score(pair[1], plan)}
    assert run("compare", "a.png", "b.png", "--fail-below", psnr(*pair) + 0.01) == 1
    assert run("compare", "a.png", "b.png", "--fail-below", psnr(*pair) - 0.01) == 0
    capsys.readouterr()
    assert run("compare", "a.png", "a.png", "--json", "--fail-below", 100) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], found["psnr"]) == (True, None)


def test_compare_draws(pair, capsys):
    from halotile.files.picture import read_image

    assert run("compare", "a.png", "b.png", "--heatmap", "heat.png") == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "heat.png: differences from 0 (dark blue) to 128 of 255 (yellow)"
    )
    np.testing.assert_array_equal(read_image("heat.png").pixels, heatmap(*pair)[0])
    assert run("compare", "a.png", "b.png", "--heatmap", "heat.png") == 2
    assert run("compare", "a.png", "b.png", "--heatmap", "heat.png", "--force") == 0
    assert run("compare", "a.png", "b.png", "--heatmap", "heat.gif") == 2


def test_compare_of_8_and_16_bits(pair, capsys):
    from halotile.files.picture import write_image

    write_image("deep.png", pair[0].astype(np.uint16) * 257)
    assert run("compare", "a.png", "deep.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True


def test_what_compare_refuses(pair, capsys):
    from halotile.files.picture import write_image

    write_image("c.png", pair[0][:40])
    write_image("grey.png", pair[0][..., 0])
    for arguments, message in (
        (
            ("a.png", "c.png"),
            "a.png is 70x45 with 3 channels, c.png is 70x40 with 3 channels: both must be the same",
        ),
        (("a.png", "grey.png"), "grey.png is 70x45 with 1 channels"),
        (("a.png", "none.png"), "none.png: No such file"),
        (("a.png", "b.png", "--tile-size", 32, "--scale", 4), "--scale 4: no input size gives 70x45"),
        (("a.png", "b.png", "--tile-size", 0), "tile_size must be from 1"),
        (("a.png", "b.png", "--fail-below", "x"), "argument --fail-below: invalid float value: 'x'"),
    ):
        assert run("compare", *arguments) == 2
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1


@pytest.mark.parametrize("name", ["a", "b"])
def test_errors_name_the_argument(name):
    images = {"a": np.zeros((20, 30, 3), np.uint8), "b": np.zeros((20, 30, 3), np.uint8)} | {name: np.zeros((0, 30, 3))}
    with pytest.raises(ValueError, match=rf"^{name} must not be empty, not shape"):
        metrics.psnr(**images)
    with pytest.raises(TypeError, match=rf"^{name} must be a NumPy array"):
        metrics.largest_difference(**images | {name: [1]})
    with pytest.raises(ValueError, match=rf"^{name} of shape \(13, 40, 40\) would have"):
        metrics.ssim(**{"a": np.zeros((40, 40), np.uint8), "b": np.zeros((40, 40)), name: np.zeros((13, 40, 40))})
