# SPDX-License-Identifier: MIT
"""Several devices in one run: each takes the next batch when it has a free slot; outputs come in plan order.

    run's thread          threads of the devices        run's thread
    read windows   ->     device 0: slot a, slot b  ->  outputs in plan order, on the run's device
                          device 1: slot a, slot b

Sums are added in the same order as on one device, so results are bit-identical if the devices compute alike. Of the two
slots of a device, one computes while the outputs of the other are added.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..engine.device_lock import turn
from ..engine.engine import Engine
from ..images.channels import Part
from ..optional import torch_if_loaded
from ..plan import Tile, TilePlan
from .windows import Windows

__all__ = ["SLOTS", "Devices"]

SLOTS = 2  # per device


class Member:
    def __init__(self, slots: list[Windows]):
        self.free, self.thread = list(slots), ThreadPoolExecutor(1, "halotile")


@dataclass
class Task:
    """A batch on a device. When `done`, `outputs` has its outputs by part, on the run's device."""

    member: Member
    slot: Windows
    tiles: list[Tile]
    done: Future[dict[Part, Any]]


class Devices:
    """The devices of a run.

    Args:
        slots: for each device, Windows that share its model and image.
        home: the run's engine; outputs are moved to its device.
    """

    def __init__(self, slots: list[list[Windows]], home: Engine):
        self.slots, self.home = slots, home
        self.outputs: dict[Part, Any] = {}  # of the batch yielded last

    def ahead(
        self, index: int, plan: TilePlan, parts: list[Part], batches: Iterator[tuple[list[Tile], list[Tile]]]
    ) -> Iterator[list[Tile]]:
        """Yields the tiles of each batch of image `index` when its outputs are ready, while the next batches run.

        batches: (tiles, those tiles preceded by earlier ones that fill the batch).

        Raises: what reading or a model raised, when the batch's turn comes. After that, and after closing the iterator,
        no device is running.
        """
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
                del task  # frees its outputs
        finally:
            self.outputs = {}
            for member in members:
                member.thread.shutdown(cancel_futures=True)

    def forget(self) -> None:
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
        """Waits for the outputs and returns them: a device may still be running after a call, and its slot is in use
        until it ends."""
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
