# SPDX-License-Identifier: MIT
"""The Metal kernels as operators `torch.ops.halotile.*`, compiled and tested before use.

The first use in a process compiles the kernels and compares them with torch_verbs on the CPU, unless the cache has a
result for this machine and torch version. If torch lacks a function or a kernel differs, a warning says so and the
engine `torch` is used instead.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import _torch
from ..cache import keep, kept, of_machine
from ..texts import quoted
from . import torch_verbs

__all__ = ["LIBRARIES", "keep_result", "operators", "prepare", "serves"]


def _libtorch() -> str:
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    return str(Path(torch.__file__).parent / "lib" / name)


# Device type -> dispatch key, and the library with the aoti_torch_mps_* functions.
LIBRARIES: dict[str, tuple[str, Callable[[], str]]] = {"mps": ("MPS", _libtorch)}

_lock = threading.Lock()
_failures: dict[str, str] = {}  # device type -> reason why the kernels failed; "" if they are ready
_warned: set[str] = set()


def serves(device: torch.device) -> bool:
    return device.type in LIBRARIES


def operators(device: torch.device, asked_by: str | None) -> Any:
    """An object with read_tiles, accumulate and finish_rows for a device, or None if they do not work (warned once).

    asked_by: name of the option that requires them, if any.

    Raises:
        ValueError: required, but the device has no Metal. RuntimeError: required, but the kernels do not work.
    """
    if not serves(device):
        raise ValueError(f"{asked_by} must not be 'mps' for a model on {device}: it needs an Apple GPU, device 'mps'")
    with _lock:
        if device.type not in _failures:
            _failures[device.type] = _failure(device)
    failure = _failures[device.type]
    if not failure:
        return torch.ops.halotile
    if asked_by is not None:
        raise RuntimeError(f"{asked_by}='mps' does not work here: {failure}")
    if device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(f"the Metal kernels are not used, torch operations are: {failure}", RuntimeWarning, stacklevel=2)
    return None


def prepare(device: torch.device) -> None:
    """Compiles the kernels and registers the operators. Raises RuntimeError."""
    key, library = LIBRARIES[device.type]
    _torch.open(_libtorch())
    _describe_operators()
    _torch.attach(key, library())


@functools.cache
def _describe_operators() -> None:
    for name in torch_verbs.__all__:
        torch.library.register_fake(f"halotile::{name}", lambda *arguments: None)


def _failure(device: torch.device) -> str:
    """Why the kernels cannot be used; empty if they can."""
    from .kernel_check import differing

    try:
        prepare(device)
        kept = _kept_result()
        result = kept if kept is not None else differing(torch.ops.halotile, device)
        if kept is None:
            keep_result(result)
    except Exception as error:  # any failure: the engine torch remains
        return quoted(error)
    if not result:
        return ""
    return f"the self-test found differences in {', '.join(result)}; `python -m halotile selftest` says more"


# ---- the result is kept for each machine and version of torch --------------------------------------------------------


def _about() -> tuple[object, ...]:
    from .kernel_check import VERSION

    return of_machine(VERSION, _torch.KERNEL_SOURCE)


def _kept_result() -> list[str] | None:
    result = kept("selftest", _about())
    return result if isinstance(result, list) and all(isinstance(name, str) for name in result) else None


def keep_result(result: list[str]) -> None:
    keep("selftest", _about(), result)
