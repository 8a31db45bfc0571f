# SPDX-License-Identifier: MIT
"""What the first window teaches about a model: channels, scale, and what its valid convolutions take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .channels import Part, routes
from .errors import ModelOutputError, TileError
from .forward import Forward, tile_error
from .options import Options
from .plan import TilePlan

__all__ = ["Facts", "learn"]

# What models say when they are given the wrong number of channels; anything else is a failure of another kind.
ABOUT_CHANNELS = re.compile(r"channel|shape|dimension|size|broadcast|expected", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """Attributes:
    parts: which channels go through the model together, in the order of the result's channels.
    out_channels: of each part.
    scale: output pixels per input pixel.
    loss: output pixels missing at each end of a window (rows, columns).
    """

    parts: tuple[Part, ...]
    out_channels: tuple[int, ...]
    scale: Fraction
    loss: tuple[int, int]


Planner = Callable[[Fraction | None, tuple[int, int]], TilePlan]


def learn(forward: Forward, options: Options, planned: Planner) -> tuple[Facts, np.ndarray]:
    """Runs the model on the first batch. Returns the facts and the first part's outputs for that batch.

    Raises:
        TileError: the model fails on it. ValueError: the halo is smaller than what valid convolutions take.
    """
    failure: TileError | None = None
    for parts in routes(forward.image.channels, options.alpha, forward.model.in_channels):
        try:
            return _learn_route(parts, forward, options, planned)
        except TileError as error:
            failure = failure or error
            if isinstance(error, ModelOutputError) or not ABOUT_CHANNELS.search(str(error.__cause__)):
                break
    assert failure is not None
    raise failure


def _learn_route(
    parts: tuple[Part, ...], forward: Forward, options: Options, planned: Planner
) -> tuple[Facts, np.ndarray]:
    def first_output(plan: TilePlan) -> np.ndarray:
        return forward(parts[0], 0, plan[: options.batch_size])

    asked = planned(options.scale, (0, 0))
    output = first_output(asked)
    scale = options.scale or _find_scale(parts[0], forward, asked, output)
    plan = planned(scale, (0, 0))
    if plan.window != asked.window or plan.grid != asked.grid:  # the scale's denominator has changed the phase
        output = first_output(plan)
    loss = _find_loss(plan, output, scale)
    out_channels = tuple(1 if part.repeated or part.how != "model" else output.shape[1] for part in parts)
    return Facts(parts, out_channels, scale, loss), output


def _whole_factor(plan: TilePlan, output: np.ndarray) -> Fraction | None:
    factor, rest = divmod(output.shape[2], plan.window[0])
    return Fraction(factor) if rest == 0 and factor > 0 and output.shape[3] == factor * plan.window[1] else None


def _find_scale(part: Part, forward: Forward, plan: TilePlan, output: np.ndarray) -> Fraction:
    """A whole factor, the same both ways, is the scale. Anything else could as well be another scale less what valid
    convolutions take: a second, larger window tells them apart, since only the scale makes the output grow."""
    factor = _whole_factor(plan, output)
    if factor is not None:
        return factor
    tile, (height, width) = plan[0], output.shape[2:]
    growth = (12 * plan.phase[0], 12 * plan.phase[1])
    box = tile.window._replace(height=tile.window.height + growth[0], width=tile.window.width + growth[1])
    larger = forward(part, 0, [replace(tile, window=box)])
    by_rows = Fraction(larger.shape[2] - height, growth[0])
    by_columns = Fraction(larger.shape[3] - width, growth[1])
    if by_rows != by_columns or by_rows <= 0:
        text = (
            f"the model turned a window of {plan.window[0]}x{plan.window[1]} into {height}x{width} and one of "
            f"{box.height}x{box.width} into {larger.shape[2]}x{larger.shape[3]}: no scale fits; is the phase right?"
        )
        raise tile_error(ModelOutputError, [tile], text)
    return by_rows


def _find_loss(plan: TilePlan, output: np.ndarray, scale: Fraction) -> tuple[int, int]:
    missing = [side * scale - got for side, got in zip(plan.window, output.shape[2:], strict=True)]
    uneven = any(side < 0 or side.denominator != 1 or side.numerator % 2 for side in missing)
    if uneven or _whole_factor(plan, output) not in (None, scale):  # a scale that was given, and is wrong
        text = (
            f"the model turned a window of {plan.window[0]}x{plan.window[1]} into {output.shape[2]}x{output.shape[3]}, "
            f"which is not scale {scale} times the window less as many pixels at one end as at the other"
        )
        raise tile_error(ModelOutputError, [plan[0]], text)
    return missing[0].numerator // 2, missing[1].numerator // 2
