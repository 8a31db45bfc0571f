# SPDX-License-Identifier: MIT
"""The error of a halo and the differences between neighbouring tiles, measured on windows of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..engine.device_lock import turn
from ..images.image import Image
from ..images.values import as_floats
from ..notebook.levels import curve_svg
from ..notebook.plots import plotted_curve
from ..notebook.svg import card
from ..options import Options
from ..plan import Box
from ..run.prepared import Prepared
from ..run.report import RunInfo
from ..stages import reached
from .knowledge import Knowledge
from .opening import ready_for_windows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MEASURING", "WINDOWS", "ErrorCurve", "measured_curve", "pixels_to_measure", "with_seams"]

MEASURING = "measuring"

Pair = tuple[int, int]

REGION = 96  # smallest side of a compared region, input pixels
WINDOWS = 4


@dataclass(frozen=True)
class ErrorCurve:
    """Differences from a result with `reference` pixels of halo over a few windows, in units of the image's dtype (grey
    levels for integers).

    Attributes:
        halos: input pixels.
        largest, mean, p999: for each halo, the maximum, mean and 99.9th percentile of the differences.
        reference: halo of the reference, input pixels: the receptive field, or the largest that was tried.
        exact: whether the reference is the receptive field.
        white: the value of white.
    """

    halos: tuple[int, ...]
    largest: tuple[float, ...]
    mean: tuple[float, ...]
    p999: tuple[float, ...]
    reference: int
    exact: bool
    white: float

    def __str__(self) -> str:
        lines = [f"{'halo':>6}{'largest':>12}{'p99.9':>12}{'mean':>12}   of {self.white:g}"]
        for row in zip(self.halos, self.largest, self.p999, self.mean, strict=True):
            lines.append(f"{row[0]:>6}" + "".join(f"{value:>12.4g}" for value in row[1:]))
        what = "the receptive field" if self.exact else "the largest halo tried"
        return "\n".join([*lines, f"beside a halo of {self.reference}, {what}"])

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plots the curve on the given matplotlib axes, or on new ones, and returns the axes. The exact halo is marked,
        and zeros are marked below the scale, which has no place for them. Needs matplotlib."""
        return plotted_curve(self.halos, self._series(), self.white, self.reference if self.exact else None, axes)

    def _series(self) -> dict[str, tuple[float, ...]]:
        return {"largest": self.largest, "99.9 %": self.p999, "mean": self.mean}

    def _repr_html_(self) -> str:
        exact = self.reference if self.exact else None
        picture = curve_svg(self.halos, self._series(), self.white, exact, "the error of halos")
        rows = [(f"halo {halo}", f"up to {value:.3g}") for halo, value in zip(self.halos, self.largest, strict=True)]
        what = "the receptive field" if self.exact else "the largest halo tried"
        beside = ("compared with", f"a halo of {self.reference}, {what}")
        return card(f"error of halos, of {self.white:g}", [*rows, beside], picture)


def measured_curve(
    image: Image,
    knowledge: Knowledge,
    options: Options,
    exact: int | None,
    halos: tuple[int, ...],
    windows: int = WINDOWS,
) -> ErrorCurve:
    """Measures the differences for each halo.

    Args:
        options: with a number for the phase. exact: the exact halo, if known.
    """
    reference = max(halos) * 2 if exact is None else exact
    probe = _small_windows(image, knowledge, options)
    longest = probe.window(max(halos))
    differences: dict[int, list[np.ndarray]] = {halo: [] for halo in halos}
    places, done = probe.places(windows), 0
    steps = len(places) * (1 + len(halos))
    for place in places:
        reached(MEASURING, "the exact result", done, steps)
        want = probe.kept(place, longest, reference, grown=True)
        for number, halo in enumerate(halos, 1):
            reached(MEASURING, f"halo {halo}", done + number, steps)
            size = probe.window(halo)
            got = probe.kept(place, size, halo)
            beside = probe.part_of(want, size, halo)
            differences[halo].append(np.abs(got - beside).ravel())
        done += 1 + len(halos)
    reached(MEASURING, "", steps, steps)
    joined = [np.concatenate(differences[halo]) for halo in halos]
    return ErrorCurve(
        halos,
        tuple(float(all_.max()) for all_ in joined),
        tuple(float(all_.mean()) for all_ in joined),
        tuple(float(np.quantile(all_, 0.999)) for all_ in joined),
        reference,
        exact is not None,
        float(probe.white),
    )


def pixels_to_measure(exact: int, halos: tuple[int, ...], windows: int = WINDOWS) -> int:
    """About how many input pixels `measured_curve` processes."""
    grown = REGION + 2 * max(halos) + 2 * exact
    return windows * (grown**2 + sum((REGION + 2 * halo) ** 2 for halo in halos))


def _small_windows(image: Image, knowledge: Knowledge, options: Options) -> Probe:
    tile = max(REGION, *(2 * one for one in options.phase), *options.needs.least)
    own = {"tile_size": tile, "halo": 0, "overlap": 0, "batch_size": 1, "boundary": "reflect", "memory_limit": None}
    knowledge = knowledge.for_windows(replace(options, **own, out=None, progress=None, verify=0))
    info = knowledge.inspected() if options.global_stats else None
    report = RunInfo.given(knowledge.options, info)
    prepared = ready_for_windows(image, knowledge, knowledge.options, report, options.out_dtype)
    rows, columns = (-(-tile // step) * step for step in options.phase)
    return Probe(prepared, (rows, columns))


def with_seams(prepared: Prepared) -> Prepared:
    """Adds the difference between neighbouring tiles to the report if each has its own statistics."""
    report = prepared.report
    if report.how != "tile" or report.bound is not None:
        return prepared
    options = replace(prepared.options, batch_size=1, boundary="reflect")
    apart = _seam_error(replace(prepared, options=options))
    operations = () if report.model is None else report.model.global_operations
    names = ", ".join(one.path or "the model" for one in operations)
    white = prepared.out_values.numbers[0]
    why = f"{report.why}; {names} of every tile for itself: where it was measured, tiles are {apart:.3g} of {white:g} "
    return replace(prepared, report=replace(report, bound=apart, why=f"{why}apart"))


def _seam_error(prepared: Prepared) -> float:
    """The largest difference between overlapping windows of the run's size, outside their halos, in image units."""
    plan = prepared.plan
    if len(plan) == 1:
        return 0.0
    rows, columns = (window - 2 * halo for window, halo in zip(plan.window, plan.halo, strict=True))
    probe = Probe(prepared, (rows, columns))
    largest = 0.0
    size, halo = plan.window, max(plan.halo)
    shift = tuple(side // 2 // step * step for side, step in zip(probe.side, probe.phase, strict=True))
    for place in probe.places(WINDOWS):
        one = probe.kept(place, size, halo)
        other = probe.kept((place[0] + shift[0], place[1] + shift[1]), size, halo)
        y, x = (int(step * scale) for step, scale in zip(shift, plan.scales, strict=True))
        height, width = one.shape[1] - y, one.shape[2] - x
        if height > 0 and width > 0:
            largest = max(largest, float(np.abs(one[:, y:, x:] - other[:, :height, :width]).max()))
    return largest


class Probe:
    """Runs windows anywhere in an image, with any halo.

    side: of the compared regions, input pixels.
    """

    def __init__(self, prepared: Prepared, side: Pair):
        self.prepared, self.image, self.plan = prepared, prepared.image, prepared.plan
        self.phase: Pair = prepared.options.phase
        self.white = prepared.out_values.numbers[0]
        self.side = side

    def places(self, count: int) -> list[Pair]:
        """Corners of regions, multiples of the phase: half where the image has most detail, half anywhere."""
        height, width = self.image.size
        rows, columns = (
            range(0, max(1, size - side + 1), step)
            for size, side, step in zip((height, width), self.side, self.phase, strict=True)
        )
        random = np.random.default_rng(0)
        draws = [(int(random.choice(rows)), int(random.choice(columns))) for _ in range(16 * count)]
        by_detail = sorted(draws[count:], key=self._detail, reverse=True) if self.image.on_host else draws
        return list(dict.fromkeys(by_detail[: (count + 1) // 2] + draws))[:count]

    def _detail(self, place: tuple[int, int]) -> float:
        y, x = place
        region = self.image.rows(0, y, y + self.side[0])[:, :, x : x + self.side[1]]
        if region.dtype == np.uint16 and self.image.dtype == "bfloat16":
            return 0.0
        return float(np.std(region.astype(np.float32)))

    def window(self, halo: int) -> Pair:
        height, width = (side + -(-2 * halo // one) * one for side, one in zip(self.side, self.phase, strict=True))
        return height, width

    def kept(self, place: Pair, size: Pair, halo: int, grown: bool = False) -> np.ndarray:
        """The result of a window, cropped by the halo: (C, h, w), image units.

        grown: enlarge the window by the halo, rounded up to the phase, so that the result covers all of `size`.
        """
        leads = [-(-halo // one) * one if grown else 0 for one in self.phase]
        start = [at - lead for at, lead in zip(place, leads, strict=True)]
        grown_size = [side + 2 * lead for side, lead in zip(size, leads, strict=True)]
        tile = replace(self.plan[0], window=Box(*start, *grown_size))
        windows = self.prepared.windows
        with turn(windows.engine.device):
            output = as_floats(windows(self.prepared.traits.parts[0], 0, self.plan, [tile])[0])
        crops = leads if grown else [halo, halo]
        pixels = [side if grown else side - 2 * halo for side in size]
        scales, trim = self.plan.scales, self.plan.trim
        y, x = (int(crop * scale) - lost for crop, scale, lost in zip(crops, scales, trim, strict=True))
        height, width = (int(side * scale) for side, scale in zip(pixels, scales, strict=True))
        low, high = self.prepared.options.value_range or (0.0, 1.0)
        return (output[:, max(y, 0) : y + height, max(x, 0) : x + width] - low) / (high - low) * self.white

    def part_of(self, whole: np.ndarray, size: Pair, halo: int) -> np.ndarray:
        """The part of a grown result that matches a window of `size` cropped by its halo."""
        y, x = (int(halo * scale) for scale in self.plan.scales)
        height, width = (int((side - 2 * halo) * scale) for side, scale in zip(size, self.plan.scales, strict=True))
        return whole[:, y : y + height, x : x + width]
