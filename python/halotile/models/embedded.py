# SPDX-License-Identifier: MIT
"""The included model: blind removal of camera-like noise and JPEG artefacts.

docs/embedded.md describes its training data, strengths and weaknesses; training/ has the training code.
"""

from __future__ import annotations

import json
import struct
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..texts import quoted
from .needs import Needs

__all__ = ["Restorer", "load_embedded"]

WEIGHTS = Path(__file__).parents[1] / "weights" / "restorer.safetensors"
WIDTH = 64  # channels
BLOCKS = 5


def load_embedded(strength: float = 1.0) -> Restorer:
    """The embedded model with its weights, in eval mode, on the CPU, in float32.

    It removes noise and JPEG artefacts from colour photos, (N, 3, H, W) with values in [0, 1], H and W even. It is
    blind: it needs no noise level. For images of any size, including 8 and 16 bits:

        restore_tiled(photo, load_embedded())

    Args:
        strength: factor of the correction, from 0 to 1. 0 returns the image unchanged. The model's attribute `strength`
            can be set later.

    Raises:
        ValueError: strength is not a number from 0 to 1.
    """
    if isinstance(strength, bool) or not isinstance(strength, Real) or not 0 <= strength <= 1:
        raise ValueError(f"strength must be a number from 0 to 1, not {strength!r}")
    model = Restorer()
    model.load_state_dict(read_weights(WEIGHTS))
    model.strength = float(strength)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a half-precision safetensors file, by name, as float32. `load_state_dict` checks their shapes.

    Raises:
        ValueError: the file is damaged, or not all of it is in half precision.
    """
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        entries = json.loads(data[8 : 8 + length])
        entries.pop("__metadata__", None)
        if any(entry["dtype"] != "F16" for entry in entries.values()):
            raise ValueError("not all of it is in half precision")
        tensors = {}
        for name, entry in entries.items():
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[first:last], "<f2").reshape(entry["shape"])
            tensors[name] = torch.from_numpy(values.astype(np.float32))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable file of weights: {quoted(error)}") from error
    return tensors


class Block(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(functional.relu(self.first(features)))


class Restorer(nn.Module):
    """Restores images (N, 3, H, W) with values in [0, 1]; H and W must be even. The result is not clamped.

    The image is rearranged to half resolution (pixel unshuffle by 2, 12 channels), passes through a 3x3 convolution,
    ``blocks`` residual blocks and a last 3x3 convolution, and is rearranged back. This gives the correction in
    ``image + strength * correction``. All operations are local: no normalisation, pooling or attention. The phase is 2
    and the receptive-field radius 25 pixels: two for each of 12 convolutions, and one for the phase.
    """

    needs = Needs(multiple=2, scale=1)

    channels = 3  # input channels; the first convolution takes those of four pixels

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        self.strength = 1.0
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        if self.strength == 0:
            return images.clone()
        features = functional.relu(self.head(functional.pixel_unshuffle(images, 2)))
        for block in self.body:
            features = block(features)
        correction = functional.pixel_shuffle(self.tail(functional.relu(features)), 2)
        return images + self.strength * correction
