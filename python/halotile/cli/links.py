# SPDX-License-Identifier: MIT
"""Links in output folders: what is written there must stay there."""

from __future__ import annotations

import os

from .common import UsageError, shown
from .work import Job

__all__ = ["check_stays_inside"]


def check_stays_inside(job: Job, folder: str | None) -> None:
    """Raises UsageError if the output of a job, or a folder on the way to it, is a link that leads out of the output
    folder; without one, if the output is a link that leads out of its own."""
    inside = folder or os.path.dirname(job.output) or "."
    top, at = os.path.realpath(inside), os.path.realpath(job.output)
    if os.path.commonpath([top, at]) != top:
        raise UsageError(f"{shown(job.output)} leads out of {shown(inside)}, to {shown(at)}: remove the link")
