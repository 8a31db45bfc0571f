# SPDX-License-Identifier: MIT
"""What the commands have in common: what is wrong with a command line, options, and how things are written."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import texts
from ..errors import TileError
from ..options import Options
from ..plan import TilePlan, plan_tiles

__all__ = [
    "BIT_DTYPES",
    "FORMATS",
    "UsageError",
    "checked_options",
    "debugging",
    "one_line",
    "planned",
    "shown",
    "size_text",
    "usage_errors",
]

BIT_DTYPES = {8: "uint8", 16: "uint16"}
FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy", "zarr": ".zarr"}


class UsageError(Exception):
    """The command line is wrong: exit status 2."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """What is wrong with a value in here is wrong with the command line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def checked_options(asked: argparse.Namespace) -> dict[str, Any]:
    """Those of the arguments that are options of `restore_tiled`, checked."""
    names = {field.name for field in dataclasses.fields(Options)}
    options = {name: value for name, value in vars(asked).items() if name in names}
    with usage_errors():
        Options(**options)
    return options


def planned(size: tuple[int, int], options: dict[str, Any]) -> TilePlan:
    with usage_errors():
        return plan_tiles(size, **options | {"layout": None})


def debugging() -> bool:
    return os.environ.get("HALOTILE_DEBUG") == "1"


def shown(path: str) -> str:
    """A path that any terminal can print: bytes that are no text as \\x.."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# What halotile raises itself, with advice in several sentences; of anything else the first is shown.
OURS = (UsageError, ValueError, TypeError, ImportError, OSError, TileError)


def one_line(error: Exception) -> str:
    """What a command line says of an error."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        text = texts.one_line(error)
        return f"out of memory: {text}" if text != type(error).__name__ else "out of memory"
    return texts.one_line(error) if isinstance(error, OURS) else texts.named(error)


def size_text(shape: Any) -> str:
    """Width x height of a (height, width, ...) shape: files, screens and command lines give the width first."""
    return f"{shape[1]}x{shape[0]}"
