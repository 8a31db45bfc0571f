# SPDX-License-Identifier: MIT
"""Small random-weight networks with known receptive fields, strides and scales."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn


class Chain(nn.Module):
    """`depth` 3x3 convolutions: radius `depth`. With `valid`, without padding: it loses `depth` pixels at each end."""

    def __init__(self, depth=3, *, channels=3, scale=1, valid=False, mode="zeros", width=8):
        super().__init__()
        sides = [channels] + [width] * (depth - 1) + [channels * scale**2]
        padding = 0 if valid else 1
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=padding, padding_mode=mode) for a, b in itertools.pairwise(sides)
        )
        self.shuffle = nn.PixelShuffle(scale)
        self.radius, self.scale, self.phase = depth, scale, 1

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.nn.functional.leaky_relu(layer(x), 0.1)
        return self.shuffle(self.layers[-1](x))


class Stridden(nn.Module):
    """Strides of such lengths, and transposed convolutions back: it takes multiples of their product only."""

    def __init__(self, *strides):
        super().__init__()
        down = [nn.Conv2d(3, 3, k, k) for k in strides]
        up = [nn.ConvTranspose2d(3, 3, k, k) for k in reversed(strides)]
        self.body = nn.Sequential(*down, *up)

    def forward(self, x):
        return x + self.body(x)


class Strided(nn.Module):
    """Down by `stride` in a strided convolution, up again by pixel shuffle: phase `stride`, scale `scale`."""

    def __init__(self, stride=2, *, scale=1, channels=3, width=8):
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, stride + 2, stride, padding=1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, channels * (scale * stride) ** 2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale * stride)
        self.scale, self.phase = scale, stride
        # From an output pixel: up to 2 coarse pixels away, the strided window reaches stride + 1, the head 1 more.
        self.radius = 2 * stride + stride + 2

    def forward(self, x):
        x = torch.relu(self.down(torch.relu(self.head(x))))
        return self.shuffle(self.tail(torch.relu(self.body(x))))


class Half(nn.Module):
    """Scale 1/2."""

    def __init__(self, channels=3):
        super().__init__()
        self.down = nn.Conv2d(channels, 8, 4, 2, padding=1)
        self.body = nn.Conv2d(8, channels, 3, padding=1)
        self.radius, self.scale, self.phase = 6, "1/2", 2

    def forward(self, x):
        return self.body(torch.relu(self.down(x)))


class ThreeHalves(nn.Module):
    """Scale 3/2: up by 3, down by 2."""

    def __init__(self, channels=3):
        super().__init__()
        self.head = nn.Conv2d(channels, 4, 3, padding=1)
        self.up = nn.PixelShuffle(3)
        self.mid = nn.Conv2d(4, 4 * 9, 3, padding=1)
        self.down = nn.Conv2d(4, channels, 4, 2, padding=1)
        self.radius, self.scale, self.phase = 6, "3/2", 2

    def forward(self, x):
        return self.down(torch.relu(self.up(self.mid(torch.relu(self.head(x))))))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().eval()


def on_arrays(module):
    """The module as a callable on arrays: for whole-image references."""

    def call(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(batch))).float().numpy()

    return call


class Delicate(nn.Module):
    """Finite in float32; in half precision a step is lost beside white, and 0 / 0 remains."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.even = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.even.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x):
        x = self.even(x)
        step = (x + 2.0**-12) - x if x.dtype == torch.float16 else (x + 2.0**-10) - x
        return self.layer(x) * (step / step)
