# SPDX-License-Identifier: MIT
"""restore_to(): restores an image into a file, with memory independent of its height.

source -> buffered rows -> windows or strips -> model -> band -> sink

A second thread writes one band while the model computes the next. Two band buffers are used in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import Any, Unpack

import numpy as np

from .auto.prepare import open_run
from .cluster.draft import discard, is_begun
from .files.codecs import check_options
from .files.finish import Colour, checked_colour, checked_size, finished_shape
from .files.formats import FileSink, Format, check_lossless, check_output, open_sink
from .files.open import file_of
from .files.vips import MAX_PIXELS, Path
from .files.vips_rows import PictureSource
from .images.image import Image
from .models.untouched.kept import tensors_kept
from .options import Options, RunOptions
from .restore import TiledRestorer, for_file
from .resume.resumed import Resumed, checked_resume, resumed
from .run import kept_heap
from .run.assemble import drained
from .run.prepared import Delivery, Prepared
from .run.progress import Progress
from .run.report import RunInfo

__all__ = ["restore_to", "settled", "write_restored"]


def restore_to(
    path: Path,
    image: Any,
    model: Callable[..., Any],
    *,
    quality: int = 95,
    compression: int = 6,
    max_pixels: int | None = MAX_PIXELS,
    strict: bool = False,
    background: tuple[int, int, int] | None = None,
    size: tuple[int, int] | None = None,
    resume: bool = False,
    cluster: Any = None,
    **options: Unpack[RunOptions],
) -> RunInfo:
    """Restores an image into a file. Neither is in memory as a whole: rows are read when windows or strips need them,
    and written when they are finished. With schedule="stream" the model's memory does not depend on the height either.

    Args:
        path: .npy; .zarr, a zarr v3 array in chunks of 256x256 and shards of 256x4096 pixels; .tif or .tiff (a BigTIFF
            from nearly 4 GiB on); .png, .jpg, .jpeg, .webp or .avif. The file is (H, W) or (H, W, C) whatever the
            image's layout; for several images, which only .npy and .zarr support, (N, H, W) or (N, H, W, C). It is
            written to a temporary file beside it and replaces any old file when complete; errors and Ctrl-C remove the
            temporary file.
        image: as for `restore_tiled`. Files and zarr arrays are read by rows, several images one by one. Metadata is
            copied from image file to image file.
        model: as for `restore_tiled`; or a `TiledRestorer`, whose options then apply.

    Keyword Args:
        quality: 1 to 100, of JPEG, WebP and AVIF. compression: 0 (none) to 9 (smallest), of PNG and TIFF.
        max_pixels: largest height x width of an image file; None lifts the limit.
        strict: refuse a JPEG that lacks its last bytes; else a warning says so, and what they would show is grey.
        background: red, green and blue from 0 to 255 of a colour in front of which pixels with alpha are laid.
        size: (height, width) to which the result is resampled, with Lanczos' filter by rows.
        resume: keep finished rows beside the file until it is complete, and go on from those that an earlier run with
            resume has kept. The file has the bytes that a single run gives it: see docs/reliability.md.
        cluster: spread the image over the workers of a Dask cluster: its client, its address, or "local", processes on
            this machine. The result is a zarr array at a path that all workers reach, or at an address such as
            s3://bucket/out.zarr; the image is a path, an address, a zarr array or a dask array; the model may also be a
            name as `load_model` takes it. See docs/cluster.md.
        options: as for `restore_tiled`, without out and verify, which need the whole result.

    Returns:
        What the run did, a `RunInfo`.

    Raises:
        ValueError, TypeError: a bad option, image or path, or a result that the format cannot hold. Raised before any
            work, except for what only the model can reveal. Rows that were kept are of another image, model or options,
            or the model does not repeat their bits.
        OSError: reading or writing failed; a lack of space for a .npy file is reported as soon as its size is known; or
            another process is making the file with resume.
        ImportError: the library that reads or writes the format is not installed.
        TileError: as for `restore_tiled`.
        ClusterError: with cluster, shards are missing at the end; with resume, those that are there are kept.

    >>> run = restore_to("restored.png", "photo.jpg", model, halo="exact")
    >>> print(run.how)
    exact
    """
    if cluster is not None:
        if (background, size) != (None, None):
            raise ValueError("background and size must be None with cluster: they are for image files")
        return _over_workers(path, image, model, cluster, options, max_pixels, strict, checked_resume(resume))
    restorer = _restorer(model, options)
    kind = check_output(path)
    if not resume and is_begun(os.fspath(path)):
        discard(os.fspath(path))  # by workers
    check_options(quality, compression)
    background, size = checked_colour(background), checked_size(size)
    given, source = restorer, image
    if isinstance(image, str | os.PathLike):
        restorer, source = restorer.for_path(image, max_pixels, strict)
    elif isinstance(image, PictureSource):
        restorer = for_file(restorer, image.like)
    like = source.like if isinstance(source, PictureSource) else None
    opened = restorer.open(source)
    _check(path, kind, opened, restorer.options, background)
    if (background, size) != (None, None) and (not kind.uses or restorer.options.reduce is not None):
        why = "reduce: labels are no picture" if kind.uses else f"{kind.name}: they are for image files"
        raise ValueError(f"background and size must be None {'with' if kind.uses else 'for'} {why}")
    named = opened.count > 1 or restorer.options.layout is not None
    images = opened.count if kind.stack and "N" in opened.layout and named else None
    with (
        resumed(os.fspath(path), checked_resume(resume)) as kept,
        kept_heap.kept(restorer.options.keep_heap),  # the sink's memory is returned as well
        ExitStack() as stack,
    ):
        if kept is not None:
            kept.identify(opened, restorer.model, restorer.options)
            restorer = settled(restorer, kept)

        def sink_for(shape: tuple[int, ...], dtype: str) -> FileSink:
            sink = open_sink(
                path,
                shape,
                dtype,
                images=images,
                like=like,
                quality=quality,
                compression=compression,
                background=background,
                size=size,
            )
            return stack.enter_context(sink)

        write_restored(restorer, opened, kind, sink_for, kept=kept)
    given.last_run = restorer.last_run
    assert restorer.last_run is not None
    return restorer.last_run


def _over_workers(
    path: Path,
    image: Any,
    model: Any,
    cluster: Any,
    options: RunOptions,
    max_pixels: int | None,
    strict: bool,
    resume: bool,
) -> RunInfo:
    from .cluster.spreading import restore_on_cluster

    named = isinstance(model, str | os.PathLike)
    if not named:
        given = _restorer(model, options)
    found = restore_on_cluster(
        path, image, model, cluster, {**options}, max_pixels=max_pixels, strict=strict, resume=resume
    )
    if not named:
        given.last_run = found
    return found


def settled(restorer: TiledRestorer, kept: Resumed) -> TiledRestorer:
    """The restorer, with what an earlier run has chosen where its options leave it open."""
    options = kept.settled(restorer.options)
    return restorer if options is restorer.options else restorer.with_options(options)


def _restorer(model: Any, options: RunOptions) -> TiledRestorer:
    restorer = TiledRestorer.of(model, {**options})
    if restorer.options.out is not None:
        raise ValueError("out must be None for restore_to: the file is where the result goes")
    if restorer.options.verify:
        raise ValueError(f"verify must be 0 for restore_to, which holds no result, not {restorer.options.verify}")
    return restorer


def _check(path: Path, kind: Format, image: Image, options: Options, background: Colour | None) -> None:
    if image.count != 1 and not kind.stack:
        text = f"path must be that of a .npy file or a .zarr array for {image.count} images, not {os.fspath(path)!r}"
        raise ValueError(f"{text}: {kind.name} holds one")
    dtype = options.out_dtype or (image.dtype if options.reduce is None else kind.dtypes[0])  # as far as it is known
    if options.reduce == "argmax":
        check_lossless(path, kind)
    if dtype not in kind.dtypes:
        raise ValueError(f"out_dtype must be one of {', '.join(kind.dtypes)} for {kind.name}, not {dtype!r}")
    if options.alpha != "channel" and options.reduce is None:
        check_output(path, finished_shape((1, 1, image.channels), background, None))
    origin = file_of(image.original)
    if origin is not None and os.path.exists(path) and os.path.samefile(path, origin):
        raise ValueError(f"path must not be that of the image, {os.fspath(path)}: an image is never modified")


def write_restored(
    restorer: TiledRestorer,
    image: Image,
    kind: Format,
    sink_for: Callable[[tuple[int, ...], str], FileSink],
    holds_result: bool = False,
    kept: Resumed | None = None,
) -> None:
    """Restores one or more images into the sink from sink_for(shape, dtype), called once the shape of a result is
    known. Its provider closes the sink.

    kind: format of the sink. holds_result: whether the sink also stores the whole result in memory. kept: what keeps
    finished rows for another run.
    """
    waiting, options = int(kind.overlaps or kept is not None), restorer.options
    with (
        Progress(options.progress) as progress,
        nullcontext(open_run(image, restorer.knowledge, options.out_dtype)) as opened,
        tensors_kept(opened.windows.modules, watched=opened.windows.may_write),
        kept_heap.kept(opened.keeps_heap),
        Bands(sink_for, kept) as bands,
    ):
        dtype = opened.out_dtype if options.reduce is None else options.out_dtype or "uint16"
        delivery = Delivery(holds_result, waiting, lambda shape: kind.held_bytes(shape, dtype))
        drained(restorer.restored(opened, bands.opened, delivery, progress))


class Bands:
    """Band buffers, (rows, W) or (rows, W, C), and the thread that writes them to a file sink, and keeps them."""

    def __init__(self, sink_for: Callable[[tuple[int, ...], str], FileSink], kept: Resumed | None = None):
        self.sink_for, self.kept, self.keeps = sink_for, kept, kept is not None
        self.sink: FileSink | None = None
        self.free: list[np.ndarray] = []
        self.made: dict[int, tuple[np.ndarray, int]] = {}  # by first row: a buffer and its number of rows
        self.thread = ThreadPoolExecutor(1)
        self.writing: tuple[Future[None], np.ndarray] | None = None

    def opened(self, prepared: Prepared) -> Bands:
        height, self.row = prepared.plan.output_size[0], prepared.row_shape
        self.dtype, self.tallest = prepared.made.dtype, prepared.plan.tallest_band()
        if self.kept is not None:
            self.kept.open(prepared, self.row, self.dtype)
        self.sink = self.sink_for((height, *self.row), self.dtype)
        if self.kept is not None:
            for index in range(prepared.image.count):
                for rows in self.kept.replay(index, self.tallest):
                    self.sink.write(rows)
        return self

    def finished(self, index: int) -> int:
        return 0 if self.kept is None else self.kept.finished(index)

    def rows(self, index: int, start: int, stop: int) -> np.ndarray:
        """Discards unfinished bands from `start` on, left by an out-of-memory fallback."""
        for begun in [first for first in self.made if first >= start]:
            self.free.append(self.made.pop(begun)[0])
        rows = stop - start
        buffer = self.free.pop() if self.free else np.empty((max(rows, self.tallest), *self.row), self.dtype)
        self.made[start] = buffer, rows
        view = buffer[:rows]
        return view.transpose(2, 0, 1) if view.ndim == 3 else view[np.newaxis]

    def done(self, index: int, start: int, stop: int) -> None:
        """Writes the band, after the previous one. Raises errors of the previous write."""
        self._wait()
        buffer, count = self.made.pop(start)
        assert self.sink is not None
        rows = buffer[:count]
        if self.kept is not None:
            rows = rows[self.kept.compare(index, start, rows) :]
        if self.sink.overlaps or self.kept is not None:
            self.writing = self.thread.submit(self._write, rows), buffer
        else:
            self._write(rows)
            self.free.append(buffer)

    def _write(self, rows: np.ndarray) -> None:
        assert self.sink is not None
        if not len(rows):
            return
        if self.kept is not None:
            self.kept.append(rows)
        self.sink.write(rows)

    def _wait(self) -> None:
        if self.writing is not None:
            written, buffer = self.writing
            self.writing = None
            written.result()
            self.free.append(buffer)

    def __enter__(self) -> Bands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
                if self.kept is not None:
                    self.kept.close()
            elif self.sink is not None:
                self.sink.abandon()
        finally:
            self.thread.shutdown()
