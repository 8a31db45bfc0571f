# SPDX-License-Identifier: MIT
"""One batch of tiles: read, then the model. A failure names the tile."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..engine.engine import Engine
from ..errors import ModelOutputError, TileError
from ..images.channels import Part
from ..images.hidden import with_colours
from ..images.image import Image
from ..images.scan import alpha_of
from ..images.values import Values
from ..memory import is_out_of_memory
from ..models.model import EitherModel, Model
from ..models.outputs import BadOutput
from ..optional import torch_if_loaded
from ..plan import Tile, TilePlan
from ..texts import full_text, named, quoted
from .failures import tile_error

__all__ = ["Resize", "Windows", "lacks_pixels"]

# What torch says of windows in which a layer leaves nothing, or of which it needs more than there is.
TOO_SMALL = re.compile(r"kernel size can't be greater|padding size should be less|(output|input) .*too small", re.I)


def lacks_pixels(error: TileError) -> bool:
    """Whether the model failed because its window is too small."""
    return error.__cause__ is not None and TOO_SMALL.search(full_text(error.__cause__)) is not None


class Windows:
    """The way of an image's windows through the model. What it holds are buffers, made once for each part and shape and
    used again, and the image as the engine takes it.

    Attributes:
        opened: the model; one of two kinds until the first batch has shown which of them takes windows.
        models: parts with a model of their own.
        held: statistics of image `held_for`, for the parts where some are held fixed.
    """

    def __init__(self, image: Image, opened: Model, engine: Engine, value_range: tuple[float, float] | None):
        self.image, self.opened, self.engine = image, opened, engine
        self.values = Values(image.dtype, value_range)
        self.models: dict[Part, Model] = {}
        self.held: dict[Part, Any] = {}
        self.held_for: int | None = None
        self.buffers: dict[tuple[Part, tuple[int, ...]], Any] = {}
        self.sources: dict[tuple[int, bool], Any] = {}  # by index, and whether pixels got colours under alpha

    @property
    def model(self) -> Model:
        return self.opened.chosen if isinstance(self.opened, EitherModel) else self.opened

    @property
    def modules(self) -> Sequence[Any]:
        """The torch modules that the model is, or carries."""
        return self.opened.modules

    @property
    def channels(self) -> int:
        """That the model sees, as far as that can be told without running it."""
        return self.model.in_channels or self.image.channels

    @property
    def on_cpu(self) -> bool:
        """Whether the model's activations are in the CPU's memory."""
        where = self.model.device or self.engine.device
        return where is None or where.type == "cpu"

    def through(self, model: Model, engine: Engine | None = None) -> Windows:
        """The same image's windows through another model, in buffers of their own."""
        other = Windows(self.image, model, engine or self.engine, self.values.value_range)
        other.models, other.held, other.held_for = self.models, dict(self.held), self.held_for
        other.sources = self.sources if engine in (None, self.engine) else {}
        return other

    def resize_by(self, parts: tuple[Part, ...], scale: Fraction, trim: tuple[int, int]) -> None:
        """How alpha is resized that does not go through the model."""
        resize = Resize(scale, trim)
        self.models = {part: resize for part in parts if part.how == "resize"}

    def __call__(self, part: Part, index: int, plan: TilePlan, tiles: list[Tile]) -> Any:
        """Outputs (len(tiles), channels, height, width) of a part of image `index`, as the engine has them."""
        return self.outputs(part, index, self.read(part, index, plan, tiles), tiles)

    def outputs(self, part: Part, index: int, windows: Any, tiles: list[Tile]) -> Any:
        """The same for windows that were read."""
        try:
            with self.held.get(part, contextlib.nullcontext)():
                return part.reduced(self.engine.call(self.model_of(part), windows))
        except BadOutput as error:
            raise tile_error(ModelOutputError, tiles, str(error), image=self.which(index)) from error.__cause__
        except Exception as error:
            text = f"the model raised {_described(error)}"
            raise tile_error(TileError, tiles, text, image=self.which(index)) from error

    def model_of(self, part: Part) -> Model:
        return self.models.get(part, self.model)

    def read(self, part: Part, index: int, plan: TilePlan, tiles: list[Tile]) -> Any:
        """The tiles' windows of a part of image `index`, in a buffer that the next ones of their shape will be in."""
        windows = self._buffer(part, self.model_of(part), tiles)
        self.engine.read(windows, self._source(part, index), part, plan, tiles, self.values)
        return part.mixed(windows)

    def which(self, index: int) -> str:
        """Says which image a tile is of, where there are several."""
        return f" of image {index}" if self.image.count > 1 else ""

    def _source(self, part: Part, index: int) -> Any:
        key = index, self.fills(part, index)
        if key not in self.sources:
            self.sources.clear()
            image, at = (with_colours(self.image, index), 0) if key[1] else (self.image, index)
            self.sources[key] = self.engine.open(image, at)
        return self.sources[key]

    def fills(self, part: Part, index: int) -> bool:
        """Whether pixels of image `index` get colours because alpha hides their own."""
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
    """A model that enlarges or reduces windows, bilinear; exact with a halo of one pixel of the coarser grid.

    For arrays and tensors alike: positions are computed in whole numbers, where the windows are."""

    def __init__(self, scale: Fraction, trim: tuple[int, int]):
        super().__init__(self.run)
        self.scale, self.trim = scale, trim

    def run(self, windows: Any) -> Any:
        on_host = isinstance(windows, np.ndarray)
        windows = windows.astype(np.float32, copy=False) if on_host else windows.float()
        y0, y1, fy = self._weights(windows, 2)
        x0, x1, fx = self._weights(windows, 3)
        rows = windows[:, :, y0] * (1 - fy)[:, None] + windows[:, :, y1] * fy[:, None]
        return rows[..., x0] * (1 - fx) + rows[..., x1] * fx

    def _weights(self, windows: Any, axis: int) -> tuple[Any, Any, Any]:
        """Neighbours of every output pixel along an axis, and how far it is from the first to the second.

        Output pixel i lies at (i + 1/2) / scale - 1/2 = at / (2 * numerator)."""
        size, cut, numerator = windows.shape[axis], self.trim[axis - 2], self.scale.numerator
        stop = int(size * self.scale) - cut
        if isinstance(windows, np.ndarray):
            i = np.arange(cut, stop)
        else:
            i = torch_if_loaded().arange(cut, stop, device=windows.device)
        at = (2 * i + 1) * self.scale.denominator - numerator
        low = at // (2 * numerator)
        rest = at - low * (2 * numerator)
        rest = rest.astype(np.float32) if isinstance(windows, np.ndarray) else rest.float()
        return low.clip(0, size - 1), (low + 1).clip(0, size - 1), rest / (2 * numerator)
