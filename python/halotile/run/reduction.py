# SPDX-License-Identifier: MIT
"""What reduce= makes of finished rows: labels of classes, say, so that the model's channels are never held whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images.image import Pixels, as_words
from ..optional import torch_if_loaded
from ..options import Options
from ..plan import BYTES

__all__ = ["Reduction", "expected"]

# The largest label from which all down to 0 are held exactly.
LARGEST = {"uint8": 255, "uint16": 65535, "float16": 2**11, "float32": 2**24, "float64": 2**53}
ROWS_AT_ONCE = 2**20  # pixels: numpy.argmax copies, and makes 64-bit numbers
TRIAL = (2, 3)  # rows and columns of zeros with which a function is tried


def expected(options: Options, channels: int, dtype: str) -> tuple[int, int]:
    """(channels, bytes of each) of the result, if rows have so many channels of that dtype. What a function makes is
    not known before it is tried: as much as the rows, it may be."""
    if options.reduce is None:
        return channels, BYTES[dtype]
    if callable(options.reduce):
        return channels, BYTES[options.out_dtype or dtype]
    return 1, BYTES[options.out_dtype or label_dtype(channels)]


def label_dtype(classes: int) -> str:
    return next(dtype for dtype in ("uint8", "uint16", "float32", "float64") if classes - 1 <= LARGEST[dtype])


@dataclass(frozen=True)
class Reduction:
    """Attributes:
    function: makes (rows, W) or (channels, rows, W) of the model's rows (C, rows, W), float32; None: the index of the
        largest channel.
    tensors: whether the function is given tensors.
    channels, dtype: of the result.
    flat: whether the result has no axis of channels.
    """

    function: Callable[[Any], Any] | None
    tensors: bool
    channels: int
    dtype: str
    flat: bool

    @classmethod
    def labels(cls, classes: int, asked: str | None) -> Reduction:
        """The index of the largest of several channels. asked: the dtype of labels, or None."""
        if classes < 2:
            text = "reduce='argmax' needs a model that makes several channels, not one"
            raise ValueError(f"{text}: reduce=lambda rows: rows[0] > 0 makes labels of one")
        dtype = asked or label_dtype(classes)
        if classes - 1 > LARGEST[dtype]:
            text = f"out_dtype must be one that holds labels from 0 to {classes - 1}, not {dtype}"
            raise ValueError(text)
        return cls(None, False, 1, dtype, True)

    @classmethod
    def tried(cls, function: Callable[[Any], Any], tensors: bool, classes: int, asked: str | None) -> Reduction:
        """By a function of the user's, which is tried on zeros to know what it makes."""
        zeros: Any = np.zeros((classes, *TRIAL), np.float32)
        made = function(torch_if_loaded().from_numpy(zeros) if tensors else zeros)
        shape = getattr(made, "shape", None)
        if shape is None or not 2 <= len(shape) <= 3 or tuple(shape[-2:]) != TRIAL or not shape[0]:
            got = type(made).__name__ if shape is None else f"shape {tuple(shape)}"
            text = "reduce must make (rows, columns) or (channels, rows, columns) of the model's (channels, rows, "
            raise ValueError(f"{text}columns), not {got} of {(classes, *TRIAL)}")
        name = str(made.dtype).removeprefix("torch.")
        dtype = asked or ("uint8" if name == "bool" else name)
        if dtype not in LARGEST:
            text = f"out_dtype must be one of {', '.join(LARGEST)} with reduce, not {dtype}"
            raise ValueError(text if asked else f"{text}, which it makes: pass the one to hold it in")
        if "float" in name and "float" not in dtype:
            raise ValueError(f"out_dtype must be a float with reduce that makes {name}, not {dtype}: round in reduce")
        return cls(function, tensors, 1 if len(shape) == 2 else int(shape[0]), dtype, len(shape) == 2)

    def put(self, rows: Pixels, target: Pixels) -> None:
        """Writes what the model's rows, an array or a tensor on the device, become."""
        made = self._labels(rows, target) if self.function is None else self._checked(self._called(rows), rows)
        if made is None:
            return
        if isinstance(target, np.ndarray):
            np.copyto(target, made if isinstance(made, np.ndarray) else _on_host(made), casting="unsafe")
        elif isinstance(made, np.ndarray):
            as_words(target).copy_(as_words(torch_if_loaded().from_numpy(made.astype(self.dtype))))
        else:
            whole = "float" not in self.dtype
            as_words(target).copy_(made.to(torch_if_loaded().int32) if whole else made)

    def _labels(self, rows: Pixels, target: Pixels) -> Any:
        if not isinstance(rows, np.ndarray):
            small = rows.shape[0] <= 256
            torch = torch_if_loaded()
            return rows.argmax(0, keepdim=True).to(torch.uint8 if small else torch.int32)
        step = max(1, ROWS_AT_ONCE // rows.shape[2])
        for start in range(0, rows.shape[1], step):
            found = rows[:, start : start + step].argmax(0)[np.newaxis]
            place = target[:, start : start + step]
            if isinstance(place, np.ndarray):
                np.copyto(place, found, casting="unsafe")
            else:
                as_words(place).copy_(as_words(torch_if_loaded().from_numpy(found.astype(self.dtype))))
        return None

    def _called(self, rows: Pixels) -> Any:
        assert self.function is not None
        on_host = isinstance(rows, np.ndarray)
        if self.tensors:
            return self.function(torch_if_loaded().from_numpy(rows) if on_host else rows)
        return self.function(rows if on_host else _on_host(rows))

    def _checked(self, made: Any, rows: Pixels) -> Any:
        """What the function made, as (channels, rows, W)."""
        want = (rows.shape[1], rows.shape[2]) if self.flat else (self.channels, rows.shape[1], rows.shape[2])
        if tuple(made.shape) != want:
            raise ValueError(f"reduce made shape {tuple(made.shape)} of {tuple(rows.shape)}, not {want} as before")
        made = made[None] if self.flat else made
        if "float" not in self.dtype and str(made.dtype).removeprefix("torch.") not in ("bool", self.dtype):
            low, high = (int(one) for one in (made.min(), made.max()))
            if low < 0 or high > LARGEST[self.dtype]:
                raise ValueError(f"reduce made values from {low} to {high}, which {self.dtype} does not hold")
        return made.astype(np.uint8) if isinstance(made, np.ndarray) and made.dtype == bool else made


def _on_host(made: Any) -> np.ndarray:
    array: np.ndarray = made.detach().cpu().numpy()
    return array
