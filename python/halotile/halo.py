# SPDX-License-Identifier: MIT
"""halo="exact", halo="auto" and phase=None: from what inspection finds, and what was measured on the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .images import peak_of
from .options import Options
from .plan import make_plan

__all__ = ["HaloInfo", "settled"]

Pair = tuple[int, int]

CHEAP = 1.25  # an exact halo costs little if it makes the model see so many times the pixels that 16 would
USUAL = 16
TRIED = (8, 16, 24, 32, 48, 64, 96, 128, 192)


@dataclass(frozen=True)
class HaloInfo:
    """Which halo and phase a run has, and why. Pairs are (rows, columns), input pixels.

    Attributes:
        how: "exact" (the receptive field), "measured" (below it, but within the tolerance) or "given".
        bound: the largest difference from an exact result that was measured, in units of the image's dtype; 0 where
            exact, None where nothing is known.
        why: a sentence.
        model: what is known of the model: a ModelInfo, or None.
    """

    halo: Pair
    phase: Pair
    how: str
    bound: float | None
    why: str
    model: Any = None


def settled(options: Options, restorer: Any, image: Any) -> tuple[Options, HaloInfo]:
    """The options with numbers for halo and phase.

    Args:
        restorer: has the model, and `inspected()`.
        image: the Image that the run is for.

    Raises:
        ValueError: no halo is exact for this model, or it has no phase.
    """
    if not options.asks_model:
        return options, HaloInfo(options.halo, options.phase, "given", None, "as given")
    info = restorer.inspected()
    if options.phase is None:
        options = replace(options, phase=_phase(info))
    if not isinstance(options.halo, str):
        return options, _given(options, info)
    if info.halo is None:
        raise ValueError(f"halo must be a number for this model, not {options.halo!r}: {_why_not(info)}")
    if options.halo == "exact":
        return _with(options, info.halo, "exact", 0.0, "the receptive field", info)
    return _automatic(options, restorer, image, info)


def _phase(info: Any) -> Pair:
    if None in info.phase:
        raise ValueError("phase must be given for this model: none was found. " + " ".join(info.doubts))
    return info.phase


def _why_not(info: Any) -> str:
    if info.global_operations:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in info.global_operations)
        return f"it looks at the whole image in {names}, so no halo is exact"
    return "its receptive field was not found. " + " ".join(info.doubts)


def _given(options: Options, info: Any) -> HaloInfo:
    enough = info.halo is not None and all(a >= b for a, b in zip(options.halo, info.halo, strict=True))
    if enough:
        return HaloInfo(options.halo, options.phase, "exact", 0.0, "given, and no less than the receptive field", info)
    why = "given; " + (_why_not(info) if info.halo is None else f"the receptive field is {max(info.halo)}")
    return HaloInfo(options.halo, options.phase, "given", None, why, info)


def _with(options: Options, halo: Pair, how: str, bound: float | None, why: str, info: Any) -> tuple[Options, HaloInfo]:
    """Where the halo is exact nothing needs to be blended."""
    overlap = 0 if how == "exact" and options.overlap == "auto" else options.overlap
    options = replace(options, halo=halo, overlap=overlap)
    return options, HaloInfo(halo, options.phase, how, bound, why, info)


def _automatic(options: Options, restorer: Any, image: Any, info: Any) -> tuple[Options, HaloInfo]:
    """Exact where that costs little; else the smallest halo within the tolerance, and one step more."""
    cost = _pixels(options, image, info.halo) / _pixels(options, image, (USUAL, USUAL))
    if max(info.halo) <= USUAL or cost <= CHEAP:
        why = f"the receptive field; it costs {cost:.2f} times the pixels that a halo of {USUAL} would"
        return _with(options, info.halo, "exact", 0.0, why, info)
    from .curve import measured_curve

    white = peak_of(options.out_dtype or image.dtype)
    tolerance = white / 510 if options.tolerance is None else options.tolerance
    tried = tuple(halo for halo in TRIED if halo < max(info.halo))
    plain = type(restorer)(restorer.model, **_named(replace(options, halo=0, out=None, progress=None)))
    curve = measured_curve(plain, image.original, info, tried)
    within = [i for i in range(len(tried)) if all(error <= tolerance for error in curve.largest[i:])]
    if not within or within[0] + 1 >= len(tried):
        why = "the receptive field: no smaller halo is within the tolerance by a step"
        return _with(options, info.halo, "exact", 0.0, why, info)
    halo = tried[within[0] + 1]
    why = f"{tried[within[0]]} was within {tolerance:g} of exact where it was measured, this is a step more; "
    why += f"the receptive field is {max(info.halo)}"
    pair = tuple(min(halo, side) for side in info.halo)
    return _with(options, pair, "measured", curve.largest[within[0] + 1], why, info)


def _named(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def _pixels(options: Options, image: Any, halo: Pair) -> int:
    return make_plan(replace(options, halo=halo), image.size).processed_pixels
