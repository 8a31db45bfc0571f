# SPDX-License-Identifier: MIT
"""The engine interface: cut windows out of an image, call the model, blend its outputs into finished rows.

    host    the C core on NumPy memory, for every model
    torch   plain torch operations on the model's device
    mps     Metal kernels on an Apple GPU

Arrays below are NumPy arrays for `host` and tensors on the device for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ..images.channels import Part
from ..images.image import Image, Pixels
from ..images.values import Values
from ..models.model import Model
from ..plan import Tile, TilePlan

if TYPE_CHECKING:
    import torch

__all__ = ["Band", "Engine", "Found", "Position"]

Position = tuple[int, int, int]  # (channel, row, column) of the output image
Found = Iterator[tuple[Tile, Position | None]]  # each tile with its first NaN or infinity, if any


class Band(Protocol):
    def add(self, tiles: list[Tile], outputs: Pixels, rows: dict[int, Pixels]) -> Found:
        """Adds outputs (k, C, height, width) of consecutive tiles, in plan order.

        rows: for each tile row, the destination (C, rows, W) of its finished rows, in the output dtype. They are
        complete once the last tile of the tile row is added.
        """

    def close(self) -> None:
        """Frees the sums. Only `nonfinite` may follow."""

    def nonfinite(self) -> tuple[Tile, Position] | None:
        """The first NaN or infinity that `add` did not report; call it last. May wait for the device."""


class Engine(Protocol):
    """Attributes:
    name: public name.
    device: where arrays are; None for NumPy arrays.
    fragile: whether the device allows only one thread and no tensors of 2 GiB: see docs/mps.md.
    """

    name: str
    device: torch.device | None
    fragile: bool

    def open(self, image: Image, index: int) -> Any:
        """Image `index` in the form that `read` takes."""

    def pixels_of(self, result: Image) -> Any:
        """The array (images, C, H, W) that finished rows are written to."""

    def new_windows(self, model: Model, shape: tuple[int, int, int, int]) -> Any:
        """An array for a batch of windows, in the model's dtype and memory format."""

    def read(self, windows: Pixels, source: Any, part: Part, plan: TilePlan, tiles: list[Tile], values: Values) -> None:
        """Fills windows[k] with the window of tile k: the part's channels, padded by reflection."""

    def call(self, model: Model, windows: Pixels) -> Pixels:
        """Returns outputs (k, C, height, width). On a fragile device windows are made dense in the model's format."""

    def first_nonfinite(self, output: Pixels) -> Position | None:
        """The first NaN or infinity of an output (C, height, width), if bands do not report it at once. May wait."""

    def new_band(self, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int) -> Band:
        """A band that starts at a tile row, for batches of at most `batch` tiles."""

    def empty_cache(self) -> None:
        """Returns cached memory to the device."""
