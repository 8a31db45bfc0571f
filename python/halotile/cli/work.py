# SPDX-License-Identifier: MIT
"""The files of `halotile restore`: which ones, where their results go, and whether those can be written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..files import picture as files
from ..files.formats import FORMATS, READ_ONLY, check_lossless, check_output, is_read
from ..files.open import open_source
from ..files.picture import Header
from ..files.previews import RAW_SUFFIXES
from ..files.zarr import is_zarr_array
from ..images.image import Image, open_image
from ..texts import quoted

__all__ = [
    "Job",
    "Work",
    "array_suffix",
    "beside",
    "check_folder",
    "check_holds",
    "find_work",
    "is_array",
    "is_folder",
    "open_array",
    "read_header",
    "shape_of",
    "split_existing",
    "suffix_of",
]


OTHER_IMAGES = {  # by suffix
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"), "Netpbm"),
    **{".gif": "GIF", ".bmp": "BMP", ".psd": "Photoshop", ".psb": "Photoshop", ".xcf": "GIMP"},
    **{".exr": "OpenEXR", ".hdr": "Radiance HDR", ".ico": "an icon file", ".svg": "SVG", ".tga": "TGA", ".dds": "DDS"},
    **{".apng": "a PNG under this name", ".jpe": "a JPEG under this name"},
}


@dataclass(frozen=True)
class Job:
    """An input file and its output file."""

    input: str
    output: str


@dataclass(frozen=True)
class Work:
    """Attributes:
    jobs: found among the inputs, in the order of their names.
    unread: images of kinds that are not read, and why.
    ignored: the number of other files.
    """

    jobs: tuple[Job, ...]
    unread: tuple[tuple[str, str], ...] = ()
    ignored: int = 0

    @property
    def count(self) -> int:
        return len(self.jobs) + len(self.unread)


# ---- which files -----------------------------------------------------------------------------------------------------


def find_work(inputs: Sequence[str], folder: str | None, suffix: str | None = None) -> Work:
    """Finds the files and arrays among the inputs and the image files in the folders among them, and their outputs.

    A file goes into `folder` under its own name; a file in an input folder goes there under its path relative to the
    input folder, preceded by that folder's name if there are several inputs. Folders are searched recursively for image
    suffixes. Hidden files and folders, `folder` itself and links to folders are skipped.

    Args:
        inputs: image files, arrays (.npy, .zarr) and folders.
        folder: the output folder; need not exist. None: files are restored beside themselves, as name_restored, and
            folders into folder_restored.
        suffix: suffix of the outputs, such as ".png"; None keeps each file's own.

    Raises:
        FileNotFoundError: an input does not exist.
    """
    found: dict[Job, None] = {}
    unread: dict[str, str] = {}
    ignored = 0
    for name in inputs:
        if not is_folder(name):
            if not os.path.lexists(name):
                raise FileNotFoundError(2, os.strerror(2), name)
            found[Job(name, beside(name, suffix) if folder is None else _within(folder, _own_name(name), suffix))] = (
                None
            )
            continue
        top = os.path.basename(os.path.realpath(name)) if len(inputs) > 1 and folder is not None else ""
        into = f"{_without_dots(name)}_restored" if folder is None else folder
        for path in _files_below(name, into):
            why = kind_not_read(path)
            if _is_image(path):
                inner = os.path.join(top, os.path.relpath(path, name))
                found[Job(path, _within(into, inner, suffix))] = None
            elif why is not None:
                unread[path] = why
            else:
                ignored += 1
    return Work(tuple(found), tuple(unread.items()), ignored)


def beside(path: str, suffix: str | None) -> str:
    """The output for an input without an output: name_restored, of the same or the given suffix."""
    path = _without_dots(path)
    name, own = os.path.splitext(os.path.join(os.path.dirname(path), _own_name(path)))
    return f"{name}_restored{suffix or _written(own)}"


def _without_dots(path: str) -> str:
    plain = os.path.normpath(path)
    return os.path.realpath(path) if os.path.basename(plain) in ("", ".", "..") else plain


def _own_name(path: str) -> str:
    """The name of a file or array; of an array inside a zarr group with the suffix that it lacks."""
    inner, named = os.path.basename(os.path.normpath(path)), array_suffix(path)
    return f"{inner}{named}" if named is not None and suffix_of(inner) != named else inner


def _within(folder: str, inner: str, suffix: str | None) -> str:
    name, own = os.path.splitext(inner)
    return os.path.join(folder, name + (suffix or _written(own)))


def _written(suffix: str) -> str:
    """The suffix of a result, for that of an input: PNG for kinds that are only read."""
    return ".png" if suffix.lower() in READ_ONLY else suffix


def kind_not_read(path: str) -> str | None:
    """Why a file is left out that is an image by its name; None if it is none, or hidden."""
    name = os.path.basename(path)
    suffix = suffix_of(name)
    if name.startswith(".") or suffix in FORMATS or is_read(suffix) or not os.path.isfile(path):
        return None
    if suffix in RAW_SUFFIXES:
        return "camera raw files are not read; develop it first"
    kind = OTHER_IMAGES.get(suffix)
    extra = ", or pip install 'halotile[heic]'" if suffix in READ_ONLY else ""
    return None if kind is None else f"{kind} is not read; convert it to PNG or TIFF first{extra}"


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
    return not name.startswith(".") and is_read(suffix_of(name)) and os.path.isfile(path)


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
    source = open_array(path)
    try:
        image = open_image(source, layout)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if "N" in image.layout:
        text = f"{path}: image must be (H, W) or (H, W, C), not of shape {tuple(source.shape)} in layout"
        raise ValueError(f"{text} {image.layout!r}; for several images, use halotile.restore_to")
    return Header(shape_of(image), image.dtype)


def shape_of(image: Image) -> tuple[int, ...]:
    """(H, W) or (H, W, C)."""
    return (*image.size, image.channels) if "C" in image.layout else image.size


def open_array(path: str) -> Any:
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


def check_holds(
    output: str,
    header: Header,
    *,
    out_dtype: str | None,
    alpha: str,
    flat: bool = False,
    resampled: bool = False,
    labels: bool = False,
) -> None:
    """Checks that the output's format can hold the result, as far as that is known before the model runs.

    Args:
        flat: whether alpha goes. resampled: whether the result gets another size. labels: whether the model's channels
            are reduced to them.

    Raises:
        ValueError: it cannot. OSError: the output cannot be written.
    """
    kind = check_output(output, dtype=out_dtype)
    if labels:
        check_lossless(output, kind)
    if out_dtype is None and header.dtype not in kind.dtypes and not labels:
        raise ValueError(f"{output}: {kind.name} cannot hold {header.dtype}; choose --bits, or write TIFF")
    if alpha != "channel" and not labels:
        channels = header.shape[2:]
        if flat and kind.codec is not None and channels and channels[0] in (2, 4):
            channels = (channels[0] - 1,)
        check_output(output, (1, 1, *channels))
    if resampled and header.pages > 1:
        raise ValueError(
            f"{output}: the input has {header.pages} pages; with --size or --outscale, choose one by --page"
        )
    if header.pages > 1 and not kind.pages:
        text = f"{output}: {kind.name} holds one page, and the input has {header.pages}"
        raise ValueError(f"{text}; write TIFF, or choose one with --page")
