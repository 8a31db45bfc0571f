# SPDX-License-Identifier: MIT
"""Restores many image files with one restorer: finds them, checks their outputs, and reports outcomes and progress.

This is `halotile restore` without its arguments and output. One TiledRestorer serves all files, so that its model is
loaded and inspected once. Files are streamed, and a file that fails does not stop the others.
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
from ..to_file import for_file, write_restored

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
    """An input file and its output file."""

    input: str
    output: str


@dataclass(frozen=True)
class Work:
    """The jobs found among the inputs, in the order of their names, and the number of other files."""

    jobs: tuple[Job, ...]
    ignored: int


# ---- which files -----------------------------------------------------------------------------------------------------


def find_work(inputs: Sequence[str], folder: str, suffix: str | None = None) -> Work:
    """Finds the files and arrays among the inputs and the image files in the folders among them, and their outputs.

    A file goes into `folder` under its own name; a file in an input folder goes there under its path relative to the
    input folder, preceded by that folder's name if there are several inputs. Folders are searched recursively for image
    suffixes. Hidden files and folders, `folder` itself and links to folders are skipped.

    Args:
        inputs: image files, arrays (.npy, .zarr) and folders.
        folder: the output folder; need not exist.
        suffix: suffix of the outputs, such as ".png"; None keeps each file's own.

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
    warnings.warn(f"{error.filename}: {error.strerror or quoted(error)}: its content is skipped", stacklevel=3)


def _is_image(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and suffix_of(name) in PICTURES and os.path.isfile(path)


def suffix_of(path: str) -> str:
    """The suffix in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def is_array(path: str) -> bool:
    """Whether the path is a .npy file or the folder of a zarr array, by its suffix or, within a zarr group, its
    content."""
    return array_suffix(path) is not None


def array_suffix(path: str) -> str | None:
    """The suffix that an array has or should have; None if the path is not an array."""
    suffix = suffix_of(os.path.normpath(path))
    if suffix in FORMATS and FORMATS[suffix].stack:
        return suffix
    return ".zarr" if os.path.isdir(path) and is_zarr_array(path) else None


def is_folder(path: str) -> bool:
    """Whether the path is a folder to be searched for image files."""
    return os.path.isdir(path) and not is_array(path)


def read_header(path: str, *, max_pixels: int | None, page: int | None, layout: str | None = None) -> Header:
    """The header of an image file or an array in the given layout, without decoding pixels. Raises OSError, ValueError,
    or ImportError if a package for reading it is missing."""
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
        raise ValueError(f"{text} {image.layout!r}; for several images, use halotile.restore_to")
    return Header(_shape_of(image), image.dtype)


def _shape_of(image: Image) -> tuple[int, ...]:
    """(H, W) or (H, W, C)."""
    return (*image.size, image.channels) if "C" in image.layout else image.size


def _as_result(rows: np.ndarray, image: Image) -> np.ndarray:
    """Transposes a result (H, W) or (H, W, C) to the axes that `restore_tiled` would return for the image."""
    layout, _ = shape_of_result(image, (*rows.shape, 1)[2], image.size)
    return rows.transpose(["HWC".index(axis) for axis in layout])


def _open_array(path: str) -> Any:
    return open_source(os.path.normpath(path), None, None)


def check_folder(folder: str) -> None:
    """Checks that a folder, which need not exist, can take outputs. Raises OSError if it cannot."""
    here = os.path.realpath(folder)
    while not os.path.lexists(here):
        here = os.path.dirname(here)
    if not os.path.isdir(here):
        raise NotADirectoryError(20, os.strerror(20), here)
    if not os.access(here, os.W_OK | os.X_OK):
        raise PermissionError(13, os.strerror(13), here)


def split_existing(jobs: Sequence[Job], *, force: bool = False, skip: bool = False) -> tuple[list[Job], list[Job]]:
    """(to do, to skip), after checking that no file would be lost.

    Args:
        force: overwrite existing outputs. skip: keep them.

    Raises:
        ValueError: two inputs share an output, an output is one of the inputs, an output exists, or its suffix
            belongs to no format.
    """
    by_output: dict[str, Job] = {}
    sources = {_identity(job.input) for job in jobs}
    for job in jobs:
        if suffix_of(job.output) not in FORMATS:
            text = f"{job.output}: unknown suffix {os.path.splitext(job.output)[1]!r}"
            raise ValueError(f"{text}; must be one of {', '.join(FORMATS)}, or use --format")
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
    """A key that is equal for two names of the same file, also if letter case is ignored; the path of a missing
    file."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def check_holds(output: str, header: Header, *, out_dtype: str | None, alpha: str) -> None:
    """Checks that the output's format can hold the result, as far as that is known before the model runs.

    Raises:
        ValueError: it cannot. OSError: the output cannot be written.
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
    """The outcome of a job.

    Attributes:
        status: "restored", "skipped" or "failed".
        input_shape, output_shape: (height, width) or (height, width, channels) of a page; None if unknown.
        run: the RunInfo of the page with the largest error bound.
        verified: the Verification of the page with the largest difference.
        error: the error message, one line.
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
        """A dict for json.dumps. Sizes are [width, height], halo and phase [rows, columns]. "tuning" and "precision"
        are null if nothing was chosen automatically."""
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
            "filled": run and run.filled and asdict(run.filled) | {"nodata": f"{run.filled.nodata:g}"},
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
    """Restores files with one TiledRestorer.

    Args:
        restorer: without `verify`.
        page: the page of inputs with several, from 1 on. None: all pages of a TIFF, the first of an animation.
        max_pixels: limit on the pixels of an input, all pages together.
        quality, compression: as for `write_image`.
        verify: number of random windows of each page that are recomputed and compared.
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
        """Streams the page, except for image files that are verified, which are read as a whole."""
        if is_array(made.job.input):
            image = _open_array(made.job.input)
        elif self.verify:
            picture = files.read_image(made.job.input, max_pixels=self.max_pixels, page=number)
            image, made.like = picture.pixels, made.like or replace(picture, pixels=np.empty(0))
        else:
            image = PictureSource(made.job.input, max_pixels=self.max_pixels, page=number)
            made.like = made.like or image.like
        of_file = None if is_array(made.job.input) else "HWC"[: len(image.shape)]
        restorer = for_file(self.restorer, made.like)
        opened = restorer.open(image if of_file is None else open_image(image, of_file))
        made.check_like_first(_shape_of(opened), number)
        sink_for = made.kept_for if self.verify else made.sink_for
        write_restored(restorer, opened, check_output(made.job.output), sink_for, bool(self.verify))
        made.keep_farthest(restorer.last_run)
        if self.verify:
            from ..check.verify import verify

            made.keep_worst(verify(opened, restorer, _as_result(made.kept.rows, opened), windows=self.verify))


class _Made:
    """The output of one file: the sink for all its pages, and the worst of their runs.

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
        """Raises ValueError if the page's shape differs: EXIF orientation may differ between pages of equal size."""
        if shape != self.header.shape:
            shapes = f"page {number} is {_by(shape)}, the first {_by(self.header.shape)}"
            raise ValueError(f"{self.job.input}: {shapes}: choose one with --page")

    def sink_for(self, shape: tuple[int, ...], dtype: str) -> FileSink:
        """The sink for all pages, which is opened for the first one. Raises ValueError if the format cannot hold
        them."""
        if self.sink is None:
            self.shape, self.dtype = shape, dtype
            whole = (shape[0] * self.header.pages, *shape[1:])
            sink = open_sink(self.job.output, whole, dtype, like=self.like, pages=self.header.pages, **self.saved)
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


# ---- how far the work is ---------------------------------------------------------------------------------------------


class Bar:
    """A progress bar over the pixels of all files, or none if tqdm is missing. Pass it as `progress` to the restorer.

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
        """Starts the next page, which has that many pixels."""
        self._before, self._page = self._before + self._page, pixels
        self._show(0)

    def end_file(self, pixels: int, before: int) -> None:
        """Ends a file of `pixels` pixels after `before` pixels in earlier files, whether or not it was restored."""
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
    """The peak memory of this process in bytes; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
