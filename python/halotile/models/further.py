# SPDX-License-Identifier: MIT
"""Further inputs of a model, and one of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..fragile import dense
from ..optional import torch_if_loaded
from .outputs import BadOutput, described

__all__ = ["for_batch", "picked", "sorted_inputs"]

NAMED = 8  # keys in an error


def sorted_inputs(extra: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in order, and those by name."""
    if extra is None:
        return (), {}
    if isinstance(extra, Mapping):
        return (), dict(extra)
    return (tuple(extra), {}) if isinstance(extra, tuple | list) else ((extra,), {})


def for_batch(value: Any, batch: int) -> Any:
    """An array or tensor whose first axis is of one is that for each window of a batch."""
    if batch == 1 or not getattr(value, "ndim", 0) or value.shape[0] != 1:
        return value
    shape = (batch, *value.shape[1:])
    if isinstance(value, np.ndarray):
        return np.broadcast_to(value, shape)
    return dense(value.expand(shape))


def picked(outputs: Any, key: int | str | None) -> Any:
    if key is None:
        return outputs
    torch = torch_if_loaded()
    if isinstance(outputs, np.ndarray) or (torch is not None and isinstance(outputs, torch.Tensor)):
        raise BadOutput(f"the model returned {described(outputs)}, of which output={key!r} picks nothing: leave it out")
    if isinstance(key, str) and not isinstance(outputs, Mapping) and hasattr(outputs, key):
        return getattr(outputs, key)
    try:
        return outputs[key]
    except (LookupError, TypeError):
        names = [repr(one) for one in outputs][:NAMED] if isinstance(outputs, Mapping) else []
        what = f"{described(outputs)}{': ' if names else ''}{', '.join(names)}"
        raise BadOutput(f"the model returned {what}; output={key!r} is none of it") from None
