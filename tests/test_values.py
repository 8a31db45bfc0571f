# SPDX-License-Identifier: MIT
"""What values mean: white levels, ranges, data that is no picture, NaN, and pixels without data."""

import numpy as np
import pytest

from halotile import TiledRestorer, iter_bands, metrics, restore_tiled, restore_to, verify

OPTIONS = {"tile_size": 16, "halo": 4, "overlap": 3}


def seen_by(image, **options):
    """(smallest, largest) value that the model gets."""
    seen = []

    def model(x):
        seen.append((float(x.min()), float(x.max())))
        return x * 1

    result = restore_tiled(image, model, **OPTIONS | options)
    return min(low for low, _ in seen), max(high for _, high in seen), result


def counts(dtype="uint16", white=4095, shape=(40, 53, 3)):
    image = np.random.default_rng(0).integers(0, white + 1, shape).astype(dtype)
    image[0, 0], image[-1, -1] = 0, white
    return image


# ---- white -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "white", "level"),
    [
        ("uint16", "12bit", 4095),
        ("uint16", "12 bits", 4095),
        ("uint16", 10000, 10000),
        ("uint16", "max", 3000),
        ("uint8", 100, 100),
        ("float32", 255, 255),
        ("float32", "16bit", 65535),
        ("float64", "max", 3000),
        ("float16", "10bit", 1023),
    ],
)
def test_white_is_one_for_the_model_and_comes_back(dtype, white, level):
    image = counts(dtype, level)
    low, high, result = seen_by(image, white=white)
    assert (low, high) == (0, 1)
    assert result.dtype == image.dtype
    np.testing.assert_allclose(result, image, rtol=1e-3 if dtype == "float16" else 1e-6)


def test_the_model_gets_exactly_the_quotient():
    image = counts()
    got = []
    restore_tiled(image, lambda x: got.append(x.copy()) or x * 1, white="12bit", tile_size=64, halo=0, overlap=0)
    want = image.astype(np.float32) / np.float32(4095)
    np.testing.assert_array_equal(got[0][0].transpose(1, 2, 0), want)


def test_integers_are_clamped_to_white():
    result = restore_tiled(counts(), lambda x: x * 2, white="12bit", **OPTIONS)
    assert result.max() == 4095
    floats = restore_tiled(counts("float32"), lambda x: x * 2, white="12bit", **OPTIONS)
    assert floats.max() == 2 * 4095


def test_white_of_results_of_another_dtype():
    image = counts()
    assert restore_tiled(image, lambda x: x * 1, white="12bit", out_dtype="uint8", **OPTIONS).max() == 255
    assert restore_tiled(image, lambda x: x * 1, white="12bit", out_dtype="float32", **OPTIONS).max() == 1
    floats = restore_tiled(counts("float32", 255), lambda x: x * 1, white=255, out_dtype="float64", **OPTIONS)
    assert floats.max() == 255


def test_white_goes_with_value_range():
    low, high, result = seen_by(counts(), white="12bit", value_range=(-1, 1))
    assert (low, high) == (-1, 1)
    np.testing.assert_array_equal(result, counts())


def test_the_largest_value_of_a_stack_is_one_for_all():
    stack = np.stack([counts(), counts() // 2])
    _, high, result = seen_by(stack, white="max")
    assert high == 1
    np.testing.assert_array_equal(result, stack)


def test_a_black_image_has_its_dtypes_white():
    black = np.zeros((20, 20, 3), np.uint16)
    assert seen_by(black, white="max")[1] == 0
    low, high, _ = seen_by(np.full((20, 20), np.nan, np.float32), white="max", on_nonfinite="ignore")
    assert np.isnan(low) and np.isnan(high)


@pytest.mark.parametrize("white", [0, -1, "12", 12.5j, "0bit", "33bit", "bright", True, float("nan"), float("inf")])
def test_bad_whites_are_named(white):
    with pytest.raises(ValueError, match=r"white must be a number above 0, 'max', or bits such as '12bit'.*not "):
        restore_tiled(counts(), lambda x: x, white=white)


def test_a_white_that_the_dtype_cannot_hold():
    with pytest.raises(ValueError, match="white must be at most 255 for an image of uint8, not 4095"):
        restore_tiled(counts("uint8", 200), lambda x: x, white="12bit")


def test_alpha_above_white_is_refused():
    image = np.concatenate([counts(), np.full((40, 53, 1), 65535, np.uint16)], 2)
    with pytest.raises(ValueError, match="white must be at least 65535, which this image's alpha reaches, not 4095"):
        restore_tiled(image, lambda x: x, white="12bit")
    assert restore_tiled(image, lambda x: x * 1, white="12bit", alpha="channel", **OPTIONS).max() == 4095
    image[..., 3] = 4095
    np.testing.assert_array_equal(restore_tiled(image, lambda x: x * 1, white="12bit", **OPTIONS), image)


def test_white_on_every_engine_and_way_out(tmp_path):
    torch = pytest.importorskip("torch")
    image = counts()
    model = torch.nn.Conv2d(3, 3, 3, padding=1).eval()
    want = restore_tiled(image, model, white="12bit", out_dtype=None, engine="host", **OPTIONS)
    np.testing.assert_array_equal(restore_tiled(image, model, white="12bit", engine="torch", **OPTIONS), want)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    got = restore_tiled(tensor, model, white="12bit", **OPTIONS)
    np.testing.assert_array_equal(got.numpy().transpose(1, 2, 0), want)
    assert torch.equal(restore_tiled(tensor, model, white="max", **OPTIONS), got)
    bands = [rows for _, rows in iter_bands(image, model, white="12bit", **OPTIONS)]
    np.testing.assert_array_equal(np.concatenate(bands), want)
    np.save(tmp_path / "in.npy", image)
    for white in ("12bit", "max"):
        restore_to(tmp_path / "out.npy", tmp_path / "in.npy", model, white=white, **OPTIONS)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)


def test_verification_knows_white():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 3, padding=1).eval()
    found = verify(counts(), model, white="12bit", **OPTIONS)
    assert found.white == 4095 and found.largest < 1e-3
    restorer = TiledRestorer(model, white="12bit", halo="auto", tile_size=16, verify=2)
    restorer(counts())
    assert restorer.last_run.verified.white == 4095


def test_hidden_colours_of_twelve_bits_are_filled_below_white():
    image = np.zeros((200, 200, 4), np.uint16)
    image[..., :3], image[:4, :4, 3] = 60000, 4095
    image[:4, :4, :3] = 2000
    assert seen_by(image, white="12bit")[1] <= 1


def test_metrics_take_the_same_words():
    a = counts()
    b = np.minimum(a + 3, 4095).astype(np.uint16)
    want = metrics.psnr(a, b, 4095)
    assert metrics.psnr(a, b, "12bit") == metrics.psnr(a, b, "max") == want
    assert metrics.compare(a, b, data_range="12bit").data_range == 4095
    with pytest.raises(ValueError, match="data_range must be a number above 0, 'max', or bits such as '12bit'"):
        metrics.psnr(a, b, "12")


def test_white_on_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyvips")
    from halotile import cli
    from halotile.files import picture as files

    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.py").write_text("def half(x):\n    return x - 0.5 * (x > 0.99)\n")
    image = counts()
    image[10:20, 10:20] = 4095
    files.write_image("in.tif", image)
    options = ["restore", "in.tif", "-m", "half:half", "--halo", "4", "--quiet"]
    for word in ("12bit", "4095", "max"):
        assert cli.main([*options, "-o", f"{word}.tif", "--white", word]) == 0
        result = files.read_image(f"{word}.tif").pixels
        assert result.dtype == np.uint16 and result[15, 15, 0] in (2047, 2048)
    assert cli.main([*options, "-o", "x.tif", "--white", "12"]) == 0
    capsys.readouterr()
    assert cli.main([*options, "-o", "y.tif", "--white", "bright"]) == 2
    assert "white must be a number above 0, 'max', or bits such as '12bit'" in capsys.readouterr().err
    assert cli.main(["compare", "in.tif", "12bit.tif", "--white", "12bit", "--json"]) == 0
    assert '"data_range": 4095' in capsys.readouterr().out
    assert cli.main(["compare", "in.tif", "12bit.tif", "--white", "bright"]) == 2
    assert "--white must be a number above 0" in capsys.readouterr().err
