# SPDX-License-Identifier: MIT
"""What a module's operators tell at one size, in a second or two: the phase of its windows, scale and loss.

Unlike `inspect_model` it confirms nothing by running the model, so a run takes it for what it is: the phase is used,
for a wrong one is no worse than none; scale and loss only where the first window agrees. Imports torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch

from .structure import analyse

__all__ = ["Quick", "quick_look"]

SIZE = (64, 64)  # of the image that is looked at, in pixels
Pair = tuple[int, int]


@dataclass(frozen=True)
class Quick:
    """Attributes:
    phase: input pixels (rows, columns) after which the model repeats itself; None if that was not found.
    scale: output pixels per input pixel; None if unknown.
    loss: output pixels that valid convolutions take at each end of a window (rows, columns); None if unknown.
    """

    phase: Pair | None = None
    scale: Fraction | None = None
    loss: Pair | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"scale": None if self.scale is None else str(self.scale)})

    @classmethod
    def from_json(cls, text: str) -> Quick:
        """What `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        found = json.loads(text)
        phase, loss = (_pair(found[name], least) for name, least in (("phase", 1), ("loss", 0)))
        scale = None if found["scale"] is None else Fraction(found["scale"])
        if scale is not None and not 0 < scale <= 1024:
            raise ValueError(f"scale must be positive, not {scale}")
        return cls(phase, scale, loss)


def _pair(value: Any, least: int) -> Pair | None:
    if value is None:
        return None
    rows, columns = value
    if not all(type(one) is int and least <= one < 1 << 20 for one in (rows, columns)):
        raise ValueError(f"a pair of whole numbers from {least} on was expected, not {value}")
    return rows, columns


def quick_look(module: torch.nn.Module, channels: tuple[int, ...]) -> Quick:
    """Looks at the operators of a module.

    Args:
        module: left as it was.
        channels: that it may take, likeliest first.
    """
    for count in dict.fromkeys(channels):
        found = analyse(module, channels=count, size=SIZE, looks=1)
        if found.sizes:
            break
    else:
        return Quick()
    loss = found.loss if found.loss is None or min(found.loss) >= 0 else None
    return Quick(found.phase, found.scale, loss)
