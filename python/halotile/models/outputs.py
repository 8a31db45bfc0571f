# SPDX-License-Identifier: MIT
"""What a model returns: checked, and as an array of a dtype that the core knows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..optional import torch_if_loaded

__all__ = ["AXES", "BadOutput", "EmptyOutput", "checked_array", "described", "how_to_pick"]

AXES = "(batch, channels, height, width)"


class BadOutput(Exception):
    """What the model returned is not a batch of outputs. Internal: users see ModelOutputError."""


class EmptyOutput(BadOutput):
    """It would be one if there were a pixel in it: the window was too small."""


def checked_array(output: Any, batch: int) -> np.ndarray:
    torch = torch_if_loaded()
    if torch is not None and isinstance(output, torch.Tensor):
        output = (
            output.detach().cpu().numpy() if output.dtype != torch.bfloat16 else output.detach().cpu().float().numpy()
        )
    if not isinstance(output, np.ndarray):
        raise BadOutput(f"the model returned {described(output)}, not one array {AXES}{how_to_pick(output)}")
    if output.ndim != 4 or output.shape[0] != batch or 0 in output.shape:
        kind = EmptyOutput if output.ndim == 4 and output.shape[0] == batch else BadOutput
        raise kind(f"the model returned an array of shape {output.shape}, not ({batch}, channels, height, width)")
    if output.dtype == np.float64:
        return output.astype(np.float32)
    if output.dtype not in (np.float32, np.float16):
        raise BadOutput(f"the model returned an array of dtype {output.dtype}, not float32, float16 or float64")
    if not output.flags.aligned or any(stride % output.itemsize for stride in output.strides):
        output = output.copy()
    return output


def how_to_pick(outputs: object) -> str:
    """How to pass a model that returns several things."""
    if isinstance(outputs, dict) and outputs:
        key = next(iter(outputs))
    elif isinstance(outputs, (tuple, list)) and outputs:
        key = 0
    else:
        return ""
    return f"; pass lambda x: model(x)[{key!r:.80}] if that is the image"


def described(value: Any) -> str:
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
