# SPDX-License-Identifier: MIT
"""Fixes the statistics of a whole image in its windows, or makes them local, before they run."""

from __future__ import annotations

from ..engine.device_lock import turn
from .prepared import First, Prepared
from .progress import Progress

__all__ = ["hold_statistics"]


def hold_statistics(prepared: Prepared, index: int, first: First, progress: Progress) -> None:
    windows, report = prepared.windows, prepared.report
    local = report.global_stats == "local"
    if not report.holds or windows.held_for == index or (local and windows.held_for is not None):
        return
    from .global_stats import GlobalStats

    first.clear()
    windows.held.clear()
    stats = GlobalStats(windows, report.global_stats, report.model)
    with turn(windows.engine.device):
        parts = [part for part in prepared.parts_of(index) if part.how == "model"]
        if local:
            from .local_stats import local_statistics

            size = prepared.options.stats_size
            windows.held |= {part: local_statistics(stats, part, index, prepared.plan, size) for part in parts}
            windows.held_for = index
            return
        sweeps = sum(stats.sweeps(part, index, prepared.plan) for part in parts)
        progress.begin(progress.total + sweeps * len(prepared.plan))
        windows.held |= {part: stats.measured(part, index, prepared.plan, progress.advance) for part in parts}
    windows.held_for = index
