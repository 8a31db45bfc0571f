# SPDX-License-Identifier: MIT
"""What a run did, and why: `RunInfo`, which is `TiledRestorer.last_run`, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..options import Options

if TYPE_CHECKING:
    from ..inspection import ModelInfo

__all__ = ["HOLDING", "Precision", "RunInfo", "Tuning", "Verification", "by", "short"]

Pair = tuple[int, int]

HOLDING = ("frozen", "exact")  # ways of global_stats that give every tile the same statistics


def short(pair: tuple[Any, Any]) -> str:
    """A pair, or the number that it consists of."""
    return str(pair[0] if pair[0] == pair[1] else pair)


def by(pair: Pair) -> str:
    """A pair of sides."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and why.

    Attributes:
        tile_size: (rows, columns), input pixels, as the balanced plan has it.
        batch_size: windows per call of the model.
        memory_format: how windows lie in memory: "channels_last" or "contiguous".
        bytes: what the run was predicted to take beyond what the process held; None where nothing is known.
        limit: what it might take, bytes; None where nothing is known.
        seconds: predicted for one image; None if nothing was timed.
        probed: seconds that went to windows whose results were not used.
        costs: seconds a pixel by window, as measured now or before.
        why: a sentence.
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
    """What dtype="auto" came to.

    Attributes:
        dtype: of the model: "float32", "bfloat16" or "float16".
        error: the largest difference from float32 that was measured, in units of the image's dtype; 0 for float32.
        why: a sentence.
    """

    dtype: str
    error: float
    why: str

    def __str__(self) -> str:
        return f"{self.dtype}: {self.why}"


@dataclass(frozen=True)
class Verification:
    """How far a restored image is from windows made again with a much larger halo.

    Differences are in units of the result's dtype (grey levels for integers, `white` is the value of white), and what
    rounding to that dtype explains is taken off: half a step for integers, half of the last place for float16 and
    bfloat16. So 0 means that the result is the rounded value of what was made again. NaN beside a number is infinitely
    far; NaN in both is no difference.

    Attributes:
        largest, p999, mean: of all differences: the largest, their 99.9th percentile, their mean.
        worst: where the largest is: (row, column, channel) of the result, output pixels.
        edge_distance: output pixels between the worst position and the nearest tile edge, where a tile's keep box
            starts or stops inside the image; 0 touches it. None if there is one tile.
        edge_ratio: mean difference nearer to a tile edge than 8 input pixels, over the mean difference elsewhere. With
            boundary="reflect" pixels as near to the image's own sides, where halos end too, are in neither. 1.0 where
            both are 0 or there are no pixels to compare; inf where only the edges differ.
        white: the value that stands for white.
        windows: how many were made again; fewer than asked for where the image has no more different places.
        halo, phase: of the run, (rows, columns), input pixels.
        reference: the halo of the windows made again, (rows, columns), input pixels.
        image: of several images, the one with the largest difference, counted from 0; None where there is one.
        whole: what was compared with, where all of the image was made again at once: "model(image)" with
            boundary="native", "crop(model(reflect_pad(image, 18)))" with "reflect". None for windows.
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
        """Whether no difference is above `tolerance`, in units of the result's dtype."""
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

    def _made_again(self) -> str:
        if self.whole is not None:
            return f"the whole image at once, {self.whole}"
        windows = "1 window" if self.windows == 1 else f"{self.windows} windows"
        return f"{windows} with a halo of {by(self.reference)}"


@dataclass(frozen=True)
class RunInfo:
    """What a run did, and why. Pairs are (rows, columns), input pixels.

    Attributes:
        how: "exact" (equals whole-image inference), "unverified" (should, but the model could only be measured by
            noise, gives another output each time, pads with the opposite edge where boundary="native", or differed when
            verified), "measured" (the halo is below the receptive field, but within the tolerance), "frozen" (global
            statistics of a reduced image), "tile" (every tile has its own) or "given".
        bound: the largest difference from an exact result that was measured, in units of the image's dtype, 0 where
            exact; for "tile" how far neighbouring tiles are apart; None where nothing was measured.
        why: a sentence.
        model: what is known of the model: a ModelInfo, or None.
        global_stats: as asked for, if the model looks at the whole image; else None.
        verified: with verify=: a Verification.
        tuning: where tile_size or batch_size was "auto", or memory limited: what was chosen, and why; a Tuning.
        precision: for dtype="auto": what was chosen, and why; a Precision.
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

    @classmethod
    def given(cls, options: Options, model: ModelInfo | None = None) -> RunInfo:
        """Of options with numbers for halo and phase, about which nothing is found out."""
        global_stats = options.global_stats if model is not None and model.global_operations else None
        why = "as given" if model is not None else "as given; the model was not inspected"
        return cls(options.halo, options.phase, "given", None, why, model, global_stats)

    def __str__(self) -> str:
        how = "" if self.how == "given" else f", {self.how}"
        tuned = "".join(f"; {one}" for one in (self.tuning, self.precision) if one is not None)
        return f"halo {short(self.halo)}, phase {short(self.phase)}{how}: {self.why}{tuned}"

    @property
    def holds(self) -> bool:
        """Whether statistics are measured and held fixed."""
        return self.global_stats in HOLDING
