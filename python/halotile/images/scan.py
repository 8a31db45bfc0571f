# SPDX-License-Identifier: MIT
"""Scans a whole image before it is restored: is alpha constant, are pixels hidden, is it grey?

Arrays and CPU tensors are scanned in strips of rows, sources (images read by rows) by rows, up to the first decisive
one. On a device the scan downloads one number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..optional import torch_if_loaded
from .image import Alpha, Image, as_words, from_bfloat16

if TYPE_CHECKING:
    import torch

__all__ = ["alpha_of", "is_grey", "is_zero", "strips", "widened", "widened_tensor"]

STRIP = 2**22  # bytes per step


def alpha_of(image: Image, index: int) -> Alpha:
    if index not in image.alphas:
        image.alphas[index] = _alpha_of(image, index) if image.on_host else _alpha_on_device(image, index)
    return image.alphas[index]


def _alpha_of(image: Image, index: int) -> Alpha:
    first, constant, hidden = None, True, False
    for rows in strips(image, index):
        alpha = rows[-1]
        first = alpha[0, 0] if first is None else first
        constant = constant and bool((alpha == first).all())
        hidden = hidden or bool(is_zero(alpha, image.dtype).any())
        if not constant and (hidden or image.by_rows):  # a second scan of a source is not worth it
            return Alpha(None, True)
    value = float(widened(np.asarray(first), image.dtype) if image.dtype == "bfloat16" else first)
    if constant and math.isfinite(value):
        return Alpha(value, False)  # everything is hidden, or nothing
    return Alpha(None, hidden)


def _alpha_on_device(image: Image, index: int) -> Alpha:
    """The device returns the constant if it is finite; -infinity means hidden pixels."""
    torch = torch_if_loaded()
    alpha = image.tensor[index, -1]
    alpha = alpha if image.dtype == "float64" else widened_tensor(alpha)
    first, infinity = alpha[0, 0], torch.full_like(alpha[0, 0], math.inf)
    told = torch.where((alpha == first).all(), first, torch.where((alpha == 0).any(), -infinity, infinity)).item()
    return Alpha(told, False) if math.isfinite(told) else Alpha(None, told < 0)


def is_grey(image: Image, index: int) -> bool:
    if image.on_host:
        return all(bool((rows[0] == rows[1]).all() and (rows[1] == rows[2]).all()) for rows in strips(image, index))
    red, green, blue = (as_words(image.tensor[index, channel]) for channel in range(3))
    return bool(((red == green) & (green == blue)).all().item())


def strips(image: Image, index: int) -> Iterator[np.ndarray]:
    height, width = image.size
    if image.by_rows:
        yield from _strips_of_source(image, index)
        return
    pixels = image.pixels[index]
    rows = max(1, STRIP // (width * len(pixels) * pixels.itemsize))
    for start in range(0, height, rows):
        yield pixels[:, start : start + rows]


def _strips_of_source(image: Image, index: int) -> Iterator[np.ndarray]:
    source = image.original.single(image.layout, index)
    height, row = image.size[0], int(np.prod(source.shape[1:])) * source.dtype.itemsize
    rows = min(max(1, STRIP // (row * source.step)) * source.step, height)
    buffer = np.empty((rows, *source.shape[1:]), source.dtype)
    for start in range(0, height, rows):
        strip = buffer[: min(rows, height - start)]
        source.read(start, strip)
        yield strip.transpose(2, 0, 1) if strip.ndim == 3 else strip[np.newaxis]


def is_zero(values: np.ndarray, dtype: str) -> np.ndarray:
    """Where values of an image dtype are 0; bfloat16 comes as uint16."""
    return (values & 0x7FFF if dtype == "bfloat16" else values) == 0


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 of values of an image dtype; bfloat16 comes as uint16."""
    if dtype == "bfloat16":
        return from_bfloat16(values)
    return values.astype(np.float32, copy=False)


def widened_tensor(values: torch.Tensor) -> torch.Tensor:
    """float32 of a tensor of any image dtype; on devices uint16 is int16."""
    torch = torch_if_loaded()
    if values.dtype == torch.uint16:
        return (as_words(values).to(torch.int32) & 0xFFFF).float()
    return values.float()
