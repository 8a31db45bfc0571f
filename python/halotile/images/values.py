# SPDX-License-Identifier: MIT
"""Maps image values to model values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .image import Pixels, from_bfloat16, peak_of, to_bfloat16

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
        return from_bfloat16(output)
    return output.astype(np.float32)


def fill(windows: Pixels, values: Pixels) -> None:
    """Fills windows of any dtype with float32 values: an array for arrays, an array or a tensor for tensors."""
    if not isinstance(windows, np.ndarray):
        windows.copy_(windows.new_tensor(values) if isinstance(values, np.ndarray) else values)
    elif windows.dtype == np.uint16:  # bfloat16
        windows[...] = to_bfloat16(values)
    else:
        windows[...] = values
