# SPDX-License-Identifier: MIT
"""global_stats="local": every statistic is taken from a window around each pixel, as large as the images of training.

    x.mean((2, 3))   (n, c): for the model one number for each channel; behind it, one for each pixel as well

What the model makes of it is made for every pixel, until it meets the image again: see local_values.py. Imports torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..images.channels import Part
from ..plan import TilePlan
from .factored import Following, factored_along
from .global_stats import GlobalStats
from .local_values import Factored, LocalTensor, Made, NotLocal, Space
from .statistics import Call, Statistic
from .survey import Found, Lie, Survey
from .window_statistics import Gram, window_maps

__all__ = ["Local", "local_statistics", "refused"]

Pair = tuple[int, int]


def local_statistics(stats: GlobalStats, part: Part, index: int, plan: TilePlan, size: Pair) -> Local:
    """Raises ValueError if something in the model is no statistic of a window."""
    modules = stats.windows.modules
    weights = (one for module in modules for one in (*module.parameters(), *module.buffers()))
    constants = frozenset(one.untyped_storage().data_ptr() for one in weights if one.device.type != "meta")
    return Local(stats.survey(part, index, plan), size, constants)


class Local:
    """Statistics of windows: inside `with local(shape):` the model takes them for those of the whole image.

    Args:
        size: of windows, input pixels (rows, columns).
        constants: addresses of the model's weights.

    Attributes:
        folded: numbers of products whose operands were divided by norms of the same window.
    """

    def __init__(self, survey: Survey, size: Pair, constants: frozenset[int]):
        self.survey, self.size, self.constants = survey, size, constants
        self.folded: set[int] = set()

    @contextlib.contextmanager
    def __call__(self, shape: Pair) -> Iterator[None]:
        """shape: of the model's windows."""
        keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        watching = Following(lambda number, call: self._handle(number, call, shape, keys))
        with watching:
            yield
        if watching.count != self.survey.calls:
            raise RuntimeError(
                f"the model called {watching.count} operators that take elements together, not {self.survey.calls} as "
                "before: global_stats needs a model that does the same for every window"
            )

    def _handle(self, number: int, call: Call, shape: Pair, keys: tuple[Any, Any]) -> Any:
        found = self.survey.found.get(number)
        return NotImplemented if found is None else call.result(self._statistic(number, call, found, shape, keys))

    def _statistic(self, number: int, call: Call, found: Found, shape: Pair, keys: tuple[Any, Any]) -> Statistic:
        lie = found.lies[0]
        x, dims = call.operands[0]
        row, column = lie.dims
        flat = row == column
        sides = [int(side.rate * n) for side, n in zip((lie.rows, lie.columns), shape, strict=True)]
        height, width = sides if flat else (x.shape[row], x.shape[column])
        if height * width == 1:
            return call.measured()
        size = _elements(lie, self.size)
        count = float(min(size[0], height) * min(size[1], width))
        space = Space(height, width, self.constants, keys)
        if call.kind == "product":
            factors = [factored_along(x, x.ndim - 1), factored_along(call.operands[1][0], x.ndim - 2)]
            if all(factors):
                self.folded.add(number)
            return Statistic(call.kind, count, _products(call, factors, space, size))
        others = [dim + (flat and dim > row) for dim in dims if dim not in (row, column)]
        whole = torch.unflatten(x, row, (height, width)) if flat else x
        place = (row, row + 1) if flat else (row, column)
        maps = window_maps(call.kind, whole, others, place, size, call.power)
        for dim in others:
            count *= whole.shape[dim]
        hint = (row - x.ndim, column - x.ndim)
        first = _of_map(maps[0], place, call.sizes, space, hint)
        second = None if maps[1] is None else _of_map(maps[1], place, call.sizes, space, hint)
        return Statistic(call.kind, count, first, second)


def _elements(lie: Lie, size: Pair) -> Pair:
    """A window in elements of an operand: as published, those of its share of the image, rounded down."""
    return max(1, int(size[0] * lie.rows.rate)), max(1, int(size[1] * lie.columns.rate))


@dataclass
class _Map:
    """Values of a map (rows, columns, ...)."""

    map: torch.Tensor
    sizes: tuple[int, ...]
    largest: int

    def rows(self, start: int, stop: int, made: Made) -> torch.Tensor:
        return self.map[start:stop].reshape(-1, *self.sizes)


def _of_map(one: torch.Tensor, place: Pair, sizes: tuple[int, ...], space: Space, dims: Pair) -> LocalTensor:
    source = _Map(one.movedim(place, (0, 1)), sizes, 1)
    return LocalTensor(one.new_ones(sizes), space, source, dims)


@dataclass
class _Matrices:
    gram: Gram
    sizes: tuple[int, ...]
    largest: int

    def rows(self, start: int, stop: int, made: Made) -> torch.Tensor:
        return self.gram.rows(start, stop).reshape(-1, *self.sizes)


def _products(call: Call, factors: Sequence[Factored | None], space: Space, size: Pair) -> LocalTensor:
    """Products of channels. What was divided by a statistic before, as by a norm, is divided by that of the pixel whose
    window it is, as if the model ran on that window alone."""
    (left, _), (right, _) = call.operands
    left, right = (
        one if factor is None or factor.base is None else factor.base
        for one, factor in zip((left, right), factors, strict=True)
    )
    maps = [torch.unflatten(one, -1, (space.rows, space.columns)) for one in (left, right.transpose(-1, -2))]
    gram = Gram(maps[0].reshape(-1, *maps[0].shape[-3:]), maps[1].reshape(-1, *maps[1].shape[-3:]), size)
    sizes = call.sizes
    like = torch.ones(sizes, dtype=torch.promote_types(left.dtype, torch.float32), device=left.device)
    result: Any = LocalTensor(like, space, _Matrices(gram, sizes, 2 * like.numel()))
    for factor in factors:
        if factor is not None:
            result = result * factor.factor
    assert isinstance(result, LocalTensor)
    return result


def refused(error: BaseException | None) -> NotLocal | None:
    """What a model does that cannot be done for every pixel, if that is why it failed."""
    while error is not None:
        if isinstance(error, NotLocal):
            return error
        error = error.__cause__ or error.__context__
    return None
