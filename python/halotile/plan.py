# SPDX-License-Identifier: MIT
"""The plan: where each tile is read, what is kept of its output, and when rows are complete. Runs no model."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, Unpack, overload

import numpy as np

from . import _core
from .images.shown import picture_of
from .layouts import layout_of, with_standard_names
from .notebook.plots import plotted_tiles
from .notebook.png import data_uri
from .notebook.svg import Drawing, card
from .notebook.tiles import Tiles, tiles_svg
from .option_checks import choice, dtype_name, integer
from .options import (
    BLENDS,
    DEFAULT_TILE,
    ENGINES,
    IMAGE_DTYPES,
    MODEL_DTYPES,
    Options,
    PlanOptions,
    windowed,
)
from .scales import Scale, by_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Box", "Tile", "TilePlan", "make_plan", "plan_of_rows", "plan_tiles"]

THUMBNAIL = 600  # largest side of a picture below tiles, pixels

BYTES = {"uint8": 1, "uint16": 2, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Box(NamedTuple):
    """Pixels ``[y, y + height) x [x, x + width)``."""

    y: int
    x: int
    height: int
    width: int

    @property
    def y_stop(self) -> int:
        return self.y + self.height

    @property
    def x_stop(self) -> int:
        return self.x + self.width


@dataclass(frozen=True, slots=True)
class Tile:
    """One forward pass.

    Attributes:
        window: the model's input, input pixels; extends beyond the image where it is reflected or wrapped around.
        keep: the region that its output contributes to, output pixels.
        exclusive: the part of keep to which no other tile contributes, output pixels.
        crop: where keep starts inside the model's output for this window, output pixels (y, x).
    """

    index: int
    row: int
    column: int
    window: Box
    keep: Box
    exclusive: Box
    crop: tuple[int, int]


class TilePlan(Sequence[Tile]):
    """The tiles of one image, in the order they run (row-major). Immutable.

    Attributes:
        image_size, output_size: (height, width) in input and output pixels.
        grid: number of tiles (rows, columns).
        window: (height, width) of every window, input pixels.
        window_output: (height, width) of the model's output for a window, output pixels.
        tile: (height, width) of a window without its halo, within the image, input pixels.
        halo, phase: effective (rows, columns), input pixels: halo is rounded up to a multiple of the scale's
            denominator, phase is the least common multiple with it.
        overlap: minimum overlap of neighbours (rows, columns), input pixels.
        scale: output pixels per input pixel; a pair (rows, columns) where they differ.
        scales: the same, always a pair.
        trim: output pixels that the model's valid convolutions remove at each end (rows, columns). It is symmetric, as
            for convolutions; a model that crops unevenly shifts the image.
        boundary, blend: as in the options.
        shift: input pixels (rows, columns) that windows begin earlier than those of an ordinary plan.

    >>> plan = plan_tiles((100, 200), tile_size=64, halo=8)
    >>> plan.grid, plan.window, plan[0].keep
    ((2, 4), (70, 72), Box(y=0, x=0, height=54, width=56))
    """

    def __init__(
        self,
        options: Options,
        size: tuple[int, int],
        scale: Scale,
        trim: tuple[int, int],
        least: tuple[int, int] = (0, 0),
        shift: tuple[int, int] = (0, 0),
    ):
        rows, columns = by_axis(scale)
        self.core = _core.Plan(
            size=size,
            tile=options.tile_size,
            halo=options.halo,
            overlap=options.overlap_pixels,
            phase=options.phase,
            scale=((rows.numerator, rows.denominator), (columns.numerator, columns.denominator)),
            trim=trim,
            boundary=int(options.boundary == "native"),  # wrapped windows lie as reflected ones do
            blend=BLENDS.index(options.blend),
            least=least,
            shift=shift,
        )
        self._made_of = (options, size, scale, trim, least, shift)
        self.shift: tuple[int, int] = shift
        self.boundary, self.blend = options.boundary, options.blend
        self.overlap: tuple[int, int] = options.overlap_pixels
        self.scale, self.scales, self.trim = scale, by_axis(scale), trim
        self.image_size: tuple[int, int] = self.core.image_size
        self.output_size: tuple[int, int] = self.core.output_size
        self.grid: tuple[int, int] = self.core.grid
        self.window: tuple[int, int] = self.core.window
        self.halo: tuple[int, int] = self.core.halo
        self.phase: tuple[int, int] = self.core.phase
        self.window_output: tuple[int, int] = self.core.window_output

    @property
    def tile(self) -> tuple[int, int]:
        height, width = (
            min(window - 2 * halo if count > 1 else size, size)
            for window, halo, count, size in zip(self.window, self.halo, self.grid, self.image_size, strict=True)
        )
        return height, width

    def __reduce__(self) -> tuple[Any, ...]:
        options, *rest = self._made_of
        return TilePlan, (replace(options, out=None, progress=None, device=None), *rest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TilePlan):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        options, *rest = self._made_of
        names = ("tile_size", "halo", "overlap_pixels", "phase", "boundary", "blend")
        return (*(getattr(options, name) for name in names), *rest)

    def __len__(self) -> int:
        return self.core.count

    @overload
    def __getitem__(self, index: SupportsIndex) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Tile | list[Tile]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # negative indices and IndexError
        row, column, window, keep, exclusive, crop = self.core.tile(i)
        return Tile(i, row, column, Box(*window), Box(*keep), Box(*exclusive), crop)

    def shifted(self, shift: tuple[int, int]) -> TilePlan:
        """The same windows, up to so many input pixels earlier (rows, columns), where an axis has several. The steps
        are multiples of the phase below those between windows."""
        options, size, scale, trim, least, _ = self._made_of
        most = (max(0, self.core.starts(axis)[1] - self.phase[axis]) for axis in (0, 1))
        rows, columns = (min(by // step * step, bound) for by, step, bound in zip(shift, self.phase, most, strict=True))
        return TilePlan(options, size, scale, trim, least, (rows, columns))

    def batch(self, size: int) -> int:
        """Windows per model call: at most `size`, as even as possible, so that few tiles are repeated to fill the last
        batch."""
        calls = -(-len(self) // size)
        return -(-len(self) // calls)

    def batches(self, size: int, first: int = 0) -> Iterator[list[Tile]]:
        """Batches of `size` tiles from `first` on, in order; the last may be smaller."""
        for start in range(first, len(self), size):
            yield self[start : start + size]

    def row(self, row: int) -> list[Tile]:
        """The tiles of a tile row."""
        columns = self.grid[1]
        return self[row * columns : (row + 1) * columns]

    def rows_in_progress(self, batch: int, first_row: int = 0) -> int:
        """Largest number of output rows from the first unfinished one to the last that a batch contributes to."""
        return self.core.rows_in_progress(batch, first_row)

    def tallest_band(self) -> int:
        """Largest number of output rows finished by one tile row."""
        return self.core.tallest_band()

    def rows_at_once(self, batch: int) -> int:
        """Largest number of tile rows in one batch."""
        if self.grid[1] % batch == 0:
            return 1
        return min(self.grid[0], -(-(batch - 1) // self.grid[1]) + 1)

    def rows_complete(self, index: int) -> int:
        """Number of output rows, from the top, complete once tiles 0 .. index have run."""
        return self.core.rows_complete(index)

    def weights(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """Blending weights of a tile over its keep box: float32 (height,) and (width,). The weight of a pixel is their
        product."""
        return self.core.weights(0, tile.row), self.core.weights(1, tile.column)

    def normaliser(self, axis: int) -> np.ndarray:
        """The sum of all blending weights along axis 0 (rows) or 1 (columns): float32, output pixels."""
        return self.core.normaliser(axis, 0, self.output_size[axis])

    def weight_map(self) -> np.ndarray:
        """The sum of all blending weights at every output pixel: float32 (height, width). For inspection; runs never
        build it."""
        return np.outer(self.normaliser(0), self.normaliser(1))

    @property
    def processed_pixels(self) -> int:
        """Input pixels that pass through the model."""
        return len(self) * self.window[0] * self.window[1]

    @property
    def ideal_pixels(self) -> int:
        """Input pixels of the image."""
        return self.image_size[0] * self.image_size[1]

    def estimate_bytes(
        self,
        *,
        channels: int = 3,
        out_channels: int | None = None,
        dtype: str = "uint8",
        out_dtype: str | None = None,
        model_dtype: str = "float32",
        batch_size: int = 1,
        engine: str = "host",
    ) -> dict[str, int]:
        """Bytes that a run needs besides the model's weights and activations, by part and in total.

        With the engines torch and mps, everything except "output" is on the device, and "rows" holds finished rows.
        """
        channels = integer("channels", channels, 1)
        out_channels = channels if out_channels is None else integer("out_channels", out_channels, 1)
        batch_size = integer("batch_size", batch_size, 1)
        dtype = dtype_name("dtype", dtype, IMAGE_DTYPES) or "uint8"
        out_dtype = dtype_name("out_dtype", out_dtype, IMAGE_DTYPES) or dtype
        model_dtype = dtype_name("model_dtype", model_dtype, MODEL_DTYPES) or "float32"
        window = self.window[0] * self.window[1] * batch_size * BYTES[model_dtype]
        parts = {
            "image": self.ideal_pixels * channels * BYTES[dtype],
            "windows": window * channels,
            "model output": int(window * self.scales[0] * self.scales[1]) * out_channels,
        }
        if choice("engine", engine, ENGINES) == "host":
            parts["sums"] = self.core.band_floats(out_channels) * 4
        else:
            ring = self.rows_in_progress(self.batch(batch_size))
            row = self.output_size[1] * out_channels
            parts["sums"] = ring * row * 4
            parts["rows"] = self.tallest_band() * row * BYTES[out_dtype]
        parts["output"] = self.output_size[0] * self.output_size[1] * out_channels * BYTES[out_dtype]
        return parts | {"total": sum(parts.values())}

    def _drawing(self) -> Tiles:
        """What a picture of the plan shows, in input pixels."""
        scale, (rows, columns) = float(self.scale), self.grid
        kept = [
            [
                (start / scale, stop / scale)
                for start, stop, *_ in (self.core.keep(axis, i) for i in range(self.grid[axis]))
            ]
            for axis in (0, 1)
        ]
        tile = self[rows // 2 * columns + columns // 2]
        y, x, height, width = (side / scale for side in tile.keep)
        return Tiles(self.image_size, kept[0], kept[1], tile.window, (y, x, height, width))

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what a report tells of the plan."""
        by = "{0[0]} x {0[1]}".format
        return [
            ("image", f"{by(self.image_size)} -> {by(self.output_size)} (rows x columns)"),
            ("tiles", f"{len(self)} in a grid of {by(self.grid)}, up to {by(self.tile)} each"),
            ("window", by(self.window)),
            ("halo", f"{by(self.halo)}, {self.boundary} at the border"),
            ("overlap", f"{by(self.overlap)}, {self.blend}"),
            ("phase", by(self.phase)),
            ("cost", f"{self.processed_pixels / self.ideal_pixels:.2f} of the image's pixels"),
        ]

    def _repr_html_(self) -> str:
        return card("tiles", self.facts(), self.picture())

    def picture(self) -> str:
        """A drawing of the tiles, as SVG."""
        return tiles_svg(self._drawing())

    def over(self, image: Any, *, layout: str | None = None) -> Drawing:
        """The tiles over a small picture of the image, for notebooks. layout: as for `restore_tiled`."""
        picture = picture_of("image", image, THUMBNAIL, layout)
        tall, wide = picture.shape[:2]
        if not 0.9 < wide / tall * self.image_size[0] / self.image_size[1] < 1.1:
            by = "{0[0]}x{0[1]}".format
            text = f"image must have the proportions of {by(self.image_size)} (height x width), not {by(picture.shape)}"
            raise ValueError(text)
        return Drawing("tiles", tiles_svg(self._drawing(), picture=data_uri(picture)))

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plots the tiles on the given matplotlib axes, or on new ones, over whatever they show, and returns the axes.
        Pixels are those of the input: ``axes.imshow(image)`` fits. Needs matplotlib."""
        return plotted_tiles(self._drawing(), axes)

    def __repr__(self) -> str:
        by = "{0[0]}x{0[1]}".format
        return (
            f"<TilePlan {by(self.image_size)} -> {by(self.output_size)} (height x width): {by(self.grid)} tiles, "
            f"window {by(self.window)}, halo {by(self.halo)}, overlap {by(self.overlap)}, phase {by(self.phase)}, "
            f"{self.boundary}, {self.processed_pixels / self.ideal_pixels:.2f} of the image's pixels processed>"
        )


def make_plan(
    options: Options, size: tuple[int, int], scale: Scale | None = None, trim: tuple[int, int] = (0, 0)
) -> TilePlan:
    if options.unsettled:
        raise ValueError("halo and phase must be numbers here: no model is asked")
    if options.tile_size == "auto":  # no device is known here
        options = replace(options, tile_size=DEFAULT_TILE)
    scale = scale or options.scale or Fraction(1)
    needs = options.needs
    options = needs.planned(options, scale)
    plan = TilePlan(options, size, scale, trim, needs.least)
    if needs.square and plan.window[0] != plan.window[1]:
        plan = TilePlan(options, size, scale, trim, (max(plan.window),) * 2)
    return plan


def plan_of_rows(height: int, width: int) -> TilePlan:
    """A plan of one tile, which covers rows that are finished at once."""
    options = Options(tile_size=(height, width), halo=0, phase=1, overlap=0, boundary="native")
    return TilePlan(options, (height, width), Fraction(1), (0, 0))


def _size_of(shape: Any, layout: str | None) -> tuple[int, int]:
    try:
        sides = tuple(operator.index(side) for side in shape)
    except TypeError:
        raise TypeError(f"shape must be a tuple such as (height, width, channels), not {shape!r}") from None
    found = layout_of("shape", sides, channels_first=False) if layout is None else with_standard_names(layout)
    if found is None or len(found) != len(sides):
        raise ValueError(f"shape must have {len(found) if found else '2 to 4'} sides, not {shape!r}")
    if min(sides) < 1:
        raise ValueError(f"shape must have sides of at least 1, not {shape!r}")
    return sides[found.index("H")], sides[found.index("W")]


def plan_tiles(shape: Sequence[int], **options: Unpack[PlanOptions]) -> TilePlan:
    """The plan that `restore_tiled` would use for an image of this shape, without running a model.

    Args:
        shape: ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, or as ``layout`` says; an ambiguous shape is rejected.
        options: as for `restore_tiled`. ``scale`` and ``phase`` default to 1, since there is no model. ``needs``, a
            `halotile.models.needs.Needs`: constraints on windows from a model file.

    Raises:
        ValueError, TypeError: naming the option, its value and what is allowed.

    >>> plan_tiles((2160, 3840, 3), scale=4).grid
    (5, 8)
    """
    checked = Options.of({"phase": 1, **options})
    if checked.window == "trained":
        raise ValueError("window must be a number or a pair (rows, columns) here, not 'trained': no model is asked")
    if checked.window is not None:
        checked = Options.of(windowed({"phase": 1, **options}, checked.window, checked.needs, lambda: None))
    return make_plan(checked, _size_of(shape, checked.layout))
