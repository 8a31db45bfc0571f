# SPDX-License-Identifier: MIT
"""Image files: every kind that is read, damaged, and headers that claim or nest too much."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from .case import IMAGE, Case, Files, damaged, seeded


def pixels(seed: int = 0, shape: tuple[int, ...] = (30, 40, 3), dtype: str = "u1") -> np.ndarray:
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256 if dtype == "u1" else 60_000, shape).astype(dtype)


def saved_image(array: np.ndarray, suffix: str, **options: object) -> bytes:
    import pyvips

    height, width, bands = (*array.shape, 1)[:3]
    kinds = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}
    image = pyvips.Image.new_from_memory(array.tobytes(), width, height, bands, kinds[array.dtype.name])
    deep = array.dtype == np.uint16
    colour = ("grey16" if deep else "b-w") if bands < 3 else ("rgb16" if deep else "srgb")
    return image.copy(interpretation=colour).write_to_buffer(suffix, **options)


def _imagej() -> bytes:
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, pixels(4, (3, 30, 40), "u2"), imagej=True)
    return out.getvalue()


def _pages() -> bytes:
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(out, pixels(5, (3, 30, 40, 3)), photometric="rgb")
    return out.getvalue()


def _heic() -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_bytes("RGB", (40, 30), pixels().tobytes()).save(out, quality=50)
    return out.getvalue()


SMALL = pixels()
GOOD = {
    "png.png": ("PNG", lambda: saved_image(SMALL, ".png")),
    "deep.png": ("PNG", lambda: saved_image(pixels(1, (30, 40, 4), "u2"), ".png")),
    "laced.png": ("PNG", lambda: saved_image(SMALL, ".png", interlace=True)),
    "palette.png": ("PNG", lambda: saved_image(SMALL, ".png", palette=True)),
    "plain.jpg": ("JPEG", lambda: saved_image(SMALL, ".jpg")),
    "progressive.jpg": ("JPEG", lambda: saved_image(SMALL, ".jpg", interlace=True)),
    "lossy.webp": ("WebP", lambda: saved_image(SMALL, ".webp")),
    "lossless.webp": ("WebP", lambda: saved_image(pixels(2, (30, 40, 4)), ".webp", lossless=True)),
    "strips.tif": ("TIFF in strips", lambda: saved_image(SMALL, ".tif", compression="deflate")),
    "lzw.tif": ("TIFF in strips", lambda: saved_image(pixels(3, (30, 40), "u2"), ".tif", compression="lzw")),
    "float.tif": ("TIFF in strips", lambda: saved_image(pixels(3, (30, 40)).astype("f4"), ".tif")),
    "tiles.tif": (
        "TIFF in tiles",
        lambda: saved_image(SMALL, ".tif", tile=True, tile_width=16, tile_height=16, compression="deflate"),
    ),
    "jpeg.tif": (
        "TIFF in tiles",
        lambda: saved_image(SMALL, ".tif", tile=True, tile_width=16, tile_height=16, compression="jpeg"),
    ),
    "pyramid.tif": (
        "TIFF in tiles",
        lambda: saved_image(pixels(6, (64, 64, 3)), ".tif", tile=True, tile_width=16, tile_height=16, pyramid=True),
    ),
    "big.tif": ("BigTIFF", lambda: saved_image(SMALL, ".tif", bigtiff=True, compression="deflate")),
    "bigtiles.tif": (
        "BigTIFF",
        lambda: saved_image(SMALL, ".tif", bigtiff=True, tile=True, tile_width=16, tile_height=16),
    ),
    "pages.tif": ("TIFF of pages", _pages),
    "stack.tif": ("ImageJ", _imagej),
    "photo.avif": ("AVIF", lambda: saved_image(SMALL, ".avif", compression="av1", effort=0)),
    "photo.heic": ("HEIC", _heic),
}

# ---- PNG -------------------------------------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = data or _chunk(b"IDAT", zlib.compress(b"\0" * ((3 * 40 + 1) * 30)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + _chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(100 << 20), 9)  # 100 MiB of zeros


def _pngs() -> Iterator[bytes]:
    for width, height in ((2**31 - 1, 2**31 - 1), (0, 0), (2**32 - 1, 1), (16384, 16384), (2**20, 200), (1, 2**28)):
        yield png(width, height)
    yield png(40, 30, _chunk(b"iCCP", b"bomb\0\0" + BOMB))
    yield png(40, 30, *[_chunk(b"zTXt", b"bomb\0\0" + BOMB)] * 5)
    yield png(40, 30, *[_chunk(b"iTXt", b"bomb\0\1\0\0\0" + BOMB)] * 3)
    yield png(40, 30, *[_chunk(b"tEXt", b"many%d\0x" % one) for one in range(20_000)])
    yield png(40, 30, _chunk(b"eXIf", b"MM\0*" + b"\xff" * 5000))
    yield png(40, 30, _chunk(b"tRNS", bytes(6)), _chunk(b"gAMA", bytes(4)), _chunk(b"pHYs", b"\xff" * 9))
    yield png(40, 30, _chunk(b"acTL", b"\xff" * 8))
    yield png(40, 30, bits=16, colour=3)
    yield png(40, 30, bits=99, colour=77)
    yield png(40, 30, data=_chunk(b"IDAT", BOMB))
    yield png(40, 30, data=b"".join(_chunk(b"IDAT", b"") for _ in range(20_000)))
    yield png(40, 30, data=struct.pack(">I", 2**31 - 1) + b"IDAT")


# ---- TIFF ------------------------------------------------------------------------------------------------------------

SHORT, LONG, LONG8 = 3, 4, 16


def tiff(entries: dict[int, tuple[int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF of one directory at 8: tag -> (type, count, value or offset)."""
    rows = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", following) + after


def plain(**changes: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    names = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "description": 270}
    names |= {"offsets": 273, "samples": 277, "rows": 278, "sizes": 279, "children": 330, "profile": 34675}
    names |= {"tile_width": 322, "tile_height": 323, "tile_offsets": 324, "tile_sizes": 325, "planar": 284}
    entries = {
        **{"width": (LONG, 1, 40), "height": (LONG, 1, 30), "bits": (SHORT, 1, 8), "compression": (SHORT, 1, 1)},
        **{"photometric": (SHORT, 1, 1), "offsets": (LONG, 1, 300), "samples": (SHORT, 1, 1)},
        **{"rows": (LONG, 1, 30), "sizes": (LONG, 1, 1200)},
    }
    return {names[name]: entry for name, entry in (entries | changes).items()}


def _tiffs() -> Iterator[bytes]:
    most, data = 2**32 - 1, bytes(2000)
    for name in ("width", "height", "rows", "bits", "samples", "compression", "photometric", "planar"):
        for value in (most, 0, 65535, 2**31):
            yield tiff(plain(**{name: (LONG, 1, value)}), data)
    for name in ("offsets", "sizes", "bits", "description", "profile", "children", "width"):
        for count in (most, 2**28, 2**20):
            yield tiff(plain(**{name: (LONG, count, 8)}), data)
    yield tiff(plain(), data, following=8)  # a directory that follows itself
    yield tiff(plain(children=(LONG, 1, 8)), data)  # and one that is its own child
    yield tiff(plain(children=(LONG, 2, 8)), data, following=8)
    yield tiff(plain(width=(LONG, 1, 16384), height=(LONG, 1, 16384), rows=(LONG, 1, 16384)), data)
    tiled = {"tile_offsets": (LONG, 1, 300), "tile_sizes": (LONG, 1, 1200)}
    for side in (0, 15, 2**15, 2**20, most):
        yield tiff(plain(**tiled, tile_width=(LONG, 1, side), tile_height=(LONG, 1, side)), data)
    chain = b"".join(  # ten thousand directories, each followed by the next
        struct.pack("<HHHIII", 1, 256, LONG, 1, 40, 8 + 18 * (one + 1)) for one in range(10_000)
    )
    yield b"II*\0" + struct.pack("<I", 8) + chain
    many = b"".join(struct.pack("<HHII", one, SHORT, 1, 1) for one in range(65_535))
    yield b"II*\0" + struct.pack("<IH", 8, 65_535) + many + bytes(4)
    nested = b"".join(struct.pack("<HHHIII", 1, 330, LONG, 1, 8 + 18 * (one + 1), 0) for one in range(10_000))
    yield b"II*\0" + struct.pack("<I", 8) + nested
    bomb = zlib.compress(bytes(50 << 20), 9)
    yield tiff(plain(compression=(SHORT, 1, 8), sizes=(LONG, 1, len(bomb))), bytes(166) + bomb)


def _bigtiffs() -> Iterator[bytes]:
    start = b"II+\0" + struct.pack("<HHQ", 8, 0, 16)
    for count in (2**64 - 1, 2**40, 2**16, 0):
        yield start + struct.pack("<Q", count) + bytes(4000)
    for offset in (2**64 - 1, 2**63, 2**40, 0, 1):
        yield b"II+\0" + struct.pack("<HHQ", 8, 0, offset) + bytes(400)
    for value in (2**64 - 1, 2**62, 2**33):
        for tag in (256, 257, 273, 279, 278, 330):
            sizes = {256: 40, 257: 30, 258: 8, 259: 1, 262: 1, 273: 300, 277: 1, 278: 30, 279: 1200} | {tag: value}
            rows = b"".join(struct.pack("<HHQQ", one, LONG8, 1, sizes[one]) for one in sorted(sizes))
            yield start + struct.pack("<Q", len(sizes)) + rows + bytes(2000)


# ---- others ----------------------------------------------------------------------------------------------------------


def _jpegs() -> Iterator[bytes]:
    good = GOOD["plain.jpg"][1]()
    at = good.index(b"\xff\xc0")
    for width, height in ((65535, 65535), (0, 0), (65535, 1), (1, 65535), (16384, 16384)):
        yield good[: at + 5] + struct.pack(">HH", height, width) + good[at + 9 :]
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 65535) + b"\x01\x12\0\3\xff\xff\xff\xff\0\6\0\0" * 100
    yield good[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + good[2:]
    yield good[:2] + b"\xff\xfe\xff\xff" + b"c" * 65533 + good[2:]
    yield (
        good[:2]
        + b"".join(b"\xff\xe2\xff\xff" + b"ICC_PROFILE\0\xff\xff" + bytes(65519) for _ in range(255))
        + good[2:]
    )
    scan = good[good.index(b"\xff\xda") : -2]
    yield good[:-2] + scan * 3000 + good[-2:]  # many scans
    start = GOOD["progressive.jpg"][1]()
    begin = start.index(b"\xff\xda")
    end = start.index(b"\xff\xda", begin + 2) if b"\xff\xda" in start[begin + 2 :] else len(start) - 2
    wide = start.index(b"\xff\xc2")
    large = start[: wide + 5] + struct.pack(">HH", 8000, 8000) + start[wide + 9 :]
    yield large[:end] + large[begin:end] * 200 + b"\xff\xd9"
    yield b"\xff\xd8\xff" + b"\xff" * 100_000


def _webps() -> Iterator[bytes]:
    good = GOOD["lossless.webp"][1]()
    for size in (0, 2**32 - 1, 2**31):
        yield good[:4] + struct.pack("<I", size) + good[8:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xff\xff\xff" * 2
    yield b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    yield b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(good) - 12) + b"WEBP" + canvas + good[12:]
    frames = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frames += b"".join(b"ANMF" + struct.pack("<I", 16 + len(good) - 12) + bytes(16) + good[12:] for _ in range(500))
    canvas = canvas[:8] + b"\x02" + canvas[9:]
    yield b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(frames)) + b"WEBP" + canvas + frames


def _avifs() -> Iterator[bytes]:
    for name in ("photo.avif", "photo.heic"):
        good = GOOD[name][1]()
        at = good.index(b"ispe")
        for width, height in ((2**32 - 1, 2**32 - 1), (0, 0), (16384, 16384), (2**31, 1)):
            yield good[: at + 8] + struct.pack(">II", width, height) + good[at + 16 :]
        nested = b""
        for _ in range(5000):
            nested = struct.pack(">I", 8 + len(nested)) + b"meta" + nested if len(nested) < 60_000 else nested
        yield good[: good.index(b"meta") - 4] + nested


def _others() -> Iterator[Files]:
    yield {"a.png": b"", "b.png": b"x"}
    for start in (
        b"\xff\x0a",
        b"\0\0\0\x0cJXL \r\n\x87\n",
        b"GIF89a",
        b"BM",
        b"%PDF-",
        b"<svg>",
        b"#?RADIANCE",
        b"P6\n",
    ):
        yield {"a.png": start + bytes(500)}
    yield {"a.png": b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>"}
    yield {"a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>"}
    yield {"a.v": b"\x08\xf2\xa6\xb6" + bytes(60)}


SPECIAL = {
    "PNG": (_pngs, "a.png"),
    "JPEG": (_jpegs, "a.jpg"),
    "WebP": (_webps, "a.webp"),
    "TIFF in strips": (_tiffs, "a.tif"),
    "BigTIFF": (_bigtiffs, "a.tif"),
    "AVIF": (_avifs, "a.avif"),
}


def cases(each: int) -> Iterator[Case]:
    """each: of every damage to every good file."""
    for name, (kind, make) in GOOD.items():
        yield from damaged(kind, name, make(), each)
    for kind, (make, name) in SPECIAL.items():
        for number, content in enumerate(make()):
            yield Case(kind, "made to harm", number, lambda content=content, name=name: {name: content}, name, IMAGE)
    for number, files in enumerate(_others()):
        yield Case("other images", "made to harm", number, lambda files=files: files, min(files), IMAGE)
    draws = seeded("noise")
    for number in range(each):
        starts = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"RIFF\xff\xff\0\0WEBP", b"")
        content = draws.choice(starts) + draws.randbytes(draws.choice((10, 300, 20_000)))
        yield Case("other images", "noise", number, lambda content=content: {"a.png": content}, "a.png", IMAGE)
