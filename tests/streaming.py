# SPDX-License-Identifier: MIT
"""Streams through recorded graphs, for the tests of `schedule="stream"`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from halotile.inspection.recorder import Graph, record
from halotile.run.stream.steps import Constants, Stepper, add_statistics, streamed

__all__ = ["Calls", "assert_streams", "difference", "image_of", "in_steps", "reader"]

Tensor = torch.Tensor

EXACT = 1e-12  # of the largest value, in float64


class Calls(nn.Module):
    """A function as a module, with modules of its own."""

    def __init__(self, call: Callable[..., Tensor], *inner: nn.Module):
        super().__init__()
        self.call, self.inner = call, nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.inner)


def image_of(size: tuple[int, ...], channels: int = 3, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, *size), dtype=torch.float64, generator=random)


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference as a part of the largest value."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.numel() == 0:
        return 0.0
    return float((got - want).abs().max()) / max(float(want.abs().max()), 1e-30)


def reader(image: Tensor) -> Callable[[int, int], Tensor]:
    """Reads rows of an image, each once and in order."""
    last = 0

    def read(start: int, stop: int) -> Tensor:
        nonlocal last
        assert last <= start < stop <= image.shape[2]
        last = stop
        return image[:, :, start:stop].clone(memory_format=torch.preserve_format)

    return read


def in_steps(
    graph: Graph, image: Tensor, heights: int | Iterable[int], begin: int = 0, end: int | None = None, measured: int = 5
) -> tuple[int, Tensor]:
    """The first row that a stream yields, and its rows together, in steps of such heights of the result."""
    constants = Constants(channels_last=False)
    with torch.inference_mode():
        add_statistics(graph, constants, _restarted(image), measured)
        stepper = Stepper(graph, [graph.result], constants, reader(image), begin, end)
        steps = heights if isinstance(heights, int) else itertools.cycle(heights)
        found = [(y, rows.clone()) for y, rows in stepper.run(steps)]
    for (y, rows), (after, _) in itertools.pairwise(found):
        assert y + rows.shape[2] == after  # in order and without gaps
    return found[0][0], torch.cat([rows for _, rows in found], 2)


def _restarted(image: Tensor) -> Callable[[int, int], Tensor]:
    """Reads rows in order, again from the top for each sweep."""
    return lambda start, stop: image[:, :, start:stop].clone(memory_format=torch.preserve_format)


def assert_streams(
    module: nn.Module, image: Tensor, heights: Iterable[int] = (1, 3, 8, 500), exact: float = EXACT
) -> tuple[Graph, Tensor]:
    """A module gives the same for an image in one piece, and for its rows in steps."""
    graph = record(module, tuple(image.shape[1:]), image.dtype)  # type: ignore[arg-type]
    with torch.inference_mode():
        want = module(image.clone())
        for rows in heights:
            got: Any = streamed(graph, image, rows)
            assert difference(got, want) <= exact, rows
    return graph, want
