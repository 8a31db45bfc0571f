# SPDX-License-Identifier: MIT
"""`halotile plan`: tiles and memory for a size; with a model, what tiles and a stream of rows would cost."""

from __future__ import annotations

import argparse
import errno
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..files import picture as files
from ..images.image import open_image
from ..models.load import load_model
from ..optional import torch_if_loaded
from ..options import Options
from ..plan import TilePlan
from ..texts import bytes_text
from .common import BIT_DTYPES, UsageError, checked_options, planned, scale_shown, size_text, usage_errors, why_no_halo
from .work import is_array, read_header

__all__ = ["show_plan"]

Row = tuple[str, str]

FIXED = {  # RunInfo.how: why nothing was to be chosen
    "given": "the halo is a number",
    "measured": "the halo is smaller than the receptive field",
    "frozen": "statistics of the whole image are frozen",
    "tile": "each tile has statistics of its own",
}


def show_plan(asked: argparse.Namespace) -> None:
    given = checked_options(asked)
    size, channels, dtype = _planned_image(asked)
    if asked.model is None:
        for name in ("device", "global_stats", "stats_size", "memory_limit", "workers", "store"):
            if getattr(asked, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is only for a plan with --model")
        plan, compared = planned(size, _usual(given) | {"phase": 1} | given), None
    else:
        image, knowledge = _model_and_image(asked, given, (*size, channels), dtype)
        with usage_errors():
            compared = _compared(image, knowledge)
        plan = compared.plan
    out_dtype = BIT_DTYPES.get(asked.bits, dtype)
    dtypes: dict[str, Any] = {"dtype": dtype, "out_dtype": out_dtype, "model_dtype": asked.dtype or "float32"}
    memory = plan.estimate_bytes(channels=channels, batch_size=asked.batch_size, **dtypes)
    rows = [
        ("image", f"{size_text(plan.image_size)}, {channels} channels, {dtype}"),
        ("output", f"{size_text(plan.output_size)}, scale {scale_shown(plan.scale)}, {out_dtype}"),
        *_rows_of(plan, asked.batch_size),
        *((f"memory: {part}", bytes_text(count)) for part, count in memory.items()),
    ]
    if compared is not None:
        rows += _rows_of_both(compared)
        if asked.workers is not None:
            rows += _rows_of_workers(asked, image, knowledge)
    print("sizes are width x height, in pixels; memory excludes the model's own")
    for name, value in rows:
        print(f"{name:<21}{value}")


def _rows_of(plan: TilePlan, batch_size: int) -> Iterator[Row]:
    ratio = plan.processed_pixels / plan.ideal_pixels
    yield "tiles", f"{len(plan)} in a grid of {size_text(plan.grid)}"
    yield "tile", size_text(plan.tile)
    yield "window", f"{size_text(plan.window)}, batches of {plan.batch(batch_size)}"
    yield "halo", size_text(plan.halo)
    yield "overlap", size_text(plan.overlap)
    yield "phase", size_text(plan.phase)
    yield "processed", f"{_megapixels(plan.processed_pixels)} for {_megapixels(plan.ideal_pixels)}: {ratio:.2f}x"


# ---- with a model ----------------------------------------------------------------------------------------------------


def _model_and_image(
    asked: argparse.Namespace, given: dict[str, Any], shape: tuple[int, ...], dtype: str
) -> tuple[Any, Any]:
    """An image of this shape (rows, columns, channels), of which every pixel is the same, and what is known of the
    model."""
    from ..auto.knowledge import Knowledge

    model, torch = load_model(asked.model), torch_if_loaded()
    image = open_image(np.broadcast_to(np.ones((), dtype), shape), "HWC")
    with usage_errors():
        knowledge = Knowledge.of(model, _usual(given) | given | {"out_dtype": BIT_DTYPES.get(asked.bits)})
        if torch is not None and isinstance(model, torch.nn.Module) and _usual(given) and "halo" not in given:
            knowledge = knowledge.like(_with_halo(knowledge))
    return image, knowledge


def _compared(image: Any, knowledge: Any) -> Any:
    """Both schedules."""
    from ..auto.comparison import compared

    return compared(image, knowledge)


def _rows_of_workers(asked: argparse.Namespace, image: Any, knowledge: Any) -> Iterator[Row]:
    from ..cluster.forecast import forecasts

    found, costs, work = forecasts(image, knowledge, asked.workers, asked.store)
    yield "a worker's model", f"{1e9 * costs.pixel:.3g} ns a pixel, as on this machine; {work.warm_up} rows of warm-up"
    for one in found:
        name = "1 worker" if one.workers == 1 else f"{one.workers} workers"
        text = f"{_duration(one.seconds)}, {one.recompute:.2f} of one process's pixels, efficiency {one.efficiency:.0%}"
        if one.bound == "store":
            text += "; the store holds them up"
        if one.pipeline_is_faster:
            text += f"; layers over workers in a row would take {_duration(one.pipeline)}"
        yield name, text


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def _usual(given: dict[str, Any]) -> dict[str, Any]:
    """The halo of who gives none; --window has its own."""
    return {"halo": 32} if given.get("window") is None else {}


def _with_halo(knowledge: Any) -> Options:
    """The options for a module without --halo: the exact one, or as `halotile restore` has it if there is none.

    knowledge: a Knowledge.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from trial runs
        info = knowledge.inspected()
    options: Options = knowledge.options
    field = info.local_field if options.global_stats and info.global_operations else info.receptive_field
    if field is not None and None not in info.phase:
        return replace(options, halo="exact")
    warnings.warn(f"halo is 32, which is not exact: {why_no_halo(info)}", stacklevel=2)
    return replace(options, phase=options.phase or tuple(step or 1 for step in info.phase))


def _rows_of_both(found: Any) -> Iterator[Row]:
    """found: a Comparison."""
    stream, own, peak = found.stream, found.flops, found.peak

    def cost(recompute: float) -> str:
        pixels = f"{recompute:.2f} of the image's pixels"
        if own is None or peak is None:
            return pixels
        return f"{pixels}, {recompute * own / 1e9:.4g} GFLOP: at least {recompute * own / peak:.3g} s"

    if own is None or peak is None:
        yield "model", "its operations were not counted, as it was not recorded"
    else:
        speed = f"this machine's peak of {peak / 1e9:.0f} GFLOP/s"
        yield "model", f"{own / 1e9:.4g} GFLOP for the image: at least {own / peak:.3g} s at {speed}"
    yield "in tiles", cost(found.tiles_recompute)
    if stream is None:
        yield "as a stream", f"not possible: {found.no_stream}"
    else:
        yield "as a stream", cost(stream.recompute)
        tiles = f", in {stream.streams} tiles with {stream.columns} columns" if stream.streams > 1 else ""
        yield "stream: step", f"{stream.rows} rows{tiles}"
        yield "stream: held", f"{bytes_text(stream.held)}, {stream.held_per_column / 1024:.4g} KiB a column"
        yield "stream: peak", bytes_text(stream.peak)
    yield "auto", _chosen(found)


def _chosen(found: Any) -> str:
    why = found.report.schedule_why
    if found.report.stream is not None:
        return f"a stream: {why}"
    if why is None:
        return f"tiles, as {FIXED.get(found.report.how, 'asked')}"
    return why.removeprefix("in ") if why.startswith("in tiles") else f"tiles: {why}"


# ---- the image -------------------------------------------------------------------------------------------------------


def _planned_image(asked: argparse.Namespace) -> tuple[tuple[int, int], int, str]:
    """(height, width), channels and dtype of the image argument: a size, an image file or an array."""
    if not os.path.exists(asked.image):
        match = re.fullmatch(r"(\d+)x(\d+)", asked.image)
        if match is None:
            text = f"{os.strerror(errno.ENOENT)}, and not a size WIDTHxHEIGHT such as 3840x2160"
            raise FileNotFoundError(errno.ENOENT, text, asked.image)
        width, height = int(match[1]), int(match[2])
        if min(width, height) < 1:
            raise UsageError(f"an image must be at least 1 pixel wide and high, not {asked.image}")
        return (height, width), asked.channels or 3, "uint8"
    if is_array(asked.image):
        header = read_header(asked.image, max_pixels=None, page=None)
        shape, dtype = header.shape, header.dtype
    else:
        shape, dtype = files.read_shape(asked.image)
    return (shape[0], shape[1]), asked.channels or (*shape, 1)[2], dtype


def _megapixels(count: int) -> str:
    return f"{count / 1e6:.2f} megapixels"
