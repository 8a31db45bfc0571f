# SPDX-License-Identifier: MIT
"""A quick check of a module by graph analysis at one size, in a second or two: phase, scale and trim.

Unlike `inspect_model` it confirms nothing by running the model. So a run uses the phase, as a wrong one is no worse
than none, but scale and trim only if the first window agrees. Imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction

import torch
from torch import nn

from ..scales import Scale, scale_from_json, scale_to_json
from .info import Pair

__all__ = ["Quick", "plain_look", "quick_look"]

SIZE = (64, 64)  # of the analysed image, in pixels


@dataclass(frozen=True)
class Quick:
    """Attributes:
    phase: shift in input pixels (rows, columns) with which the output shifts too; None if unknown.
    scale: output pixels per input pixel, a pair where rows and columns differ; None if unknown.
    trim: output pixels that valid convolutions trim at each end of a window (rows, columns); None if unknown.
    """

    phase: Pair | None = None
    scale: Scale | None = None
    trim: Pair | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"scale": None if self.scale is None else scale_to_json(self.scale)})

    @classmethod
    def from_json(cls, text: str) -> Quick:
        """Reads what `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        found = json.loads(text)
        phase, trim = (_pair(found[name], least) for name, least in (("phase", 1), ("trim", 0)))
        return cls(phase, None if found["scale"] is None else scale_from_json(found["scale"]), trim)


def _pair(value: Iterable[int] | None, least: int) -> Pair | None:
    if value is None:
        return None
    rows, columns = value
    if not all(type(side) is int and least <= side < 1 << 20 for side in (rows, columns)):
        raise ValueError(f"a pair of whole numbers from {least} on was expected, not {value}")
    return rows, columns


# Elementwise layers.
POINTWISE = {nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish}
POINTWISE |= {nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d}


def plain_look(module: nn.Module) -> Quick | None:
    """The result for a chain of torch's own layers, without running it; None for any other module, and for strides."""
    scale, trim = 1, [0, 0]
    for layer in _chain(module):
        kind = type(layer)
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return None
        if isinstance(layer, nn.PixelShuffle) and kind is nn.PixelShuffle:
            scale, trim = scale * layer.upscale_factor, [lost * layer.upscale_factor for lost in trim]
        elif isinstance(layer, nn.Conv2d) and kind is nn.Conv2d and set(layer.stride) == {1}:
            trimmed = [_trimmed(layer, axis) for axis in (0, 1)]
            if any(lost % 2 or lost < 0 for lost in trimmed):
                return None
            trim = [before + lost // 2 for before, lost in zip(trim, trimmed, strict=True)]
        elif kind not in POINTWISE:
            return None
    return Quick((1, 1), Fraction(scale), (trim[0], trim[1]))


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested chains, in order."""
    if type(module) is nn.Sequential and not module._forward_hooks and not module._forward_pre_hooks:
        for inner in module:
            yield from _chain(inner)
    else:
        yield module


def _trimmed(layer: nn.Conv2d, axis: int) -> int:
    """Pixels that a convolution trims along an axis, at both ends together."""
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    if layer.padding == "same":
        return 0
    return reach - (0 if layer.padding == "valid" else 2 * layer.padding[axis])


def quick_look(module: torch.nn.Module, channels: tuple[int, ...]) -> Quick:
    """Analyses the operators of a module.

    Args:
        module: the module, which is left unchanged.
        channels: possible input channels, likeliest first.
    """
    plain = plain_look(module)
    if plain is not None:
        return plain
    from .structure import analyse  # imports torch's compiler: a second, and 70 MiB

    for count in dict.fromkeys(channels):
        found = analyse(module, channels=count, size=SIZE, looks=1)
        if found.sizes:
            break
    else:
        return Quick()
    trim = found.trim if found.trim is None or min(found.trim) >= 0 else None
    return Quick(found.phase, found.scale, trim)
