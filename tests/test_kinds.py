# SPDX-License-Identifier: MIT
"""Files that other programs' libraries wrote, ten and more of each kind, and the table of docs/kinds.md that they make.

`python -m tests.test_kinds` writes that table anew.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyvips")
pillow = pytest.importorskip("PIL.Image")
tifffile = pytest.importorskip("tifffile")

from halotile import restore_tiled, restore_to  # noqa: E402
from halotile.files.formats import TABLE  # noqa: E402

DOCUMENT = Path(__file__).parents[1] / "docs" / "kinds.md"
SIZE = (36, 52)


def picture(channels, dtype="uint8"):
    """Smooth, so that lossy formats hold it; no channel like another."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 60
    planes = [0.5 + 0.4 * np.sin(2 * y + k) * np.cos(3 * x - k) for k in range(channels)]
    image = np.stack(planes, -1)[..., 0 if channels == 1 else slice(None)]
    if np.issubdtype(dtype, np.integer):
        return np.rint(image * np.iinfo(dtype).max).astype(dtype)
    return image.astype(dtype)


def by_pillow(channels, mode=None, dtype="uint8", **options):
    def write(path):
        image = pillow.fromarray(picture(channels, dtype))
        if mode == "P":
            image = image.quantize(64)
        elif mode is not None:
            image = image.convert(mode)
        given = {name: value(image) if callable(value) else value for name, value in options.items()}
        image.save(path, **given)

    return write


def by_tifffile(channels, dtype="uint8", **options):
    def write(path):
        image = picture(channels, dtype)
        if options.get("planarconfig") == "separate":
            image = np.ascontiguousarray(image.transpose(2, 0, 1))
        tifffile.imwrite(path, image, **options)

    return write


def by_opencv(channels, dtype="uint8", *flags):
    def write(path):
        cv2 = pytest.importorskip("cv2")
        image = picture(channels, dtype)
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(channels)
        data = image if order is None else np.ascontiguousarray(image[..., order])
        assert cv2.imwrite(path, data, [getattr(cv2, one) if isinstance(one, str) else one for one in flags])

    return write


def by_imagecodecs(name, channels, dtype="uint8", **options):
    def write(path):
        codecs = pytest.importorskip("imagecodecs")
        image = picture(channels, dtype)
        Path(path).write_bytes(getattr(codecs, f"{name}_encode")(image, **options))

    return write


def by_scikit(channels, dtype="uint8"):
    def write(path):
        pytest.importorskip("skimage.io").imsave(path, picture(channels, dtype), check_contrast=False)

    return write


def turned(image):
    exif = image.getexif()
    exif[0x0112] = 6
    return exif


def profile(image):
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def animation(path):
    frames = [pillow.fromarray(np.roll(picture(3), k, 1)) for k in (0, 5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)


def interleaved_stack(path):
    tifffile.imwrite(path, np.stack([picture(1), picture(1)[::-1]]), imagej=True)


def ome(path):
    tifffile.imwrite(path, np.stack([picture(1, "uint16")] * 2), ome=True, metadata={"axes": "ZYX"})


def geo(path):
    tags = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True)]
    tifffile.imwrite(path, picture(1, "float32"), extratags=tags)


# By format: what the picture is, and what writes it.
FILES = {
    "png": {
        "1 bit": by_pillow(1, "1"),
        "grey": by_pillow(1),
        "grey and alpha": by_pillow(2),
        "palette": by_pillow(3, "P"),
        "palette with a transparent colour": by_pillow(3, "P", transparency=3),
        "colour": by_pillow(3),
        "colour with a profile": by_pillow(3, icc_profile=profile),
        "colour and alpha": by_pillow(4),
        "grey, 16 bits": by_pillow(1, dtype="uint16"),
        "colour, by OpenCV": by_opencv(3),
        "colour, 16 bits": by_opencv(3, "uint16"),
        "colour and alpha, 16 bits": by_opencv(4, "uint16"),
        "colour, by imagecodecs": by_imagecodecs("png", 3),
        "animation": animation,
    },
    "jpeg": {
        "grey": by_pillow(1, quality=98),
        "colour": by_pillow(3, quality=98),
        "colour, 4:4:4": by_pillow(3, quality=98, subsampling=0),
        "colour, progressive": by_pillow(3, quality=98, progressive=True),
        "colour, turned by EXIF": by_pillow(3, quality=98, exif=turned),
        "colour with a profile": by_pillow(3, quality=98, icc_profile=profile),
        "colour, 1200 dpi": by_pillow(3, quality=98, dpi=(1200, 1200)),
        "CMYK": by_pillow(3, "CMYK", quality=98),
        "colour, by OpenCV": by_opencv(3, "uint8", "IMWRITE_JPEG_QUALITY", 98),
        "colour with restart marks": by_opencv(3, "uint8", "IMWRITE_JPEG_RST_INTERVAL", 4),
        "colour, by imagecodecs": by_imagecodecs("jpeg8", 3, level=98),
        "colour, by scikit-image": by_scikit(3),
    },
    "tiff": {
        "1 bit": by_pillow(1, "1"),
        "grey": by_tifffile(1),
        "grey, white is 0": by_tifffile(1, photometric="miniswhite"),
        "palette": by_pillow(3, "P"),
        "colour": by_tifffile(3, photometric="rgb"),
        "colour, planes": by_tifffile(3, photometric="rgb", planarconfig="separate"),
        "colour, tiles, deflate": by_tifffile(3, photometric="rgb", tile=(16, 16), compression="zlib"),
        "colour, LZW": by_pillow(3, compression="tiff_lzw"),
        "colour, JPEG inside": by_pillow(3, compression="jpeg", quality=98),
        "colour and alpha": by_tifffile(4, photometric="rgb", extrasamples=["unassalpha"]),
        "grey, 16 bits, big-endian": by_tifffile(1, "uint16", byteorder=">"),
        "colour, 16 bits, BigTIFF": by_tifffile(3, "uint16", photometric="rgb", bigtiff=True),
        "grey floats": by_tifffile(1, "float32"),
        "five bands": by_tifffile(5, photometric="minisblack", planarconfig="contig"),
        "ImageJ stack": interleaved_stack,
        "OME stack, 16 bits": ome,
        "GeoTIFF floats": geo,
        "signed 16 bits": by_tifffile(1, "int16"),
        "doubles": by_tifffile(1, "float64"),
        "colour, by OpenCV": by_opencv(3),
    },
    "webp": {
        "colour": by_pillow(3, quality=98),
        "colour, quality 60": by_pillow(3, quality=60),
        "colour, lossless": by_pillow(3, lossless=True),
        "colour, slowest method": by_pillow(3, lossless=True, method=6),
        "colour and alpha": by_pillow(4, lossless=True, exact=True),
        "colour and alpha, lossy": by_pillow(4, quality=98),
        "colour, turned by EXIF": by_pillow(3, lossless=True, exif=turned),
        "colour with a profile": by_pillow(3, lossless=True, icc_profile=profile),
        "colour, by OpenCV": by_opencv(3, "uint8", "IMWRITE_WEBP_QUALITY", 101),
        "colour, by imagecodecs": by_imagecodecs("webp", 3, lossless=True),
        "animation": animation,
    },
    "avif": {
        "grey": by_pillow(1, quality=95),
        "colour": by_pillow(3, quality=95),
        "colour, 4:4:4": by_pillow(3, quality=95, subsampling="4:4:4"),
        "colour, 4:2:0": by_pillow(3, quality=95, subsampling="4:2:0"),
        "colour, fast": by_pillow(3, quality=95, speed=10),
        "colour and alpha": by_pillow(4, quality=95, subsampling="4:4:4"),
        "colour with a profile": by_pillow(3, quality=95, icc_profile=profile),
        "colour, quality 60": by_pillow(3, quality=60),
        "colour, by OpenCV": by_opencv(3, "uint8", "IMWRITE_AVIF_QUALITY", 95),
        "colour, by imagecodecs": by_imagecodecs("avif", 3, level=95),
    },
}
SUFFIX = {"jpeg": "jpg", "tiff": "tif"}
CASES = [(kind, what) for kind, those in FILES.items() for what in those]
LOSSY = {"jpeg": 24, "avif": 24, "webp": 24}  # between two decoders of one file, in 8-bit steps, beside edges of chroma
REFUSED = {"signed 16 bits", "doubles"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(kind, what):
    path = f"in.{SUFFIX.get(kind, kind)}"
    FILES[kind][what](path)
    return path


def decoded(kind, what, path):
    """The pixels as another library has them, upright, in colours that a model takes."""
    if kind == "tiff" and "palette" not in what and "1 bit" not in what and "inside" not in what and "LZW" not in what:
        pixels = tifffile.imread(path, key=0)
        pixels = pixels.transpose(1, 2, 0) if "planes" in what else pixels
        return 255 - pixels if "white is 0" in what else pixels
    if "16 bits" in what and kind == "png" and "grey" not in what:
        return picture(4 if "alpha" in what else 3, "uint16")
    from PIL import ImageOps

    image = ImageOps.exif_transpose(pillow.open(path))
    mode = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB", "CMYK": "RGB"}.get(image.mode, image.mode)
    return np.asarray(image.convert(mode))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "what"), CASES)
def test_pixels_are_those_that_another_library_sees(place, kind, what):
    path = written(kind, what)
    if what in REFUSED:
        with pytest.raises(ValueError, match=r"astype|convert|tifffile"):
            restore_to("out.npy", path, Same())
        return
    want = decoded(kind, what, path)
    restore_to("out.npy", path, Same(), tile_size=32, halo=2, phase=1, alpha="channel")
    got = np.load("out.npy")
    if got.ndim == 3 and want.ndim == 2:
        want = want[..., None].repeat(got.shape[2], 2)  # AVIF has no grey of its own
    assert got.shape == want.shape and got.dtype == want.dtype
    lossless = "lossless" in what or "animation" in what or ("imagecodecs" in what and kind == "webp")
    apart = np.abs(got.astype(float) - want)
    if "CMYK" in what:
        assert apart.mean() < 40  # Pillow knows no profile; test_files.py compares with one
    elif kind in LOSSY and not lossless:
        assert apart.max() <= LOSSY[kind] and apart.mean() < 3
    else:
        np.testing.assert_array_equal(got, want)


def test_ten_of_each():
    assert all(len(those) >= 10 for those in FILES.values())


# ---- the table -------------------------------------------------------------------------------------------------------


class Same(torch.nn.Module):
    def forward(self, x):
        return x * 1


def grey_model():
    layer = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    return layer


class Colour(torch.nn.Module):
    """Takes and makes colours, twice as large."""

    def __init__(self, makes=3, factor=2):
        super().__init__()
        self.first, self.makes, self.factor = torch.nn.Conv2d(3, 3, 1), makes, factor

    def forward(self, x):
        assert x.shape[1] == 3, "expected input to have 3 channels"
        x = x.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        return x.repeat(1, 2, 1, 1)[:, : self.makes]


MODELS = {
    "any to as many": Same,
    "grey to grey": grey_model,
    "colour to colour, x2": Colour,
    "colour to 5 classes": lambda: Colour(5, 1),
}
NAMES = {1: "grey", 2: "grey + alpha", 3: "colour", 4: "colour + alpha"}


def described(image):
    channels = 1 if image.ndim == 2 else image.shape[-1]
    stack = f"{image.shape[0]} x " if image.ndim == 4 else ""
    name = NAMES.get(channels, f"{channels} channels")
    return f"{stack}{name} {image.dtype}"


def outcome(path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = restore_tiled(path, make(), tile_size=64, halo=2, phase=1)
        except (ValueError, TypeError) as error:
            return "refused", str(error)
    return described(result), ""


def table():
    lines = ["| file | what is in it | " + " | ".join(MODELS) + " |", "|---" * (len(MODELS) + 2) + "|"]
    for kind, what in CASES:
        path = written(kind, what)
        cells = [outcome(path, make)[0] for make in MODELS.values()]
        lines.append(f"| {kind.upper()} | {what} | " + " | ".join(cells) + " |")
    return lines


def formats():
    lines = ["| file | dtypes | channels | several images | options heeded |", "|---|---|---|---|---|"]
    for kind in TABLE:
        channels = "any" if kind.channels is None else ", ".join(map(str, kind.channels))
        several = "pages" if kind.pages else "yes" if kind.stack else "no"
        row = (", ".join(kind.suffixes), ", ".join(kind.dtypes), channels, several, ", ".join(kind.uses) or "none")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def document():
    return "\n".join(
        [
            "# What goes in, and what comes out",
            "",
            "Made by `python -m tests.test_kinds` from files that Pillow, tifffile, OpenCV, imagecodecs and",
            "scikit-image write, and from what `restore_tiled(path, model)` returns for each; `tests/test_kinds.py`",
            "compares both. For what becomes of channels and why, see [images.md](images.md).",
            "",
            *table(),
            "",
            "A refusal says what to do instead. Of a file with several pages `restore_tiled` reads the first, with a",
            "warning; `halotile restore` restores all.",
            "",
            "## Files that are written",
            "",
            *formats(),
            "",
        ]
    )


@pytest.mark.filterwarnings("ignore")
def test_the_table_in_the_documentation_is_what_happens(place):
    for name in ("cv2", "imagecodecs", "skimage"):
        pytest.importorskip(name)
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "python -m tests.test_kinds writes it anew"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        DOCUMENT.write_text(document(), encoding="utf-8")
