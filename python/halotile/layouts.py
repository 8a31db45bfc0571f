# SPDX-License-Identifier: MIT
"""The order of an image's axes: as the user spells it, by convention, or from the model's channels.

Internally a layout uses the letters H, W, C and N, each at most once, H and W exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = [
    "PICTURES",
    "check_layout_found",
    "checked_layout",
    "layout_of",
    "others_taken",
    "with_channels",
    "with_standard_names",
]

STANDARD = {"H": "H", "Y": "H", "W": "W", "X": "W", "C": "C", "S": "C", "N": "N", "Z": "N", "T": "N", "B": "N"}
ALLOWED = (
    "layout must name each axis by a capital letter: H or Y for rows, W or X for columns, C or S for channels, "
    "N, Z, T or B for images; rows and columns once, channels and images at most once, as in 'HWC', 'NCHW' or 'ZYX'"
)
CHANNELS_LAST = {2: "HW", 3: "HWC", 4: "NHWC"}  # convention for arrays
CHANNELS_FIRST = {2: "HW", 3: "CHW", 4: "NCHW"}  # convention for tensors
FEW = 4  # channels of ordinary images: grey or colour, with or without alpha
PICTURES = (1, 3)  # channels of models for grey and colour images with or without alpha


def checked_layout(value: object) -> str | None:
    """Checks a layout spelled by the user; None stays None. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{ALLOWED}; not {value!r}")
    names = [STANDARD.get(letter, "") for letter in value]
    if names.count("N") > 1 and "" not in names:
        images = [letter for letter in value if STANDARD[letter] == "N"]
        text = f"layout must have one image axis, not {len(images)} ({', '.join(images)}) as in {value!r}"
        raise ValueError(f"{text}: pass the images of one axis at a time, or reshape both axes into one")
    if "" in names or len(set(names)) < len(names) or not {"H", "W"} <= set(names):
        raise ValueError(f"{ALLOWED}; not {value!r}")
    return value


def with_standard_names(layout: str) -> str:
    """Turns 'TYXS' into 'NHWC'."""
    return "".join(STANDARD[letter] for letter in layout)


def with_channels(layout: str, channels_first: bool) -> str:
    """Adds a channel axis to a layout without one: last, or before rows and columns."""
    if not channels_first:
        return f"{layout}C"
    at = min(layout.index("H"), layout.index("W"))
    return f"{layout[:at]}C{layout[at:]}"


class Reading(NamedTuple):
    layout: str
    channels: int
    images: int

    def __str__(self) -> str:
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        if "N" not in self.layout:
            return channels
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{images} of {channels}"


def layout_of(
    name: str, shape: tuple[int, ...], channels_first: bool, channels_of_model: Callable[[], int | None] = lambda: None
) -> str | None:
    """The layout of an image of 2 to 4 dimensions without a given layout; None for other dimensions.

    The conventional layout is used if plausible, else the only one that fits the model.

    Args:
        name: of the argument, for the error.
        channels_first: whether this is the convention, as for tensors.
        channels_of_model: channels that the model takes, or None; called only in doubt.

    Raises:
        ValueError: several layouts fit, or none.
    """
    usual = (CHANNELS_FIRST if channels_first else CHANNELS_LAST).get(len(shape))
    if usual is None or len(shape) == 2:
        return usual
    if _is_plausible(shape, usual):
        return usual
    readings, takes = _readings(shape, usual), channels_of_model()
    if takes == readings[0].channels:
        return usual
    fitting = [one for one in readings if _is_taken_by(takes, one.channels)] if takes is not None else readings
    if len(fitting) == 1:
        return fitting[0].layout
    raise ValueError(_doubt(name, shape, readings, takes))


def check_layout_found(name: str, shape: tuple[int, ...], layout: str, channels_first: bool, takes: int) -> None:
    """Raises ValueError if the channels that the model actually takes do not lead `layout_of` to the same layout as the
    channels it seemed to take."""
    if layout_of(name, shape, channels_first, lambda: takes) != layout:
        usual = (CHANNELS_FIRST if channels_first else CHANNELS_LAST)[len(shape)]
        raise ValueError(_doubt(name, shape, _readings(shape, usual), takes))


def others_taken(shape: tuple[int, ...], layout: str, takes: int | None) -> list[Reading]:
    """Other interpretations that fit the model and have more than a few rows and columns; none if its channels are
    unknown."""
    if takes is None or len(shape) not in (3, 4):
        return []
    found = [one for one in _readings(shape, layout) if one.layout != layout and _is_taken_by(takes, one.channels)]
    return [one for one in found if min(_side(shape, one.layout, axis) for axis in "HW") > FEW]


def _readings(shape: tuple[int, ...], usual: str) -> list[Reading]:
    """Lists the conventional reading first."""
    others = ("CHW", "HWC", "NHW") if len(shape) == 3 else ("NCHW", "NHWC")
    return [
        Reading(layout, _side(shape, layout, "C"), _side(shape, layout, "N"))
        for layout in (usual, *(one for one in others if one != usual))
    ]


def _side(shape: tuple[int, ...], layout: str, axis: str) -> int:
    return shape[layout.index(axis)] if axis in layout else 1


def _is_plausible(shape: tuple[int, ...], layout: str) -> bool:
    """Whether there are few channels, or fewer than rows and columns."""
    channels, rows, columns = (_side(shape, layout, axis) for axis in "CHW")
    return channels <= FEW or channels < min(rows, columns)


def _is_taken_by(takes: int, channels: int) -> bool:
    return channels <= FEW if takes in PICTURES else channels == takes


def _doubt(name: str, shape: tuple[int, ...], readings: list[Reading], takes: int | None) -> str:
    usual, *others = readings
    text = f"{name} of shape {tuple(shape)} would have {usual.channels} channels in layout {usual.layout!r}"
    if takes is not None:
        text += f", and that the model takes {takes} does not decide what is meant"
    choices = ", ".join(f"layout={one.layout!r} ({one})" for one in others)
    return f"{text}; pass {choices}, or layout={usual.layout!r} ({usual}) if that is meant"
