# SPDX-License-Identifier: MIT
"""Follows products of an image and local values, so that a sum over a window uses one factor: that of its pixel.

    q / norm(q)      every pixel of q is divided by the norm of its own window; what is summed for one pixel must be
                     divided by the norm of that pixel, as if the model ran on that pixel's window alone

Imports torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .local_values import Factored, LocalTensor, noted, reciprocal, reshaped
from .statistics import Watching

__all__ = ["Following", "factored_along"]

Pair = tuple[int, int]
Tensor = torch.Tensor


def factored_along(one: torch.Tensor, dim: int) -> Factored | None:
    """The factors of a product whose rows and columns are flattened along a dimension."""
    found: Factored | None = getattr(one, "factored", None)
    return found if found is not None and found.base is not None and found.dims == (dim, dim) else None


class Following(Watching):  # type: ignore[no-untyped-call]
    """Also follows the factors of products through views and copies."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.is_mutable and args and hasattr(args[0], "factored"):
            args[0].factored = None  # it is no longer that product
            return result
        if not isinstance(result, torch.Tensor) or isinstance(result, LocalTensor):
            return result
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and not isinstance(first, LocalTensor) and not hasattr(result, "factored"):
            self._follow(func, args, first, result)
        return result

    def _follow(self, func: Any, args: tuple[Any, ...], first: torch.Tensor, result: torch.Tensor) -> None:
        name = func._schema.name.removeprefix("aten::")
        if name in ("mul", "div") and len(args) == 2 and getattr(first, "factored", None) is None:
            spread = getattr(args[1], "factored", None)
            if spread is not None and spread.base is None and result.shape == first.shape == args[1].shape:
                factor = spread.factor if name == "mul" else reciprocal(spread.factor)
                noted(result, Factored(first, factor, spread.dims))
            return
        factored = getattr(first, "factored", None)
        if factored is not None:
            found = _viewed(func, args, result, factored)
            if found is not None:
                noted(result, found)


def _viewed(func: Any, args: Any, result: Tensor, factored: Factored) -> Factored | None:
    """The factors of a view or copy of a product; None if they are not followed."""
    name, shape = func._schema.name.removeprefix("aten::"), args[0].shape
    row, column = factored.dims
    if name in ("clone", "alias", "detach", "_to_copy", "contiguous") or (name == "expand" and result.shape == shape):
        return Factored(factored.base, factored.factor, factored.dims)
    if name in ("transpose", "permute", "t"):
        places = _moved(name, args, len(shape))
        base = None if factored.base is None else factored.base.permute(places)
        factor = factored.factor.permute(places)
        assert isinstance(factor, LocalTensor)
        return Factored(base, factor, (places.index(row), places.index(column)))
    if name in ("view", "_unsafe_view", "reshape"):
        before, pixels = math.prod(shape[:row]), math.prod(shape[row : column + 1])
        sizes = list(result.shape)
        found = _at(sizes, before, pixels, (shape[row], shape[column]))
        if found is None:
            return None
        start, stop = found
        small = [*sizes[:start], *[1] * (stop - start), *sizes[stop:]]
        base = None if factored.base is None else factored.base.reshape(sizes)
        return Factored(base, reshaped(factored.factor, small), (start, stop - 1))
    return None


def _moved(name: str, args: Any, rank: int) -> list[int]:
    if name == "permute":
        return [dim % rank for dim in args[1]]
    one, other = (0, rank - 1) if name == "t" else (args[1] % rank, args[2] % rank)
    places = list(range(rank))
    places[one], places[other] = places[other], places[one]
    return places


def _at(sizes: list[int], before: int, pixels: int, sides: Pair) -> Pair | None:
    """Where the pixels are in a view: (first dimension, one past the last)."""
    for start in range(len(sizes)):
        if math.prod(sizes[:start]) != before:
            continue
        if sizes[start] == pixels:
            return start, start + 1
        if tuple(sizes[start : start + 2]) == sides and math.prod(sides) == pixels:
            return start, start + 2
    return None
