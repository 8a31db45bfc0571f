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

__all__ = ["RRDB", "Compact", "Denoiser", "UNet", "window_cost"]


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


class UNet(nn.Module):
    """Four levels of 32 to 512 features: pooling down, transposed convolutions up."""

    def __init__(self, base: int = 32, depth: int = 4):
        super().__init__()
        sides = [base << level for level in range(depth + 1)]
        self.first, self.last = _pair(3, base), nn.Conv2d(base, 3, 1)
        self.down = nn.ModuleList(_pair(a, b) for a, b in itertools.pairwise(sides))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in itertools.pairwise(sides))
        self.join = nn.ModuleList(_pair(2 * side, side) for side in sides[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen, y = [], self.first(x)
        for down in self.down:
            seen.append(y)
            y = down(F.max_pool2d(y, 2))
        for up, join, skip in zip(reversed(self.up), reversed(self.join), reversed(seen), strict=True):
            y = join(torch.cat([up(y), skip], 1))
        return x + self.last(y)


def _pair(a: int, b: int) -> nn.Sequential:
    first, second = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(b), nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


class Dense(nn.Module):
    """A residual dense block of Real-ESRGAN's: five convolutions, each of which sees all before it."""

    def __init__(self, features: int = 64, growth: int = 32):
        super().__init__()
        sides = [features + growth * layer for layer in range(5)]
        self.layers = nn.ModuleList(nn.Conv2d(a, growth, 3, padding=1) for a in sides[:-1])
        self.last = nn.Conv2d(sides[-1], features, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(F.leaky_relu(layer(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.last(torch.cat(seen, 1))


class RRDB(nn.Module):
    """Real-ESRGAN's x4 network: 23 blocks of three dense blocks in x4plus, 6 in x4plus-anime."""

    def __init__(self, blocks: int = 23):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(Dense(), Dense(), Dense()) for _ in range(blocks))
        self.body, *self.steps = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.steps = nn.ModuleList(self.steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x = self.head(x)
        for block in self.blocks:
            y = y + 0.2 * block(y)
        y = x + self.body(y)
        for step in self.steps[:2]:
            y = F.leaky_relu(step(F.interpolate(y, scale_factor=2)), 0.2)
        return self.tail(F.leaky_relu(self.steps[2](y), 0.2))
