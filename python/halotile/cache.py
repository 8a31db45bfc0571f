# SPDX-License-Identifier: MIT
"""A cache of small results for later processes: one JSON file each, in the user's cache folder.

A checksum covers the result and the file's name, so truncated, edited or renamed files are ignored. Readers still
validate results, as any input.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .optional import torch_if_loaded
from .version import __version__

__all__ = ["keep", "kept", "of_machine"]

LARGEST = 1 << 20  # bytes; larger files are ignored


def of_machine(*about: object) -> tuple[object, ...]:
    """What a result is about that holds for this machine, its system, and the versions of halotile and torch."""
    system = (*platform.uname(), platform.mac_ver()[0])
    return __version__, *about, torch_if_loaded().__version__, *system


def _file(name: str, about: object) -> Path | None:
    folder = os.environ.get("HALOTILE_CACHE")
    if folder == "":
        return None
    if folder is None:
        caches = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or caches, "halotile")
    path = os.path.expanduser(folder)
    if path.startswith("~"):
        return None
    return Path(path) / f"{name}-{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.json"


def kept(name: str, about: object) -> Any:
    """The cached result as parsed from JSON; None if there is none or it cannot be read."""
    path = _file(name, about)
    if path is None:
        return None
    try:
        about_file = path.stat()
        if about_file.st_size > LARGEST or not stat.S_ISREG(about_file.st_mode):  # a pipe would be waited for
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["result"] if content["checksum"] == _checksum(path, content["result"]) else None
    except Exception:  # the file may contain anything
        return None


def _checksum(path: Path, result: object) -> str:
    return hashlib.sha256(f"{path.name} {json.dumps(result, sort_keys=True)}".encode()).hexdigest()


def keep(name: str, about: object, result: object) -> None:
    """Caches a result. Other processes see all of it or nothing; failures are ignored, and leave nothing behind."""
    path = _file(name, about)
    if path is None:
        return
    content = json.dumps({"checksum": _checksum(path, result), "result": result}).encode()
    new = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, new = tempfile.mkstemp(prefix=f"{path.stem}.", dir=path.parent)  # a name that nobody could foresee
        with open(number, "wb") as file:
            file.write(content)
        os.replace(new, path)
    except OSError:  # the cache is optional
        if new is not None:
            with suppress(OSError):
                os.remove(new)
