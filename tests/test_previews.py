# SPDX-License-Identifier: MIT
"""Files whose first image is not what they are about are refused by name or warned about; ordinary ones are read."""

import io
import json
import os
import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyvips")
Image = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

from halotile import cli, restore_to  # noqa: E402
from halotile.files import picture as files  # noqa: E402
from halotile.files import previews, tiff_tags  # noqa: E402
from halotile.files.previews import frames_of_png, planes_of_tiff, refusal  # noqa: E402
from halotile.files.tiff_tags import directories  # noqa: E402
from halotile.files.vips_rows import PictureSource  # noqa: E402

PREVIEW = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
RAW = np.random.default_rng(1).integers(0, 4096, (96, 128), np.uint16)
CFA, LINEAR = 32803, 34892
REFUSED = r"a camera raw file \({}\): only its preview can be read; develop it first"


def same(windows):
    return windows


def write_raw(path, *, make=None, dng=False, photometric=CFA, preview=PREVIEW, tags=(), raw_tags=(), **options):
    """A preview, reduced, and the raw image in a SubIFD, as cameras write them."""
    extra = [(271, 2, None, make, True)] if make else []
    extra += [(50706, 1, 4, (1, 4, 0, 0), True)] if dng else []
    with tifffile.TiffWriter(path, **options) as file:
        common = {"metadata": None, "software": False}
        file.write(preview, subfiletype=1, subifds=1, photometric="rgb", extratags=[*extra, *tags], **common)
        samples = {"photometric": photometric, "extratags": list(raw_tags)}
        file.write(np.dstack([RAW] * 3) if photometric == LINEAR else RAW, subfiletype=0, **samples, **common)


# ---- camera raw files ------------------------------------------------------------------------------------------------

CFA_TAGS = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, (0, 1, 1, 2), True)]
RAWS = {
    "DNG": ({"dng": True}, "DNG"),
    "DNG, linear": ({"dng": True, "photometric": LINEAR}, "DNG"),
    "DNG, big endian": ({"dng": True, "byteorder": ">"}, "DNG"),
    "DNG, BigTIFF": ({"dng": True, "bigtiff": True}, "DNG"),
    "DNG, BigTIFF, big endian": ({"dng": True, "bigtiff": True, "byteorder": ">"}, "DNG"),
    "linear without a version": ({"photometric": LINEAR}, "TIFF/EP"),
    "NEF": ({"make": "NIKON CORPORATION", "raw_tags": CFA_TAGS}, "NEF"),
    "ARW": ({"make": "SONY"}, "ARW"),
    "PEF": ({"make": "PENTAX Corporation"}, "PEF"),
    "SRW": ({"make": "SAMSUNG"}, "SRW"),
    "3FR": ({"make": "Hasselblad"}, "3FR"),
    "of nobody": ({}, "TIFF/EP"),
    "mosaic tags alone": ({"photometric": "minisblack", "raw_tags": CFA_TAGS}, "TIFF/EP"),
    "a larger image of a camera": ({"photometric": "minisblack", "make": "Canon"}, "CR2"),
}


@pytest.mark.parametrize("name", ["photo.tif", "photo.TIFF", "photo.png", "photo"])
@pytest.mark.parametrize("kind", list(RAWS))
def test_camera_raw_files_are_refused_by_name(tmp_path, kind, name):
    options, called = RAWS[kind]
    path = tmp_path / name
    write_raw(path, **options)
    message = REFUSED.format(called)
    for read in (files.read_image, files.read_header, files.read_shape, PictureSource):
        with pytest.raises(ValueError, match=message):
            read(path)
    for page in (1, 2):
        with pytest.raises(ValueError, match=message):
            files.read_header(path, page=page)
    with pytest.raises(ValueError, match=message):
        restore_to(tmp_path / "out.npy", path, same)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("suffix", ["nef", "ARW", "pef", "srf", "kdc", "dng"])
def test_the_suffix_is_a_second_hint(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    write_raw(path, photometric="minisblack", preview=np.zeros((96, 128, 3), np.uint8))
    with pytest.raises(ValueError, match=REFUSED.format(suffix.upper())):
        files.read_image(path)
    path.write_bytes(b"II*\0\xff\xff\xff\xff" + bytes(30))
    with pytest.raises(ValueError, match=REFUSED.format(suffix.upper())):
        files.read_image(path)
    tifffile.imwrite(path, PREVIEW, photometric="rgb", metadata=None)  # named so, and nothing else
    assert np.array_equal(files.read_image(path).pixels, PREVIEW)


@pytest.mark.parametrize("compression", [262, 32767, 32769, 32770, 34713, 65000, 65535])
def test_compressions_of_cameras(tmp_path, compression):
    path = tmp_path / "photo.tif"
    tifffile.imwrite(path, RAW, photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", compression)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=REFUSED.format("TIFF/EP")):
        files.read_image(path)


def test_a_mosaic_alone_is_one(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RAW, photometric=CFA, metadata=None)
    with pytest.raises(ValueError, match=REFUSED.format("TIFF/EP")):
        files.read_image(tmp_path / "a.tif")


def test_a_mosaic_behind_the_preview_is_one(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PREVIEW, photometric="rgb", subfiletype=1, metadata=None)
        file.write(RAW, photometric=CFA, metadata=None)
    with pytest.raises(ValueError, match=REFUSED.format("TIFF/EP")):
        files.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "start, name",
    [
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"FOVb\0\0\2\0", "X3F"),
        (b"\0MRM\0\0\0\0", "MRW"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIRS\x08\0\0\0", "ORF"),
        (b"MMOR\0\0\0\x08", "ORF"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"II\x1a\0\0\0HEAPCCDR", "CRW"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (b"II*\0\x08\0\0\0IIII\0waR", "IIQ"),
        (b"MM\0*\0\0\0\x08MMMMRaw\0", "IIQ"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif", "x"])
def test_camera_raw_files_of_formats_of_their_own(tmp_path, start, name, suffix):
    path = tmp_path / f"photo.{suffix}"
    path.write_bytes(start + bytes(1000))
    with pytest.raises(ValueError, match=REFUSED.format(name)):
        files.read_header(path)


def test_on_the_command_line_one_refused_file_stops_no_other(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    files.write_image("in/a.png", PREVIEW)
    write_raw("in/b.tif", dng=True)
    tifffile.imwrite("in/c.tif", np.zeros((5, 20, 30), np.uint8), imagej=True, truncate=True)
    os.truncate("in/c.tif", 1000)
    files.write_image("in/d.png", PREVIEW)
    (tmp_path / "model.py").write_text("def same(windows):\n    return windows\n")
    command = ["restore", "in", "-o", "out/", "-m", "model:same"]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert "in/b.tif: a camera raw file (DNG): only its preview can be read; develop it first" in said.err
    assert "in/c.tif: an ImageJ stack of 5 images" in said.err
    assert "2 of 4 files failed: in/b.tif, in/c.tif" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "d.png"]
    assert cli.main([*command, "--json", "--force"]) == 2
    found = {one["input"]: one["status"] for one in json.loads(capsys.readouterr().out)["files"]}
    assert found == {"in/a.png": "restored", "in/b.tif": "failed", "in/c.tif": "failed", "in/d.png": "restored"}
    write_raw("raw.dng", dng=True)
    for arguments in (["restore", "raw.dng", "-o", "x.png", "-m", "model:same"], ["plan", "raw.dng"]):
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.count("raw.dng: a camera raw file (DNG)") == 1
    assert not (tmp_path / "x.png").exists()


# ---- previews of other files -----------------------------------------------------------------------------------------


def test_an_image_under_a_smaller_one_is_not_lost_in_silence(tmp_path):
    write_raw(tmp_path / "a.tif", photometric="minisblack")
    with pytest.raises(ValueError, match=r"its image of 128 x 96 is in a SubIFD, .* below one of 16 x 12"):
        files.read_image(tmp_path / "a.tif")


def pyramid(path, levels=3, **options):
    image = np.random.default_rng(2).integers(0, 256, (128, 192, 3), np.uint8)
    with tifffile.TiffWriter(path, **options) as file:
        tags = [(271, 2, None, "NIKON CORPORATION", True)]  # of a scanner
        file.write(image, subifds=levels - 1, photometric="rgb", tile=(64, 64), extratags=tags, metadata=None)
        for level in range(1, levels):
            file.write(image[:: 2**level, :: 2**level], subfiletype=1, photometric="rgb", tile=(64, 64), metadata=None)
    return image


@pytest.mark.parametrize("options", [{}, {"ome": True}, {"bigtiff": True}, {"byteorder": ">"}])
def test_pyramids_are_read(tmp_path, options):
    image = pyramid(tmp_path / "a.tif", **options)
    assert np.array_equal(files.read_image(tmp_path / "a.tif").pixels, image)
    restore_to(tmp_path / "out.npy", tmp_path / "a.tif", same)
    assert np.array_equal(np.load(tmp_path / "out.npy"), image)


def test_pyramids_of_libvips_are_read(tmp_path):
    import pyvips

    image = np.random.default_rng(2).integers(0, 256, (300, 400, 3), np.uint8)
    whole = pyvips.Image.new_from_array(image)
    whole.tiffsave(str(tmp_path / "a.tif"), pyramid=True, subifd=True, tile=True, tile_width=64, tile_height=64)
    assert np.array_equal(files.read_image(tmp_path / "a.tif").pixels, image)


@pytest.mark.parametrize("subfiletype", [1, 4])
def test_thumbnails_and_masks_beside_the_image_are_no_reason(tmp_path, subfiletype):
    image = np.random.default_rng(2).integers(0, 256, (96, 128, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(image, photometric="rgb", subifds=1, metadata=None)
        mask = {"data": np.ones((96, 128), bool), "photometric": "mask"}
        thumbnail = {"data": PREVIEW, "photometric": "rgb"}
        file.write(**(mask if subfiletype == 4 else thumbnail), subfiletype=subfiletype, metadata=None)
    assert np.array_equal(files.read_image(tmp_path / "a.tif").pixels, image)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(image, photometric="rgb", metadata=None)
        file.write(PREVIEW, photometric="rgb", subfiletype=1, metadata=None)
    with pytest.warns(UserWarning, match="holds 2 pages; the first is read"):
        assert np.array_equal(files.read_image(tmp_path / "b.tif").pixels, image)


@pytest.mark.parametrize("marks", [(1,), (4,), (5,), (1, 1, 1), (1, 4)])
def test_pages_that_are_marked_as_no_images_of_their_own_are_left_out(tmp_path, capsys, monkeypatch, marks):
    """A thumbnail, a slide's label, a mask: whatever their sizes, the first page is the image."""
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(2).integers(0, 256, (96, 128, 3), np.uint8)
    with tifffile.TiffWriter("in.tif") as file:
        file.write(image, photometric="rgb", metadata=None)
        for number, mark in enumerate(marks):
            if mark & 4:
                file.write(np.ones((96, 128), bool), photometric="mask", subfiletype=mark, metadata=None)
            else:
                file.write(PREVIEW[number:], photometric="rgb", subfiletype=mark, metadata=None)
    header = files.read_header("in.tif")
    assert (header.shape, header.pages, header.pyramid) == ((96, 128, 3), 1, True)
    (tmp_path / "nets.py").write_text("def same(windows):\n    return windows\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["restore", "in.tif", "-o", "out.tif", "--model", "nets:same"]) == 0
    assert np.array_equal(files.read_image("out.tif").pixels, image)
    assert "page" not in capsys.readouterr().err


def test_what_is_marked_must_not_come_first(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PREVIEW, photometric="rgb", subfiletype=1, metadata=None)
        file.write(np.zeros((96, 128, 3), np.uint8), photometric="rgb", metadata=None)
    with pytest.raises(ValueError, match="page must say which"):
        files.read_header(tmp_path / "a.tif")


# ---- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "samples"),
    [
        ("int8", "samples are 8-bit signed integers"),
        ("int16", "samples are 16-bit signed integers"),
        ("uint32", "samples are 32-bit unsigned integers"),
        ("int32", "samples are 32-bit signed integers"),
        ("float64", "samples of 64 bits"),
        ("uint64", "samples of 64 bits"),
        ("complex64", "samples of 64 bits"),
    ],
)
def test_samples_that_are_not_read_are_named_with_the_cure(tmp_path, dtype, samples):
    tifffile.imwrite(tmp_path / "old.tif", np.arange(12).reshape(3, 4).astype(dtype))
    for read in (files.read_image, files.read_header, PictureSource):
        with pytest.raises(ValueError, match=rf"{samples}; must be .*imread\(old\)\.astype\('float32'\)"):
            read(tmp_path / "old.tif")
    if dtype != "complex64":
        tifffile.imwrite(tmp_path / "new.tif", tifffile.imread(tmp_path / "old.tif").astype("float32"))
        assert files.read_image(tmp_path / "new.tif").pixels[2, 3] == 11


@pytest.mark.parametrize("kind", ["GIF", "BMP", "JPEG2000", "PPM", "PDF", "DDS"])
def test_image_files_of_other_kinds_are_named(tmp_path, kind):
    path = tmp_path / "a.png"
    try:
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, format=kind)
    except (KeyError, OSError):
        pytest.skip("Pillow has no encoder for it here")
    name = {"JPEG2000": "JPEG 2000", "PPM": "Netpbm"}.get(kind, kind)
    with pytest.raises(ValueError, match=rf"a\.png: not a PNG, .* \(it is {name}: convert it to PNG or TIFF first\)"):
        files.read_image(path)


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"", "it is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is HEIF: convert"),
        (b"\xff\x0a\x00", "it is JPEG XL: convert"),
        (b"\0\0\0\x0cJXL \r\n", "it is JPEG XL: convert"),
        (b"8BPS\0\1", "it is Photoshop: convert"),
        (b"<html>", "it starts with b'<html>'"),
        (b"\x93NUMPY\1\0", r"it is a NumPy array: its name must end in \.npy"),
    ],
)
def test_what_a_file_is_instead(tmp_path, monkeypatch, start, what):
    monkeypatch.setattr("halotile.files.codecs.reads_heic", lambda: False)
    (tmp_path / "a.jpg").write_bytes(start)
    with pytest.raises(ValueError, match=rf"a\.jpg: not a PNG, JPEG, WebP, TIFF or AVIF file \({what}"):
        files.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("value", list(b"IMR\x10"))
def test_pixels_that_look_like_a_mark_are_none(tmp_path, value):
    """Uncompressed pixels may follow the first bytes."""
    image = np.full((40, 50), value, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, metadata=None, software=False)
    data = (tmp_path / "a.tif").read_bytes()
    assert np.array_equal(files.read_image(tmp_path / "a.tif").pixels, image)
    strip = struct.pack("<II8sII", 8 + 4, 0, bytes([value]) * 8, 0, 0)
    assert refusal("a.tif", data[:8] + strip, reading(b"II*\0" + strip)) is None


# ---- stacks ----------------------------------------------------------------------------------------------------------

STACK = np.random.default_rng(3).integers(0, 256, (5, 20, 30), np.uint8)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["ImageJ", "tifffile"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "colour"])
def test_stacks_in_one_directory_are_all_their_slices(tmp_path, capsys, monkeypatch, kind, byteorder, dtype):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.tif"
    options = {"imagej": True} if kind == "ImageJ" else {"metadata": {"axes": "ZYX"}}
    if not (kind == "ImageJ" and byteorder == "<"):
        options["byteorder"] = byteorder
    stack = np.stack([STACK] * 3, -1) if dtype == "colour" else STACK.astype(dtype) * (1 if dtype == "uint8" else 3)
    if dtype == "colour" and kind == "tifffile":
        options["metadata"] = {"axes": "ZYXS"}
    photometric = "rgb" if dtype == "colour" else "minisblack"
    tifffile.imwrite(path, stack, truncate=True, photometric=photometric, **options)
    header = files.read_header(path)
    assert (header.pages, header.shape, header.dtype) == (5, stack.shape[1:], stack.dtype.name)
    for page in range(1, 6):
        np.testing.assert_array_equal(files.read_image(path, page=page).pixels, stack[page - 1])
        source = PictureSource(path, page=page)
        np.testing.assert_array_equal(source.whole(), stack[page - 1])
    with pytest.raises(ValueError, match="page=6; must be from 1 to 5"):
        files.read_image(path, page=6)
    with pytest.warns(UserWarning, match="holds 5 pages; the first is read"):
        np.testing.assert_array_equal(files.read_image(path).pixels, stack[0])
    (tmp_path / "model.py").write_text("def same(windows):\n    return windows * 1\n")
    assert cli.main(["restore", "a.tif", "-o", "b.tif", "-m", "model:same"]) == 0
    assert files.read_header("b.tif").pages == 5
    for page in range(1, 6):
        np.testing.assert_array_equal(files.read_image("b.tif", page=page).pixels, stack[page - 1])


@pytest.mark.parametrize("how", ["cut", "gaps"])
def test_stacks_that_cannot_be_read_are_refused_by_name(tmp_path, how):
    path = tmp_path / "a.tif"
    if how == "cut":
        tifffile.imwrite(path, STACK, truncate=True, imagej=True)
        path.write_bytes(path.read_bytes()[:-40])
    else:
        tags = [(270, 2, None, "ImageJ=1.5\nimages=5\n", True)]
        tifffile.imwrite(path, STACK[0], extratags=tags, metadata=None, description=None, compression="deflate")
    message = r"a\.tif: an ImageJ stack of 5 images, of which only the first can .*imwrite\(new, .*imread\(old\)"
    for read in (files.read_image, files.read_header, files.read_shape, PictureSource):
        with pytest.raises(ValueError, match=message):
            read(path)
    with pytest.raises(ValueError, match=message):
        restore_to(tmp_path / "out.npy", path, same)


@pytest.mark.parametrize("lines", ["images=5\nslices=5\n", "slices=5\nimages=5", "unit=um\r\nimages=5\r\nloop=false"])
def test_what_imagej_writes(tmp_path, lines):
    text = f"ImageJ=1.54f\n{lines}"
    tags = [(270, 2, None, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], extratags=tags, metadata=None, description=None, software=False)
    with pytest.raises(ValueError, match="an ImageJ stack of 5 images"):
        files.read_image(tmp_path / "a.tif")


def test_stacks_with_fewer_directories_than_images(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for index in range(2):
            tags = [(270, 2, None, "ImageJ=1.5\nimages=5\n", True)] if index == 0 else []
            file.write(STACK[index], extratags=tags, metadata=None, description=None, contiguous=False)
    with pytest.raises(ValueError, match="an ImageJ stack of 5 images, of which only the first 2 can be read"):
        files.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16, 16)}, {"bigtiff": True, "byteorder": ">"}])
def test_a_volume_of_voxels(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 64, 64), np.uint8), volumetric=True, metadata=None, **options)
    with pytest.raises(ValueError, match="a volume of 5 images, of which only the first can be read"):
        files.read_image(tmp_path / "a.tif")


def test_a_metamorph_stack(tmp_path):
    tags = [(33628, 4, 2, (0, 0), True), (33629, 5, 4, (1, 1) * 4, True)]
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], extratags=tags, metadata=None)
    with pytest.raises(ValueError, match="a MetaMorph stack of 4 images"):
        files.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True},
        {"metadata": {"axes": "ZYX"}},
        {"metadata": None},
        {"ome": True},
        {"metadata": None, "description": "ImageJ=1.5\nimages=1\n"},
        {"metadata": None, "description": "not ImageJ=1.5\nimages=9\n"},
        {"metadata": None, "description": "ImageJ=1.5\nimagesize=9\n"},
        {"metadata": None, "description": '{"shape": [9, 20, 30], "truncated": "no"}'},
        {"metadata": None, "description": '{"shape": ' + "[" * 3000},
        {"metadata": None, "description": '{"shape": [99999999999999999999999, -1, true], "truncated": true}'},
    ],
)
def test_ordinary_stacks_and_single_images_are_read(tmp_path, options):
    for stack in (STACK, STACK[:1], STACK[0]):
        tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(files.read_image(tmp_path / "a.tif").pixels, stack.reshape(-1, 20, 30)[0])


# ---- animations ------------------------------------------------------------------------------------------------------


def animation(path, frames, **options):
    pictures = [Image.fromarray(np.full((20, 30, 3), 40 * index, np.uint8)) for index in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)


def test_animated_pngs_are_warned_about(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    animation("a.png", 4)
    for read in (files.read_image, PictureSource, files.read_shape):
        with pytest.warns(UserWarning, match=r"a\.png: holds 4 frames; the first is read"):
            read("a.png")
    with pytest.warns(UserWarning, match=r"a\.png: holds 4 frames; the first is read"):
        restore_to("out.npy", "a.png", same)
    assert (np.load("out.npy") == 0).all()
    (tmp_path / "model.py").write_text("def same(windows):\n    return windows\n")
    for output in ("b.png", "out/"):
        assert cli.main(["restore", "a.png", "-o", output, "-m", "model:same"]) == 0
        assert capsys.readouterr().err == "halotile: warning: a.png: holds 4 frames; the first is read\n"


def test_a_still_image_that_is_no_frame(tmp_path):
    animation(tmp_path / "a.png", 3, default_image=True)
    with pytest.warns(UserWarning, match=r"a\.png: holds an animation of 2 frames; its still image is read"):
        files.read_image(tmp_path / "a.png")


def test_other_pngs_are_not_warned_about(tmp_path):
    animation(tmp_path / "a.png", 1)
    Image.fromarray(PREVIEW).save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files.read_image(tmp_path / "a.png")
        files.read_image(tmp_path / "b.png")
        animation(tmp_path / "c.png", 4)
        files.read_image(tmp_path / "c.png", page=1)  # asked for


# ---- whatever a file claims ------------------------------------------------------------------------------------------


def reading(data, log=None):
    def read_at(offset, size):
        assert isinstance(offset, int) and isinstance(size, int)
        if log is not None:
            log.append(size)
        return data[offset : offset + size] if 0 <= offset < len(data) and size > 0 else b""

    return read_at


def examine(data):
    """All that is looked at, of a file with such content."""
    log = []
    start = data[: previews.START]
    refusal("a.dng", start, reading(data, log))
    if start.startswith(tiff_tags.TIFF_MAGIC):
        planes_of_tiff(reading(data, log))
    frames_of_png(reading(data, log))
    assert len(log) < 20_000 and sum(log) < 2**24
    return log


def real_files():
    found = []
    for options in ({}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}):
        file = io.BytesIO()
        write_raw(file, dng=True, make="NIKON", raw_tags=CFA_TAGS, **options)
        found.append(file.getvalue()[:6000])
    file = io.BytesIO()
    tifffile.imwrite(file, STACK, imagej=True)
    found.append(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(PREVIEW).save(file, "PNG", save_all=True, append_images=[Image.fromarray(255 - PREVIEW)])
    return [*found, file.getvalue()]


REAL = real_files()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.sampled_from(REAL),
    changes=st.lists(st.tuples(st.integers(0, 5999), st.binary(min_size=1, max_size=8)), max_size=8),
    length=st.integers(0, 6000),
)
def test_damaged_files(data, changes, length):
    damaged = bytearray(data)
    for offset, new in changes:
        damaged[offset % len(damaged) :][: len(new)] = new
        at = offset % len(damaged)
        damaged[at : at + len(new)] = new
    examine(bytes(damaged[:length]))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*tiff_tags.TIFF_MAGIC, b"\x89PNG\r\n\x1a\n", b""]), st.binary(max_size=400))
@example(b"II*\0", b"")
@example(b"II+\0", b"\x08\0\0\0" + b"\xff" * 8)
def test_any_content(magic, rest):
    examine(magic + rest)


def entry(order, tag, kind, count, value):
    return struct.pack(f"{order}HHII", tag, kind, count, value)


@pytest.mark.parametrize("order", ["<", ">"])
def test_circles_and_endless_chains_end(order):
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    itself = head + struct.pack(f"{order}H", 1) + entry(order, 330, 4, 1, 8) + struct.pack(f"{order}I", 8)
    assert len(directories(reading(itself))) == 1
    chain = bytearray(head)
    for index in range(5000):
        following = 8 + (index + 1) * 18
        chain += struct.pack(f"{order}H", 1) + entry(order, 256, 4, 1, index) + struct.pack(f"{order}I", following)
    assert [one.number(256) for one in directories(reading(bytes(chain)))] == list(range(tiff_tags.DIRECTORIES))
    examine(bytes(chain))


def test_huge_counts_are_not_believed():
    entries = b"".join(entry("<", tag, kind, 2**32 - 1, 8) for tag in (270, 271, 330, 33629) for kind in range(20))
    data = b"II*\0\x08\0\0\0\xff\xff" + entries + bytes(100)
    tracemalloc.start()
    started = time.monotonic()
    examine(data)
    big = b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 8 + struct.pack("<HHQQ", 270, 2, 2**64 - 1, 2**64 - 2) * 2000
    examine(big)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert time.monotonic() - started < 2


def test_little_is_read_of_a_large_file(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4000, 4000), np.uint8), metadata=None)
    assert sum(examine(path.read_bytes())) < 10_000


def test_a_png_of_endless_chunks():
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sI", 0, b"aaAa", 0) * 10**5
    assert frames_of_png(reading(data)) == (1, True)
    examine(data)
    jump = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sI", 2**32 - 1, b"aaAa", 0)
    assert frames_of_png(reading(jump)) == (1, True)
