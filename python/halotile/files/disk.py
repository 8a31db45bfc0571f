# SPDX-License-Identifier: MIT
"""What must outlive a loss of power or of the process: writes, syncs, renames and locks, each in one place.

Tests put other functions here, which fail, or lose what was not synced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["copy_attributes", "exchange", "lock", "rename", "sync", "sync_folder", "sync_tree", "write"]

UNSUPPORTED = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EISDIR)
AT_FDCWD, SWAP = -100, 2
PERMISSIONS = 0o777  # without setuid, setgid and sticky: these were given to another content


def write(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def sync(descriptor: int) -> None:
    """Returns when what was written to the file is on the disk."""
    os.fsync(descriptor)


def sync_folder(path: str) -> None:
    """Returns when the names in a folder are on the disk, where the system can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNSUPPORTED:  # Windows opens no folders
            return
        raise
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str) -> None:
    """Syncs all files and folders below, then the folder itself."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(here, name), os.O_RDWR)  # Windows syncs only what may be written
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(here)


def rename(name: str, target: str) -> None:
    """Replaces a file, and returns when the new name is on the disk."""
    os.replace(name, target)
    sync_folder(os.path.dirname(target))


def exchange(one: str, other: str) -> bool:
    """Exchanges two names in one step; False if the system or the file system cannot."""
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, SWAP)
        else:
            failed = library.renameat2(AT_FDCWD, first, AT_FDCWD, second, SWAP)
    except (OSError, TypeError, AttributeError):  # Windows, and C libraries without it
        return False
    if failed:
        return False
    sync_folder(os.path.dirname(other))
    return True


def lock(descriptor: int) -> bool | None:
    """Locks a file or folder until it is closed or the process ends. False: another process has it; None: the file
    system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def copy_attributes(source: str, target: str) -> None:
    """Gives a file the permissions, extended attributes and access lists of another, and its owner and group where this
    user may. Others' rights never grow: where the group cannot be kept, its rights are those of others."""
    try:
        old = os.stat(source)
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(old.st_mode) & PERMISSIONS
    if hasattr(os, "chown"):
        new = os.stat(target)
        if new.st_gid != old.st_gid:
            try:
                os.chown(target, -1, old.st_gid)
            except OSError:
                mode = mode & ~0o070 | (mode & 0o007) << 3
        if new.st_uid != old.st_uid:
            with suppress(OSError):
                os.chown(target, old.st_uid, -1)
    for name in os.listxattr(source) if hasattr(os, "listxattr") else ():
        with suppress(OSError):  # those of the system, or none here
            os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, mode)
