# SPDX-License-Identifier: MIT
"""What image files of other programs' libraries hold beside pixels: carried, mended, or named where it is lost."""

import json
import struct
import warnings
import zlib

import numpy as np
import pytest

pytest.importorskip("pyvips")
tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")

from halotile import cli, restore_to  # noqa: E402
from halotile.files import picture as files  # noqa: E402

PHOTO = np.random.default_rng(0).integers(1, 255, (40, 60, 3), np.uint8)
AREA = (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1)
POINT = (*AREA[:-1], 2)


def same(x):
    return x * 1


def twice(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def geo_tags(keys=AREA, nodata=None, metadata=None):
    tags = [
        (33550, "d", 3, (10.0, 20.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 4500000.0, 0.0), True),
        (34735, "H", len(keys), keys, True),
        (34737, "s", 0, "WGS 84 / UTM zone 33N|", True),
    ]
    tags += [(42113, "s", 0, nodata, True)] if nodata else []
    return tags + ([(42112, "s", 0, metadata, True)] if metadata else [])


def tags_of(path, page=0):
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages[page].tags}


def world(tags, row, column):
    """Coordinates of the corner of a pixel."""
    if 34264 in tags:
        a, b, _, d, e, f, _, h = tags[34264][:8]
        return a * column + b * row + d, e * column + f * row + h
    i, j, _, x, y, _ = tags[33922][:6]
    point = tags[34735][-1] == 2
    column, row = (column - 0.5, row - 0.5) if point else (column, row)
    return x + (column - i) * tags[33550][0], y - (row - j) * tags[33550][1]


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [AREA, POINT])
@pytest.mark.parametrize("model", [same, twice])
def test_a_georeference_is_of_the_same_place(tmp_path, keys, model):
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=geo_tags(keys), metadata=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_to(tmp_path / "b.tif", tmp_path / "a.tif", model)
    scale = 2 if model is twice else 1
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    assert after[34735] == keys and after[34737] == before[34737]
    for row, column in ((0, 0), (40, 60), (7, 11)):
        assert world(after, row * scale, column * scale) == pytest.approx(world(before, row, column), abs=1e-6)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), PHOTO.repeat(scale, 0).repeat(scale, 1))


def test_a_rotated_georeference(tmp_path):
    matrix = (8.0, 3.0, 0.0, 1000.0, 2.0, -9.0, 0.0, 2000.0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    tags = [(34264, "d", 16, matrix, True), (34735, "H", 12, AREA, True)]
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=tags, metadata=None, bigtiff=True, byteorder=">")
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", twice)
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    for row, column in ((0, 0), (40, 60)):
        assert world(after, row * 2, column * 2) == pytest.approx(world(before, row, column), abs=1e-9)


def test_what_cannot_be_held_is_named_in_one_warning(tmp_path):
    tags = [*geo_tags(), (50844, "d", 92, (1.0,) * 92, True)]
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=tags, metadata=None, description="a field")
    with pytest.warns(UserWarning) as caught:
        restore_to(tmp_path / "b.png", tmp_path / "a.tif", same)
    texts = [str(one.message) for one in caught]
    assert len(texts) == 1
    assert texts[0].endswith("PNG does not get this: description, RPC coefficients, georeference")


def test_statistics_of_pixels_are_not_carried(tmp_path):
    text = '<GDALMetadata><Item name="STATISTICS_MEAN" sample="0">7</Item><Item name="BAND">red</Item></GDALMetadata>'
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=geo_tags(metadata=text), metadata=None)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    assert tags_of(tmp_path / "b.tif")[42112] == '<GDALMetadata><Item name="BAND">red</Item></GDALMetadata>'


def test_the_files_own_nodata_is_filled_and_carried(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    heights = np.linspace(0.2, 0.8, 2400, dtype=np.float32).reshape(40, 60)
    heights[5:20, 5:20] = -9999
    tifffile.imwrite("a.tif", heights, extratags=geo_tags(nodata="-9999"), metadata=None)
    seen = []

    def watched(x):
        seen.append(x.min())
        return x * 1

    info = restore_to("b.tif", "a.tif", watched)
    assert min(seen) > 0.1 and info.filled.values == 225
    assert float(tags_of("b.tif")[42113]) == -9999
    np.testing.assert_array_equal(files.read_image("b.tif").pixels, heights)
    (tmp_path / "model.py").write_text("def same(x):\n    return x * 1\n")
    assert cli.main(["restore", "a.tif", "-o", "c.tif", "-m", "model:same", "--verify", "2"]) == 0
    np.testing.assert_array_equal(files.read_image("c.tif").pixels, heights)
    assert "nodata -9999" in capsys.readouterr().out


# ---- bands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bands", "photometric", "samples"),
    [(4, "rgb", ["unspecified"]), (12, "minisblack", [0] * 11), (2, "minisblack", [0]), (7, "rgb", [0] * 4)],
)
def test_bands_beyond_colours_are_no_alpha(tmp_path, bands, photometric, samples):
    image = np.random.default_rng(0).integers(0, 65535, (40, 50, bands), np.uint16)
    image[:20, :, -1] = 0  # would hide the colours of an image with alpha
    options = {"photometric": photometric, "extrasamples": samples, "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", image, **options)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), image)
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    assert after[262] == before[262] and after[338] == before[338] == (0,) * len(samples)
    np.testing.assert_array_equal(files.read_image(tmp_path / "b.tif").pixels, image)


@pytest.mark.parametrize("kind", ["ycbcr", "cmyk", "palette", "white is zero"])
def test_other_colour_spaces_become_colours(tmp_path, kind):
    picture = Image.fromarray(np.repeat(np.repeat(PHOTO[:5, :8], 8, 0), 8, 1))
    if kind == "ycbcr":
        picture.save(tmp_path / "a.tif", compression="jpeg", quality=95)
    elif kind == "white is zero":
        tifffile.imwrite(tmp_path / "a.tif", np.asarray(picture)[..., 0], photometric="miniswhite")
    else:
        picture.convert({"cmyk": "CMYK", "palette": "P"}[kind]).save(tmp_path / "a.tif")
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    tags = tags_of(tmp_path / "b.tif")
    assert tags[262] == (1 if kind == "white is zero" else 2) and 338 not in tags
    np.testing.assert_array_equal(
        files.read_image(tmp_path / "b.tif").pixels, files.read_image(tmp_path / "a.tif").pixels
    )


def test_three_bands_that_are_no_colours_stay_so(tmp_path):
    options = {"photometric": "minisblack", "extrasamples": [0, 0], "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, **options)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    tags = tags_of(tmp_path / "b.tif")
    assert tags[262] == 1 and tags[338] == (0, 0)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), PHOTO)

    def grey(x):
        if x.shape[1] != 1:
            raise ValueError(f"expected 1 channel, got {x.shape[1]}")
        return x * 1

    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", grey)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), PHOTO)


def test_alpha_is_still_alpha(tmp_path):
    image = np.dstack([PHOTO, np.full((40, 60), 200, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", metadata=None)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    assert tags_of(tmp_path / "b.tif")[338] == (2,)


def test_arrays_of_many_channels_are_no_colours(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 6), np.uint8)
    restore_to(tmp_path / "b.tif", image, same, compression=0)
    tags = tags_of(tmp_path / "b.tif")
    assert tags[262] == 1 and tags[338] == (0,) * 5
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), image)


# ---- descriptions ----------------------------------------------------------------------------------------------------


def test_ome_sizes_are_mended(tmp_path):
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, photometric="rgb", ome=True, metadata=metadata)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", twice)
    text = tags_of(tmp_path / "b.tif")[270]
    for words in ('SizeX="120"', 'SizeY="80"', 'PhysicalSizeX="0.25"', 'PhysicalSizeY="0.125"', 'SizeC="3"'):
        assert words in text
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.is_ome and file.series[0].shape == (80, 120, 3)


def test_imagej_stacks_stay_imagej_stacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twofold.py").write_text("def twice(x):\n    return x.repeat(2, axis=2).repeat(2, axis=3)\n")
    stack = np.random.default_rng(0).integers(0, 65535, (5, 40, 50), np.uint16)
    options = {"resolution": (4.0, 4.0), "metadata": {"unit": "um", "spacing": 2.0, "axes": "ZYX"}, "truncate": True}
    tifffile.imwrite("a.tif", stack, imagej=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["restore", "a.tif", "-o", "b.tif", "-m", "twofold:twice"]) == 0
    with tifffile.TiffFile("b.tif") as file:
        assert file.imagej_metadata["slices"] == 5 and file.imagej_metadata["unit"] == "um"
        assert len(file.pages) == 5
        x, y = file.pages[0].tags[282].value
        assert x / y == pytest.approx(8, rel=1e-3)
    with pytest.warns(UserWarning, match="does not get this: ImageJ's description"):
        restore_to("c.tif", "a.tif", same)  # one slice of five


def test_other_descriptions_are_carried(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, metadata=None, description="Field 7")
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", twice)
    assert tags_of(tmp_path / "b.tif")[270] == "Field 7"
    tifffile.imwrite(tmp_path / "a.tif", PHOTO)
    assert json.loads(tags_of(tmp_path / "a.tif")[270])["shape"] == [40, 60, 3]
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", twice)
    assert 270 not in tags_of(tmp_path / "b.tif")


# ---- what no file gets -----------------------------------------------------------------------------------------------

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">%s</rdf:RDF></x:xmpmeta>'
GAIN_MAP = b'<rdf:Description hdrgm:Version="1.0" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"/>'
MOTION = b'<rdf:Description GCamera:MotionPhoto="1" xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"/>'


@pytest.mark.parametrize(("inside", "name"), [(GAIN_MAP, "gain map"), (MOTION, "motion photo")])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_gain_maps_and_motion_photos_are_named_and_their_xmp_goes(tmp_path, inside, name, suffix):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", xmp=XMP % inside)
    with pytest.warns(UserWarning, match=f"does not get this: {name}$"):
        restore_to(tmp_path / f"b.{suffix}", tmp_path / "a.jpg", same)
    assert "xmp-data" not in files.read_image(tmp_path / f"b.{suffix}").metadata
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", xmp=XMP % b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_to(tmp_path / f"b.{suffix}", tmp_path / "a.jpg", same)
    assert "xmp-data" in files.read_image(tmp_path / f"b.{suffix}").metadata


def png_with(path, **chunks):
    Image.fromarray(PHOTO).save(path)
    data = path.read_bytes()
    extra = b"".join(
        struct.pack(">I", len(body)) + name.encode() + body + struct.pack(">I", zlib.crc32(name.encode() + body))
        for name, body in chunks.items()
    )
    path.write_bytes(data[:33] + extra + data[33:])


@pytest.mark.parametrize(
    ("chunks", "named"),
    [
        ({"gAMA": struct.pack(">I", 100000)}, "gAMA"),
        ({"gAMA": struct.pack(">I", 45455)}, None),
        ({"gAMA": struct.pack(">I", 100000), "sRGB": b"\0"}, None),
        ({"cICP": b"\x09\x10\0\1"}, "cICP"),
        ({"cICP": b"\x01\x0d\0\1"}, None),
        ({"cHRM": struct.pack(">8I", *[30000] * 8)}, "cHRM"),
    ],
)
def test_colours_of_pngs_are_named(tmp_path, chunks, named):
    png_with(tmp_path / "a.png", **chunks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restore_to(tmp_path / "b.png", tmp_path / "a.png", same)
    assert [str(one.message).rpartition(": ")[2] for one in caught] == ([named] if named else [])


def test_sixteen_signed_bits_and_doubles_say_what_to_do(tmp_path):
    for dtype, words in (("int16", "16-bit signed integers"), ("float64", "64 bits")):
        tifffile.imwrite(tmp_path / "a.tif", PHOTO[..., 0].astype(dtype))
        with pytest.raises(ValueError, match=rf"{words}.*tifffile\.imwrite\(new, .*astype\('float32'\)"):
            restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)


def test_a_georeference_of_another_size_than_the_models(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=geo_tags(), metadata=None)
    restore_to(tmp_path / "b.tif", tmp_path / "a.tif", twice, size=(30, 45))
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    assert world(after, 30, 45) == pytest.approx(world(before, 40, 60))


def test_pages_have_tags_of_their_own(tmp_path, monkeypatch):
    """The first page has the georeference; what bands are is said of every page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same_as_it_is.py").write_text("def same(x):\n    return x * 1\n")
    image = np.random.default_rng(0).integers(0, 65535, (3, 40, 50, 6), np.uint16)
    with tifffile.TiffWriter("a.tif") as file:
        for index, page in enumerate(image):
            options = {"photometric": "minisblack", "extrasamples": [0] * 5, "planarconfig": "contig"}
            file.write(page, **options, metadata=None, extratags=geo_tags() if index == 0 else [])
    assert cli.main(["restore", "a.tif", "-o", "b.tif", "-m", "same_as_it_is:same", "--halo", "2"]) == 0
    np.testing.assert_array_equal(tifffile.imread("b.tif"), image)
    for page in range(3):
        tags = tags_of("b.tif", page)
        assert tags[262] == 1 and tags[338] == (0,) * 5 and (34735 in tags) == (page == 0)


def test_a_folder_of_everything(tmp_path, monkeypatch, capsys):
    """Phone photos, scans, icons, a GeoTIFF, a stack, animations, AVIF, raw files and what is no image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twofold_of_all.py").write_text("def twice(x):\n    return x.repeat(2, axis=2).repeat(2, axis=3)\n")
    place = tmp_path / "in"
    place.mkdir()
    photo = Image.fromarray(PHOTO)
    exif = photo.getexif()
    exif[0x112] = 6  # lies on its side
    photo.save(place / "phone.jpg", exif=exif, xmp=XMP % GAIN_MAP)
    photo.convert("L").save(place / "scan.tif", dpi=(300, 300))
    photo.convert("1").save(place / "fax.tif", compression="group4")
    photo.convert("P").resize((16, 16)).save(place / "icon.png")
    photo.convert("CMYK").save(place / "print.jpg")
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])).save(place / "logo.webp", lossless=True)
    frames = [photo, photo.rotate(90), photo.rotate(180)]
    frames[0].save(place / "moving.png", save_all=True, append_images=frames[1:])
    tifffile.imwrite(place / "field.tif", PHOTO, extratags=geo_tags(), metadata=None)
    stack = np.random.default_rng(0).integers(0, 65535, (4, 30, 40), np.uint16)
    tifffile.imwrite(place / "stack.tif", stack, imagej=True, truncate=True)
    tifffile.imwrite(place / "signed.tif", PHOTO[..., 0].astype(np.int16), metadata=None)
    (place / "raw.dng").write_bytes(b"II*\0")
    (place / "notes.txt").write_text("none")
    assert cli.main(["restore", "in", "-o", "out", "-m", "twofold_of_all:twice", "--halo", "2"]) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[-1].startswith("restored 9 of 11 files, 1 skipped, 1 failed, 1 other files ignored, ")
    assert lines[-3].startswith("skipped") and "camera raw files are not read" in lines[-3]
    assert lines[-2].startswith("failed") and "16-bit signed integers" in lines[-2]
    assert "phone.jpg: of the input, JPEG does not get this: gain map" in said.err
    assert "moving.png: holds 3 frames; the first is read" in said.err
    shapes = {"phone.jpg": (120, 80, 3), "scan.tif": (80, 120), "fax.tif": (80, 120), "icon.png": (32, 32, 3)}
    shapes |= {"print.jpg": (80, 120, 3), "logo.webp": (80, 120, 4), "field.tif": (80, 120, 3), "stack.tif": (60, 80)}
    for name, shape in shapes.items():
        assert files.read_header(tmp_path / "out" / name).shape == shape
    assert files.read_header(tmp_path / "out" / "stack.tif").pages == 4
    assert tags_of(tmp_path / "out" / "field.tif")[33550][:2] == (5.0, 10.0)


def test_texts_of_tiffs_are_carried_and_named(tmp_path):
    texts = [(315, "s", 0, "Ann", True), (33432, "s", 0, "2026 Ann", True), (269, "s", 0, "Field 7", True)]
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=texts, metadata=None, datetime=True, software=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    before, after = tags_of(tmp_path / "a.tif"), tags_of(tmp_path / "b.tif")
    assert all(after[tag] == before[tag] for tag in (315, 33432, 269, 306))
    with pytest.warns(UserWarning, match="PNG does not get this: artist, copyright, date, document name$"):
        restore_to(tmp_path / "b.png", tmp_path / "a.tif", same)


def test_what_libvips_does_not_read_of_a_tiff_is_named(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(34665)[36867] = "2026:01:01 00:00:00"
    Image.fromarray(PHOTO).save(tmp_path / "a.tif", exif=exif.tobytes())
    with pytest.warns(UserWarning, match="TIFF does not get this: EXIF$"):
        restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
    tifffile.imwrite(tmp_path / "a.tif", PHOTO, extratags=[(37724, "B", 4, b"8BIM", True)], metadata=None)
    with pytest.warns(UserWarning, match="TIFF does not get this: Photoshop's layers$"):
        restore_to(tmp_path / "b.tif", tmp_path / "a.tif", same)
