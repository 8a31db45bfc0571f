# SPDX-License-Identifier: MIT
"""How `halotile restore` writes files: quality, background, size."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..files.finish import Colour
from ..files.formats import FORMATS
from .common import UsageError
from .work import Job, is_array, suffix_of

__all__ = ["Saving", "check_effects", "colour", "factor", "sides"]

QUALITY, COMPRESSION = 95, 6
LARGEST_SIDE = 2**31 - 1
COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "gray": (128, 128, 128)}


@dataclass(frozen=True)
class Saving:
    """Attributes:
    size: (width, height) of results; one of them may be None, to keep proportions.
    scale: result pixels per input pixel.
    """

    quality: int = QUALITY
    compression: int = COMPRESSION
    background: Colour | None = None
    size: tuple[int | None, int | None] | None = None
    scale: float | None = None

    @classmethod
    def of(cls, asked: argparse.Namespace) -> Saving:
        if asked.size is not None and asked.outscale is not None:
            raise UsageError("--size and --outscale cannot be combined")
        quality, compression = asked.quality or QUALITY, asked.compression
        compression = COMPRESSION if compression is None else compression
        return cls(quality, compression, asked.background, asked.size, asked.outscale)

    @property
    def resamples(self) -> bool:
        return self.size is not None or self.scale is not None

    def size_of(self, of_input: Sequence[int], made: Sequence[int]) -> tuple[int, int] | None:
        """(height, width) of the file for an input and what the model made of it; None if it stays as it is."""
        height, width = made[0], made[1]
        if self.scale is not None:
            height, width = (max(1, round(side * self.scale)) for side in of_input[:2])
        elif self.size is not None:
            asked_width, asked_height = self.size
            width_there, height_there = asked_width or 0, asked_height or 0
            height = height_there or max(1, round(width_there * of_input[0] / of_input[1]))
            width = width_there or max(1, round(height * of_input[1] / of_input[0]))
        return None if (height, width) == (made[0], made[1]) else (height, width)


def check_effects(asked: argparse.Namespace, jobs: Iterable[Job]) -> None:
    """Raises UsageError for an option that no file of this run heeds."""
    jobs = list(jobs)
    formats = {
        FORMATS[suffix].name: FORMATS[suffix]
        for suffix in map(suffix_of, (job.output for job in jobs))
        if suffix in FORMATS
    }
    given = {"quality": asked.quality, "compression": asked.compression, "background": asked.background}
    given |= {"size": asked.size, "outscale": asked.outscale}
    for name, value in given.items():
        needed = "size" if name == "outscale" else name
        if value is not None and formats and not any(needed in kind.uses for kind in formats.values()):
            raise UsageError(f"--{name} has no effect on {', '.join(formats)}: {_used_by(needed)}")
    if asked.reduce is not None and (asked.size or asked.outscale or asked.background):
        raise UsageError("--reduce cannot be combined with --size, --outscale or --background: labels are no picture")
    if asked.layout is not None and jobs and not any(is_array(job.input) for job in jobs):
        raise UsageError(
            "--layout has no effect on image files, whose axes are known: it is for .npy files and zarr arrays"
        )


def _used_by(name: str) -> str:
    kinds = dict.fromkeys(kind.name for kind in FORMATS.values() if name in kind.uses)
    return f"it is for {', '.join(kinds)}"


def colour(text: str) -> Colour:
    """A colour from a name, "#rrggbb" or "r,g,b"."""
    if text.lower() in COLOURS:
        return COLOURS[text.lower()]
    if re.fullmatch(r"#?[0-9A-Fa-f]{6}", text):
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
        return red, green, blue
    parts = re.fullmatch(r"([0-9]{1,3}),([0-9]{1,3}),([0-9]{1,3})", text)
    if parts is None or max(map(int, parts.groups())) > 255:
        allowed = f"{', '.join(COLOURS)}, #rrggbb, or red,green,blue from 0 to 255"
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    red, green, blue = map(int, parts.groups())
    return red, green, blue


def sides(text: str) -> tuple[int | None, int | None]:
    """(width, height) from "800x600", "800x" or "x600"."""
    found = re.fullmatch(r"([0-9]{1,10})?x([0-9]{1,10})?", text)
    numbers = [int(one) if one else None for one in (found.groups() if found else ())]
    if not any(numbers) or 0 in numbers or max(one or 0 for one in numbers) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, or one of them as in 800x, not {text!r}")
    return numbers[0], numbers[1]


def factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-4 <= value <= 1e4:
        raise argparse.ArgumentTypeError(f"must be a number above 0 such as 3 or 0.5, not {text!r}")
    return value
