# SPDX-License-Identifier: MIT
"""Pillow's images as arrays, and arrays as Pillow's images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["array_of", "is_picture", "picture_like"]

AS_THEY_ARE = ("L", "LA", "RGB", "RGBA", "F", "I;16")
MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "I;16L": "I;16"}
MODES |= {"CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "I;16B": "I;16", "I;16N": "I;16"}
BY_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
BY_DTYPE = {"uint16": "I;16", "float32": "F", "float16": "F", "float64": "F"}
CARRIED = ("icc_profile", "exif", "xmp", "dpi")  # of `info`; the pixels are not turned, so orientation stays true


def is_picture(value: object) -> bool:
    module = sys.modules.get("PIL.Image")  # without it there is no such image
    return module is not None and isinstance(value, module.Image)


def array_of(picture: Picture) -> np.ndarray:
    """(H, W) or (H, W, C): grey, grey and alpha, colours, colours and alpha.

    Raises:
        TypeError: its mode is none of these.
    """
    transparent = "transparency" in picture.info
    if picture.mode == "I":
        return _words(picture)
    if transparent and picture.mode in ("1", "L", "RGB", "P"):
        picture = picture.convert("LA" if picture.mode in ("1", "L") else "RGBA")
    elif picture.mode in MODES:
        picture = picture.convert(MODES[picture.mode])
    elif picture.mode not in AS_THEY_ARE:
        text = f"image must be a Pillow image of mode {', '.join((*AS_THEY_ARE, *MODES))}, not {picture.mode!r}"
        raise TypeError(f"{text}: image.convert('RGB') is one of them")
    return np.array(picture)


def _words(picture: Picture) -> np.ndarray:
    """16 bits, which older versions of Pillow read into 32."""
    pixels = np.array(picture)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 65535:
        raise TypeError(
            "image must be a Pillow image of at most 16 bits, not of mode 'I' with larger or negative values"
        )
    return pixels.astype(np.uint16)


def picture_like(result: np.ndarray, picture: Picture) -> Any:
    """The result as a Pillow image, with the profile and metadata of the one that was restored; the array itself where
    Pillow has no such image (colours of other dtypes than uint8, five channels)."""
    from PIL import Image

    if result.ndim == 3 and result.shape[2] == 1:
        result = result[:, :, 0]
    channels = 1 if result.ndim == 2 else result.shape[2]
    if result.dtype == np.uint8 and channels in BY_CHANNELS:
        made = Image.fromarray(np.ascontiguousarray(result))
    elif channels == 1:
        kind = np.float32 if BY_DTYPE[result.dtype.name] == "F" else np.uint16
        made = Image.fromarray(np.ascontiguousarray(result, kind))
    else:
        return result
    left_out = () if _is_grey(made) == _is_grey(picture) and picture.mode not in MODES else ("icc_profile",)
    made.info |= {key: picture.info[key] for key in CARRIED if key in picture.info and key not in left_out}
    return made


def _is_grey(picture: Picture) -> bool:
    return picture.mode[0] in "1LIF"
