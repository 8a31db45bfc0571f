# SPDX-License-Identifier: MIT
"""Image files in and out: PNG, JPEG, WebP and TIFF.

Through libvips, because it reads and writes 8 and 16 bits in all of them, keeps ICC profiles and EXIF, and streams;
Pillow has no 16-bit RGB. pyvips is an optional dependency: `pip install 'halotile[cli]'`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..texts import full_text, quoted, shortened
from .previews import START, bits_of_tiff, frames_of_png, kind_of, one_image_of_tiff, planes_of_tiff, reader_of, refusal
from .tiff_tags import TIFF_MAGIC, ReadAt

__all__ = [
    "MAX_PIXELS",
    "Header",
    "Picture",
    "check_output_path",
    "is_zarr_array",
    "read_header",
    "read_image",
    "read_shape",
    "write_image",
]

Path = str | os.PathLike[str]

MAX_PIXELS = 2**28  # 16384 x 16384: a larger header is more often a decompression bomb than a picture
TRUST = "raise it for a file you trust"
MAX_RES = 1e6  # pixels per millimetre, libvips' own limit; damaged files claim more
SMALL_JPEG_BYTES = 2**26  # of pixels; libjpeg holds four times as much to find the tables that suit an image best
CLASSIC_TIFF_BYTES = 2**32 - 2**26  # offsets in a classic TIFF have 32 bits; deflate may add a little, metadata too


@dataclass(frozen=True)
class Format:
    """What a kind of file can hold. `channels` is None where any number of them may be stored; `folder` says that it is
    no file but a zarr array's folder."""

    name: str
    codec: str
    max_side: int
    channels: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    folder: bool = False


PNG = Format("PNG", "png", 2**31 - 1, (1, 2, 3, 4), ("uint8", "uint16"))
JPEG = Format("JPEG", "jpeg", 65535, (1, 3), ("uint8", "uint16"))
WEBP = Format("WebP", "webp", 16383, (1, 2, 3, 4), ("uint8", "uint16"))
TIFF = Format("TIFF", "tiff", 2**31 - 1, None, ("uint8", "uint16", "float16", "float32", "float64"))

UNKEPT = {  # what libvips 8.18 does not write, or writes a quarter of
    "PNG": {"iptc-data": "IPTC"},
    "JPEG": {},
    "WebP": {"iptc-data": "IPTC"},
    "TIFF": {"exif-data": "EXIF", "iptc-data": "IPTC"},
}

BY_SUFFIX = {".png": PNG, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP, ".tif": TIFF, ".tiff": TIFF}

DTYPES = {"uchar": "uint8", "ushort": "uint16", "float": "float32"}  # libvips -> NumPy
LARGEST_BITS = 32  # of a TIFF's samples: libvips reads no more
SAMPLES = {
    "char": "8-bit signed integers",
    "short": "16-bit signed integers",
    "uint": "32-bit unsigned integers",
    "int": "32-bit signed integers",
    "double": "64-bit floats",
    "complex": "complex",
    "dpcomplex": "complex",
}
SAMPLES_READ = (
    "must be 8- or 16-bit unsigned or 32-bit float: convert it first, for example: "
    "tifffile.imwrite(new, tifffile.imread(old).astype('float32'))"
)
VIPS_FORMATS = {dtype: name for name, dtype in DTYPES.items()}
INTERPRETATIONS = {"uint8": ("b-w", "srgb"), "uint16": ("grey16", "rgb16"), "float32": ("b-w", "scrgb")}
AS_STORED = {"b-w", "grey16", "srgb", "rgb16", "rgb", "scrgb", "multiband"}  # interpretations taken as they are
METADATA = ("icc-profile-data", "exif-", "xmp-data", "iptc-data", "png-comment-", "resolution-unit")


@dataclass(frozen=True)
class Picture:
    """An image file's content.

    pixels: (H, W) for one channel, else (H, W, C); uint8, uint16 or float32, upright.
    metadata: libvips header fields (ICC, EXIF, XMP, IPTC, PNG text) by name; bytes for blobs, str for the rest.
    resolution: horizontal and vertical, in pixels per millimetre.
    """

    pixels: np.ndarray
    metadata: Mapping[str, bytes | str] = field(default_factory=dict, repr=False)
    resolution: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Header:
    """What is known of an image file before anything is decoded.

    shape, dtype: of its first page, or of the one asked for, as `read_image` would give it.
    kind: the Format.
    pages: how many pages there are that are images of their own, all of this shape and dtype; 1 for the levels of a
        pyramid, thumbnails, masks and the frames of an animation.
    pyramid: whether the other pages are the first one, reduced, or masks of it.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Format
    pages: int = 1
    pyramid: bool = False


def read_image(path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None) -> Picture:
    """Reads a PNG, JPEG, WebP or TIFF file, recognised by its content.

    The EXIF orientation is applied and dropped. 16-bit files give uint16, float TIFFs float32. Palettes and 1 bit are
    expanded to 8 bits; CMYK and 32-bit Lab become sRGB. Tiled TIFFs are read as others are.

    Args:
        max_pixels: bounds height x width, before anything is decoded; None lifts the bound.
        page: of a TIFF with several pages or a WebP with several frames: which, from 1 on. None: the first, with a
            warning if there are more.

    Returns:
        A Picture.

    Raises:
        OSError: the file cannot be opened. ValueError: it cannot be decoded, has no such page, or is a
            camera raw file, or a stack that has one directory for many images.
    """
    with opened(path, max_pixels, page) as (stored, kind):
        # A rotation reads columns, which a file read in order cannot give.
        image = as_rgb((stored.copy_memory() if is_turned(stored) else stored).autorot())
        array = np.ndarray(shape_of(image), DTYPES[image.format], _interruptible(image, image.write_to_memory))
        return picture_of(image, kind, array)


def read_shape(path: Path, *, max_pixels: int | None = MAX_PIXELS) -> tuple[tuple[int, ...], str]:
    """The shape and dtype name that `read_image` would give; nothing is decoded. Raises as it does."""
    with opened(path, max_pixels) as (stored, _):
        image = as_rgb(stored.autorot())
        return shape_of(image), DTYPES[image.format]


def read_header(path: Path, *, max_pixels: int | None = MAX_PIXELS, page: int | None = None) -> Header:
    """What a file holds, all its pages or the one asked for; nothing is decoded.

    Args:
        max_pixels, page: as for `read_image`; without a page all of them together are bounded.

    Raises:
        OSError: the file cannot be opened. ValueError: it is no such file, or its pages are of several sizes or kinds
            and no pyramid.
    """
    if page is None:
        with opened(path, max_pixels, 1) as (stored, kind):
            count = _pages_of(stored)
    if page is not None or kind is WEBP or count == 1:
        with opened(path, max_pixels, 1 if page is None else page) as (stored, kind):
            image = as_rgb(stored.autorot())
            return Header(shape_of(image), DTYPES[image.format], kind)
    return _header_of_pages(path, count, max_pixels)


def _header_of_pages(path: Path, count: int, max_pixels: int | None) -> Header:
    first = read_header(path, max_pixels=max_pixels, page=1)
    height, width = first.shape[:2]
    if not _all_alike(path, max_pixels):
        if _says_one_image(path, count) or _is_pyramid(path, count, (height, width), max_pixels):
            return replace(first, pyramid=True)
        text = f"{os.fspath(path)}: holds {count} pages of several sizes or kinds"
        raise ValueError(f"{text}; page must say which, from 1 to {count}")
    if max_pixels is not None and height * width * count > max_pixels:
        size = f"{count} pages of {width} x {height} pixels"
        raise ValueError(f"{os.fspath(path)}: {size} are more than max_pixels={max_pixels}; {TRUST}")
    return replace(first, pages=count)


def _all_alike(path: Path, max_pixels: int | None) -> bool:
    """Whether libvips sees the pages as one image: it wants one size, sample format and colour space of them."""
    with opened(path, max_pixels, 1) as (_, kind), open(path, "rb", buffering=0) as file:
        try:
            _loaded(file, kind, n=-1)
        except import_pyvips().Error:
            return False
    return True


def _says_one_image(path: Path, count: int) -> bool:
    with open(path, "rb", buffering=0) as file:
        return one_image_of_tiff(reader_of(file), count)


def _is_pyramid(path: Path, count: int, size: tuple[int, int], max_pixels: int | None) -> bool:
    """Whether every page has half the sides of the one before, rounded either way."""
    for page in range(2, count + 1):
        with opened(path, max_pixels, page) as (stored, _):
            upright = shape_of(stored.autorot())[:2]
        if any(side not in (before // 2, -(-before // 2)) for side, before in zip(upright, size, strict=True)):
            return False
        size = (upright[0], upright[1])
    return True


def check_output_path(
    path: Path, shape: Sequence[int] | None = None, dtype: Any = None, formats: Mapping[str, Format] = BY_SUFFIX
) -> Format:
    """Checks, before any work, that `write_image` can write `path`; with a shape and dtype, also that they fit in it.

    formats: by suffix, where there are others.

    Returns the Format. Raises ValueError for an unknown suffix or an image the format cannot hold, OSError for a
    directory that is missing or not writable and for an existing `path` that is no regular file.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    if suffix.lower() not in formats:
        raise ValueError(f"{path}: unknown suffix {suffix!r}; must be one of {', '.join(formats)}")
    kind = formats[suffix.lower()]
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{path}: there is no directory {directory}")
    if os.path.lexists(target) and not (is_zarr_array(target) if kind.folder else os.path.isfile(target)):
        raise OSError(f"{path}: exists and is not a {'zarr array' if kind.folder else 'regular file'}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the directory {directory} is not writable")
    if shape is not None:
        _check_fits(path, kind, shape)
    if dtype is not None and np.dtype(dtype).name not in kind.dtypes:
        raise ValueError(f"{path}: {kind.name} cannot hold {np.dtype(dtype)}; it takes {', '.join(kind.dtypes)}")
    return kind


def is_zarr_array(folder: str) -> bool:
    """Whether a folder holds one zarr array, and so may be replaced: a group of them is more than one image."""
    if os.path.isfile(os.path.join(folder, ".zarray")):
        return True
    with suppress(OSError, ValueError, AttributeError), open(os.path.join(folder, "zarr.json"), "rb") as file:
        return json.load(file).get("node_type") == "array"
    return False


def write_image(
    path: Path,
    pixels: np.ndarray,
    *,
    like: Picture | None = None,
    quality: int = 95,
    compression: int = 6,
    pages: int = 1,
) -> None:
    """Writes pixels to a PNG, JPEG, WebP or TIFF file, as its suffix says.

    pixels: (H, W) or (H, W, C), with two and four channels meaning grey and RGB with alpha. uint8 and uint16 go into
        every format, rounded to 8 bits in JPEG and WebP, which have no more; floats go into TIFF alone, as
        float32.
    like: a Picture whose metadata and resolution are kept. A profile for another number of colours is left out. libvips
        writes no EXIF into TIFF, and IPTC into JPEG alone: a warning says what is lost.
    quality: 1 to 100, for JPEG and WebP; a WebP of quality 100 is lossless.
    compression: 0 (none) to 9 (smallest), for PNG and TIFF, which are always lossless.
    pages: into how many pages of one height the rows are cut, for TIFF. A TIFF of nearly 4 GiB or more is a BigTIFF.

    The file appears whole or not at all: it is written under a temporary name beside `path` and then takes its place,
    so an error or Ctrl-C leaves what was there. WebP has no grey: it holds grey as RGB.

    Raises ValueError for pixels or options that do not fit the format (JPEG has no alpha), OSError if writing fails.
    """
    pyvips = import_pyvips()
    path = os.fspath(path)
    pixels = np.asarray(pixels)
    kind = check_output_path(path, pixels.shape, pixels.dtype)
    options = save_options(kind, pixels.nbytes, pixels.dtype, quality, compression)
    options |= page_options(path, kind, len(pixels), pages)
    image = with_metadata(pyvips, _to_vips(pyvips, pixels, kind), like, kind, path)
    with replacing(path) as descriptor:
        target = pyvips.Target.new_to_descriptor(descriptor)
        save = getattr(image, f"{kind.codec}save_target")
        try:
            _interruptible(image, lambda: save(target, **options))
        except pyvips.Error as error:
            raise OSError(f"{path}: cannot be written: {reason(error)}") from error


def import_pyvips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:  # OSError: pyvips is there and libvips is not
        message = f"image files need pyvips: pip install 'halotile[cli]' ({quoted(error)})"
        raise ImportError(message) from error
    return pyvips


def _recognise(start: bytes, path: str) -> Format:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if start.startswith(b"\xff\xd8\xff"):
        return JPEG
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WEBP
    if start.startswith(TIFF_MAGIC):
        return TIFF
    other = kind_of(start)
    what = "it is empty" if not start else f"it starts with {start[:12]!r}"
    if other is not None:
        what = f"it is {other}: convert it first, into PNG or TIFF"
    elif start.startswith(b"\x93NUMPY"):
        what = "it is a NumPy array: its name must end in .npy"
    raise ValueError(f"{path}: not a PNG, JPEG, WebP or TIFF file ({what})")


def _refuse_stack(path: str, pages: int, read_at: ReadAt) -> None:
    planes, what = planes_of_tiff(read_at)
    if planes > pages:
        held = f"only the first {pages} can be read" if pages > 1 else "only the first can be read"
        text = f"{what} of {planes} images, of which {held}: the others have no directory of their own"
        advice = "save it with one for each, for example: tifffile.imwrite(new, tifffile.imread(old), metadata=None)"
        raise ValueError(f"{path}: {text}; {advice}")


def _warn_of_others(path: str, kind: Format, pages: int, read_at: ReadAt) -> None:
    text = f"holds {pages} {'frames' if kind is WEBP else 'pages'}; the first is read" if pages > 1 else None
    frames, is_first = frames_of_png(read_at) if kind is PNG else (1, True)
    if not is_first:
        text = f"holds an animation of {frames} frames; its still image is read"
    elif frames > 1:
        text = f"holds {frames} frames; the first is read"
    if text is not None:
        warnings.warn(f"{path}: {text}", stacklevel=5)


@contextmanager
def opened(path: Path, max_pixels: int | None, page: int | None = None) -> Iterator[tuple[Any, Format]]:
    """A file's image, decoded as it is read, and its Format. libvips' errors in the body become ValueErrors."""
    pyvips = import_pyvips()
    path = os.fspath(path)
    with open(path, "rb", buffering=0) as file:
        start, read_at = file.read(START), reader_of(file)
        why_not = refusal(path, start, read_at)
        if why_not is not None:
            raise ValueError(f"{path}: {why_not}")
        kind = _recognise(start, path)
        bits = bits_of_tiff(read_at) if kind is TIFF else 0
        if bits > LARGEST_BITS:
            raise ValueError(f"{path}: samples of {bits} bits; {SAMPLES_READ}")
        try:
            image = _loaded(file, kind)
            pages = _pages_of(image)
            if page is not None and not 1 <= page <= pages:
                raise ValueError(f"{path}: page={page}; must be from 1 to {pages}, as many as there are")
            if page is not None and page > 1:
                image = _loaded(file, kind, page=page - 1)
            _check_readable(image, path, max_pixels)
            if kind is TIFF:
                _refuse_stack(path, pages, read_at)
            if page is None:
                _warn_of_others(path, kind, pages, read_at)
            yield image, kind
        except pyvips.Error as error:
            raise ValueError(f"{path}: not a readable {kind.name} file: {reason(error)}") from error


def _loaded(file: Any, kind: Format, **options: int) -> Any:
    """The loader is named, not found: libvips would also try formats it does not trust. fail_on makes a truncated or
    broken file an error instead of grey rows."""
    pyvips = import_pyvips()
    file.seek(0)
    source = pyvips.Source.new_from_descriptor(file.fileno())
    loader = f"{kind.codec}load_source"
    return pyvips.Operation.call(loader, source, access="sequential", fail_on="error", **options)


def _pages_of(image: Any) -> int:
    return image.get("n-pages") if image.get_typeof("n-pages") else 1


def _check_readable(image: Any, path: str, max_pixels: int | None) -> None:
    size = f"{image.width} x {image.height}"
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(f"{path}: {size} pixels are more than max_pixels={max_pixels}; {TRUST}")
    if image.format not in DTYPES:
        raise ValueError(f"{path}: samples are {SAMPLES.get(image.format, image.format)}; {SAMPLES_READ}")


def is_turned(image: Any) -> bool:
    return image.get_typeof("orientation") != 0 and image.get("orientation") != 1


def as_rgb(image: Any) -> Any:
    """Turns CMYK, Lab and the like into sRGB of the same depth."""
    if image.interpretation in AS_STORED:
        return image
    deep = image.format != "uchar"
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    image = image.colourspace("rgb16" if deep else "srgb")
    image.remove("icc-profile-data")
    return image


def shape_of(image: Any) -> tuple[int, ...]:
    return (image.height, image.width, image.bands)[: 2 if image.bands == 1 else 3]


def picture_of(image: Any, kind: Format, pixels: np.ndarray) -> Picture:
    """Pixels with the metadata of the libvips image that they are of."""
    return Picture(pixels, _metadata(image, kind), (min(image.xres, MAX_RES), min(image.yres, MAX_RES)))


def _metadata(image: Any, kind: Format) -> dict[str, bytes | str]:
    """The fields to keep. EXIF is both a blob and one text field per entry; libvips writes what both of them hold."""
    names = [name for name in image.get_fields() if name.startswith(METADATA)]
    if kind is TIFF:
        names = [name for name in names if name != "iptc-data"]  # libvips 8.18 reads a quarter of it
    fields = {}
    for name in names:
        with suppress(UnicodeDecodeError):  # damaged text
            fields[name] = image.get(name)
    return fields


def _check_fits(path: str, kind: Format, shape: Sequence[int]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"{path}: pixels of shape {tuple(shape)}; must be (H, W) or (H, W, C), none of them 0")
    channels = shape[2] if len(shape) == 3 else 1
    if kind is JPEG and channels in (2, 4):
        raise ValueError(f"{path}: JPEG has no alpha channel, pixels of shape {tuple(shape)} have one; use PNG or TIFF")
    if kind.channels is not None and channels not in kind.channels:
        allowed = ", ".join(map(str, kind.channels))
        raise ValueError(f"{path}: {kind.name} cannot hold {channels} channels; it takes {allowed}")
    if max(shape[:2]) > kind.max_side:
        size = f"{shape[1]} x {shape[0]}"
        raise ValueError(f"{path}: {kind.name} holds up to {kind.max_side} pixels a side, not {size}; use PNG or TIFF")


def save_options(kind: Format, size: int, dtype: Any, quality: int, compression: int) -> dict[str, Any]:
    """libvips' options for a file of so many bytes of pixels. Tables of its own for a JPEG need all of it in memory."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality!r}; must be 1 to 100")
    if not 0 <= compression <= 9:
        raise ValueError(f"compression={compression!r}; must be 0 to 9")
    if kind is JPEG:
        return {"Q": quality, "optimize_coding": size <= SMALL_JPEG_BYTES}
    if kind is WEBP:
        return {"Q": quality, "lossless": quality == 100, "exact": True}
    if kind is PNG:
        return {"compression": compression, "filter": "up"}  # photos: half the size of libvips' default, no filter
    predictor = "float" if np.dtype(dtype).kind == "f" else "horizontal"
    method = {"compression": "deflate", "level": compression, "predictor": predictor} if compression else {}
    return method | {"bigtiff": size > CLASSIC_TIFF_BYTES}


def page_options(path: str, kind: Format, rows: int, pages: int) -> dict[str, Any]:
    if pages == 1:
        return {}
    if kind is not TIFF:
        raise ValueError(f"{path}: {kind.name} holds one page, not {pages}; use TIFF")
    if pages < 1 or rows % pages:
        raise ValueError(f"pages={pages!r}; must be 1, or a number that divides the {rows} rows")
    return {"page_height": rows // pages}


def _to_vips(pyvips: Any, pixels: np.ndarray, kind: Format) -> Any:
    """A libvips image over the pixels, without a copy where they are contiguous."""
    dtype = "float32" if pixels.dtype.kind == "f" else pixels.dtype.name
    pixels = np.ascontiguousarray(pixels, dtype)
    height, width, bands = (*pixels.shape, 1)[:3]
    image = pyvips.Image.new_from_memory(pixels.data, width, height, bands, VIPS_FORMATS[dtype])
    return as_held(image, kind)


def as_held(image: Any, kind: Format) -> Any:
    """A libvips image of uchar, ushort or float as a file of this kind holds it."""
    dtype = DTYPES[image.format]
    if dtype == "uint16" and kind in (JPEG, WEBP):
        image, dtype = image.linear(1 / 257, 0.5).cast("uchar"), "uint8"  # rounded: cast drops the fraction
    grey, colour = INTERPRETATIONS[dtype]
    return image.copy(interpretation=grey if image.bands < 3 else colour)


def with_metadata(pyvips: Any, image: Any, like: Picture | None, kind: Format, path: str) -> Any:
    """The image with like's metadata, less what libvips cannot or will not store, such as a damaged profile."""
    if like is None:
        return image
    fields = dict(like.metadata)
    if not _profile_fits(fields.get("icc-profile-data", b""), image.bands, kind):
        fields.pop("icc-profile-data", None)
    lost = [label for name, label in UNKEPT[kind.name].items() if fields.pop(name, None) is not None]
    if lost:
        warnings.warn(f"{path}: libvips cannot write this into {kind.name}: {', '.join(lost)}", stacklevel=3)
    if not _can_store(pyvips, image, fields, kind):
        refused = [name for name, value in fields.items() if not _can_store(pyvips, image, {name: value}, kind)]
        warnings.warn(f"{path}: damaged metadata of the input is not kept: {', '.join(refused)}", stacklevel=3)
        fields = {name: value for name, value in fields.items() if name not in refused}
    xres, yres = like.resolution
    return _set_fields(pyvips, image.copy(xres=xres, yres=yres), fields)


def _set_fields(pyvips: Any, image: Any, fields: Mapping[str, bytes | str]) -> Any:
    for name, value in fields.items():
        kind = pyvips.GValue.gstr_type if isinstance(value, str) else pyvips.GValue.blob_type
        image.set_type(kind, name, value)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # the EXIF blob still holds the one that was applied
    return image


def _can_store(pyvips: Any, image: Any, fields: Mapping[str, bytes | str], kind: Format) -> bool:
    """Tries the fields on one black pixel, since libvips finds out only while it writes."""
    black = pyvips.Image.black(1, 1, bands=image.bands).cast(image.format)
    pixel = _set_fields(pyvips, black.copy(interpretation=image.interpretation), fields)
    try:
        pixel.write_to_buffer(f".{kind.codec}")
    except pyvips.Error:
        return False
    return True


def _profile_fits(profile: Any, bands: int, kind: Format) -> bool:
    """Whether an ICC profile, which names its colour space in bytes 16 to 20, describes an image of so many bands."""
    grey = bands < 3 and kind is not WEBP
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")


@contextmanager
def replacing(path: str) -> Iterator[int]:
    """A descriptor of a new file, which takes the place of `path` if the body ends well and disappears if not."""
    target = os.path.realpath(path)
    name = os.path.join(os.path.dirname(target), f".halotile-{secrets.token_hex(8)}.tmp")
    try:
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileNotFoundError):
            shutil.copymode(target, name)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _interruptible(image: Any, call: Callable[[], Any]) -> Any:
    """Runs a long libvips call in a thread, so that Ctrl-C is seen at once, and then stops the image's pipeline."""
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(call)
        try:
            return job.result()
        except BaseException:
            image.set_kill(True)
            raise
        finally:
            del job  # it holds the error, and that this frame: a cycle would keep the image open


def reason(error: Exception) -> str:
    """libvips' own words on one line, without pyvips' 'unable to call ...'."""
    lines = [line.strip() for line in full_text(error).splitlines() if line.strip()]
    return shortened("; ".join(dict.fromkeys(lines[1:]))) or "it is damaged or was cut short"
