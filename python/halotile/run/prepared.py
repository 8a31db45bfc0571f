# SPDX-License-Identifier: MIT
"""A run before and after its first batch: frozen values that say what is done and why.

Opened     an image and its model, with numbers for halo and phase
Prepared   the same with the traits from the first batch; everything is decided
Schedule   turns a prepared image into finished rows
Sink       receives the rows
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from ..images.channels import Part
from ..images.image import Image
from ..images.scan import alpha_of
from ..images.values import Values
from ..options import Options
from ..plan import Tile, TilePlan, make_plan
from ..scales import Scale
from .again import Again
from .devices import Devices
from .progress import Progress
from .reduction import Reduction
from .report import RunInfo
from .together import images_together
from .traits import Traits
from .windows import Windows

__all__ = ["Delivery", "First", "Opened", "Prepared", "Schedule", "Sink"]

Pair = tuple[int, int]
Stage = TypeVar("Stage", bound="Prepared")
First = dict[Part, Any]  # outputs of the first batch, reused by the run: whoever uses one removes it


class Made(NamedTuple):
    """A result: its channels, its dtype, and whether it has no axis of channels."""

    channels: int
    dtype: str
    flat: bool = False


class Sink(Protocol):
    """Attributes:
    keeps: whether finished rows outlive a run that fails: they must be known to be good.
    """

    keeps: bool

    def finished(self, index: int) -> int:
        """Rows of image `index`, from the top, that an earlier run has made and that are not asked for again."""

    def rows(self, index: int, start: int, stop: int) -> Any:
        """The array or tensor (C, rows, W) for rows [start, stop) of image `index`. Rows are requested in order and
        once, again only after memory ran out."""

    def done(self, index: int, start: int, stop: int) -> None:
        """Marks the rows as finished."""


class Schedule(Protocol):
    @property
    def name(self) -> str:
        """ "tiles" or "stream", as the option of that name."""

    def rows(
        self, prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
    ) -> Iterator[int]:
        """Yields the number of finished rows of image `index` whenever it grows, starting from `rows_done`.

        Raises:
            TileError: the model failed. RuntimeError, MemoryError: memory ran out; a smaller `prepared` can continue.
        """

    def tiles_from(self, prepared: Prepared, rows_done: int) -> int:
        """Number of remaining tiles of an image, for progress."""

    def smaller(self, prepared: Stage) -> tuple[Stage, str] | None:
        """The run in less memory, and in words with what it was out of memory and how it goes on; None if there is no
        way."""


@dataclass(frozen=True)
class Delivery:
    """Memory needed to deliver the result.

    Attributes:
        holds_result: whether the run allocates the whole result.
        bands_waiting: maximum number of finished bands in the queue, besides those in progress; None if rows are
            written in place.
        bytes_beside: bytes that the consumer of rows holds, for a result of shape (height, width, channels).
    """

    holds_result: bool = False
    bands_waiting: int | None = None
    bytes_beside: Callable[[tuple[int, ...]], int] = lambda shape: 0


@dataclass(frozen=True)
class Opened:
    """Attributes:
    image: one image, or several of one size.
    out_dtype: dtype of finished rows; the result's, unless they are reduced.
    options: options with numbers for halo and phase.
    report: how they were chosen.
    windows: runs the image's windows through the model.
    """

    image: Image
    out_dtype: str
    options: Options
    report: RunInfo
    windows: Windows

    def planned(self, scale: Scale | None = None, trim: Pair = (0, 0)) -> TilePlan:
        return make_plan(self.options, self.image.size, scale or self.options.scale, trim)

    @cached_property
    def plan(self) -> TilePlan:
        return self.planned()

    def with_tiles(self, tile: Pair, batch: int) -> Self:
        return replace(self, options=self.options.with_tiles(tile, batch, self.plan.phase))

    @property
    def keeps_heap(self) -> bool:
        """Whether to keep the heap: only if malloc allocates the model's activations."""
        return self.options.keep_heap and self.windows.on_cpu

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """(windows, channels, height, width) of a model call."""
        windows = self.plan.batch(self.options.batch_size) * self.together
        return (windows, self.windows.channels, *self.plan.window)

    @property
    def together(self) -> int:
        """How many images go through the model in one call."""
        return images_together(self.image, self.options, self.plan)


@dataclass(frozen=True)
class Prepared(Opened):
    """Attributes:
    traits: what the first batch revealed about the model.
    schedule: produces the rows.
    devices: None for one device.
    again: with on_nonfinite="retry", what makes windows again.
    reduction: what finished rows are reduced by, if they are.
    """

    traits: Traits = field(kw_only=True)
    schedule: Schedule = field(kw_only=True)
    devices: Devices | None = None
    again: Again | None = None
    reduction: Reduction | None = None

    @classmethod
    def of(cls, opened: Opened, traits: Traits, schedule: Schedule) -> Prepared:
        opened.windows.resize_by(traits.parts, traits.scale, traits.trim)
        same = (opened.image, opened.out_dtype, opened.options, opened.report, opened.windows)
        return cls(*same, traits=traits, schedule=schedule)

    @cached_property
    def plan(self) -> TilePlan:
        return self.planned(self.traits.scale, self.traits.trim)

    @property
    def batch(self) -> int:
        return self.plan.batch(self.options.batch_size)

    @property
    def channels(self) -> int:
        return sum(self.traits.out_channels)

    @property
    def made(self) -> Made:
        """What the result is."""
        if self.reduction is None:
            return Made(self.channels, self.out_dtype)
        return Made(self.reduction.channels, self.reduction.dtype, self.reduction.flat)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """A row of the result in a file: (W,) or (W, C)."""
        made, width = self.made, self.plan.output_size[1]
        has_axis = made.channels > 1 or ("C" in self.image.layout and not made.flat)
        return (width, made.channels) if has_axis else (width,)

    @property
    def out_values(self) -> Values:
        if self.options.reduce is not None:  # as the model makes them
            return Values(self.out_dtype, None)
        peak = None if self.traits.makes_data else self.image.peak_in(self.out_dtype)
        return Values(self.out_dtype, self.options.value_range, peak)

    def parts_of(self, index: int) -> tuple[Part, ...]:
        """The parts of image `index`. A constant alpha channel bypasses the model."""
        parts = self.traits.parts
        if not parts[-1].alpha or parts[-1].how == "constant":
            return parts
        constant = alpha_of(self.image, index).constant
        return parts if constant is None else (*parts[:-1], replace(parts[-1], how="constant", value=constant))

    @cached_property
    def ahead(self) -> dict[tuple[Part, int], Any]:
        """Outputs of later images that went through the model with an earlier one."""
        return {}

    def full(self, tiles: list[Tile]) -> list[Tile]:
        """Fills up an incomplete batch with earlier tiles, so that every call has the same shape."""
        stop = tiles[-1].index + 1
        return self.plan[max(0, stop - self.batch) : stop]
