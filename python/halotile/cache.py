# SPDX-License-Identifier: MIT
"""Small results that later processes may use: one JSON file each, in a folder of the user's.

Each file has a checksum of what it holds and of what it is about. A result that fails it is not used: it was cut short,
edited, or moved to another's name. Whoever reads a result checks it all the same, as any input."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["keep", "kept"]

LARGEST = 1 << 20  # bytes of a file that is read


def _file(name: str, about: object) -> Path | None:
    """Where a result about something is kept; None where HALOTILE_CACHE is empty, or nobody knows a folder."""
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
    """What was kept about something, as JSON has it; None if nothing was, or it cannot be read."""
    path = _file(name, about)
    if path is None:
        return None
    try:
        if path.stat().st_size > LARGEST:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["result"] if content["checksum"] == _checksum(path, content["result"]) else None
    except Exception:  # whatever somebody put there
        return None


def _checksum(path: Path, result: Any) -> str:
    return hashlib.sha256(f"{path.name} {json.dumps(result, sort_keys=True)}".encode()).hexdigest()


def keep(name: str, about: object, result: Any) -> None:
    """Keeps a result. Other processes see all of it or nothing; where it cannot be kept, it is not."""
    path = _file(name, about)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        new.write_text(json.dumps({"checksum": _checksum(path, result), "result": result}), encoding="utf-8")
        new.replace(path)
    except OSError:  # nothing depends on it
        pass
