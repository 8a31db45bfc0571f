# SPDX-License-Identifier: MIT
"""How large a tile may be: the table for tile_size="auto", what a model's activations will need, and what running out
of memory looks like."""

from __future__ import annotations

import itertools
import os
import re
import traceback
import warnings
from typing import Any

from .errors import TileSizeWarning
from .images import torch_if_loaded
from .model import Model, TensorModel, evaluating
from .options import DEFAULT_TILE

__all__ = [
    "SMALLEST_TILE",
    "auto_tile_size",
    "forget_frames",
    "free_bytes",
    "is_doubtful",
    "is_out_of_memory",
    "warn_about_device",
    "what_would_fit",
]

GiB = 1 << 30

# Machines of 8 to 16 GB take tiles up to 512, of 24 to 32 GB up to 1024, of 64 GB and more up to 2048. What is asked
# here is what Apple's driver recommends to use: two thirds of the memory up to 32 GB, three quarters above.
TABLE = ((16 * 2 / 3, 512), (24 * 2 / 3, 1024), (32 * 2 / 3, 1024), (64 * 3 / 4, 2048))
SMALLEST = 8 * 2 / 3
STEP = 32  # tile sizes are multiples of it
SMALLEST_TILE = 16  # that is tried when memory runs out: below it a window is nearly all halo

SAYS_SO = re.compile(r"out of memory(?!-)")

# MPSGraph aborts the process when one array reaches 2^32 bytes; from 2^31 on, some of its operations are wrong.
ABORTS = 2**32
DOUBTFUL = 2**31


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, means that memory ran out: MPS raises a plain RuntimeError."""
    while error is not None:
        if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__:
            return True
        if isinstance(error, RuntimeError) and SAYS_SO.search(_text(error)):
            return True
        error = error.__cause__
    return False


def forget_frames(error: BaseException | None) -> None:
    """Lets go of the tensors that a failure's frames still hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    try:
        return str(error).lower()
    except Exception:
        return ""


def free_bytes(device: Any) -> int | None:
    """What may still be allocated on a device; None where nobody knows."""
    module = getattr(torch_if_loaded(), device.type, None) if device is not None else None
    if hasattr(module, "recommended_max_memory"):
        return max(0, module.recommended_max_memory() - module.driver_allocated_memory())
    if hasattr(module, "mem_get_info"):
        return module.mem_get_info(device)[0]
    return None


def auto_tile_size(device: Any) -> int:
    """The largest tile for tile_size="auto" on a device, by its free memory; 512 where that is unknown."""
    free = free_bytes(device)
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


def largest_activation(model: Model, window: tuple[int, int, int, int]) -> int | None:
    """Bytes of the largest tensor that the model makes of a batch of windows; None if that cannot be found out.

    The model runs on tensors without memory, so nothing is computed and no device is used."""
    torch = torch_if_loaded()
    if not isinstance(model, TensorModel) or not model.modules or model.call is not model.modules[0]:
        return None
    module = model.modules[0]
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel() * result.element_size())
            return result

    try:
        state = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
        windows = torch.empty(window, dtype=getattr(torch, model.dtype), device="meta")
        with evaluating([module]), torch.no_grad(), warnings.catch_warnings(), Watch():
            warnings.simplefilter("ignore")
            torch.func.functional_call(module, state, (windows,))
    except Exception:  # whatever a model does that tensors without values cannot
        return None
    return largest


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
        limit = (ABORTS if largest >= ABORTS else DOUBTFUL) // GiB
        text = (
            f"{window[0]} windows of {window[2]}x{window[3]} make an activation of {largest / GiB:.1f} GiB, and from "
            f"{limit} GiB on MPS {what}: make tile_size or batch_size smaller"
        )
        warnings.warn(text, TileSizeWarning, stacklevel=2)


def what_would_fit(model: Model, window: tuple[int, int, int, int], halo: tuple[int, int], device: Any) -> str:
    """For an error's end: the tile that would have fitted, as far as that is known."""
    free = free_bytes(device)
    largest = None if free is None else largest_activation(model, window)
    if free is None or not largest:
        return ""
    side = int((free * window[2] * window[3] / (2 * largest)) ** 0.5)  # a layer's input and output at the least
    tile = side - 2 * max(halo)
    fits = f"a tile of {tile} would fit at most" if tile > 0 else f"no tile fits with a halo of {max(halo)}"
    return f"; {free / 2**20:.0f} MiB are free on {device}: {fits}"
