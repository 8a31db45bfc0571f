# SPDX-License-Identifier: MIT
"""global_stats="local": the size of the windows of statistics, and how far the model then sees."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import TileError
from ..images.image import Image
from ..images.values import as_floats, fill
from ..options import Options
from ..plan import Box
from ..run.report import RunInfo
from ..scales import by_axis
from .knowledge import Knowledge
from .opening import ready_for_windows
from .trained import named_size

if TYPE_CHECKING:
    from ..inspection import ModelInfo
    from ..run.global_stats import GlobalStats, Survey
    from ..run.prepared import Prepared

__all__ = ["local_halo", "with_stats_size"]

Pair = tuple[int, int]

TRAINED = ("stats_size", "base_size", "train_size", "training_size")  # attributes of modules that name it
TILE = 64
NORMS = ("linalg_vector_norm", "norm")
MOST = 3  # fields from the result to the farthest input that are looked for


def with_stats_size(options: Options, knowledge: Knowledge) -> Options:
    """The options with a size of windows, if statistics are local.

    Raises:
        ValueError: none is given, and the model names none.
    """
    if options.global_stats != "local" or options.stats_size is not None:
        return options
    size = named_size(knowledge.model, TRAINED)
    if size is not None:
        return replace(options, stats_size=size)
    raise ValueError(
        "stats_size must be given with global_stats='local': the size in pixels of the images that the model was "
        "trained on, or half as much again; the model has no attribute that tells it"
    )


def local_halo(options: Options, knowledge: Knowledge, image: Image, info: ModelInfo) -> Pair | None:
    """How far the model sees: its field, and half a window for each of the statistics that depend on each other. None
    if its own field is not known.

    Raises:
        ValueError: the model does something with a statistic that cannot be done for every pixel.
    """
    if info.local_field is None:
        return None
    key = ("local", options.phase)
    if key not in knowledge.reaches:
        knowledge.reaches[key] = _looked(options, knowledge, image, info)
    levels, field = knowledge.reaches[key]
    rows, columns = (one + levels * -(-side // 2) for one, side in zip(field, options.stats_size, strict=True))
    return rows, columns


def _looked(options: Options, knowledge: Knowledge, image: Image, info: ModelInfo) -> tuple[int, Pair]:
    """The number of statistics that depend on each other, and how far the model sees with windows of one pixel."""
    assert info.local_field is not None
    tile = max(TILE, *(2 * one for one in options.phase), *options.needs.least)
    halo = tuple(math.ceil(max(0, one) / scale) for one, scale in zip(info.trim, by_axis(info.scale), strict=True))
    own = {"tile_size": tile, "halo": halo, "overlap": 0, "batch_size": 1, "boundary": "reflect", "memory_limit": None}
    own |= {"stats_size": (1, 1), "schedule": "tiles", "out": None, "progress": None, "verify": 0}
    knowledge = knowledge.for_windows(replace(options, **own))
    report = RunInfo.given(knowledge.options, info)
    from ..run.global_stats import GlobalStats
    from ..run.local_stats import refused

    try:
        prepared = ready_for_windows(image, knowledge, knowledge.options, report, options.out_dtype)
        stats = GlobalStats(prepared.windows, "local", info)
        survey = stats.survey(prepared.traits.parts[0], 0, prepared.plan)
        rows, columns = (_reach(axis, prepared, stats, survey.levels, info.local_field.along(axis)) for axis in (0, 1))
        levels = survey.levels - _norms(survey, prepared.windows.held[prepared.traits.parts[0]].folded)
    except TileError as error:
        found = refused(error)
        if found is None:
            raise
        text = f"global_stats must be 'tile', 'frozen' or 'exact' for this model, not 'local': {found}"
        raise ValueError(text) from error
    return levels, (rows, columns)


def _reach(axis: int, prepared: Prepared, stats: GlobalStats, levels: int, sides: Pair) -> int:
    """How far NaN reaches into a window along an axis, which shows what depends on what: a statistic may be taken at
    the end of one branch and used at the start of another, so that it is farther than the field."""
    plan, part, field = prepared.plan, prepared.traits.parts[0], max(sides)
    step = plan.phase[axis]
    lead = stats.legal(axis, field + 1, plan)
    box = stats.legal(axis, 2 * MOST * field + 16, plan)
    size = [stats.legal(other, 32, plan) for other in (0, 1)]
    size[axis] = stats.legal(axis, box + 2 * lead, plan)
    values = np.random.default_rng(0).random((1, part.feed, *size), np.float32)
    along = values.swapaxes(2, 2 + axis)
    along[:, :, :lead], along[:, :, lead + box :] = np.nan, np.nan
    tile = replace(plan[0], window=Box(0, 0, *size))
    windows = prepared.windows.read(part, 0, plan, [tile])
    fill(windows, values)
    output = as_floats(prepared.windows.outputs(part, 0, windows, [tile])).swapaxes(2, 2 + axis)
    clean = np.flatnonzero(~np.isnan(output).any(axis=(0, 1, 3)))
    if not len(clean):
        return (levels + 1) * field  # one field to each of the statistics, and one to the result
    first, last = (int((at + plan.trim[axis]) / by_axis(plan.scale)[axis]) for at in (clean[0], clean[-1]))
    found = max(first - lead, lead + box - 1 - last)
    return field if found <= field else found + step - 1


def _norms(survey: Survey, folded: set[int]) -> int:
    """Levels of norms that only divide what products are made of: they are of the same window, see `Factored`."""
    norms = {level: True for level in range(survey.levels)}
    products = dict(norms)
    for number, one in survey.found.items():
        norms[one.level] &= one.name.removeprefix("aten::") in NORMS
        products[one.level] &= number in folded
    return sum(products[level] and norms[level - 1] for level in range(1, survey.levels))
