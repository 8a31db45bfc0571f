# SPDX-License-Identifier: MIT
"""Runs a model of any kind on arrays."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from ..images.image import from_bfloat16
from ..models.devices import Device
from ..models.kinds import open_model
from ..models.model import Model
from ..models.outputs import BadOutput, EmptyOutput
from ..texts import full_text, multiple_told, named

__all__ = ["Runner", "close", "random"]

ROUNDING = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}  # relative differences that count as rounding


class Runner:
    """A model of any kind on arrays (batch, channels, height, width) of float32.

    Attributes:
        rounding: relative difference that counts as rounding.
        seconds: time for an input pixel in the fastest run.
    """

    def __init__(self, model: Any, device: Device | None = None, dtype: str | None = None, opened: Model | None = None):
        """opened: the model, if it is already open."""
        self.opened = opened or open_model(model, device=device, dtype=dtype, tensors=False)
        self.rounding = ROUNDING[getattr(self.opened, "dtype", "float32")]
        self.seconds = math.inf
        self.in_channels = self.opened.in_channels
        self.refusal = ""  # the model's first error about a window
        self.multiple: int | None = None  # multiple of window sides that an error of the model names

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        start = time.monotonic()
        model = self.opened
        output = model(self._typed(windows, model.dtype))
        if model.dtype == "bfloat16":
            output = from_bfloat16(output)
        self.seconds = min(self.seconds, (time.monotonic() - start) / windows[:, 0].size)
        return np.asarray(output, np.float32)

    def _typed(self, windows: np.ndarray, dtype: str) -> np.ndarray:
        windows = np.array(windows, np.float32, order="C")  # models may write to it
        if dtype == "bfloat16":
            return (windows.view(np.uint32) >> 16).astype(np.uint16)
        return windows.astype(dtype)

    def size_of(self, channels: int, height: int, width: int) -> tuple[int, int, int] | None:
        """(channels, height, width) of the output; None if the model refuses such windows."""
        try:
            return self(random(channels, height, width)).shape[1:]
        except MemoryError:
            raise
        except EmptyOutput as error:  # the window is too small for valid convolutions
            self.refusal = self.refusal or str(error)
        except BadOutput as error:  # not an image, whatever the window
            text = "model must take and return one tensor or array (batch, channels, height, width) of floating-point"
            raise ValueError(f"{text} numbers, but {error}") from error
        except Exception as error:  # a model may raise anything for sizes that it rejects
            self.refusal = self.refusal or f"it raised {named(error)}"
            self.multiple = self.multiple or multiple_told(full_text(error))
        return None


def random(channels: int, height: int, width: int, *, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, channels, height, width), np.float32)


def close(run: Runner, first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    if np.array_equal(first, second, equal_nan=True):
        return True
    return float(np.abs(first - second).max()) <= run.rounding * float(np.abs(first).max())
