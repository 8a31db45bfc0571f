# SPDX-License-Identifier: MIT
"""Where the result lies until it is complete, and how it gets its name.

In a folder, a draft beside the path is renamed. Without resume its name is new, and it is removed if the run fails;
with resume the next run finds it. In an object store shards are put where they stay, and zarr.json, without which there
is no array, is put last.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..files import disk
from ..files.atomic import hidden_name, put_in_place, remove_folder, replacing_folder, sweep, writing
from ..resume.identity import differences
from .store import KEPT, RUN, Store, is_url, store_at

__all__ = ["ANEW", "Drafted", "check_same", "discard", "drafted", "is_begun"]

ABOUT, DESCRIPTION, SHARDS = f"{KEPT}/about.json", "zarr.json", "c"
ANEW = "without resume it starts anew"


class Drafted:
    """Attributes:
    store: where shards are put.
    before: what an earlier run was about; None if there is nothing to go on from.
    """

    def __init__(self, path: str, store: Store, resume: bool):
        self.path, self.store, self.resume = path, store, resume
        kept = store.get(ABOUT) if resume else None
        self.before = None if kept is None else _about(kept)

    def begin(self, identifier: str, about: dict[str, Any], description: bytes) -> None:
        """From here on shards may be put. Raises ValueError if those that are there are of something else."""
        if self.before is not None:
            check_same(self.path, self.before, about)
        else:  # nothing, or nothing that can be told
            self.store.remove(KEPT)
            self.store.remove(SHARDS)
        last = {} if is_url(self.path) else {DESCRIPTION: description}
        self.store.put({RUN: identifier.encode(), ABOUT: json.dumps(about).encode(), **last})

    def complete(self, description: bytes) -> None:
        """All shards are there."""
        if is_url(self.path):
            self.store.put({DESCRIPTION: description})
        self.store.remove(KEPT)
        self.store.tidy()


def _about(content: bytes) -> dict[str, Any] | None:
    """None if it is not what was put."""
    with suppress(ValueError):
        about = json.loads(content)
        if isinstance(about, dict) and all(isinstance(about.get(key), dict) for key in ("run", "fixed", "manner")):
            return about
    return None


def check_same(path: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))  # as it was kept
    apart = differences(before["run"], now["run"]) + differences(before["fixed"], now["fixed"])
    ways = ("schedule", "tile_size", "batch_size", "memory_format", "device")
    apart += differences(*({name: one["manner"].get(name) for name in ways} for one in (before, now)))
    if apart:
        raise ValueError(f"{path}: the shards kept of it were made of something else: {', '.join(apart)}; {ANEW}")


@contextmanager
def drafted(path: str, resume: bool) -> Iterator[Drafted]:
    """Raises OSError if another process is making the result, or if it cannot be written there."""
    if is_url(path):
        store = store_at(path)
        if store.size(DESCRIPTION) >= 0:
            raise FileExistsError(errno.EEXIST, "there is an array already, and object stores exchange none", path)
        draft = Drafted(path, store, resume)
        try:
            yield draft
        except BaseException:
            if not resume:
                store.remove("")
            raise
        return
    if resume:
        with _kept_folder(path) as folder:
            yield Drafted(path, store_at(folder), True)
        return
    discard(path)
    with replacing_folder(path) as made:
        yield Drafted(path, store_at(made.name), False)


@contextmanager
def _kept_folder(path: str) -> Iterator[str]:
    """A folder that outlives a run which fails, locked."""
    target = os.path.realpath(path)
    sweep(os.path.dirname(target))
    name = hidden_name(target, "shards")
    with writing(path):
        os.makedirs(name, exist_ok=True)
    with _locked(name, path):
        yield name
        with writing(path):
            disk.sync_tree(name)
            put_in_place(name, target)
            remove_folder(name)  # the old one, after an exchange


@contextmanager
def _locked(name: str, path: str) -> Iterator[None]:
    descriptor = os.open(name, os.O_RDONLY)
    try:
        if disk.lock(descriptor) is False:
            raise OSError(errno.EBUSY, "another process is making it", path)
        yield
    finally:
        os.close(descriptor)


def is_begun(path: str) -> bool:
    """Whether shards of a result may be kept."""
    return os.path.isdir(hidden_name(os.path.realpath(path), "shards"))


def discard(path: str) -> None:
    """Removes what is kept for a result. Raises OSError if another process is making it."""
    name = hidden_name(os.path.realpath(path), "shards")
    if os.path.isdir(name):
        with _locked(name, path), writing(path):
            remove_folder(name)
