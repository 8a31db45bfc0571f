# SPDX-License-Identifier: MIT
"""Atomic replacement of files and folders.

Each is written beside its path under a temporary name and renamed when it is complete. An error or Ctrl-C removes it
and leaves the old one in place.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..texts import quoted

__all__ = ["replacing", "replacing_folder", "writing"]


@contextmanager
def replacing(path: str) -> Iterator[int]:
    """The descriptor of a new file, which replaces `path` if the body succeeds."""
    target = os.path.realpath(path)
    name = _temporary_name(target)
    try:
        with writing(path):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileNotFoundError):
            shutil.copymode(target, name)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextmanager
def replacing_folder(path: str) -> Iterator[str]:
    """A new folder, which replaces `path` if the body succeeds."""
    target = os.path.realpath(path)
    name = _temporary_name(target)
    before = f"{name}.before"
    try:
        os.mkdir(name)
        yield name
        if os.path.lexists(target):  # no system can replace a non-empty folder
            os.rename(target, before)
        try:
            os.rename(name, target)
        except BaseException:
            if os.path.lexists(before):
                os.rename(before, target)
            raise
    finally:
        shutil.rmtree(name, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _temporary_name(target: str) -> str:
    return os.path.join(os.path.dirname(target), f".halotile-{secrets.token_hex(8)}.tmp")


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Makes OSErrors say that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error
