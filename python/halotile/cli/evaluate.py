# SPDX-License-Identifier: MIT
"""`halotile evaluate`, and `halotile compare` for folders: a table, files for CI, and what is below a limit."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from ..evaluation import Evaluation
from ..evaluation import evaluate as evaluated
from ..files.atomic import replacing
from ..files.pairs import find_pairs
from .common import UsageError, as_written, checked_options, shown, usage_errors
from .restore import restorer_of

__all__ = ["below", "compare_folders", "evaluate"]

NAMED = 20  # sentences about values below a limit


def evaluate(asked: argparse.Namespace) -> int:
    if asked.strength is not None and asked.model is not None:
        raise UsageError(f"--strength is only for the included model, not for --model {asked.model}")
    files = [path for path in (asked.csv, asked.junit) if path is not None]
    if not asked.force and (there := [path for path in files if os.path.exists(path)]):
        raise UsageError(f"{there[0]} exists; --force overwrites it")
    options = checked_options(asked)
    with usage_errors():
        pairs = find_pairs(asked.pairs, asked.targets)
    restorer = restorer_of(asked, options)
    talks = not (asked.quiet or asked.json)
    found = evaluated(pairs, restorer, y_channel=asked.y_channel, crop_border=asked.crop_border)
    limits = _limits(asked)
    _write(asked.csv, found.to_csv())
    _write(asked.junit, found.to_junit(**limits))
    if talks:
        print(_for_people(found))
    elif asked.json:
        print(found.to_json())
    return _status(found, limits)


def compare_folders(asked: argparse.Namespace) -> int:
    """Compares files of the same names in two folders."""
    if asked.heatmap or asked.tile_size is not None or asked.white is not None:
        raise UsageError("--heatmap, --tile-size and --white are for two files, not for folders")
    with usage_errors():
        pairs = find_pairs(asked.b, asked.a)
    found = evaluated(pairs, None, y_channel=asked.y_channel, crop_border=asked.crop_border)
    print(found.to_json() if asked.json else _for_people(found))
    return _status(found, _limits(asked))


def below(name: str, psnr: float, limit: float) -> str:
    return f"{shown(name)}: PSNR {psnr:.4f} dB is below {limit:g} dB"


def _for_people(found: Evaluation) -> str:
    return as_written(shown(str(found)))


def _limits(asked: argparse.Namespace) -> dict[str, float]:
    given = {"psnr": asked.fail_below, "ssim": asked.fail_below_ssim}
    return {name: limit for name, limit in given.items() if limit is not None}


def _status(found: Evaluation, limits: dict[str, float]) -> int:
    """2 if an image failed, 1 if a value is below its limit, which it says; else 0."""
    failed = [f"error: {one.name}: {one.error}" for one in found.failed]
    _say(failed)
    low = replace(found, scores=tuple(one for one in found.scores if one.error is None)).below(**limits)
    _say(low)
    return 2 if failed else 1 if low else 0


def _say(sentences: list[str]) -> None:
    for sentence in sentences[:NAMED]:
        print(f"halotile: {as_written(shown(sentence))}", file=sys.stderr)
    if len(sentences) > NAMED:
        print(f"halotile: and {len(sentences) - NAMED} more", file=sys.stderr)


def _write(path: str | None, text: str) -> None:
    if path is not None:
        with replacing(path) as draft, open(draft.descriptor, "wb", closefd=False) as file:
            file.write(text.encode())
