# SPDX-License-Identifier: MIT
"""`halotile restore`: finds the files, makes the restorer, and restores file by file."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

from ..files.formats import FORMATS, check_output
from ..files.journal import has_journal
from ..models.devices import BEST, usable_device
from ..models.load import load_model
from ..models.needs import needs_of
from ..optional import torch_if_loaded
from ..options import Options
from ..restore import TiledRestorer
from . import batch
from .bar import Bar
from .common import (
    BIT_DTYPES,
    SUFFIXES,
    UsageError,
    checked_options,
    debugging,
    naming_model,
    one_line,
    planned,
    shown,
    usage_errors,
    why_no_halo,
)
from .links import check_stays_inside
from .output import Reports
from .saving import Saving, check_effects
from .spread import check_spread, is_begun, spreading
from .work import (
    Job,
    Work,
    beside,
    check_folder,
    check_holds,
    find_work,
    is_folder,
    read_header,
    split_existing,
    suffix_of,
)

__all__ = ["half", "restore", "restorer_of"]


def restore(asked: argparse.Namespace) -> int:
    """Validates everything before the model runs, except for the output's size and channels, which the first tiles
    give."""
    options = checked_options(asked)
    if asked.force and asked.skip_existing:
        raise UsageError("--force and --skip-existing cannot be combined")
    if asked.resume and asked.force:
        raise UsageError("--resume and --force cannot be combined: outputs that are complete would be made again")
    if asked.strength is not None and asked.model is not None:
        raise UsageError(f"--strength is only for the included model, not for --model {asked.model}")
    saving = Saving.of(asked)
    alone = _is_alone(asked)
    work = _work(asked, alone)
    check_effects(asked, work.jobs)
    if asked.cluster is not None:
        check_spread(asked, work.jobs)
    todo, skipped = _split(asked, work, alone)
    if alone and todo:
        _check_alone(asked, todo[0], options, saving)
    reports = Reports(asked, alone, work)
    reports.outcomes += [batch.Outcome(job, "skipped", why="its output exists") for job in skipped]
    reports.outcomes += [batch.Outcome(Job(path, ""), "skipped", why=why) for path, why in work.unread]
    try:
        if todo:
            _restore_all(asked, options, saving, todo, reports)
    except KeyboardInterrupt:
        reports.end(interrupted=True)
        raise
    reports.end()
    return 2 if reports.count("failed") else 0


def _is_alone(asked: argparse.Namespace) -> bool:
    """Whether there is one input file and -o names one output file, not a folder."""
    one_file = len(asked.inputs) == 1 and not is_folder(asked.inputs[0])
    if asked.output is None:
        return one_file
    into_folder = os.path.isdir(asked.output) and not _has_suffix(asked.output)
    return one_file and not (asked.output.endswith("/") or into_folder)


def _has_suffix(path: str) -> bool:
    return suffix_of(path) in FORMATS


def _work(asked: argparse.Namespace, alone: bool) -> Work:
    suffix = SUFFIXES.get(asked.format)
    if alone:
        output = beside(asked.inputs[0], suffix) if asked.output is None else asked.output
        if suffix is not None and FORMATS.get(suffix_of(output)) is not FORMATS[suffix]:
            raise UsageError(f"--format {asked.format} contradicts {output}; leave one out")
        return Work((Job(asked.inputs[0], output),))
    if asked.output is not None:
        folder = os.path.isdir(asked.output) and suffix_of(asked.output) != ".zarr"
        if not folder and (os.path.lexists(asked.output) or _has_suffix(asked.output)):
            raise UsageError(f"with several inputs (or a folder), -o must be a folder, not {asked.output}")
        check_folder(asked.output)
    work = find_work(asked.inputs, asked.output, suffix)
    if asked.output is None:
        for folder_of in {os.path.dirname(job.output) or "." for job in work.jobs}:
            check_folder(folder_of)
    if not work.jobs:
        kinds = "".join(f"; {shown(path)}: {why}" for path, why in work.unread[:3])
        others = f"; {work.ignored} other files" if work.ignored else ""
        raise UsageError(f"{', '.join(map(shown, asked.inputs))}: no image files found{kinds}{others}")
    return work


def _split(asked: argparse.Namespace, work: Work, alone: bool) -> tuple[list[Job], list[Job]]:
    """(to do, to skip). An input is never overwritten."""
    output = work.jobs[0].output
    with usage_errors():
        if not alone:
            for job in work.jobs:
                check_stays_inside(job, asked.output)
            todo, skipped = split_existing(work.jobs, force=asked.force, skip=asked.skip_existing or asked.resume)
            begun = [job for job in skipped if asked.resume and _is_begun(asked, job.output)]
            return [*begun, *todo], [job for job in skipped if job not in set(begun)]
        check_output(output, dtype=BIT_DTYPES.get(asked.bits))
    if os.path.exists(output) and os.path.exists(asked.inputs[0]) and os.path.samefile(output, asked.inputs[0]):
        raise UsageError(f"{output} is the input, which is never overwritten; choose another name")
    exists = os.path.exists(output) and not (asked.resume and _is_begun(asked, output))
    skips = asked.skip_existing or asked.resume
    if exists and not (asked.force or skips):
        raise UsageError(f"{output} exists; --force overwrites it")
    jobs = list(work.jobs)
    return ([], jobs) if exists and skips else (jobs, [])


def _is_begun(asked: argparse.Namespace, output: str) -> bool:
    return has_journal(output) if asked.cluster is None else is_begun(output)


def _check_alone(asked: argparse.Namespace, job: Job, options: dict[str, Any], saving: Saving) -> None:
    header = read_header(job.input, max_pixels=asked.max_pixels, page=asked.page, layout=asked.layout)
    kept = {"flat": saving.background is not None, "resampled": saving.resamples, "labels": asked.reduce is not None}
    with usage_errors():
        check_holds(job.output, header, out_dtype=BIT_DTYPES.get(asked.bits), alpha=asked.alpha, **kept)
    if not Options(**options).asks_model and asked.window != "trained":
        planned(header.shape[:2], options)


def _restore_all(
    asked: argparse.Namespace, options: dict[str, Any], saving: Saving, todo: list[Job], reports: Reports
) -> None:
    """Uses one restorer for all files, so that the model is loaded and inspected once."""
    many = _shows_progress(asked) and not reports.alone
    pixels = [_pixels_of(asked, job) if many else 0 for job in todo]
    with naming_model(asked.model):
        restorer = restorer_of(asked, options)
    with ExitStack() as stack:
        bar = stack.enter_context(closing(Bar(sum(pixels), many)))
        reports.bar = bar
        if many:
            restorer = restorer.with_options(dataclasses.replace(restorer.options, progress=bar))
        one = (
            _file_restorer(asked, saving, restorer)
            if asked.cluster is None
            else stack.enter_context(spreading(asked, restorer))
        )
        for index, job in enumerate(todo):
            reports.add(_outcome(asked, one, job, reports))
            bar.end_file(pixels[index], sum(pixels[:index]))


def _file_restorer(asked: argparse.Namespace, saving: Saving, restorer: TiledRestorer) -> batch.FileRestorer:
    return batch.FileRestorer(
        restorer,
        page=asked.page,
        max_pixels=asked.max_pixels,
        saving=saving,
        strict=asked.strict,
        verify=asked.verify,
        resume=asked.resume,
    )


def _pixels_of(asked: argparse.Namespace, job: Job) -> int:
    """Pixels for the progress bar; 0 for an unreadable file, which is reported when its turn comes."""
    with suppress(OSError, ValueError):
        header = read_header(job.input, max_pixels=asked.max_pixels, page=asked.page, layout=asked.layout)
        return header.shape[0] * header.shape[1] * header.pages
    return 0


def _outcome(asked: argparse.Namespace, one: Callable[..., batch.Outcome], job: Job, reports: Reports) -> batch.Outcome:
    started = time.monotonic()
    try:
        with naming_model(asked.model, job.input, job.output):
            return one(job, force=asked.force, bar=reports.bar)
    except Exception as error:
        if reports.alone and (not asked.json or debugging()):
            raise
        if debugging():
            traceback.print_exc()
        text = one_line(error)
        if not text.startswith((f"{job.input}:", f"{job.output}:")):
            text = f"{job.input}: {text}"
        return batch.Outcome(job, "failed", seconds=time.monotonic() - started, error=text)


# ---- the restorer


def restorer_of(asked: argparse.Namespace, options: dict[str, Any]) -> TiledRestorer:
    """The restorer that the command line asks for: loads the model and settles its halo and phase."""
    model = load_model(asked.model, strength=asked.strength)
    if torch_if_loaded() is not None:
        with usage_errors():
            for device in Options(device=asked.device).devices:
                usable_device(device)
    if asked.compile and not _is_network(model):
        raise UsageError(f"--compile needs a torch module, but {asked.model} is a {type(model).__name__}")
    if asked.half:
        options = options | {"dtype": half(model, asked.device)}
    options = options | {"verify": 0, "out_dtype": BIT_DTYPES.get(asked.bits), "progress": _shows_progress(asked)}
    with usage_errors():
        needs_of(model).check(None, asked.verify)
        restorer = TiledRestorer(model, **options)
    return _settled(asked, restorer)


def _shows_progress(asked: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not asked.quiet and importlib.util.find_spec("tqdm") is not None


def half(model: Any, device: str | list[str] | None) -> str:
    """float16, or bfloat16 for a torch module on a CPU, where float16 is slow or missing."""
    if not _is_network(model):
        return "float16"
    first = next(model.parameters(), None)
    device = None if device == BEST and first is not None and first.device.type != "cpu" else device
    where = device or ("cpu" if first is None else str(first.device))
    where = str(usable_device(where)) if where == BEST else where
    where = where if isinstance(where, str) else where[0]
    return "bfloat16" if where.startswith("cpu") else "float16"


def _is_network(model: Any) -> bool:
    torch = torch_if_loaded()
    return torch is not None and isinstance(model, torch.nn.Module)


def _settled(asked: argparse.Namespace, restorer: TiledRestorer) -> TiledRestorer:
    """The restorer with defaults for --halo and --phase: auto for torch modules that inspection understands or that
    stream without a halo, else 32 and 1, as inspecting other models would take many runs. --window has its own."""
    missing = {"halo", "phase"} - vars(asked).keys()
    if not missing or not _is_network(restorer.model) or asked.window is not None:
        return restorer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from trial runs; the result has its own list of doubts
            info = restorer.inspected()
    except Exception as error:
        warnings.warn(f"inspecting the model failed, so halo is 32 and phase is 1: {one_line(error)}", stacklevel=2)
        return restorer
    found: dict[str, Any] = {}
    if "phase" in missing:
        found["phase"] = tuple(step or 1 for step in info.phase)
    if "halo" in missing:
        streams, statistics = asked.schedule == "stream", asked.global_stats or asked.schedule == "stream"
        field = info.local_field if statistics and info.global_operations else info.receptive_field
        if (field is not None or (streams and asked.boundary == "native")) and None not in info.phase:
            found["halo"] = "auto"
        else:
            warnings.warn(f"halo is 32, which is not exact: {why_no_halo(info)}", stacklevel=2)
    return restorer.with_options(dataclasses.replace(restorer.options, **found))
