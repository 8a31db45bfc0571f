# SPDX-License-Identifier: MIT
"""How large a tile may be: the table for tile_size="auto" on accelerators, what may be allocated, what a model's
activations will need, and what running out of memory looks like."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import traceback
import types
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import TileSizeWarning
from ..optional import torch_if_loaded
from ..options import DEFAULT_TILE
from ..texts import bytes_text, full_text
from .around import eagerly, looking, without_memory
from .model import Model, TensorModel, evaluating
from .untouched import roots_of, shell

__all__ = [
    "SMALLEST_TILE",
    "auto_tile_size",
    "available_bytes",
    "forget_frames",
    "free_bytes",
    "is_doubtful",
    "is_out_of_memory",
    "resident_bytes",
    "warn_about_device",
    "watching",
    "what_would_fit",
]

GiB = 1 << 30

# Machines of 8 to 16 GB take tiles up to 512, of 24 to 32 GB up to 1024, of 64 GB and more up to 2048. What is asked
# here is what Apple's driver recommends to use: two thirds of the memory up to 32 GB, three quarters above.
TABLE = ((16 * 2 / 3, 512), (24 * 2 / 3, 1024), (32 * 2 / 3, 1024), (64 * 3 / 4, 2048))
SMALLEST = 8 * 2 / 3
STEP = 32  # tile sizes are multiples of it
SMALLEST_TILE = 16  # that is tried when memory runs out: below it a window is nearly all halo

SAYS_SO = re.compile(r"out of memory(?!-)|(can't allocate|not enough) memory: you tried to allocate")

# MPSGraph aborts the process when one array reaches 2^32 bytes; from 2^31 on, some of its operations are wrong.
ABORTS = 2**32
DOUBTFUL = 2**31


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, means that memory ran out: torch mostly raises a plain RuntimeError."""
    while error is not None:
        if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__:
            return True
        if isinstance(error, RuntimeError) and SAYS_SO.search(full_text(error).lower()):
            return True
        error = error.__cause__
    return False


def forget_frames(error: BaseException | None) -> None:
    """Lets go of the tensors that a failure's frames still hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def available_bytes() -> int | None:
    """What this machine's memory, and the control groups that the process is in, leave; None where nobody says."""
    free = [_machine_bytes()]
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        *_own_groups(),
    ):
        most, used = _number_in(limit), _number_in(usage)
        free.append(None if most is None or used is None else max(0, most - used))
    known = [one for one in free if one is not None]
    return min(known) if known else None


def _machine_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:  # half of what there is: who knows what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return None


def _own_groups() -> list[tuple[str, str]]:
    """Files with the limit and the usage of the process's control group (version 2) and those around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths = [Path("/sys/fs/cgroup" + line[3:]) for line in lines if line.startswith("0::/")]
    return [
        (f"{group}/memory.max", f"{group}/memory.current")
        for path in paths
        for group in (path, *path.parents)
        if str(group).startswith("/sys/fs/cgroup/")
    ]


def _number_in(file: str) -> int | None:
    try:
        return int(Path(file).read_text())
    except (OSError, ValueError):  # "max": there is no limit
        return None


def resident_bytes() -> int | None:
    """What the process holds in memory now; None where that is not to be had."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def free_bytes(device: Any) -> int | None:
    """What may still be allocated on a device; None where nobody knows."""
    module = getattr(torch_if_loaded(), device.type, None) if device is not None else None
    if hasattr(module, "recommended_max_memory"):
        return max(0, module.recommended_max_memory() - module.driver_allocated_memory())
    if hasattr(module, "mem_get_info"):
        return module.mem_get_info(device)[0]
    return None


def auto_tile_size(device: Any, limit: int | None = None) -> int:
    """The largest tile for tile_size="auto" on a device, by its free memory, at most `limit` bytes of it; 512 where
    that is unknown."""
    free = min((one for one in (free_bytes(device), limit) if one is not None), default=None)
    return DEFAULT_TILE if free is None else tile_size_for(free)


def tile_size_for(free: int) -> int:
    """The table, linear between its entries; below it, as large as leaves the same share of memory to each pixel."""
    size = free / GiB
    low, tile = TABLE[0]
    if size < SMALLEST:
        return max(STEP, _stepped(tile * (size / SMALLEST) ** 0.5))
    if size <= low:
        return tile
    for (a, small), (b, large) in itertools.pairwise(TABLE):
        if size <= b:
            return _stepped(small + (large - small) * (size - a) / (b - a))
    return TABLE[-1][1]


def _stepped(tile: float) -> int:
    return int(tile / STEP + 1e-3) * STEP


# ---- activations -----------------------------------------------------------------------------------------------------


@functools.cache
def _watch() -> Any:
    torch = torch_if_loaded()
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Watch(TorchDispatchMode):
        """Inside, bytes of tensors that operators make are counted: the largest, and the most that live together."""

        def __init__(self) -> None:
            super().__init__()
            self.largest = self.live = self.most = 0

        @classmethod
        def _should_skip_dynamo(cls) -> bool:  # torch would import its compiler to do so: seconds, and 70 MiB
            return False

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)}
            for one in tree_iter(result):
                if isinstance(one, torch.Tensor):
                    self._count(one, id(one.untyped_storage()) in given)
            return result

        def _count(self, tensor: Any, shared: bool) -> None:
            size = tensor.numel() * tensor.element_size()
            self.largest = max(self.largest, size)
            if not shared:
                self.live += size
                self.most = max(self.most, self.live)
                weakref.finalize(tensor.untyped_storage(), self._forget, size)

        def _forget(self, size: int) -> None:
            self.live -= size

    return Watch


@contextlib.contextmanager
def watching() -> Iterator[Any]:
    """A context with the attributes largest and most: bytes of the tensors made inside by this thread, the largest, and
    all that live together; 0 for models that do not run in torch."""
    if torch_if_loaded() is None:
        yield types.SimpleNamespace(largest=0, most=0)
        return
    with eagerly, _watch()() as watch:
        yield watch


def largest_activation(model: Model, window: tuple[int, int, int, int]) -> int | None:
    """Bytes of the largest tensor that the model makes of a batch of windows; None if that cannot be found out.

    A copy of the model runs on tensors without memory: nothing is computed, no device is used, and the model keeps
    its tensors."""
    torch = torch_if_loaded()
    if not isinstance(model, TensorModel) or not model.alone:
        return None
    module = model.modules[0]
    try:
        with looking():
            empty = shell(module, "meta").eval()
            windows = torch.empty(window, dtype=getattr(torch, model.dtype), device="meta")
            with evaluating(roots_of(empty)), without_memory(), watching() as watch:
                empty(windows)
    except Exception:  # whatever a model does that tensors without values cannot
        return None
    return watch.largest


def _may_be_large(model: Model, window: tuple[int, int, int, int]) -> bool:
    """Whether an activation of as many channels as a layer has, enlarged four times, would be doubtful. Looking closer
    calls the module, which users may notice: so only then."""
    weights = [weight.shape for module in getattr(model, "modules", []) for weight in module.parameters()]
    channels = max((max(shape[:2]) for shape in weights if len(shape) > 1), default=window[1])
    batch, _, height, width = window
    return batch * channels * height * width * 16 * 4 >= DOUBTFUL


def is_doubtful(model: Model, window: tuple[int, int, int, int], engine: Any) -> bool:
    """Whether an Apple GPU may fail on an activation that is too large for it."""
    return _doubtful_bytes(model, window, engine) > 0


def _doubtful_bytes(model: Model, window: tuple[int, int, int, int], engine: Any) -> int:
    """Bytes of the largest activation, if an Apple GPU may fail on it; else 0."""
    if not getattr(engine, "fragile", False) or not _may_be_large(model, window):
        return 0
    largest = largest_activation(model, window) or 0
    return largest if largest >= DOUBTFUL else 0


def warn_about_device(model: Model, window: tuple[int, int, int, int], engine: Any) -> None:
    """Warns of what would abort the process or leave an Apple GPU unnoticed, before it happens."""
    if not getattr(engine, "fragile", False):
        return
    if os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") not in ("", "0"):
        text = "PYTORCH_ENABLE_MPS_FALLBACK is set: operations that MPS lacks will copy every tile to the CPU and back"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    largest = _doubtful_bytes(model, window, engine)
    if largest:
        what = "aborts the process" if largest >= ABORTS else "may return wrong values"
        limit = bytes_text(ABORTS if largest >= ABORTS else DOUBTFUL)
        text = (
            f"{window[0]} windows of {window[2]}x{window[3]} make an activation of {bytes_text(largest)}, and from "
            f"{limit} on MPS {what}: make tile_size or batch_size smaller"
        )
        warnings.warn(text, TileSizeWarning, stacklevel=2)


def what_would_fit(
    model: Model, window: tuple[int, int, int, int], halo: tuple[int, int], device: Any, limit: int | None = None
) -> str:
    """For an error's end: the tile that would have fitted, as far as that is known.

    device: None for the CPU. limit: bytes that the run may take, if fewer are free or not."""
    on_cpu = device is None or device.type == "cpu"
    known = available_bytes() if on_cpu else free_bytes(device), limit
    free = min((one for one in known if one is not None), default=None)
    largest = None if free is None else largest_activation(model, window)
    if free is None or not largest:
        return ""
    side = int((free * window[2] * window[3] / (2 * largest)) ** 0.5)  # a layer's input and output at the least
    tile = side - 2 * max(halo)
    fits = f"a tile of {tile} would fit at most" if tile > 0 else f"no tile fits with a halo of {max(halo)}"
    return f"; {bytes_text(free)} are free on {'the CPU' if device is None else device}: {fits}"
