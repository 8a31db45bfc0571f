# SPDX-License-Identifier: MIT
"""watch_memory(): the memory that the process takes while something runs, as figures and as a picture over time."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from .memory import allocated_bytes, resident_bytes
from .notebook.over_time import over_time_svg
from .notebook.plots import plotted_over_time
from .notebook.svg import Printer, card
from .texts import bytes_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MemoryWatch", "watch_memory"]

SLOWEST = 10.0  # seconds between looks
MOST = 4096  # looks that are kept: then every other one goes, and looks are half as frequent


def _process_bytes() -> int | None:
    found = resident_bytes()
    if found is not None:
        return found
    try:  # where there is no /proc
        import psutil
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


class MemoryWatch:
    """Memory over time: shown by a notebook, also before its end.

    Attributes:
        seconds: when it was looked at, since the beginning.
        resident: bytes of the process in memory.
        on_device: bytes of tensors on CUDA devices; empty if there are none.
    """

    def __init__(self, every: float):
        if isinstance(every, bool) or not isinstance(every, int | float) or not 1e-3 <= every <= SLOWEST:
            raise ValueError(f"every must be from 0.001 to {SLOWEST:g} seconds, not {every!r}")
        if _process_bytes() is None:
            raise OSError("the memory of a process cannot be looked at here: pip install psutil")
        self.every = float(every)
        self.seconds: list[float] = []
        self.resident: list[int] = []
        self.on_device: list[int] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryWatch:
        if self._thread is not None:
            raise RuntimeError("a MemoryWatch watches once: make another one")
        self._started = time.perf_counter()
        self._look()
        self._thread = threading.Thread(target=self._watch, name="halotile memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self.every):
            self._look()
            if len(self.seconds) > MOST:
                for values in (self.seconds, self.resident, self.on_device):
                    del values[1::2]
                self.every = min(2 * self.every, SLOWEST)

    def _look(self) -> None:
        resident, allocated = _process_bytes(), allocated_bytes()
        self.seconds.append(time.perf_counter() - self._started)
        self.resident.append(resident or 0)
        self.on_device.append(allocated)

    @property
    def start(self) -> int:
        """Bytes of the process at the beginning."""
        return self.resident[0] if self.resident else 0

    @property
    def peak(self) -> int:
        """The most bytes of the process that were seen."""
        return max(self.resident, default=0)

    @property
    def added(self) -> int:
        """How much the process grew at most, in bytes."""
        return self.peak - self.start

    def facts(self) -> list[tuple[str, str]]:
        """Names and values of what a report tells."""
        rows = [
            ("at the beginning", bytes_text(self.start)),
            ("peak", f"{bytes_text(self.peak)}: {bytes_text(self.added)} more"),
        ]
        if any(self.on_device):
            rows.append(("peak on the device", bytes_text(max(self.on_device))))
        return [*rows, ("time", f"{self.seconds[-1]:.2f} s" if self.seconds else "not yet")]

    def _series(self) -> dict[str, list[int]]:
        found = {"process": self.resident[:]}
        return found | ({"device": self.on_device[:]} if any(self.on_device) else {})

    def _repr_html_(self) -> str:
        return card("memory", self.facts(), over_time_svg(self.seconds[:], self._series()))

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def __str__(self) -> str:
        return "\n".join(f"{name:<18} {value}" for name, value in self.facts())

    def __repr__(self) -> str:
        return f"<MemoryWatch: {bytes_text(self.added)} more than {bytes_text(self.start)}>"

    def plot(self, axes: Axes | None = None) -> Axes:
        """Plots memory over time on the given matplotlib axes, or on new ones, and returns them. Needs matplotlib."""
        return plotted_over_time(self.seconds, self._series(), axes)


def watch_memory(every: float = 0.02) -> MemoryWatch:
    """Looks at the memory of this process while a block runs: ``with watch_memory() as memory: ...``, then `memory`
    shows it over time, and `memory.added` is by how much the process grew.

    Args:
        every: seconds between looks. After thousands of looks they become less frequent.

    Raises:
        ValueError: `every` is not from 0.001 to 10. OSError: the system does not tell (psutil may).

    >>> with watch_memory() as memory:
    ...     restored = restore_tiled(photo, model)
    >>> memory.added >= 0
    True
    """
    return MemoryWatch(every)
