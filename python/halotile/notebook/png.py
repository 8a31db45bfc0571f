# SPDX-License-Identifier: MIT
"""PNG files for reports and notebooks, without a package: 8 bits, losslessly."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

__all__ = ["data_uri", "png_bytes"]

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # grey, grey with alpha, RGB, RGBA


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels (H, W) or (H, W, C), C from 1 to 4."""
    rows = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = rows.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with the number of its filter, 0
    lines[:, 1:] = rows.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def data_uri(pixels: np.ndarray) -> str:
    """The PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(pixels)).decode()
