# SPDX-License-Identifier: MIT
"""Statistics of the whole image over workers: a sweep for each level, as in one process, and a tree that adds up.

    tile rows   [0 1 2 3]  [4 5 6 7]  [8 9]      each group on a worker
                     merged            |         two neighbours at a time, wherever Dask puts them
                               merged            known to the next level, and to all tiles

Groups are of 2, 4, 8, ... rows, so that everything is rounded as in one process, whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.device_lock import turn
from ..images.channels import Part
from ..run.held import hold_statistics
from ..run.prepared import Prepared
from ..run.progress import Progress

if TYPE_CHECKING:
    from distributed import Client, Future

    from ..run.global_stats import GlobalStats, Held
    from ..run.statistics import Sums

__all__ = ["held_frozen", "levels_of", "measured_over", "sums_of_rows"]

GROUPS = 4  # for each worker


# ---- on a worker -----------------------------------------------------------------------------------------------------


def held_frozen(prepared: Prepared) -> Any:
    """Of an image subsampled to a window."""
    hold_statistics(prepared, 0, {}, Progress(None))
    return prepared.windows.held


def _measuring(prepared: Prepared) -> GlobalStats:
    from ..run.global_stats import GlobalStats

    return GlobalStats(prepared.windows, prepared.report.global_stats, prepared.report.model)


def levels_of(prepared: Prepared) -> dict[Part, tuple[int, int]]:
    """Of each part that goes through the model: levels of statistics, and calls of operators that may take some."""
    stats = _measuring(prepared)
    with turn(prepared.windows.engine.device):
        parts = [part for part in prepared.parts_of(0) if part.how == "model"]
        surveys = {part: stats.survey(part, 0, prepared.plan) for part in parts}
    return {part: (one.levels, one.calls) for part, one in surveys.items()}


def sums_of_rows(prepared: Prepared, part: Part, level: int, known: Sums, rows: range) -> Sums:
    from ..run.statistics import by_twos, merged

    stats = _measuring(prepared)
    with turn(prepared.windows.engine.device):
        sums = [stats.of_row(row, level, known, part, 0, prepared.plan, lambda tiles: None) for row in rows]
    return by_twos(sums, merged)


# ---- at the client ---------------------------------------------------------------------------------------------------


def measured_over(client: Client, rows: int, ask: Callable[..., Future], workers: int) -> dict[Part, Held]:
    """The statistics of the whole image, by part.

    rows: of tiles. ask: submits one of the functions above to a worker that is ready: ask(function, *arguments).
    """
    from ..run.global_stats import Held
    from ..run.statistics import by_twos, merged

    join = partial(client.submit, merged, pure=False)
    size = 1
    while rows > size * GROUPS * workers:
        size *= 2
    groups = [range(first, min(rows, first + size)) for first in range(0, rows, size)]
    held = {}
    for part, (levels, calls) in ask(levels_of).result().items():
        known: Sums = {}
        for level in range(levels):
            sums = [ask(sums_of_rows, part, level, known, group) for group in groups]
            known = known | by_twos(sums, join).result()
        held[part] = Held(known, calls)
    return held
