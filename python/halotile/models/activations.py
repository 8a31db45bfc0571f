# SPDX-License-Identifier: MIT
"""Size of a model's activations for a batch of windows, and whether a device can hold them."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import TileSizeWarning
from ..memory import available_bytes, free_bytes
from ..optional import torch_if_loaded
from ..texts import bytes_text
from .around import eagerly, looking, without_memory
from .model import Model, TensorModel
from .modes import evaluating
from .reach import roots_of
from .untouched.copies import shell

if TYPE_CHECKING:
    import torch

__all__ = ["is_doubtful", "largest_activation", "warn_about_device", "watching", "what_would_fit"]

# MPSGraph aborts the process when one array reaches 2^32 bytes; from 2^31 on, some of its operations are wrong.
ABORTS = 2**32
DOUBTFUL = 2**31


class Activations:
    """Bytes of tensors that operators made: `largest` is the largest tensor, `most` the peak of all live ones."""

    largest = live = most = 0

    def count(self, tensor: torch.Tensor, shared: bool) -> None:
        size = tensor.numel() * tensor.element_size()
        self.largest = max(self.largest, size)
        if not shared:
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(tensor.untyped_storage(), self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


@functools.cache
def _mode() -> Callable[[Activations], contextlib.AbstractContextManager[object]]:
    """The class of dispatch modes that count tensors; defined late, because its base class needs torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Watch(TorchDispatchMode):
        def __init__(self, activations: Activations) -> None:
            super().__init__()
            self.activations = activations

        @classmethod
        def _should_skip_dynamo(cls) -> bool:  # skipping would import torch's compiler: seconds, and 70 MiB
            return False

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)}
            for one in tree_iter(result):
                if isinstance(one, torch.Tensor):
                    self.activations.count(one, id(one.untyped_storage()) in given)
            return result

    return Watch


@contextlib.contextmanager
def watching() -> Iterator[Activations]:
    """A context that counts the tensors that this thread makes in it; none for models that do not run in torch."""
    activations = Activations()
    if torch_if_loaded() is None:
        yield activations
        return
    with eagerly, _mode()(activations):
        yield activations


def largest_activation(model: Model, window: tuple[int, int, int, int]) -> int | None:
    """Bytes of the model's largest activation for a batch of windows; None if unknown.

    A copy of the model runs on meta tensors: nothing is computed, no device is used, and the model is not changed."""
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
    except Exception:  # operations that meta tensors do not support may raise anything
        return None
    return watch.largest


def _may_be_large(model: Model, window: tuple[int, int, int, int], most: int) -> bool:
    """Whether an activation of as many channels as a layer has, enlarged four times, would be doubtful. Looking closer
    calls the module, which users may notice: so only then."""
    weights = [weight.shape for module in getattr(model, "modules", []) for weight in module.parameters()]
    channels = max((max(shape[:2]) for shape in weights if len(shape) > 1), default=window[1])
    batch, _, height, width = window
    return batch * channels * height * width * 16 * 4 >= most


def is_doubtful(model: Model, window: tuple[int, int, int, int], engine: object, room: int | None = None) -> bool:
    """Whether an Apple GPU may fail on an activation that is too large for it, or have no room for two of them.

    room: bytes that may be planned with; None: unknown."""
    most = DOUBTFUL if room is None else min(DOUBTFUL, room // 2)
    return _doubtful_bytes(model, window, engine, most) > 0


def _doubtful_bytes(model: Model, window: tuple[int, int, int, int], engine: object, most: int = DOUBTFUL) -> int:
    """Bytes of the largest activation, if an Apple GPU may fail on it; else 0."""
    if not getattr(engine, "fragile", False) or not _may_be_large(model, window, most):
        return 0
    largest = largest_activation(model, window) or 0
    return largest if largest >= most else 0


def warn_about_device(model: Model, window: tuple[int, int, int, int], engine: object) -> None:
    """Warns before a run if it would abort the process, or silently leave an Apple GPU."""
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
            f"{window[0]} windows of {window[2]}x{window[3]} need an activation of {bytes_text(largest)}; from "
            f"{limit} on, MPS {what}: use a smaller tile_size or batch_size"
        )
        warnings.warn(text, TileSizeWarning, stacklevel=2)


def what_would_fit(
    model: Model,
    window: tuple[int, int, int, int],
    halo: tuple[int, int],
    device: torch.device | None,
    limit: int | None = None,
) -> str:
    """A clause for out-of-memory errors: the tile size that would have fitted; empty if unknown.

    device: None for the CPU. limit: bytes that the run may take, None for no limit."""
    on_cpu = device is None or device.type == "cpu"
    known = available_bytes() if on_cpu else free_bytes(device), limit
    free = min((one for one in known if one is not None), default=None)
    largest = None if free is None else largest_activation(model, window)
    if free is None or not largest:
        return ""
    side = int((free * window[2] * window[3] / (2 * largest)) ** 0.5)  # at least a layer's input and output
    tile = side - 2 * max(halo)
    fits = f"a tile of {tile} would fit at most" if tile > 0 else f"no tile fits with a halo of {max(halo)}"
    return f"; {bytes_text(free)} are free on {'the CPU' if device is None else device}: {fits}"
