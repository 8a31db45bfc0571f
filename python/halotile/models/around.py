# SPDX-License-Identifier: MIT
"""What surrounds a look at a model that nobody asked for: random numbers, warnings and settings of the process are
afterwards what they were, also where several threads look.

    Shared          a setting of the whole process, for as long as any thread needs it
    same_luck       a context after which random numbers go on as if none had been drawn
    silence         a context without warnings
    eagerly         a context in which what torch compiled runs as it was written
    slow_attention  a context in which attention consists of single operators
    looking         a context for inspection, whatever the caller's grad mode is: the first three of these
    without_memory  a context in which no model reads the memory of tensors that have none

Nothing here imports torch: where it is not loaded, there is no model of its kind.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["Shared", "eagerly", "looking", "same_luck", "silence", "slow_attention", "without_memory"]

# Methods of tensors that lead to their memory.
ADDRESSES = {"data_ptr", "untyped_storage", "storage", "_typed_storage", "numpy", "__array__", "__dlpack__", "tolist"}


class Shared:
    """A context for a setting of the whole process: changed with the first that needs it, given back with the last.
    If each gave back what it found, threads would leave one another's settings behind."""

    def __init__(self, change: Callable[[], Callable[[], object]]):
        """change: makes the change, and returns what gives back what was there before."""
        self.change, self.users, self.lock = change, 0, threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.give_back = self.change()
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.give_back()


def _silence() -> Callable[[], object]:
    context = warnings.catch_warnings()
    context.__enter__()
    warnings.simplefilter("ignore")
    return lambda: context.__exit__(None, None, None)


silence = Shared(_silence)  # about what nobody asked for; a run gives the same warnings, if they matter


def _slow_attention() -> Callable[[], object]:
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(fast)


slow_attention = Shared(_slow_attention)  # by single operators, of which none hides what it does


def _run_eagerly() -> Callable[[], object]:
    torch = sys.modules.get("torch")
    if torch is None or "torch._dynamo" not in sys.modules:  # nothing is compiled
        return lambda: None
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


# What runs once at each of many sizes, or is watched while it runs, is not worth compiling, or cannot be compiled.
eagerly = Shared(_run_eagerly)


def _found_luck() -> Callable[[], object]:
    torch, plain, arrays = sys.modules.get("torch"), random.getstate(), np.random.get_state()
    tensors = [] if torch is None else [(torch, torch.get_rng_state()), *_device_luck(torch)]

    def give_back() -> None:
        random.setstate(plain)
        np.random.set_state(arrays)
        for module, state in tensors:
            module.set_rng_state_all(state) if isinstance(state, list) else module.set_rng_state(state)

    return give_back


_luck = Shared(_found_luck)


def same_luck() -> contextlib.AbstractContextManager[None]:
    """Random numbers of Python, NumPy and torch, on every device in use, go on afterwards as if none had been drawn."""
    return _luck


def _device_luck(torch: Any) -> Iterator[tuple[Any, Any]]:
    for module in (torch.cuda, torch.xpu):
        if module.is_available() and module.is_initialized():
            yield module, module.get_rng_state_all()
    if torch.backends.mps.is_available():
        with contextlib.suppress(RuntimeError, AttributeError):  # a device without random numbers of its own
            yield torch.mps, torch.mps.get_rng_state()


def _has_none(tensor: Any) -> bool:
    inside = _inside(tensor)
    return inside.device.type == "meta" or type(inside).__name__ == "FakeTensor"


def _inside(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    return torch._from_functional_tensor(tensor) if torch._is_functional_tensor(tensor) else tensor


class WithoutMemory:
    """A look at a model with tensors that have none. Attributes: refused: whether the model has asked where one is."""

    def __init__(self, fake: Any):
        self.fake, self.refused = fake, False
        self.thread, self.others = threading.get_ident(), set(threading.enumerate())

    def refuse(self) -> None:
        self.refused = True
        raise RuntimeError("the model reads the memory of a tensor that has none here")

    def owns(self, tensor: Any) -> bool:
        """Whether a tensor in another thread is one of this look: tensors on the device "meta" do not say so."""
        if self.fake is not None:
            return getattr(tensor, "fake_mode", None) is self.fake
        return tensor.device.type == "meta" and threading.current_thread() not in self.others


_looks: list[WithoutMemory] = []  # at the moment, in all threads


def _check_address(tensor: Any, everywhere: bool = False) -> None:
    """Raises, if a thread of the model's asks; with `everywhere`, also in the thread that looks."""
    looks, here = tuple(_looks), threading.get_ident()
    own = [look for look in looks if look.thread == here]
    if own:
        if everywhere and _has_none(tensor):
            own[-1].refuse()
        return
    inside = _inside(tensor)
    for look in looks:
        if look.owns(inside):
            look.refuse()


def _guard_addresses() -> Callable[[], object]:
    """Modes are a thread's own, and a model may have others."""
    torch = sys.modules["torch"]
    places = [(torch.Tensor, name) for name in ADDRESSES]
    places += [(torch, "to_dlpack"), (torch._C, "_to_dlpack"), (torch.utils.dlpack, "to_dlpack")]
    before = [(place, name, vars(place).get(name)) for place, name in places]
    for place, name in places:
        setattr(place, name, _guarded(getattr(place, name), place is not torch.Tensor))

    def give_back() -> None:
        for place, name, own in before:
            delattr(place, name) if own is None else setattr(place, name, own)

    return give_back


def _guarded(function: Any, everywhere: bool) -> Any:
    @functools.wraps(function)
    def guarded(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        _check_address(tensor, everywhere)
        return function(tensor, *args, **kwargs)

    return guarded


_guarded_addresses = Shared(_guard_addresses)


@contextlib.contextmanager
def without_memory(fake: Any = None) -> Iterator[WithoutMemory]:
    """A context for tensors that have none: a model that asks where theirs is gets an error, not an address to read,
    also in threads that it starts.

    Args:
        fake: the FakeTensorMode of the tensors; None for those on the device "meta".
    """
    from torch.overrides import TorchFunctionMode

    look = WithoutMemory(fake)

    class NoAddress(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            torch, name = sys.modules["torch"], getattr(function, "__name__", "")
            if name in ADDRESSES and args and isinstance(args[0], torch.Tensor) and _has_none(args[0]):
                look.refuse()
            return function(*args, **(kwargs or {}))

    with _guarded_addresses:
        _looks.append(look)
        try:
            with NoAddress():
                yield look
        finally:
            _looks.remove(look)


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Around looks that nobody asked for, without their warnings. Neither gradients nor inference mode: inside it
    operators consist of others, and tensors count their versions."""
    torch = sys.modules.get("torch")
    if torch is None:
        with same_luck(), silence:
            yield
        return
    with same_luck(), silence, eagerly, torch.inference_mode(False), torch.no_grad():
        yield
