# SPDX-License-Identifier: MIT
"""What a model file says about the windows that its model takes: `Needs`. Plans keep to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

__all__ = ["Needs", "needs_of"]

Pair = tuple[int, int]
SIDES = ("rows", "columns")


@dataclass(frozen=True)
class Needs:
    """What the windows of a model must be like, as far as its file says so. The defaults are no demands.

    `load_model` attaches it as the attribute ``needs`` to models whose files say something. Runs keep to it: phases are
    made multiples of `multiple`, windows are as large as it asks, whatever tile_size says, and what contradicts it is
    refused.

    Attributes:
        multiple: of which height and width must be multiples.
        minimum: the least height and width.
        square: whether height and width must be equal.
        window: the only height and the only width that the model takes, None where it takes several.
        scale: output pixels per input pixel; None if unknown.
    """

    multiple: int = 1
    minimum: int = 1
    square: bool = False
    window: tuple[int | None, int | None] = (None, None)
    scale: int | None = None

    def __post_init__(self) -> None:
        optional = [number for number in (*self.window, self.scale) if number is not None]
        numbers = [self.multiple, self.minimum, *optional]
        if len(self.window) != 2 or any(not isinstance(number, int) or number < 1 for number in numbers):
            raise ValueError(
                f"needs must be whole numbers from 1 on, and a pair of them or None for window, not {self}"
            )
        if self.square and self.fixed:
            raise ValueError(f"square must be False where window says what sides there are, {self.window}")

    @property
    def fixed(self) -> bool:
        """Whether windows cannot have any other size."""
        return self.window != (None, None)

    @property
    def least(self) -> Pair:
        """The least height and width."""
        height, width = (side or self.minimum for side in self.window)
        return height, width

    def phase(self, asked: Pair) -> Pair:
        """The phase (rows, columns) for one that was asked for: a multiple of both."""
        multiple = math.lcm(self.multiple, *asked) if self.square else self.multiple
        rows, columns = (math.lcm(step, multiple) for step in asked)
        return rows, columns

    def check(self, scale: Fraction | None, verify: int) -> None:
        """Raises ValueError for options that the model cannot have, whatever the image."""
        if self.scale is not None and scale not in (None, self.scale):
            raise ValueError(f"scale must be {self.scale} or None for this model, not {scale}")
        if verify and (self.fixed or self.square):
            text = "which takes no windows of other sizes, as comparing needs them"
            raise ValueError(f"verify must be 0 for this model, {text}, not {verify}")

    def planned(self, options: Any, scale: Fraction) -> Any:
        """The options with the tiles that windows of one size leave.

        Args:
            options: Options with numbers for tile_size, halo and phase.

        Raises:
            ValueError: such windows cannot have that halo, phase or overlap.
        """
        tiles = [
            tile if side is None else self._tile(axis, side, options, scale.denominator)
            for axis, (side, tile) in enumerate(zip(self.window, options.tile_size, strict=True))
        ]
        return replace(options, tile_size=tuple(tiles))

    def _tile(self, axis: int, side: int, options: Any, denominator: int) -> int:
        """What a window's side leaves for the tile."""
        phase, halo = math.lcm(options.phase[axis], denominator), options.halo[axis]
        windows = f"for this model, which takes windows of {side} {SIDES[axis]} only"
        if side % phase:
            raise ValueError(f"phase must divide {side} {windows}, not {phase}")
        tile = side - 2 * -(-halo // phase) * phase
        if tile < phase:
            most = (side - phase) // (2 * phase) * phase
            raise ValueError(f"halo must be at most {most} {windows}, with phase {phase}, not {halo}")
        overlap = 0 if options.overlap == "auto" else options.overlap_pixels[axis]
        if tile - overlap < phase:
            text = f"with halo {halo} and phase {phase}, not {overlap}"
            raise ValueError(f"overlap must be at most {tile - phase} {windows}, {text}")
        return tile


def needs_of(model: Any) -> Needs:
    """What a model says it needs; nothing, if it does not say."""
    needs = getattr(model, "needs", None)
    return needs if isinstance(needs, Needs) else Needs()
