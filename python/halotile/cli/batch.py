# SPDX-License-Identifier: MIT
"""Image files restored by one restorer: which there are, what becomes of each, and how far the work is.

`halotile restore` with everything that is not about words on a command line. One TiledRestorer takes all files, so that
its model is opened and inspected once; files are read and written by rows, and one that fails stops no other.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..files import picture as files
from ..files.formats import FORMATS, PICTURES, FileSink, check_output, open_sink
from ..files.open import open_source
from ..files.picture import Header, Picture
from ..files.vips import MAX_PIXELS
from ..files.vips_rows import PictureSource
from ..files.zarr import is_zarr_array
from ..images.image import Image, open_image, shape_of_result
from ..texts import quoted
from ..to_file import write_restored

__all__ = [
    "Bar",
    "FileRestorer",
    "Job",
    "Outcome",
    "Work",
    "check_folder",
    "check_holds",
    "find_work",
    "is_array",
    "is_folder",
    "peak_memory",
    "read_header",
    "split_existing",
]

Size = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One file to read, and one to write."""

    input: str
    output: str


@dataclass(frozen=True)
class Work:
    """What was found below the inputs: jobs in the order of their names, and how many other files there were."""

    jobs: tuple[Job, ...]
    ignored: int


# ---- which files -----------------------------------------------------------------------------------------------------


def find_work(inputs: Sequence[str], folder: str, suffix: str | None = None) -> Work:
    """The files and arrays among the inputs, the image files below the folders among them, and where each goes.

    A file goes into `folder` under its own name, what is below an input folder under its path from there; of several
    inputs, each folder keeps its own name. Below folders files count as images by their suffix; hidden files and
    folders, and `folder` itself, are left out, links to folders not followed.

    Args:
        inputs: image files, arrays (.npy, .zarr) and folders.
        folder: where outputs go; need not exist.
        suffix: of the outputs, such as ".png"; None: each keeps its own.

    Raises:
        FileNotFoundError: an input does not exist.
    """
    found: dict[Job, None] = {}
    ignored = 0
    for name in inputs:
        if not is_folder(name):
            if not os.path.lexists(name):
                raise FileNotFoundError(2, os.strerror(2), name)
            inner, named = os.path.basename(os.path.normpath(name)), array_suffix(name)
            unnamed = named is not None and suffix_of(inner) != named
            found[_job(name, f"{inner}{named}" if unnamed else inner, folder, suffix)] = None
            continue
        top = os.path.basename(os.path.realpath(name)) if len(inputs) > 1 else ""
        for path in _files_below(name, folder):
            if _is_image(path):
                inner = os.path.join(top, os.path.relpath(path, name))
                found[_job(path, inner, folder, suffix)] = None
            else:
                ignored += 1
    return Work(tuple(found), ignored)


def _job(path: str, inner: str, folder: str, suffix: str | None) -> Job:
    if suffix is not None:
        inner = os.path.splitext(inner)[0] + suffix
    return Job(path, os.path.join(folder, inner))


def _files_below(top: str, leave_out: str) -> Iterator[str]:
    left_out = os.path.realpath(leave_out)
    if os.path.realpath(top) == left_out:
        left_out = ""
    for here, folders, names in os.walk(top, onerror=_say_unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(here, name)) != left_out
        )
        yield from (os.path.join(here, name) for name in sorted(names))


def _say_unreadable(error: OSError) -> None:
    warnings.warn(f"{error.filename}: {error.strerror or quoted(error)}: what is below it is left out", stacklevel=3)


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and suffix_of(name) in PICTURES and os.path.isfile(path)


def suffix_of(path: str) -> str:
    """In small letters, with its dot."""
    return os.path.splitext(path)[1].lower()


def is_array(path: str) -> bool:
    """Whether it is a .npy file or a zarr array's folder: by its name, or as an array of a group by what is in it."""
    return array_suffix(path) is not None


def array_suffix(path: str) -> str | None:
    """What an array is named by, or should be; None for what is no array."""
    suffix = suffix_of(os.path.normpath(path))
    if suffix in FORMATS and FORMATS[suffix].stack:
        return suffix
    return ".zarr" if os.path.isdir(path) and is_zarr_array(path) else None


def is_folder(path: str) -> bool:
    """Whether image files are to be looked for below it."""
    return os.path.isdir(path) and not is_array(path)


def read_header(path: str, *, max_pixels: int | None, page: int | None, layout: str | None = None) -> Header:
    """What an image file or an array, in that layout, holds; nothing is decoded. Raises OSError, ValueError, or
    ImportError for what reads it."""
    if not is_array(path):
        return files.read_header(path, max_pixels=max_pixels, page=page)
    if page not in (None, 1):
        raise ValueError(f"{path}: page={page}; must be from 1 to 1")
    source = _open_array(path)
    try:
        image = open_image(source, layout)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if "N" in image.layout:
        text = f"{path}: image must be (H, W) or (H, W, C), not of shape {tuple(source.shape)} in layout"
        raise ValueError(f"{text} {image.layout!r}; several images are for halotile.restore_to")
    return Header(_shape_of(image), image.dtype)


def _shape_of(image: Image) -> tuple[int, ...]:
    """(H, W) or (H, W, C)."""
    return (*image.size, image.channels) if "C" in image.layout else image.size


def _as_result(rows: np.ndarray, image: Image) -> np.ndarray:
    """A result (H, W) or (H, W, C), as `restore_tiled` would have returned it for the image."""
    layout, _ = shape_of_result(image, (*rows.shape, 1)[2], image.size)
    return rows.transpose(["HWC".index(axis) for axis in layout])


def _open_array(path: str) -> Any:
    return open_source(os.path.normpath(path), None, None)


def check_folder(folder: str) -> None:
    """Whether outputs can go into a folder that may not be there yet. Raises OSError if they cannot."""
    here = os.path.realpath(folder)
    while not os.path.lexists(here):
        here = os.path.dirname(here)
    if not os.path.isdir(here):
        raise NotADirectoryError(20, os.strerror(20), here)
    if not os.access(here, os.W_OK | os.X_OK):
        raise PermissionError(13, os.strerror(13), here)


def split_existing(jobs: Sequence[Job], *, force: bool = False, skip: bool = False) -> tuple[list[Job], list[Job]]:
    """(to do, to skip), once it is certain that nothing is lost by doing them.

    Args:
        force: existing outputs are overwritten. skip: they are left alone.

    Raises:
        ValueError: two inputs have one output, an output is one of the inputs, an output exists, or has a suffix that
            no format has.
    """
    by_output: dict[str, Job] = {}
    sources = {_identity(job.input) for job in jobs}
    for job in jobs:
        if suffix_of(job.output) not in FORMATS:
            text = f"{job.output}: unknown suffix {os.path.splitext(job.output)[1]!r}"
            raise ValueError(f"{text}; must be one of {', '.join(FORMATS)}, or choose --format")
        other = by_output.setdefault(os.path.realpath(job.output), job)
        if other is not job:
            raise ValueError(f"{other.input} and {job.input} would both become {job.output}")
        if _identity(job.output) in sources:
            raise ValueError(f"{job.input}: its output {job.output} is an input; choose another folder")
    existing = [job for job in jobs if os.path.lexists(job.output)]
    if existing and not (force or skip):
        more = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        them = "it" if len(existing) == 1 else "them"
        raise ValueError(f"{existing[0].output}{more}; --force overwrites {them}, --skip-existing leaves {them}")
    skipped = existing if skip else []
    return [job for job in jobs if job not in set(skipped)], skipped


def _identity(path: str) -> Any:
    """Equal for two names of one file, also where letter case is ignored; for what is not there, its path."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def check_holds(output: str, header: Header, *, out_dtype: str | None, alpha: str) -> None:
    """Whether a file of the output's kind can hold what becomes of an input, as far as that is known before its model
    runs.

    Raises:
        ValueError: it cannot, and why. OSError: nothing can be written there.
    """
    kind = check_output(output, dtype=out_dtype)
    if out_dtype is None and header.dtype not in kind.dtypes:
        raise ValueError(f"{output}: {kind.name} cannot hold {header.dtype}; choose --bits, or write TIFF")
    if alpha != "channel":
        check_output(output, (1, 1, *header.shape[2:]))
    if header.pages > 1 and not kind.pages:
        text = f"{output}: {kind.name} holds one page, and the input has {header.pages}"
        raise ValueError(f"{text}; write TIFF, or choose one with --page")


# ---- what becomes of a file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: "restored", "skipped" or "failed".
        input_shape, output_shape: (height, width) or (height, width, channels) of a page; None if it did not come to
            that.
        run: the RunInfo of its page that is farthest from exact.
        verified: a Verification, of the page where differences were largest.
        error: one line.
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

    def as_json(self) -> dict[str, Any]:
        """For json.dumps; sizes are [width, height], halo and phase [rows, columns]. "tuning" and "precision" are null
        where nothing was left to be chosen."""
        run = self.run
        content: dict[str, Any] = {
            "input": self.job.input,
            "output": self.job.output,
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
            "seconds": round(self.seconds, 3),
            "error": self.error,
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
    """Restores files by one TiledRestorer.

    Args:
        restorer: without `verify`.
        page: of inputs with several: which, from 1 on. None: all of a TIFF, into a TIFF; the first of an animation.
        max_pixels: bounds the input, all its pages together.
        quality, compression: as for `write_image`.
        verify: so many places of each page are made again and compared.
    """

    def __init__(
        self,
        restorer: Any,
        *,
        page: int | None = None,
        max_pixels: int | None = MAX_PIXELS,
        quality: int = 95,
        compression: int = 6,
        verify: int = 0,
    ):
        self.restorer, self.page, self.max_pixels, self.verify = restorer, page, max_pixels, verify
        self.saved = {"quality": quality, "compression": compression}

    def header(self, job: Job) -> Header:
        """What the input holds. Raises OSError or ValueError."""
        layout = self.restorer.options.layout
        return read_header(job.input, max_pixels=self.max_pixels, page=self.page, layout=layout)

    def __call__(self, job: Job, *, force: bool = False, bar: Bar | None = None) -> Outcome:
        """Restores one file, into a folder that is made if it is not there.

        Raises:
            FileExistsError: the output appeared meanwhile, and `force` is not set. OSError, ValueError: the files.
            TileError: the model failed.
        """
        started = time.monotonic()
        header = self.header(job)
        if os.path.lexists(job.output) and not force:
            raise FileExistsError(17, os.strerror(17), job.output)
        os.makedirs(os.path.dirname(job.output) or ".", exist_ok=True)
        options = self.restorer.options
        check_holds(job.output, header, out_dtype=options.out_dtype, alpha=options.alpha)
        with ExitStack() as stack:
            made = _Made(job, header, stack, self.saved)
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
        """By rows; of an image file as a whole where the result is to be verified."""
        if is_array(made.job.input):
            image = _open_array(made.job.input)
        elif self.verify:
            picture = files.read_image(made.job.input, max_pixels=self.max_pixels, page=number)
            image, made.like = picture.pixels, made.like or replace(picture, pixels=np.empty(0))
        else:
            image = PictureSource(made.job.input, max_pixels=self.max_pixels, page=number)
            made.like = made.like or image.like
        of_file = None if is_array(made.job.input) else "HWC"[: len(image.shape)]
        opened = self.restorer.open(image) if of_file is None else open_image(image, of_file)
        made.check_like_first(_shape_of(opened), number)
        sink_for = made.kept_for if self.verify else made.sink_for
        write_restored(self.restorer, opened, check_output(made.job.output), sink_for, bool(self.verify))
        made.keep_farthest(self.restorer.last_run)
        if self.verify:
            from ..check.verify import verify

            made.keep_worst(verify(opened, self.restorer, _as_result(made.kept.rows, opened), windows=self.verify))


class _Made:
    """What is made of a file: pages into one sink, and what is known of their runs.

    Attributes:
        like: the first page's metadata.
    """

    def __init__(self, job: Job, header: Header, stack: ExitStack, saved: dict[str, int]):
        self.job, self.header, self.stack, self.saved = job, header, stack, saved
        self.like: Picture | None = None
        self.sink: FileSink | None = None
        self.kept: _Kept | None = None
        self.run: Any = None
        self.verified: Any = None

    def check_like_first(self, shape: tuple[int, ...], number: int | None) -> None:
        """Pages may be turned differently, which their sizes do not tell."""
        if shape != self.header.shape:
            shapes = f"page {number} is {_by(shape)}, the first {_by(self.header.shape)}"
            raise ValueError(f"{self.job.input}: {shapes}: choose one with --page")

    def sink_for(self, shape: tuple[int, ...], dtype: str) -> FileSink:
        """The sink for all pages, when the first one's shape is known, and whether the file can hold them."""
        if self.sink is None:
            self.shape, self.dtype = shape, dtype
            whole = (shape[0] * self.header.pages, *shape[1:])
            sink = open_sink(self.job.output, whole, dtype, like=self.like, pages=self.header.pages, **self.saved)
            self.sink = self.stack.enter_context(sink)
        return self.sink

    def kept_for(self, shape: tuple[int, ...], dtype: str) -> FileSink:
        """The same, by way of an array for one page."""
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
    """Passes rows on to another sink, and keeps those of a page in an array."""

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


# ---- how far the work is ---------------------------------------------------------------------------------------------


class Bar:
    """One progress bar over the pixels of all files; none where tqdm is missing. Pass it as `progress` to the restorer.

    Args:
        total: pixels of all files.
        wanted: whether to show anything.
    """

    def __init__(self, total: int, wanted: bool = True):
        self.bar: Any = None
        self._before = self._page = 0
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self.bar = tqdm(total=total, unit="px", unit_scale=True)

    def begin_page(self, pixels: int) -> None:
        """The next page has so many."""
        self._before, self._page = self._before + self._page, pixels
        self._show(0)

    def end_file(self, pixels: int, before: int) -> None:
        """A file of so many pixels, `before` so many, is done with, restored or not."""
        self._before, self._page = before + pixels, 0
        self._show(0)

    def __call__(self, done: int, total: int) -> None:
        self._show(self._page * done // max(total, 1))

    def _show(self, pixels: int) -> None:
        if self.bar is not None:
            self.bar.update(max(0, self._before + pixels - int(self.bar.n)))

    def say(self, text: str, file: Any) -> None:
        """Prints a line without breaking the bar."""
        if self.bar is None:
            print(text, file=file, flush=True)
        else:
            self.bar.write(text, file=file)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def peak_memory() -> int | None:
    """The most memory that this process had at a time, bytes; None where that cannot be asked."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
