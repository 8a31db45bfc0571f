# SPDX-License-Identifier: MIT
"""All cases."""

from __future__ import annotations

from collections.abc import Iterator

from . import arrays, checkpoints, images, programs
from .case import Case

EACH = 12
PARTS = {one.__name__.rpartition(".")[2]: one.cases for one in (images, arrays, checkpoints, programs)}


def cases(each: int = EACH, parts: tuple[str, ...] = tuple(PARTS)) -> Iterator[Case]:
    """each: of every damage to every good file."""
    for part in parts:
        yield from PARTS[part](each)
