# SPDX-License-Identifier: MIT
"""Networks that benchmarks restore with, in the sizes that people use; random weights."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from time import process_time

import torch
from torch import nn
from torch.nn import functional as F

from halotile.run import kept_heap as heap

__all__ = ["Compact", "Denoiser", "window_cost"]


class Compact(nn.Module):
    """Real-ESRGAN's, x4: 64 features, 16 convolutions between the first and the last."""

    def __init__(self, width: int = 64, layers: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width))
        for _ in range(layers):
            self.body.extend([nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)])
        self.body.append(nn.Conv2d(width, 48, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.body(x), 4) + F.interpolate(x, scale_factor=4, mode="nearest")


class Denoiser(nn.Module):
    """At half the size: 12 convolutions of 96 channels."""

    def __init__(self, width: int = 96, layers: int = 12):
        super().__init__()
        sides = [12] + [width] * (layers - 1) + [12]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sides))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, 2)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.pixel_shuffle(self.layers[-1](x), 2)


def window_cost(
    model: nn.Module,
    side: int,
    layout: torch.memory_format,
    keep: bool,
    clock: Callable[[], float] = process_time,
    times: int = 1,
) -> float:
    """Seconds a pixel of the model alone: the median of so many runs after a first one."""
    window, seconds = torch.rand(1, 3, side, side).contiguous(memory_format=layout), []
    with heap.kept(keep), torch.inference_mode():
        model(window)
        for _ in range(times):
            start = clock()
            model(window)
            seconds.append(clock() - start)
    return statistics.median(seconds) / side**2
