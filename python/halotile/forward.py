# SPDX-License-Identifier: MIT
"""One batch of tiles: read, then the model. A failure names the tile."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .channels import Part
from .engines import Values, read_windows
from .errors import ModelOutputError, TileError
from .images import Image
from .model import BadOutput, Model
from .plan import Tile

__all__ = ["Forward", "tile_error"]


def tile_error(
    kind: type[TileError], tiles: list[Tile], text: str, *, rows_done: int = 0, image: str = ""
) -> TileError:
    first, last = tiles[0], tiles[-1]
    which = f"tile {first.index}" if first.index == last.index else f"tiles {first.index} to {last.index}"
    which += image
    box = first.window
    where = f"row {first.row}, column {first.column}; window rows {box.y}:{box.y_stop}, columns {box.x}:{box.x_stop}"
    return kind(f"{which} ({where}): {text}", tile=first.index, box=tuple(box), rows_done=rows_done)


class Forward:
    """The way of an image's windows through the model.

    Window buffers are made once for each part and shape and used again."""

    def __init__(self, image: Image, model: Model, value_range: tuple[float, float] | None):
        self.image, self.model = image, model
        self.values = Values(image.dtype, value_range)
        self.models: dict[Part, Model] = {}  # parts with a model of their own
        self.buffers: dict[tuple, np.ndarray] = {}

    def __call__(self, part: Part, index: int, tiles: list[Tile]) -> np.ndarray:
        """Outputs (len(tiles), channels, height, width) of a part of image `index`."""
        model = self.models.get(part, self.model)
        windows = self._buffer(part, model, tiles)
        read_windows(windows, part.view(self.image.pixels[index]), tiles, self.values)
        try:
            return part.reduced(model(windows))
        except BadOutput as error:
            raise tile_error(ModelOutputError, tiles, str(error), image=self.which(index)) from error.__cause__
        except Exception as error:
            text = f"the model raised {type(error).__name__}: {described(error)}"
            raise tile_error(TileError, tiles, text, image=self.which(index)) from error

    def which(self, index: int) -> str:
        """Says which image a tile is of, where there are several."""
        return f" of image {index}" if len(self.image.pixels) > 1 else ""

    def _buffer(self, part: Part, model: Model, tiles: list[Tile]) -> np.ndarray:
        shape = (len(tiles), part.feed, tiles[0].window.height, tiles[0].window.width)
        if (part, shape) not in self.buffers:
            try:
                self.buffers[part, shape] = model.new_windows(*shape)
            except (MemoryError, ValueError) as error:
                text = f"windows of shape {shape} cannot be allocated: {error}; tile_size and halo make them smaller"
                raise MemoryError(text) from error
        return self.buffers[part, shape]


def described(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:
        return "(its text cannot be had)"
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        text += "; a smaller tile_size needs less memory"
    return text


def bilinear(scale: Fraction, loss: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """A model on arrays that enlarges or reduces windows, exact with a halo of one pixel of the coarser grid."""

    def weights(size: int, cut: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(cut, int(size * scale) - cut) + 0.5) / float(scale) - 0.5
        low = np.floor(at)
        fraction = (at - low).astype(np.float32)
        return np.clip(low, 0, size - 1).astype(np.intp), np.clip(low + 1, 0, size - 1).astype(np.intp), fraction

    def resize(windows: np.ndarray) -> np.ndarray:
        windows = windows.astype(np.float32, copy=False)
        y0, y1, fy = weights(windows.shape[2], loss[0])
        x0, x1, fx = weights(windows.shape[3], loss[1])
        rows = windows[:, :, y0] * (1 - fy)[:, None] + windows[:, :, y1] * fy[:, None]
        return rows[..., x0] * (1 - fx) + rows[..., x1] * fx

    return resize
