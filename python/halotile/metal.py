# SPDX-License-Identifier: MIT
"""The Metal kernels, as operators `torch.ops.halotile.*`: made ready, and tested before they are trusted.

At the first use in a process the kernels are compiled and, unless that was done before on this machine with this torch,
compared with torch_verbs on the CPU. If a function is missing from torch or a kernel differs, a warning says so and the
engine `torch` is used instead.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import _torch, torch_verbs

__all__ = ["LIBRARIES", "keep_result", "operators", "prepare", "serves"]


def _libtorch() -> str:
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    return str(Path(torch.__file__).parent / "lib" / name)


# Device type -> dispatch key, and the library that has the aoti_torch_mps_* functions.
LIBRARIES: dict[str, tuple[str, Callable[[], str]]] = {"mps": ("MPS", _libtorch)}

_lock = threading.Lock()
_failures: dict[str, str] = {}  # device type -> why not; "" if the kernels are ready


def serves(device: Any) -> bool:
    return device.type in LIBRARIES


def operators(device: Any, explicit: bool) -> Any:
    """What has read_tiles, accumulate and finish_rows for a device, or None if that does not work here (warned once).

    Raises:
        ValueError: `explicit`, and the device has no Metal. RuntimeError: `explicit`, and the kernels do not work.
    """
    if not serves(device):
        raise ValueError(f"engine must not be 'mps' for a model on {device}: it needs an Apple GPU, device 'mps'")
    with _lock:
        if device.type not in _failures:
            _failures[device.type] = _failure(device)
            if _failures[device.type] and not explicit:
                text = f"the Metal kernels are not used, torch operations are: {_failures[device.type]}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
    if not _failures[device.type]:
        return torch.ops.halotile
    if explicit:
        raise RuntimeError(f"engine='mps' does not work here: {_failures[device.type]}")
    return None


def prepare(device: Any) -> None:
    """Compiles the kernels and registers the operators. Raises RuntimeError."""
    key, library = LIBRARIES[device.type]
    _torch.open(_libtorch())
    _describe_operators()
    _torch.attach(key, library())


@functools.cache
def _describe_operators() -> None:
    """What torch's tracers need to know of the operators: they return nothing."""
    for name in torch_verbs.__all__:
        torch.library.register_fake(f"halotile::{name}", lambda *arguments: None)


def _failure(device: Any) -> str:
    """Why the kernels cannot be used; empty if they can."""
    from .selftest import differing

    try:
        prepare(device)
        kept = _kept_result()
        result = kept if kept is not None else differing(torch.ops.halotile, device)
        if kept is None:
            keep_result(result)
    except RuntimeError as error:
        return str(error)
    if not result:
        return ""
    return f"the self-test found differences in {', '.join(result)}; `python -m halotile selftest` says more"


# ---- the result is kept for each machine and version of torch --------------------------------------------------------


def _result_file() -> Path | None:
    """None where HALOTILE_CACHE is empty."""
    folder = os.environ.get("HALOTILE_CACHE")
    if folder == "":
        return None
    if folder is None:
        home = Path.home()
        caches = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
        folder = os.environ.get("XDG_CACHE_HOME") or str(caches)
        folder = str(Path(folder) / "halotile")
    about = (_torch.KERNEL_SOURCE, torch.__version__, *platform.uname(), *platform.mac_ver()[:1])
    return Path(folder) / f"selftest-{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.json"


def _kept_result() -> list[str] | None:
    path = _result_file()
    try:
        result = json.loads(path.read_text())["differing"] if path else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if isinstance(result, list) and all(isinstance(name, str) for name in result) else None


def keep_result(result: list[str]) -> None:
    """Keeps which kernels differ, for later processes."""
    path = _result_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({"torch": torch.__version__, "differing": result}))
        new.replace(path)
    except OSError:  # nothing depends on it
        pass
