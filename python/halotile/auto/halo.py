# SPDX-License-Identifier: MIT
"""Determines halo and phase from the inspection and from measurements on the image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..images.image import Image
from ..inspection.info import STATISTICS
from ..models.recalled import recalled
from ..options import Options
from ..plan import make_plan
from ..run.report import HOLDING, RunInfo, by, short
from .error_curve import ErrorCurve, measured_curve, pixels_to_measure
from .knowledge import Knowledge
from .local_halo import local_halo, with_stats_size
from .streams import may_stream
from .trained import with_reason

if TYPE_CHECKING:
    from ..inspection import ModelInfo

__all__ = ["choose_halo_and_phase"]

Pair = tuple[int, int]

CHEAP = 1.25  # an exact halo is cheap up to this multiple of the pixels processed with halo 16
USUAL = 16
TRIED = (8, 16, 24, 32, 48, 64, 96, 128, 192)


def choose_halo_and_phase(options: Options, knowledge: Knowledge, image: Image) -> tuple[Options, RunInfo]:
    """Returns the options with numbers for halo and phase, and a report with the reason.

    Raises:
        ValueError: the model has no exact halo or no phase, or its global operations cannot be fixed.
    """
    options, report = _chosen(options, knowledge, image)
    return options, with_reason(options, report)


def _chosen(options: Options, knowledge: Knowledge, image: Image) -> tuple[Options, RunInfo]:
    if options.asks_model:
        info = knowledge.inspected()
        _refuse_unheld(options, info)
        if info.global_operations:
            options = with_stats_size(options, knowledge)
        return HaloChoice(replace(options, phase=_phase(options, info)), knowledge, image, info).made()
    info = recalled(knowledge.model)
    if options.phase is None:
        options = replace(options, phase=_quick_phase(options, knowledge, info))
    if info is None:
        return options, RunInfo.given(options)
    return options, HaloChoice(options, knowledge, image, info).made()[1]


def _quick_phase(options: Options, knowledge: Knowledge, info: ModelInfo | None) -> Pair:
    """The phase from an inspection or from the operators alone; 1 if unknown. A multiple of the model file's phase."""
    known = knowledge.quick_look() if info is None or None in info.phase else info
    found = None if known is None else known.phase
    rows, columns = found or knowledge.multiple or (1, 1)
    return options.needs.phase((rows or 1, columns or 1))


def _refuse_unheld(options: Options, info: ModelInfo) -> None:
    """Raises ValueError if the global operations cannot be fixed."""
    if options.global_stats not in HOLDING or info.local_field is not None:
        return
    text = f"global_stats must be 'tile' or None for this model, not {options.global_stats!r}"
    others = [one for one in info.global_operations if one.kind not in STATISTICS] or info.global_operations
    if others:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in others)
        raise ValueError(
            f"{text}: it looks at the whole image in {names}, which is no statistic that could be held fixed"
        )
    raise ValueError(f"{text}: how it looks at the whole image was not found: {'; '.join(info.doubts)}")


def _phase(options: Options, info: ModelInfo) -> Pair:
    given = options.phase or (1, 1)
    for step, own in zip(info.phase, given, strict=True):
        if step is None and (options.phase is None or (isinstance(options.halo, str) and own == 1)):
            raise ValueError("phase must be given for this model: none was found: " + "; ".join(info.doubts))
    rows, columns = (math.lcm(own, step or 1) for step, own in zip(info.phase, given, strict=True))
    return rows, columns


class HaloChoice:
    """Chooses the halo.

    Attributes:
        field: the exact halo (rows, columns), with fixed statistics if the model has any.
    """

    def __init__(self, options: Options, knowledge: Knowledge, image: Image, info: ModelInfo):
        self.options, self.knowledge, self.image, self.info = options, knowledge, image, info
        self.streams = options.schedule == "stream"
        self.global_stats = options.global_stats if info.global_operations else None
        if self.streams and info.global_operations:
            self.global_stats = "exact"
        field = info.local_field if self.global_stats else info.receptive_field
        self.field: Pair | None = None if field is None else field.halo
        if self.global_stats == "local":
            self.field = local_halo(options, knowledge, image, info)
        self.white = 1.0 if options.reduce is not None else image.peak_in(options.out_dtype or image.dtype)

    def made(self) -> tuple[Options, RunInfo]:
        if isinstance(self.options.halo, str) and self.field is None:
            if self.streams and self.options.boundary == "native":
                return self._with((0, 0), "exact", 0.0, "every row of a layer is computed once, from all it needs")
            raise ValueError(f"halo must be a number for this model, not {self.options.halo!r}: {self._why_not()}")
        if not isinstance(self.options.halo, str):
            return self._given()
        if self.options.halo == "exact" or self.streams:
            return self._at_field("the receptive field")
        return self._automatic()

    def _why_not(self) -> str:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in self.info.global_operations)
        if not names:
            return "its receptive field was not found: " + "; ".join(self.info.doubts)
        text = f"it looks at the whole image in {names}, so no halo is exact"
        if self.info.local_field is None or self.global_stats:
            return text + ", and that is nothing that global_stats could hold fixed"
        return text + "; pass global_stats='exact', 'frozen', 'local' or 'tile'"

    # ---- halos

    def _at_field(self, why: str) -> tuple[Options, RunInfo]:
        """Uses the exact halo. Exact tiles agree, so they need no blending."""
        halo = self.field
        if self.options.boundary == "native" and any(
            side % step for side, step in zip(self.image.size, self.options.phase, strict=True)
        ):
            why += "; sides that are no multiple of the phase are completed by reflection, and cropped"
        if self.options.boundary == "native" and not self.info.edges_local:
            why = f"{why}; but at the image's edges the model takes from the opposite edge, which tiles do not have: "
            return self._with(halo, "unverified", None, why + "pass boundary='wrap'")
        if not self.info.certain:
            why = f"{why}, as far as it could be found out: {'; '.join(self.info.doubts)}"
            return self._with(halo, "unverified", None, why)
        if self.global_stats in (None, "exact", "local"):
            return self._with(halo, "exact", 0.0, f"{why}{self._statistics()}")
        if self.global_stats == "frozen":
            why = f"{why}; statistics are those of the image reduced to a window's size: tiles agree with each other"
            return self._with(halo, "frozen", None, why)
        return self._with_own_statistics(halo, why)

    def _statistics(self) -> str:
        """How statistics are exact."""
        if self.global_stats == "local":
            return f", with half a window of {by(self.options.stats_size)} for each statistic on the way"
        return "; statistics of the whole image are measured over all tiles" if self.global_stats else ""

    def _with_own_statistics(self, halo: Pair, why: str) -> tuple[Options, RunInfo]:
        """Differences between tiles are measured later, when the tiles are known: see `with_seams`."""
        return replace(self.options, halo=halo), self._info(halo, "tile", None, why)

    def _given(self) -> tuple[Options, RunInfo]:
        halo = self.options.halo
        if self.field is None:
            return self.options, self._info(halo, "given", None, f"given; {self._why_not()}")
        step = self.info.phase
        if any(need is None and have == 1 for have, need in zip(self.options.phase, step, strict=True)):
            why = f"given; its phase was not found: {'; '.join(self.info.doubts)}"
            return self.options, self._info(halo, "given", None, why)
        if any(need and have % need for have, need in zip(self.options.phase, step, strict=True)):
            why = f"phase={short(self.options.phase)} is no multiple of the model's, {short(step)}: tiles differ from "
            why += "whole-image inference wherever they start between"
            self.knowledge.warn_once(("phase", self.options.phase), why)
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
        self.knowledge.warn_once(("halo", halo), f"halo={short(halo)} is {why.removeprefix('given, ')}")
        return self.options, self._info(halo, "given", bound, why)

    def _automatic(self) -> tuple[Options, RunInfo]:
        """The exact halo if there is a reason for it; else one step above the smallest halo within the tolerance."""
        tried = tuple(halo for halo in TRIED if halo < max(self.field))
        why = self._why_exact(tried)
        if why is not None:
            return self._at_field(f"the receptive field{why}")
        return self._measured_halo(tried)

    def _why_exact(self, tried: tuple[int, ...]) -> str | None:
        """The reason to use the exact halo without trying others, if there is one."""
        if self.options.needs.fixed:
            return ": no smaller halo can be tried on windows of one size"
        pixels, usual = self._pixels(self.field), self._pixels((USUAL, USUAL))
        if max(self.field) <= USUAL or pixels <= CHEAP * usual:
            return f"; {pixels / usual:.2f}x the pixels of halo {USUAL}"
        if may_stream(replace(self.options, halo=self.field), self.knowledge, self.image):
            return f"; {pixels / usual:.2f}x the pixels of halo {USUAL} in tiles, but rows stream"
        if pixels - usual <= pixels_to_measure(max(self.field), tried):
            return ": to measure smaller halos would cost more than this one"
        return None

    def _measured_halo(self, tried: tuple[int, ...]) -> tuple[Options, RunInfo]:
        tolerance = self.options.within(self.white)
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

    def _measured(self, halos: tuple[int, ...]) -> ErrorCurve:
        held = None if self.global_stats is None else "frozen"  # otherwise windows would differ by their own statistics
        exact: int | None = max(self.field)
        if self.global_stats == "local":
            held = "local"
            exact = max(self.field) if max(self.field) <= 2 * max(halos) else None  # it may be larger than any image
        size = self.options.stats_size if held == "local" else None
        options = replace(self.options, halo=0, global_stats=held, stats_size=size)
        return measured_curve(self.image, self.knowledge, options, exact, halos)

    def _pixels(self, halo: Pair) -> int:
        return make_plan(replace(self.options, halo=halo), self.image.size).processed_pixels
