# SPDX-License-Identifier: MIT
"""Image comparison: PSNR, SSIM, differences, seam score, and a heatmap of the differences.

The functions take NumPy arrays and torch tensors in the layouts and dtypes of `restore_tiled`. They compute in float64
on the CPU and copy the images, which must fit in memory several times. All channels, including alpha, weigh the same.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .images.image import Image, is_tensor, open_image, peak_of
from .images.shown import floats_of
from .layouts import checked_layout
from .notebook.heat import heat_svg
from .notebook.levels import levels_svg
from .notebook.svg import Printer, card
from .option_checks import white_level
from .plan import TilePlan
from .texts import quoted

__all__ = [
    "Comparison",
    "HeatMap",
    "Largest",
    "compare",
    "heatmap",
    "largest_difference",
    "mae",
    "psnr",
    "seam_score",
    "ssim",
]

SSIM_WINDOW = 11  # window side in pixels for sigma 1.5
UNKNOWN = f"not known: needs scikit-image, and {SSIM_WINDOW} pixels a side"
SHOWN = 300  # largest side of a heat map in a report
NEAR, BESIDE = 1, 16  # lines around a tile edge: those that the edge affects, and those that it is compared with

# Nine equidistant colours of the map, which is nearly linear between them.
HEX = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
VIRIDIS = [tuple(bytes.fromhex(colour)) for colour in HEX]


class Largest(NamedTuple):
    """The largest difference of two images and its position: image of a batch, row, column, channel."""

    value: float
    image: int
    row: int
    column: int
    channel: int


class HeatMap(NamedTuple):
    """Differences of two images as a picture, uint8 (H, W, 3), and the difference that is shown as yellow."""

    picture: np.ndarray
    scale: float

    def svg(self) -> str:
        """The picture beside its scale of colours."""
        return heat_svg(self.picture, _viridis(), self.scale, "differences of two images")

    def _repr_html_(self) -> str:
        size = f"{self.picture.shape[0]} x {self.picture.shape[1]}"
        return card("differences", [("size", size), ("yellow", f"{self.scale:.6g} and above")], self.svg())


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`. Differences are in units of the images, whose white is `data_range`.

    Attributes:
        psnr: in dB, infinite for equal images.
        ssim: None if scikit-image is not installed or the images are too small.
        mae: the mean absolute difference.
        largest: the largest difference, a Largest.
        data_range: the value of white.
        seams: `seam_score` of the first and the second image; None without a plan.
        heat: a small heat map, a HeatMap; None for several images.
    """

    psnr: float
    ssim: float | None
    mae: float
    largest: Largest
    data_range: float
    seams: tuple[float, float] | None = None
    heat: HeatMap | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        where = f"row {self.largest.row}, column {self.largest.column}, channel {self.largest.channel}"
        lines = [
            f"psnr            {self.psnr:.4f} dB",
            f"ssim            {UNKNOWN if self.ssim is None else format(self.ssim, '.6f')}",
            f"mean difference {self.mae:.6g} of {self.data_range:g}",
            f"largest         {self.largest.value:.6g}, at {where}",
        ]
        if self.seams is not None:
            lines.append(f"seam score      {self.seams[1]:.4f}, of the first image {self.seams[0]:.4f}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(name, value.strip()) for name, _, value in (one.partition("  ") for one in self._spaced())]
        levels = [("largest", self.largest.value), ("mean", self.mae)]
        picture = levels_svg(levels, self.data_range, "differences of two images")
        where = "" if self.heat is None or not self.largest.value else f"<div>{self.heat.svg()}</div>"
        return card("comparison", rows, picture + where)

    def _spaced(self) -> list[str]:
        """The lines of the text, each name followed by two spaces at least."""
        return [f"{one[:15]}  {one[15:]}" for one in str(self).splitlines()]

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def as_json(self) -> dict[str, object]:
        """A dict for json.dumps. Non-finite numbers become None: if "equal" is true, a PSNR of None is infinite."""
        seams = None if self.seams is None else {"a": _finite(self.seams[0]), "b": _finite(self.seams[1])}
        return {
            "equal": self.largest.value == 0,
            "psnr": _finite(self.psnr),
            "ssim": _finite(self.ssim),
            "mae": _finite(self.mae),
            "largest": self.largest._asdict() | {"value": _finite(self.largest.value)},
            "data_range": self.data_range,
            "seam_score": seams,
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


# ---- differences -----------------------------------------------------------------------------------------------------


def psnr(a: Any, b: Any, data_range: float | str | None = None) -> float:
    """Peak signal-to-noise ratio: ``10 log10(data_range**2 / mean((a - b)**2))``, dB, over all pixels and channels.

    Args:
        a, b: images of the same shape and dtype, arrays or tensors, as for `restore_tiled`.
        data_range: the value of white: a number, bits such as "12bit" (4095), or "max", the largest value of `a`.
            None: 255 for uint8, 65535 for uint16, 1 for floats.

    Returns:
        The PSNR; infinity for equal images, NaN if either contains NaN.

    Raises:
        ValueError: shapes or dtypes differ, or data_range is not above 0. TypeError: an argument is not an image.
    """
    first, second, data_range = _both(a, b, data_range, _any_layout(a))
    error = float(np.mean(np.square(first - second)))
    if error == 0:
        return math.inf
    return -math.inf if error == math.inf else 10 * math.log10(data_range**2 / error)


def mae(a: Any, b: Any) -> float:
    """The mean absolute difference over all pixels and channels, in units of the images.

    Args and Raises: as for `psnr`.
    """
    first, second, _ = _both(a, b, None, _any_layout(a))
    return float(np.mean(np.abs(first - second)))


def largest_difference(a: Any, b: Any, *, layout: str | None = None) -> Largest:
    """The largest absolute difference, in units of the images, and its first position; NaN counts as the largest.

    Args:
        a, b: as for `psnr`.
        layout: the order of their axes, as for `restore_tiled`.

    Raises:
        ValueError, TypeError: as for `psnr`; ValueError also if the layout is ambiguous.
    """
    first, second, _ = _both(a, b, None, layout)
    difference = np.abs(first - second)
    image, channel, row, column = (int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
    return Largest(float(difference[image, channel, row, column]), image, row, column, channel)


def ssim(a: Any, b: Any, data_range: float | str | None = None, *, layout: str | None = None) -> float:
    """Structural similarity as in Wang et al. 2004: Gaussian windows of 11 pixels with sigma 1.5, K1 0.01, K2 0.03,
    without sample covariance, averaged over channels and over the images of a batch.

    Args:
        a, b, data_range: as for `psnr`.
        layout: the order of their axes, as for `restore_tiled`.

    Raises:
        ValueError: also if the layout is ambiguous, and for images smaller than 11 pixels a side. ImportError: without
            scikit-image.
    """
    first, second, data_range = _both(a, b, data_range, layout)
    if min(first.shape[2:]) < SSIM_WINDOW:
        size = f"{first.shape[2]}x{first.shape[3]}"
        raise ValueError(f"images must have at least {SSIM_WINDOW} pixels a side for SSIM, not {size} (height x width)")
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise ImportError(f"SSIM needs scikit-image: pip install 'halotile[metrics]' ({quoted(error)})") from error
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": data_range}
    planes = zip(first.reshape(-1, *first.shape[2:]), second.reshape(-1, *second.shape[2:]), strict=True)
    return float(np.mean([structural_similarity(*pair, **options) for pair in planes]))


def compare(
    a: Any, b: Any, *, data_range: float | str | None = None, plan: TilePlan | None = None, layout: str | None = None
) -> Comparison:
    """All metrics of this module.

    Args:
        a, b, data_range: as for `psnr`; `a` is the reference.
        plan: the plan of the run that made `b`, for the seam score.
        layout: the order of their axes, as for `restore_tiled`.

    Raises:
        ValueError, TypeError: as for `psnr` and `seam_score`.
    """
    first, second, value = _both(a, b, data_range, layout)
    similarity = None
    with contextlib.suppress(ImportError, ValueError):  # scikit-image is missing, or the images are too small
        similarity = ssim(a, b, value, layout=layout)
    seams = None if plan is None else (seam_score(a, plan, layout=layout), seam_score(b, plan, layout=layout))
    largest = largest_difference(a, b, layout=layout)
    heat = _small_heat(first, second)
    return Comparison(psnr(a, b, value), similarity, mae(a, b), largest, value, seams, heat)


# ---- seams -----------------------------------------------------------------------------------------------------------


def seam_score(
    image: Any, edges: TilePlan | tuple[Sequence[int], Sequence[int]], *, layout: str | None = None
) -> float:
    """The change of an image at tile edges relative to the change beside them; 1.0 means no seams.

    With the step ``s[y] = a[y] - a[y - 1]`` between two rows, the gradient difference at row y is
    ``g[y] = |s[y] - (s[y - 1] + s[y + 1]) / 2|``, the deviation of a step from its neighbours, which is 0 on a slope.
    It is averaged along the row and over channels. A tile edge at y lies between rows y - 1 and y. It is compared with
    the mean of g over rows 2 to 16 away from it that are at least 2 away from any other edge. Columns are treated
    likewise. The score is the sum of g over all edges, weighted by their lengths, divided by the equally weighted sum
    of the means that they are compared with.

    Edges less than 2 pixels from a side of the image, or with no rows to compare with, are skipped. The score is 1.0 if
    both sums are 0 or no edge is left, and infinity if only the edges differ.

    With few edges the score deviates from 1 by some per cent by chance: compare it with the score of an image without
    seams. Steps smaller than the image's own noise hardly affect it.

    Args:
        image: array or tensor, as for `restore_tiled`.
        edges: the plan of the run that made the image, or the (rows, columns) of tile edges in output pixels.
        layout: the order of the image's axes, as for `restore_tiled`.

    Raises:
        ValueError: the layout is ambiguous, the plan is for an image of another size, or an edge lies outside.
        TypeError: the argument is not an image.
    """
    pixels = floats_of(open_image(image, checked_layout(layout)))
    size = pixels.shape[2], pixels.shape[3]
    rows, columns = _edges_of(edges, size) if isinstance(edges, TilePlan) else edges
    at = beside = 0.0
    for axis, places in ((2, rows), (3, columns)):
        where = {int(place) for place in places if place not in (0, size[axis - 2])}
        if where and not 0 < min(where) <= max(where) < size[axis - 2]:
            raise ValueError(f"edges must lie within 0 to {size[axis - 2]} along {AXES[axis]}, not {sorted(where)}")
        here, there = _at_and_beside(_gradient_differences(pixels, axis), where)
        at, beside = at + here * size[3 - axis], beside + there * size[3 - axis]
    if beside == 0:
        return 1.0 if at == 0 else math.inf
    return at / beside


AXES = {2: "rows", 3: "columns"}


def _edges_of(plan: TilePlan, size: tuple[int, int]) -> tuple[set[int], set[int]]:
    if plan.output_size != size:
        by = "{0[0]}x{0[1]}".format
        raise ValueError(f"the plan is for results of {by(plan.output_size)} (height x width), not {by(size)}")
    ends: tuple[set[int], set[int]] = (set(), set())
    for axis in (0, 1):
        for index in range(plan.grid[axis]):
            ends[axis].update(plan.core.keep(axis, index)[:2])
    return ends


def _gradient_differences(pixels: np.ndarray, axis: int) -> np.ndarray:
    """g for every row (axis 2) or column (axis 3); NaN at the image border, where neighbours are missing."""
    steps = np.diff(pixels, axis=axis)
    lines = np.moveaxis(steps, axis, 0)
    found = np.full(pixels.shape[axis], np.nan)
    if len(lines) >= 3:
        inner = np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2)
        found[2:-1] = inner.reshape(len(inner), -1).mean(axis=1)
    return found


def _at_and_beside(found: np.ndarray, edges: set[int]) -> tuple[float, float]:
    """(sum of g at edges, sum of the means that they are compared with)."""
    lines = np.arange(len(found))
    inner = (lines >= 2) & (lines < len(found) - 1)
    near = np.zeros(len(found), bool)
    for edge in edges:
        near |= np.abs(lines - edge) <= NEAR
    at = beside = 0.0
    for edge in sorted(edges):
        compared = inner & ~near & (np.abs(lines - edge) <= BESIDE)
        if inner[edge] and compared.any():
            at += float(found[edge])
            beside += float(found[compared].mean())
    return at, beside


# ---- heatmap ---------------------------------------------------------------------------------------------------------


def heatmap(a: Any, b: Any, scale: float | None = None, *, layout: str | None = None) -> HeatMap:
    """A heatmap of the differences: the largest over channels at each pixel, from dark blue to yellow (viridis).

    Args:
        a, b: as for `psnr`, single images.
        scale: the difference shown as yellow. None: the largest.
        layout: the order of their axes, as for `restore_tiled`.

    Returns:
        The heatmap, uint8 of shape (H, W, 3), and the scale: a tuple that a notebook shows as a picture.

    Raises:
        ValueError, TypeError: as for `largest_difference`; ValueError also for several images, or a scale not above 0.
    """
    first, second, _ = _both(a, b, None, layout)
    if len(first) != 1:
        raise ValueError(f"images must be single ones for a heatmap, not batches of {len(first)}")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a number above 0, not {scale!r}")
    return _heat(np.abs(first - second).max(axis=1)[0], scale)


def _heat(difference: np.ndarray, scale: float | None = None) -> HeatMap:
    difference = np.nan_to_num(difference, nan=np.inf, posinf=np.inf)
    finite = difference[np.isfinite(difference)]
    largest = float(finite.max()) if scale is None and finite.size else scale or 0.0
    share = np.minimum(difference / largest, 1) if largest > 0 else (difference > 0).astype(float)
    return HeatMap(_viridis()[np.rint(share * 255).astype(np.uint8)], largest)


def _small_heat(a: np.ndarray, b: np.ndarray) -> HeatMap | None:
    """Of blocks of pixels, each with its largest difference; None for several images."""
    if len(a) != 1:
        return None
    difference = np.abs(a[0] - b[0]).max(axis=0)
    step = -(-max(difference.shape) // SHOWN)
    for axis in (0, 1):
        difference = np.maximum.reduceat(difference, np.arange(0, difference.shape[axis], step), axis)
    return _heat(difference)


def _viridis() -> np.ndarray:
    at = np.linspace(0, len(VIRIDIS) - 1, 256)
    channels = [np.interp(at, np.arange(len(VIRIDIS)), values) for values in zip(*VIRIDIS, strict=True)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


# ---- images of any kind ----------------------------------------------------------------------------------------------


def _any_layout(image: object) -> str | None:
    """Any layout with as many axes, for metrics that do not depend on their order."""
    return {2: "HW", 3: "HWC", 4: "NHWC"}.get(getattr(image, "ndim", 0))


def _both(a: Any, b: Any, data_range: float | str | None, layout: str | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images as float64 (N, C, H, W), and the data range."""
    layout = checked_layout(layout)
    first, second = _opened("a", a, layout), _opened("b", b, layout)
    a, b = first.original, second.original  # arrays of Pillow's images
    if is_tensor(a) != is_tensor(b):
        raise TypeError(f"images must both be arrays or both be tensors, not {type(a).__name__} and {type(b).__name__}")
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"images must have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    if first.dtype != second.dtype:
        raise ValueError(f"images must have one dtype, not {first.dtype} and {second.dtype}: their data_range differs")
    reference, value = floats_of(first), white_level("data_range", data_range)
    if value == "max":
        value = float(np.nan_to_num(reference, posinf=0).max(initial=0)) or None
    return reference, floats_of(second), float(value or peak_of(first.dtype))


def _opened(name: str, image: Any, layout: str | None) -> Image:
    """Opens an image. Errors call it by the name of its argument."""
    try:
        return open_image(image, layout)
    except (TypeError, ValueError) as error:
        raise type(error)(re.sub(r"\bimage(?=[ .])", name, str(error), count=1)) from None
