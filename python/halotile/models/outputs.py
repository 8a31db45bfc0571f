# SPDX-License-Identifier: MIT
"""What a model may return: one batch of images; anything else is a `BadOutput`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..optional import torch_if_loaded

if TYPE_CHECKING:
    import torch

__all__ = ["BadOutput", "EmptyOutput", "checked_array", "checked_tensor", "described"]

AXES = "(batch, channels, height, width)"


class BadOutput(Exception):
    """The model did not return a batch of outputs. Internal: users see ModelOutputError."""


class EmptyOutput(BadOutput):
    """The output has no pixels: the window was too small."""


def checked_array(output: object, batch: int) -> np.ndarray:
    """A model's output as an aligned array of float32 or float16.

    Raises:
        BadOutput: it is not a batch of floating-point outputs.
    """
    output = _on_host(output)
    if not isinstance(output, np.ndarray):
        raise BadOutput(f"the model returned {described(output)}, not one array {AXES}{_hint(output)}")
    _check_shape("an array", output.shape, batch)
    if output.dtype == np.float64:
        return output.astype(np.float32)
    if output.dtype not in (np.float32, np.float16):
        raise BadOutput(f"the model returned an array of dtype {output.dtype}, not float32, float16 or float64")
    if not output.flags.aligned or any(stride % output.itemsize for stride in output.strides):
        output = output.copy()
    return output


def checked_tensor(output: Any, batch: int) -> torch.Tensor:
    """A model's output as a dense tensor of float32, float16 or bfloat16, without gradients.

    Raises:
        BadOutput: it is not a batch of floating-point outputs.
    """
    torch = torch_if_loaded()
    if not isinstance(output, torch.Tensor):
        raise BadOutput(f"the model returned {described(output)}, not one tensor {AXES}{_hint(output)}")
    _check_shape("a tensor", tuple(output.shape), batch)
    if output.layout != torch.strided:
        raise BadOutput(f"the model returned a tensor of layout {output.layout}, not a dense one")
    if output.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise BadOutput(f"the model returned a tensor of dtype {output.dtype}, not a floating one")
    output = output.detach().resolve_neg()
    return output.float() if output.dtype == torch.float64 else output


def _on_host(output: Any) -> object:
    """The NumPy array of a tensor; anything else unchanged."""
    torch = torch_if_loaded()
    if torch is None or not isinstance(output, torch.Tensor):
        return output
    tensor = output.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _check_shape(what: str, shape: tuple[int, ...], batch: int) -> None:
    is_batch = len(shape) == 4 and shape[0] == batch
    if not is_batch or 0 in shape:
        kind = EmptyOutput if is_batch else BadOutput
        raise kind(f"the model returned {what} of shape {shape}, not ({batch}, channels, height, width)")


def _hint(outputs: object) -> str:
    """How to select the image if the model returns several things."""
    if isinstance(outputs, dict) and outputs:
        key = next(iter(outputs))
    elif isinstance(outputs, (tuple, list)) and outputs:
        key = 0
    else:
        return ""
    return f"; pass output={key!r:.80} if that is the image"


def described(value: object) -> str:
    """Its type and, for collections, its length."""
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
