# SPDX-License-Identifier: MIT
"""What libvips does not carry from file to file: georeference, descriptions with sizes, bands that are no alpha; and
what cannot be carried at all, by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from .codecs import JPEG, PNG, TIFF, Codec
from .heic import LOST
from .previews import reader_of
from .tiff_patch import ASCII, DOUBLE, RATIONAL, SHORT, Tag, read_tags
from .tiff_tags import Directory, ReadAt, directories

if TYPE_CHECKING:
    import pyvips

__all__ = [
    "BLACK_IS_ZERO",
    "EXTRA_SAMPLES",
    "NO_EXTRAS",
    "PHOTOMETRIC",
    "RGB",
    "UNSPECIFIED",
    "Extras",
    "extras_of",
    "mended_description",
    "mended_tags",
]

PHOTOMETRIC, EXTRA_SAMPLES = 262, 338
PIXEL_SCALE, TIE_POINTS, TRANSFORM, GEO_KEYS = 33550, 33922, 34264, 34735
GDAL_METADATA, GDAL_NODATA, RPC = 42112, 42113, 50844
UNITS, RESOLUTIONS, NO_UNIT = 296, (282, 283), 1
GEO = (PIXEL_SCALE, TIE_POINTS, TRANSFORM, GEO_KEYS, 34736, 34737, GDAL_METADATA, GDAL_NODATA)
TEXTS = {
    315: "artist",
    33432: "copyright",
    306: "date",
    271: "make",
    272: "model",
    269: "document name",
    285: "page name",
}
UNREAD = {34665: "EXIF", 34853: "GPS", 33723: "IPTC", 34377: "Photoshop's settings", 37724: "Photoshop's layers"}
RASTER_TYPE, IS_POINT = 1025, 2  # the GeoKey that says whether coordinates are those of pixels' middles
GREY, BLACK_IS_ZERO, RGB, UNSPECIFIED = (0, 1), 1, 2, 0

STATISTICS = re.compile(rb'<Item name="STATISTICS_[^>]*>[^<]*</Item>\s*')
GAIN_MAP = re.compile(rb"hdrgm:|HDRGainMap|hdr-gain-map|urn:iso:std:iso:ts:21496")
MOTION_PHOTO = re.compile(rb"MotionPhoto|MicroVideo")
HEAD = 2**18  # bytes of a JPEG in which a gain map announces itself
OME_SIZE = re.compile(r'\b(Physical)?Size([XY])="([^"]*)"')


@dataclass(frozen=True)
class Extras:
    """Attributes:
    size: (height, width) of the image, upright.
    tags: TIFF tags to be carried.
    lost: names of what no file gets.
    without_xmp: whether XMP speaks of what is lost.
    data: whether the bands beyond the colours are data, not alpha.
    rgb: whether the first three bands of a TIFF are colours.
    turned: whether the image was rotated or mirrored.
    pages, bands, format: of the file, as libvips names them.
    """

    size: tuple[int, int] | None = None
    tags: Mapping[int, Tag] = field(default_factory=dict, repr=False)
    lost: tuple[str, ...] = ()
    without_xmp: bool = False
    data: bool = False
    rgb: bool = True
    turned: bool = False
    pages: int = 1
    bands: int = 0
    format: str = ""

    @property
    def dtype(self) -> str:
        return {"uchar": "uint8", "ushort": "uint16"}.get(self.format, "float32")

    @property
    def nodata(self) -> float | None:
        """The value for pixels without data, as GDAL writes it."""
        text = self.tags[GDAL_NODATA].values if GDAL_NODATA in self.tags else b""
        try:
            return float(text.strip(b"\0 ")) if isinstance(text, bytes) else None
        except ValueError:
            return None

    @property
    def texts(self) -> list[str]:
        """Names of the texts that only TIFF holds."""
        return [name for tag, name in TEXTS.items() if tag in self.tags]

    @property
    def has_place(self) -> bool:
        """Whether there is a georeference."""
        return GEO_KEYS in self.tags or PIXEL_SCALE in self.tags or TRANSFORM in self.tags


NO_EXTRAS = Extras()


def extras_of(path: str, image: pyvips.Image, codec: Codec, page: int | None, turned: bool) -> Extras:
    """Of an image file, whose upright image is given. Raises OSError."""
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    known = Extras((image.height, image.width), turned=turned, pages=pages, bands=image.bands, format=image.format)
    with open(path, "rb", buffering=0) as file:
        read_at = reader_of(file)
        if codec is TIFF:
            return _of_tiff(read_at, known, page or 1)
        told = image.get(LOST) if image.get_typeof(LOST) else ""
        xmp = image.get("xmp-data") if image.get_typeof("xmp-data") else b""
        in_xmp = [name for name, sign in (("gain map", GAIN_MAP), ("motion photo", MOTION_PHOTO)) if sign.search(xmp)]
        lost = [*filter(None, told.split(",")), *in_xmp, *_beside(read_at, codec, os.fstat(file.fileno()).st_size)]
    return replace(known, lost=tuple(dict.fromkeys(lost)), without_xmp=bool(in_xmp))


def _of_tiff(read_at: ReadAt, known: Extras, page: int) -> Extras:
    tags = read_tags(read_at, (*GEO, RPC, PHOTOMETRIC, EXTRA_SAMPLES, UNITS, *RESOLUTIONS, *TEXTS), page)
    samples = tags.pop(EXTRA_SAMPLES, Tag(SHORT, ())).values
    photometric = (*tags.pop(PHOTOMETRIC, Tag(SHORT, ())).values, None)[0]
    grey, rgb, bands = photometric in GREY, photometric == RGB, known.bands
    data = (grey and bands > 2) or (UNSPECIFIED in samples[:1] and bands == (2 if grey else 4))
    if tags.get(UNITS, Tag(SHORT, ())).values[:1] != (NO_UNIT,):  # libvips knows the others
        tags = {tag: value for tag, value in tags.items() if tag not in (UNITS, *RESOLUTIONS)}
    there = (*directories(read_at), *(Directory(),) * page)[page - 1].counts
    lost = [name for tag, name in UNREAD.items() if tag in there]
    lost += ["RPC coefficients"] if tags.pop(RPC, None) is not None else []
    if GDAL_METADATA in tags and isinstance(tags[GDAL_METADATA].values, bytes):
        tags[GDAL_METADATA] = Tag(ASCII, STATISTICS.sub(b"", tags[GDAL_METADATA].values))
    return replace(known, tags=tags, lost=tuple(lost), data=data, rgb=rgb)


def _beside(read_at: ReadAt, codec: Codec, end: int) -> Iterator[str]:
    """Names of what a file holds beside its image."""
    if codec is JPEG:
        if b"urn:iso:std:iso:ts:21496" in read_at(0, HEAD):
            yield "gain map"
        if b"MotionPhoto_Data" in read_at(max(0, end - 1024), 1024):
            yield "motion photo"
    if codec is PNG:
        chunks = set(_chunks_of_png(read_at))
        yield from sorted(chunks & {"cICP", "mDCV", "cLLI"})
        if not chunks & {"iCCP", "sRGB", "cICP"}:
            yield from sorted(chunks & {"gAMA", "cHRM"})


def _chunks_of_png(read_at: ReadAt) -> Iterator[str]:
    """The chunks before the pixels."""
    offset = 8
    for _ in range(4096):
        head = read_at(offset, 8)
        if len(head) < 8 or head[4:] == b"IDAT":
            return
        name = head[4:].decode("latin-1")
        usual = name == "gAMA" and read_at(offset + 8, 4) == (45455).to_bytes(4, "big")
        usual |= name == "cICP" and read_at(offset + 8, 2) == b"\x01\x0d"
        if not usual:
            yield name
        offset += 12 + int.from_bytes(head[:4], "big")


# ---- sizes that change -----------------------------------------------------------------------------------------------


def mended_tags(extras: Extras, size: tuple[int, int], of_pixels: bool) -> dict[int, Tag]:
    """The TIFF tags for a result of that size, of the same place on earth.

    of_pixels: whether resolutions without a unit are those of what is seen, not of a print.
    """
    if extras.size is None:
        return {}
    y, x = (Fraction(new, old) for new, old in zip(size, extras.size, strict=True))
    tags = {tag: value for tag, value in extras.tags.items() if not (extras.turned and tag in GEO)}
    point = _is_point(tags)
    for tag, mend in ((PIXEL_SCALE, _scaled), (TIE_POINTS, _moved), (TRANSFORM, _transformed)):
        if tag in tags and not isinstance(tags[tag].values, bytes):
            tags[tag] = Tag(DOUBLE, mend(tuple(map(float, tags[tag].values)), float(x), float(y), point))
    for tag, scale in zip(RESOLUTIONS, (x, y), strict=True):
        if of_pixels and tag in tags and not isinstance(tags[tag].values, bytes):
            tags[tag] = _times(tags[tag], scale)
    return tags


def _times(tag: Tag, scale: Fraction) -> Tag:
    top, bottom = map(int, tag.values)
    scaled = (Fraction(top, bottom or 1) * scale).limit_denominator(2**16)
    return Tag(RATIONAL, (scaled.numerator, scaled.denominator)) if scaled.numerator < 2**32 else tag


def _is_point(tags: Mapping[int, Tag]) -> bool:
    keys = tags[GEO_KEYS].values if GEO_KEYS in tags else ()
    entries = zip(*(keys[start::4] for start in range(4)), strict=False)
    return any(key == RASTER_TYPE and value == IS_POINT for key, _, _, value in entries)


def _scaled(values: tuple[float, ...], x: float, y: float, _: bool) -> tuple[float, ...]:
    return (values[0] / x, values[1] / y, *values[2:]) if len(values) >= 2 else values


def _moved(values: tuple[float, ...], x: float, y: float, point: bool) -> tuple[float, ...]:
    half, moved = 0.5 if point else 0.0, list(values)
    for start in range(0, len(values) - 5, 6):
        moved[start] = (values[start] + half) * x - half
        moved[start + 1] = (values[start + 1] + half) * y - half
    return tuple(moved)


def _transformed(values: tuple[float, ...], x: float, y: float, point: bool) -> tuple[float, ...]:
    if len(values) != 16:
        return values
    half, rows = 0.5 if point else 0.0, [list(values[start : start + 4]) for start in (0, 4, 8, 12)]
    for row in rows[:3]:
        row[3] += row[0] * (half / x - half) + row[1] * (half / y - half)
        row[0], row[1] = row[0] / x, row[1] / y
    return tuple(value for row in rows for value in row)


def mended_description(text: str, extras: Extras, size: tuple[int, int], same: bool) -> str | None:
    """The ImageDescription of a result of that size; None if it would be wrong.

    same: whether the result has as many pages, as many channels, and the same dtype.
    """
    if text.startswith('{"shape"'):
        return ""  # of tifffile, which makes its own
    if "<OME" in text[:4096]:
        if not same or extras.size is None or extras.turned:
            return None
        scale = {axis: Fraction(new, old) for axis, new, old in zip("YX", size, extras.size, strict=True)}
        return OME_SIZE.sub(lambda found: _mended(found, scale, dict(zip("YX", size, strict=True))), text)
    return text if same or not text.startswith("ImageJ=") else None


def _mended(found: re.Match[str], scale: Mapping[str, Fraction], sizes: Mapping[str, int]) -> str:
    physical, axis, value = found.groups()
    if not physical:
        return f'Size{axis}="{sizes[axis]}"'
    try:
        return f'PhysicalSize{axis}="{float(value) / float(scale[axis]):.17g}"'
    except ValueError:
        return found[0]
