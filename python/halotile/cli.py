# SPDX-License-Identifier: MIT
"""The command line: ``halotile restore``, ``compare``, ``plan``, ``inspect``, ``models``, ``selftest``, ``--version``.

Exit status: 0, 1 if something failed, 2 if the command line is wrong, 130 after Ctrl-C. Errors are one line; the
environment variable HALOTILE_DEBUG=1 adds the traceback. Of several files one that fails stops no other. torch and
pyvips are imported when they are needed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NoReturn

from . import __version__, _core, batch, catalog, files, sinks
from .images import peak_of, torch_if_loaded
from .loading import load_model
from .needs import needs_of
from .options import ALPHAS, BLENDS, BOUNDARIES, ENGINES, GLOBAL_STATS, MODEL_DTYPES, NONFINITE, Options
from .plan import TilePlan, plan_tiles
from .restore import TiledRestorer

__all__ = ["main"]

DESCRIPTION = "Restores images too large for their model, tile by tile."
BIT_DTYPES = {8: "uint8", 16: "uint16"}

FORMATS = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp", "npy": ".npy", "zarr": ".zarr"}
READERS = (
    ("torch.export (.pt2), TorchScript (.pt), ncnn (.param and .bin)", "torch"),
    ("checkpoints (.pth, .pt, .ckpt, .safetensors)", "spandrel"),
    ("checkpoints (.safetensors)", "safetensors"),
    ("ONNX (.onnx)", "onnxruntime"),
)
NAMED = 10  # of the files that failed, in the summary

MODEL_HELP = (
    "a file (checkpoint, ONNX, ncnn .param, torch.export .pt2, TorchScript), a name that `halotile models` lists, "
    "module:callable (used as it is) or module:factory() (called first); modules are also looked for in the current "
    "directory. Modules, .pt2 and TorchScript files are code: run only what you trust"
)


class UsageError(Exception):
    """The command line is wrong: exit status 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, sys.argv's by default. Returns the exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
        try:
            asked = _parser().parse_args(arguments)
            return asked.run(asked) or 0
        except KeyboardInterrupt:
            print("halotile: interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if _debugging():
                raise
            print(f"halotile: error: {_one_line(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"halotile: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _debugging() -> bool:
    return os.environ.get("HALOTILE_DEBUG") == "1"


def _shown(path: str) -> str:
    """A path that any terminal can print: bytes that are no text as \\x.."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"out of memory: {text}" if text else "out of memory"
    return text or type(error).__name__


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What is wrong with a value in here is wrong with the command line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


# ---- restore ---------------------------------------------------------------------------------------------------------


def _restore(asked: argparse.Namespace) -> int:
    """Everything that can be checked is checked before the model runs; the output's size and channels, which the first
    tiles tell, as soon as those are done."""
    options = _options(asked)
    if asked.force and asked.skip_existing:
        raise UsageError("--force and --skip-existing exclude each other")
    if asked.strength is not None and asked.model is not None:
        raise UsageError(f"--strength is for the model that comes with halotile, and --model says {asked.model}")
    alone = _is_alone(asked)
    work = _work(asked, alone)
    todo, skipped = _split(asked, work, alone)
    if alone and todo:
        _check_alone(asked, todo[0], options)
    reports = _Reports(asked, alone, work)
    reports.outcomes += [batch.Outcome(job, "skipped") for job in skipped]
    try:
        if todo:
            _restore_all(asked, options, todo, reports)
    except KeyboardInterrupt:
        reports.end(interrupted=True)
        raise
    reports.end()
    return 1 if reports.count("failed") else 0


def _is_alone(asked: argparse.Namespace) -> bool:
    """Whether one file is to become one file that was named; else all go into a folder."""
    into_folder = os.path.isdir(asked.output) and not _has_suffix(asked.output)
    return len(asked.inputs) == 1 and not (os.path.isdir(asked.inputs[0]) or asked.output.endswith("/") or into_folder)


def _has_suffix(path: str) -> bool:
    return batch.suffix_of(path) in sinks.FORMATS


def _work(asked: argparse.Namespace, alone: bool) -> batch.Work:
    if alone:
        kinds = {sinks.FORMATS.get(suffix) for suffix in (batch.suffix_of(asked.output), FORMATS.get(asked.format))}
        if asked.format and len(kinds) > 1:
            raise UsageError(f"--format {asked.format} is not what {asked.output} says; leave one out")
        return batch.Work((batch.Job(asked.inputs[0], asked.output),), 0)
    is_folder = os.path.isdir(asked.output) and batch.suffix_of(asked.output) != ".zarr"
    if not is_folder and (os.path.lexists(asked.output) or _has_suffix(asked.output)):
        raise UsageError(f"-o must be a folder for several inputs or a folder, not {asked.output}")
    batch.check_folder(asked.output)
    work = batch.find_work(asked.inputs, asked.output, FORMATS.get(asked.format))
    if not work.jobs:
        others = f"; {work.ignored} other files" if work.ignored else ""
        raise UsageError(f"{', '.join(map(_shown, asked.inputs))}: no image files there{others}")
    return work


def _split(asked: argparse.Namespace, work: batch.Work, alone: bool) -> tuple[list[batch.Job], list[batch.Job]]:
    """(to do, to skip). A file that is named twice, with --force, is overwritten; one of many never."""
    with _usage_errors():
        if not alone:
            return batch.split_existing(work.jobs, force=asked.force, skip=asked.skip_existing)
        sinks.check_output(asked.output, dtype=BIT_DTYPES.get(asked.bits))
    exists = os.path.exists(asked.output)
    if exists and not (asked.force or asked.skip_existing):
        raise UsageError(f"{asked.output} exists; --force overwrites it")
    jobs = list(work.jobs)
    return ([], jobs) if exists and asked.skip_existing else (jobs, [])


def _check_alone(asked: argparse.Namespace, job: batch.Job, options: dict[str, Any]) -> None:
    header = files.read_header(job.input, max_pixels=asked.max_pixels, page=asked.page)
    with _usage_errors():
        batch.check_holds(job.output, header, out_dtype=BIT_DTYPES.get(asked.bits), alpha=asked.alpha)
    if not Options(**options).asks_model:
        _plan(header.shape[:2], options)


def _restore_all(asked: argparse.Namespace, options: dict[str, Any], todo: list[batch.Job], reports: _Reports) -> None:
    """One restorer for all: its model is opened and inspected once."""
    many = _shows_progress(asked) and not reports.alone
    pixels = [_pixels_of(asked, job) if many else 0 for job in todo]
    restorer = _restorer(asked, options)
    with closing(batch.Bar(sum(pixels), many)) as bar:
        reports.bar = bar
        restorer = restorer.like(dataclasses.replace(restorer.options, progress=bar)) if many else restorer
        one = batch.FileRestorer(
            restorer,
            page=asked.page,
            max_pixels=asked.max_pixels,
            quality=asked.quality,
            compression=asked.compression,
            verify=asked.verify,
        )
        for index, job in enumerate(todo):
            reports.add(_outcome(asked, one, job, reports))
            bar.end_file(pixels[index], sum(pixels[:index]))


def _pixels_of(asked: argparse.Namespace, job: batch.Job) -> int:
    """For the progress bar: of a file that cannot be read, which is said when its turn comes, none."""
    with suppress(OSError, ValueError):
        header = files.read_header(job.input, max_pixels=asked.max_pixels, page=asked.page)
        return header.shape[0] * header.shape[1] * header.pages
    return 0


def _outcome(asked: argparse.Namespace, one: batch.FileRestorer, job: batch.Job, reports: _Reports) -> batch.Outcome:
    started = time.monotonic()
    try:
        return one(job, force=asked.force, bar=reports.bar)
    except Exception as error:
        if reports.alone and (not asked.json or _debugging()):
            raise
        if _debugging():
            traceback.print_exc()
        text = _one_line(error)
        if not text.startswith((f"{job.input}:", f"{job.output}:")):
            text = f"{job.input}: {text}"
        return batch.Outcome(job, "failed", seconds=time.monotonic() - started, error=text)


# ---- the restorer


def _restorer(asked: argparse.Namespace, options: dict[str, Any]) -> TiledRestorer:
    model = load_model(asked.model, strength=asked.strength)
    if asked.channels_last:
        if not hasattr(model, "to"):
            raise UsageError(f"--channels-last needs a torch module, and {asked.model} is a {type(model).__name__}")
        import torch

        model = model.to(memory_format=torch.channels_last)
    if asked.half:
        options = options | {"dtype": _half(model, asked.device)}
    options = options | {"verify": 0, "out_dtype": BIT_DTYPES.get(asked.bits), "progress": _shows_progress(asked)}
    with _usage_errors():
        needs_of(model).check(None, asked.verify)
        restorer = TiledRestorer(model, **options)
    return _settled(asked, restorer)


def _shows_progress(asked: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not asked.quiet and importlib.util.find_spec("tqdm") is not None


def _half(model: Any, device: str | None) -> str:
    """float16; bfloat16 for a network on a CPU, which is slow at float16 or lacks it."""
    if not _is_network(model):
        return "float16"
    first = next(model.parameters(), None)
    where = device or ("cpu" if first is None else str(first.device))
    return "bfloat16" if where.startswith("cpu") else "float16"


def _is_network(model: Any) -> bool:
    torch = torch_if_loaded()
    return torch is not None and isinstance(model, torch.nn.Module)


def _settled(asked: argparse.Namespace, restorer: TiledRestorer) -> TiledRestorer:
    """The restorer with what --halo and --phase are where they were not given: for a network auto, as far as it can be
    understood; for others, which would have to be run many times, 32 and 1."""
    missing = {"halo", "phase"} - vars(asked).keys()
    if not missing or not _is_network(restorer.model):
        return restorer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is tried; doubts are in what it returns
            info = restorer.inspected()
    except Exception as error:
        warnings.warn(f"the model could not be inspected, halo and phase are 32 and 1: {error}", stacklevel=2)
        return restorer
    found: dict[str, Any] = {}
    if "phase" in missing:
        found["phase"] = tuple(step or 1 for step in info.phase)
    if "halo" in missing:
        field = info.local_field if asked.global_stats and info.global_operations else info.receptive_field
        if field is not None and None not in info.phase:
            found["halo"] = "auto"
        else:
            warnings.warn(f"halo is 32, which is not exact: {_why_unknown(info)}", stacklevel=2)
    return restorer.like(dataclasses.replace(restorer.options, **found))


def _why_unknown(info: Any) -> str:
    names = ", ".join(one.path or "the model" for one in info.global_operations)
    if names:
        return f"the model looks at the whole image in {names}; see --global-stats"
    return "the model's receptive field was not found. " + " ".join(info.doubts)


# ---- what is said of files


class _Reports:
    """Lines as files are done, or one JSON document at the end."""

    def __init__(self, asked: argparse.Namespace, alone: bool, work: batch.Work):
        self.asked, self.alone, self.work = asked, alone, work
        self.outcomes: list[batch.Outcome] = []
        self.bar = batch.Bar(0, wanted=False)
        self.started = time.monotonic()
        self._said = ""
        self._talks = not (asked.quiet or asked.json)

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def add(self, outcome: batch.Outcome) -> None:
        self.outcomes.append(outcome)
        if outcome.error is not None:
            self.bar.say(f"halotile: error: {outcome.error}", sys.stderr)
        elif self._talks:
            for line in self._lines(outcome):
                self.bar.say(line, sys.stdout)

    def _lines(self, outcome: batch.Outcome) -> Iterator[str]:
        sizes = f"{_size(outcome.input_shape)} -> {_size(outcome.output_shape)}"
        pages = f", {outcome.pages} pages" if outcome.pages > 1 else ""
        yield f"{_shown(outcome.job.output)}: {sizes}{pages}, {outcome.dtype}, {outcome.seconds:.1f} s"
        if outcome.run.model is not None and str(outcome.run) != self._said:
            self._said = str(outcome.run)  # once for all files that have it in common
            yield self._said
        if outcome.verified is not None:
            yield str(outcome.verified)

    def end(self, interrupted: bool = False) -> None:
        if self.asked.json:
            print(json.dumps(self._document(interrupted), indent=1, allow_nan=False))
        elif self.alone:
            if self._talks and self.count("skipped"):
                print(f"{_shown(self.asked.output)} exists, skipped")
        elif self._talks:
            print(self._summary())
        failed = [outcome.job.input for outcome in self.outcomes if outcome.error is not None]
        if failed and not self.alone:
            names = ", ".join(failed[:NAMED]) + (f" and {len(failed) - NAMED} more" if len(failed) > NAMED else "")
            print(f"halotile: {len(failed)} of {len(self.work.jobs)} files failed: {names}", file=sys.stderr)

    def _summary(self) -> str:
        text = f"restored {self.count('restored')} of {len(self.work.jobs)} files"
        for status in ("skipped", "failed"):
            text += f", {self.count(status)} {status}" if self.count(status) else ""
        text += f", {self.work.ignored} other files ignored" if self.work.ignored else ""
        return f"{text}, {time.monotonic() - self.started:.1f} s"

    def _document(self, interrupted: bool) -> dict[str, Any]:
        counts = {status: self.count(status) for status in ("restored", "skipped", "failed")}
        totals = {"files": len(self.work.jobs), **counts, "ignored": self.work.ignored}
        return {
            "version": __version__,
            "model": self.asked.model,
            "files": [outcome.as_json() for outcome in self.outcomes],
            "totals": totals
            | {"seconds": round(time.monotonic() - self.started, 3), "peak_memory_bytes": batch.peak_memory()},
            "interrupted": interrupted,
        }


# ---- compare ---------------------------------------------------------------------------------------------------------


def _compare(asked: argparse.Namespace) -> int:
    from . import metrics

    if asked.heatmap:
        with _usage_errors():
            files.check_output_path(asked.heatmap, dtype="uint8")
        if os.path.exists(asked.heatmap) and not asked.force:
            raise UsageError(f"{asked.heatmap} exists; --force overwrites it")
    pictures = [files.read_image(path, max_pixels=asked.max_pixels).pixels for path in (asked.a, asked.b)]
    first, second, white = _comparable(asked, *pictures)
    plan = _compared_plan(asked, second.shape[:2])
    found = metrics.compare(first, second, white=white, plan=plan)
    if asked.heatmap:
        picture, scale = metrics.heatmap(first, second)
        files.write_image(asked.heatmap, picture)
    if asked.json:
        content = found.as_json() | {"a": asked.a, "b": asked.b, "size": [second.shape[1], second.shape[0]]}
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        print(found)
        if asked.heatmap:
            print(f"{_shown(asked.heatmap)}: differences from 0 (dark blue) to {scale:g} of {white:g} (yellow)")
    return 1 if asked.fail_below is not None and not found.psnr >= asked.fail_below else 0


def _comparable(asked: argparse.Namespace, first: Any, second: Any) -> tuple[Any, Any, float]:
    """The pixels and what is white; of files of several depths as floats."""
    if first.shape != second.shape:
        of = [
            f"{path} is {_size(image.shape)} with {(*image.shape, 1)[2]} channels"
            for path, image in ((asked.a, first), (asked.b, second))
        ]
        raise ValueError(f"{of[0]}, {of[1]}: they must agree")
    whites = [peak_of(image.dtype.name) for image in (first, second)]
    if first.dtype == second.dtype:
        return first, second, whites[0]
    return first / whites[0], second / whites[1], 1


def _compared_plan(asked: argparse.Namespace, size: tuple[int, int]) -> TilePlan | None:
    if asked.tile_size is None:
        return None
    options = {name: getattr(asked, name) for name in ("tile_size", "halo", "overlap", "phase", "boundary", "scale")}
    with _usage_errors():
        scale = Options(scale=asked.scale or 1).scale
        plan = plan_tiles([round(side / scale) for side in size], **options)
    if plan.output_size != size:
        raise UsageError(f"--scale {asked.scale}: no image becomes {_size(size)} by it")
    return plan


# ---- plan ------------------------------------------------------------------------------------------------------------


def _print_plan(asked: argparse.Namespace) -> None:
    options = _options(asked)
    size, channels, dtype = _planned_image(asked)
    plan = _plan(size, options)
    out_dtype = BIT_DTYPES.get(asked.bits, dtype)
    dtypes: dict[str, Any] = {"dtype": dtype, "out_dtype": out_dtype, "model_dtype": asked.dtype or "float32"}
    memory = plan.estimate_bytes(channels=channels, batch_size=asked.batch_size, **dtypes)
    ratio = plan.processed_pixels / plan.ideal_pixels
    rows = [
        ("image", f"{_size(plan.image_size)}, {channels} channels, {dtype}"),
        ("output", f"{_size(plan.output_size)}, scale {plan.scale}, {out_dtype}"),
        ("tiles", f"{len(plan)} in a grid of {_size(plan.grid)}"),
        ("tile", _size(plan.tile)),
        ("window", f"{_size(plan.window)}, batches of {plan.batch(asked.batch_size)}"),
        ("halo", _size(plan.halo)),
        ("overlap", _size(plan.overlap)),
        ("phase", _size(plan.phase)),
        ("processed", f"{_megapixels(plan.processed_pixels)} for {_megapixels(plan.ideal_pixels)}: {ratio:.2f} times"),
        *((f"memory: {part}", _bytes(count)) for part, count in memory.items()),
    ]
    print("sizes are width x height, in pixels; memory is without the model's own")
    for name, value in rows:
        print(f"{name:<21}{value}")


def _planned_image(asked: argparse.Namespace) -> tuple[tuple[int, int], int, str]:
    """(height, width), channels and dtype of WIDTHxHEIGHT or of an image file."""
    match = re.fullmatch(r"(\d+)x(\d+)", asked.image)
    if match and not os.path.exists(asked.image):
        return (int(match[2]), int(match[1])), asked.channels or 3, "uint8"
    shape, dtype = files.read_shape(asked.image)
    return (shape[0], shape[1]), asked.channels or (*shape, 1)[2], dtype


def _plan(size: tuple[int, int], options: dict[str, Any]) -> TilePlan:
    with _usage_errors():
        return plan_tiles(size, **options)


def _size(shape: Any) -> str:
    """Width x height of a (height, width, ...) shape: files, screens and command lines give the width first."""
    return f"{shape[1]}x{shape[0]}"


def _megapixels(count: int) -> str:
    return f"{count / 1e6:.2f} megapixels"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# ---- inspect ---------------------------------------------------------------------------------------------------------


def _inspect(asked: argparse.Namespace) -> None:
    from .inspection import inspect_model

    picture = files.read_image(asked.image) if asked.image else None
    model = load_model(asked.model)
    info = inspect_model(model, device=asked.device, dtype=asked.dtype)
    if picture is None:
        print(info.to_json() if asked.json else info)
        return
    from .curve import error_curve

    curve = error_curve(model, picture.pixels, device=asked.device, dtype=asked.dtype)
    both = json.loads(info.to_json()) | {"error_curve": dataclasses.asdict(curve)}
    print(json.dumps(both, indent=1) if asked.json else f"{info}\n\n{curve}")


# ---- models ----------------------------------------------------------------------------------------------------------


def _models(asked: argparse.Namespace) -> None:
    comes = importlib.util.find_spec("halotile.embedded") is not None
    rows = [
        ("name", "what", "licence", "installed"),
        ("(none)", "the model that comes with halotile, taken without --model", "MIT", "yes" if comes else "no"),
        *((name, what, licence, "yes" if there else "no") for name, what, licence, there in catalog.listed()),
    ]
    _print_table(rows)
    print("\nfiles of models, and what reads them")
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


def _selftest(asked: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise UsageError("selftest needs torch: pip install 'halotile[torch]'")
    from .report import checked_device, report

    with _usage_errors():
        device = checked_device(asked.device)
    return 0 if report(device, lambda line: print(line, flush=True)) else 1


# ---- versions --------------------------------------------------------------------------------------------------------


class _Versions(argparse.Action):
    """--version: what matters in a bug report, found out only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        print(f"halotile {__version__} ({_core.rows_name()} row kernels)")
        print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
        for package in ("numpy", "torch", "pyvips", "zarr", "tqdm", "spandrel", "onnxruntime", "scikit-image"):
            print(package, _version(package))
        print(f"engines: {', '.join(ENGINES)}")
        parser.exit()


# ---- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"halotile: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="halotile", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Versions, nargs=0, help="show versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_restore(commands.add_parser("restore", help="restore image files, or folders of them", allow_abbrev=False))
    _add_compare(commands.add_parser("compare", help="how far are two images apart?", allow_abbrev=False))
    _add_plan(commands.add_parser("plan", help="show the tiles and the memory that a run takes", allow_abbrev=False))
    _add_inspect(commands.add_parser("inspect", help="what does a model need? halo, phase, scale", allow_abbrev=False))
    _add_models(commands.add_parser("models", help="the models that come by name", allow_abbrev=False))
    _add_selftest(commands.add_parser("selftest", help="is the device right? prints a report", allow_abbrev=False))
    return parser


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_restore)
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="PNG, JPEG, WebP or TIFF file, or a folder: all such files below it")
    suffixes = ", ".join(sinks.FORMATS)
    add("-o", "--output", required=True, metavar="FILE|FOLDER", help=f"what to write: {suffixes}, or a folder of them")
    add("-m", "--model", help=f"{MODEL_HELP} (default: the one that comes with halotile)")
    _add_tiling(parser, finds_out=True)
    add = parser.add_argument_group("model").add_argument
    add("--device", help="cpu, cuda, mps, ... (default: where the model is)")
    add("--engine", choices=ENGINES, help="who cuts and assembles (default: what fits the device)")
    add(
        "--strength",
        type=_share,
        metavar="X",
        help="how much the model that comes with halotile changes, 0 to 1",
    )
    add("--channels-last", action="store_true", help="store its weights channels-last: often faster on a CPU")
    add("--value-range", type=float, nargs=2, metavar=("LO", "HI"), help="its black and white (default: 0 1)")
    add("--global-stats", choices=GLOBAL_STATS, help="where it pools or normalises over the whole image")
    add("--tolerance", type=float, metavar="X", help="for --halo auto and --verify (default: half an 8-bit step)")
    add("--alpha", choices=ALPHAS, default="restore", help="what becomes of an alpha channel (default: restore)")
    add("--on-nonfinite", choices=NONFINITE, default="raise", help="at NaN or infinity (default: raise)")
    add = parser.add_argument_group("files").add_argument
    add("--quality", type=_number(1, 100), default=95, metavar="N", help="of JPEG and WebP, 1 to 100 (default: 95)")
    add("--compression", type=_number(0, 9), default=6, metavar="N", help="of PNG and TIFF, 0 to 9 (default: 6)")
    _add_max_pixels(add)
    add("--page", type=_number(1), metavar="N", help="of TIFFs with several pages, from 1 on (default: all)")
    add("--format", choices=FORMATS, help="of what goes into a folder (default: each file's own)")
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--skip-existing", action="store_true", help="leave existing outputs alone, and go on with the others")
    add("--json", action="store_true", help="print nothing but one JSON document at the end")
    add("--verify", type=_number(0), default=0, metavar="K", help="make K places again with a larger halo, compare")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_max_pixels(add: Callable[..., Any]) -> None:
    add("--max-pixels", type=_number(1), default=files.MAX_PIXELS, metavar="N", help="of the input (default: 2**28)")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_compare)
    add = parser.add_argument
    add("a", metavar="A", help="an image file: what should be")
    add("b", metavar="B", help="an image file of the same size: what is")
    add("--json", action="store_true", help="print JSON")
    add("--heatmap", metavar="FILE", help="write a picture of the differences")
    add("--force", action="store_true", help="overwrite an existing one")
    add("--fail-below", type=float, metavar="PSNR", help="exit with status 1 if the PSNR is below")
    _add_max_pixels(add)
    add = parser.add_argument_group("how B was made, in input pixels: also compares at tile edges").add_argument
    add("--tile-size", "--tile", type=int, metavar="N", help="largest tile")
    add("--halo", type=int, default=32, metavar="N", help="context (default: 32)")
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help="what neighbours share (default: auto)")
    add("--boundary", choices=BOUNDARIES, default="reflect", help="what lies beyond the image (default: reflect)")
    add("--phase", type=int, default=1, metavar="N", help="multiple that windows keep (default: 1)")
    add("--scale", default="1", metavar="S", help="output pixels per input pixel: 4, 3/2 (default: 1)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_models)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_print_plan)
    add = parser.add_argument
    add("image", metavar="WIDTHxHEIGHT|FILE", help="size of an image, or an image file")
    add("--channels", type=_number(1), metavar="N", help="channels of the image (default: the file's, or 3)")
    _add_tiling(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_inspect)
    add = parser.add_argument
    add("-m", "--model", help=f"{MODEL_HELP} (default: the one that comes with halotile)")
    add("--device", help="cpu, cuda, mps, ... (default: where the model is)")
    add("--dtype", choices=MODEL_DTYPES, help="number type of the model (default: its own)")
    add("--json", action="store_true", help="print JSON")
    add("--image", metavar="FILE", help="an image: also print how far halos are from exact there")


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_selftest)
    parser.add_argument("--device", help="mps, cuda, cpu, ... (default: mps, else cpu)")


def _add_tiling(parser: argparse.ArgumentParser, finds_out: bool = False) -> None:
    """finds_out: halo and phase are not set unless they are given."""
    halo, phase = (argparse.SUPPRESS, argparse.SUPPRESS) if finds_out else (32, 1)
    halo_default, phase_default = ("auto for networks in torch, else 32", "likewise, else 1") if finds_out else (32, 1)
    group = parser.add_argument_group("tiling, in input pixels")
    add = group.add_argument
    add(
        "--tile-size", "--tile", type=_or("auto"), default=512, metavar="N", help="largest tile, or auto (default: 512)"
    )
    text = f"context: N, exact or auto (default: {halo_default})"
    add("--halo", type=_or("exact", "auto"), default=halo, metavar="N", help=text)
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help="what neighbours share (default: auto)")
    add("--blend", choices=BLENDS, default="average", help="how shared pixels are weighted (default: average)")
    add("--boundary", choices=BOUNDARIES, default="reflect", help="what lies beyond the image (default: reflect)")
    text = f"multiple that windows keep, or auto (default: {phase_default})"
    add("--phase", type=_phase, default=phase, metavar="N", help=text)
    add("--scale", metavar="S", help="output pixels per input pixel: 4, 3/2 (default: restore finds it, plan takes 1)")
    add("--batch-size", type=int, default=1, metavar="N", help="windows per call of the model (default: 1)")
    either = group.add_mutually_exclusive_group().add_argument
    either("--dtype", choices=MODEL_DTYPES, help="number type of the model (default: its own)")
    if finds_out:
        either("--half", action="store_true", help="--dtype float16; bfloat16 for a network on a CPU")
    add("--bits", type=int, choices=BIT_DTYPES, help="per channel of the output (default: the input's)")


def _or(*words: str) -> Callable[[str], int | str]:
    def number_or_word(text: str) -> int | str:
        if text not in words and not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise argparse.ArgumentTypeError(f"must be {', '.join(words)} or a whole number, not {text!r}")
        return text if text in words else int(text)

    return number_or_word


def _phase(text: str) -> int | None:
    phase = _or("auto")(text)
    return None if phase == "auto" else int(phase)


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")


def _number(low: int, high: int = 2**62) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return number


def _options(asked: argparse.Namespace) -> dict[str, Any]:
    """Those of the arguments that are options of `restore_tiled`, checked."""
    names = {field.name for field in dataclasses.fields(Options)}
    options = {name: value for name, value in vars(asked).items() if name in names}
    with _usage_errors():
        Options(**options)
    return options
