# SPDX-License-Identifier: MIT
"""Which of torch's grad modes a model runs in: inference mode, unless it differentiates inside its forward, as gradient
step denoisers and unrolled networks with a data term do. The first window shows which.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..optional import torch_if_loaded
from ..texts import full_text

if TYPE_CHECKING:
    import torch

__all__ = ["Grads"]

# torch's errors about tensors that have no gradients.
ABOUT_GRADIENTS = re.compile(r"inference (tensor|mode)|inferencemode|requires?[_ ]grad|grad_fn", re.IGNORECASE)
MODES = ("inference", "no_grad", "grad")  # the first that works is kept: each holds more memory than the one before


class Grads:
    """Attributes:
    mode: that of the next run.
    settled: whether a run in it has succeeded.
    """

    def __init__(self) -> None:
        self.mode, self.settled = MODES[0], False

    def run(
        self,
        call: Callable[[torch.Tensor], torch.Tensor],
        windows: torch.Tensor,
        modules: Sequence[torch.nn.Module],
    ) -> torch.Tensor:
        """What `call` returns for the windows, in the first mode in which it works. Gradients of parameters are
        afterwards what they were."""
        while True:
            last = self.settled or self.mode == MODES[-1]
            try:
                with self._entered(modules):
                    # A model may write to its input before it fails; what is made in inference mode has no gradients.
                    given = windows if self.settled and self.mode == MODES[0] else windows.clone()
                    output = call(given)
                self.settled = True
                return output
            except RuntimeError as error:
                if last or not ABOUT_GRADIENTS.search(full_text(error)):
                    raise
            self.mode = MODES[MODES.index(self.mode) + 1]

    @contextlib.contextmanager
    def _entered(self, modules: Sequence[torch.nn.Module]) -> Iterator[None]:
        torch = torch_if_loaded()
        if self.mode == "inference":
            with torch.inference_mode():
                yield
            return
        weights = [weight for module in modules for weight in module.parameters()]
        before = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(self.mode == "grad"):
                yield
        finally:
            for weight, grad in zip(weights, before, strict=True):
                weight.grad = grad
