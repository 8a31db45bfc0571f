# SPDX-License-Identifier: MIT
"""A submodule that runs as a whole on each strip: see ../segments.py. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

__all__ = ["Segment"]


@dataclass(frozen=True)
class Segment:
    """A submodule that runs as a whole.

    Attributes:
        module: runs in eval mode.
        above, below: rows of the source that a row of the result takes beside its own.
        phase: strips start at multiples of this, rows of the source.
        scale: rows of the result for a row of the source.
        flops: floating-point operations inside for the whole image.
        peak: the largest number of bytes that one of its operators takes and makes for the whole image.
    """

    module: torch.nn.Module
    above: int
    below: int
    phase: int
    scale: Fraction
    flops: int = 0
    peak: int = 0
