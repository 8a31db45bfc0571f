# SPDX-License-Identifier: MIT
"""The report of a run: `RunInfo`, available as `TiledRestorer.last_run`, and its parts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..notebook.levels import levels_svg
from ..notebook.rows import Rows, rows_svg
from ..notebook.svg import Printer, card
from ..options import Options
from ..texts import bytes_text
from .spread import Spread

if TYPE_CHECKING:
    from ..inspection import ModelInfo
    from ..plan import TilePlan

__all__ = [
    "HOLDING",
    "Averaged",
    "Filled",
    "Precision",
    "RunInfo",
    "Streaming",
    "Tuning",
    "Verification",
    "by",
    "short",
]

Pair = tuple[int, int]

HOLDING = ("frozen", "exact", "local")  # values of global_stats with which statistics do not depend on tiles


def short(pair: tuple[Any, Any]) -> str:
    return str(pair[0] if pair[0] == pair[1] else pair)


def by(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


@dataclass(frozen=True)
class Tuning:
    """The choice of tiles and the reason.

    Attributes:
        tile_size: (rows, columns), input pixels, after balancing.
        batch_size: windows per model call.
        memory_format: memory format of windows: "channels_last" or "contiguous".
        bytes: predicted memory of the run beyond that of the process at its start; None if unknown.
        limit: memory available to the run, bytes; None if unknown.
        seconds: predicted time for one image; None if nothing was timed.
        probed: seconds spent on windows whose results were not used.
        costs: seconds per pixel for each window size, measured now or earlier.
        why: the reason, a sentence.
    """

    tile_size: Pair
    batch_size: int
    memory_format: str
    bytes: int | None
    limit: int | None
    seconds: float | None
    probed: float
    costs: dict[str, float] = field(repr=False)
    why: str

    def __str__(self) -> str:
        return f"tiles of {self.tile_size[0]}x{self.tile_size[1]} in batches of {self.batch_size}: {self.why}"


@dataclass(frozen=True)
class Precision:
    """The outcome of dtype="auto".

    Attributes:
        dtype: dtype of the model: "float32", "bfloat16" or "float16".
        error: largest measured difference from float32, in units of the image's dtype; 0 for float32.
        why: the reason, a sentence.
    """

    dtype: str
    error: float
    why: str

    def __str__(self) -> str:
        return f"{self.dtype}: {self.why}"


@dataclass(frozen=True)
class Streaming:
    """How rows are streamed.

    Attributes:
        rows: rows of the image in a step.
        streams: 1, or number of tiles that rows stream through because the image is too wide for one.
        columns: width of a stream with its halo, input pixels.
        as_is: whether the model takes the image in its own size, without padding to a multiple of the phase.
        recompute: pixels that pass through the model in the sweep that makes the result, as a multiple of the image's.
        held: bytes of rows that wait for later steps.
        peak: largest number of bytes in use during a step, with those.
        flops: floating-point operations of that sweep for one image, as far as they are counted: convolutions and
            matrix products.
        sweeps: over the image; more than one with statistics of the whole image.
        device: where the model runs.
        seconds: time that an image took; None before the run is finished.
    """

    rows: int
    streams: int
    columns: int
    as_is: bool
    recompute: float
    held: int
    peak: int
    flops: int
    sweeps: int = 1
    device: str = "cpu"
    seconds: float | None = None

    @property
    def held_per_column(self) -> float:
        """Bytes held for a column of the stream."""
        return self.held / self.columns

    def picture(self, size: Pair | None = None) -> str:
        """A drawing of rows that flow, as SVG. size: of the image, (rows, columns)."""
        return rows_svg(Rows(size, self.rows, bytes_text(self.held), self.streams))

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what a report tells of the stream."""
        tiles = "" if self.streams == 1 else f", in {self.streams} tiles with {self.columns} columns"
        rows = [
            ("step", f"{self.rows} rows{tiles}"),
            ("cost", f"{self.recompute:.2f} of the image's pixels, {self.flops / 1e9:.4g} GFLOP"),
            ("held rows", f"{bytes_text(self.held)}, {bytes_text(int(self.held_per_column))} a column"),
            ("peak memory", bytes_text(self.peak)),
        ]
        return rows if self.seconds is None else [*rows, ("time", f"{self.seconds:.2f} s on {self.device}")]

    def _repr_html_(self) -> str:
        return card("stream", self.facts(), self.picture())

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def share_of_peak(self, peak: float | None = None) -> float | None:
        """How near the run came to the model's own cost: the time that the model's operations for the image, each done
        once, take at the machine's peak, as a share of the time that the image took. None before the run is finished.

        Args:
            peak: floating-point operations in a second. None: measured by multiplying large float32 matrices, in a
                third of a second, once for a device.
        """
        if self.seconds is None:
            return None
        if peak is None:
            from .stream.peak import peak_of_machine  # imports torch

            peak = peak_of_machine(self.device)
        return self.flops / self.recompute / peak / self.seconds

    def __str__(self) -> str:
        text = f"rows stream through the model, {self.rows} in a step"
        if self.streams > 1:
            text += f", in {self.streams} tiles with {self.columns} columns"
        if self.sweeps > 1:
            text += f", in {self.sweeps} sweeps"
        held = f"{bytes_text(self.held)} held, {bytes_text(int(self.held_per_column))} a column"
        took = "" if self.seconds is None else f"; {self.flops / 1e9:.1f} GFLOP in {self.seconds:.1f} s"
        return f"{text}; {self.recompute:.2f} of the image's pixels; {held}{took}"


@dataclass(frozen=True)
class Verification:
    """Differences between a restored image and windows recomputed with a much larger halo.

    They are in units of the result's dtype (grey levels for integers; `white` is white), less the rounding to that
    dtype: half a step for integers, half a unit in the last place for float16 and bfloat16. So 0 means that the result
    is the correctly rounded recomputation. NaN in only one of them counts as infinite, NaN in both as equal.

    Attributes:
        largest, p999, mean: maximum, 99.9th percentile and mean of all differences.
        worst: (row, column, channel) of the maximum in the result, output pixels.
        edge_distance: output pixels from there to the nearest tile edge, where a tile's keep box starts or stops inside
            the image; 0 touches it. None for a single tile.
        edge_ratio: mean difference within 8 input pixels of a tile edge, divided by the mean elsewhere. With
            boundary="reflect" pixels that close to the image border, where halos also end, are excluded. 1.0 if both
            means are 0 or there are no pixels to compare; inf if only pixels near edges differ.
        white: the value of white.
        windows: number of recomputed windows; fewer than requested if the image has no more distinct places.
        halo, phase: those of the run, (rows, columns), input pixels.
        reference: halo of the recomputed windows, (rows, columns), input pixels.
        image: index of the image with the largest difference, from 0; None for a single image.
        whole: for a comparison with whole-image inference, its call: "model(image)" with boundary="native",
            "crop(model(reflect_pad(image, 18)))" with "reflect". None for windows.
    """

    largest: float
    p999: float
    mean: float
    worst: tuple[int, int, int]
    edge_distance: int | None
    edge_ratio: float
    white: float
    windows: int
    halo: Pair
    phase: Pair
    reference: Pair
    whole: str | None = None
    image: int | None = None

    def seamless(self, tolerance: float) -> bool:
        """Whether no difference exceeds `tolerance`, in units of the result's dtype."""
        return self.largest <= tolerance

    def __str__(self) -> str:
        row, column, channel = self.worst
        which = "" if self.image is None else f"image {self.image}, "
        nearest = "there is one tile"
        if self.edge_distance is not None:
            nearest = f"{self.edge_distance} output pixels from the nearest tile edge"
        return (
            f"differences up to {self.largest:.4g}, 99.9 % within {self.p999:.4g}, mean {self.mean:.4g} "
            f"of {self.white:g}\n"
            f"worst at {which}row {row}, column {column}, channel {channel}: {nearest}\n"
            f"near tile edges {self.edge_ratio:.4g} times what they are elsewhere\n"
            f"{self._made_again()}, beside a run with halo {by(self.halo)}, phase {by(self.phase)}"
        )

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what a report tells of the verification."""
        row, column, channel = self.worst
        nearest = "there is one tile" if self.edge_distance is None else f"{self.edge_distance} pixels from a tile edge"
        which = "" if self.image is None else f"image {self.image}, "
        return [
            ("largest", f"{self.largest:.4g} of {self.white:g}"),
            ("worst place", f"{which}row {row}, column {column}, channel {channel}: {nearest}"),
            ("near tile edges", f"{self.edge_ratio:.4g} times what differences are elsewhere"),
            ("compared with", self._made_again()),
            ("run", f"halo {by(self.halo)}, phase {by(self.phase)}"),
        ]

    def _repr_html_(self) -> str:
        levels = [("largest", self.largest), ("99.9 %", self.p999), ("mean", self.mean)]
        return card("verification", self.facts(), levels_svg(levels, self.white, "differences of the verification"))

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def _made_again(self) -> str:
        if self.whole is not None:
            return f"the whole image at once, {self.whole}"
        windows = "1 window" if self.windows == 1 else f"{self.windows} windows"
        return f"{windows} with a halo of {by(self.reference)}"


@dataclass(frozen=True)
class Filled:
    """What was filled for the model because the image has no data there, and put back.

    Attributes:
        nodata: the value that means it.
        values: number of such values in the image.
        share: of all its values.
        margin: how far from there results may depend on what was filled in (rows, columns), input pixels: the model's
            receptive field if it is known, else the halo.
    """

    nodata: float
    values: int
    share: float
    margin: Pair

    def __str__(self) -> str:
        filled = f"nodata {self.nodata:g}: {self.share:.1%} of the values were filled in for the model and put back"
        return f"{filled}; results up to {by(self.margin)} pixels from them depend on what was filled in"


@dataclass(frozen=True)
class Averaged:
    """How far the results of shifted grids of tiles lie from their average, in units of the result's dtype.

    Attributes:
        grids: number of grids; fewer than asked for if they would be the same.
        largest, mean: maximum and mean of the differences of all grids.
        white: the value of white.
    """

    grids: int
    largest: float
    mean: float
    white: float

    def __str__(self) -> str:
        if self.grids == 1:
            return "one tile has no other grids to be averaged with"
        apart = f"up to {self.largest:.3g} of {self.white:g} from their average, {self.mean:.3g} in the mean"
        return f"average of {self.grids} grids of tiles, which lie {apart}"


@dataclass(frozen=True)
class RunInfo:
    """What a run did and why. Pairs are (rows, columns), input pixels.

    Attributes:
        how: "exact" (equals whole-image inference), "unverified" (should be exact, but the model could only be probed
            with noise, is not deterministic, pads circularly with boundary="native", or failed verification),
            "measured" (halo below the receptive field, error within the tolerance), "frozen" (global statistics of a
            subsampled image), "tile" (separate statistics for every tile), "averaged" (several grids of tiles, by
            shift_average) or "given".
        bound: largest measured difference from an exact result, in units of the image's dtype; 0 if exact; for "tile"
            the difference between neighbouring tiles, for "averaged" the largest of a grid from the average; None if
            not measured.
        why: the reason, a sentence.
        model: the inspection, a ModelInfo, or None.
        global_stats: the option, if the model uses global statistics; else None.
        verified: with verify=, a Verification.
        tuning: a Tuning, if tile_size or batch_size was "auto" or memory was limited.
        precision: for dtype="auto", a Precision.
        stream: a Streaming; None for tiles.
        schedule_why: the reason for rows or tiles, a sentence; None if nothing was to be chosen.
        filled: with nodata=, a Filled.
        averaged: with shift_average=, an Averaged.
        plan: the tiles, for a stream those of its columns; None before an image was restored.
        retried: with on_nonfinite="retry", how many windows, or strips of a stream, were made again in float32.
        spread: with cluster=, a Spread.
    """

    halo: Pair
    phase: Pair
    how: str
    bound: float | None
    why: str
    model: ModelInfo | None = None
    global_stats: str | None = None
    verified: Verification | None = None
    tuning: Tuning | None = None
    precision: Precision | None = None
    stream: Streaming | None = None
    schedule_why: str | None = None
    filled: Filled | None = None
    averaged: Averaged | None = None
    plan: TilePlan | None = field(default=None, repr=False, compare=False)
    retried: int | None = None
    spread: Spread | None = None

    @property
    def schedule(self) -> str:
        """ "stream" or "tiles"."""
        return "tiles" if self.stream is None else "stream"

    @classmethod
    def given(cls, options: Options, model: ModelInfo | None = None) -> RunInfo:
        global_stats = options.global_stats if model is not None and model.global_operations else None
        why = "as given" if model is not None else "as given; the model was not inspected"
        return cls(options.halo, options.phase, "given", None, why, model, global_stats)

    def because(self, more: str) -> RunInfo:
        """The report with one more reason, said once."""
        return self if more in self.why else replace(self, why=f"{self.why}; {more}")

    def __str__(self) -> str:
        how = "" if self.how == "given" else f", {self.how}"
        parts = (self.tuning, self.precision, self.stream, self.filled, self.averaged, self.spread)
        tuned = "".join(f"; {one}" for one in parts if one is not None)
        again = "" if not self.retried else f"; {self.made_again}"
        return f"halo {short(self.halo)}, phase {short(self.phase)}{how}: {self.why}{tuned}{again}"

    @property
    def made_again(self) -> str:
        """What `retried` counts, in words."""
        what = "window" if self.stream is None else "strip"
        what = f"1 {what} was" if self.retried == 1 else f"{self.retried} {what}s were"
        return f"{what} made again in float32, because half precision made NaN or infinity"

    def after(self, seconds: float, plan: TilePlan) -> RunInfo:
        """The report of a finished run that took so long for an image."""
        stream = None if self.stream is None else replace(self.stream, seconds=seconds)
        return replace(self, stream=stream, plan=copy.copy(plan))  # the copy holds none of the user's objects

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what a report tells of the run."""
        rows = [("halo", short(self.halo)), ("phase", short(self.phase)), ("how exact", f"{self.how}: {self.why}")]
        if self.bound is not None:
            rows.append(("largest error", f"{self.bound:.3g}"))
        if self.stream is not None:
            rows += self.stream.facts()
        elif self.plan is not None:
            rows += [fact for fact in self.plan.facts() if fact[0] not in ("halo", "phase")]
        parts = {"schedule": self.schedule_why, "tuning": self.tuning, "precision": self.precision}
        parts |= {"nodata": self.filled, "averaged": self.averaged, "verified": self.verified}
        return rows + [(name, str(part)) for name, part in parts.items() if part is not None]

    def _repr_html_(self) -> str:
        if self.stream is not None:
            picture = self.stream.picture(None if self.plan is None else self.plan.image_size)
        else:
            picture = "" if self.plan is None else self.plan.picture()
        return card(f"run: {self.schedule}", self.facts(), picture)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    @property
    def holds(self) -> bool:
        """Whether the run uses statistics that do not depend on tiles."""
        return self.global_stats in HOLDING
