# SPDX-License-Identifier: MIT
"""Batches filled across images: where all tiles of an image are less than a batch, several images go through the model
together."""

from __future__ import annotations

from ..images.image import Image
from ..options import Options
from ..plan import TilePlan
from .report import HOLDING

__all__ = ["images_together"]


def images_together(image: Image, options: Options, plan: TilePlan) -> int:
    """How many images' tiles go through the model in one call, as even as possible. It is 1 where a batch holds those
    of one image only, where statistics are held for one, where devices share the batches of one, and where the rows of
    an image with alpha would be read twice."""
    twice = image.by_rows and image.channels in (2, 4)
    if twice or image.count == 1 or len(options.devices) > 1 or options.global_stats in HOLDING:
        return 1
    most = min(image.count, options.batch_size // len(plan)) if options.batch_size != "auto" else 1
    return -(-image.count // -(-image.count // most)) if most > 1 else 1
