# SPDX-License-Identifier: MIT
"""The formats of image files, and what each can hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["BY_SUFFIX", "JPEG", "PNG", "TIFF", "WEBP", "Format", "Path", "check_output_path", "is_zarr_array"]

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Format:
    """What a kind of file can hold. `channels` is None where any number of them may be stored; `folder` says that it is
    no file but a zarr array's folder."""

    name: str
    codec: str
    max_side: int
    channels: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    folder: bool = False


PNG = Format("PNG", "png", 2**31 - 1, (1, 2, 3, 4), ("uint8", "uint16"))
JPEG = Format("JPEG", "jpeg", 65535, (1, 3), ("uint8", "uint16"))
WEBP = Format("WebP", "webp", 16383, (1, 2, 3, 4), ("uint8", "uint16"))
TIFF = Format("TIFF", "tiff", 2**31 - 1, None, ("uint8", "uint16", "float16", "float32", "float64"))

BY_SUFFIX = {".png": PNG, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP, ".tif": TIFF, ".tiff": TIFF}


def check_output_path(
    path: Path, shape: Sequence[int] | None = None, dtype: Any = None, formats: Mapping[str, Format] = BY_SUFFIX
) -> Format:
    """Checks, before any work, that `write_image` can write `path`; with a shape and dtype, also that they fit in it.

    formats: by suffix, where there are others.

    Returns the Format. Raises ValueError for an unknown suffix or an image the format cannot hold, OSError for a
    directory that is missing or not writable and for an existing `path` that is no regular file.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    if suffix.lower() not in formats:
        raise ValueError(f"{path}: unknown suffix {suffix!r}; must be one of {', '.join(formats)}")
    kind = formats[suffix.lower()]
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"{path}: there is no directory {directory}")
    if os.path.lexists(target) and not (is_zarr_array(target) if kind.folder else os.path.isfile(target)):
        raise OSError(f"{path}: exists and is not a {'zarr array' if kind.folder else 'regular file'}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: the directory {directory} is not writable")
    if shape is not None:
        _check_fits(path, kind, shape)
    if dtype is not None and np.dtype(dtype).name not in kind.dtypes:
        raise ValueError(f"{path}: {kind.name} cannot hold {np.dtype(dtype)}; it takes {', '.join(kind.dtypes)}")
    return kind


def _check_fits(path: str, kind: Format, shape: Sequence[int]) -> None:
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"{path}: pixels of shape {tuple(shape)}; must be (H, W) or (H, W, C), none of them 0")
    channels = shape[2] if len(shape) == 3 else 1
    if kind is JPEG and channels in (2, 4):
        raise ValueError(f"{path}: JPEG has no alpha channel, pixels of shape {tuple(shape)} have one; use PNG or TIFF")
    if kind.channels is not None and channels not in kind.channels:
        allowed = ", ".join(map(str, kind.channels))
        raise ValueError(f"{path}: {kind.name} cannot hold {channels} channels; it takes {allowed}")
    if max(shape[:2]) > kind.max_side:
        size = f"{shape[1]} x {shape[0]}"
        raise ValueError(f"{path}: {kind.name} holds up to {kind.max_side} pixels a side, not {size}; use PNG or TIFF")


def is_zarr_array(folder: str) -> bool:
    """Whether a folder holds one zarr array, and so may be replaced: a group of them is more than one image."""
    if os.path.isfile(os.path.join(folder, ".zarray")):
        return True
    with suppress(OSError, ValueError, AttributeError), open(os.path.join(folder, "zarr.json"), "rb") as file:
        return json.load(file).get("node_type") == "array"
    return False
