# SPDX-License-Identifier: MIT
"""Programs of torch.export as models. Many are exported for one shape only.

Imports torch; imported by `loading` when such a file is met.
"""

from __future__ import annotations

import torch

from .needs import Needs

__all__ = ["FixedShape", "open_exported"]


def open_exported(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The program as a module on windows (batch, channels, height, width).

    Raises:
        ValueError: if it takes anything but one such tensor.
    """
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1 or inputs[0].ndim != 4:
        raise ValueError(f"it takes {len(inputs)} inputs, not one tensor (batch, channels, height, width)")
    batch, _, height, width = (side if isinstance(side, int) else None for side in inputs[0].shape)
    module = program.module()
    return module if batch is height is width is None else FixedShape(module, batch, (height, width))


class FixedShape(torch.nn.Module):
    """A program for windows of one (height, width), None where any will do, or for one batch size, or both: `needs`
    says which windows. Batches of other sizes are split, and completed by their last window."""

    def __init__(self, program: torch.nn.Module, batch: int | None, window: tuple[int | None, int | None]):
        super().__init__()
        self.program, self.batch, self.needs = program, batch, Needs(window=window)

    def train(self, mode: bool = True) -> FixedShape:
        return self  # exported programs have no modes

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        sides = zip(self.needs.window, windows.shape[2:], strict=True)
        if any(side not in (None, got) for side, got in sides):
            wanted = "x".join("any" if side is None else str(side) for side in self.needs.window)
            got = f"{windows.shape[2]}x{windows.shape[3]}"
            raise ValueError(f"the model was exported for windows of {wanted} (height x width), not {got}")
        return torch.cat([self._run(part) for part in windows.split(self.batch or len(windows))])

    def _run(self, windows: torch.Tensor) -> torch.Tensor:
        missing = (self.batch or len(windows)) - len(windows)
        return self.program(torch.cat([windows, windows[-1:].expand(missing, -1, -1, -1)]))[: len(windows)]
