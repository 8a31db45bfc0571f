# SPDX-License-Identifier: MIT
"""What values of an image mean: its white level, and pixels without data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..optional import torch_if_loaded
from ..options import Options
from .channels import KINDS
from .image import Image, peak_of
from .scan import alpha_of, strips, widened, widened_tensor

__all__ = ["has_alpha", "with_levels"]


def with_levels(image: Image, options: Options) -> Image:
    """The image with the levels that the options state. Raises ValueError if its dtype cannot have them."""
    if options.white is None or image.white is not None:
        return image
    return replace(image, white=_white(image, options))


def has_alpha(image: Image, options: Options) -> bool:
    return image.channels in KINDS and image.channels % 2 == 0 and options.alpha != "channel"


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
        return float(torch.where(torch.isfinite(values), values, values.new_zeros(())).max().item())
    largest = 0.0
    for rows in strips(image, index):
        values = rows[channels]
        if image.dtype == "bfloat16":
            values = widened(values, image.dtype)
        if values.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, 0)
        largest = max(largest, float(values.max()))
    return largest if math.isfinite(largest) else 0.0
