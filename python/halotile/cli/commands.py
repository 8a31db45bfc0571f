# SPDX-License-Identifier: MIT
"""The commands compare, inspect, models, selftest, and --version."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from .. import _core
from ..files import picture as files
from ..files.formats import check_output_path
from ..images.image import peak_of
from ..models import catalog
from ..models.load import load_model
from ..option_checks import white_level
from ..options import ENGINES, Options
from ..plan import TilePlan, plan_tiles
from ..scales import by_axis
from ..version import __version__
from .common import UsageError, scale_shown, shown, size_text, usage_errors
from .evaluate import below, compare_folders
from .work import is_folder

__all__ = ["compare", "inspect", "selftest", "show_models", "show_versions"]

READERS = (
    ("torch.export (.pt2), TorchScript (.pt), ncnn (.param and .bin)", "torch"),
    ("checkpoints (.pth, .pt, .ckpt, .safetensors)", "spandrel"),
    ("checkpoints (.safetensors)", "safetensors"),
    ("ONNX (.onnx)", "onnxruntime"),
)


# ---- compare ---------------------------------------------------------------------------------------------------------


def compare(asked: argparse.Namespace) -> int:
    from .. import metrics

    if is_folder(asked.a) and is_folder(asked.b):
        return compare_folders(asked)
    if asked.y_channel or asked.crop_border or asked.fail_below_ssim is not None:
        raise UsageError("--y-channel, --crop-border and --fail-below-ssim are for folders: see halotile evaluate")
    if asked.heatmap:
        with usage_errors():
            check_output_path(asked.heatmap, dtype="uint8")
        if os.path.exists(asked.heatmap) and not asked.force:
            raise UsageError(f"{asked.heatmap} exists; --force overwrites it")
    with usage_errors():
        white_level("--white", asked.white)
    pictures = [files.read_image(path, max_pixels=asked.max_pixels).pixels for path in (asked.a, asked.b)]
    first, second, white = _comparable(asked, *pictures)
    plan = _compared_plan(asked, second.shape[:2])
    found = metrics.compare(first, second, data_range=white, plan=plan)
    if asked.heatmap:
        picture, scale = metrics.heatmap(first, second)
        files.write_image(asked.heatmap, picture)
    if asked.json:
        content = found.as_json() | {"a": asked.a, "b": asked.b, "size": [second.shape[1], second.shape[0]]}
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        print(found)
        if asked.heatmap:
            print(
                f"{shown(asked.heatmap)}: differences from 0 (dark blue) to {scale:g} of {found.data_range:g} (yellow)"
            )
    if asked.fail_below is not None and not found.psnr >= asked.fail_below:
        print(f"halotile: {below(asked.b, found.psnr, asked.fail_below)}", file=sys.stderr)
        return 1
    return 0


def _comparable(asked: argparse.Namespace, first: Any, second: Any) -> tuple[Any, Any, float | str]:
    """Both images and their data range; as floats if their bit depths differ."""
    if first.shape != second.shape:
        of = [
            f"{path} is {size_text(image.shape)} with {(*image.shape, 1)[2]} channels"
            for path, image in ((asked.a, first), (asked.b, second))
        ]
        raise ValueError(f"{of[0]}, {of[1]}: both must be the same")
    whites = [peak_of(image.dtype.name) for image in (first, second)]
    if first.dtype == second.dtype:
        return first, second, whites[0] if asked.white is None else asked.white
    if asked.white is not None:
        raise UsageError(f"--white must be left out for images of {first.dtype} and {second.dtype}")
    return first / whites[0], second / whites[1], 1


def _compared_plan(asked: argparse.Namespace, size: tuple[int, int]) -> TilePlan | None:
    if asked.tile_size is None:
        return None
    options = {name: getattr(asked, name) for name in ("tile_size", "halo", "overlap", "phase", "boundary", "scale")}
    with usage_errors():
        scale = Options(scale=asked.scale).scale
        inputs = [round(side / by) for side, by in zip(size, by_axis(scale), strict=True)]
        plan = plan_tiles(inputs, **options)
    if plan.output_size != size:
        raise UsageError(f"--scale {scale_shown(scale)}: no input size gives {size_text(size)}")
    return plan


# ---- inspect ---------------------------------------------------------------------------------------------------------


def inspect(asked: argparse.Namespace) -> None:
    from ..inspection import inspect_model

    picture = files.read_image(asked.image) if asked.image else None
    model = load_model(asked.model)
    progress = True if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None else None
    info = inspect_model(model, device=asked.device, dtype=asked.dtype, progress=progress)
    if picture is None:
        print(info.to_json() if asked.json else info)
        return
    from ..check.curve import error_curve

    curve = error_curve(picture.pixels, model, device=asked.device, dtype=asked.dtype, progress=progress)
    both = json.loads(info.to_json()) | {"error_curve": dataclasses.asdict(curve)}
    print(json.dumps(both, indent=1) if asked.json else f"{info}\n\n{curve}")


# ---- models ----------------------------------------------------------------------------------------------------------


def show_models(asked: argparse.Namespace) -> None:
    comes = importlib.util.find_spec("halotile.models.embedded") is not None
    rows = [
        ("name", "what", "licence", "installed"),
        ("(none)", "the included model, used without --model", "MIT", "yes" if comes else "no"),
        *((name, what, licence, "yes" if there else "no") for name, what, licence, there in catalog.listed()),
    ]
    _print_table(rows)
    print("\nmodel files, and the packages that read them")
    _print_table([(what, f"{package} {_version(package)}") for what, package in READERS])


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# ---- selftest --------------------------------------------------------------------------------------------------------


def selftest(asked: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("selftest needs torch: pip install 'halotile[torch]'")
    from .selftest import STATUS, checked_device, report, report_missing

    with usage_errors():
        device = checked_device(asked.device)
    show = functools.partial(print, flush=True)
    if isinstance(device, str):  # why there is none
        return STATUS[report_missing(asked.device, device, show, asked.report)]
    return STATUS[report(device, show, asked.report)]


# ---- versions --------------------------------------------------------------------------------------------------------


def show_versions() -> None:
    """Prints the versions that belong in a bug report."""
    print(f"halotile {__version__} ({_core.rows_name()} row kernels)")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("numpy", "torch", "pyvips", "zarr", "tqdm", "spandrel", "onnxruntime", "scikit-image"):
        print(package, _version(package))
    print(f"engines: {', '.join(ENGINES)}")
