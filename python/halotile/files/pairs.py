# SPDX-License-Identifier: MIT
"""Pairs of image files: what a model gets, and what its result should be."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .formats import is_read
from .open import open_source
from .picture import read_image
from .vips import MAX_PIXELS, Path

__all__ = ["INPUT_FOLDERS", "TARGET_FOLDERS", "Pair", "find_pairs", "read_array"]

INPUT_FOLDERS = ("input", "inputs", "lr", "lq", "low", "noisy", "blurry")
TARGET_FOLDERS = ("target", "targets", "hr", "hq", "gt", "high", "clean", "sharp")

# What data sets add to names: baboonx4.png, 0001x2.png, img_001_SRF_4_LR.png, photo_noisy.png.
OF_INPUT = re.compile(r"([_-]?x[2-8]|[_-](SRF_\d_)?(lr|lq|low|input|noisy|blurry))$", re.IGNORECASE)
OF_TARGET = re.compile(r"[_-](SRF_\d_)?(hr|hq|gt|high|target|clean|sharp)$", re.IGNORECASE)
NAMED = 5  # files that an error names


class Pair(NamedTuple):
    """An input of a model and the image that its result is compared with: paths, or arrays."""

    name: str
    input: object
    target: object


def find_pairs(folder: Path, targets: Path | None = None) -> list[Pair]:
    """Pairs of image files (also .npy), by their names without suffix, or without what data sets add to names.

    Args:
        folder: holds two folders, of inputs (input, lr, lq, low, noisy, ...) and of targets (target, hr, hq, gt, clean,
            ...); or both kinds of files, told apart by their names (a_lr.png, a_hr.png).
        targets: the folder of targets; then `folder` is that of inputs.

    Raises:
        ValueError: there are no pairs, or a file has no partner. OSError: a folder cannot be read.
    """
    if targets is not None:
        return _matched(_images(os.fspath(folder)), _images(os.fspath(targets)))
    top = os.fspath(folder)
    inner = {name.lower(): os.path.join(top, name) for name in os.listdir(top)}
    first, second = (
        [inner[name] for name in names if os.path.isdir(inner.get(name, ""))]
        for names in (INPUT_FOLDERS, TARGET_FOLDERS)
    )
    if len(first) == len(second) == 1:
        return _matched(_images(first[0]), _images(second[0]))
    if first or second:
        allowed = f"one folder of inputs ({', '.join(INPUT_FOLDERS)}) and one of targets ({', '.join(TARGET_FOLDERS)})"
        raise ValueError(f"{top}: must hold {allowed}")
    images = _images(top)
    wanted = [path for path in images if OF_TARGET.search(_stem(path))]
    given = [path for path in images if path not in wanted and OF_INPUT.search(_stem(path))]
    if not wanted or not given:
        raise ValueError(
            f"{top}: holds no folders such as input and target, and no files such as a_lr.png and a_hr.png"
        )
    return _matched(given, wanted)


def _matched(inputs: list[str], targets: list[str]) -> list[Pair]:
    by_stem = {_stem(path).lower(): path for path in targets}
    by_key = {OF_TARGET.sub("", stem): path for stem, path in by_stem.items()}
    found: list[Pair] = []
    alone: list[str] = []
    for path in inputs:
        stem = _stem(path).lower()
        target = by_stem.get(stem) or by_key.get(OF_INPUT.sub("", stem))
        if target is None:
            alone.append(path)
        else:
            found.append(Pair(os.path.basename(target), path, target))
    used = [pair.target for pair in found]
    alone += [path for path in targets if path not in used]
    if alone:
        names = ", ".join(alone[:NAMED]) + (f" and {len(alone) - NAMED} more" if len(alone) > NAMED else "")
        raise ValueError(
            f"{len(alone)} of {len(inputs) + len(targets)} files have no partner of the same name: {names}"
        )
    if len(set(used)) < len(used):
        twice = next(pair for pair in found if used.count(pair.target) > 1)
        raise ValueError(f"{twice.target}: several inputs have this target")
    if not found:
        raise ValueError("there are no image files in these folders")
    return found


def _images(folder: str) -> list[str]:
    def found() -> Iterator[str]:
        for name in sorted(os.listdir(folder)):
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith(".") and (is_read(suffix) or suffix == ".npy"):
                yield os.path.join(folder, name)

    return list(found())


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def read_array(path: Path, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file or a .npy file. Raises OSError or ValueError."""
    if os.path.splitext(os.fspath(path))[1].lower() != ".npy":
        return read_image(path, max_pixels=max_pixels).pixels
    source = open_source(os.fspath(path), None, max_pixels)
    return source if isinstance(source, np.ndarray) else source.whole()
