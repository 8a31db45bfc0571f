# SPDX-License-Identifier: MIT
"""Images as floats for measuring, and as small pictures for people."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layouts import checked_layout
from .image import Image, open_image

__all__ = ["floats_of", "picture_of"]


def floats_of(image: Image) -> np.ndarray:
    """(N, C, H, W) as float64."""
    if image.device is None:
        return image.pixels.astype(np.float64)
    tensor = image.tensor.cpu()
    return (tensor.float() if image.dtype == "bfloat16" else tensor).numpy().astype(np.float64)


def picture_of(name: str, image: Any, longest: int, layout: str | None) -> np.ndarray:
    """uint8 (H, W, C), reduced by a whole number so that no side exceeds `longest`. name: of the argument, for errors.

    Raises:
        ValueError, TypeError: not a single image, or one of more than four channels.
    """
    opened = open_image(image, checked_layout(layout))
    if opened.count != 1:
        raise ValueError(f"{name} must be a single image, not {opened.count}")
    if opened.channels > 4:
        raise ValueError(f"{name} must have at most 4 channels to be shown, not {opened.channels}")
    pixels = floats_of(opened)[0]
    step = -(-max(pixels.shape[1:]) // longest)
    if step > 1:
        height, width = (max(1, side // step) for side in pixels.shape[1:])
        tall, wide = (min(step, side) for side in pixels.shape[1:])
        blocks = pixels[:, : height * tall, : width * wide].reshape(len(pixels), height, tall, width, wide)
        pixels = blocks.mean(axis=(2, 4))
    shown = np.clip(np.nan_to_num(pixels / opened.peak), 0, 1) * 255
    return np.ascontiguousarray(np.rint(shown).astype(np.uint8).transpose(1, 2, 0))
