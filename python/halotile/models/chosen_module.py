# SPDX-License-Identifier: MIT
"""`Chosen` of a torch module, as a module. Imports torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .further import for_batch, picked, sorted_inputs
from .modules import device_and_dtype
from .needs import Needs

__all__ = ["ChosenModule"]


class ChosenModule(torch.nn.Module):
    """Attributes: see `Chosen`. Arrays and tensors among further inputs are buffers, which move and are converted with
    the weights."""

    def __init__(self, model: torch.nn.Module, output: int | str | None, extra: Any):
        super().__init__()
        self.model, self.output = model, output
        further, named = sorted_inputs(extra)
        self.count, self.names = len(further), tuple(named)
        for at, given in enumerate((*further, *named.values())):
            value = torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) else given
            if isinstance(value, torch.Tensor):
                self.register_buffer(f"extra{at}", value.detach().to(device_and_dtype(model)[0]), persistent=False)
            else:
                setattr(self, f"extra{at}", value)
        if isinstance(getattr(model, "needs", None), Needs):
            self.needs, self.channels = model.needs, getattr(model, "channels", None)
        self.training = model.training

    def forward(self, windows: torch.Tensor) -> Any:
        values = [for_batch(getattr(self, f"extra{at}"), len(windows)) for at in range(self.count + len(self.names))]
        named = dict(zip(self.names, values[self.count :], strict=True))
        return picked(self.model(windows, *values[: self.count], **named), self.output)
