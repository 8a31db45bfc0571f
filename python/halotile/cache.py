# SPDX-License-Identifier: MIT
"""A cache of small results for later processes: one JSON file each, in the user's cache folder.

A checksum covers the result and the file's name, so truncated, edited or renamed files are ignored. Readers still
validate results, as any input.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["keep", "kept"]

LARGEST = 1 << 20  # bytes; larger files are ignored


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
        if path.stat().st_size > LARGEST:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["result"] if content["checksum"] == _checksum(path, content["result"]) else None
    except Exception:  # the file may contain anything
        return None


def _checksum(path: Path, result: object) -> str:
    return hashlib.sha256(f"{path.name} {json.dumps(result, sort_keys=True)}".encode()).hexdigest()


def keep(name: str, about: object, result: object) -> None:
    """Caches a result. Other processes see all of it or nothing; failures are ignored."""
    path = _file(name, about)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        new.write_text(json.dumps({"checksum": _checksum(path, result), "result": result}), encoding="utf-8")
        new.replace(path)
    except OSError:  # the cache is optional
        pass
