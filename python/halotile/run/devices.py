# SPDX-License-Identifier: MIT
"""Several devices for one run: each takes the next batch when it has a slot free; outputs come in the plan's order.

    windows, read in order by the run's thread -> models, a thread for each device -> outputs, on the run's device

What is added up, and in which order, is as on one device: so are the bits, where the devices compute the same. A device
has two slots, each with windows of its own: while the outputs of one are added up, the other is at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..engine.device_lock import turn
from ..images.channels import Part
from ..optional import torch_if_loaded
from ..plan import Tile, TilePlan
from .windows import Windows

__all__ = ["SLOTS", "Devices"]

SLOTS = 2  # of each device


class Member:
    """A device: slots that are free, and the thread in which its model runs."""

    def __init__(self, slots: list[Windows]):
        self.free, self.thread = list(slots), ThreadPoolExecutor(1, "halotile")


@dataclass
class Task:
    """A batch on its way through a device. Its outputs by part, on the run's device, when `done`."""

    member: Member
    slot: Windows
    tiles: list[Tile]
    done: Future[dict[Part, Any]]


class Devices:
    """The devices of a run.

    Args:
        slots: for each device, Windows that share its model and image.
        home: the run's engine, on whose device outputs are wanted.
    """

    def __init__(self, slots: list[list[Windows]], home: Any):
        self.slots, self.home = slots, home
        self.outputs: dict[Part, Any] = {}  # of the batch that was yielded last

    def ahead(
        self, index: int, plan: TilePlan, parts: list[Part], batches: Iterator[tuple[list[Tile], list[Tile]]]
    ) -> Iterator[list[Tile]]:
        """Yields the tiles of each batch of image `index` when its outputs are there; the next ones are at work
        meanwhile.

        batches: (tiles, these and those before them that make the batch a full one).

        Raises: what reading or a model raised, when the batch's turn comes. Then, and when the iterator is closed,
        no device is at work any more."""
        members = [Member(slots) for slots in self.slots]
        under_way: deque[Task] = deque()
        try:
            while True:
                while any(member.free for member in members) and (batch := next(batches, None)):
                    freest = max(members, key=lambda member: len(member.free))
                    under_way.append(self._begun(freest, index, plan, parts, *batch))
                if not under_way:
                    return
                task = under_way.popleft()
                self.outputs = task.done.result()
                yield task.tiles
                self.outputs = {}
                task.member.free.append(task.slot)
                del task  # and its outputs
        finally:
            self.outputs = {}
            for member in members:
                member.thread.shutdown(cancel_futures=True)

    def forget(self) -> None:
        """Lets go of windows."""
        for slots in self.slots:
            for slot in slots:
                slot.buffers.clear()

    def _begun(
        self, member: Member, index: int, plan: TilePlan, parts: list[Part], tiles: list[Tile], full: list[Tile]
    ) -> Task:
        slot = member.free.pop()
        with turn(slot.engine.device):
            windows = {part: slot.read(part, index, plan, full) for part in parts}
        return Task(member, slot, tiles, member.thread.submit(self._run, slot, index, windows, full))

    def _run(self, slot: Windows, index: int, windows: dict[Part, Any], tiles: list[Tile]) -> dict[Part, Any]:
        return {part: self._brought(slot, part, index, of_part, tiles) for part, of_part in windows.items()}

    def _brought(self, slot: Windows, part: Part, index: int, windows: Any, tiles: list[Tile]) -> Any:
        """The outputs, when they are there: devices work on after a call, and one that does has no slot free."""
        device, home = slot.model.device, self.home.device
        with turn(device):
            outputs = slot.outputs(part, index, windows, tiles)
        if home is None:
            return outputs
        with turn(home):
            outputs = outputs.to(home)
        module = getattr(torch_if_loaded(), device.type, None)
        if device.type != "cpu" and hasattr(module, "synchronize"):
            with turn(device):
                module.synchronize(device)
        return outputs
