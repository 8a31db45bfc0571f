# SPDX-License-Identifier: MIT
"""Restores many image files with one restorer, and reports outcomes.

This is `halotile restore` without its arguments and output. One TiledRestorer serves all files, so that its model is
loaded and inspected once. Files are streamed, and a file that fails does not stop the others.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..files import picture as files
from ..files.finish import finished_shape
from ..files.formats import FileSink, check_output, open_sink
from ..files.picture import Header, Picture
from ..files.vips import MAX_PIXELS
from ..files.vips_rows import PictureSource
from ..images.image import Image, open_image, shape_of_result
from ..restore import Fitted, for_file
from ..resume.resumed import Resumed, resumed
from ..to_file import settled, write_restored
from .bar import Bar
from .saving import Saving
from .work import Job, check_holds, is_array, open_array, read_header, shape_of

__all__ = ["FileRestorer", "Outcome", "peak_memory"]

Size = tuple[int, int]


# ---- what becomes of a file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        status: "restored", "skipped" or "failed".
        input_shape, output_shape: (height, width) or (height, width, channels) of a page; None if unknown.
        run: the RunInfo of the page with the largest error bound.
        verified: the Verification of the page with the largest difference.
        error: the error message, one line.
        why: why it was skipped.
    """

    job: Job
    status: str
    pages: int = 1
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    dtype: str | None = None
    run: Any = None
    verified: Any = None
    seconds: float = 0.0
    error: str | None = None
    why: str | None = None

    def as_json(self) -> dict[str, Any]:
        """A dict for json.dumps. Sizes are [width, height], halo and phase [rows, columns]. "tuning", "precision"
        and "schedule_why" are null if nothing was chosen automatically, "stream" for tiles."""
        run = self.run
        content: dict[str, Any] = {
            "input": self.job.input,
            "output": self.job.output or None,
            "status": self.status,
            "pages": self.pages,
            "input_size": _width_height(self.input_shape),
            "output_size": _width_height(self.output_shape),
            "input_dtype": self.input_dtype,
            "dtype": self.dtype,
            "halo": run and list(run.halo),
            "phase": run and list(run.phase),
            "how": run and run.how,
            "bound": run and _number(run.bound),
            "why": run and run.why,
            "tuning": run and _tuning_as_json(run.tuning),
            "precision": run and run.precision and asdict(run.precision),
            "schedule": run and run.schedule,
            "schedule_why": run and run.schedule_why,
            "stream": run and run.stream and asdict(run.stream),
            "retried": run and run.retried,
            "filled": run and run.filled and asdict(run.filled) | {"nodata": f"{run.filled.nodata:g}"},
            "averaged": run and run.averaged and asdict(run.averaged),
            "spread": run and run.spread and asdict(run.spread),
            "seconds": round(self.seconds, 3),
            "error": self.error,
            "skipped": self.why,
        }
        if self.verified is not None:
            found = self.verified
            names = ("largest", "p999", "mean", "edge_ratio")
            content["verified"] = {name: _number(getattr(found, name)) for name in names} | {"windows": found.windows}
        return content


def _tuning_as_json(tuning: Any) -> dict[str, Any] | None:
    if tuning is None:
        return None
    content = asdict(tuning) | {"tile_size": _width_height(tuning.tile_size)}
    del content["costs"]
    return content


def _width_height(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else [shape[1], shape[0]]


def _number(value: float | None) -> float | None:
    """JSON has no infinity."""
    return None if value is None or not np.isfinite(value) else float(value)


class FileRestorer:
    """Restores files with one TiledRestorer.

    Args:
        restorer: without `verify`.
        page: the page of inputs with several, from 1 on. None: all pages of a TIFF, the first of an animation.
        max_pixels: limit on the pixels of an input, all pages together.
        saving: how files are written.
        strict: refuse JPEGs that lack their last bytes.
        verify: number of random windows of each page that are recomputed and compared.
        resume: keep finished rows, and go on from those that an earlier run has kept.
    """

    def __init__(
        self,
        restorer: Any,
        *,
        page: int | None = None,
        max_pixels: int | None = MAX_PIXELS,
        saving: Saving = Saving(),  # noqa: B008 - frozen
        strict: bool = False,
        verify: int = 0,
        resume: bool = False,
    ):
        self.restorer, self.page, self.max_pixels, self.verify = restorer, page, max_pixels, verify
        self.saving, self.strict, self.resume = saving, strict, resume
        self.fitted: Fitted = {}

    def header(self, job: Job) -> Header:
        """The input's header. Raises OSError or ValueError."""
        layout = self.restorer.options.layout
        return read_header(job.input, max_pixels=self.max_pixels, page=self.page, layout=layout)

    def __call__(self, job: Job, *, force: bool = False, bar: Bar | None = None) -> Outcome:
        """Restores one file; creates its output folder if necessary.

        Raises:
            FileExistsError: the output exists, and `force` is not set. OSError, ValueError: a file is unsuitable.
            TileError: the model failed.
        """
        started = time.monotonic()
        header = self.header(job)
        if os.path.lexists(job.output) and not (force or self.resume):
            raise FileExistsError(17, os.strerror(17), job.output)
        os.makedirs(os.path.dirname(job.output) or ".", exist_ok=True)
        options = self.restorer.options
        flat, resampled = self.saving.background is not None, self.saving.resamples
        check_holds(
            job.output,
            header,
            out_dtype=options.out_dtype,
            alpha=options.alpha,
            flat=flat,
            resampled=resampled,
            labels=options.reduce is not None,
        )
        with resumed(job.output, self.resume) as kept, ExitStack() as stack:
            made = _Made(job, header, stack, self.saving, kept)
            for number in self._pages(header):
                if bar is not None:
                    bar.begin_page(header.shape[0] * header.shape[1])
                self._restore_page(made, number)
        return replace(made.outcome(), run=made.run, verified=made.verified, seconds=time.monotonic() - started)

    def _pages(self, header: Header) -> Iterable[int | None]:
        if self.page is not None:
            return [self.page]
        return range(1, header.pages + 1) if header.pages > 1 or header.pyramid else [None]

    def _restore_page(self, made: _Made, number: int | None) -> None:
        """Streams the page, except for image files that are verified, which are read as a whole."""
        if is_array(made.job.input):
            image = open_array(made.job.input)
        elif self.verify:
            picture = files.read_image(made.job.input, max_pixels=self.max_pixels, page=number, strict=self.strict)
            image, made.like = picture.pixels, made.like or replace(picture, pixels=np.empty(0))
        else:
            image = PictureSource(made.job.input, max_pixels=self.max_pixels, page=number, strict=self.strict)
            made.like = made.like or image.like
        of_file = None if is_array(made.job.input) else "HWC"[: len(image.shape)]
        restorer = for_file(self.restorer, made.like, self.fitted)
        opened = restorer.open(image if of_file is None else open_image(image, of_file))
        made.check_like_first(shape_of(opened), number)
        if made.kept_rows is not None:
            made.kept_rows.identify(opened, restorer.model, restorer.options, made.job.input, self.page)
            restorer = settled(restorer, made.kept_rows)
        sink_for = made.kept_for if self.verify else made.sink_for
        write_restored(restorer, opened, check_output(made.job.output), sink_for, bool(self.verify), made.kept_rows)
        made.keep_farthest(restorer.last_run)
        if self.verify:
            from ..check.verify import verify

            made.keep_worst(verify(opened, restorer, _as_result(made.kept.rows, opened), windows=self.verify))


class _Made:
    """The output of one file: the sink for all its pages, and the worst of their runs.

    Attributes:
        like: the first page's metadata.
    kept_rows: what keeps finished rows for another run.
    """

    def __init__(self, job: Job, header: Header, stack: ExitStack, saving: Saving, kept_rows: Resumed | None = None):
        self.job, self.header, self.stack, self.saving, self.kept_rows = job, header, stack, saving, kept_rows
        self.like: Picture | None = None
        self.sink: FileSink | None = None
        self.kept: _Kept | None = None
        self.run: Any = None
        self.verified: Any = None

    def check_like_first(self, shape: tuple[int, ...], number: int | None) -> None:
        """Raises ValueError if the page's shape differs: EXIF orientation may differ between pages of equal size."""
        if shape != self.header.shape:
            shapes = f"page {number} is {_by(shape)}, the first {_by(self.header.shape)}"
            raise ValueError(f"{self.job.input}: {shapes}: choose one with --page")

    def sink_for(self, shape: tuple[int, ...], dtype: str) -> FileSink:
        """The sink for all pages, which is opened for the first one. Raises ValueError if the format cannot hold
        them."""
        if self.sink is None:
            size = self.saving.size_of(self.header.shape, shape)
            self.shape, self.dtype = finished_shape(shape, self.saving.background, size), dtype
            whole = (shape[0] * self.header.pages, *shape[1:])
            sink = open_sink(
                self.job.output,
                whole,
                dtype,
                like=self.like,
                pages=self.header.pages,
                quality=self.saving.quality,
                compression=self.saving.compression,
                background=self.saving.background,
                size=size,
            )
            self.sink = self.stack.enter_context(sink)
        return self.sink

    def kept_for(self, shape: tuple[int, ...], dtype: str) -> FileSink:
        """`sink_for`, with a copy of the page in an array."""
        self.kept = _Kept(self.sink_for(shape, dtype), np.empty(shape, dtype))
        return self.kept

    def keep_farthest(self, run: Any) -> None:
        if self.run is None or (run.bound or 0) > (self.run.bound or 0):
            self.run = run

    def keep_worst(self, found: Any) -> None:
        if self.verified is None or found.largest > self.verified.largest:
            self.verified = found

    def outcome(self) -> Outcome:
        header = self.header
        return Outcome(self.job, "restored", header.pages, header.shape, self.shape, header.dtype, self.dtype)


class _Kept:
    """Passes rows on to another sink and copies those of a page to an array."""

    overlaps = False

    def __init__(self, sink: FileSink, rows: np.ndarray):
        self.sink, self.rows, self.filled = sink, rows, 0

    def write(self, rows: np.ndarray) -> None:
        self.rows[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)
        self.sink.write(rows)

    def close(self) -> None:
        self.sink.close()

    def abandon(self) -> None:
        self.sink.abandon()


def _by(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _as_result(rows: np.ndarray, image: Image) -> np.ndarray:
    """Transposes a result (H, W) or (H, W, C) to the axes that `restore_tiled` would return for the image."""
    layout, _ = shape_of_result(image, (*rows.shape, 1)[2], image.size)
    return rows.transpose(["HWC".index(axis) for axis in layout])


def peak_memory() -> int | None:
    """The peak memory of this process in bytes; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
