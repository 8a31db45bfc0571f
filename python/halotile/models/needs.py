# SPDX-License-Identifier: MIT
"""Size constraints that a model file states for its windows: `Needs`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..scales import Scale, by_axis, scale_text

__all__ = ["Needs", "needs_of"]

Pair = tuple[int, int]
SIDES = ("rows", "columns")


@dataclass(frozen=True)
class Needs:
    """Size constraints of a model's windows. The defaults are no constraints.

    `load_model` attaches it as the attribute ``needs`` to models whose files have constraints. Runs respect it: phases
    become multiples of `multiple`, windows have the required size whatever tile_size says, and contradicting options
    are refused.

    Attributes:
        multiple: divides height and width.
        minimum: the smallest height and width.
        square: whether height and width must be equal.
        window: the fixed height and the fixed width; None for a variable side.
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
            raise ValueError(f"square must be False for a model with fixed window sides, {self.window}")

    @property
    def fixed(self) -> bool:
        """Whether a side of the window is fixed."""
        return self.window != (None, None)

    @property
    def least(self) -> Pair:
        """The smallest height and width."""
        height, width = (side or self.minimum for side in self.window)
        return height, width

    def phase(self, requested: Pair) -> Pair:
        """The smallest valid phase (rows, columns) that is a multiple of the one asked for."""
        multiple = math.lcm(self.multiple, *requested) if self.square else self.multiple
        rows, columns = (math.lcm(step, multiple) for step in requested)
        return rows, columns

    def check(self, scale: Scale | None, verify: int) -> None:
        """Raises ValueError for options that are impossible for the model, whatever the image."""
        if self.scale is not None and scale is not None and scale != self.scale:
            raise ValueError(f"scale must be {self.scale} or None for this model, not {scale_text(scale)}")
        if verify and (self.fixed or self.square):
            text = "as comparing needs windows of other sizes, which it does not take"
            raise ValueError(f"verify must be 0 for this model, {text}, not {verify}")

    def planned(self, options: Any, scale: Scale) -> Any:
        """The options with the tile size that fixed windows leave.

        Args:
            options: Options with numbers for tile_size, halo and phase.

        Raises:
            ValueError: halo, phase or overlap do not fit such windows.
        """
        if not self.fixed:
            return options
        scales = by_axis(scale)
        tiles = [
            tile if side is None else self._tile(axis, side, options, scales[axis].denominator)
            for axis, (side, tile) in enumerate(zip(self.window, options.tile_size, strict=True))
        ]
        return replace(options, tile_size=tuple(tiles))

    def _tile(self, axis: int, side: int, options: Any, denominator: int) -> int:
        """The tile side that a fixed window side leaves."""
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
    """The model's `Needs`; no constraints if it has none."""
    needs = getattr(model, "needs", None)
    return needs if isinstance(needs, Needs) else Needs()
