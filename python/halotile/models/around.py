# SPDX-License-Identifier: MIT
"""Contexts for running a model internally, such as for inspection. They restore random state, warnings and settings of
the process, also when several threads use them.

    Shared          a setting of the whole process that is changed while any thread needs it
    preserved_rng   restores the state of random number generators
    silence         suppresses warnings
    eagerly         runs compiled torch code uncompiled
    slow_attention  makes attention run as single operators
    looking         for inspection: preserved_rng, silence, eagerly, and a fixed grad mode
    decomposed      runs a composite operator through its parts
    without_memory  makes a model fail that reads the memory of meta or fake tensors

Nothing here imports torch: if it is not loaded, there are no torch models.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch._ops import OpOverload
    from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ["Shared", "decomposed", "eagerly", "looking", "preserved_rng", "silence", "slow_attention", "without_memory"]

# Methods of tensors that give access to their memory.
ADDRESSES = {"data_ptr", "untyped_storage", "storage", "_typed_storage", "numpy", "__array__", "__dlpack__", "tolist"}


class Shared:
    """A context for a setting of the whole process: the first user changes it, the last one restores it. If each user
    restored what it found, threads would leave each other's settings behind."""

    def __init__(self, change: Callable[[], Callable[[], object]]):
        """change: makes the change, and returns a function that undoes it."""
        self.change, self.users, self.lock = change, 0, threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.restore = self.change()
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.restore()


def _silence() -> Callable[[], object]:
    context = warnings.catch_warnings()
    context.__enter__()
    warnings.simplefilter("ignore")
    return lambda: context.__exit__(None, None, None)


silence = Shared(_silence)  # for internal runs; the user's own run gives the same warnings if they matter


def _slow_attention() -> Callable[[], object]:
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(fast)


slow_attention = Shared(_slow_attention)  # fused operators would hide what they compute


def _run_eagerly() -> Callable[[], object]:
    torch = sys.modules.get("torch")
    if torch is None or "torch._dynamo" not in sys.modules:  # nothing is compiled
        return lambda: None
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


# Single runs at many sizes are not worth compiling, and runs under a dispatch mode cannot be compiled.
eagerly = Shared(_run_eagerly)


def _save_random_state() -> Callable[[], object]:
    torch, plain, arrays = sys.modules.get("torch"), random.getstate(), np.random.get_state()
    tensors = [] if torch is None else [(torch, torch.get_rng_state()), *_device_random_states(torch)]

    def restore() -> None:
        random.setstate(plain)
        np.random.set_state(arrays)
        for module, state in tensors:
            module.set_rng_state_all(state) if isinstance(state, list) else module.set_rng_state(state)

    return restore


preserved_rng = Shared(_save_random_state)  # of Python, NumPy and torch, on every device in use


def _device_random_states(torch: ModuleType) -> Iterator[tuple[ModuleType, torch.Tensor | list[torch.Tensor]]]:
    for module in (torch.cuda, torch.xpu):
        if module.is_available() and module.is_initialized():
            yield module, module.get_rng_state_all()
    if torch.backends.mps.is_available():
        with contextlib.suppress(RuntimeError, AttributeError):  # a device without its own random state
            yield torch.mps, torch.mps.get_rng_state()


def _has_no_memory(tensor: torch.Tensor) -> bool:
    unwrapped = _unwrapped(tensor)
    return unwrapped.device.type == "meta" or type(unwrapped).__name__ == "FakeTensor"


def _unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    torch = sys.modules["torch"]
    return torch._from_functional_tensor(tensor) if torch._is_functional_tensor(tensor) else tensor


class WithoutMemory:
    """An internal run on tensors without memory. `refused`: whether the model tried to access their memory."""

    def __init__(self, fake: FakeTensorMode | None):
        self.fake, self.refused = fake, False
        self.thread, self.others = threading.get_ident(), set(threading.enumerate())

    def refuse(self) -> None:
        self.refused = True
        raise RuntimeError(
            "the model reads the memory of a tensor, as numpy() does, and there is none while it is looked at"
        )

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor in another thread belongs to this run; meta tensors do not record that."""
        if self.fake is not None:
            return getattr(tensor, "fake_mode", None) is self.fake
        return tensor.device.type == "meta" and threading.current_thread() not in self.others


_runs: list[WithoutMemory] = []  # current ones of all threads


def _check_address(tensor: torch.Tensor, everywhere: bool = False) -> None:
    """Raises if a thread of the model accesses memory; with `everywhere`, also in the thread of the run itself."""
    runs, thread = tuple(_runs), threading.get_ident()
    own = [run for run in runs if run.thread == thread]
    if own:
        if everywhere and _has_no_memory(tensor):
            own[-1].refuse()
        return
    unwrapped = _unwrapped(tensor)
    for run in runs:
        if run.owns(unwrapped):
            run.refuse()


def _guard_addresses() -> Callable[[], object]:
    """Patches torch for all threads: function modes cover one thread only, and a model may start others."""
    torch = sys.modules["torch"]
    places = [(torch.Tensor, name) for name in ADDRESSES]
    places += [(torch, "to_dlpack"), (torch._C, "_to_dlpack"), (torch.utils.dlpack, "to_dlpack")]
    before = [(place, name, vars(place).get(name)) for place, name in places]
    for place, name in places:
        setattr(place, name, _guarded(getattr(place, name), place is not torch.Tensor))

    def restore() -> None:
        for place, name, own in before:
            delattr(place, name) if own is None else setattr(place, name, own)

    return restore


def _guarded(function: Callable[..., object], everywhere: bool) -> Callable[..., object]:
    @functools.wraps(function)
    def guarded(tensor: torch.Tensor, *args: object, **kwargs: object) -> object:
        _check_address(tensor, everywhere)
        return function(tensor, *args, **kwargs)

    return guarded


_guarded_addresses = Shared(_guard_addresses)


@contextlib.contextmanager
def without_memory(fake: FakeTensorMode | None = None) -> Iterator[WithoutMemory]:
    """A context for runs on tensors without memory: a model that asks for their address gets an error, also in threads
    that it starts.

    Args:
        fake: the FakeTensorMode of the tensors; None for meta tensors.
    """
    from torch.overrides import TorchFunctionMode

    run = WithoutMemory(fake)

    class NoAddress(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], _: object, args: Any = (), kwargs: Any = None
        ) -> Any:
            torch, name = sys.modules["torch"], getattr(function, "__name__", "")
            if name in ADDRESSES and args and isinstance(args[0], torch.Tensor) and _has_no_memory(args[0]):
                run.refuse()
            return function(*args, **(kwargs or {}))

    with _guarded_addresses:
        _runs.append(run)
        try:
            with NoAddress():
                yield run
        finally:
            _runs.remove(run)


def decomposed(mode: contextlib.AbstractContextManager[object], function: OpOverload, args: Any, kwargs: Any) -> Any:
    """The result of a composite operator through its parts, which `mode` sees; NotImplemented if it has none. In
    inference mode such operators reach dispatch modes whole."""
    if not function._can_decompose():
        return NotImplemented
    with mode:
        return function.decompose(*args, **kwargs)


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """A context for internal runs, without warnings. Gradients and inference mode are off: without inference mode,
    composite operators are decomposed and tensors count their versions."""
    torch = sys.modules.get("torch")
    if torch is None:
        with preserved_rng, silence:
            yield
        return
    with preserved_rng, silence, eagerly, torch.inference_mode(False), torch.no_grad():
        yield
