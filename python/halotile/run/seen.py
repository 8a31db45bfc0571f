# SPDX-License-Identifier: MIT
"""Samples of the values that a model gets and makes: are they in the range that is expected?

In host memory every eighth pixel of every eighth row of all windows and outputs is looked at. On a device only those of
the image and of the first tile are, when it is checked for NaN, so that nothing is waited for besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ..fragile import dense
from ..images.image import Image, Pixels, as_words, from_bfloat16
from ..images.nodata import is_missing
from ..images.scan import widened_tensor
from ..optional import torch_if_loaded

if TYPE_CHECKING:
    import torch

__all__ = ["MANY", "Sampled", "Samples", "Seen"]

MANY = 0.01  # share of values that matters
STEP = 8
THOUSAND = 1000  # parts of a share
SAMPLED = 256  # rows and columns of an image on a device
FAR_BELOW, FAR_ABOVE = 0.5, 1.0  # of the range, from which on floats are far outside
CLAMPED = 0.05  # of the range: overshoot at edges and beside white paper is no sign of another range


@dataclass(frozen=True)
class Sampled:
    """Attributes:
    share: of the values that are outside.
    least, most: of all values; NaN and infinity are left out.
    """

    share: float
    least: float
    most: float


class Seen:
    """Counts values outside [low, high]. Several threads may add."""

    def __init__(self, low: float, high: float):
        self.low, self.high, self.lock = low, high, Lock()
        self.forget()

    def forget(self) -> None:
        self.values, self.outside, self.least, self.most = 0, 0.0, math.inf, -math.inf

    def add(self, values: Pixels) -> None:
        """values: (..., h, w) in host memory; in arrays uint16 stands for bfloat16."""
        if not isinstance(values, np.ndarray):
            values = values.detach().float().numpy()
        sample = values[..., STEP // 2 :: STEP, STEP // 2 :: STEP] if min(values.shape[-2:]) > STEP else values
        if sample.dtype == np.uint16:
            sample = from_bfloat16(sample)
        finite = sample[np.isfinite(sample)]
        with self.lock:
            self.values += sample.size
            if finite.size:
                self.outside += np.count_nonzero((finite < self.low) | (finite > self.high))
                self.least, self.most = min(self.least, float(finite.min())), max(self.most, float(finite.max()))

    def share_of(self, values: torch.Tensor) -> torch.Tensor:
        """The share of a tensor that is outside, on its device."""
        values = dense(values)
        return ((values < self.low) | (values > self.high)).float().mean()

    def taken(self) -> Sampled | None:
        """What was seen, which is then forgotten; None unless much of it is outside."""
        with self.lock:
            found = Sampled(self.outside / max(1, self.values), self.least, self.most)
            self.forget()
        return found if found.share > MANY else None


class Samples:
    """What a run has shown.

    Attributes:
        image: values that the model gets of a float image without a stated white; else None.
        made: values that it makes, if they are clamped.
        first_tile: on a device, the share of values of the first tile that are clamped.
    """

    def __init__(self, image: Image, value_range: tuple[float, float] | None):
        low, high = value_range or (0.0, 1.0)
        self.low, self.gain, self.source = low, high - low, image
        is_float = image.white is None and "float" in image.dtype
        self.image = Seen(*self._around(FAR_BELOW, FAR_ABOVE)) if is_float else None
        self.made: Seen | None = None
        self.first_tile = 0.0

    def watch_made(self) -> Seen:
        self.made = self.made or Seen(*self._around(CLAMPED, CLAMPED))
        return self.made

    def _around(self, below: float, above: float) -> tuple[float, float]:
        """The model's range, widened by shares of it."""
        return self.low - below * self.gain, self.low + (1 + above) * self.gain

    def finite_on_device(self, output: torch.Tensor, clamps: bool) -> bool:
        """Whether an output (C, h, w) is finite; looks at its values and at an image on the device. Waits once: one
        number tells all. The values themselves come only of an image that is far outside."""
        torch = torch_if_loaded()
        output = dense(output)
        made = (
            Seen(*self._around(CLAMPED, CLAMPED)).share_of(output.float()) if clamps else output.new_zeros(()).float()
        )
        image = None if self.image is None or self.source.on_host else self._of_image()
        far = made * 0 if image is None or self.image is None else (self.image.share_of(image) > MANY).float()
        told = (made * THOUSAND).round() + far * (2 * THOUSAND)
        told = torch.where(torch.isfinite(output).all(), told, torch.full_like(told, -1)).item()
        if told >= 2 * THOUSAND and image is not None and self.image is not None:
            self.image.add(image.cpu())
        self.first_tile = max(0.0, told % (2 * THOUSAND) / THOUSAND) if told >= 0 else 0.0
        return told >= 0

    def _of_image(self) -> torch.Tensor:
        """A sample of an image on a device, as the model gets it; without what has no data."""
        torch, image = torch_if_loaded(), self.source
        rows, columns = (max(1, side // SAMPLED) for side in image.size)
        stored = image.tensor[0, :, ::rows, ::columns]
        values = widened_tensor(stored) * self.gain + self.low
        if image.nodata is not None:
            values = torch.where(is_missing(as_words(stored), image.dtype, image.nodata.value), self.low, values)
        return values

    def add_array(self) -> None:
        """Looks at an image in host memory whose windows are on a device; of images read by rows, at the first rows."""
        image = self.source
        if self.image is None or not image.on_host:
            return
        rows = image.rows(0, 0, min(image.size[0], SAMPLED)) if image.by_rows else image.pixels[0]
        steps = [1 if image.by_rows else max(1, side // SAMPLED) for side in image.size]
        values = rows[:, :: steps[0], :: steps[1]]
        if image.nodata is not None:
            values = np.where(is_missing(values, image.dtype, image.nodata.value), 0, values)
        if values.dtype != np.uint16:
            values = values.astype(np.float32) * np.float32(self.gain) + np.float32(self.low)
        self.image.add(values)
