# SPDX-License-Identifier: MIT
"""error_curve(): the error of small halos on real content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack

from ..auto.error_curve import MEASURING, WINDOWS, ErrorCurve, measured_curve
from ..auto.knowledge import Knowledge
from ..auto.local_halo import with_stats_size
from ..option_checks import integer
from ..options import HalolessOptions, check_no_reduce
from ..run.report import HOLDING
from ..stages import shown

__all__ = ["ErrorCurve", "error_curve"]

HALOS = (0, 8, 16, 24, 32, 48, 64, 96, 128)


def error_curve(
    image: Any,
    model: Callable[..., Any],
    *,
    halos: Sequence[int] | None = None,
    windows: int = WINDOWS,
    **options: Unpack[HalolessOptions],
) -> ErrorCurve:
    """Measures the error of halos where the image has most detail.

    Args:
        image, model: as for `restore_tiled`.

    Keyword Args:
        halos: halos to try, input pixels. None: 0 to 128.
        windows: number of places in the image.
        options: as for `restore_tiled`: phase, value_range, device, ...; phase None is detected. With global_stats
            "frozen" or "exact" statistics are fixed; else windows differ by their own statistics, whatever the halo.
            ``progress`` counts windows.

    Raises:
        ValueError, TypeError: a bad option. TileError: the model fails.

    >>> curve = error_curve(photo, model, halos=[0, 1])
    >>> curve.exact, curve.reference, curve.largest[1] < curve.largest[0]
    (True, 1, True)
    """
    if "halo" in options:
        raise TypeError("halo must not be given: halos= are what is tried")
    tried = tuple(integer("halos", halo, 0) for halo in (HALOS if halos is None else halos))
    if not tried:
        raise ValueError("halos must name at least one, not none")
    count = integer("windows", windows, 1)
    knowledge = Knowledge.of(model, {**options, "halo": 0})
    check_no_reduce(knowledge.options)
    info = knowledge.inspected()
    how = options.get("global_stats")
    holds = how in HOLDING and bool(info.global_operations)
    local = holds and how == "local"
    held = None if not holds else "local" if local else "frozen"
    size = with_stats_size(knowledge.options, knowledge).stats_size if local else None
    phase = tuple(step or 1 for step in knowledge.options.phase or info.phase)
    knowledge = knowledge.like(replace(knowledge.options, phase=phase, global_stats=held, stats_size=size))
    field = info.local_field if holds else info.receptive_field
    exact = None if local else field and max(field.halo)
    with shown(knowledge.options.progress, MEASURING):
        return measured_curve(knowledge.open(image), knowledge, knowledge.options, exact, tried, count)
