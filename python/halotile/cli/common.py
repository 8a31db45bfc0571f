# SPDX-License-Identifier: MIT
"""Code shared by the commands: usage errors, options, and texts."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import texts
from ..errors import TileError
from ..files.formats import TABLE
from ..options import Options
from ..plan import TilePlan, plan_tiles
from ..scales import Scale, by_axis

__all__ = [
    "BIT_DTYPES",
    "SUFFIXES",
    "UsageError",
    "as_written",
    "checked_options",
    "debugging",
    "naming_model",
    "one_line",
    "planned",
    "scale_shown",
    "shown",
    "size_text",
    "usage_errors",
    "why_no_halo",
]

BIT_DTYPES = {8: "uint8", 16: "uint16", 32: "float32"}
SUFFIXES = {kind.key: kind.suffixes[0] for kind in TABLE}  # by the value of --format


class UsageError(Exception):
    """The command line is wrong."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns ValueError and TypeError of its block into UsageError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def checked_options(asked: argparse.Namespace) -> dict[str, Any]:
    """The arguments that are options of `restore_tiled`, validated."""
    names = {field.name for field in dataclasses.fields(Options)}
    options = {name: value for name, value in vars(asked).items() if name in names}
    options |= {"output": getattr(asked, "model_output", None), "extra": _further(getattr(asked, "extra", None) or [])}
    with usage_errors():
        Options(**options)
    if options.get("window") is not None:  # which has defaults of its own
        own = {"overlap": "auto", "blend": "average"}
        options = {name: value for name, value in options.items() if name not in own or own[name] != value}
    return options


def _further(given: list[tuple[str | None, float]]) -> dict[str, float] | tuple[float, ...] | None:
    """Inputs of --extra: by name, or in order."""
    named = {name: value for name, value in given if name is not None}
    if named and len(named) < len(given):
        raise UsageError("--extra must be NAME=VALUE each time, or VALUE each time, and no name twice")
    return named or tuple(value for _, value in given) or None


def planned(size: tuple[int, int], options: dict[str, Any]) -> TilePlan:
    with usage_errors():
        return plan_tiles(size, **options | {"layout": None})


def why_no_halo(info: Any) -> str:
    """Why no halo is exact, of an inspected model."""
    names = ", ".join(one.path or "the model" for one in info.global_operations)
    if names:
        return f"the model sees the whole image in {names}; see --global-stats"
    return "the model's receptive field was not found: " + "; ".join(info.doubts)


def debugging() -> bool:
    return os.environ.get("HALOTILE_DEBUG") == "1"


def shown(path: str) -> str:
    """A path that any terminal can print; undecodable bytes become \\x.."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


# Errors that halotile raises itself are shown in full, as they may give advice; of others, the first sentence.
OURS = (UsageError, ValueError, TypeError, ImportError, OSError, TileError)


# Options of `restore_tiled` that the command line has, too, as messages write them: name=value, or name= alone.
NAMED = ("tile_size", "halo", "overlap", "blend", "boundary", "phase", "scale", "batch_size", "dtype", "layout")
NAMED += ("device", "global_stats", "stats_size", "tolerance", "alpha", "on_nonfinite", "engine", "verify")
NAMED += ("shift_average", "match_low", "window", "memory_format", "value_range", "schedule", "white", "nodata")
NAMED += ("background", "strict", "reduce")
OPTION = re.compile(rf"(?<![\w.-])({'|'.join(NAMED)})=(?:'([^']*)'|(\d+)(?![\w.])|(?=[\s,;:.)]|$))")


MODEL_OPTIONS = {"output": "--model-output", "extra": "--extra"}
NUMBER = r"(-?[\w.]+)"
OTHERS = (  # options that the command line has in another form
    (re.compile(r"\boutput=(?:'([^']*)'|(-?\d+))"), r"--model-output \1\2"),
    (re.compile(r"^(output|extra)(?= must)"), lambda found: MODEL_OPTIONS[found[1]]),
    (re.compile(rf"\bvalue_range=\({NUMBER}, {NUMBER}\)"), r"--value-range \1 \2"),
    (re.compile(r"\bscale=\(([\d/]+), ([\d/]+)\)"), r"--scale \2x\1"),
    *((re.compile(rf"\bout_dtype='{dtype}'"), f"--bits {bits}") for bits, dtype in BIT_DTYPES.items()),
    (re.compile(r"\bout_dtype=?(?=\s|[,;:.)]|$)"), "--bits"),
)


def as_written(text: str) -> str:
    """Rewrites options in a message for the command line: layout='CHW' to --layout CHW, phase= to --phase."""

    def written(found: re.Match[str]) -> str:
        name, word, number = found.groups()
        value = word or number
        return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")

    for pattern, words in OTHERS:
        text = pattern.sub(words, text)
    return OPTION.sub(written, text)


def one_line(error: Exception) -> str:
    """The message of an error, for the command line."""
    text = as_written(_one_line(error)) if isinstance(error, OURS) else _one_line(error)
    return " ".join([text, *(note for note in getattr(error, "__notes__", ()) if note.startswith(MODEL))])


MODEL = "(model: "


@contextmanager
def naming_model(model: str | None, *files: str) -> Iterator[None]:
    """Errors of its block that name none of these files get the model's, if it is one."""
    try:
        yield
    except Exception as error:
        text, names = one_line(error), [os.path.basename(name) for name in (model, *files) if name]
        if model and os.path.isfile(model) and not any(name in text for name in names):
            error.add_note(f"{MODEL}{shown(model)})")
        raise


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        text = texts.one_line(error)
        return f"out of memory: {text}" if text != type(error).__name__ else "out of memory"
    return texts.one_line(error) if isinstance(error, OURS) else texts.named(error)


def scale_shown(scale: Scale) -> str:
    """A scale as --scale takes it: width x height where they differ."""
    rows, columns = by_axis(scale)
    return str(rows) if rows == columns else f"{columns}x{rows}"


def size_text(shape: Any) -> str:
    """Width x height of a (height, width, ...) shape."""
    return f"{shape[1]}x{shape[0]}"
