# SPDX-License-Identifier: MIT
"""After every run, a module has the tensors that it had before: `tensors_kept`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .saved import saved_states
from .tensors import (
    equal,
    has_values,
    modules_in,
    restore_memory,
    restore_tensors,
    values_of,
    write,
    write_back,
    write_moved,
)
from .turns import turns

if TYPE_CHECKING:
    import torch

__all__ = ["tensors_kept"]


class _SavedModule:
    """The state of one submodule while it is run."""

    def __init__(self, inner: torch.nn.Module):
        self.inner, self.users, self.thread = inner, 0, threading.get_ident()
        self.dicts = [vars(inner), inner._buffers, inner._parameters]
        saved_states.save_all(self.dicts, dict)
        self.buffers = [one for one in inner._buffers.values() if one is not None and has_values(one)]
        self.values = [saved_states.save(one, values_of)[0] for one in self.buffers]
        self.parameters = [one for one in inner._parameters.values() if one is not None and has_values(one)]
        self.memory = [(one, one.data) for one in self.parameters]
        self.watched: list[tuple[torch.Tensor, torch.Tensor]] | None = None  # parameters and their values

    def watch(self) -> None:
        """Copies the values of parameters, to see writes to them."""
        if self.watched is None:
            self.watched = [(one, one.detach().clone()) for one in self.parameters if _may_be_read(one)]

    def written(self) -> bool:
        """Whether the values of a parameter or buffer changed."""
        buffers = [(one, value) for one, value in zip(self.buffers, self.values, strict=True) if _may_be_read(one)]
        return not all(equal(one, value) for one, value in (*(self.watched or ()), *buffers))

    def restore(self) -> None:
        """Restores attributes that a run replaced with tensors, the memory of parameters, and the values of buffers.

        A run leaves inference tensors behind, and with these the model could not be trained."""
        failed: list[BaseException] = []  # goes on even if one fails

        def attempted(call: Callable[..., object], *arguments: object) -> None:
            try:
                call(*arguments)
            except BaseException as error:  # whatever a tensor of the user's may raise
                failed.append(error)

        for own in self.dicts:
            attempted(saved_states.release, own, self.thread, restore_tensors)
        for parameter, data in self.memory:
            attempted(restore_memory, parameter, data)
        for tensor in self.buffers:
            restore = write_moved if self.watched is None else write_back
            attempted(saved_states.release, tensor, self.thread, restore)
        for tensor, value in self.watched or ():
            attempted(write, tensor, value)
        if failed:
            raise failed[0]


def _may_be_read(tensor: torch.Tensor) -> bool:
    """Whether reading a tensor is cheap: not on a device, which would wait and need memory for the copy."""
    return tensor.device.type == "cpu"


class SavedModules:
    """The saved state of modules inside a `tensors_kept`."""

    def __init__(self) -> None:
        self.modules: list[_SavedModule] = []

    def written(self) -> bool:
        """Whether the run wrote to parameters or buffers. If not, no later run is expected to, and the copies of
        parameters are freed."""
        with _lock:
            if any(one.written() for one in self.modules):
                return True
            for one in self.modules:
                one.watched = None
        return False


_own = threading.local()  # of a thread: what the outermost `tensors_kept` keeps, and for which modules
_lock = threading.RLock()  # reentrant: garbage collection may end a run in the thread that holds it
_saved: dict[int, _SavedModule] = {}  # by the submodule's id


@contextlib.contextmanager
def tensors_kept(modules: Iterable[torch.nn.Module], *, watched: bool) -> Iterator[SavedModules]:
    """A context for running modules that restores their tensors. The last of the runs that share a module restores it.

    Args:
        watched: whether to restore the values of parameters too, and those of buffers whose version did not change.
            Meanwhile, a copy of the parameters is in memory.
    """
    saved_modules, modules = SavedModules(), list(modules)
    outer: list[tuple[list[int], bool, SavedModules]] = _own.__dict__.setdefault("outer", [])
    roots = [id(module) for module in modules]
    if outer and outer[-1][0] == roots and (outer[-1][1] or not watched):
        yield outer[-1][2]  # they are kept already, and restored at the end of the whole run
        return
    outer.append((roots, watched, saved_modules))
    try:
        with turns.run(modules), _lock:
            for module in modules:
                for inner in _plain_modules(module):
                    saved = _saved.get(id(inner)) or _saved.setdefault(id(inner), _SavedModule(inner))
                    saved.users += 1
                    saved_modules.modules.append(saved)
                    if watched:
                        saved.watch()
        yield saved_modules
    finally:
        outer.remove((roots, watched, saved_modules))
        with _lock:
            for saved in saved_modules.modules:
                saved.users -= 1
                if saved.users == 0:
                    _saved.pop(id(saved.inner)).restore()


def _plain_modules(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    import torch

    return (inner for inner in modules_in(module) if not isinstance(inner, torch.jit.ScriptModule))
