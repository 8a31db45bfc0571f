# SPDX-License-Identifier: MIT
"""error_curve(): how far a halo is from exact, on real content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np

from ..auto.halo import HOLDING
from ..images.image import peak_of
from ..images.values import as_floats
from ..options import HalolessOptions, RunOptions, integer
from ..plan import Box, TilePlan

__all__ = ["ErrorCurve", "Probe", "error_curve"]

HALOS = (0, 8, 16, 24, 32, 48, 64, 96, 128)
Pair = tuple[int, int]

REGION = 96  # input pixels along each side of what is compared, at least
WINDOWS = 4


@dataclass(frozen=True)
class ErrorCurve:
    """Differences from a result with `reference` pixels of halo, in units of the image's dtype (grey levels for
    integers), over a few windows.

    Attributes:
        halos: input pixels.
        largest, mean, p999: of each halo: the largest difference, their mean, their 99.9th percentile.
        reference: the halo that is compared with, input pixels: the receptive field, or the most that was tried.
        exact: whether the reference is the receptive field.
        white: the value that stands for white.
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

    def plot(self, axes: Any = None) -> Any:
        """Draws the curve, on new matplotlib axes if none are given; returns the axes. Needs matplotlib."""
        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.figure().add_subplot()
        for name, values in (("largest", self.largest), ("99.9 %", self.p999), ("mean", self.mean)):
            axes.plot(self.halos, np.maximum(values, self.white * 1e-8), marker="o", label=name)
        axes.axhline(self.white / 510, linestyle=":", label="half an 8-bit step")
        axes.set(xlabel="halo, input pixels", ylabel=f"difference, of {self.white:g}", yscale="log")
        axes.legend()
        return axes


def error_curve(
    model: Callable[..., Any],
    image: Any,
    *,
    halos: Sequence[int] | None = None,
    windows: int = WINDOWS,
    **options: Unpack[HalolessOptions],
) -> ErrorCurve:
    """How far halos are from exact, measured where the image has most detail.

    Args:
        model, image: as for `restore_tiled`.

    Keyword Args:
        halos: to try, input pixels. None: 0 to 128.
        windows: how many places of the image are looked at.
        options: as for `restore_tiled`: phase, value_range, device, ...; phase None is found out. With global_stats
            "frozen" or "exact" statistics are held fixed; else windows differ by their own, whatever the halo.

    Raises:
        ValueError, TypeError: a bad option. TileError: the model fails.
    """
    from ..inspection.known import known_model
    from ..restore import TiledRestorer

    if "halo" in options:
        raise TypeError("halo must not be given: halos= are what is tried")
    tried = tuple(integer("halos", halo, 0) for halo in (HALOS if halos is None else halos))
    if not tried:
        raise ValueError("halos must name at least one, not none")
    count = integer("windows", windows, 1)
    info = known_model(model, options.get("device"), options.get("dtype"))
    holds = options.get("global_stats") in HOLDING and bool(info.global_operations)
    rows, columns = (one or 1 for one in np.broadcast_to(options.get("phase") or info.phase, 2).tolist())
    given: RunOptions = {**options, "halo": 0, "phase": (rows, columns), "global_stats": "frozen" if holds else None}
    restorer = TiledRestorer(model, **given)
    restorer._inspected = info
    field = info.local_field if holds else info.receptive_field
    return measured_curve(restorer, image, field and max(field.halo), tried, count)


def measured_curve(
    restorer: Any, image: Any, exact: int | None, halos: tuple[int, ...], windows: int = WINDOWS
) -> ErrorCurve:
    """The curve for a restorer's options; exact: the halo that is, if one is known."""
    reference = max(halos) * 2 if exact is None else exact
    probe = Probe(restorer, image)
    longest = probe.window(max(halos))
    differences: dict[int, list[np.ndarray]] = {halo: [] for halo in halos}
    for place in probe.places(windows):
        want = probe.kept(place, longest, reference, grown=True)
        for halo in halos:
            size = probe.window(halo)
            got = probe.kept(place, size, halo)
            beside = probe.part_of(want, size, halo)
            differences[halo].append(np.abs(got - beside).ravel())
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


def seam_error(restorer: Any, image: Any) -> float:
    """How far windows of a run's own size are apart where both have their halo: largest difference, image units."""
    probe = Probe(restorer, image, as_planned=True)
    if len(probe.plan) == 1:
        return 0.0
    largest = 0.0
    size, halo = probe.plan.window, max(probe.plan.halo)
    shift = tuple(side // 2 // step * step for side, step in zip(probe.side, probe.phase, strict=True))
    for place in probe.places(WINDOWS):
        one = probe.kept(place, size, halo)
        other = probe.kept((place[0] + shift[0], place[1] + shift[1]), size, halo)
        y, x = (int(step * probe.plan.scale) for step in shift)
        height, width = one.shape[1] - y, one.shape[2] - x
        if height > 0 and width > 0:
            largest = max(largest, float(np.abs(one[:, y:, x:] - other[:, :height, :width]).max()))
    return largest


class Probe:
    """Runs a restorer's model on windows anywhere in an image, with any halo.

    as_planned: with the windows that the restorer's options ask for; else with small ones."""

    def __init__(self, restorer: Any, image: Any, as_planned: bool = False):
        from ..auto.halo import RunInfo
        from ..run.progress import Progress
        from ..run.run import Run

        self.phase = restorer.options.phase
        tile = max(REGION, *(2 * one for one in self.phase), *restorer.options.needs.least)
        options = replace(restorer.options, batch_size=1, boundary="reflect", out=None, progress=None, verify=0)
        if not as_planned:
            options = replace(options, tile_size=tile, halo=0, overlap=0)
        self.image = restorer.open(image)
        known = RunInfo.given(options, restorer.inspected() if options.global_stats else None)
        self.run = Run(restorer.like(options), self.image, restorer.options.out_dtype, known)
        self.run.start(Progress(None))
        self.run.hold(0)
        self.plan: TilePlan = self.run.plan
        self.part = self.run.facts.parts[0]
        self.white = peak_of(self.run.out_dtype)
        self.side = [-(-tile // one) * one for one in self.phase]
        if as_planned:
            self.side = [window - 2 * halo for window, halo in zip(self.plan.window, self.plan.halo, strict=True)]

    def places(self, count: int) -> list[Pair]:
        """Corners of regions, multiples of the phase: half of them where the image has most detail, half anywhere."""
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
        """The size of a window that leaves a region when its halo is cropped: a multiple of the phase."""
        height, width = (side + -(-2 * halo // one) * one for side, one in zip(self.side, self.phase, strict=True))
        return height, width

    def kept(self, place: Pair, size: Pair, halo: int, grown: bool = False) -> np.ndarray:
        """What is left of a window at a place when the halo is cropped: (C, h, w), image units.

        grown: the window is larger by the halo, rounded up to the phase, on every side, so that all of `size` is left.
        """
        leads = [-(-halo // one) * one if grown else 0 for one in self.phase]
        start = [at - lead for at, lead in zip(place, leads, strict=True)]
        grown_size = [side + 2 * lead for side, lead in zip(size, leads, strict=True)]
        tile = replace(self.plan[0], window=Box(*start, *grown_size))
        output = as_floats(self.run.forward(self.part, 0, self.plan, [tile])[0])
        crops = leads if grown else [halo, halo]
        pixels = [side if grown else side - 2 * halo for side in size]
        y, x = (int(crop * self.plan.scale) - lost for crop, lost in zip(crops, self.plan.loss, strict=True))
        height, width = (int(side * self.plan.scale) for side in pixels)
        low, high = self.run.options.value_range or (0.0, 1.0)
        return (output[:, max(y, 0) : y + height, max(x, 0) : x + width] - low) / (high - low) * self.white

    def part_of(self, whole: np.ndarray, size: Pair, halo: int) -> np.ndarray:
        """The part of a grown window's result that belongs to a window of `size` and its halo."""
        at = int(halo * self.plan.scale)
        height, width = (int((side - 2 * halo) * self.plan.scale) for side in size)
        return whole[:, at : at + height, at : at + width]
