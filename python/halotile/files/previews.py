# SPDX-License-Identifier: MIT
"""Detects files whose first image is readable but is not their main content: camera raw files, stacks, animations.

`refusal` names camera raw files and similar ones; `planes_of_tiff` and `frames_of_png` count the images of stacks and
animations.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from typing import BinaryIO

from .tiff_tags import TIFF_MAGIC, Directory, ReadAt, directories

__all__ = [
    "BITS",
    "COMPRESSION",
    "HEIGHT",
    "PHOTOMETRIC",
    "RAW_SUFFIXES",
    "SAMPLES",
    "STACKS",
    "START",
    "WIDTH",
    "bits_of_tiff",
    "ends_jpeg",
    "frames_of_png",
    "has_scans",
    "kind_of",
    "one_image_of_tiff",
    "planes_of_tiff",
    "reader_of",
    "refusal",
]

START = 16  # bytes of a file that `refusal` needs

# ---- camera raw files ------------------------------------------------------------------------------------------------

# Recognised by their first bytes: (offset, bytes, name).
RAW_STARTS = (
    (0, b"FUJIFILMCCD-RAW", "RAF"),
    (0, b"FOVb", "X3F"),
    (0, b"\0MRM", "MRW"),
    (0, b"IIRO", "ORF"),
    (0, b"IIRS", "ORF"),
    (0, b"MMOR", "ORF"),
    (0, b"IIU\0", "RW2"),
    (4, b"ftypcrx ", "CR3"),
    (6, b"HEAPCCDR", "CRW"),
)
RAW_TIFF_STARTS = (  # after a TIFF's first bytes, where other files may have pixels; hence long patterns
    (re.compile(rb".{4}(\x10\0\0\0|\0\0\0\x10)CR\x02", re.DOTALL), "CR2"),
    (re.compile(rb".{8}(IIII.waR|MMMMRaw)", re.DOTALL), "IIQ"),
)
RAW_SUFFIXES = {
    *(".3fr", ".arq", ".arw", ".bay", ".cap", ".cr2", ".crw", ".dcr", ".dcs", ".dng", ".erf", ".fff", ".gpr", ".iiq"),
    *(".k25", ".kdc", ".mdc", ".mef", ".mos", ".nef", ".nrw", ".orf", ".pef", ".ptx", ".raw", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw"),
}
NAMES_OF_MAKES = (  # prefix of a camera's Make tag, and the name of its files
    ("nikon", "NEF"),
    ("sony", "ARW"),
    ("canon", "CR2"),
    ("pentax", "PEF"),
    ("ricoh", "PEF"),
    ("asahi", "PEF"),
    ("olympus", "ORF"),
    ("om digital", "ORF"),
    ("panasonic", "RW2"),
    ("leica", "RWL"),
    ("samsung", "SRW"),
    ("hasselblad", "3FR"),
    ("phase one", "IIQ"),
    ("leaf", "MOS"),
    ("mamiya", "MEF"),
    ("eastman kodak", "DCR"),
    ("kodak", "DCR"),
    ("seiko epson", "ERF"),
)

NEW_SUBFILE_TYPE = 254
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
DESCRIPTION, MAKE, SAMPLES = 270, 271, 277
REDUCED, MASK = 1, 4  # bits of NEW_SUBFILE_TYPE
DNG_TAGS = (50706, 50707)  # DNGVersion, DNGBackwardVersion
MOSAIC_TAGS = (33421, 33422, 34310)  # CFARepeatPatternDim, CFAPattern, Leaf's data
MOSAICS = (32803, 34892)  # photometric interpretations: a colour filter array, a sensor's linear values
RAW_COMPRESSIONS = (262, 32767, 32769, 32770, 34713, 34892, 65000, 65535)  # of Kodak, Sony, Epson, Samsung, Nikon, ...
PRIVATE_DATA = 50740  # Sony's, for its raw data

DEVELOP = (
    "only its preview can be read; develop it first, to a 16-bit TIFF file, with a raw developer such as darktable or "
    "RawTherapee"
)


def refusal(path: str, start: bytes, read_at: ReadAt) -> str | None:
    """The reason not to read a file's first image as the file's content; None if there is none.

    Args:
        path: the file, whose suffix is a second hint.
        start: the first START bytes.
        read_at: reads the file.
    """
    if not start.startswith(TIFF_MAGIC):
        name = next((name for offset, magic, name in RAW_STARTS if start[offset:].startswith(magic)), None)
        return None if name is None else f"a camera raw file ({name}): {DEVELOP}"
    found = directories(read_at)
    by_start = next((name for pattern, name in RAW_TIFF_STARTS if pattern.match(start)), None)
    name = by_start or _name_by_tags(found, os.path.splitext(path)[1].lower())
    return _hidden_in_tree(found) if name is None else f"a camera raw file ({name}): {DEVELOP}"


def _name_by_tags(found: Sequence[Directory], suffix: str) -> str | None:
    """The kind of camera raw file that a TIFF is, or None."""
    everything = [inner for one in found for inner in one.with_children()]
    if any(tag in one.counts for one in everything for tag in DNG_TAGS):
        return "DNG"
    make = next((one.texts[MAKE].strip() for one in found if one.texts.get(MAKE, "").strip()), "")
    is_named = suffix in RAW_SUFFIXES
    is_raw = any(map(_is_mosaic, everything)) or (make and _hides_more(found))
    if not is_raw and not (is_named and _may_be_raw(found, make)):
        return None
    by_make = next((name for begins, name in NAMES_OF_MAKES if make.lower().startswith(begins)), None)
    return suffix[1:].upper() if is_named else by_make or "TIFF/EP"


def _hides_more(found: Sequence[Directory]) -> bool:
    """Whether there is a larger image in a SubIFD of a smaller one, or a camera's private data."""
    larger = any(_pixels(child) > _pixels(one) for one in found for child in one.children)
    return larger or any(PRIVATE_DATA in one.counts for one in found)


def _may_be_raw(found: Sequence[Directory], make: str) -> bool:
    """Whether a file with a raw file's suffix holds more than a plain image."""
    return not found or bool(make) or _is_reduced(found[0]) or bool(found[0].children) or _hides_more(found)


def _is_mosaic(one: Directory) -> bool:
    return (
        one.number(PHOTOMETRIC) in MOSAICS
        or one.number(COMPRESSION) in RAW_COMPRESSIONS
        or any(tag in one.counts for tag in MOSAIC_TAGS)
    )


def _is_reduced(one: Directory) -> bool:
    return bool(one.number(NEW_SUBFILE_TYPE) & REDUCED)


def _pixels(one: Directory) -> int:
    return one.number(WIDTH) * one.number(HEIGHT)


def _hidden_in_tree(found: Sequence[Directory]) -> str | None:
    """The reason not to read the first image if a SubIFD has a larger one. The levels of a pyramid are smaller."""
    for one in found:
        for child in one.children:
            if _pixels(child) > _pixels(one) > 0:
                text = f"its image of {_size(child)} is in a SubIFD, which is not read, below one of {_size(one)}"
                return f"{text}; convert it first, to a TIFF file with only the larger image"
    return None


def _size(one: Directory) -> str:
    return f"{one.number(WIDTH)} x {one.number(HEIGHT)}"


# ---- files of other kinds --------------------------------------------------------------------------------------------

OTHER_STARTS = (  # (offset, bytes, name)
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    *((4, b"ftyp" + brand, "HEIF") for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"8BPS", "Photoshop"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"%PDF", "PDF"),
    (0, b"DDS ", "DDS"),
    *((0, b"P" + digit, "Netpbm") for digit in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"f", b"F")),
)


def kind_of(start: bytes) -> str | None:
    """The name of an unsupported format, by a file's first bytes."""
    return next((name for offset, magic, name in OTHER_STARTS if start[offset:].startswith(magic)), None)


# ---- stacks in one directory -----------------------------------------------------------------------------------------

IMAGEJ = re.compile(r"ImageJ=\S*\r?\n(?:[^\0]*\n)?images=(\d{1,18})\s", re.ASCII)
STACKS = ("an ImageJ stack", "a tifffile stack")  # whose images lie one after the other
METAMORPH = 33629  # the UIC2 tag, with an entry for each plane
IMAGE_DEPTH = 32997
MOST_PLANES = 2**32


def planes_of_tiff(read_at: ReadAt) -> tuple[int, str]:
    """The number of images that a TIFF file states, by default 1, and its kind of stack.

    ImageJ, MetaMorph and tifffile may store a stack under one directory: ImageJ from 4 GiB on, tifffile on request.
    Voxel volumes are stored that way, too."""
    first = next(iter(directories(read_at, most=1)), Directory())
    description = first.texts.get(DESCRIPTION, "")
    match = IMAGEJ.match(description + "\n")
    if match:
        return int(match[1]), STACKS[0]
    if METAMORPH in first.counts:
        return min(first.counts[METAMORPH], MOST_PLANES), "a MetaMorph stack"
    if first.number(IMAGE_DEPTH) > 1:
        return first.number(IMAGE_DEPTH), "a volume"
    return _planes_of_shape(first, description), STACKS[1]


def bits_of_tiff(read_at: ReadAt) -> int:
    """Bits per sample of the first image."""
    return next(iter(directories(read_at, most=1)), Directory()).number(BITS)


def _planes_of_shape(first: Directory, description: str) -> int:
    """The number of images by the shape that tifffile writes as JSON, marked if only the first image has a
    directory."""
    if not description.startswith('{"shape":'):
        return 1
    try:
        said = json.loads(description)
    except (ValueError, RecursionError):
        return 1
    shape = said.get("shape")
    if said.get("truncated") is not True or not isinstance(shape, list):
        return 1
    values = 1
    for side in shape:
        if not isinstance(side, int) or not 0 < side < MOST_PLANES:
            return 1
        values *= side
    page = _pixels(first) * max(1, first.number(SAMPLES))
    return values // page if page else 1


def one_image_of_tiff(read_at: ReadAt, pages: int) -> bool:
    """Whether a TIFF file marks all its pages but the first as reduced, such as thumbnails, or as masks."""
    first, *others = directories(read_at)[:pages] or [Directory()]
    marked = [one.number(NEW_SUBFILE_TYPE) & (REDUCED | MASK) for one in others]
    return not first.number(NEW_SUBFILE_TYPE) and len(marked) == pages - 1 and all(marked)


# ---- animations ------------------------------------------------------------------------------------------------------

PNG_CHUNKS = 4096  # largest number to examine


def frames_of_png(read_at: ReadAt) -> tuple[int, bool]:
    """The frame count of an animated PNG, and whether its still image is the first frame; (1, True) without animation.

    The chunk with the count comes before the pixels, and so does the frame control of a still image that is a frame."""
    frames, is_frame, offset = 0, False, 8
    for _ in range(PNG_CHUNKS):
        head = read_at(offset, 12)
        if len(head) < 12 or head[4:8] in (b"IDAT", b"IEND"):
            break
        (length,) = struct.unpack(">I", head[:4])
        if head[4:8] == b"acTL" and length >= 4 and not frames:
            (frames,) = struct.unpack(">I", head[8:12])
        is_frame |= head[4:8] == b"fcTL"
        offset += 12 + length
    return (frames, is_frame) if frames else (1, True)


# ---- JPEG files: their ends and scans --------------------------------------------------------------------------------

JPEG_END = b"\xff\xd9"
JPEG_SCAN = b"\xff\xda"
BLOCK = 2**20


def ends_jpeg(read_at: ReadAt, size: int) -> bool:
    """Whether a JPEG's image ends before the file, of that size, does. Thumbnails, which end too, come before its first
    scan."""
    if read_at(size - len(JPEG_END), len(JPEG_END)) == JPEG_END:
        return True
    offset = _first_scan(read_at)
    before = b""
    while block := read_at(offset, BLOCK):
        if JPEG_END in before + block:
            return True
        before, offset = block[-1:], offset + len(block)
    return False


def has_scans(read_at: ReadAt, count: int) -> bool:
    """Whether a JPEG has that many scans or more. Each is decoded over the whole image; real files have some ten."""
    offset, found, before = _first_scan(read_at), 0, b""
    while found < count and (block := read_at(offset, BLOCK)):
        found += (before + block).count(JPEG_SCAN)
        before, offset = block[-1:], offset + len(block)
    return found >= count


def _first_scan(read_at: ReadAt) -> int:
    """The offset of the first scan; of the whole file if there is none."""
    offset = 2
    while len(head := read_at(offset, 4)) == 4 and head[0] == 0xFF:
        if head[:2] == JPEG_SCAN:
            return offset
        offset += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], "big")
    return 0


def reader_of(file: BinaryIO) -> ReadAt:
    """A function that reads an open file at any offset, and nothing beyond its end."""
    end = os.fstat(file.fileno()).st_size

    def read_at(offset: int, size: int) -> bytes:
        if not 0 <= offset < end or size <= 0:
            return b""
        file.seek(offset)
        return file.read(min(size, end - offset))

    return read_at
