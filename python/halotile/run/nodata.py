# SPDX-License-Identifier: MIT
"""Puts missing values back into finished rows, and reports how much of an image was filled for the model."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from ..images.image import Image, NoData, Pixels, as_words, bfloat16_bits, peak_of
from ..images.nodata import is_missing, missing_of, rounded_to
from ..optional import torch_if_loaded
from .prepared import Prepared, Sink
from .report import Filled, RunInfo

__all__ = ["putting_back", "with_filled", "without_missing"]


def putting_back(sink: Sink, prepared: Prepared) -> Sink:
    return sink if prepared.image.nodata is None else PuttingBack(sink, prepared, prepared.image.nodata)


class PuttingBack:
    """Another sink's rows; those that are finished get the values that are missing in the image.

    A pixel of the result lacks what the image's pixel at its place lacks: each channel by itself, or all of them where
    the result has other channels. Valid integers that happen to be the value for nodata are moved by one.
    """

    def __init__(self, sink: Sink, prepared: Prepared, nodata: NoData):
        self.sink, self.prepared, self.nodata = sink, prepared, nodata
        self.keeps = sink.keeps
        self.views: dict[int, Any] = {}

    def finished(self, index: int) -> int:
        return self.sink.finished(index)

    def rows(self, index: int, start: int, stop: int) -> Any:
        self.views[start] = self.sink.rows(index, start, stop)
        return self.views[start]

    def done(self, index: int, start: int, stop: int) -> None:
        rows = self.views.pop(start)
        image, dtype = self.prepared.image, self.prepared.made.dtype
        alpha = image.channels - self.nodata.channels
        data = rows[: rows.shape[0] - alpha]
        missing = self._missing(image, index, start, stop, rows.shape[2])
        if missing.shape[0] != data.shape[0]:
            missing = missing.any(0, keepdims=True)
        _put(data, missing, dtype, rounded_to(self.nodata.value, dtype))
        self.sink.done(index, start, stop)

    def _missing(self, image: Image, index: int, start: int, stop: int, width: int) -> np.ndarray:
        """The mask (C, rows, width) of the result's rows."""
        rows, columns = self.prepared.plan.scales
        y, x = _nearest(start, stop, rows, image.size[0]), _nearest(0, width, columns, image.size[1])
        first, last = int(y[0]), int(y[-1]) + 1
        if image.on_host:
            found = is_missing(image.rows(index, first, last)[: self.nodata.channels], image.dtype, self.nodata.value)
        else:
            values = image.tensor[index, : self.nodata.channels, first:last]
            found = is_missing(values, image.dtype, self.nodata.value).cpu().numpy()
        return found[:, y - first][:, :, x]


def _nearest(start: int, stop: int, scale: Fraction, size: int) -> np.ndarray:
    """The input pixels at which the middles of output pixels lie."""
    middles = (2 * np.arange(start, stop) + 1) * scale.denominator // (2 * scale.numerator)
    return middles.clip(0, size - 1)


def _put(rows: Pixels, missing: np.ndarray, dtype: str, value: float | None) -> None:
    assert value is not None  # checked before the run
    whole = dtype.startswith("uint")
    beside = value - 1 if whole and value == peak_of(dtype) else value + 1
    if isinstance(rows, np.ndarray):
        word = bfloat16_bits(value) if dtype == "bfloat16" else rows.dtype.type(value)
        if whole:
            np.copyto(rows, rows.dtype.type(beside), where=(rows == word) & ~missing)
        np.copyto(rows, word, where=missing)
        return
    words, mask = as_words(rows), torch_if_loaded().from_numpy(missing).to(rows.device)
    word, near = (one - 65536 if words is not rows and one > 32767 else one for one in (value, beside))
    if whole:
        words.masked_fill_((words == word) & ~mask, near)
    words.masked_fill_(mask.expand(words.shape), word)


def without_missing(apart: np.ndarray, got: np.ndarray, prepared: Prepared) -> np.ndarray:
    """Differences of a result from what the model makes, less those that putting back makes."""
    nodata, dtype = prepared.image.nodata, prepared.out_dtype
    if nodata is None:
        return apart
    value = rounded_to(nodata.value, dtype)
    put_back = got == value if value == nodata.value else np.isnan(got)
    if dtype.startswith("uint") and value is not None:
        near = got == (value - 1 if value == peak_of(dtype) else value + 1)
        apart = np.where(near, np.maximum(apart - 1, 0), apart)
    return np.where(put_back, 0, apart)


def with_filled(prepared: Prepared) -> RunInfo:
    """The run's report, with what was filled."""
    image, report = prepared.image, prepared.report
    if image.nodata is None:
        return report
    count = sum(missing_of(image, index).values for index in range(image.count))
    values = image.count * image.nodata.channels * image.size[0] * image.size[1]
    field = None if report.model is None else report.model.receptive_field
    margin = prepared.plan.halo if field is None else field.halo
    return replace(report, filled=Filled(image.nodata.value, count, count / values, margin))
