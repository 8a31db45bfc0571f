# SPDX-License-Identifier: MIT
"""What values of an image mean: its white level, and pixels without data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..optional import torch_if_loaded
from ..options import Options
from .channels import KINDS
from .image import Image, NoData, peak_of
from .nodata import is_missing, rounded_to
from .scan import alpha_of, strips, widened, widened_tensor

__all__ = ["has_alpha", "with_levels"]


def with_levels(image: Image, options: Options) -> Image:
    """The image with the levels that the options state. Raises ValueError if its dtype cannot have them."""
    if options.nodata is not None and image.nodata is None:
        image = replace(image, nodata=_nodata(image, options, options.nodata))
    if options.white is not None and image.white is None:
        image = replace(image, white=_white(image, options))
    return image


def has_alpha(image: Image, options: Options) -> bool:
    return image.channels in KINDS and image.channels % 2 == 0 and options.alpha != "channel"


def _nodata(image: Image, options: Options, value: float) -> NoData:
    near = rounded_to(value, image.dtype)
    if near is None:
        raise ValueError(f"nodata must be a value that an image of {image.dtype} can have, not {value:g}")
    return NoData(near, image.channels - has_alpha(image, options))


def _white(image: Image, options: Options) -> float:
    if options.white == "max":
        return _largest(image) or float(peak_of(image.dtype))
    white, largest = float(options.white or 1), peak_of(image.dtype)
    if largest > 1 and white > largest:
        raise ValueError(f"white must be at most {largest} for an image of {image.dtype}, not {white:g}")
    if has_alpha(image, options):
        _refuse_larger_alpha(image, white)
    return white


def _refuse_larger_alpha(image: Image, white: float) -> None:
    """Alpha has the image's white, to which it would be clamped."""
    for index in range(image.count):
        constant = alpha_of(image, index).constant
        if constant is None:
            constant = _largest(image, index, alpha=True) or 0.0
        if constant > white:
            text = f"white must be at least {constant:g}, which this image's alpha reaches, not {white:g}"
            raise ValueError(f"{text}: pass the image without alpha")


def _largest(image: Image, index: int | None = None, alpha: bool = False) -> float | None:
    """The largest finite value of all images or one, of all channels or alpha; None if it is not above 0."""
    indices = range(image.count) if index is None else (index,)
    channels = slice(-1, None) if alpha else slice(None)
    found = max((_largest_of(image, one, channels) for one in indices), default=0.0)
    return found if found > 0 else None


def _largest_of(image: Image, index: int, channels: slice) -> float:
    if not image.on_host:
        torch = torch_if_loaded()
        values = widened_tensor(image.tensor[index, channels])
        used = torch.isfinite(values)
        if image.nodata is not None:
            used &= ~is_missing(image.tensor[index, channels], image.dtype, image.nodata.value)
        return float(torch.where(used, values, values.new_zeros(())).max().item())
    largest = 0.0
    for rows in strips(image, index):
        stored = rows[channels]
        values = widened(stored, image.dtype) if image.dtype == "bfloat16" else stored
        if values.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, 0)
        if image.nodata is not None:
            values = np.where(is_missing(stored, image.dtype, image.nodata.value), 0, values)
        largest = max(largest, float(values.max()))
    return largest if math.isfinite(largest) else 0.0
