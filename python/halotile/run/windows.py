# SPDX-License-Identifier: MIT
"""Reads a batch of tiles and runs the model. Failures name the tile."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..engine.engine import Engine
from ..errors import ModelOutputError, TileError
from ..images.channels import Part
from ..images.hidden import with_colours
from ..images.image import Image, Pixels
from ..images.nodata import without_gaps
from ..images.scan import alpha_of
from ..images.values import Values
from ..memory import is_out_of_memory
from ..models.model import EitherModel, Model, TensorModel
from ..models.outputs import BadOutput
from ..optional import torch_if_loaded
from ..plan import Tile, TilePlan
from ..scales import Scale, by_axis
from ..texts import full_text, named, quoted
from .failures import tile_error
from .seen import Samples
from .wrapped import leaves, read_wrapped

__all__ = ["Resize", "Windows", "lacks_pixels"]

# torch's messages for windows too small for a layer.
TOO_SMALL = re.compile(r"kernel size can't be greater|padding size should be less|(output|input) .*too small", re.I)


def lacks_pixels(error: TileError) -> bool:
    return error.__cause__ is not None and TOO_SMALL.search(full_text(error.__cause__)) is not None


class Windows:
    """Runs an image's windows through the model. It reuses a buffer for each part and shape, and the image as the
    engine takes it.

    Attributes:
        opened: the model; two variants until the first batch has shown which of them accepts windows.
        models: models of individual parts.
        held: fixed statistics of image `held_for`, or local ones, by part.
        low: what ties outputs of image `low_for` to a pass over the reduced image, by part.
        seen: samples of values.
    """

    def __init__(self, image: Image, opened: Model, engine: Engine, value_range: tuple[float, float] | None):
        self.image, self.opened, self.engine = image, opened, engine
        self.values = Values(image.dtype, value_range, image.peak)
        self.seen = Samples(image, value_range)
        self.models: dict[Part, Model] = {}
        self.held: dict[Part, Any] = {}
        self.held_for: int | None = None
        self.low: dict[Part, Callable[[Any, list[Tile]], Any]] = {}
        self.low_for: int | None = None
        self.buffers: dict[tuple[Part, tuple[int, ...]], Any] = {}
        self.sources: dict[tuple[int, bool, bool], Any] = {}  # by index, whether hidden pixels were filled, and far

    @property
    def model(self) -> Model:
        return self.opened.chosen if isinstance(self.opened, EitherModel) else self.opened

    @property
    def modules(self) -> Sequence[Any]:
        """The torch modules of the model, also those inside a callable."""
        return self.opened.modules

    @property
    def may_write(self) -> bool:
        """Whether a run may write to weights: none of an earlier one has."""
        return not (isinstance(self.opened, TensorModel) and self.opened.writes is False)

    @property
    def channels(self) -> int:
        """Channels that the model sees, as far as known without running it."""
        return self.model.in_channels or self.image.channels

    @property
    def on_cpu(self) -> bool:
        """Whether the model's activations are in CPU memory."""
        where = self.model.device or self.engine.device
        return where is None or where.type == "cpu"

    @property
    def in_host_memory(self) -> bool:
        """Whether windows and outputs are."""
        return self.engine.device is None or self.engine.device.type == "cpu"

    def through(self, model: Model, engine: Engine | None = None) -> Windows:
        """The same windows through another model, with separate buffers."""
        other = Windows(self.image, model, engine or self.engine, self.values.value_range)
        other.share(self)
        if engine not in (None, self.engine):
            other.sources = {}
        return other

    def share(self, other: Windows) -> None:
        """Takes over all that others have found out, but no buffers."""
        self.models, self.held, self.held_for = other.models, dict(other.held), other.held_for
        self.low, self.low_for, self.seen, self.sources = other.low, other.low_for, other.seen, other.sources

    def resize_by(self, parts: tuple[Part, ...], scale: Scale, trim: tuple[int, int]) -> None:
        """Sets up bilinear resizing of alpha that bypasses the model."""
        resize = Resize(scale, trim)
        self.models = {part: resize for part in parts if part.how == "resize"}

    def __call__(self, part: Part, index: int, plan: TilePlan, tiles: list[Tile]) -> Any:
        """Outputs (len(tiles), channels, height, width) of a part of image `index`, as the engine's arrays."""
        return self.outputs(part, index, self.read(part, index, plan, tiles), tiles)

    def of_images(self, part: Part, indices: Sequence[int], plan: TilePlan, tiles: list[Tile]) -> Any:
        """Outputs of the same tiles of several images, from one call: image after image."""
        return self.outputs(part, indices[0], self._read(part, indices, plan, tiles), tiles, indices[-1])

    def outputs(self, part: Part, index: int, windows: Pixels, tiles: list[Tile], last: int | None = None) -> Any:
        """last: the last of several images, `index` being the first."""
        which = self.which(index, last)
        try:
            with self._statistics(part, windows):
                outputs = part.reduced(self.engine.call(self.model_of(part), windows))
        except BadOutput as error:
            raise tile_error(ModelOutputError, tiles, str(error), image=which) from error.__cause__
        except Exception as error:
            text = f"the model raised {_described(error)}"
            raise tile_error(TileError, tiles, text, image=which) from error
        if part in self.low:
            outputs = self.low[part](outputs, tiles)
        if self.seen.made is not None and part.how == "model" and self.in_host_memory:
            self.seen.made.add(outputs)
        return outputs

    def _statistics(self, part: Part, windows: Pixels) -> contextlib.AbstractContextManager[None]:
        held = self.held.get(part)
        return contextlib.nullcontext() if held is None else held(tuple(windows.shape[2:]))

    def model_of(self, part: Part) -> Model:
        return self.models.get(part, self.model)

    def read(self, part: Part, index: int, plan: TilePlan, tiles: list[Tile]) -> Any:
        """The windows, in a buffer that the next read of this shape reuses."""
        return self._read(part, (index,), plan, tiles)

    def _read(self, part: Part, indices: Sequence[int], plan: TilePlan, tiles: list[Tile]) -> Any:
        model = self.model_of(part)
        windows = self._buffer(part, model, [tile for _ in indices for tile in tiles])
        around = plan.boundary == "wrap" and leaves(tiles, plan.image_size)
        for at, index in enumerate(indices):
            own = windows[at * len(tiles) : (at + 1) * len(tiles)]
            if around:
                sources = partial(self._source, part, index)
                read_wrapped(self.engine, model, own, sources, part, plan, tiles, self.values)
            else:
                self.engine.read(own, self._source(part, index), part, plan, tiles, self.values)
        if self.seen.image is not None and part.how == "model" and self.in_host_memory:
            self.seen.image.add(windows)
        return part.mixed(windows)

    def which(self, index: int, last: int | None = None) -> str:
        if self.image.count == 1:
            return ""
        return f" of image {index}" if last in (None, index) else f" of one of images {index} to {last}"

    def _source(self, part: Part, index: int, far: bool = False) -> Any:
        """far: for rows of the opposite edge, which are held beside those that the run has come to."""
        far = far and self.image.by_rows and self.engine.device is None
        key = index, self.fills(part, index), far
        if key not in self.sources:
            for old in [old for old in self.sources if old[:2] != key[:2]]:
                self.sources.pop(old, None)  # several threads may share them
            image, at = self.image, index
            if image.nodata is not None:
                image, at = without_gaps(image, at), 0
            if key[1]:
                image, at = with_colours(image, at), 0
            self.sources[key] = self.engine.open(replace(image) if far else image, at)
        return self.sources[key]

    def fills(self, part: Part, index: int) -> bool:
        return part.beside_alpha and alpha_of(self.image, index).hidden

    def _buffer(self, part: Part, model: Model, tiles: list[Tile]) -> Any:
        shape = (len(tiles), part.reads, tiles[0].window.height, tiles[0].window.width)
        if (part, shape) not in self.buffers:
            try:
                self.buffers[part, shape] = self.engine.new_windows(model, shape)
            except (MemoryError, ValueError) as error:
                text = f"windows of shape {shape} cannot be allocated: {quoted(error)}"
                raise MemoryError(f"{text}; tile_size and halo make them smaller") from error
        return self.buffers[part, shape]


def _described(error: Exception) -> str:
    advice = "; a smaller tile_size needs less memory" if is_out_of_memory(error) else ""
    return named(error) + advice


class Resize(Model):
    """Bilinear resizing as a model; exact with a halo of one pixel of the coarser grid.

    It works on arrays and tensors; positions are computed in integers.
    """

    def __init__(self, scale: Scale, trim: tuple[int, int]):
        super().__init__(self.run)
        self.scales, self.trim = by_axis(scale), trim

    def run(self, windows: Pixels) -> Pixels:
        on_host = isinstance(windows, np.ndarray)
        windows = windows.astype(np.float32, copy=False) if on_host else windows.float()
        y0, y1, fy = self._weights(windows, 2)
        x0, x1, fx = self._weights(windows, 3)
        rows = windows[:, :, y0] * (1 - fy)[:, None] + windows[:, :, y1] * fy[:, None]
        return rows[..., x0] * (1 - fx) + rows[..., x1] * fx

    def _weights(self, windows: Pixels, axis: int) -> tuple[Any, Any, Any]:
        """Both neighbours of every output pixel along an axis, and its fractional position between them.

        Output pixel i lies at (i + 1/2) / scale - 1/2 = at / (2 * numerator).
        """
        size, cut, scale = windows.shape[axis], self.trim[axis - 2], self.scales[axis - 2]
        stop, numerator = int(size * scale) - cut, scale.numerator
        if isinstance(windows, np.ndarray):
            i = np.arange(cut, stop)
        else:
            i = torch_if_loaded().arange(cut, stop, device=windows.device)
        at = (2 * i + 1) * scale.denominator - numerator
        low = at // (2 * numerator)
        rest = at - low * (2 * numerator)
        rest = rest.astype(np.float32) if isinstance(windows, np.ndarray) else rest.float()
        return low.clip(0, size - 1), (low + 1).clip(0, size - 1), rest / (2 * numerator)
