# SPDX-License-Identifier: MIT
"""Models with several outputs, one of which is the image, and with further inputs that are the same for all windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..optional import torch_if_loaded
from .needs import Needs
from .outputs import BadOutput, described

__all__ = ["Chosen", "checked_output", "for_batch", "picked", "sorted_inputs", "with_choice"]

NAMED = 8  # keys in an error


def checked_output(name: str, value: Any) -> int | str | None:
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{name} must be the index or key of one of the model's outputs, not {value!r}")


def with_choice(model: Any, output: int | str | None, extra: Any) -> Any:
    """The model itself, or one that takes windows alone and returns one output. A torch module gives a torch module, so
    that it is inspected, copied and converted as such.

    Args:
        output: index or key of the output that is the image. None: the model returns only that.
        extra: further inputs: a dict by name, a tuple or list in order after the window, or a single one. None: none.
    """
    if output is None and extra is None:
        return model
    torch = torch_if_loaded()
    if torch is not None and isinstance(model, torch.nn.Module):
        from .chosen_module import ChosenModule

        return ChosenModule(model, output, extra)
    return Chosen(model, output, extra)


class Chosen:
    """A callable with one output picked, and with further inputs.

    Attributes:
        needs, channels: those of the model, if it has them.
    """

    def __init__(self, model: Callable[..., Any], output: int | str | None, extra: Any):
        self.model, self.output = model, output
        self.further, self.named = sorted_inputs(extra)
        if isinstance(getattr(model, "needs", None), Needs):
            self.needs, self.channels = model.needs, getattr(model, "channels", None)  # type: ignore[attr-defined]

    def __call__(self, windows: Any) -> Any:
        further = [for_batch(one, len(windows)) for one in self.further]
        named = {name: for_batch(one, len(windows)) for name, one in self.named.items()}
        return picked(self.model(windows, *further, **named), self.output)

    def __repr__(self) -> str:
        return f"Chosen({self.model!r}, output={self.output!r})"


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
    return np.broadcast_to(value, shape) if isinstance(value, np.ndarray) else value.expand(shape)


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
