# SPDX-License-Identifier: MIT
"""Combinations of parameters: some in `make test`, the others in the slow lane."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def sampled(step: int, *axes: Iterable[Any]) -> list[Any]:
    """All combinations of one value of each axis, for `pytest.mark.parametrize`.

    Every `step`-th diagonal is not slow, so that `make test` has every value of an axis that is crossed with at least
    `step` values of another one.
    """
    numbered = [list(enumerate(axis)) for axis in axes]
    made = []
    for combination in itertools.product(*numbered):
        names = "-".join(str(getattr(value, "__name__", value)) for _, value in combination)
        late = sum(index for index, _ in combination) % step
        values = [value for _, value in combination]
        made.append(pytest.param(*values, id=names, marks=pytest.mark.slow if late else ()))
    return made


def late(*values: Any) -> list[Any]:
    """Values that are for the slow lane only."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
