# SPDX-License-Identifier: MIT
"""window=: every window has one size, that of the images the model was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ..models.needs import needs_of
from ..models.reach import modules_of
from ..option_checks import checked_window
from ..optional import torch_if_loaded
from ..options import Options, windowed
from ..run.report import RunInfo, by

__all__ = ["named_size", "with_reason", "with_window"]

Pair = tuple[int, int]

TRAINED = ("train_size", "training_size", "trained_size", "img_size", "image_size", "input_size")


def named_size(model: Any, names: Iterable[str]) -> Pair | None:
    """The first size (rows, columns) that an attribute of the model, or of a module in it, names; else the only size
    of window that its file allows."""
    modules = modules_of(model) if torch_if_loaded() is not None else []
    for one in (model, *(inner for module in modules for inner in module.modules())):
        for name in names:
            size = _pair(getattr(one, name, None))
            if size is not None:
                return size
    return _pair(needs_of(model).window)


def _pair(value: Any) -> Pair | None:
    """The last two of several sizes, as (rows, columns); None if it is no size."""
    sides = list(value)[-2:] if isinstance(value, (tuple, list)) else [value, value]
    if len(sides) != 2 or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in sides):
        return None
    return sides[0], sides[1]


def with_window(model: Any, given: dict[str, Any], phase_of: Callable[[], Pair | None]) -> dict[str, Any]:
    """The given options with a number for window, and what follows from it: see `windowed`.

    phase_of: tells the model's phase, if it is known.

    Raises:
        ValueError, TypeError: it is no size, or the model names none.
    """
    asked = given.get("window")
    if asked is None:
        return given
    checked = checked_window("window", asked)
    size = checked if isinstance(checked, tuple) else _trained(model)
    return windowed(given, size, given.get("needs") or needs_of(model), phase_of)


def _trained(model: Any) -> Pair:
    size = named_size(model, TRAINED)
    if size is None:
        raise ValueError(
            "window must be a number or a pair (rows, columns) for this model, not 'trained': no attribute of it tells "
            f"the size of the images that it was trained on, such as {TRAINED[0]}"
        )
    return size


def with_reason(options: Options, report: RunInfo) -> RunInfo:
    """The report of a run whose windows have one size."""
    if options.window is None or report.how == "exact":
        return report
    why = f"windows of {by(options.window)}, always of that size, whose overlaps are blended: not exact by nature, as "
    why += "every pixel depends on where its window lies"
    return replace(report, why=f"{why}; {report.why}")
