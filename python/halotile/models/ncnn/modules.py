# SPDX-License-Identifier: MIT
"""Layers of ncnn that torch lacks."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .read import UNSET


class PointConvolution(nn.Conv2d):
    """A 1x1 convolution of an image, or of a vector (N, C), which ncnn treats as an image of one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.ndim == 4 else super().forward(x[..., None, None]).flatten(1)


class InnerProduct(nn.Linear):
    """A linear layer on the flattened blob, or on each row of a matrix if rows have the right length."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.ndim == 3 and x.shape[-1] == self.in_features
        return super().forward(x if rows else x.flatten(1))


class Plain(nn.Module):
    """A layer with settings and no weights. Settings are its attributes, and part of its repr."""

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})
        return settings[name] if name in settings else super().__getattr__(name)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class Clip(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class HardSigmoid(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return (x * self.alpha + self.beta).clamp(0, 1)


class HardSwish(HardSigmoid):
    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Multiple(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Constant(nn.Module):
    """MemoryData: a constant (1, ...) for all images of a batch."""

    def __init__(self, data: Tensor):
        super().__init__()
        self.register_buffer("data", data)

    def forward(self) -> Tensor:
        return self.data


class Scale(nn.Module):
    """Scale and bias along the first axis of an image, matrix or vector. Without weights, another blob is the scale."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = (
            None if one is None else nn.Parameter(one, requires_grad=False) for one in (weight, bias)
        )

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        if self.weight is None:
            return x * factors.reshape(len(factors), *shape)
        y = x * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


UNARY = (
    *("abs", "neg", "floor", "ceil", "square", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "tan"),
    *("asin", "acos", "atan", "reciprocal", "tanh", "log10", "round", "trunc"),
)


class Unary(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(torch, self.operation)(x)


BINARY: dict[str, Callable[[Tensor, Tensor | float], Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": lambda a, b: torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp(min=b),
    "min": lambda a, b: torch.minimum(a, b) if isinstance(b, Tensor) else a.clamp(max=b),
    "pow": operator.pow,
    "rsub": lambda a, b: b - a,
    "rdiv": lambda a, b: b / a,
    "rpow": lambda a, b: b**a,
}


class Binary(Plain):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            return BINARY[self.operation](a, self.number)
        return BINARY[self.operation](aligned(a, b), aligned(b, a))


def aligned(a: Tensor, b: Tensor) -> Tensor:
    """`a`, reshaped to broadcast to a `b` of more axes as ncnn does.

    Unlike NumPy, a vector is aligned with the channels if the lengths match, else with the columns, and a matrix with
    channels and rows. https://github.com/Tencent/ncnn/wiki/binaryop-broadcasting, src/layer/binaryop.cpp."""
    missing = b.ndim - a.ndim
    if missing <= 0:
        return a
    if a.ndim == 2 and a.shape[1] != b.shape[1]:
        return a.reshape(a.shape[0], *[1] * missing, a.shape[1])
    return a.reshape(*a.shape, *[1] * missing)


class Eltwise(Plain):
    def forward(self, *xs: Tensor) -> Tensor:
        if self.factors:
            xs = tuple(x if factor == 1 else x * factor for x, factor in zip(xs, self.factors, strict=True))
        y = xs[0]
        for x in xs[1:]:
            y = BINARY[self.operation](y, x)
        return y


class Concat(Plain):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.axis + 1 if self.axis >= 0 else self.axis)


class Slices(Plain):
    """NumPy's slices along given axes, except that a stop of 0 means the end."""

    def forward(self, x: Tensor) -> Tensor:
        axes = self.axes or range(x.ndim - 1)
        for axis, start, stop in zip(axes, self.starts, self.stops, strict=False):
            at = axis + 1 if axis >= 0 else x.ndim + axis
            side = x.shape[at]
            first = start if start >= 0 else side + start
            last = min(side, stop if stop > 0 else side + stop)
            x = x.narrow(at, first, last - first)
        return x


class Crop(Plain):
    """Crops to given sizes, or to the size of another blob. Triples are (columns, rows, channels)."""

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        sizes = self.settings.get("sizes", (UNSET,) * 3)
        if like is not None:
            sizes = (like.shape[-1], like.shape[-2], like.shape[1] if like.ndim == 4 else UNSET)
        ends = self.settings.get("ends", (0, 0, 0))
        for at, first, end, size in zip((3, 2, 1), self.offsets, ends, sizes, strict=True):
            rest = x.shape[at] - first - end
            x = x.narrow(at, first, rest if size == UNSET else size if like is not None else min(size, rest))
        return x


class Interp(Plain):
    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        if x.ndim == 2:
            x = x[..., None, None]
        corners = {} if self.mode == "nearest" else {"align_corners": self.align_corners}
        size = self.size if like is None else tuple(like.shape[-2:])
        if size is not None:
            return F.interpolate(x, size, mode=self.mode, **corners)
        return F.interpolate(x, scale_factor=self.scale, mode=self.mode, **corners)


class Unshuffled(Plain):
    """Pixel shuffle of channels in the order (row, column, output channel)."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        by = self.factor
        y = x.reshape(n, by, by, c // by**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // by**2, height * by, width * by)


class GlobalPooling(Plain):
    """The maximum or mean of each channel: a vector (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) if self.maximum else x.mean((2, 3))


class Reshape(Plain):
    """`shape` is (columns), (columns, rows) or (columns, rows, channels): 0 keeps a side, -1 infers it."""

    def forward(self, x: Tensor) -> Tensor:
        was = [*reversed(x.shape[1:]), 1, 1]
        return x.reshape(len(x), *reversed([side or was[i] for i, side in enumerate(self.shape)]))


class Permute(Plain):
    """`order` is that of the axes (N, channels, rows, columns), `matrix` that of (N, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order if x.ndim == 4 else self.matrix)
