# SPDX-License-Identifier: MIT
"""Streams a small image and compares with the model itself: a network that a rule misreads never streams."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...inspection.operators.streaming import NotStreamable
from ...inspection.recorder import record
from ...models.around import looking
from ...models.model import TensorModel
from ...models.untouched.copies import copied
from ...texts import named
from .steps import streamed

__all__ = ["refusal"]

Tensor = torch.Tensor

ROUNDING = {torch.float32: 3e-5, torch.float64: 1e-7}  # of the largest value; statistics are measured in float32


def refusal(model: TensorModel, channels: int, size: tuple[int, int]) -> str | None:
    """Why a module cannot stream; None if a small image of noise, streamed, gives the model's own result.

    A difference in float32 may be amplified rounding, and half precision rounds much: both are judged in float64.
    """
    noise = torch.rand((1, channels, *size), generator=torch.Generator().manual_seed(0))
    module = model.modules[0]
    try:
        if model.dtype == "float32" and not model.double:
            there = noise.to(model.device)
            if _is_same(model.probed, module, there, model.channels_last) is None:
                return None
        with looking():
            exact = copied(module).to("cpu").to(torch.float64).eval()  # a device may have no float64
            return _is_same(exact, exact, noise.double(), channels_last=False)
    except NotStreamable as error:
        return str(error)
    except Exception as error:  # a model may raise anything
        return f"it could not be tried on a small image: {named(error)}"


def _is_same(
    run: Callable[[Tensor], Tensor], module: torch.nn.Module, noise: Tensor, channels_last: bool
) -> str | None:
    if channels_last:
        noise = noise.contiguous(memory_format=torch.channels_last)
    graph = record(module, tuple(noise.shape[1:]), noise.dtype, noise.device)
    with torch.inference_mode():
        want = run(noise.clone())  # it may write to its input
        got = streamed(graph, noise, channels_last=channels_last)
    if got.shape != want.shape:
        return f"its result has shape {tuple(want.shape)}, but {tuple(got.shape)} by rows"
    largest, difference = float(want.abs().max()), float((got - want).abs().max())
    if difference <= ROUNDING[noise.dtype] * max(largest, 1e-30):
        return None
    return f"its result for noise differs by {difference:.3g} of {largest:.3g} when it is made by rows"
