# SPDX-License-Identifier: MIT
"""Opens image files with libvips, and checks them before decoding.

libvips reads and writes 8 and 16 bits in all these formats, keeps ICC profiles and EXIF, and streams rows; Pillow has
no 16-bit RGB. Its binding pyvips is optional: `pip install 'halotile[cli]'`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np

from ..texts import full_text, quoted, shortened
from .codecs import HEIC, JPEG, PNG, TIFF, WEBP, Codec, recognised
from .heic import heic_image
from .previews import (
    STACKS,
    START,
    bits_of_tiff,
    ends_jpeg,
    frames_of_png,
    has_scans,
    planes_of_tiff,
    reader_of,
    refusal,
)
from .stacks import Stack, stack_of_tiff
from .tiff_tags import ReadAt

if TYPE_CHECKING:
    import pyvips

__all__ = [
    "DTYPES",
    "MAX_PIXELS",
    "TRUST",
    "Path",
    "as_held",
    "as_rgb",
    "import_pyvips",
    "import_writer",
    "interruptible",
    "is_turned",
    "loaded",
    "opened",
    "pages_of",
    "reason",
    "shape_of",
    "to_vips",
]

Path = str | os.PathLike[str]
T = TypeVar("T")

MAX_PIXELS = 2**28  # 16384 x 16384: larger sizes are more likely decompression bombs than pictures
TRUST = "raise it for a file you trust"

DTYPES = {"uchar": "uint8", "ushort": "uint16", "float": "float32"}  # libvips -> NumPy
VIPS_FORMATS = {dtype: name for name, dtype in DTYPES.items()}
INTERPRETATIONS = {"uint8": ("b-w", "srgb"), "uint16": ("grey16", "rgb16"), "float32": ("b-w", "scrgb")}
AS_STORED = {"b-w", "grey16", "srgb", "rgb16", "rgb", "scrgb", "multiband"}  # interpretations that need no conversion

LARGEST_BITS = 32  # per sample of a TIFF: the limit of libvips
MOST_SCANS = 300  # of a JPEG
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


def import_pyvips() -> ModuleType:
    try:
        import pyvips
    except (ImportError, OSError) as error:  # OSError: pyvips is installed but libvips is not
        message = f"image files need pyvips: pip install 'halotile[cli]' ({quoted(error)})"
        raise ImportError(message) from error
    return pyvips


def import_writer(codec: Codec) -> ModuleType:
    """pyvips, if its libvips writes that format. Raises ImportError."""
    vips = import_pyvips()
    if not vips.type_find("VipsOperation", f"{codec.vips}save_target"):
        raise ImportError(f"{codec.name} needs a libvips that has it, such as that of pip install 'halotile[cli]'")
    return vips


def _reads(codec: Codec) -> bool:
    return bool(import_pyvips().type_find("VipsOperation", f"{codec.vips}load_source"))


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def opened(
    path: Path, max_pixels: int | None, page: int | None = None, strict: bool = False
) -> Iterator[tuple[pyvips.Image, Codec]]:
    """A file's image, which is decoded lazily, and its codec. Errors of libvips in the body become ValueErrors.

    Args:
        strict: refuse a JPEG that lacks its last bytes; else a warning says so, and what they would show is grey.

    Raises:
        OSError: the file cannot be opened. ValueError: it is refused or unreadable, or has no such page.
    """
    vips = import_pyvips()
    path = os.fspath(path)
    with open(path, "rb", buffering=0) as file:
        start, read_at = file.read(START), reader_of(file)
        why_not = refusal(path, start, read_at)
        if why_not is not None:
            raise ValueError(f"{path}: {why_not}")
        codec = recognised(start, path, _reads)
        bits = bits_of_tiff(read_at) if codec is TIFF else 0
        if bits > LARGEST_BITS:
            raise ValueError(f"{path}: samples of {bits} bits; {SAMPLES_READ}")
        if codec is JPEG and has_scans(read_at, MOST_SCANS):
            raise ValueError(f"{path}: {MOST_SCANS} scans or more, which take long to decode and show no more")
        try:
            whole = codec is not JPEG or ends_jpeg(read_at, os.fstat(file.fileno()).st_size)
            if not whole and strict:
                raise ValueError(f"{path}: not a whole JPEG file: its last bytes are missing")
            image = (
                _heic(path, max_pixels) if codec is HEIC else loaded(file, codec, fail_on="error" if whole else "none")
            )
            stack = _stack(path, pages_of(image), read_at) if codec is TIFF else None
            pages = pages_of(image) if stack is None else stack.count
            if page is not None and not 1 <= page <= pages:
                raise ValueError(f"{path}: page={page}; must be from 1 to {pages}, as many as there are")
            if stack is not None:
                image = stack.page(path, (page or 1) - 1, image, vips)
            elif page is not None and page > 1:
                image = loaded(file, codec, page=page - 1)
            _check_readable(image, path, max_pixels)
            if page is None:
                _warn_of_others(path, codec, pages, read_at)
                if not whole:
                    text = "its last bytes are missing, and what they would show is grey"
                    warnings.warn(f"{path}: {text}", stacklevel=4)
            yield image, codec
        except vips.Error as error:
            raise ValueError(f"{path}: not a readable {codec.name} file: {reason(error)}") from error


def _heic(path: str, max_pixels: int | None) -> pyvips.Image:
    found = heic_image(path, max_pixels, import_pyvips())
    if isinstance(found, tuple):
        raise ValueError(f"{path}: {found[0]} x {found[1]} pixels are more than max_pixels={max_pixels}; {TRUST}")
    return found


def loaded(file: BinaryIO, codec: Codec, *, fail_on: str = "error", **options: int) -> pyvips.Image:
    """Loads a file with the codec's own loader: by itself, libvips would also try formats that it marks as untrusted.
    With fail_on, a damaged file raises an error instead of giving grey rows."""
    vips = import_pyvips()
    file.seek(0)
    source = vips.Source.new_from_descriptor(file.fileno())
    return vips.Operation.call(f"{codec.vips}load_source", source, access="sequential", fail_on=fail_on, **options)


def pages_of(image: pyvips.Image) -> int:
    return image.get("n-pages") if image.get_typeof("n-pages") else 1


def _check_readable(image: pyvips.Image, path: str, max_pixels: int | None) -> None:
    size = f"{image.width} x {image.height}"
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(f"{path}: {size} pixels are more than max_pixels={max_pixels}; {TRUST}")
    if image.format not in DTYPES:
        raise ValueError(f"{path}: samples are {SAMPLES.get(image.format, image.format)}; {SAMPLES_READ}")


def _stack(path: str, pages: int, read_at: ReadAt) -> Stack | None:
    """The stack under a TIFF's only directory, if it is one. Raises ValueError if it cannot be read."""
    planes, what = planes_of_tiff(read_at)
    if planes <= pages:
        return None
    stack = stack_of_tiff(read_at, planes) if pages == 1 and what in STACKS else None
    if stack is None:
        held = f"only the first {pages} can be read" if pages > 1 else "only the first can be read"
        text = f"{what} of {planes} images, of which {held}: the others have no directory of their own"
        advice = "save it with a directory for each: tifffile.imwrite(new, tifffile.imread(old), metadata=None)"
        raise ValueError(f"{path}: {text}; {advice}")
    return stack


def _warn_of_others(path: str, codec: Codec, pages: int, read_at: ReadAt) -> None:
    text = f"holds {pages} {'frames' if codec is WEBP else 'pages'}; the first is read" if pages > 1 else None
    frames, is_first = frames_of_png(read_at) if codec is PNG else (1, True)
    if not is_first:
        text = f"holds an animation of {frames} frames; its still image is read"
    elif frames > 1:
        text = f"holds {frames} frames; the first is read"
    if text is not None:
        warnings.warn(f"{path}: {text}", stacklevel=5)


def is_turned(image: pyvips.Image) -> bool:
    """Whether EXIF orientation requires rotating or mirroring the image."""
    return image.get_typeof("orientation") != 0 and image.get("orientation") != 1


def as_rgb(image: pyvips.Image) -> pyvips.Image:
    """Converts CMYK, Lab and similar colour spaces to sRGB of the same depth."""
    if image.interpretation in AS_STORED:
        return image
    deep = image.format != "uchar"
    if image.interpretation == "cmyk":
        return image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    image = image.colourspace("rgb16" if deep else "srgb")
    image.remove("icc-profile-data")
    return image


def shape_of(image: pyvips.Image) -> tuple[int, ...]:
    """(H, W) for one channel, else (H, W, C)."""
    return (image.height, image.width, image.bands)[: 2 if image.bands == 1 else 3]


# ---- writing ---------------------------------------------------------------------------------------------------------


def to_vips(pixels: np.ndarray, codec: Codec) -> pyvips.Image:
    """A libvips image of the pixels, without a copy if they are contiguous."""
    dtype = "float32" if pixels.dtype.kind == "f" else pixels.dtype.name
    pixels = np.ascontiguousarray(pixels, dtype)
    height, width, bands = (*pixels.shape, 1)[:3]
    image = import_pyvips().Image.new_from_memory(pixels.data, width, height, bands, VIPS_FORMATS[dtype])
    return as_held(image, codec)


def as_held(image: pyvips.Image, codec: Codec) -> pyvips.Image:
    """Converts an image to the sample format and colour space of the codec's files."""
    dtype = DTYPES[image.format]
    if dtype == "uint16" and not codec.deep:
        image, dtype = image.linear(1 / 257, 0.5).cast("uchar"), "uint8"  # cast truncates, so 0.5 is added
    grey, colour = INTERPRETATIONS[dtype]
    return image.copy(interpretation=grey if image.bands < 3 else colour)


# ---- running ---------------------------------------------------------------------------------------------------------


def interruptible(image: pyvips.Image, call: Callable[[], T]) -> T:
    """Runs a long libvips call in a thread, so that Ctrl-C stops the image's pipeline at once."""
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(call)
        try:
            return job.result()
        except BaseException:
            image.set_kill(True)
            raise
        finally:
            del job  # breaks a reference cycle through the error and this frame, which would keep the image open


def reason(error: Exception) -> str:
    """The error message of libvips on one line, without pyvips' 'unable to call ...'."""
    lines = [line.strip() for line in full_text(error).splitlines() if line.strip()]
    return shortened("; ".join(dict.fromkeys(lines[1:]))) or "it is damaged or was cut short"
