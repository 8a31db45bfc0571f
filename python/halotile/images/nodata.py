# SPDX-License-Identifier: MIT
"""Values that mean "no data": NaN, or a number such as -9999.

Each channel lacks values by itself. For the model they are filled from their surroundings, as hidden colours are, and
with the channel's mean where there is no data within 64 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np

from ..optional import torch_if_loaded
from .hidden import filled, on_grid, surroundings
from .image import Image, NoData, Pixels, as_words, bfloat16_bits, peak_of
from .scan import strips, widened, widened_tensor

__all__ = ["check_nodata", "is_missing", "missing_of", "rounded_to", "without_gaps"]


class Missing(NamedTuple):
    """Of one image: the number of missing values, and the mean of the others by channel."""

    values: int
    means: tuple[float, ...]


def check_nodata(image: Image, dtype: str) -> None:
    """Raises ValueError if a result of that dtype cannot hold the image's nodata value."""
    if image.nodata is not None and rounded_to(image.nodata.value, dtype) is None:
        text = f"out_dtype must be one that can hold nodata={image.nodata.value:g}, such as float32, not {dtype}"
        raise ValueError(f"{text}: it is put back into the result")


def rounded_to(value: float, dtype: str) -> float | None:
    """The value as that dtype holds it; None if it does not."""
    if dtype.startswith("uint"):
        return value if value.is_integer() and 0 <= value <= peak_of(dtype) else None
    with np.errstate(over="ignore"):
        near = _bfloat16(value) if dtype == "bfloat16" else float(np.dtype(dtype).type(value))
    other = math.isfinite(value) and (not math.isfinite(near) or (value.is_integer() and near != value))
    return None if other and abs(value) < HUGE else near


HUGE = 1e38  # beyond, programs write the largest float with a few digits


def _bfloat16(value: float) -> float:
    return float(widened(np.array([bfloat16_bits(value)], np.uint16), "bfloat16")[0])


def is_missing(values: Pixels, dtype: str, nodata: float) -> Pixels:
    """Where values of an image dtype are nodata; bfloat16 comes as uint16 in arrays, uint16 as int16 in tensors."""
    if not isinstance(values, np.ndarray):
        values = as_words(values)
        if math.isnan(nodata):
            return values.isnan()
        return values == (nodata - 65536 if dtype == "uint16" and nodata > 32767 else nodata)
    if dtype == "bfloat16":
        return (values & 0x7FFF) > 0x7F80 if math.isnan(nodata) else values == bfloat16_bits(nodata)
    return np.isnan(values) if math.isnan(nodata) else values == values.dtype.type(nodata)


# ---- filling ---------------------------------------------------------------------------------------------------------


def without_gaps(image: Image, index: int) -> Image:
    """Image `index` alone with its missing values filled: read by rows, or a copy on its device."""
    assert image.nodata is not None
    return filled(image, index, MissingValues(image.dtype, image.nodata, missing_of(image, index).means))


@dataclass(frozen=True)
class MissingValues:
    """Gaps without data. means: by channel, given where nothing is near."""

    dtype: str
    nodata: NoData
    means: tuple[float, ...]

    def where(self, values: Pixels) -> Pixels:
        return is_missing(values[: self.nodata.channels], self.dtype, self.nodata.value)

    def colours(self, values: Pixels) -> Pixels:
        values = values[: self.nodata.channels]
        missing = self.where(values)
        if isinstance(values, np.ndarray):
            block, weights = on_grid(widened(values, self.dtype), np), on_grid((~missing).astype(np.float32), np)
            return np.concatenate([self._plane(block, weights, k, np) for k in range(len(block))])
        torch = torch_if_loaded()
        block, weights = on_grid(widened_tensor(values), torch), on_grid((~missing).float(), torch)
        return torch.cat([self._plane(block, weights, k, torch) for k in range(len(block))])

    def _plane(self, block: Pixels, weights: Pixels, channel: int, xp: ModuleType) -> Pixels:
        return surroundings(block[channel : channel + 1], weights[channel], self.means[channel], xp)


# ---- scanning --------------------------------------------------------------------------------------------------------


def missing_of(image: Image, index: int) -> Missing:
    if index not in image.missing:
        image.missing[index] = _missing_of(image, index) if image.on_host else _missing_on_device(image, index)
    return image.missing[index]


def _missing_of(image: Image, index: int) -> Missing:
    nodata, count = image.nodata, 0
    assert nodata is not None
    sums, counts = np.zeros(nodata.channels), np.zeros(nodata.channels, np.int64)
    for rows in strips(image, index):
        values = rows[: nodata.channels]
        missing = is_missing(values, image.dtype, nodata.value)
        count += int(missing.sum())
        numbers = widened(values, image.dtype)
        used = np.isfinite(numbers) & ~missing
        sums += numbers.sum(axis=(1, 2), where=used, dtype=np.float64)
        counts += used.sum(axis=(1, 2))
    grey = image.peak / 2
    return Missing(count, tuple(float(a / b) if b else grey for a, b in zip(sums, counts, strict=True)))


def _missing_on_device(image: Image, index: int) -> Missing:
    torch, nodata = torch_if_loaded(), image.nodata
    assert nodata is not None
    values = image.tensor[index, : nodata.channels]
    missing = is_missing(values, image.dtype, nodata.value)
    numbers = widened_tensor(values)
    used = torch.isfinite(numbers) & ~missing
    means = torch.where(used, numbers, 0).mean((1, 2)) * (numbers[0].numel() / used.sum((1, 2)).clamp(min=1))
    grey = torch.full_like(means, image.peak / 2)
    means = torch.where(used.any(2).any(1), means, grey)
    return Missing(int(missing.sum().item()), tuple(means.tolist()))
