# SPDX-License-Identifier: MIT
"""Known faults of an Apple GPU's own convolutions, tried on the machine: see docs/mps.md.

They depend on the versions of macOS and torch. Each trial takes milliseconds and a few MiB; the outcome is kept for the
machine and its versions, as that of the kernels is (metal.py).
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..cache import keep, kept, of_machine
from ..fragile import is_fragile, moved
from ..optional import torch_if_loaded
from ..texts import quoted

if TYPE_CHECKING:
    import torch

__all__ = ["LARGE", "TRIALS", "Trial", "doubt_about_kernels", "faults_of", "is_trusted", "tried"]

VERSION = 1  # of the trials; results kept of others are ignored
LARGE = 256  # side of a kernel
NEAR = 1e-3  # largest difference that is rounding, relative to the largest value

TRIALS = {
    "views": "convolution of a view made by chunk(), in a batch",
    "kernels": f"convolution with a kernel of {LARGE}",
    "channels_last": "convolutions of channels_last windows",
}


class Trial(NamedTuple):
    """Attributes:
    name: a key of TRIALS.
    apart: largest difference from the CPU, relative to the largest value; None if the trial could not be run.
    why_not: then the reason.
    """

    name: str
    apart: float | None
    why_not: str = ""

    @property
    def fine(self) -> bool:
        return self.apart is not None and self.apart <= NEAR


# ---- the trials ------------------------------------------------------------------------------------------------------


def tried(device: torch.device) -> Iterator[Trial]:
    """Runs the trials on a device."""
    for name in TRIALS:
        try:
            yield Trial(name, _apart(*_CASES[name](), device))
        except Exception as error:  # memory that runs out, operations that are missing
            yield Trial(name, None, quoted(error))


Case = tuple["torch.nn.Module", "torch.Tensor"]


def _views() -> Case:
    import torch

    class Halved(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            one, other = self.first(windows).chunk(2, dim=1)
            return torch.cat([self.second(one), self.second(other)], dim=1)

    return Halved(), _noise(3, 3, 32, 32)


def _kernels() -> Case:
    import torch

    return torch.nn.Conv2d(8, 16, (LARGE, 1), groups=8, bias=False), _noise(2, 8, LARGE + 4, 33)


def _channels_last() -> Case:
    import torch

    layers = [torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.Conv2d(32, 16, 4, 2, 1), torch.nn.PixelShuffle(2)]
    windows = _noise(2, 16, 40, 34)
    return torch.nn.Sequential(*layers), windows.contiguous(memory_format=torch.channels_last)


_CASES: dict[str, Callable[[], Case]] = {"views": _views, "kernels": _kernels, "channels_last": _channels_last}


def _noise(*shape: int) -> torch.Tensor:
    import torch

    generator = torch.Generator(device="cpu").manual_seed(len(shape) + shape[0])
    return torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) * 2 - 1


def _apart(module: torch.nn.Module, windows: torch.Tensor, device: torch.device) -> float:
    """How far the module's outputs on a device lie from those on the CPU."""
    import torch

    with torch.no_grad():
        for parameter in module.to(device="cpu", dtype=torch.float32).parameters():
            parameter.copy_(_noise(*parameter.shape) * parameter[0].numel() ** -0.5)
        want = module(windows)
        got = copy.deepcopy(module).to(device)(moved(windows, device)).cpu()
    apart = float((got - want).abs().max() / want.abs().max())
    return math.inf if math.isnan(apart) else apart


# ---- what is made of them --------------------------------------------------------------------------------------------

_lock = threading.Lock()
_found: dict[str, dict[str, str]] = {}  # device type -> name of a trial -> "fine", "differs", or why it was not run


def faults_of(device: torch.device | None) -> frozenset[str]:
    """Names of the trials that a device fails; of none that is not an Apple GPU. Runs them once for a machine."""
    return frozenset(name for name, outcome in _outcomes(device).items() if outcome == "differs")


def is_trusted(device: torch.device | None, name: str) -> bool:
    """Whether a device has passed a trial; also if it needs none."""
    return _outcomes(device).get(name, "fine") == "fine"


def _outcomes(device: torch.device | None) -> dict[str, str]:
    if device is None or not is_fragile(device):
        return {}
    with _lock:
        if device.type not in _found:
            about = of_machine(VERSION, device.type)
            before = kept("hazards", about)
            known = isinstance(before, dict) and before.keys() == TRIALS.keys()
            _found[device.type] = before if known else {one.name: _outcome(one) for one in tried(device)}
            if not known and all(one in ("fine", "differs") for one in _found[device.type].values()):
                keep("hazards", about, _found[device.type])
        return _found[device.type]


def _outcome(trial: Trial) -> str:
    return trial.why_not if trial.apart is None else "fine" if trial.fine else "differs"


def doubt_about_kernels(modules: Sequence[torch.nn.Module], device: torch.device | None) -> str | None:
    """A warning of kernels of 256 and more on an Apple GPU where that could not be tried; None if all is well.

    Raises:
        ValueError: it computes them wrong.
    """
    named = next(_large_kernels(modules), None) if is_fragile(device) else None
    outcome = "fine" if named is None else _outcomes(device)["kernels"]
    if outcome == "fine":
        return None
    text = f"on {device} model should have no kernels of {LARGE} and more, but {named}"
    if outcome == "differs":
        raise ValueError(f"{text}, and this machine computes it wrong: pass device='cpu'")
    return f"{text}, and some versions of macOS compute it wrong; it could not be tried here ({outcome})"


def _large_kernels(modules: Sequence[torch.nn.Module]) -> Iterator[str]:
    """Layers with large kernels, in words."""
    nn = torch_if_loaded().nn
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    for module in modules:
        for name, inner in module.named_modules():
            kind = getattr(inner, "original_name", type(inner).__name__)  # of TorchScript's modules
            if isinstance(inner, kinds) or kind in [one.__name__ for one in kinds]:
                sides = tuple(getattr(inner, "kernel_size", ()))
                if any(side >= LARGE for side in sides):
                    where = f"its layer {name}" if name else "it"
                    yield f"{where} has one of {'x'.join(map(str, sides))}"
