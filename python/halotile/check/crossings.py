# SPDX-License-Identifier: MIT
"""What crosses between host and device during a run: watches every operation of torch in this thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Crossing", "Crossings", "Watch"]

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TORCH = os.path.dirname(os.path.abspath(torch.__file__))
READS = ("item", "_local_scalar_dense")
MOVES = ("to", "cpu", "type_as", "_to_copy")  # in inference mode operations are seen as they were called
WAITS = ("nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")  # for a number on the device


@dataclass(frozen=True)
class Crossing:
    """Attributes:
    down: whether it goes to the host.
    bytes: how many; of a single number, those of its dtype.
    single: whether it is a single number.
    what: the operation and the tensor.
    where: "file:line" in the user's code; None if this package did it.
    """

    down: bool
    bytes: int
    single: bool
    what: str
    where: str | None

    def __str__(self) -> str:
        way = "to the host" if self.down else "to the device"
        return f"{self.where or 'halotile'}: {way}: {self.what}"


@dataclass(frozen=True)
class Crossings:
    """What crossed in a run.

    Attributes:
        up, down: bytes to the device and to the host, without single numbers.
        singles: single numbers that the host waited for.
        by_model: what the model's own code made cross.
    """

    all: tuple[Crossing, ...]

    @property
    def up(self) -> int:
        return sum(one.bytes for one in self.all if not one.down and not one.single)

    @property
    def down(self) -> int:
        return sum(one.bytes for one in self.all if one.down and not one.single)

    @property
    def singles(self) -> int:
        return sum(one.single and one.down for one in self.all)

    @property
    def by_model(self) -> tuple[Crossing, ...]:
        return tuple(one for one in self.all if one.where is not None)


@dataclass(eq=False)
class Watch(TorchDispatchMode):
    """Notes what crosses while it is entered. Backends that fall back to the CPU inside an operation are not seen."""

    device: torch.device
    found: list[Crossing] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given, made = _tensors((args, kwargs)), _tensors(result)
        if name in READS or name in WAITS:
            there = next((one for one in given if self._is_there(one)), None)
            if there is not None:
                self._note(True, there.element_size(), True, f"{name} of {_told(there)}")
        elif name == "copy_" and len(given) >= 2:
            self._moved(given[1], given[0])
        else:
            self._other(name, given, made)
        return result

    def _moved(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        if self._is_there(source) != self._is_there(destination):
            size = source.numel() * min(source.element_size(), destination.element_size())
            self._note(self._is_there(source), size, False, _told(source))

    def _other(self, name: str, given: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        """A copy to another device, or an operation on the device that takes a tensor of the host."""
        if name in MOVES and given and made:
            self._moved(given[0], made[0])
        elif any(self._is_there(one) for one in (*given, *made)):
            for one in given:
                if one.device.type == "cpu" and one.ndim:
                    self._note(False, one.numel() * one.element_size(), False, f"{_told(one)}, for {name}")

    def _is_there(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self.device.type

    def _note(self, down: bool, size: int, single: bool, what: str) -> None:
        self.found.append(Crossing(down, size, single, what, _place()))


def _tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def _told(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _place() -> str | None:
    """ "file:line" of the innermost code that is neither torch's nor, if it is reached first, this package's."""
    for name, line in _frames():
        if name.startswith(OWN + os.sep):
            if os.path.basename(name) == "crossings.py":
                continue
            return None
        if not name.startswith((TORCH + os.sep, "<")):
            return f"{name}:{line}"
    return None


def _frames() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield os.path.abspath(frame.f_code.co_filename), frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
