# SPDX-License-Identifier: MIT
"""The last steps before an image file is written: in front of a background, and in another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyvips

__all__ = ["Colour", "Finish", "checked_colour", "checked_size", "finished_shape"]

Colour = tuple[int, int, int]  # red, green and blue, 0 to 255

WHITE = {"uchar": 255, "ushort": 65535}  # 1 for floats
LUMA = (0.2126, 0.7152, 0.0722)


def finished_shape(
    shape: Sequence[int], background: Colour | None, size: tuple[int, int] | None, pages: int = 1
) -> tuple[int, ...]:
    """The shape of what is written: of all pages, one below the other."""
    height, width, *channels = shape
    if size is not None:
        height, width = size[0] * pages, size[1]
    if background is not None and channels and channels[0] in (2, 4):
        channels = [channels[0] - 1]
    return (height, width, *channels)


def checked_colour(value: object) -> Colour | None:
    """Raises ValueError if it is none."""
    if value is None:
        return None
    parts = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        raise ValueError(f"background must be (red, green, blue), whole numbers from 0 to 255, not {value!r}")
    return parts[0], parts[1], parts[2]


def checked_size(value: object) -> tuple[int, int] | None:
    """Raises ValueError if it is none."""
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 2**31 for side in sides):
        raise ValueError(f"size must be (height, width), whole numbers of pixels, not {value!r}")
    return sides[0], sides[1]


@dataclass(frozen=True)
class Finish:
    """Attributes:
    background: the colour in front of which pixels with alpha are laid; None keeps alpha.
    size: (height, width) to which the image is resampled, with Lanczos' filter; None keeps its size.
    pages: of the image, one below the other; only a single one is resampled.
    data: whether two and four bands are data without alpha.
    """

    background: Colour | None = None
    size: tuple[int, int] | None = None
    pages: int = 1
    data: bool = False

    def __call__(self, image: pyvips.Image) -> pyvips.Image:
        has_alpha = image.bands in (2, 4) and not self.data
        if has_alpha and self.background is not None:
            image, has_alpha = self._flattened(image, self.background), False
        return image if self.size is None else self._resampled(image, self.size, has_alpha)

    def _flattened(self, image: pyvips.Image, colour: Colour) -> pyvips.Image:
        white = WHITE.get(image.format, 1)
        values = [part / 255 * white for part in colour]
        if image.bands == 2:
            values = [sum(part * weight for part, weight in zip(values, LUMA, strict=True))]
        return image.flatten(background=values, max_alpha=white)

    def _resampled(self, image: pyvips.Image, size: tuple[int, int], has_alpha: bool) -> pyvips.Image:
        """Colours are weighted by alpha, so that hidden ones do not leak."""
        from pyvips import GValue

        if (image.height, image.width) == size:
            return image
        kind, white = image.format, WHITE.get(image.format, 1)
        # Rows come once, from the top. With several threads, one that is late would ask for rows that are gone.
        image = image.copy()
        image.set_type(GValue.gint_type, "concurrency", 1)
        if has_alpha:
            image = image.premultiply(max_alpha=white)
        image = image.resize(size[1] / image.width, vscale=size[0] / image.height, kernel="lanczos3")
        if (image.height, image.width) != size:  # off by one, if at all
            image = image.gravity("north-west", size[1], size[0], extend="copy")
        if has_alpha:
            image = image.unpremultiply(max_alpha=white)
        return image if image.format == kind else (image.rint().cast(kind) if white > 1 else image.cast(kind))
