# SPDX-License-Identifier: MIT
"""The files of the command line: names of results, options of formats, sizes, damaged and other files, the table."""

import json
import os
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("pyvips")
Image = pytest.importorskip("PIL.Image")

from halotile import cli, restore_to  # noqa: E402
from halotile.files import picture as files  # noqa: E402

MODELS = """
def same(x):
    return x * 1

def twice(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)
"""
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filters.py").write_text(MODELS)
    files.write_image("a.png", PHOTO)
    yield tmp_path
    sys.modules.pop("filters", None)


def run(*arguments):
    try:
        return cli.main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code


def restore(*arguments, model="filters:same"):
    return run("restore", *arguments, "-m", model, "--tile", 32, "--halo", 2)


def pixels(path):
    return files.read_image(path).pixels


def smooth(height=40, width=60):
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    return np.rint(np.dstack([y, x, (x + y) / 2]) * 200 + 20).astype(np.uint8)


# ---- where results go ------------------------------------------------------------------------------------------------


def test_without_an_output_the_result_is_beside_its_input(place, capsys):
    os.mkdir("in")
    files.write_image("in/b.tif", PHOTO)
    assert restore("a.png") == 0
    assert restore("in/b.tif", "--format", "png") == 0
    np.testing.assert_array_equal(pixels("a_restored.png"), PHOTO)
    np.testing.assert_array_equal(pixels("in/b_restored.png"), PHOTO)
    assert capsys.readouterr().out.startswith("a_restored.png: 60x40 -> 60x40")
    assert restore("a.png") == 2
    assert "a_restored.png exists; --force overwrites it" in capsys.readouterr().err
    assert restore("a.png", "--skip-existing") == 0
    assert "a_restored.png exists, skipped" in capsys.readouterr().out
    assert restore("a.png", "--force") == 0
    np.save("c.npy", PHOTO)
    assert restore("c.npy", "a.png", "--force") == 0
    np.testing.assert_array_equal(np.load("c_restored.npy"), PHOTO)


def test_without_an_output_a_folder_becomes_another(place):
    os.makedirs("photos/trip")
    for name in ("photos/a.png", "photos/trip/b.jfif"):
        files.write_image(name, PHOTO)
    assert restore("photos/", "a.png") == 0
    assert sorted(os.listdir("photos_restored")) == ["a.png", "trip"]
    assert os.listdir("photos_restored/trip") == ["b.jfif"] and os.path.exists("a_restored.png")
    os.chdir("photos")
    assert run("restore", ".", "-m", "filters:same", "--force") == 0
    assert sorted(os.listdir(".")) == ["a.png", "trip"]


def test_an_input_whose_format_is_not_written(place, capsys):
    assert restore("filters.py") == 2
    assert "unknown suffix '.py'" in capsys.readouterr().err


# ---- options of formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("b.png", ("--quality", 80), "--quality has no effect on PNG: it is for JPEG, WebP, AVIF"),
        ("b.jpg", ("--compression", 0), "--compression has no effect on JPEG: it is for PNG, TIFF"),
        ("b.npy", ("--quality", 80), "--quality has no effect on NumPy"),
        (
            "b.npy",
            ("--background", "white"),
            "--background has no effect on NumPy: it is for PNG, JPEG, WebP, TIFF, AVIF",
        ),
        ("b.npy", ("--size", "8x8"), "--size has no effect on NumPy"),
        ("b.zarr", ("--outscale", 2), "--outscale has no effect on Zarr"),
        ("b.png", ("--layout", "HWC"), "--layout has no effect on image files"),
        ("b.png", ("--size", "8x8", "--outscale", 2), "--size and --outscale cannot be combined"),
        ("b.png", ("--size", "8"), "argument --size: must be WIDTHxHEIGHT in pixels"),
        ("b.png", ("--size", "x"), "argument --size: must be"),
        ("b.png", ("--size", "0x8"), "argument --size: must be"),
        ("b.png", ("--outscale", 0), "argument --outscale: must be a number above 0"),
        ("b.png", ("--background", "pink"), "argument --background: must be black, white, grey, gray, #rrggbb, or red"),
        ("b.png", ("--background", "1,2,256"), "argument --background: must be"),
    ],
)
def test_options_without_effect_are_refused(place, capsys, output, options, words):
    assert restore("a.png", "-o", output, *options) == 2
    assert words in capsys.readouterr().err
    assert not os.path.exists(output)


def test_options_that_some_file_of_a_folder_heeds(place):
    os.mkdir("photos")
    files.write_image("photos/a.png", PHOTO)
    files.write_image("photos/b.jpg", PHOTO)
    assert restore("photos", "-o", "out", "--quality", 60, "--compression", 1) == 0
    assert restore("photos", "-o", "more", "--format", "png", "--quality", 60) == 2


# ---- backgrounds and sizes -------------------------------------------------------------------------------------------


def rgba(dtype="uint8"):
    white = np.iinfo(dtype).max
    image = np.dstack([PHOTO.astype(dtype) * (white // 255), np.full((40, 60), white, dtype)])
    image[:20, :, 3] = 0
    image[20:25, :, 3] = white // 2
    return image


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("word", "colour"), [("white", 255), ("#000000", 0), ("0,128,255", (0, 128, 255))])
def test_alpha_is_laid_in_front_of_a_background(place, capsys, dtype, word, colour):
    files.write_image("alpha.png", rgba(dtype))
    assert restore("alpha.png", "-o", "b.jpg") == 2
    assert "JPEG has no alpha channel" in capsys.readouterr().err
    assert restore("alpha.png", "-o", "b.jpg", "--background", word, "--quality", 100) == 0
    assert restore("alpha.png", "-o", "b.png", "--background", word) == 0
    exact = pixels("b.png")
    assert exact.shape == (40, 60, 3) and exact.dtype == dtype
    white = np.iinfo(dtype).max
    want = np.broadcast_to(np.multiply(colour, white // 255), (20, 60, 3))
    np.testing.assert_array_equal(exact[:20], want)
    np.testing.assert_array_equal(exact[25:], rgba(dtype)[25:, :, :3])
    middle = (rgba(dtype)[20:25, :, :3].astype(float) + np.multiply(colour, white // 255)) / 2
    assert np.abs(exact[20:25] - middle).max() <= 1.5 * white / 255
    assert np.abs(pixels("b.jpg")[:8].astype(int) - np.multiply(colour, 1)).max() < 12


def test_backgrounds_of_grey_and_in_python(place):
    files.write_image("alpha.png", rgba()[..., [0, 3]])
    restore_to("b.jpg", "alpha.png", lambda x: x * 1, background=(255, 255, 255))
    assert pixels("b.jpg").shape == (40, 60) and pixels("b.jpg")[:8].min() > 245
    with pytest.raises(ValueError, match=r"background must be \(red, green, blue\).*not 'white'"):
        restore_to("b.jpg", "alpha.png", lambda x: x * 1, background="white")
    with pytest.raises(ValueError, match="background and size must be None for NumPy"):
        restore_to("b.npy", "alpha.png", lambda x: x * 1, size=(5, 5))
    with pytest.raises(ValueError, match=r"size must be \(height, width\).*not 5"):
        restore_to("b.png", "alpha.png", lambda x: x * 1, size=5)
    with pytest.raises(ValueError, match="JPEG has no alpha channel"):
        restore_to("b.jpg", "alpha.png", lambda x: x * 1)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--size", "90x30"), (30, 90)),
        (("--size", "90x"), (60, 90)),
        (("--size", "x20"), (20, 30)),
        (("--outscale", 3), (120, 180)),
        (("--outscale", 0.5), (20, 30)),
        (("--outscale", 2), (80, 120)),
        (("--size", "1x1"), (1, 1)),
        (("--size", "61x41"), (41, 61)),
        (("--outscale", 1.37), (55, 82)),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_sizes_other_than_the_models(place, capsys, options, size, suffix):
    image = smooth()
    files.write_image("s.png", image)
    assert restore("s.png", "-o", f"b.{suffix}", *options, model="filters:twice") == 0
    assert f"60x40 -> {size[1]}x{size[0]}" in capsys.readouterr().out
    got = pixels(f"b.{suffix}")
    assert got.shape == (*size, 3)
    want = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))
    assert np.abs(got.astype(int) - want)[2:-2, 2:-2].max(initial=0) < 16


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_hidden_colours_do_not_leak_when_sizes_change(place, dtype):
    white = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    image = np.zeros((40, 60, 4))
    image[..., 1], image[20:, :, 0], image[20:, :, 1], image[20:, :, 3] = white, white, 0, white
    files.write_image("s.tif", image.astype(dtype))
    assert restore("s.tif", "-o", "b.tif", "--size", "100x70") == 0
    got = pixels("b.tif")
    shown = got[..., 3] > 0.05 * white
    assert got.shape == (70, 100, 4) and got.dtype == dtype and shown.sum() > 3000
    assert np.abs(got[..., 0][shown].astype(float) - white).max() < 0.03 * white
    assert got[..., 1][shown].max() < 0.03 * white


def test_sizes_of_large_images_by_rows(place):
    image = np.random.default_rng(0).integers(0, 255, (3000, 700, 3), np.uint8)
    files.write_image("l.png", image)
    restore_to("b.png", "l.png", lambda x: x * 1, size=(1500, 350), tile_size=256)
    want = np.asarray(Image.fromarray(image).resize((350, 1500), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels("b.png") - want)[3:-3, 3:-3].mean() < 3


def test_sizes_of_several_pages_are_refused(place, capsys):
    files.write_image("p.tif", np.concatenate([PHOTO, PHOTO]), pages=2)
    assert restore("p.tif", "-o", "b.tif", "--outscale", 2) == 2
    assert "the input has 2 pages; with --size or --outscale, choose one by --page" in capsys.readouterr().err
    assert restore("p.tif", "-o", "b.tif", "--outscale", 2, "--page", 2) == 0
    assert pixels("b.tif").shape == (80, 120, 3)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.6, 0.9, 1])
def test_a_jpeg_that_lacks_its_last_bytes(place, capsys, progressive, share):
    thumbnail = b"\xff\xd8thumbnail\xff\xd9"
    Image.fromarray(smooth(160, 160)).save("whole.jpg", progressive=progressive, quality=95, comment=thumbnail)
    data = (place / "whole.jpg").read_bytes()
    (place / "cut.jpg").write_bytes(data[: int(len(data) * share) - 2])
    assert restore("cut.jpg", "-o", "b.png", "--strict") == 2
    assert "cut.jpg: not a whole JPEG file: its last bytes are missing" in capsys.readouterr().err
    assert restore("cut.jpg", "-o", "b.png") == 0
    err = capsys.readouterr().err
    assert err == "halotile: warning: cut.jpg: its last bytes are missing, and what they would show is grey\n"
    got, want = pixels("b.png").astype(int), smooth(160, 160)
    assert np.abs(got - want)[:60].max() < (40 if progressive else 12)
    with pytest.warns(UserWarning, match="last bytes are missing"):
        files.read_image("cut.jpg")
    with pytest.raises(ValueError, match="not a whole JPEG"):
        files.read_image("cut.jpg", strict=True)
    (place / "more.jpg").write_bytes(data + b"trailer" * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.read_image("whole.jpg", strict=True)
        files.read_image("more.jpg", strict=True)
        restore_to("c.png", "whole.jpg", lambda x: x * 1, strict=True)


@pytest.mark.parametrize(("mode", "shape"), [("RGB", (40, 60, 3)), ("RGBA", (40, 60, 4)), ("L", (40, 60, 3))])
def test_avif_in_and_out(place, mode, shape):
    picture = Image.fromarray(np.dstack([smooth(), smooth()[..., 0]]) if mode == "RGBA" else smooth())
    try:
        picture.convert(mode).save("in.avif", quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow has no AVIF")
    assert restore("in.avif", "-o", "b.png") == 0
    want = np.asarray(picture.convert(mode))
    got = pixels("b.png")
    assert np.abs(got.astype(int) - (want if want.ndim == 3 else want[..., None])).max() < 12
    assert restore("b.png", "-o", "c.avif", "--quality", 100) == 0
    with Image.open("c.avif") as opened:
        found = np.asarray(opened)
    assert found.shape == shape and np.abs(found.astype(int) - got).max() <= 1


def test_deep_avif_and_its_metadata(place):
    image = np.random.default_rng(0).integers(0, 4096, (40, 60, 3)).astype(np.uint16) * 16
    files.write_image("in.tif", image)
    assert restore("in.tif", "-o", "b.avif", "--quality", 100) == 0
    got = pixels("b.avif")
    assert got.dtype == np.uint16 and np.abs(got.astype(int) - image).max() <= 16
    Image.fromarray(smooth()).save(
        "p.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\4Abc\0\0\0\0\0", dpi=(144, 144)
    )
    assert restore("p.jpg", "-o", "p.avif") == 0
    assert "exif-ifd0-Make" in files.read_image("p.avif").metadata


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_in(place, mode):
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(np.dstack([smooth(), smooth()[..., 0]])).convert(mode)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\4Abc\0\0\0\0\0"
    os.mkdir("in")
    pillow_heif.from_pillow(picture).save("in/a.HEIC", quality=95, exif=exif)
    assert restore("in", "-o", "out") == 0
    got = files.read_image("out/a.png")
    want = np.asarray(picture.convert("RGB") if mode == "L" else picture)
    assert np.abs(np.atleast_3d(got.pixels).astype(int) - want).max() < 12
    assert "exif-ifd0-Make" in got.metadata
    assert restore("in/a.HEIC") == 0 and os.path.exists("in/a_restored.png")
    with pytest.raises(ValueError, match="60 x 40 pixels are more than max_pixels=100"):
        files.read_image("in/a.HEIC", max_pixels=100)
    (place / "bad.heic").write_bytes((place / "in" / "a.HEIC").read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable HEIC file"):
        files.read_image("bad.heic")


def test_deep_heic(place):
    pillow_heif = pytest.importorskip("pillow_heif")
    image = (smooth().astype(np.uint16) * 257).copy()
    pillow_heif.encode("RGB;16", (60, 40), image.tobytes(), "a.heic", quality=95)
    got = pixels("a.heic")
    assert got.dtype == np.uint16 and np.abs(got.astype(int) - image).max() < 12 * 257


def test_jfif_files_are_found_and_others_named(place, capsys, monkeypatch):
    monkeypatch.setattr("halotile.files.formats.reads_heic", lambda: False)
    os.mkdir("in")
    Image.fromarray(PHOTO).save("in/a.jfif", format="JPEG")
    Image.fromarray(PHOTO).save("in/b.gif")
    Image.fromarray(PHOTO).save("in/c.bmp")
    for name in ("d.heic", "e.nef", "f.txt", "g.psd", ".h.gif"):
        (place / "in" / name).write_bytes(b"x")
    (place / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (place / "out").mkdir()
    assert restore("in", "-o", "out", "--force") == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("restored 1 of 7 files, 5 skipped, 1 failed, 2 other files ignored, ")
    table = [line.split(maxsplit=2) for line in lines[-8:-1]]
    assert table == [
        ["restored", "in/a.jfif", "out/a.jfif"],
        ["skipped", "in/b.gif", "GIF is not read; convert it to PNG or TIFF first"],
        ["skipped", "in/c.bmp", "BMP is not read; convert it to PNG or TIFF first"],
        ["skipped", "in/d.heic", "HEIC is not read; convert it to PNG or TIFF first, or pip install 'halotile[heic]'"],
        ["skipped", "in/e.nef", "camera raw files are not read; develop it first"],
        ["skipped", "in/g.psd", "Photoshop is not read; convert it to PNG or TIFF first"],
        ["failed", "in/broken.png", table[-1][2]],
    ]
    assert "not a readable PNG file" in table[-1][2]
    assert restore("in", "-o", "out", "--skip-existing", "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert found["totals"]["files"] == 7 and found["totals"]["skipped"] == 6
    reasons = {one["input"]: one["skipped"] for one in found["files"] if one["status"] == "skipped"}
    assert reasons["in/a.jfif"] == "its output exists" and reasons["in/b.gif"].startswith("GIF is not read")


def test_a_folder_of_other_images_alone(place, capsys):
    os.mkdir("in")
    Image.fromarray(PHOTO).save("in/b.gif")
    assert restore("in", "-o", "out") == 2
    assert "in: no image files found; in/b.gif: GIF is not read; convert it" in capsys.readouterr().err


def test_long_tables_are_short(place, capsys):
    os.mkdir("in")
    for index in range(25):
        files.write_image(f"in/{index:02}.png", PHOTO[:8, :8])
    assert restore("in", "-o", "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "restored  5 more" and lines[-22].startswith("restored  in/00.png")
    assert restore("in", "-o", "out", "--skip-existing", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_jpeg_xl_where_libvips_has_it(place, capsys):
    import pyvips

    if pyvips.type_find("VipsOperation", "jxlsave_target"):
        assert restore("a.png", "-o", "b.jxl", "--quality", 100) == 0
        np.testing.assert_array_equal(pixels("b.jxl"), PHOTO)
        return
    assert restore("a.png", "-o", "b.jxl") == 2
    assert "JPEG XL needs a libvips that has it" in capsys.readouterr().err
    (place / "in.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    assert restore("in.jxl", "-o", "b.png") == 2
    assert (
        "in.jxl: not a PNG, JPEG, WebP, TIFF or AVIF file (it is JPEG XL: convert it to PNG" in capsys.readouterr().err
    )
