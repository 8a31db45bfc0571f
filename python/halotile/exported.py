# SPDX-License-Identifier: MIT
"""Programs of torch.export as models. Many are exported for one shape only: smaller windows are completed for them.

Imports torch; imported by `loading` when such a file is met.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

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
    """A program for one batch size and window (height, width), None where any will do.

    Larger batches are split. Smaller ones, and smaller windows at their right and lower end, are completed, and what
    comes of that is cropped from the output. With a halo that covers the receptive field this changes nothing. At an
    image's edge it would, since the model's own padding would act elsewhere: `boundary="native"` needs windows of
    exactly this size (see `check_plan`).
    """

    def __init__(self, program: torch.nn.Module, batch: int | None, window: tuple[int | None, int | None]):
        super().__init__()
        self.program, self.batch, self.window = program, batch, window

    def train(self, mode: bool = True) -> FixedShape:
        return self  # exported programs have no modes

    def check_plan(self, window: tuple[int, int], halo: tuple[int, int], boundary: str) -> None:
        """Raises ValueError if windows of this (height, width) cannot be run, saying which can."""
        full = [fixed or side for fixed, side in zip(self.window, window, strict=True)]
        wanted = f"the model was exported for windows of {full[0]}x{full[1]} (height x width)"
        got = f"not {window[0]}x{window[1]}"
        if window[0] > full[0] or window[1] > full[1]:
            tile = min(fixed - 2 * lap for fixed, lap in zip(full, halo, strict=True))
            if tile < 1:
                raise ValueError(f"{wanted}, which leaves no tile inside a halo of {halo[0]}: make the halo smaller")
            raise ValueError(f"{wanted}, {got}: with halo {halo[0]}, tile_size must be at most {tile}")
        if boundary == "native" and list(window) != full:
            raise ValueError(f'{wanted}, {got}: boundary must be "reflect", or export the model with dynamic_shapes')

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._run(part) for part in windows.split(self.batch or len(windows))])

    def _run(self, windows: torch.Tensor) -> torch.Tensor:
        n, _, height, width = windows.shape
        self.check_plan((height, width), (0, 0), "reflect")
        full_n, full_height, full_width = self.batch or n, self.window[0] or height, self.window[1] or width
        full = pad(windows, (0, full_width - width, 0, full_height - height), mode="replicate")
        full = torch.cat([full, full[-1:].expand(full_n - n, -1, -1, -1)])
        output = self.program(full)[:n]
        rows = _share(output.shape[2], height, full_height)
        return output[:, :, :rows, : _share(output.shape[3], width, full_width)]


def _share(output: int, part: int, whole: int) -> int:
    """What the first `part` of `whole` input pixels became of `output` pixels. A model whose output is neither a
    multiple nor a whole fraction of its input may have lost pixels at its edges, and no longer starts where it did."""
    if part == whole:
        return output
    if (output % whole and whole % output) or output * part % whole:
        text = f"the model turned {whole} pixels into {output}: what {part} of them became cannot be told"
        raise ValueError(f"{text}; choose tile_size and halo so that windows have exactly {whole}")
    return output * part // whole
