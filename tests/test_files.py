# SPDX-License-Identifier: MIT
"""Image files: what goes in comes out, whole or not at all, and no file crashes the reader."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

pyvips = pytest.importorskip("pyvips")

from halotile.files import codecs  # noqa: E402
from halotile.files.formats import PICTURES, check_output_path  # noqa: E402
from halotile.files.picture import Picture, read_header, read_image, read_shape, write_image  # noqa: E402

from .conftest import heed_interrupts  # noqa: E402

EXIF_ARTIST = ("exif-ifd0-Artist", "Ann (Ann, ASCII, 4 components, 4 bytes)")


def noise(rng, shape, dtype="uint8"):
    if dtype.startswith("float"):
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def gradient(height=60, width=80, channels=3):
    """Smooth, so that lossy formats keep it nearly."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height), 128 + 0 * x]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def vips_image(pixels, **header):
    image = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
    for name, value in header.items():
        kind = {int: pyvips.GValue.gint_type, str: pyvips.GValue.gstr_type, bytes: pyvips.GValue.blob_type}[type(value)]
        image.set_type(kind, name, value)
    return image


def srgb_profile():
    return pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb").icc_transform("srgb").get("icc-profile-data")


def leftovers(directory):
    return [name for name in os.listdir(directory) if name.startswith(".")]


# ---- files written here byte by byte, without libvips ----


def png_bytes(header, rows, *chunks):
    """header: (width, height, bits, colour type); rows: bytes with a filter byte before each row."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    body += b"".join(chunk(*c) for c in chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff_bytes(pixels, order="<"):
    """A TIFF of one uncompressed strip."""
    height, width, channels = (*pixels.shape, 1)[:3]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    bits_at = 8 + len(data)
    bits = struct.pack(f"{order}{channels}H", *[8 * pixels.itemsize] * channels)
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8 * pixels.itemsize if channels == 1 else bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if channels < 3 else 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, sample_format),
    ]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(f"{order}H", value) + b"\0\0" if short else struct.pack(f"{order}I", value)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", bits_at + len(bits))
    return start + data + bits + directory + b"\0\0\0\0"


def test_reads_16_bit_png(tmp_path):
    values = [[0, 1, 256], [40000, 65534, 65535]]
    rows = b"".join(b"\0" + struct.pack(">3H", *row) for row in values)
    (tmp_path / "a.png").write_bytes(png_bytes((3, 2, 16, 0), rows))
    pixels = read_image(tmp_path / "a.png").pixels
    assert pixels.dtype == np.uint16
    assert pixels.tolist() == values


def test_reads_palette_png_as_rgb(tmp_path):
    palette = bytes([10, 20, 30, 200, 100, 0])
    (tmp_path / "a.png").write_bytes(png_bytes((2, 2, 8, 3), b"\0\0\1\0\1\0", (b"PLTE", palette)))
    assert read_image(tmp_path / "a.png").pixels.tolist() == [
        [[10, 20, 30], [200, 100, 0]],
        [[200, 100, 0], [10, 20, 30]],
    ]


def test_reads_1_bit_png_as_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes((4, 1, 1, 0), b"\0\xa0"))
    assert read_image(tmp_path / "a.png").pixels.tolist() == [[255, 0, 255, 0]]


def test_reads_palette_png_with_transparency_as_rgba(tmp_path):
    palette, alpha = bytes([10, 20, 30, 200, 100, 0]), bytes([0, 128])
    chunks = ((b"PLTE", palette), (b"tRNS", alpha))
    (tmp_path / "a.png").write_bytes(png_bytes((2, 1, 8, 3), b"\0\0\1", *chunks))
    assert read_image(tmp_path / "a.png").pixels.tolist() == [[[10, 20, 30, 0], [200, 100, 0, 128]]]


@pytest.mark.parametrize(("white_is_zero", "expected"), [(False, [255, 0, 255, 0]), (True, [0, 255, 0, 255])])
def test_reads_1_bit_tiff_as_grey(tmp_path, white_is_zero, expected):
    entries = [(256, 4), (257, 1), (258, 1), (259, 1), (262, int(not white_is_zero)), (273, 8), (277, 1), (278, 1)]
    directory = struct.pack("<H", len(entries) + 1)
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*entries, (279, 1)])
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 10) + b"\xa0\0" + directory + bytes(4))
    assert read_image(tmp_path / "a.tif").pixels.tolist() == [expected]


def test_reads_palette_tiff_as_rgb(tmp_path, rng):
    image = pytest.importorskip("PIL.Image")
    indexed = image.fromarray(noise(rng, (20, 30, 3))).quantize(8)
    indexed.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, np.array(indexed.convert("RGB")))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate"])
def test_reads_tiled_tiff(tmp_path, rng, dtype, compression):
    expected = noise(rng, (90, 75, 3), dtype)
    options = {"tile": True, "tile_width": 32, "tile_height": 16, "compression": compression, "bigtiff": True}
    vips_image(expected).tiffsave(str(tmp_path / "a.tif"), **options)
    picture = read_image(tmp_path / "a.tif")
    assert picture.pixels.dtype == dtype
    np.testing.assert_array_equal(picture.pixels, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_reads_tiff(tmp_path, rng, order, dtype, shape):
    expected = noise(rng, shape, dtype)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(expected, order))
    pixels = read_image(tmp_path / "a.tif").pixels
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, expected)


def test_written_png_has_16_bits_and_the_profile(tmp_path, rng):
    like = Picture(np.zeros((1, 1)), {"icc-profile-data": srgb_profile()})
    write_image(tmp_path / "a.png", noise(rng, (5, 7, 3), "uint16"), like=like)
    data = (tmp_path / "a.png").read_bytes()
    assert struct.unpack(">IIBB", data[16:26]) == (7, 5, 16, 2)
    assert b"iCCP" in data


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_lossless_round_trip(tmp_path, rng, suffix, dtype, channels):
    shape = (9, 13) if channels is None else (9, 13, channels)
    expected = noise(rng, shape, dtype)
    write_image(tmp_path / f"a{suffix}", expected)
    pixels = read_image(tmp_path / f"a{suffix}").pixels
    assert pixels.dtype == dtype
    assert pixels.shape == ((9, 13) if channels in (None, 1) else shape)
    np.testing.assert_array_equal(pixels, expected.reshape(pixels.shape))
    assert read_shape(tmp_path / f"a{suffix}") == (pixels.shape, dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_round_trip_through_tiff_as_float32(tmp_path, rng, dtype, channels):
    expected = noise(rng, (9, 13, channels), dtype)
    write_image(tmp_path / "a.tif", expected)
    pixels = read_image(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(pixels, expected.astype(np.float32).reshape(pixels.shape))


@pytest.mark.parametrize("channels", [3, 4])
def test_webp_of_quality_100_is_lossless(tmp_path, rng, channels):
    expected = noise(rng, (9, 13, channels))
    write_image(tmp_path / "a.webp", expected, quality=100)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp").pixels, expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
@pytest.mark.parametrize("channels", [None, 3])
def test_lossy_round_trip(tmp_path, suffix, channels):
    expected = gradient()[..., 0] if channels is None else gradient()
    write_image(tmp_path / f"a{suffix}", expected)
    pixels = read_image(tmp_path / f"a{suffix}").pixels
    if pixels.shape != expected.shape:  # WebP holds grey as RGB
        assert suffix == ".webp"
        pixels = pixels[..., 1]
    assert np.abs(pixels.astype(int) - expected).max() <= 6


def test_16_bits_are_rounded_to_8(tmp_path):
    """White is 65535 = 255 * 257, so k is nearest to 257 k - 128 .. 257 k + 128."""
    k = np.arange(256)
    values = np.stack([257 * k, np.minimum(257 * k + 128, 65535), np.maximum(257 * k - 128, 0)]).astype(np.uint16)
    write_image(tmp_path / "a.webp", np.repeat(values[..., None], 3, 2), quality=100)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp").pixels[..., 0], np.stack([k, k, k]))
    write_image(tmp_path / "a.jpg", np.full((16, 16), 257 * 77 + 128, np.uint16), quality=100)
    assert (read_image(tmp_path / "a.jpg").pixels == 77).all()


@pytest.mark.parametrize("view", [lambda a: a[::2, ::-1], lambda a: a.swapaxes(0, 1), lambda a: a.astype(">u2")])
def test_writes_any_strides_and_byte_order(tmp_path, rng, view):
    pixels = view(noise(rng, (8, 9, 3), "uint16"))
    write_image(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, pixels)


@pytest.mark.parametrize("name", ["a[page=1].png", "ä b.png", "-o.png", "x" * 251 + ".png", os.fsdecode(b"\xff.png")])
def test_any_file_name(tmp_path, rng, name):
    pixels = noise(rng, (4, 5, 3))
    write_image(tmp_path / name, pixels)
    np.testing.assert_array_equal(read_image(tmp_path / name).pixels, pixels)


def test_what_is_read_is_what_is_there_now(tmp_path, rng):
    for _ in range(3):
        pixels = noise(rng, (4, 5, 3))
        write_image(tmp_path / "a.png", pixels)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, pixels)


def test_large_tiffs_are_bigtiffs(tmp_path, rng, monkeypatch):
    pixels = noise(rng, (4, 5, 3))
    write_image(tmp_path / "a.tif", pixels)
    monkeypatch.setattr(codecs, "CLASSIC_TIFF_BYTES", pixels.nbytes - 1)
    write_image(tmp_path / "b.tif", pixels)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II*\0"
    assert (tmp_path / "b.tif").read_bytes()[:4] == b"II+\0"
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").pixels, pixels)


def test_compression_and_quality_matter(tmp_path):
    pixels = gradient(200, 300)
    for suffix, low, high in (("png", {"compression": 0}, {}), ("tif", {"compression": 0}, {"compression": 9})):
        write_image(tmp_path / f"low.{suffix}", pixels, **low)
        write_image(tmp_path / f"high.{suffix}", pixels, **high)
        assert os.path.getsize(tmp_path / f"low.{suffix}") > 2 * os.path.getsize(tmp_path / f"high.{suffix}")
    write_image(tmp_path / "low.jpg", pixels, quality=20)
    write_image(tmp_path / "high.jpg", pixels, quality=98)
    assert os.path.getsize(tmp_path / "high.jpg") > 2 * os.path.getsize(tmp_path / "low.jpg")


# ---- orientation, metadata, colours ----------------------------------------------------------------------------------

UPRIGHT = {  # EXIF orientation -> how to turn the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_and_reset(tmp_path, suffix, orientation):
    stored = gradient(64, 96)
    options = {".webp": {"lossless": True}, ".jpg": {"Q": 100, "subsample_mode": "off"}}.get(suffix, {})
    vips_image(stored, orientation=orientation).write_to_file(str(tmp_path / f"a{suffix}"), **options)
    picture = read_image(tmp_path / f"a{suffix}")
    expected = UPRIGHT[orientation](stored)
    assert picture.pixels.shape == expected.shape == read_shape(tmp_path / f"a{suffix}")[0]
    assert np.abs(picture.pixels.astype(int) - expected).max() <= (3 if suffix == ".jpg" else 0)
    write_image(tmp_path / f"b{suffix}", picture.pixels, like=picture)
    again = pyvips.Image.new_from_file(str(tmp_path / f"b{suffix}"))
    assert not again.get_typeof("orientation") or again.get("orientation") == 1
    assert read_image(tmp_path / f"b{suffix}").pixels.shape == expected.shape


@pytest.mark.parametrize("source", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.parametrize("target", [".png", ".tif", ".jpg", ".webp"])
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_metadata_is_kept(tmp_path, source, target):
    fields = {"icc-profile-data": srgb_profile(), "xmp-data": b"<x:xmpmeta/>", EXIF_ARTIST[0]: EXIF_ARTIST[1]}
    image = vips_image(gradient(), **fields).copy(xres=12, yres=13)
    image.write_to_file(str(tmp_path / f"a{source}"))
    picture = read_image(tmp_path / f"a{source}")
    write_image(tmp_path / f"b{target}", gradient(30, 50), like=picture)
    kept = pyvips.Image.new_from_file(str(tmp_path / f"b{target}"))
    assert kept.get("icc-profile-data") == srgb_profile()
    assert kept.get("xmp-data") == b"<x:xmpmeta/>"
    if ".tif" not in (source, target):  # libvips has no EXIF in TIFF
        assert kept.get("exif-ifd0-Artist").startswith("Ann ")
        assert kept.get("exif-ifd2-PixelXDimension").startswith("50 ")
    if ".webp" not in (source, target):  # nor resolution in WebP
        assert (round(kept.xres, 1), round(kept.yres, 1)) == (12, 13)


IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x05\0\x05title"


def test_iptc_is_kept_in_jpeg(tmp_path):
    vips_image(gradient(), **{"iptc-data": IPTC}).write_to_file(str(tmp_path / "a.jpg"))
    write_image(tmp_path / "b.jpg", gradient(), like=read_image(tmp_path / "a.jpg"))
    assert IPTC in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize(("suffix", "lost"), [("png", "IPTC"), ("webp", "IPTC"), ("tif", "EXIF, IPTC")])
def test_metadata_that_a_format_cannot_hold_is_announced(tmp_path, suffix, lost):
    vips_image(gradient(), **{"iptc-data": IPTC, EXIF_ARTIST[0]: EXIF_ARTIST[1]}).write_to_file(str(tmp_path / "a.jpg"))
    picture = read_image(tmp_path / "a.jpg")
    with pytest.warns(UserWarning, match=rf"b\.{suffix}: of the input, .* does not get this: {lost}$") as caught:
        write_image(tmp_path / f"b.{suffix}", picture.pixels, like=picture)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_profile_for_other_colours_is_left_out(tmp_path, suffix):
    like = Picture(gradient(), {"icc-profile-data": srgb_profile()})
    write_image(tmp_path / f"a{suffix}", gradient(channels=1)[..., 0], like=like)
    assert "icc-profile-data" not in read_image(tmp_path / f"a{suffix}").metadata


def test_damaged_metadata_does_not_cost_the_image(tmp_path):
    profile = b"\xff" + srgb_profile()[1:]  # its length field: libpng refuses to write it
    like = Picture(gradient(), {"icc-profile-data": profile, "xmp-data": b"<x:xmpmeta/>"})
    with pytest.warns(UserWarning, match="damaged metadata .* not kept: icc-profile-data"):
        write_image(tmp_path / "a.png", gradient(), like=like)
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert "xmp-data" in picture.metadata


@pytest.mark.parametrize(("suffix", "dtype"), [(".jpg", "uint8"), (".tif", "uint8"), (".tif", "uint16")])
def test_cmyk_becomes_srgb(tmp_path, suffix, dtype):
    image = pyvips.Image.new_from_array(gradient()).copy(interpretation="srgb").colourspace("cmyk")
    if dtype == "uint16":
        image = (image * 257).cast("ushort").copy(interpretation="cmyk")
    image.write_to_file(str(tmp_path / f"a{suffix}"))
    assert pyvips.Image.new_from_file(str(tmp_path / f"a{suffix}")).interpretation == "cmyk"
    picture = read_image(tmp_path / f"a{suffix}")
    assert (picture.pixels.shape, picture.pixels.dtype) == ((60, 80, 3), dtype)
    assert picture.metadata["icc-profile-data"][16:20] == b"RGB "
    middle = picture.pixels[30, 40] / np.iinfo(dtype).max
    np.testing.assert_allclose(middle, gradient()[30, 40] / 255, atol=0.1)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("profile", ["its own", "none", "damaged", "of other colours"])
def test_cmyk_goes_by_its_profile(tmp_path, suffix, profile):
    """With the profile that it was made with, colours come back; with one that is no help, by libvips' own."""
    stored = vips_image(gradient()).icc_transform("cmyk", input_profile="srgb")
    value = {"damaged": b"\0" * 200, "of other colours": srgb_profile(), "its own": stored.get("icc-profile-data")}
    stored = stored.copy()
    stored.remove("icc-profile-data")
    if profile in value:
        stored.set_type(pyvips.GValue.blob_type, "icc-profile-data", value[profile])
    stored.write_to_file(str(tmp_path / f"a{suffix}"), **({"Q": 100} if suffix == ".jpg" else {}))
    picture = read_image(tmp_path / f"a{suffix}")
    assert picture.pixels.shape == (60, 80, 3)
    assert picture.metadata["icc-profile-data"][16:20] == b"RGB "
    assert np.abs(picture.pixels.astype(int) - gradient())[20:40, 30:50].mean() < 12  # inside what inks can show


def test_cmyk_of_pillow_is_not_inverted(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("CMYK", (32, 32), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    image.new("CMYK", (32, 32), (0, 0, 0, 255)).save(tmp_path / "black.jpg")
    assert read_image(tmp_path / "white.jpg").pixels.min() > 240
    assert read_image(tmp_path / "black.jpg").pixels.max() < 60


# ---- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pages_round_trip(tmp_path, rng, monkeypatch, dtype, channels):
    pages = [noise(rng, (9, 13, channels)[: 2 if channels == 1 else 3], dtype) for _ in range(3)]
    like = Picture(np.zeros((1, 1)), {"xmp-data": b"<x:xmpmeta/>"}, (12, 13))
    for limit in (codecs.CLASSIC_TIFF_BYTES, 100):
        monkeypatch.setattr(codecs, "CLASSIC_TIFF_BYTES", limit)
        write_image(tmp_path / "a.tif", np.concatenate(pages), pages=3, like=like)
        assert (tmp_path / "a.tif").read_bytes()[:4] == (b"II+\0" if limit == 100 else b"II*\0")
        header = read_header(tmp_path / "a.tif")
        assert (header.shape, header.dtype, header.pages, header.pyramid) == (pages[0].shape, dtype, 3, False)
        for number, page in enumerate(pages, 1):
            picture = read_image(tmp_path / "a.tif", page=number)
            np.testing.assert_array_equal(picture.pixels, page)
            assert picture.metadata["xmp-data"] == b"<x:xmpmeta/>" and round(picture.resolution[0]) == 12


@pytest.mark.parametrize("page", [0, 4, -1])
def test_pages_that_are_not_there(tmp_path, rng, page):
    write_image(tmp_path / "a.tif", noise(rng, (9, 4)), pages=3)
    for read in (read_image, read_header):
        with pytest.raises(ValueError, match=rf"a\.tif: page={page}; must be from 1 to 3, as many as there are"):
            read(tmp_path / "a.tif", page=page)


def test_pages_that_cannot_be_written(tmp_path, rng):
    with pytest.raises(ValueError, match=r"a\.png: PNG holds one page, not 3; use TIFF"):
        write_image(tmp_path / "a.png", noise(rng, (9, 4)), pages=3)
    for pages in (0, -1, 2, 10):
        with pytest.raises(ValueError, match=f"pages={pages}; must be 1, or a number that divides the 9 rows"):
            write_image(tmp_path / "a.tif", noise(rng, (9, 4)), pages=pages)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["colours", "depth", "size"])
def test_pages_that_differ_are_refused(tmp_path, rng, kind):
    image = pytest.importorskip("PIL.Image")
    pages = {"colours": (9, 13), "depth": (9, 13), "size": (9, 14, 3)}
    other = noise(rng, pages[kind], "uint16" if kind == "depth" else "uint8")
    first = image.fromarray(noise(rng, (9, 13, 3)))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[image.fromarray(other)])
    with pytest.raises(
        ValueError, match=r"a\.tif: holds 2 pages of several sizes or kinds; page must say which, from 1"
    ):
        read_header(tmp_path / "a.tif")
    assert read_header(tmp_path / "a.tif", page=2).shape == other.shape
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=2).pixels, other)


@pytest.mark.parametrize("size", [(256, 256), (301, 400), (127, 129)])
def test_levels_of_a_pyramid_are_no_pages(tmp_path, rng, size):
    expected = noise(rng, (*size, 3))
    options = {"tile": True, "pyramid": True, "tile_width": 64, "tile_height": 64, "compression": "deflate"}
    vips_image(expected).tiffsave(str(tmp_path / "a.tif"), **options)
    header = read_header(tmp_path / "a.tif")
    assert (header.shape, header.pages, header.pyramid) == (expected.shape, 1, True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=1).pixels, expected)


def test_pages_are_bounded_together(tmp_path, rng):
    write_image(tmp_path / "a.tif", noise(rng, (9, 4)), pages=3)
    assert read_header(tmp_path / "a.tif", max_pixels=36).pages == 3
    with pytest.raises(ValueError, match=r"a\.tif: 3 pages of 4 x 3 pixels are more than max_pixels=35"):
        read_header(tmp_path / "a.tif", max_pixels=35)
    assert read_header(tmp_path / "a.tif", max_pixels=12, page=3).pages == 1


def test_headers_of_other_files(tmp_path, rng):
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        write_image(tmp_path / f"a{suffix}", noise(rng, (9, 13, 3)))
        header = read_header(tmp_path / f"a{suffix}")
        assert (header.shape, header.dtype, header.pages) == ((9, 13, 3), "uint8", 1)
        assert codecs.recognised((tmp_path / f"a{suffix}").read_bytes()[:12], "") is PICTURES[suffix].codec
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.png")


def test_the_first_of_several_pages_is_read_with_a_warning(tmp_path):
    both = pyvips.Image.new_from_array(np.concatenate([gradient(), gradient()[::-1]]))
    both.tiffsave(str(tmp_path / "a.tif"), page_height=60)
    with pytest.warns(UserWarning, match=r"a\.tif: holds 2 pages; the first is read") as caught:
        picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert caught[0].filename == __file__


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello", b"GIF89a" + bytes(99), b"BM" + bytes(99), b"RIFF\0\0\0\0WAVE"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: not a PNG, JPEG, WebP, TIFF or AVIF file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "float64"])
def test_other_samples_are_refused(tmp_path, dtype):
    (tmp_path / "a.tif").write_bytes(tiff_bytes(np.ones((4, 5), dtype)))
    with pytest.raises(ValueError, match=r"a\.tif: "):
        read_image(tmp_path / "a.tif")


def test_missing_files_and_directories_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "a.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_refused(tmp_path, rng, suffix, share):
    path = tmp_path / f"a{suffix}"
    write_image(path, noise(rng, (90, 80, 3)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"a\{suffix}: not a"):
        read_image(path)


def test_what_libvips_does_not_explain_is_damaged(tmp_path, rng):
    path = tmp_path / "a.png"
    write_image(path, rng.integers(0, 65536, (60, 80, 3), np.uint16))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"not a readable PNG file: (?!unable to call).+"):
        read_image(path)


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes((100_000, 100_000, 8, 2), bytes(100)))
    with pytest.raises(ValueError, match=r"a\.png: 100000 x 100000 pixels are more than max_pixels=268435456"):
        read_image(tmp_path / "a.png")


def test_tiff_bombs_are_refused_by_their_header(tmp_path):
    data = bytearray(tiff_bytes(np.zeros((4, 5, 3), np.uint8)))
    start = struct.unpack_from("<I", data, 4)[0] + 2
    for entry in (start, start + 12):  # width and height
        struct.pack_into("<HHII", data, entry, struct.unpack_from("<H", data, entry)[0], 4, 1, 100_000)
    (tmp_path / "a.tif").write_bytes(data)
    for read in (read_image, read_shape, read_header):
        with pytest.raises(ValueError, match=r"a\.tif: 100000 x 100000 pixels are more than max_pixels=268435456"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("link", ["itself", "far"])
def test_pages_without_end_are_refused(tmp_path, link):
    """The last directory names itself as the next one, or one beyond the end of the file."""
    data = bytearray(tiff_bytes(np.zeros((4, 5), np.uint8)))
    directory = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, len(data) - 4, directory if link == "itself" else 2**31)
    (tmp_path / "a.tif").write_bytes(data)
    try:
        assert read_header(tmp_path / "a.tif").pages == 1
    except ValueError as error:
        assert "a.tif: not a readable TIFF file" in str(error)


def test_max_pixels(tmp_path):
    write_image(tmp_path / "a.png", gradient(10, 20))
    assert read_image(tmp_path / "a.png", max_pixels=200).pixels.shape == (10, 20, 3)
    assert read_image(tmp_path / "a.png", max_pixels=None).pixels.shape == (10, 20, 3)
    for read in (read_image, read_shape):
        with pytest.raises(ValueError, match="max_pixels=199"):
            read(tmp_path / "a.png", max_pixels=199)


MUTATE = """
import random, sys, warnings
from halotile.files.picture import read_header, read_image, write_image
warnings.simplefilter("ignore")
random.seed(1)
directory, names = sys.argv[1], sys.argv[2:]
originals = [(name, open(f"{directory}/{name}", "rb").read()) for name in names]
for turn in range(600):
    name, data = originals[turn % len(originals)]
    data = bytearray(data)
    for _ in range(random.randint(1, 12)):
        data[random.randrange(min(len(data), random.choice((200, 2000, 1 << 30))))] = random.randrange(256)
    with open(f"{directory}/mutant", "wb") as file:
        file.write(data)
    try:
        header = read_header(f"{directory}/mutant", max_pixels=2**20)
        picture = read_image(f"{directory}/mutant", max_pixels=2**20, page=header.pages)
        assert picture.pixels.shape == header.shape or header.pages > 1
    except ValueError as error:
        assert "mutant: " in str(error), error
        continue
    if picture.pixels.ndim == 2 or picture.pixels.shape[2] <= 4 and picture.pixels.dtype != "float32":
        write_image(f"{directory}/again.png", picture.pixels, like=picture)
print("alive")
"""


def test_damaged_files_never_crash(tmp_path, rng):
    """Damaged bytes are an error or a picture, which can be written; libvips' own warnings do not count."""
    fields = {"icc-profile-data": srgb_profile(), "xmp-data": b"<x:xmpmeta/>", EXIF_ARTIST[0]: EXIF_ARTIST[1]}
    image = vips_image(gradient(), **fields)
    names = ["a.png", "b.jpg", "c.webp", "d.tif", "e.png", "f.tif", "g.tif"]
    for name in names[:4]:
        image.write_to_file(str(tmp_path / name))
    write_image(tmp_path / "e.png", noise(rng, (20, 30, 4), "uint16"))
    write_image(tmp_path / "f.tif", noise(rng, (60, 30, 3)), pages=3)
    vips_image(gradient(300, 200)).tiffsave(str(tmp_path / "g.tif"), tile=True, pyramid=True)
    command = [sys.executable, "-c", MUTATE, str(tmp_path), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "alive\n", done.stderr[-2000:]


# ---- output paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "a.", "a.bmp", "a.gif", ".png", "png"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"unknown suffix '.*'; must be one of \.png, \.jpg, \.jpeg, \.jfif, \.webp, \.tif"
    ):
        check_output_path(tmp_path / name)


def test_output_directories_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        check_output_path(tmp_path / "there" / "a.png")
    (tmp_path / "dir.png").mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        check_output_path(tmp_path / "dir.png")
    os.symlink("/dev/null", tmp_path / "null.png")
    with pytest.raises(OSError, match="not a regular file"):
        check_output_path(tmp_path / "null.png")


def test_errors_of_writing_name_the_file_itself(tmp_path, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device", "another name")

    monkeypatch.setattr(os, "open", no_space)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device: '.*a\.png'"):
        write_image(tmp_path / "a.png", np.zeros((2, 2), np.uint8))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_directories_are_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="not writable"):
        check_output_path(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("a.jpg", (4, 5, 4), "uint8", "JPEG has no alpha channel"),
        ("a.jpg", (4, 5, 2), "uint8", "JPEG has no alpha channel"),
        ("a.png", (4, 5, 5), "uint8", "PNG cannot hold 5 channels; it takes 1, 2, 3, 4"),
        ("a.png", (4, 5, 3), "float32", "PNG cannot hold float32; it takes uint8, uint16"),
        ("a.webp", (4, 5, 3), "float16", "WebP cannot hold float16"),
        ("a.tif", (4, 5, 3), "int32", "TIFF cannot hold int32"),
        ("a.tif", (4, 5, 3), "bool", "TIFF cannot hold bool"),
        ("a.webp", (16384, 5, 3), "uint8", "WebP holds up to 16383 pixels a side, not 5 x 16384"),
        ("a.jpg", (5, 65536), "uint8", "JPEG holds up to 65535 pixels a side, not 65536 x 5"),
        ("a.png", (4,), "uint8", r"pixels of shape \(4,\); must be"),
        ("a.png", (4, 0, 3), "uint8", r"pixels of shape \(4, 0, 3\); must be"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        check_output_path(tmp_path / name, shape, dtype)
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, np.zeros(shape, dtype))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 101}, {"compression": -1}, {"compression": 10}])
def test_bad_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*; must be"):
        write_image(tmp_path / "a.png", gradient(), **options)
    assert os.listdir(tmp_path) == []


# ---- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, error, where):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(error)):
        write_image(path, gradient())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


LIMITED = """
import resource, sys
import numpy as np
from halotile.files.picture import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_image(sys.argv[1], np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_a_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert "cannot be written" in done.stdout, done
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from halotile.files.picture import write_image
pixels = np.random.default_rng(0).integers(0, 256, (8000, 8000, 3), np.uint8)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    write_image(sys.argv[1], pixels, compression=9)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_stops_a_long_write(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=heed_interrupts)
    assert done.stdout == "interrupted\n", done
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
def test_modes_and_links_stay(tmp_path, rng):
    pixels = noise(rng, (4, 5, 3))
    write_image(tmp_path / "new.png", pixels)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new.png").stat().st_mode & 0o777 == 0o666 & ~umask
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "old.png").chmod(0o604)
    os.symlink("old.png", tmp_path / "link.png")
    write_image(tmp_path / "link.png", pixels)
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "old.png").stat().st_mode & 0o777 == 0o604
    np.testing.assert_array_equal(read_image(tmp_path / "old.png").pixels, pixels)


def test_without_pyvips_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    for call in (lambda: read_image(tmp_path / "a.png"), lambda: write_image(tmp_path / "a.png", gradient())):
        with pytest.raises(ImportError, match=r"pip install 'halotile\[cli\]'"):
            call()
