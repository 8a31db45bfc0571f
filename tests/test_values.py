# SPDX-License-Identifier: MIT
"""What values mean: white levels, ranges, data that is no picture, NaN, and pixels without data."""

import re
import warnings

import numpy as np
import pytest

from halotile import (
    NonFiniteError,
    NonFiniteWarning,
    RangeWarning,
    TiledRestorer,
    iter_bands,
    metrics,
    restore_tiled,
    restore_to,
    verify,
)

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


# ---- values far outside, and clamped ones ----------------------------------------------------------------------------


def messages(call, kind=RangeWarning):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught if issubclass(one.category, kind)]


def plain():
    return lambda x: x * 1


PHOTO = np.random.default_rng(0).random((60, 70, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (PHOTO * 255, "pass white=255"),
        (PHOTO.astype(np.float64) * 65535, "pass white=65535"),
        (PHOTO * 9000, "pass white='max', or its white as a number"),
        (PHOTO * 2 - 1, r"pass \(image \+ 1\) / 2"),
        (PHOTO * 6 - 3, r"pass \(image - low\) / \(high - low\)"),
        (np.dstack([PHOTO] * 5) * 10000, "pass white='max'"),
    ],
)
def test_floats_far_outside_are_warned_about_once(image, remedy):
    model = plain()
    (text,) = messages(lambda: [restore_tiled(image, model, **OPTIONS) for _ in range(2)])
    assert re.search(rf"the image has values from about .*, far outside 0 to 1.*: {remedy}", text)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (PHOTO, {}),
        (PHOTO * 1.4 - 0.2, {}),
        (PHOTO * 255, {"white": 255}),
        (PHOTO * 255, {"white": "max"}),
        ((PHOTO * 255).astype(np.uint8), {}),
        (np.where(np.random.default_rng(1).random(PHOTO.shape) < 0.002, 50, PHOTO).astype(np.float32), {}),
        (np.dstack([PHOTO] * 2)[..., :4] * 8 - 4, {"alpha": "channel"}),
        (np.dstack([PHOTO] * 3) * 8 - 4, {}),
    ],
)
def test_other_values_are_not_warned_about(image, options):
    assert messages(lambda: restore_tiled(image, plain(), **OPTIONS | options)) == []


def test_every_way_in_warns(tmp_path):
    torch = pytest.importorskip("torch")
    image = PHOTO * 255
    np.save(tmp_path / "in.npy", image)
    ways = [
        lambda: restore_to(tmp_path / "out.npy", tmp_path / "in.npy", plain(), **OPTIONS),
        lambda: list(iter_bands(image, plain(), **OPTIONS)),
        lambda: restore_tiled(torch.from_numpy(image.transpose(2, 0, 1).copy()), plain(), **OPTIONS),
        lambda: restore_tiled(image, torch.nn.Identity(), engine="torch", **OPTIONS),
    ]
    for way in ways:
        assert len(messages(way)) == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x * 255, r"from about 0 to 25\d.* the model works in another range, pass value_range=\(0, 255\)"),
        (lambda x: x * 2 - 1, r"from about -1 to 1: .* pass value_range=\(-1, 1\)"),
        (lambda x: x * 8 - 3, r"from about -3 to 5: .* pass value_range=\(low, high\)"),
    ],
)
def test_clamped_results_are_warned_about_once(model, words):
    image = (PHOTO * 255).astype(np.uint8)
    (text,) = messages(lambda: [restore_tiled(image, model, **OPTIONS) for _ in range(2)])
    assert re.search(r"\d+ % of the result was clamped to 0 to 255, as the model's values reach " + words, text)
    assert "out_dtype='float32' keeps what is clamped" in text


def test_a_few_clamped_values_are_nothing_to_speak_of():
    image = (PHOTO * 255).astype(np.uint8)
    assert messages(lambda: restore_tiled(image, lambda x: x * 1.04 - 0.02, **OPTIONS)) == []
    rare = np.zeros((200, 200, 3), np.uint8)
    rare[:10, :10] = 255
    assert messages(lambda: restore_tiled(rare, lambda x: x * 3, tile_size=64, halo=0)) == []
    assert messages(lambda: restore_tiled(PHOTO, lambda x: x * 255, **OPTIONS)) == []  # floats are not clamped


def test_clamped_on_a_device_and_by_several_parts():
    torch = pytest.importorskip("torch")

    class Bright(torch.nn.Module):
        def forward(self, x):
            return x * 3

    image = (PHOTO * 255).astype(np.uint8)
    for engine in ("host", "torch"):
        assert len(messages(lambda engine=engine: restore_tiled(image, Bright(), engine=engine, **OPTIONS))) == 1


# ---- what is no picture ----------------------------------------------------------------------------------------------


def convolution(takes, makes):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(takes, makes, 3, padding=1).eval()
    with torch.no_grad():
        layer.weight *= 20
    return layer


@pytest.mark.parametrize(("channels", "makes"), [(3, 7), (3, 2), (3, 4), (1, 2), (1, 5), (5, 2), (12, 3)])
def test_classes_are_floats_as_the_model_made_them(channels, makes):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
    model = convolution(channels, makes)
    restorer = TiledRestorer(model, layout="HWC", **OPTIONS)
    found = restorer(image)
    assert found.dtype == np.float32 and found.min() < 0 and found.max() > 1
    want = restore_tiled((image / np.float32(255)).astype(np.float32), model, layout="HWC", **OPTIONS)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    assert "float32" in restorer.last_run.why
    assert verify(image, restorer, found).largest < 1e-3
    white = restore_tiled(image.astype(np.float32), model, layout="HWC", white=255, **OPTIONS)
    np.testing.assert_allclose(white, found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("channels", "makes"), [(3, 3), (3, 1), (1, 3), (1, 1), (5, 5)])
def test_pictures_stay_of_the_images_dtype(channels, makes):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
    assert restore_tiled(image, convolution(channels, makes), layout="HWC", **OPTIONS).dtype == np.uint8


def test_classes_are_what_they_are_told_to_be(tmp_path):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    model = convolution(3, 7)
    assert restore_tiled(image, model, out_dtype="uint8", **OPTIONS).dtype == np.uint8
    out = np.zeros((40, 50, 7), np.uint8)
    assert restore_tiled(image, model, out=out, **OPTIONS) is out and out.any()
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    assert restore_tiled(tensor, model, **OPTIONS).dtype == torch.float32
    assert next(rows.dtype.name for _, rows in iter_bands(image, model, **OPTIONS)) == "float32"
    restore_to(tmp_path / "classes.npy", image, model, **OPTIONS)
    np.testing.assert_array_equal(np.load(tmp_path / "classes.npy"), restore_tiled(image, model, **OPTIONS))


def test_classes_do_not_fit_a_png(tmp_path):
    pytest.importorskip("pyvips")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    with pytest.raises(ValueError, match=r"PNG cannot hold float32.*out_dtype="):
        restore_to(tmp_path / "classes.png", image, convolution(3, 2), **OPTIONS)
    restore_to(tmp_path / "classes.png", image, convolution(3, 2), out_dtype="uint8", **OPTIONS)


def test_models_of_volumes_are_refused_by_name():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    for module in (
        nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ConvTranspose3d(3, 3, 1)),
        nn.Conv3d(1, 1, 1),
        torch.jit.script(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1))),
    ):
        with pytest.raises(ValueError, match=r"model must take images, .* is a Conv(Transpose)?3d.*function"):
            restore_tiled(np.zeros((16, 64, 64, 1), np.uint8), module)
    volumes = nn.Conv3d(1, 1, 3, padding=1).eval()
    image = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    got = restore_tiled(image, lambda x: volumes(x[:, None])[:, 0], **OPTIONS)
    assert got.shape == image.shape


# ---- NaN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_of_the_image_is_said_to_be_the_images(tmp_path, value):
    torch = pytest.importorskip("torch")
    image = PHOTO.copy()
    image[33, 41, 1] = value
    words = r"the image itself holds NaN or infinity, first at row 33, column 41, channel 1.*nodata="
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    np.save(tmp_path / "in.npy", image)
    for call in (
        lambda: restore_tiled(image, plain(), **OPTIONS),
        lambda: restore_tiled(np.stack([PHOTO, image]), plain(), **OPTIONS),
        lambda: restore_tiled(image, torch.nn.AvgPool2d(3, 1, 1), engine="torch", **OPTIONS),
        lambda: restore_tiled(tensor, plain(), **OPTIONS),
        lambda: restore_tiled(tensor.half(), plain(), **OPTIONS),
        lambda: restore_tiled(tensor.bfloat16(), plain(), **OPTIONS),
        lambda: restore_to(tmp_path / "out.npy", tmp_path / "in.npy", plain(), **OPTIONS),
        lambda: restore_tiled(image, lambda x: x.repeat(2, axis=2).repeat(2, axis=3), **OPTIONS),
    ):
        with pytest.raises(NonFiniteError, match=words):
            call()
    with pytest.warns(NonFiniteWarning, match=words):
        restore_tiled(image, plain(), on_nonfinite="warn", **OPTIONS)


def test_nan_of_the_model_is_still_the_models():
    with pytest.raises(NonFiniteError, match="the model returned NaN or infinity") as caught:
        restore_tiled(PHOTO, lambda x: x * np.nan, **OPTIONS)
    assert "the image" not in str(caught.value)


# ---- no data ---------------------------------------------------------------------------------------------------------


def with_gaps(nodata, dtype="float32", shape=(70, 90, 3), white=1.0):
    rng = np.random.default_rng(5)
    image = (rng.random(shape) * 0.5 * white + 0.2 * white).astype(dtype)
    image[10:20, 30:50], image[60:, :8] = nodata, nodata
    if len(shape) == 3:
        image[40, 41, 0] = nodata
    return image


def lacks(image, nodata):
    return np.isnan(image) if np.isnan(nodata) else image == nodata


@pytest.mark.parametrize(
    ("dtype", "nodata", "options"),
    [
        ("float32", np.nan, {}),
        ("float32", -9999, {}),
        ("float32", -3.4028234663852886e38, {}),
        ("float64", -9999, {}),
        ("float16", np.nan, {}),
        ("float32", np.inf, {}),
        ("uint8", 0, {}),
        ("uint8", 255, {}),
        ("uint16", 65535, {}),
        ("uint16", 0, {"white": "max"}),
        ("float32", 0, {"white": 255}),
    ],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_nodata_is_filled_and_put_back(dtype, nodata, options, scale):
    white = {"uint8": 255, "uint16": 65535}.get(dtype, options.get("white", 1))
    image = with_gaps(nodata, dtype, white=white)
    seen = []

    def model(x):
        seen.append((x.min(), x.max()))
        return x.repeat(scale, axis=2).repeat(scale, axis=3)

    before = image.copy()
    restorer = TiledRestorer(model, nodata=nodata, **OPTIONS | options)
    got = restorer(image)
    np.testing.assert_array_equal(image, before)
    assert min(low for low, _ in seen) > 0.15 and max(high for _, high in seen) <= 1
    assert options or max(high for _, high in seen) < 0.75
    want = image.repeat(scale, 0).repeat(scale, 1)
    np.testing.assert_array_equal(lacks(got, nodata), lacks(want, nodata))
    valid = ~lacks(want, nodata)
    np.testing.assert_allclose(got[valid], want[valid], rtol=1e-3 if dtype == "float16" else 1e-6)
    filled = restorer.last_run.filled
    assert filled.values == lacks(image, nodata).sum() and filled.share == filled.values / image.size
    assert filled.margin == (4, 4) and "up to 4 pixels" in str(restorer.last_run)


def test_the_words_for_nan():
    image = with_gaps(np.nan)
    for word in ("nan", "NaN", float("nan"), np.float32("nan")):
        assert np.isnan(restore_tiled(image, plain(), nodata=word, **OPTIONS)).sum() == np.isnan(image).sum()


def test_what_is_filled_in_is_what_is_around():
    image = np.tile(np.linspace(0.2, 0.8, 90, dtype=np.float32), (70, 1))
    gaps = image.copy()
    gaps[20:40, 30:50] = -9999
    seen = []
    restore_tiled(gaps, lambda x: seen.append(x.copy()) or x * 1, nodata=-9999, tile_size=512, halo=0)
    assert np.abs(seen[0][0, 0] - image).max() < 0.1
    far = np.full((300, 300), -9999, np.float32)
    far[:10, :10] = 0.25
    seen.clear()
    restore_tiled(far, lambda x: seen.append(x.copy()) or x * 1, nodata=-9999, tile_size=512, halo=0)
    np.testing.assert_allclose(seen[0], 0.25, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float16", "bfloat16"])
def test_nodata_of_arrays_tensors_engines_and_ways_out(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    nodata, white = (0, {"uint8": 255}.get(dtype, 65535)) if dtype.startswith("u") else (-512, 1)
    image = with_gaps(nodata, "float32" if dtype == "bfloat16" else dtype, white=white)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)).eval()
    options = {"nodata": nodata, **OPTIONS, "overlap": 0}
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).to(getattr(torch, dtype))
    want = restore_tiled(tensor, model, engine="host", **options)
    assert (want == nodata).sum() == 4 * (image == nodata).sum()
    other = restore_tiled(tensor, model, engine="torch", **options)
    assert torch.equal(other, want)
    if dtype == "bfloat16":
        return
    for engine in ("host", "torch"):
        got = restore_tiled(image, model, engine=engine, **options)
        np.testing.assert_array_equal(got, want.numpy().transpose(1, 2, 0))
    bands = np.concatenate([rows for _, rows in iter_bands(image, model, **options)])
    np.testing.assert_array_equal(bands, got)
    np.save(tmp_path / "in.npy", np.stack([image, image]))
    restore_to(tmp_path / "out.npy", tmp_path / "in.npy", model, **options)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack([got, got]))
    assert verify(image, model, got, **options).largest < 1e-3 * white


def test_nodata_on_a_device(fake_mps):
    torch = pytest.importorskip("torch")
    from .fake_mps.attach import DEVICE

    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 3, 3, padding=1).eval()
    image = torch.from_numpy(with_gaps(-9999).transpose(2, 0, 1).copy())
    want = restore_tiled(image, model, nodata=-9999, **OPTIONS)
    got = restore_tiled(image.to(DEVICE), model.to(DEVICE), nodata=-9999, **OPTIONS).cpu()
    assert torch.equal(got == -9999, want == -9999)
    torch.testing.assert_close(got, want)
    with pytest.raises(NonFiniteError, match="the image itself holds NaN"):
        restore_tiled(torch.where(image == -9999, torch.nan, image).to(DEVICE), model, **OPTIONS)


def test_valid_values_that_equal_nodata_are_moved():
    image = with_gaps(0, "uint8", white=255)
    got = restore_tiled(image, lambda x: x * 0, nodata=0, **OPTIONS)
    np.testing.assert_array_equal(got, np.where(image == 0, 0, 1))
    got = restore_tiled(255 - image, lambda x: x * 0 + 1, nodata=255, **OPTIONS)
    np.testing.assert_array_equal(got, np.where(image == 0, 255, 254))


def test_alpha_is_no_data_but_colours_beside_it_are():
    image = np.dstack([with_gaps(0, "uint8", white=255), np.zeros((70, 90), np.uint8)])
    image[:35, :, 3] = 200
    got = restore_tiled(image, plain(), nodata=0, **OPTIONS)
    np.testing.assert_array_equal(got[..., 3], image[..., 3])
    np.testing.assert_array_equal(got[..., :3] == 0, image[..., :3] == 0)


def test_other_channels_lack_what_any_of_the_image_lacks():
    image = with_gaps(-9999)
    got = restore_tiled(image, convolution(3, 5), nodata=-9999, **OPTIONS)
    np.testing.assert_array_equal(got == -9999, np.repeat((image == -9999).any(2)[..., None], 5, 2))


def test_images_of_nothing_else():
    image = np.full((40, 40, 3), np.nan, np.float32)
    assert np.isnan(restore_tiled(image, plain(), nodata="nan", **OPTIONS)).all()


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (PHOTO, {"nodata": "none"}, "nodata must be a number or 'nan', not 'none'"),
        (PHOTO, {"nodata": True}, "nodata must be a number or 'nan', not True"),
        (counts("uint8", 200), {"nodata": -1}, "nodata must be a value that an image of uint8 can have, not -1"),
        (counts("uint8", 200), {"nodata": "nan"}, "nodata must be a value that an image of uint8 can have, not nan"),
        (PHOTO.astype(np.float16), {"nodata": -9999}, "nodata must be a value that an image of float16 can have"),
        (PHOTO, {"nodata": -9999, "out_dtype": "uint8"}, "out_dtype must be one that can hold nodata=-9999, such as"),
        (PHOTO, {"nodata": "nan", "out_dtype": "uint16"}, "out_dtype must be one that can hold nodata=nan"),
    ],
)
def test_bad_nodata_is_named_before_work(image, options, words):
    def never(x):
        raise AssertionError

    with pytest.raises((ValueError, TypeError), match=words):
        restore_tiled(image, never, **options)


def test_nodata_on_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyvips")
    from halotile import cli
    from halotile.files import picture as files

    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.py").write_text("def same(x):\n    return x * 1\n")
    image = with_gaps(-9999)
    files.write_image("in.tif", image)
    assert cli.main(["restore", "in.tif", "-m", "same:same", "-o", "out.tif", "--nodata", "-9999", "--halo", "4"]) == 0
    np.testing.assert_array_equal(files.read_image("out.tif").pixels == -9999, image == -9999)
    assert "nodata -9999: 4.4% of the values were filled in" in capsys.readouterr().out


def test_ranges_are_told_on_devices(fake_mps):
    torch = pytest.importorskip("torch")
    from .fake_mps.attach import DEVICE

    class Times(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(float(by)))

        def forward(self, x):
            return x * self.by

    floats = (PHOTO * 255).transpose(2, 0, 1).copy()
    for image in (PHOTO * 255, torch.from_numpy(floats), torch.from_numpy(floats).to(DEVICE)):
        layout = "HWC" if isinstance(image, np.ndarray) else "CHW"
        (text,) = messages(lambda i=image, a=layout: restore_tiled(i, Times(1).to(DEVICE), layout=a, **OPTIONS))
        assert "pass white=255" in text
    (text,) = messages(lambda: restore_tiled((PHOTO * 255).astype(np.uint8), Times(4).to(DEVICE), **OPTIONS))
    assert "of the first tile was clamped" in text
    assert messages(lambda: restore_tiled((PHOTO * 255).astype(np.uint8), Times(1).to(DEVICE), **OPTIONS)) == []


def test_grey_images_that_are_read_by_rows(tmp_path):
    image = with_gaps(0, "uint16", (70, 90), 4000)
    np.save(tmp_path / "in.npy", image)
    for options in ({"white": "max"}, {"nodata": 0}, {"white": "max", "nodata": 0}):
        restore_to(tmp_path / "out.npy", tmp_path / "in.npy", plain(), **OPTIONS, **options)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), image)


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("way", ["restore_tiled", "restore_to", "iter_bands"])
def test_white_and_nodata_where_rows_stream(tmp_path, monkeypatch, dtype, way):
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(1, 1, 5, padding=2)
    torch.nn.init.constant_(layer.weight, 1 / 25)
    torch.nn.init.zeros_(layer.bias)
    image = counts(dtype, 4000, (90, 70))
    image[30:41, 20:29] = 7
    options = {"halo": 2, "phase": 1, "boundary": "native", "white": "12bit", "nodata": 7}

    def run(schedule):
        restorer = TiledRestorer(layer, schedule=schedule, tile_size=32, **options)
        if way == "restore_to":
            restore_to("out.npy", image, restorer)
            result = np.load("out.npy")
        elif way == "iter_bands":
            result = np.concatenate([rows for _, rows in restorer.iter_bands(image)])
        else:
            result = restorer(image)
        return result, restorer.last_run

    (rows, streamed), (tiles, tiled) = run("stream"), run("tiles")
    assert streamed.stream is not None and tiled.stream is None
    assert (rows[30:41, 20:29] == 7).all() and (rows != 7).sum() == rows.size - (image == 7).sum()
    np.testing.assert_allclose(rows, tiles, atol=1 if dtype == "uint16" else 1e-2)
    assert streamed.filled.values == tiled.filled.values == (image == 7).sum()
