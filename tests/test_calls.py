# SPDX-License-Identifier: MIT
"""How people call: with Pillow's images, paths, arguments the other way round, names nearly right."""

from pathlib import Path

import numpy as np
import pytest

import halotile
from halotile import TiledRestorer, cli, error_curve, iter_bands, restore_tiled, restore_to, testing, verify

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

TILES = {"tile_size": 24, "halo": 3, "phase": 1}


class Soft(nn.Module):
    """A blur of any number of channels, in the image's own range."""

    def forward(self, x):
        return 0.5 * x + 0.5 * nn.functional.avg_pool2d(x, 3, 1, 1)


def noise(shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).random(shape)
    return (values * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- Pillow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (30, 40), "uint8"),
        ("LA", (30, 40, 2), "uint8"),
        ("RGB", (30, 40, 3), "uint8"),
        ("RGBA", (30, 40, 4), "uint8"),
        ("I;16", (30, 40), "uint16"),
        ("F", (30, 40), "float32"),
    ],
)
def test_pillow_images_go_in_and_come_out(mode, shape, dtype):
    images = pytest.importorskip("PIL.Image")
    array, model = noise(shape, dtype), Soft()
    picture = images.fromarray(array)
    assert picture.mode == mode
    got = restore_tiled(picture, model, **TILES)
    assert isinstance(got, images.Image) and (got.mode, got.size) == (mode, picture.size)
    np.testing.assert_array_equal(np.asarray(got), restore_tiled(array, model, **TILES))


def test_other_modes_of_pillow_are_the_colours_that_they_show():
    images = pytest.importorskip("PIL.Image")
    model, colours = Soft(), noise((30, 40, 3))
    picture = images.fromarray(colours)
    palette = picture.quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = 3
    for made, shown in [
        (palette, "RGB"),
        (clear, "RGBA"),
        (picture.convert("1"), "L"),
        (picture.convert("CMYK"), "RGB"),
        (picture.convert("YCbCr"), "RGB"),
        (picture.convert("RGBA").convert("RGBa"), "RGBA"),
    ]:
        got = restore_tiled(made, model, **TILES)
        assert got.mode == shown
        np.testing.assert_array_equal(np.asarray(got), restore_tiled(np.asarray(made.convert(shown)), model, **TILES))
    words = images.fromarray(noise((30, 40), "uint16").astype(np.int32))
    assert words.mode == "I" and restore_tiled(words, model, **TILES).mode == "I;16"
    for bad in (images.fromarray(np.full((9, 9), -1, np.int32)), images.new("LAB", (9, 9))):
        with pytest.raises(TypeError, match="image must be a Pillow image of"):
            restore_tiled(bad, model)


def test_a_pillow_image_keeps_its_profile_and_metadata():
    images = pytest.importorskip("PIL.Image")
    picture = images.fromarray(noise((30, 40, 3)))
    exif = images.Exif()
    exif[0x0112], exif[0x013B] = 6, "Ann"
    picture.info |= {"icc_profile": b"profile", "exif": exif.tobytes(), "dpi": (300, 300), "duration": 40}
    got = restore_tiled(picture, Soft(), **TILES)
    assert {name: got.info[name] for name in got.info} == {name: picture.info[name] for name in got.info}
    assert set(got.info) == {"icc_profile", "exif", "dpi"} and got.getexif()[0x0112] == 6
    grey = restore_tiled(picture, lambda x: x.mean(1, keepdim=True), alpha="channel", **TILES)
    assert grey.mode == "L" and "icc_profile" not in grey.info


def test_what_pillow_has_no_image_for_is_an_array(place):
    images = pytest.importorskip("PIL.Image")
    picture, model = images.fromarray(noise((30, 40, 3))), Soft()
    got = restore_tiled(picture, model, out_dtype="uint16", **TILES)
    np.testing.assert_array_equal(got, restore_tiled(np.asarray(picture), model, out_dtype="uint16", **TILES))
    out = np.empty((30, 40, 3), np.uint8)
    assert restore_tiled(picture, model, out=out, **TILES) is out
    bands = np.concatenate([rows for _, rows in iter_bands(picture, model, **TILES)])
    np.testing.assert_array_equal(bands, out)
    assert verify(picture, model, out, **TILES).largest < 1
    restore_to("out.npy", picture, model, **TILES)
    np.testing.assert_array_equal(np.load("out.npy"), out)
    assert halotile.metrics.psnr(picture, picture) == float("inf")


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_a_path_is_read_and_restored(place):
    images = pytest.importorskip("PIL.Image")
    array, model = noise((50, 40, 3)), Soft()
    images.fromarray(array).save("in.png")
    np.save("in.npy", array)
    want = restore_tiled(array, model, **TILES)
    for path in ("in.png", Path("in.png"), "in.npy"):
        np.testing.assert_array_equal(restore_tiled(path, model, **TILES), want)
    bands = np.concatenate([rows for _, rows in iter_bands("in.png", model, **TILES)])
    np.testing.assert_array_equal(bands, want)
    restorer = TiledRestorer(model, **TILES)
    np.testing.assert_array_equal(restorer("in.png"), want)
    assert restorer.last_run is not None
    with pytest.raises(OSError, match="nowhere"):
        restore_tiled("nowhere.png", model)


def test_what_a_file_says_of_its_pixels_counts(place):
    tifffile = pytest.importorskip("tifffile")
    array = noise((50, 40), "float32")
    array[10:14, 10:14] = -9999
    tifffile.imwrite("dem.tif", array, extratags=[(42113, "s", 0, "-9999", True)])
    restorer = TiledRestorer(Soft(), **TILES)
    for run in (restorer, lambda path: np.concatenate([rows for _, rows in restorer.iter_bands(path)])):
        restorer.last_run = None
        assert (run("dem.tif")[10:14, 10:14] == -9999).all() and restorer.last_run.filled


# ---- the other way round ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", [restore_tiled, iter_bands, verify, error_curve, testing.assert_exact, testing.assert_seamless]
)
def test_arguments_swapped(call):
    image, model = noise((40, 40, 3)), Soft()
    tensor = torch.zeros(3, 40, 40)
    for swapped in (image, tensor):
        with pytest.raises(TypeError, match=r"arguments swapped\? \(image, model\) is their order"):
            call(model, swapped)


def test_arguments_swapped_on_the_way_to_a_file(place):
    image, model = noise((40, 40, 3)), Soft()
    with pytest.raises(TypeError, match=r"arguments swapped\?"):
        restore_to("out.png", model, image)
    with pytest.raises(TypeError, match=r"path must be .*: arguments swapped\? \(path, image, model\)"):
        restore_to(image, "out.png", model)
    with pytest.raises(TypeError, match=r"load_model\('x4.pth'\) opens files"):
        restore_tiled(image, "x4.pth")


# ---- names nearly right ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["restor", "in.png"], "did you mean restore?"),
        (["inspct"], "did you mean inspect?"),
        (["restore", "in.png", "--tile_size", "64"], "did you mean --tile-size?"),
        (["restore", "in.png", "--outpt=x.png"], "did you mean --output?"),
        (["plan", "640x480", "--batchsize", "2"], "did you mean --batch-size?"),
    ],
)
def test_the_command_line_says_what_may_have_been_meant(place, capsys, words, meant):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and meant in capsys.readouterr().err


def test_what_is_like_nothing_is_not_guessed_at(place, capsys):
    with pytest.raises(SystemExit):
        cli.main(["restore", "in.png", "--zzzz"])
    assert "did you mean" not in capsys.readouterr().err
    with pytest.raises(TypeError, match="did you mean 'tile_size'"):
        restore_tiled(noise((9, 9)), nn.Identity(), tilesize=3)
