# SPDX-License-Identifier: MIT
"""Atomic replacement of files and folders.

Each is written beside its path as a draft, `.halotile-....tmp`, and gets its name when it is complete and on the disk.
An error or Ctrl-C removes it and leaves the old one in place. A process that is killed leaves its draft: it holds a
lock while it lives, so that the next one that writes into the folder knows drafts of the dead, and removes them.

A folder is exchanged with the old one in one step where the system can. Where it cannot, the old one is `....before`
between two renames: whoever finds that name, and none under the path, gives it back.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..texts import quoted
from . import disk

__all__ = [
    "PREFIX",
    "Draft",
    "hidden_name",
    "put_in_place",
    "recover",
    "remove_folder",
    "replacing",
    "replacing_folder",
    "sweep",
    "writing",
]

PREFIX, DRAFT = ".halotile-", ".tmp"


@dataclass(frozen=True)
class Draft:
    """A file or folder that is being written.

    Attributes:
        path: where it will be, for messages.
        name: where it is.
        descriptor: the open file; of a folder, one that holds its lock, or -1.
    """

    path: str
    name: str
    descriptor: int

    def check(self) -> None:
        """Raises OSError if it is gone: what is written now would go nowhere."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(self.name, follow_symlinks=False)
            if self.descriptor < 0 or os.path.samestat(found, os.fstat(self.descriptor)):
                return
        text = "cannot be written: its temporary file was removed meanwhile"
        raise FileNotFoundError(errno.ENOENT, text, self.path)


@contextmanager
def replacing(path: str) -> Iterator[Draft]:
    """A new file, which replaces `path` if the body succeeds."""
    target = os.path.realpath(path)
    sweep(os.path.dirname(target))
    name, descriptor = "", -1
    try:
        try:
            with writing(path):
                name, descriptor = _new_file(target)
            draft = Draft(path, name, descriptor)
            yield draft
            draft.check()
            with writing(path):
                disk.copy_attributes(target, name)
                disk.sync(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        with writing(path):
            disk.rename(name, target)
    except BaseException:
        _remove(name)
        raise


@contextmanager
def replacing_folder(path: str) -> Iterator[Draft]:
    """A new folder, which replaces `path` if the body succeeds."""
    target = os.path.realpath(path)
    sweep(os.path.dirname(target))
    recover(target)
    name, descriptor = "", -1
    try:
        with writing(path):
            name, descriptor = _new_folder(target)
        draft = Draft(path, name, descriptor)
        yield draft
        draft.check()
        with writing(path):
            disk.sync_tree(name)
            put_in_place(name, target)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if name:
            remove_folder(name)  # the old one, after an exchange


def put_in_place(name: str, target: str) -> None:
    """Gives a folder that is complete its name. Where the system exchanges names, `name` is the old one afterwards."""
    if os.path.lexists(target) and disk.exchange(name, target):
        return
    before = hidden_name(target, "before")
    if os.path.lexists(target):  # no other call replaces a non-empty folder
        remove_folder(before)
        disk.rename(target, before)
    try:
        disk.rename(name, target)
    except BaseException:
        recover(target)
        raise
    remove_folder(before)


def recover(path: str) -> None:
    """Gives a folder its name back that a process was replacing when it was killed."""
    target = os.path.realpath(path)
    before = hidden_name(target, "before")
    if not os.path.lexists(target) and os.path.isdir(before):
        with suppress(OSError):  # another process did
            disk.rename(before, target)


def remove_folder(name: str) -> None:
    """Removes a folder into which others may be writing: under another name, which they do not know, it is a draft of
    the dead. What cannot be removed stays."""
    for _ in range(2):
        try:
            with suppress(OSError):
                aside = _new_name(name)
                os.rename(name, aside)
                name = aside
            shutil.rmtree(name, ignore_errors=True)
            if not os.path.lexists(name):
                return
        except MemoryError:
            continue


# ---- names -----------------------------------------------------------------------------------------------------------


def hidden_name(target: str, suffix: str) -> str:
    """A name beside a path that every process finds."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f"{PREFIX}{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.{suffix}")


def _new_name(target: str) -> str:
    return os.path.join(os.path.dirname(target), f"{PREFIX}{secrets.token_hex(8)}{DRAFT}")


def _new_file(target: str) -> tuple[str, int]:
    """A locked file."""
    while True:
        name = _new_name(target)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if disk.lock(descriptor) is not False and os.path.lexists(name):  # else it was taken for one of the dead
                return name, descriptor
        except BaseException:
            os.close(descriptor)
            _remove(name)
            raise
        os.close(descriptor)


def _remove(name: str) -> None:
    with suppress(OSError):
        os.unlink(name)


def _new_folder(target: str) -> tuple[str, int]:
    while True:
        name = _new_name(target)
        os.mkdir(name)
        descriptor = -1
        try:
            descriptor = os.open(name, os.O_RDONLY)
            if disk.lock(descriptor) is not False and os.path.lexists(name):
                return name, descriptor
        except PermissionError:  # Windows
            return name, -1
        except FileNotFoundError:
            continue
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            shutil.rmtree(name, ignore_errors=True)
            raise
        os.close(descriptor)


# ---- drafts of the dead ----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def sweep(folder: str) -> None:
    """Removes drafts in a folder whose processes were killed: once for each folder and process. Drafts of other users
    and links are left."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.name.endswith(DRAFT):
                _remove_if_dead(entry.path)


def _remove_if_dead(name: str) -> None:
    with suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            found = os.fstat(descriptor)
            ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
            if not ours or disk.lock(descriptor) is not True:
                return
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(name, ignore_errors=True)
            elif stat.S_ISREG(found.st_mode):
                os.unlink(name)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Makes OSErrors say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error
