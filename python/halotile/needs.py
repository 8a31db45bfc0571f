# SPDX-License-Identifier: MIT
"""What a model file says about the windows that its model takes: `Needs`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Needs"]


@dataclass(frozen=True)
class Needs:
    """What the windows of a model must be like, as far as its file says so. The defaults are no demands.

    `load_model` attaches it as the attribute ``needs`` to models whose files say something.

    Attributes:
        multiple: of which height and width must be multiples.
        minimum: the least height and width.
        square: whether height and width must be equal.
        window: the only (height, width) that the model takes; None if it takes several.
        scale: output pixels per input pixel; None if unknown.
    """

    multiple: int = 1
    minimum: int = 1
    square: bool = False
    window: tuple[int, int] | None = None
    scale: int | None = None
