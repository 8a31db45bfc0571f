# SPDX-License-Identifier: MIT
"""What an engine must do: cut windows out of an image, call the model, and make finished rows of its outputs.

    host    the C core on NumPy memory; every model
    torch   plain torch operations on the model's device
    mps     Metal kernels on an Apple GPU

Arrays below are NumPy arrays for `host` and tensors on the device for the others, each engine its own kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ..images.channels import Part
from ..images.image import Image
from ..images.values import Values
from ..models.model import Model
from ..plan import Tile, TilePlan

if TYPE_CHECKING:
    import torch

__all__ = ["Band", "Engine", "Found", "Position"]

Position = tuple[int, int, int]  # (channel, row, column) of the output image
Found = Iterator[tuple[Tile, Position | None]]  # for each tile the first NaN or infinity in it, if there is one


class Band(Protocol):
    """The rows of one part of the result that are still being made."""

    def add(self, tiles: list[Tile], outputs: Any, rows: dict[int, Any]) -> Found:
        """Adds outputs (k, C, height, width) of consecutive tiles, in the plan's order.

        rows: for each tile row where its finished rows go, (C, rows, W) in the output's dtype. They are complete once
        the last tile of the tile row was added."""

    def nonfinite(self) -> tuple[Tile, Position] | None:
        """The first NaN or infinity that `add` did not tell of, once all is done. May wait for the device."""


class Engine(Protocol):
    """Attributes:
    name: as users name it.
    device: where arrays are; None for the CPU's memory, as NumPy has it.
    fragile: whether the device takes one thread at a time, and no tensors of 2 GiB: see docs/mps.md.
    """

    name: str
    device: torch.device | None
    fragile: bool

    def open(self, image: Image, index: int) -> Any:
        """Image `index` as `read` takes it."""

    def pixels_of(self, result: Image) -> Any:
        """The array (images, C, H, W) that finished rows are written to."""

    def new_windows(self, model: Model, shape: tuple[int, int, int, int]) -> Any:
        """An array for a batch of windows, in the dtype and memory format that the model wants."""

    def read(self, windows: Any, source: Any, part: Part, plan: TilePlan, tiles: list[Tile], values: Values) -> None:
        """Fills windows[k] with tile k's window of the part's channels, reflected where it leaves the image."""

    def call(self, model: Model, windows: Any) -> Any:
        """The model's outputs (k, C, height, width)."""

    def first_nonfinite(self, output: Any) -> Position | None:
        """The first NaN or infinity of an output (C, height, width), where bands do not tell at once. May wait."""

    def new_band(self, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int) -> Band:
        """A band that starts at a tile row, and takes batches of so many tiles."""

    def empty_cache(self) -> None:
        """Gives memory back that is only held for later use."""
