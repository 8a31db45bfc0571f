# SPDX-License-Identifier: MIT
"""What a module's operators tell at one size, in a second or two: the phase of its windows, scale and trim.

Unlike `inspect_model` it confirms nothing by running the model, so a run takes it for what it is: the phase is used,
for a wrong one is no worse than none; scale and trim only where the first window agrees. Imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

__all__ = ["Quick", "plain_look", "quick_look"]

SIZE = (64, 64)  # of the image that is looked at, in pixels
Pair = tuple[int, int]


@dataclass(frozen=True)
class Quick:
    """Attributes:
    phase: input pixels (rows, columns) after which the model repeats itself; None if that was not found.
    scale: output pixels per input pixel; None if unknown.
    trim: output pixels that valid convolutions take at each end of a window (rows, columns); None if unknown.
    """

    phase: Pair | None = None
    scale: Fraction | None = None
    trim: Pair | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"scale": None if self.scale is None else str(self.scale)})

    @classmethod
    def from_json(cls, text: str) -> Quick:
        """What `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        found = json.loads(text)
        phase, trim = (_pair(found[name], least) for name, least in (("phase", 1), ("trim", 0)))
        scale = None if found["scale"] is None else Fraction(found["scale"])
        if scale is not None and not 0 < scale <= 1024:
            raise ValueError(f"scale must be positive, not {scale}")
        return cls(phase, scale, trim)


def _pair(value: Any, least: int) -> Pair | None:
    if value is None:
        return None
    rows, columns = value
    if not all(type(one) is int and least <= one < 1 << 20 for one in (rows, columns)):
        raise ValueError(f"a pair of whole numbers from {least} on was expected, not {value}")
    return rows, columns


# Layers that change single elements.
POINTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
POINTWISE += (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d)


def plain_look(module: nn.Module) -> Quick | None:
    """What a chain of torch's own layers tells without being run; None for any other module, and for strides."""
    scale, trim = 1, [0, 0]
    for layer in _chain(module):
        kind = type(layer)
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return None
        if kind is nn.PixelShuffle:
            scale, trim = scale * layer.upscale_factor, [lost * layer.upscale_factor for lost in trim]
        elif kind is nn.Conv2d and set(layer.stride) == {1}:
            taken = [_taken(layer, axis) for axis in (0, 1)]
            if any(lost % 2 or lost < 0 for lost in taken):
                return None
            trim = [before + lost // 2 for before, lost in zip(trim, taken, strict=True)]
        elif kind not in POINTWISE:
            return None
    return Quick((1, 1), Fraction(scale), (trim[0], trim[1]))


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of chains within chains, in order."""
    if type(module) is nn.Sequential and not module._forward_hooks and not module._forward_pre_hooks:
        for inner in module:
            yield from _chain(inner)
    else:
        yield module


def _taken(layer: nn.Conv2d, axis: int) -> int:
    """Pixels that a convolution takes along an axis, from both ends together."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    if layer.padding == "same":
        return 0
    return reach - (0 if layer.padding == "valid" else 2 * layer.padding[axis])


def quick_look(module: torch.nn.Module, channels: tuple[int, ...]) -> Quick:
    """Looks at the operators of a module.

    Args:
        module: left as it was.
        channels: that it may take, likeliest first.
    """
    plain = plain_look(module)
    if plain is not None:
        return plain
    from .structure import analyse  # and with it torch's compiler: a second, and 70 MiB

    for count in dict.fromkeys(channels):
        found = analyse(module, channels=count, size=SIZE, looks=1)
        if found.sizes:
            break
    else:
        return Quick()
    trim = found.trim if found.trim is None or min(found.trim) >= 0 else None
    return Quick(found.phase, found.scale, trim)
