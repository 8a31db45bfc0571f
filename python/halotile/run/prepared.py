# SPDX-License-Identifier: MIT
"""What a run is, before and after its first batch: frozen values, which say what is done and why.

Opened     an image and a model that wait for each other: halo and phase are numbers
Prepared   the same with all that the first batch taught: from here on nothing is decided
Schedule   how a prepared image becomes finished rows
Sink       where those go
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol

from ..images.channels import Part
from ..images.image import Image
from ..images.scan import alpha_of
from ..images.values import Values
from ..options import Options
from ..plan import Tile, TilePlan, make_plan
from .devices import Devices
from .progress import Progress
from .report import RunInfo
from .traits import Traits
from .windows import Windows

__all__ = ["Delivery", "First", "Opened", "Prepared", "Schedule", "Sink"]

Pair = tuple[int, int]
First = dict[Part, Any]  # outputs of the first batch that were made to learn from them; whoever uses one takes it out


class Sink(Protocol):
    """Where finished rows go."""

    def rows(self, index: int, start: int, stop: int) -> Any:
        """The array or tensor (C, rows, W) for rows [start, stop) of image `index`. They are asked for in order, once
        each; again only where they were given up because memory ran out."""

    def done(self, index: int, start: int, stop: int) -> None:
        """Those rows are finished."""


class Schedule(Protocol):
    """A way to turn a prepared image into finished rows, from the top."""

    def rows(
        self, prepared: Prepared, index: int, sink: Sink, rows_done: int, first: First, progress: Progress
    ) -> Iterator[int]:
        """Yields how many rows of image `index` are finished, each time when there are more; the first `rows_done` are.

        Raises:
            TileError: the model failed. RuntimeError, MemoryError: memory ran out, and a smaller `prepared` may go on.
        """

    def tiles_from(self, prepared: Prepared, rows_done: int) -> int:
        """How many tiles of an image remain, for progress."""


@dataclass(frozen=True)
class Delivery:
    """Where the result goes, as far as its memory is the run's.

    Attributes:
        holds_result: whether all of it is held in memory that the run allocates.
        bands_waiting: at most so many finished bands wait, besides those in work; None: rows are made where they stay.
        bytes_beside: that whatever takes the rows holds, for a result of shape (height, width, channels).
    """

    holds_result: bool = False
    bands_waiting: int | None = None
    bytes_beside: Callable[[tuple[int, ...]], int] = lambda shape: 0


@dataclass(frozen=True)
class Opened:
    """Attributes:
    image: one, or several of one size.
    out_dtype: of the result.
    options: with numbers for halo and phase.
    report: how they were chosen.
    windows: the way of the image's windows through the model.
    """

    image: Image
    out_dtype: str
    options: Options
    report: RunInfo
    windows: Windows

    def planned(self, scale: Fraction | None = None, trim: Pair = (0, 0)) -> TilePlan:
        return make_plan(self.options, self.image.size, scale or self.options.scale, trim)

    @cached_property
    def plan(self) -> TilePlan:
        return self.planned()

    @property
    def keeps_heap(self) -> bool:
        """Whether the heap is to be kept: the model's activations must be in memory that malloc gives out."""
        return self.options.keep_heap and self.windows.on_cpu

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """(windows, channels, height, width) of a call of the model."""
        return (self.plan.batch(self.options.batch_size), self.windows.channels, *self.plan.window)


@dataclass(frozen=True)
class Prepared(Opened):
    """Attributes:
    traits: what the first batch taught about the model.
    schedule: how rows are made.
    devices: those that share the work; None for one.
    """

    traits: Traits = field(kw_only=True)
    schedule: Schedule = field(kw_only=True)
    devices: Devices | None = None

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
        """Windows in a call of the model."""
        return self.plan.batch(self.options.batch_size)

    @property
    def channels(self) -> int:
        """Of the result."""
        return sum(self.traits.out_channels)

    @property
    def out_values(self) -> Values:
        return Values(self.out_dtype, self.options.value_range)

    def with_tiles(self, tile: Pair, batch: int) -> Prepared:
        return replace(self, options=self.options.with_tiles(tile, batch, self.plan.phase))

    def parts_of(self, index: int) -> tuple[Part, ...]:
        """Those of image `index`: alpha that is the same everywhere stays as it is, and nothing is run for it."""
        parts = self.traits.parts
        if not parts[-1].alpha or parts[-1].how == "constant":
            return parts
        constant = alpha_of(self.image, index).constant
        return parts if constant is None else (*parts[:-1], replace(parts[-1], how="constant", value=constant))

    def full(self, tiles: list[Tile]) -> list[Tile]:
        """A batch that is not full sees some tiles again: every call gets one shape."""
        stop = tiles[-1].index + 1
        return self.plan[max(0, stop - self.batch) : stop]
