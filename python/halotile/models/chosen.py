# SPDX-License-Identifier: MIT
"""Models with several outputs, one of which is the image, and with further inputs that are the same for all windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..optional import torch_if_loaded
from .further import for_batch, picked, sorted_inputs
from .needs import Needs

__all__ = ["Chosen", "checked_output", "with_choice"]


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
    own = getattr(type(model), "with_choice", None)  # of models that know their inputs and outputs
    if own is not None:
        return own(model, output, extra)
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
