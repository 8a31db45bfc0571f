# SPDX-License-Identifier: MIT
"""Recomputes windows of a restored image with a much larger halo and compares.

A window covers a region plus its halo, like a tile. Regions lie across tile edges or anywhere; pixels near tile edges
and elsewhere are counted separately.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..engine.device_lock import turn
from ..errors import ModelOutputError, SeamWarning, frames_inside
from ..images.channels import Part
from ..images.image import Image, is_tensor, open_image, shape_of_result
from ..images.values import Values, as_floats
from ..models.model import TensorModel
from ..plan import Box, TilePlan
from ..stages import reached
from .failures import tile_error
from .held import hold_statistics
from .low_band import tie_low_bands
from .nodata import without_missing
from .prepared import First, Prepared
from .progress import Progress
from .report import RunInfo, Verification, by

if TYPE_CHECKING:
    from ..inspection import ModelInfo

__all__ = ["VERIFYING", "Remade", "beyond_rounding", "opened_result", "verified"]

VERIFYING = "verifying"

Pair = tuple[int, int]

REGION = 64  # smallest side of a compared region, input pixels
NEAR = 8  # distance in input pixels that counts as near a tile edge
HALF_STEP = {"uint8": 0.5, "uint16": 0.5}  # largest rounding error, in steps of the dtype
RELATIVE = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # largest rounding error, relative to the value


def verified(prepared: Prepared, result: Any, places: int, info: ModelInfo | None) -> RunInfo:
    """Recomputes `places` windows and returns the report with the comparison; warns above the tolerance.

    result: as returned to the user. info: inspection of the model, if any.
    """
    remade = Remade(prepared, opened_result(result, prepared), info)
    found = remade.compared(remade.places(places, 0))
    report, tolerance = replace(prepared.report, verified=found), prepared.options.within(found.white)
    if found.seamless(tolerance):
        return report
    text = f"verify={places}: above the tolerance of {tolerance:g}: {found}"
    warnings.warn(text, SeamWarning, stacklevel=frames_inside())
    why = f"{report.why}; but differences of {found.largest:.3g} of {found.white:g} were found"
    return replace(report, how="unverified", bound=found.largest, why=why)


class Place(NamedTuple):
    """One axis of a window [start, stop) and the region [first, last) kept of it, input pixels."""

    start: int
    stop: int
    first: int
    last: int


class Window(NamedTuple):
    """The index of an image and a place (rows, columns) in it."""

    image: int
    place: tuple[Place, Place]


class Remade:
    def __init__(self, prepared: Prepared, result: Image, info: ModelInfo | None):
        model = copy.copy(prepared.windows.model)
        if isinstance(model, TensorModel):
            model.compiled = None  # would recompile for every new size
        self.prepared, self.result, self.info = prepared, result, info
        self.image, self.plan, self.windows = prepared.image, prepared.plan, prepared.windows.through(model)
        self._see(0, holds=True)
        self.step = tuple(math.lcm(*pair) for pair in zip(self.plan.phase, self._known_phase(), strict=True))
        self.halo = self._larger_halo()
        self.domain = [(self.plan[0].window[axis], _stops(self.plan[-1].window)[axis]) for axis in (0, 1)]
        self.edges = [_edges(self.plan, axis) for axis in (0, 1)]

    def _known_phase(self) -> Pair:
        rows, columns = (1, 1) if self.info is None else self.info.phase
        return rows or 1, columns or 1

    def _larger_halo(self) -> list[int]:
        field = getattr(self.info, "halo", None) or (0, 0)
        least = [max(3 * halo + 16, radius) for halo, radius in zip(self.plan.halo, field, strict=True)]
        return [-(-halo // step) * step for halo, step in zip(least, self.step, strict=True)]

    # ---- where -------------------------------------------------------------------------------------------------------

    def places(self, count: int, seed: int) -> list[Window]:
        """Distinct windows: alternately across a tile edge, if there is one, and anywhere."""
        random, images = np.random.default_rng(seed), self.image.count
        shares = [(index + 1) * count // images - index * count // images for index in range(images)]
        return [window for index, share in enumerate(shares) for window in self._places_in(index, share, random)]

    def _places_in(self, index: int, count: int, random: np.random.Generator) -> list[Window]:
        found: dict[Window, None] = {}
        for attempt in range(8 * count):
            place = self._across(random) if (index + attempt) % 2 == 0 else self._anywhere(random)
            found[Window(index, place)] = None
            if len(found) == count:
                break
        return list(found)

    def _anywhere(self, random: np.random.Generator) -> tuple[Place, Place]:
        starts = (int(random.integers(0, size)) - self._side(axis) // 2 for axis, size in enumerate(self.image.size))
        y, x = (self._place(axis, start) for axis, start in enumerate(starts))
        return y, x

    def _across(self, random: np.random.Generator) -> tuple[Place, Place]:
        """A place with a tile edge in the middle half of its region."""
        anywhere = self._anywhere(random)
        lines = [(axis, int(edge)) for axis in (0, 1) for edge in self.edges[axis]]
        if not lines:
            return anywhere
        axis, edge = lines[int(random.integers(len(lines)))]
        side = self._side(axis)
        shift = int(random.integers(side // 4, side - side // 4 + 1))
        across = self._place(axis, int(edge / self.plan.scales[axis]) - shift)
        return (across, anywhere[1]) if axis == 0 else (anywhere[0], across)

    def _side(self, axis: int) -> int:
        """The side of a region: a multiple of the phase, and at least four times it, so that rounding its start down
        keeps the edge inside."""
        step = self.step[axis]
        return max(-(-REGION // step), 4) * step

    def _place(self, axis: int, start: int) -> Place:
        step, size, side, halo = self.step[axis], self.image.size[axis], self._side(axis), self.halo[axis]
        last_start = max(0, -(-(size - side) // step) * step)
        first = min(max(0, start // step * step), last_start)
        if self.plan.boundary != "native":
            return Place(first - halo, first + side + halo, first, first + side)
        end, window = self.domain[axis][1], side + 2 * halo
        low = max(0, first - halo)
        if low + window >= end:
            low = max(0, (end - window) // step * step)
            return Place(low, end, low and low + halo, end)
        return Place(low, low + window, low and low + halo, low + window - halo)

    def whole(self) -> tuple[Place, Place]:
        """One window for the whole image with the run's halo: whole-image inference."""
        y, x = (Place(start, stop, 0, size) for (start, stop), size in zip(self.domain, self.image.size, strict=True))
        return y, x

    # ---- what is there -----------------------------------------------------------------------------------------------

    def compared_with_whole(self) -> Verification:
        """Compares with whole-image inference, without fixed statistics."""
        found = self.compared([Window(index, self.whole()) for index in range(self.image.count)], halo=self.plan.halo)
        return replace(found, whole=self.named_whole())

    def named_whole(self) -> str:
        """The whole-image call in words. Sides are padded to a multiple of the phase."""
        (top, bottom), (left, right) = (
            (-start, stop - size) for (start, stop), size in zip(self.domain, self.image.size, strict=True)
        )
        if not any((top, bottom, left, right)):
            return "model(image)"
        sides = by((top, left))
        if (top, left) != (bottom, right):
            sides = f"top={top}, bottom={bottom}, left={left}, right={right}"
        pad = "wrap_pad" if self.plan.boundary == "wrap" else "reflect_pad"
        return f"crop(model({pad}(image, {sides})))"

    def compared(self, windows: list[Window], halo: Pair | None = None) -> Verification:
        """Compares some windows. halo: the halo of whole-image windows, which run without fixed statistics; None for
        the larger halo."""
        tally = Tally()
        for number, (index, place) in enumerate(windows):
            reached(VERIFYING, "windows", number, len(windows))
            self._see(index, holds=halo is None)
            box = self._box(place)
            apart = [self._apart(part, place, box) for part in range(len(self.parts))]
            tally.add(np.concatenate([one for one in apart if one is not None]), box, *self._near(box), self.index)
        reached(VERIFYING, "", len(windows), len(windows))
        row, column, channel = tally.worst
        self.parts = self.prepared.parts_of(tally.image)
        self.parts = self.prepared.parts_of(tally.image)
        distance = min(_distance(edges, np.array([at]))[0] for edges, at in zip(self.edges, (row, column), strict=True))
        return Verification(
            **tally.numbers(),
            worst=(row, column, self._result_channel(channel)),
            edge_distance=None if math.isinf(distance) else int(distance),
            white=self._values.numbers[0],
            windows=len(windows),
            halo=self.plan.halo,
            phase=self.plan.phase,
            reference=(self.halo[0], self.halo[1]) if halo is None else halo,
            image=tally.image if self.image.count > 1 else None,
        )

    def _see(self, index: int, holds: bool) -> None:
        """Switches to another image. holds: fix its statistics and low bands, if the run does; local statistics are the
        model's own."""
        self.index = index
        self.windows.low, self.windows.low_for = {}, None
        if holds:
            tie_low_bands(replace(self.prepared, windows=self.windows), index, First())
        if holds or self.prepared.report.global_stats == "local":
            hold_statistics(replace(self.prepared, windows=self.windows), index, First(), Progress(None))
        else:
            self.windows.held, self.windows.held_for = {}, None
        with turn(self.windows.engine.device):
            self.parts = self.prepared.parts_of(index)

    @property
    def _values(self) -> Values:
        return self.prepared.out_values

    def _box(self, place: tuple[Place, Place]) -> Box:
        """The region of a place in output pixels."""
        scales = self.plan.scales
        starts = [int(axis.first * scale) for axis, scale in zip(place, scales, strict=True)]
        stops = [
            min(math.ceil(axis.last * scale), size)
            for axis, scale, size in zip(place, scales, self.plan.output_size, strict=True)
        ]
        return Box(*starts, *(stop - start for start, stop in zip(starts, stops, strict=True)))

    def _apart(self, index: int, place: tuple[Place, Place], box: Box) -> np.ndarray | None:
        """Differences (channels, height, width) of a part; None if the part bypasses the model."""
        part, channels = self.parts[index], self.prepared.traits.out_channels
        if part.how != "model":
            return None
        want = self._made(part, place, box)
        first = sum(channels[:index])
        got = self.result.pixels[self.index, first : first + channels[index], box.y : box.y_stop, box.x : box.x_stop]
        if self.result.dtype == "bfloat16":
            got = as_floats(got)
        apart = beyond_rounding(got.astype(np.float64), want.astype(np.float64), self.result.dtype)
        return without_missing(apart, got, self.prepared)

    def _made(self, part: Part, place: tuple[Place, Place], box: Box) -> np.ndarray:
        """A window's result, cropped to the box, before rounding."""
        sides = [axis.stop - axis.start for axis in place]
        tile = replace(self.plan[0], window=Box(place[0].start, place[1].start, *sides))
        with turn(self.windows.engine.device):
            output = self.windows(part, self.index, self.plan, [tile])
            if self.prepared.again is not None:
                output = self.prepared.again.mended(self.windows, part, self.index, self.plan, [tile], output)
            output = as_floats(output[0])
        scales, trim = self.plan.scales, self.plan.trim
        expected = tuple(int(a * by) - 2 * b for a, by, b in zip(sides, scales, trim, strict=True))
        if output.shape[1:] != expected:
            text = f"the model made {output.shape[1:]} of a window of {sides[0]}x{sides[1]}, not {expected}"
            raise tile_error(ModelOutputError, [tile], text + "; check scale and phase")
        y, x = (
            at - int(axis.start * scale) - lost
            for at, axis, scale, lost in zip((box.y, box.x), place, scales, trim, strict=True)
        )
        peak, gain, offset, clamp = self._values.numbers
        pixels = (output[:, y : y + box.height, x : x + box.width] - np.float32(offset)) / np.float32(gain)
        pixels = pixels * np.float32(peak)
        return np.clip(np.nan_to_num(pixels, nan=0.0, posinf=np.inf, neginf=-np.inf), 0, peak) if clamp else pixels

    def _near(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        ranges = np.arange(box.y, box.y_stop), np.arange(box.x, box.x_stop)
        sides = [np.array([0, size]) for size in self.plan.output_size]

        def within(lines: list[np.ndarray]) -> np.ndarray:
            y, x = (
                _distance(edges, at) < NEAR * scale
                for edges, at, scale in zip(lines, ranges, self.plan.scales, strict=True)
            )
            return y[:, None] | x

        near, outer = within(self.edges), within(sides)
        if self.plan.boundary != "native":
            return near & ~outer, ~near & ~outer
        return near, ~near

    def _result_channel(self, channel: int) -> int:
        """Converts an index among compared channels to one of the result."""
        channels, compared = self.prepared.traits.out_channels, []
        for part, count, first in zip(self.parts, channels, np.cumsum([0, *channels])[:-1], strict=True):
            compared += range(first, first + count) if part.how == "model" else []
        return int(compared[channel])


class Tally:
    def __init__(self) -> None:
        self.all: list[np.ndarray] = []
        self.sums = {True: [0.0, 0], False: [0.0, 0]}  # near tile edges, and elsewhere: sum, count
        self.largest, self.worst, self.image = -1.0, (0, 0, 0), 0

    def add(self, apart: np.ndarray, box: Box, near: np.ndarray, elsewhere: np.ndarray, image: int) -> None:
        """apart: differences (channels, height, width) of a box."""
        self.all.append(apart.ravel())
        for which, mask in ((True, near), (False, elsewhere)):
            self.sums[which][0] += float(apart[:, mask].sum())
            self.sums[which][1] += apart.shape[0] * int(mask.sum())
        if apart.max() > self.largest:
            self.largest = float(apart.max())
            channel, y, x = np.unravel_index(int(apart.argmax()), apart.shape)
            self.worst, self.image = (box.y + int(y), box.x + int(x), int(channel)), image

    def numbers(self) -> dict[str, float]:
        apart = np.concatenate(self.all)
        at = min(apart.size - 1, math.ceil(0.999 * (apart.size - 1)))  # not interpolated, because of infinities
        p999 = float(np.partition(apart, at)[at])
        return {"largest": self.largest, "p999": p999, "mean": float(apart.mean()), "edge_ratio": self._ratio()}

    def _ratio(self) -> float:
        if not (self.sums[True][1] and self.sums[False][1]):
            return 1.0
        near, elsewhere = (total / count for total, count in (self.sums[True], self.sums[False]))
        if near == elsewhere:  # both 0 or both infinite
            return 1.0
        return near / elsewhere if elsewhere > 0 else math.inf


def beyond_rounding(got: np.ndarray, want: np.ndarray, dtype: str) -> np.ndarray:
    """Distance of `want` from the values that round to `got` in a dtype; infinite if only one is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(got - want)
        rounding = HALF_STEP.get(dtype, 0.0) + np.abs(got) * RELATIVE.get(dtype, 0.0)
    apart[(got == want) | (np.isnan(got) & np.isnan(want))] = 0
    apart[np.isnan(apart)] = np.inf
    return np.maximum(apart - np.where(np.isfinite(rounding), rounding, 0), 0)


def opened_result(result: Any, prepared: Prepared) -> Image:
    """Raises ValueError or TypeError if the result does not match the run."""
    source = prepared.image
    layout, shape = shape_of_result(source, prepared.channels, prepared.plan.output_size)
    if tuple(result.shape) != shape:
        raise ValueError(f"result must have shape {shape} for this image and model, not {tuple(result.shape)}")
    if is_tensor(result) != (source.device is not None):
        raise TypeError(f"result must be of the image's kind, not {type(result).__name__}")
    return open_image(result, layout)


def _edges(plan: TilePlan, axis: int) -> np.ndarray:
    """Sorted tile edges (ends of keep boxes) inside the image, output pixels: edge e lies between pixels e - 1 and
    e."""
    ends: Iterable[int] = (end for i in range(plan.grid[axis]) for end in plan.core.keep(axis, i))
    return np.array(sorted({end for end in ends if 0 < end < plan.output_size[axis]}), np.int64)


def _distance(edges: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Pixels between each position and the nearest edge: 0 on either side of it; infinite without edges."""
    if not edges.size:
        return np.full(at.shape, np.inf)
    after = np.searchsorted(edges, at, side="right")
    left = np.where(after > 0, at - edges[after - 1], np.inf)
    right = np.where(after < edges.size, edges[np.minimum(after, edges.size - 1)] - 1 - at, np.inf)
    return np.minimum(left, right)


def _stops(box: Box) -> Pair:
    return box.y_stop, box.x_stop
