# SPDX-License-Identifier: MIT
"""Files and folders that appear whole or not at all."""

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
    """A descriptor of a new file, which takes the place of `path` if the body ends well and disappears if not."""
    target = os.path.realpath(path)
    name = os.path.join(os.path.dirname(target), f".halotile-{secrets.token_hex(8)}.tmp")
    try:
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error
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
    """A new folder, which takes the place of `path` if the body ends well and disappears if not."""
    target = os.path.realpath(path)
    name = os.path.join(os.path.dirname(target), f".halotile-{secrets.token_hex(8)}.tmp")
    before = f"{name}.before"
    try:
        os.mkdir(name)
        yield name
        if os.path.lexists(target):  # no system puts one folder in another's place
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


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Errors of the system say what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror or quoted(error)}", path) from error
