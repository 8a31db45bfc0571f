# SPDX-License-Identifier: MIT
"""on_nonfinite="retry": what half precision made into NaN or infinity is made again in float32.

float16 ends at 65504, and both halves lose small differences: a few windows of a large image may overflow where all
others do not. Only what would be an error is made again; everything else has the bits of a run without retry.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import TileError
from ..fragile import dense
from ..images.channels import Part
from ..images.image import Pixels
from ..images.values import as_floats
from ..memory import is_out_of_memory
from ..models.kinds import open_model
from ..models.model import Model, TensorModel
from ..models.modules import device_and_dtype
from ..optional import torch_if_loaded
from ..options import Options
from ..plan import Box, Tile, TilePlan
from .report import RunInfo
from .windows import Windows

__all__ = ["Again", "are_finite", "check_again", "plain_arithmetic"]

HALVES = ("float16", "bfloat16")
OWN = "it computes in half precision by itself, so nothing was made again in float32"


def check_again(model: Model, options: Options) -> None:
    """Raises ValueError, before any work, for a model that certainly has no float32."""
    if options.on_nonfinite != "retry" or not isinstance(model, TensorModel) or model.alone or not model.modules:
        return
    dtype = device_and_dtype(model.modules[0])[1]
    if dtype in HALVES:
        text = f"on_nonfinite must not be 'retry' for a function that runs modules in {dtype}, which are not converted"
        raise ValueError(f"{text}: pass the module itself, or one in float32 with dtype={dtype!r}")


class Again:
    """Makes windows and rows again.

    Args:
        model: as the user passed it.

    Attributes:
        made: which windows (image, window) or strips of streams (image, tile, first row) of the run were.
        why_not: why nothing can be made again; empty as long as nobody has tried.
    """

    def __init__(self, model: Any):
        self.model = model
        self.made: set[tuple[int, ...]] = set()
        self.why_not = ""
        self.graphs: dict[tuple[int, int, int], Any] = {}  # of the model in float32, for streams
        self.windows: tuple[Windows, Windows] | None = None  # of the run, and the same in float32

    def report(self, report: RunInfo) -> RunInfo:
        return replace(report, retried=len(self.made))

    def said(self, index: int, tile: Tile) -> str:
        """What an error about a tile, or about a stream that goes through it, adds."""
        if self.why_not:
            return f"; {self.why_not}"
        tried = any(one[0] == index and (one[1:] == tile.window or one[1] == tile.index) for one in self.made)
        return "; also in float32" if tried else ""

    def mended(
        self,
        windows: Windows,
        part: Part,
        index: int,
        plan: TilePlan,
        tiles: list[Tile],
        outputs: Pixels,
        boxes: Sequence[Box] | None = None,
    ) -> Pixels:
        """The outputs, with those of tiles made again that are not finite.

        boxes: what is looked at of each; None: everything, for windows that are no part of the result.
        """
        if not self.may_have_overflown(windows.model_of(part), outputs) or part.how != "model":
            return outputs
        whole = [Box(0, 0, *outputs.shape[2:])] * len(tiles)
        bad = [k for k, finite in enumerate(are_finite(outputs, boxes or whole)) if not finite]
        other = self.in_float32(windows, part) if bad else None
        if other is None:
            return outputs
        pieces = [
            self._window(other, part, index, plan, tile) if k in bad else _widened(outputs[k : k + 1])
            for k, tile in enumerate(tiles)
        ]
        if boxes is not None:
            self.made |= {(index, *tiles[k].window) for k in bad}
        if isinstance(outputs, np.ndarray):
            return np.concatenate([as_floats(one) for one in pieces])
        return torch_if_loaded().cat([one.float() for one in pieces])

    def _window(self, windows: Windows, part: Part, index: int, plan: TilePlan, tile: Tile) -> Pixels:
        try:
            with plain_arithmetic(windows.model_of(part)):
                return windows(part, index, plan, [tile])
        except TileError as error:
            if not is_out_of_memory(error):
                error.args = (f"{error}; it was made again in float32, after NaN or infinity",)
            raise

    def instead(self, windows: Windows, part: Part, outputs: Pixels) -> Windows | None:
        """The run's windows in float32, if these outputs are not finite because of half precision."""
        if not self.may_have_overflown(windows.model_of(part), outputs):
            return None
        whole = [Box(0, 0, *outputs.shape[2:])] * len(outputs)
        return None if all(are_finite(outputs, whole)) else self.in_float32(windows, part)

    # ---- models ------------------------------------------------------------------------------------------------------

    def may_have_overflown(self, model: Model, outputs: Pixels) -> bool:
        """Whether half precision had a part in the outputs. Else they are not even looked at."""
        return model.dtype in HALVES or _dtype(outputs) != "float32" or _is_autocast(model)

    def in_float32(self, windows: Windows, part: Part) -> Windows | None:
        """The run's windows through the model in float32; None if there is none, which `why_not` then says."""
        model = windows.model_of(part)
        if self.windows is None or self.windows[0] is not windows:
            if model.dtype not in HALVES and not _is_autocast(model):
                self.why_not = OWN
                return None
            other = windows.through(self._opened(model))
            other.held = windows.held  # statistics of whichever image it is
            if windows.in_host_memory:
                other.sources = {}  # rows that a file was read to stay where they are
            self.windows = windows, other
        return self.windows[1]

    def _opened(self, model: Model) -> Model:
        if model.dtype not in HALVES:
            return model
        if not isinstance(model, TensorModel):
            return Model(model.call, "float32")
        return open_model(
            self.model, device=model.device, dtype="float32", tensors=True, memory_format=model.window_format
        )


@contextlib.contextmanager
def plain_arithmetic(model: Model) -> Iterator[None]:
    """Without the caller's autocast."""
    if not _is_autocast(model):
        yield
        return
    with torch_if_loaded().autocast(_device_type(model), enabled=False):
        yield


def _is_autocast(model: Model) -> bool:
    torch = torch_if_loaded()
    if torch is None:
        return False
    try:
        return torch.is_autocast_enabled(_device_type(model))
    except RuntimeError:  # a device without autocast
        return False


def _device_type(model: Model) -> str:
    return "cpu" if model.device is None else model.device.type


# ---- values ----------------------------------------------------------------------------------------------------------


def are_finite(outputs: Pixels, boxes: Sequence[Box]) -> list[bool]:
    """Whether each output is, inside its box. Waits for a device once."""
    cuts = [one[:, box.y : box.y_stop, box.x : box.x_stop] for one, box in zip(outputs, boxes, strict=True)]
    if isinstance(outputs, np.ndarray):
        return [_is_finite(one) for one in cuts]
    torch = torch_if_loaded()
    return torch.stack([torch.isfinite(dense(one)).all() for one in cuts]).tolist()


def _is_finite(values: np.ndarray) -> bool:
    if values.dtype == np.float32:
        return bool(np.isfinite(values).all())
    exponent = 0x7C00 if values.dtype == np.float16 else 0x7F80  # uint16 has the bits of bfloat16
    return not ((values.view(np.uint16) & exponent) == exponent).any()


def _widened(output: Pixels) -> Pixels:
    return as_floats(output) if isinstance(output, np.ndarray) else output.float()


def _dtype(outputs: Pixels) -> str:
    return str(outputs.dtype).removeprefix("torch.")
