# SPDX-License-Identifier: MIT
"""`halotile plan --workers`: what clusters of machines like this one would take, by what the model costs here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..auto.knowledge import Knowledge
from ..auto.prepare import open_run, prepare
from ..files.zarr import CHUNK, shard_columns
from ..images.image import Image
from ..plan import BYTES
from ..restore import TiledRestorer
from ..run.prepared import Delivery, Prepared
from ..run.progress import Progress
from ..run.reducing import with_reduction
from .blocks import Grid
from .settle import fixed_options
from .shards import Encoder
from .simulate import Costs, Forecast, simulate
from .work import StreamWork, TilesWork, work_of

__all__ = ["forecasts"]

PIECE = (512, 1024)  # of noise, on which the model is timed


def forecasts(
    image: Image, knowledge: Knowledge, workers: Sequence[int], store: float | None
) -> tuple[list[Forecast], Costs, TilesWork | StreamWork]:
    """For an image of that size, of which no pixel is looked at.

    store: bytes in a second that all workers together read and write; None: no limit.
    """
    began = time.perf_counter()
    run = open_run(image, knowledge, knowledge.options.out_dtype)
    prepared = with_reduction(prepare(run, knowledge, Progress(None), Delivery(bands_waiting=1))[0])
    work, settling = work_of(prepared), time.perf_counter() - began
    costs = Costs(
        pixel=_seconds_per_pixel(prepared, knowledge),
        write=_seconds_per_byte(prepared),
        start=settling,
        settling=settling,
        store=store,
    )
    height, width = prepared.plan.output_size
    read = math.prod(image.size) * image.channels * BYTES[image.dtype]
    written = height * width * prepared.made.channels * BYTES[prepared.made.dtype]
    grid = Grid(height, width)
    return [simulate(grid, work, costs, count, read, written) for count in workers], costs, work


def _seconds_per_pixel(prepared: Prepared, knowledge: Knowledge) -> float:
    """Of a pixel in the model, with all that is done for it: the second of two runs on a piece of noise."""
    image = prepared.image
    size = [min(side, most) for side, most in zip(image.size, PIECE, strict=True)]
    noise = np.random.default_rng(0).integers(0, 256, (*size, image.channels), np.uint8)
    options = replace(fixed_options(prepared, knowledge.options), out_dtype=None)
    restorer = TiledRestorer.knowing(knowledge.like(options))
    pixels = noise[..., 0] if "C" not in image.layout else noise
    seconds = math.inf
    for _ in range(2):
        began = time.perf_counter()
        restorer(pixels)
        seconds = min(seconds, time.perf_counter() - began)
    run = restorer.last_run
    assert run is not None
    if run.stream is not None:
        return seconds / (run.stream.recompute * math.prod(size))
    opened = open_run(restorer.open(pixels), restorer.knowledge)
    return seconds / opened.plan.processed_pixels


def _seconds_per_byte(prepared: Prepared) -> float:
    """Of a byte of the result that is encoded; a disk may be slower."""
    shape = (CHUNK, min(prepared.plan.output_size[1], shard_columns(prepared.plan.output_size[1])))
    shape = (*shape, *prepared.row_shape[1:])
    encoder = Encoder(shape, prepared.made.dtype)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(prepared.made.dtype)
    began = time.perf_counter()
    encoder.encoded(0, range(1), noise)
    return (time.perf_counter() - began) / noise.nbytes
