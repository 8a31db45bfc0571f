# SPDX-License-Identifier: MIT
"""The command line: ``halotile restore``, ``plan``, ``inspect``, ``selftest``, ``--version``.

Exit status: 0, 1 if something failed, 2 if the command line is wrong, 130 after Ctrl-C. Errors are one line; the
environment variable HALOTILE_DEBUG=1 adds the traceback. torch and pyvips are imported when they are needed.
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
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import numpy as np

from . import __version__, _core, files
from .loading import load_model
from .options import ALPHAS, BLENDS, BOUNDARIES, ENGINES, GLOBAL_STATS, MODEL_DTYPES, NONFINITE, Options
from .plan import TilePlan, plan_tiles
from .restore import TiledRestorer

__all__ = ["main"]

DESCRIPTION = "Restores images too large for their model, tile by tile."
BIT_DTYPES = {8: "uint8", 16: "uint16"}

MODEL_HELP = (
    "a TorchScript file, a torch.export file (.pt2), module:callable (used as it is) or module:factory() (called "
    "first); modules are also looked for in the current directory. TorchScript files and modules are code: run only "
    "what you trust"
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
            if os.environ.get("HALOTILE_DEBUG") == "1":
                raise
            print(f"halotile: error: {_one_line(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"halotile: warning: {' '.join(str(message).split())}", file=sys.stderr)


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


def _restore(asked: argparse.Namespace) -> None:
    """Everything that can be checked is checked before the model runs; the output's size and channels, which the first
    tiles tell, as soon as those are done."""
    options = _options(asked)
    out_dtype = BIT_DTYPES.get(asked.bits)
    with _usage_errors():
        kind = files.check_output_path(asked.output, dtype=out_dtype)
    if os.path.exists(asked.output) and not asked.force:
        raise UsageError(f"{asked.output} exists; --force overwrites it")
    picture = files.read_image(asked.input, max_pixels=asked.max_pixels)
    image = picture.pixels
    if out_dtype is None and image.dtype.name not in kind.dtypes:
        raise UsageError(f"{asked.output}: {kind.name} cannot hold {image.dtype}; choose --bits, or write TIFF")
    if asked.alpha != "channel":
        with _usage_errors():
            files.check_output_path(asked.output, (1, 1, *image.shape[2:]))
    model = _prepared_model(asked, image.shape[:2], options)

    started = time.monotonic()
    bar = sys.stderr.isatty() and not asked.quiet and importlib.util.find_spec("tqdm") is not None
    restorer = TiledRestorer(model, **options | {"verify": 0}, out_dtype=out_dtype, progress=bar)
    result = _collect(restorer.iter_bands(image), image.shape[0], image.shape[1], asked.output)
    files.write_image(asked.output, result, like=picture, quality=asked.quality, compression=asked.compression)
    if not asked.quiet:
        sizes = f"{_size(image.shape)} -> {_size(result.shape)}"
        print(f"{asked.output}: {sizes}, {result.dtype}, {time.monotonic() - started:.1f} s")
        if restorer.last_run.model is not None:
            print(restorer.last_run)
    if asked.verify:
        from .verification import verify

        print(verify(image, restorer, result, windows=asked.verify))


def _prepared_model(asked: argparse.Namespace, size: tuple[int, int], options: dict[str, Any]) -> Any:
    plan = None if Options(**options).asks_model else _plan(size, options)
    model = load_model(asked.model)
    if plan is not None and hasattr(model, "check_plan"):
        model.check_plan(plan.window, plan.halo, asked.boundary)
    if asked.channels_last:
        if not hasattr(model, "to"):
            raise UsageError(f"--channels-last needs a torch module, and {asked.model} is a {type(model).__name__}")
        import torch

        model = model.to(memory_format=torch.channels_last)
    return model


def _collect(bands: Iterator[tuple[int, np.ndarray]], height: int, width: int, path: str) -> np.ndarray:
    """The bands as one array. Its shape follows from the first, and whether the file can hold it is checked then."""
    result, done = np.empty(0), 0
    for y, rows in bands:
        if y == 0:
            most = -(-height * rows.shape[1] // width)  # one more than there are, for some fractional scales
            files.check_output_path(path, (most, *rows.shape[1:]), rows.dtype)
            result = np.empty((most, *rows.shape[1:]), rows.dtype)
        done = y + len(rows)
        result[y:done] = rows
    return result[:done]


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
        for package in ("numpy", "torch", "pyvips", "tqdm"):
            try:
                print(package, importlib.metadata.version(package))
            except importlib.metadata.PackageNotFoundError:
                print(package, "not installed")
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
    _add_restore(commands.add_parser("restore", help="restore an image file", allow_abbrev=False))
    _add_plan(commands.add_parser("plan", help="show the tiles and the memory that a run takes", allow_abbrev=False))
    _add_inspect(commands.add_parser("inspect", help="what does a model need? halo, phase, scale", allow_abbrev=False))
    _add_selftest(commands.add_parser("selftest", help="is the device right? prints a report", allow_abbrev=False))
    return parser


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_restore)
    add = parser.add_argument
    add("input", metavar="INPUT", help="PNG, JPEG, WebP or TIFF file")
    add("-o", "--output", required=True, metavar="FILE", help=f"what to write: {', '.join(files.BY_SUFFIX)}")
    add("-m", "--model", required=True, help=MODEL_HELP)
    _add_tiling(parser)
    add = parser.add_argument_group("model").add_argument
    add("--device", help="cpu, cuda, mps, ... (default: where the model is)")
    add("--engine", choices=ENGINES, help="who cuts and assembles (default: what fits the device)")
    add("--channels-last", action="store_true", help="store its weights channels-last: often faster on a CPU")
    add("--value-range", type=float, nargs=2, metavar=("LO", "HI"), help="its black and white (default: 0 1)")
    add("--global-stats", choices=GLOBAL_STATS, help="where it pools or normalises over the whole image")
    add("--tolerance", type=float, metavar="X", help="for --halo auto and --verify (default: half an 8-bit step)")
    add("--alpha", choices=ALPHAS, default="restore", help="what becomes of an alpha channel (default: restore)")
    add("--on-nonfinite", choices=NONFINITE, default="raise", help="at NaN or infinity (default: raise)")
    add = parser.add_argument_group("files").add_argument
    add("--quality", type=_number(1, 100), default=95, metavar="N", help="of JPEG and WebP, 1 to 100 (default: 95)")
    add("--compression", type=_number(0, 9), default=6, metavar="N", help="of PNG and TIFF, 0 to 9 (default: 6)")
    add("--max-pixels", type=_number(1), default=files.MAX_PIXELS, metavar="N", help="of the input (default: 2**28)")
    add("--force", action="store_true", help="overwrite an existing output")
    add("--verify", type=_number(0), default=0, metavar="K", help="make K places again with a larger halo, compare")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_print_plan)
    add = parser.add_argument
    add("image", metavar="WIDTHxHEIGHT|FILE", help="size of an image, or an image file")
    add("--channels", type=_number(1), metavar="N", help="channels of the image (default: the file's, or 3)")
    _add_tiling(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_inspect)
    add = parser.add_argument
    add("-m", "--model", required=True, help=MODEL_HELP)
    add("--device", help="cpu, cuda, mps, ... (default: where the model is)")
    add("--dtype", choices=MODEL_DTYPES, help="number type of the model (default: its own)")
    add("--json", action="store_true", help="print JSON")
    add("--image", metavar="FILE", help="an image: also print how far halos are from exact there")


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_selftest)
    parser.add_argument("--device", help="mps, cuda, cpu, ... (default: mps, else cpu)")


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("tiling, in input pixels").add_argument
    add("--tile-size", type=_or("auto"), default=512, metavar="N", help="largest tile, or auto (default: 512)")
    add("--halo", type=_or("exact", "auto"), default=32, metavar="N", help="context: N, exact or auto (default: 32)")
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help="what neighbours share (default: auto)")
    add("--blend", choices=BLENDS, default="average", help="how shared pixels are weighted (default: average)")
    add("--boundary", choices=BOUNDARIES, default="reflect", help="what lies beyond the image (default: reflect)")
    add("--phase", type=_phase, default=1, metavar="N", help="multiple that windows keep, or auto (default: 1)")
    add("--scale", metavar="S", help="output pixels per input pixel: 4, 3/2 (default: restore finds it, plan takes 1)")
    add("--batch-size", type=int, default=1, metavar="N", help="windows per call of the model (default: 1)")
    add("--dtype", choices=MODEL_DTYPES, help="number type of the model (default: its own)")
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
