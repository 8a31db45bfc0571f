# SPDX-License-Identifier: MIT
"""halo="exact", halo="auto", phase=None, global_stats: from what is known of the model, and measured on the image.

`settled` turns them into numbers before a run is planned, and says why; `RunInfo` is what `TiledRestorer.last_run` is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .images import peak_of
from .options import Options
from .plan import make_plan
from .recalled import recalled

if TYPE_CHECKING:
    from .inspection import ModelInfo
    from .precision import Precision
    from .tuning import Tuning
    from .verification import Verification

__all__ = ["RunInfo", "settled"]

Pair = tuple[int, int]

CHEAP = 1.25  # an exact halo costs little if it makes the model see so many times the pixels that 16 would
USUAL = 16
TRIED = (8, 16, 24, 32, 48, 64, 96, 128, 192)
HOLDING = ("frozen", "exact")  # ways of global_stats that give every tile the same statistics


@dataclass(frozen=True)
class RunInfo:
    """What a run did, and why. Pairs are (rows, columns), input pixels.

    Attributes:
        how: "exact" (equals whole-image inference), "doubtful" (should, but the model could only be measured by noise,
            gives another output each time, pads with the opposite edge where boundary="native", or differed when
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
    def given(cls, options: Options, model: Any = None) -> RunInfo:
        """Of options with numbers for halo and phase, about which nothing is found out."""
        global_stats = options.global_stats if model is not None and model.global_operations else None
        why = "as given" if model is not None else "as given; the model was not inspected"
        return cls(options.halo, options.phase, "given", None, why, model, global_stats)

    def __str__(self) -> str:
        how = "" if self.how == "given" else f", {self.how}"
        tuned = "".join(f"; {one}" for one in (self.tuning, self.precision) if one is not None)
        return f"halo {_short(self.halo)}, phase {_short(self.phase)}{how}: {self.why}{tuned}"

    @property
    def holds(self) -> bool:
        """Whether statistics are measured and held fixed."""
        return self.global_stats in HOLDING


def settled(options: Options, restorer: Any, image: Any) -> tuple[Options, RunInfo]:
    """The options with numbers for halo and phase.

    Args:
        restorer: has the model, and `inspected()`.
        image: the Image that the run is for.

    Raises:
        ValueError: no halo is exact for this model, it has no phase, or its global operations cannot be held fixed.
    """
    if options.asks_model:
        info = restorer.inspected()
        _refuse_unheld(options, info)
        return Settling(replace(options, phase=_phase(options, info)), restorer, image, info).settled()
    info = recalled(restorer.model)
    if options.phase is None:
        options = replace(options, phase=_quick_phase(options, restorer, info))
    if info is None:
        return options, RunInfo.given(options)
    judged = Settling(options, restorer, image, info).settled()[1]
    return options, judged


def _quick_phase(options: Options, restorer: Any, info: Any) -> Pair:
    """As an inspection found it, or operators alone tell; 1 where they do not. A multiple of what the file needs."""
    known = restorer.quick_look() if info is None or None in info.phase else info
    found = None if known is None else known.phase
    rows, columns = found or restorer.multiple or (1, 1)
    return options.needs.phase((rows or 1, columns or 1))


def _refuse_unheld(options: Options, info: Any) -> None:
    """Raises ValueError where statistics are to be held fixed, and the model looks at the whole image in other ways."""
    if options.global_stats not in HOLDING or info.local_field is not None:
        return
    from .inspection.info import STATISTICS

    text = f"global_stats must be 'tile' or None for this model, not {options.global_stats!r}"
    others = [one for one in info.global_operations if one.kind not in STATISTICS] or info.global_operations
    if others:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in others)
        raise ValueError(
            f"{text}: it looks at the whole image in {names}, which is no statistic that could be held fixed"
        )
    raise ValueError(f"{text}: how it looks at the whole image was not found. {' '.join(info.doubts)}")


def _phase(options: Options, info: Any) -> Pair:
    """A multiple of what was found and of what was given."""
    given = options.phase or (1, 1)
    for step, own in zip(info.phase, given, strict=True):
        if step is None and (options.phase is None or (isinstance(options.halo, str) and own == 1)):
            raise ValueError("phase must be given for this model: none was found. " + " ".join(info.doubts))
    rows, columns = (math.lcm(own, step or 1) for step, own in zip(info.phase, given, strict=True))
    return rows, columns


class Settling:
    """The way to a halo.

    Attributes:
        field: the halo (rows, columns) that is exact, with statistics held fixed where the model takes any.
    """

    def __init__(self, options: Options, restorer: Any, image: Any, info: Any):
        self.options, self.restorer, self.image, self.info = options, restorer, image, info
        self.global_stats = options.global_stats if info.global_operations else None
        field = info.local_field if self.global_stats else info.receptive_field
        self.field: Pair | None = None if field is None else field.halo
        self.white = peak_of(options.out_dtype or image.dtype)

    def settled(self) -> tuple[Options, RunInfo]:
        if isinstance(self.options.halo, str) and self.field is None:
            raise ValueError(f"halo must be a number for this model, not {self.options.halo!r}: {self._why_not()}")
        if not isinstance(self.options.halo, str):
            return self._given()
        if self.options.halo == "exact":
            return self._at_field("the receptive field")
        return self._automatic()

    def _why_not(self) -> str:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in self.info.global_operations)
        if not names:
            return "its receptive field was not found. " + " ".join(self.info.doubts)
        text = f"it looks at the whole image in {names}, so no halo is exact"
        if self.info.local_field is None or self.global_stats:
            return text + ", and that is nothing that global_stats could hold fixed"
        return text + "; pass global_stats='exact', 'frozen' or 'tile'"

    # ---- halos

    def _at_field(self, why: str) -> tuple[Options, RunInfo]:
        """The halo that is exact. Where the run is, nothing needs to be blended."""
        halo = self.field
        if self.options.boundary == "native" and any(
            side % step for side, step in zip(self.image.size, self.options.phase, strict=True)
        ):
            why += "; sides that are no multiple of the phase are completed by reflection, and cropped"
        if self.options.boundary == "native" and not self.info.edges_local:
            why = f"{why}; but at the image's edges the model takes from the opposite edge, which tiles do not have: "
            return self._with(halo, "doubtful", None, why + "pass boundary='reflect'")
        if not self.info.certain:
            why = f"{why}, as far as it could be found out: {' '.join(self.info.doubts)}"
            return self._with(halo, "doubtful", None, why)
        if self.global_stats is None:
            return self._with(halo, "exact", 0.0, why)
        if self.global_stats == "exact":
            return self._with(halo, "exact", 0.0, f"{why}; statistics of the whole image are measured over all tiles")
        if self.global_stats == "frozen":
            why = f"{why}; statistics are those of the image reduced to a window's size: tiles agree with each other"
            return self._with(halo, "frozen", None, why)
        return self._with_own_statistics(halo, why)

    def _with_own_statistics(self, halo: Pair, why: str) -> tuple[Options, RunInfo]:
        from .curve import seam_error

        options = replace(self.options, halo=halo)
        apart = seam_error(self._plain(options), self.image)
        names = ", ".join(one.path or "the model" for one in self.info.global_operations)
        why = (
            f"{why}; {names} of every tile for itself: where it was measured, tiles are {apart:.3g} of {self.white:g} "
        )
        why += "apart"
        return options, self._info(halo, "tile", apart, why)

    def _given(self) -> tuple[Options, RunInfo]:
        halo = self.options.halo
        if self.field is None:
            return self.options, self._info(halo, "given", None, f"given; {self._why_not()}")
        step = self.info.phase
        if any(need and have % need for have, need in zip(self.options.phase, step, strict=True)):
            why = (
                f"phase={_short(self.options.phase)} is no multiple of the model's, {_short(step)}: tiles differ from "
            )
            why += "whole-image inference wherever they start between"
            self.restorer.tell_once(("phase", self.options.phase), why)
            return self.options, self._info(halo, "given", None, why)
        if all(have >= need for have, need in zip(halo, self.field, strict=True)):
            self.field = halo
            return self._at_field("given, and no less than the receptive field")
        if self.global_stats == "tile":
            return self._with_own_statistics(halo, f"given; the receptive field is {max(self.field)}")
        return self._below_field(halo)

    def _below_field(self, halo: Pair) -> tuple[Options, RunInfo]:
        if self.options.needs.fixed:
            why = (
                f"given, below the receptive field of {max(self.field)}; windows of one size do not tell what it costs"
            )
            return self.options, self._info(halo, "given", None, why)
        bound = self._measured((max(halo),)).largest[0]
        if bound <= 1e-6 * self.white:
            return self.options, self._info(halo, "given", bound, f"given; the receptive field is {max(self.field)}")
        why = f"given, below the receptive field of {max(self.field)}: up to {bound:.3g} of {self.white:g} from exact "
        why += "where it was measured"
        self.restorer.tell_once(("halo", halo), f"halo={_short(halo)} is {why.removeprefix('given, ')}")
        return self.options, self._info(halo, "given", bound, why)

    def _automatic(self) -> tuple[Options, RunInfo]:
        """Exact where that costs little; else the smallest halo within the tolerance, and one step more."""
        if self.options.needs.fixed:
            return self._at_field("the receptive field: no smaller halo can be tried on windows of one size")
        cost = self._pixels(self.field) / self._pixels((USUAL, USUAL))
        if max(self.field) <= USUAL or cost <= CHEAP:
            why = f"the receptive field; it costs {cost:.2f} times the pixels that a halo of {USUAL} would"
            return self._at_field(why)
        tolerance = self.options.within(self.white)
        tried = tuple(halo for halo in TRIED if halo < max(self.field))
        errors = self._measured(tried).largest
        within = [i for i in range(len(tried)) if all(error <= tolerance for error in errors[i:])]
        if not within or within[0] + 1 >= len(tried):
            return self._at_field("the receptive field: no smaller halo is within the tolerance by a step")
        chosen = within[0] + 1
        why = f"{tried[within[0]]} was within {tolerance:g} of exact where it was measured, this is a step more; "
        why += f"the receptive field is {max(self.field)}"
        halo = tuple(min(tried[chosen], side) for side in self.field)
        if self.global_stats == "tile":
            return self._with_own_statistics(halo, why)
        return self._with(halo, "frozen" if self.global_stats == "frozen" else "measured", errors[chosen], why)

    # ---- parts of them

    def _with(self, halo: Pair, how: str, bound: float | None, why: str) -> tuple[Options, RunInfo]:
        overlap = 0 if how == "exact" and self.options.overlap == "auto" else self.options.overlap
        return replace(self.options, halo=halo, overlap=overlap), self._info(halo, how, bound, why)

    def _info(self, halo: Pair, how: str, bound: float | None, why: str) -> RunInfo:
        return RunInfo(halo, self.options.phase, how, bound, why, self.info, self.global_stats)

    def _measured(self, halos: tuple[int, ...]) -> Any:
        from .curve import measured_curve

        held = None if self.global_stats is None else "frozen"  # or windows would differ by their own statistics
        plain = self._plain(replace(self.options, halo=0, global_stats=held))
        return measured_curve(plain, self.image, max(self.field), halos)

    def _plain(self, options: Options) -> Any:
        return self.restorer.like(replace(options, out=None, progress=None, verify=0))

    def _pixels(self, halo: Pair) -> int:
        return make_plan(replace(self.options, halo=halo), self.image.size).processed_pixels


def _short(pair: tuple[Any, Any]) -> str:
    return str(pair[0] if pair[0] == pair[1] else pair)
