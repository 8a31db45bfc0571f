# SPDX-License-Identifier: MIT
"""Maps image values to model values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .image import Pixels, peak_of

__all__ = ["Values", "as_floats", "fill"]


@dataclass(frozen=True)
class Values:
    """model = image / peak * gain + offset.

    Attributes:
        dtype: of the image.
        value_range: range of the model's values, as the user gave it.
        peak: the value of white; None: that of the dtype.
    """

    dtype: str
    value_range: tuple[float, float] | None
    peak: float | None = None

    @cached_property
    def numbers(self) -> tuple[float, float, float, bool]:
        low, high = self.value_range or (0.0, 1.0)
        clamp = self.value_range is not None or peak_of(self.dtype) > 1
        peak = peak_of(self.dtype) if self.peak is None else self.peak
        return float(peak), high - low, low, clamp

    @property
    def bfloat16(self) -> bool:
        return self.dtype == "bfloat16"


def as_floats(output: Pixels) -> np.ndarray:
    if not isinstance(output, np.ndarray):
        return output.float().cpu().numpy()
    if output.dtype == np.uint16:  # bfloat16
        return (output.astype(np.uint32) << 16).view(np.float32)
    return output.astype(np.float32)


def fill(windows: Pixels, values: np.ndarray) -> None:
    """Fills windows of any dtype with float32 values; bfloat16 takes their upper halves, rounded towards zero."""
    if not isinstance(windows, np.ndarray):
        windows[...] = windows.new_tensor(values)
    elif windows.dtype == np.uint16:  # bfloat16
        windows[...] = np.ascontiguousarray(values).view(np.uint32) >> 16
    else:
        windows[...] = values
