# SPDX-License-Identifier: MIT
"""Are two images close, in the manner of torch.testing: how many values are not, the worst place, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images.image import Image, is_tensor, open_image
from ..layouts import checked_layout
from ..metrics import floats_of
from ..option_checks import tolerance_of
from ..plan import TilePlan

__all__ = ["TOLERANCES", "Closeness", "closeness", "distance_to_edge", "tolerances"]

# rtol and atol by dtype: one step for integers, and what float32 rounding in deep models amounts to for floats.
TOLERANCES = {
    "uint8": (0.0, 1.0),
    "uint16": (0.0, 1.0),
    "float16": (1e-3, 1e-3),
    "bfloat16": (1.6e-2, 1e-2),
    "float32": (1.3e-6, 1e-4),
    "float64": (1.3e-6, 1e-4),
}


@dataclass(frozen=True)
class Closeness:
    """How two images of one shape differ. Differences are in units of the images.

    Attributes:
        mismatched, count: number of values that differ by more than ``atol + rtol * |expected|``, and of all.
        largest: the greatest absolute difference; NaN in only one of them is infinite.
        worst: (row, column, channel) of it. image: of a batch; None for a single one.
        edge_distance: output pixels from there to the nearest tile edge; None without a plan or for one tile.
    """

    mismatched: int
    count: int
    largest: float
    worst: tuple[int, int, int]
    image: int | None
    edge_distance: int | None
    rtol: float
    atol: float

    @property
    def close(self) -> bool:
        return self.mismatched == 0

    def __str__(self) -> str:
        row, column, channel = self.worst
        which = "" if self.image is None else f"image {self.image}, "
        near = "" if self.edge_distance is None else f", {self.edge_distance} pixels from the nearest tile edge"
        return (
            f"mismatched values: {self.mismatched} / {self.count} ({self.mismatched / self.count:.1%})\n"
            f"greatest absolute difference: {self.largest:.6g} at {which}row {row}, column {column}, "
            f"channel {channel}{near}\n"
            f"allowed: atol {self.atol:g} + rtol {self.rtol:g} of the expected value"
        )


def tolerances(dtype: str, rtol: float | None, atol: float | None) -> tuple[float, float]:
    """Both tolerances, by the dtype if neither is given. Raises ValueError if only one is."""
    if rtol is None and atol is None:
        return TOLERANCES[dtype]
    if rtol is None or atol is None:
        raise ValueError("rtol and atol must both be given, or neither")
    return (tolerance_of(rtol, "of the expected value") or 0.0, tolerance_of(atol) or 0.0)


def closeness(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    plan: TilePlan | None = None,
    layout: str | None = None,
) -> Closeness:
    """Compares two images value by value.

    Raises:
        AssertionError: shapes or dtypes differ. ValueError, TypeError: an argument is wrong.
    """
    if is_tensor(actual) != is_tensor(expected):
        kinds = f"{type(actual).__name__} and {type(expected).__name__}"
        raise AssertionError(f"images must both be arrays or both be tensors, not {kinds}")
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"the shapes differ: {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    first, second = (open_image(one, checked_layout(layout)) for one in (actual, expected))
    if first.dtype != second.dtype:
        raise AssertionError(f"the dtypes differ: {first.dtype}, expected {second.dtype}")
    rtol, atol = tolerances(second.dtype, rtol, atol)
    return _found(first, second, rtol, atol, plan)


def _found(first: Image, second: Image, rtol: float, atol: float, plan: TilePlan | None) -> Closeness:
    got, want = floats_of(first), floats_of(second)
    with np.errstate(invalid="ignore"):
        apart = np.abs(got - want)
        apart[(got == want) | (np.isnan(got) & np.isnan(want))] = 0  # also infinities
        apart[np.isnan(apart)] = np.inf
        over = apart > atol + rtol * np.abs(np.nan_to_num(want, nan=0.0, posinf=0.0, neginf=0.0))
    image, channel, row, column = (int(one) for one in np.unravel_index(np.argmax(apart), apart.shape))
    return Closeness(
        int(over.sum()),
        over.size,
        float(apart.max()),
        (row, column, channel),
        image if len(got) > 1 else None,
        None if plan is None else distance_to_edge(plan, row, column),
        rtol,
        atol,
    )


def distance_to_edge(plan: TilePlan, row: int, column: int) -> int | None:
    """Output pixels from a place to the nearest tile edge inside the image, 0 beside it; None for a single tile."""
    distances = []
    for axis, at in ((0, row), (1, column)):
        ends = {end for index in range(plan.grid[axis]) for end in plan.core.keep(axis, index)[:2]}
        inner = ends - {0, plan.output_size[axis]}
        distances += [min(abs(at - end), abs(at + 1 - end)) for end in inner]
    return min(distances, default=None)
