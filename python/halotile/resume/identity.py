# SPDX-License-Identifier: MIT
"""What a result depends on, in a form that another process can compare: image, model, options, version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..files.open import file_of
from ..images.image import Image
from ..images.source import Source
from ..inspection.known import about as known_by
from ..models.descriptor import unwrapped
from ..models.reach import modules_of
from ..models.untouched.copies import uncompiled
from ..optional import torch_if_loaded
from ..options import Options
from ..version import __version__

__all__ = ["about_run", "differences"]

# Options that change pixels; halo, phase, scale and dtype are compared as numbers, once they are known.
CHANGE_PIXELS = ("overlap", "blend", "boundary", "value_range", "white", "nodata", "alpha", "global_stats", "layout")
CHANGE_PIXELS += ("stats_size", "match_low", "shift_average", "window", "on_nonfinite", "out_dtype")
AT_ONCE = 2**24  # bytes


def about_run(
    image: Image,
    model: Any,
    options: Options,
    path: str | None = None,
    page: int | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """path: the file that the image is of, if it is not open as such. page: the one that is restored, of several.
    digest: of the image, if it is known."""
    torch = torch_if_loaded()
    return {
        "version": __version__,
        "torch": None if torch is None else torch.__version__,
        "the image": _image_digest(image, path) if digest is None else digest,
        "the image's axes": [image.layout, list(image.original.shape), image.dtype],
        "page": page,
        "the model": _model_digest(model),
        **{name: repr(getattr(options, name)) for name in CHANGE_PIXELS},
        "reduce": _named(options.reduce) if callable(options.reduce) else options.reduce,
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words: "halo is 8 and was 16"."""
    found = []
    for name in {**before, **now}:
        one, other = before.get(name), now.get(name)
        if one == other:
            continue
        long = name.startswith("the ") and not isinstance(one, list)
        found.append(f"{name} is another" if long else f"{name} is {_shown(other)} and was {_shown(one)}")
    return found


def _shown(value: Any) -> str:
    return (
        "x".join(map(str, value)) if isinstance(value, list) and all(type(one) is int for one in value) else str(value)
    )


# ---- the image -------------------------------------------------------------------------------------------------------


def _image_digest(image: Image, path: str | None) -> str:
    """Of the bytes of its file or files, or of its values in memory."""
    digest = hashlib.blake2b(digest_size=32)
    if path is None and isinstance(image.original, Source):
        path = file_of(image.original)
    if path is not None and os.path.exists(path):
        for name in _files(path):
            digest.update(os.path.relpath(name, path).encode("utf-8", "surrogateescape") + b"\0")
            _add_file(digest, name)
    else:
        for part in _slabs(image.original):
            digest.update(part)
    return digest.hexdigest()


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for here, folders, names in os.walk(path):
        folders.sort()
        yield from (os.path.join(here, name) for name in sorted(names))


def _add_file(digest: hashlib.blake2b, name: str) -> None:
    with open(name, "rb", buffering=0) as file:
        while part := file.read(AT_ONCE):
            digest.update(part)


def _slabs(values: Any) -> Iterator[memoryview]:
    """The bytes of an array, tensor or source in parts along its first axis."""
    first = values.shape[0]
    size = max(1, int(np.prod(values.shape[1:], dtype=object)) * _item_bytes(values))
    step = max(1, AT_ONCE // size)
    for start in range(0, first, step):
        stop = min(first, start + step)
        if isinstance(values, Source):
            part = np.empty((stop - start, *values.shape[1:]), values.dtype)
            values.read(start, part)
        elif isinstance(values, np.ndarray):
            part = np.ascontiguousarray(values[start:stop])
        else:
            torch = torch_if_loaded()
            part = values[start:stop].detach().resolve_neg().cpu().contiguous().view(torch.uint8).numpy()
        yield part.reshape(-1).view(np.uint8).data


def _item_bytes(values: Any) -> int:
    return values.dtype.itemsize


# ---- the model -------------------------------------------------------------------------------------------------------


def _model_digest(model: Any) -> str:
    """Of a module's classes, settings and weights. Of other models: their names, and all weights that can be reached;
    what else they do, nobody can compare."""
    model = uncompiled(unwrapped(model))
    digest = hashlib.blake2b(_named(model).encode(), digest_size=32)
    for name in _files_of_model(model):
        _add_file(digest, name)
    modules = [model] if _is_module(model) else list(modules_of(model))
    for module in modules:
        known = known_by(uncompiled(module), None)
        if known is not None:
            digest.update(repr(known).encode())
            continue
        digest.update(_named(module).encode())
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            for part in _slabs(value.reshape(-1)):
                digest.update(part)
    return digest.hexdigest()


def _files_of_model(model: Any) -> list[str]:
    """The file of a graph, and those in its folder that begin with its name: weights too large for it."""
    path = getattr(model, "path", None)
    if not isinstance(path, str) or not os.path.isfile(path):
        return []
    folder, name = os.path.split(os.path.abspath(path))
    beside = (os.path.join(folder, one) for one in sorted(os.listdir(folder)) if one.startswith(name))
    return [one for one in beside if os.path.isfile(one)]


def _named(model: Any) -> str:
    kind = model if hasattr(model, "__qualname__") else type(model)
    code = getattr(getattr(model, "__code__", None), "co_code", b"")
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(code).hexdigest()}"


def _is_module(model: Any) -> bool:
    torch = torch_if_loaded()
    return torch is not None and isinstance(model, torch.nn.Module)
