# SPDX-License-Identifier: MIT
"""Reads HEIC, the photos of phones, with pillow-heif: `pip install 'halotile[heic]'`. libvips' wheel has no decoder."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ..texts import quoted

if TYPE_CHECKING:
    import pyvips
    from pillow_heif import HeifFile

__all__ = ["LOST", "heic_image", "reads_heic"]

LOST = "halotile-lost"  # the field of a libvips image that names what is not read
FIELDS = (("exif", "exif-data"), ("xmp", "xmp-data"), ("icc_profile", "icc-profile-data"))
BEFORE_EXIF = b"Exif\0\0"


def reads_heic() -> bool:
    return find_spec("pillow_heif") is not None


def heic_image(path: str, max_pixels: int | None, vips: ModuleType) -> pyvips.Image | tuple[int, int]:
    """The main image of a file, upright, as libvips would load it; or its (width, height), if that is more than
    max_pixels. Raises ValueError if it cannot be decoded."""
    import pillow_heif

    try:
        file = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
        if max_pixels is not None and file.size[0] * file.size[1] > max_pixels:
            return file.size
        pixels = np.ascontiguousarray(np.asarray(file))
    except (ValueError, OSError, RuntimeError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable HEIC file: {quoted(error)}") from error
    return _with_fields(_image(pixels, vips), file, vips)


def _image(pixels: np.ndarray, vips: ModuleType) -> pyvips.Image:
    height, width, bands = (*pixels.shape, 1)[:3]
    deep = pixels.dtype == np.uint16
    kinds = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    image = vips.Image.new_from_memory(pixels.data, width, height, bands, "ushort" if deep else "uchar")
    return image.copy(interpretation=kinds[bands > 2])


def _with_fields(image: pyvips.Image, file: HeifFile, vips: ModuleType) -> pyvips.Image:
    info = file.info
    types = vips.GValue
    for name, field in FIELDS:
        content = info.get(name)
        if content:
            if name == "exif" and not content.startswith(BEFORE_EXIF):
                content = BEFORE_EXIF + content
            image.set_type(types.blob_type, field, content)
    aux = " ".join(map(str, info.get("aux", {})))
    lost = ["gain map"] if "hdrgainmap" in aux else []
    lost += ["depth map"] if info.get("depth_images") else []
    lost += ["other images"] if len(file) > 1 else []
    image.set_type(types.gstr_type, LOST, ",".join(lost))
    return image
