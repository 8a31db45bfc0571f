# SPDX-License-Identifier: MIT
"""The arguments of each command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..files.formats import FORMATS
from ..files.vips import MAX_PIXELS
from ..models.devices import BEST
from ..options import (
    ALPHAS,
    BLENDS,
    BOUNDARIES,
    ENGINES,
    GLOBAL_STATS,
    MEMORY_FORMATS,
    MODEL_DTYPES,
    NONFINITE,
    SCHEDULES,
)
from . import commands
from .common import BIT_DTYPES, SUFFIXES
from .evaluate import evaluate
from .plan import show_plan
from .restore import restore
from .saving import colour, factor, sides

__all__ = ["add_arguments"]

MODEL_HELP = (
    "a file (checkpoint, ONNX, ncnn .param, torch.export .pt2, TorchScript), a name that `halotile models` lists, "
    "module:callable (used as it is) or module:factory() (called first); modules are also searched for in the current "
    "directory. Modules, .pt2 and TorchScript files are code: run only what you trust"
)
STATS_SIZE_HELP = (
    "for --global-stats local: window of each statistic in pixels, or rows x columns: the size of the images that the "
    "model was trained on (default: what the model says)"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def add_arguments(command: str, parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command, and the function that runs it."""
    FILLED[command](parser)


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=restore)
    add = parser.add_argument
    text = "PNG, JPEG, WebP, TIFF or AVIF file, .npy file or .zarr array; or a folder, searched recursively for images"
    add("inputs", metavar="INPUT", nargs="+", help=text)
    suffixes = ", ".join(FORMATS)
    text = f"output: a file ({suffixes}) or a folder (default: name_restored beside each input)"
    add("-o", "--output", metavar="FILE|FOLDER", help=text)
    add("-m", "--model", help=f"{MODEL_HELP} (default: the included model)")
    _add_tiling(parser, asks_model=True)
    _add_speed(parser)
    text = "spread each image over the workers of a Dask cluster: the address of its scheduler, or local, for "
    text += "processes on this machine; outputs are .zarr (see docs/cluster.md)"
    add("--cluster", metavar="ADDRESS|local", help=text)
    _add_model(parser)
    _add_inexact(parser)
    _add_files(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    text = "cpu, cuda, mps, ..., or several, such as cuda:0,cuda:1; best: mps, cuda, xpu, else cpu, whichever is there "
    text += "first (default: best)"
    add("--device", type=_devices, default=BEST, metavar="DEVICE", help=text)
    add("--engine", choices=ENGINES, help="tiling backend (default: the one for the device)")
    text = "strength of the included model, 0 to 1"
    add("--strength", type=_share, metavar="X", help=text)
    text = "which of the model's outputs is the image: its index or name"
    add("--model-output", type=_key, metavar="KEY", help=text)
    text = "further input of the model: a number, or NAME=NUMBER; may be repeated"
    add("--extra", type=_further, action="append", metavar="[NAME=]X", help=text)
    text = "values the model uses for black and white (default: 0 1)"
    add("--value-range", type=float, nargs=2, metavar=("LO", "HI"), help=text)
    text = "value of white in the images: a number, bits such as 12bit (4095), or max (default: the dtype's)"
    add("--white", type=_white, metavar="W", help=text)
    text = "value of pixels without data, which are filled for the model and put back: a number, or nan"
    add("--nodata", type=_white, metavar="V", help=text)
    text = "how to handle pooling and normalisation over the whole image (default: not at all)"
    add("--global-stats", choices=GLOBAL_STATS, help=text)
    add("--stats-size", type=_size, metavar="N|HxW", help=STATS_SIZE_HELP)
    text = "largest error for --halo auto and --verify (default: half an 8-bit step)"
    add("--tolerance", type=float, metavar="X", help=text)
    text = "alpha: run it through the model, resize it, make it opaque, or treat it as data (default: restore)"
    add("--alpha", choices=ALPHAS, default="restore", help=text)
    text = (
        "what to do if the model returns NaN or Inf; retry: again in float32 what half precision made (default: raise)"
    )
    add("--on-nonfinite", choices=NONFINITE, default="raise", help=text)


def _add_inexact(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models that no halo makes exact").add_argument
    text = "average of K grids of tiles that begin at different places; their spread is reported (default: 1)"
    add("--shift-average", type=_number(1, 64), default=1, metavar="K", help=text)
    text = "tie the colours of tiles to a pass over the image reduced to N pixels, or to about a window"
    add("--match-low", type=_or("auto"), metavar="N|auto", help=text)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    text = "argmax: write the index of the model's largest channel, such as a label of a class, not its channels"
    add("--reduce", choices=("argmax",), help=text)
    text = "quality of JPEG, WebP and AVIF, 1 to 100 (default: 95)"
    add("--quality", type=_number(1, 100), metavar="N", help=text)
    text = "compression level of PNG and TIFF, 0 to 9 (default: 6)"
    add("--compression", type=_number(0, 9), metavar="N", help=text)
    text = "lay pixels with alpha in front of this colour: white, black, grey, #rrggbb or r,g,b"
    add("--background", type=colour, metavar="COLOUR", help=text)
    text = "size of the result in pixels, other than the model's scale gives: 800x600, 800x or x600 (Lanczos)"
    add("--size", type=sides, metavar="WxH", help=text)
    text = "size of the result as a multiple of the input's, whatever the model's scale (Lanczos)"
    add("--outscale", type=factor, metavar="S", help=text)
    add("--strict", action="store_true", help="refuse JPEG files that lack their last bytes (default: a warning)")
    _add_max_pixels(add)
    text = "axes of .npy files and zarr arrays, such as HWC or CYX (default: the usual ones)"
    add("--layout", metavar="AXES", help=text)
    add("--page", type=_number(1), metavar="N", help="page of a TIFF with several pages, counted from 1 (default: all)")
    add("--format", choices=SUFFIXES, help="format of files written into a folder (default: each file's own)")
    add("--force", action="store_true", help="overwrite existing outputs, but never an input")
    add("--skip-existing", action="store_true", help="keep existing outputs, restore the others")
    text = (
        "keep finished rows beside each output, and go on where an earlier run with --resume was stopped; outputs that "
    )
    text += "are complete are left"
    add("--resume", action="store_true", help=text)
    add("--json", action="store_true", help="print only one JSON document, at the end")
    text = "recompute K random windows with a larger halo and compare"
    add("--verify", type=_number(0), default=0, metavar="K", help=text)
    add("--quiet", action="store_true", help="print only warnings and errors")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("speed and memory").add_argument
    text = "tiles; stream: rows flow through a torch module, each row of each layer is made once, and memory does not "
    text += "depend on the height; auto: the cheaper one for --halo exact or auto, else tiles (default: auto)"
    add("--schedule", choices=SCHEDULES, default="auto", help=text)
    text = "memory limit in bytes, such as 700M or 2G (default: none; with --tile-size auto, most of the free memory)"
    add("--memory-limit", type=_bytes, metavar="N", help=text)
    text = "memory format of windows (default: auto, which is channels_last for convolutions on a CPU, "
    text += "and where that is faster on an Apple GPU)"
    add("--memory-format", choices=MEMORY_FORMATS, default="auto", help=text)
    text = "let malloc return freed memory to the system during the run: slower, uses less memory"
    add("--no-keep-heap", dest="keep_heap", action="store_false", help=text)
    add("--compile", action="store_true", help="use torch.compile: costs seconds once, pays off only for many windows")


def _add_max_pixels(add: Callable[..., Any]) -> None:
    text = "largest image file, pixels (default: 2**28)"
    add("--max-pixels", type=_number(1), default=MAX_PIXELS, metavar="N", help=text)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.compare)
    add = parser.add_argument
    add("a", metavar="REFERENCE", help="reference image file, or a folder of them")
    add(
        "b", metavar="TEST", help="image file of the same size, to be compared with it, or a folder with the same names"
    )
    add("--json", action="store_true", help="print JSON")
    text = "value of white: a number, bits such as 12bit (4095), or max, REFERENCE's largest (default: the dtype's)"
    add("--white", type=_white, metavar="W", help=text)
    add("--heatmap", metavar="FILE", help="write a heatmap of the differences")
    add("--force", action="store_true", help="overwrite an existing heatmap")
    _add_scores(parser)
    _add_max_pixels(add)
    add = parser.add_argument_group("tiling used for TEST, in input pixels (adds a seam score)").add_argument
    add("--tile-size", "--tile", type=int, metavar="N", help="largest tile")
    add("--halo", type=int, default=32, metavar="N", help="context around each tile (default: 32)")
    text = "pixels shared by neighbouring tiles (default: auto)"
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help=text)
    text = "padding at the image border: reflection, the model's own, or the opposite edge (default: reflect)"
    add("--boundary", choices=BOUNDARIES, default="reflect", help=text)
    add("--phase", type=int, default=1, metavar="N", help="alignment of window origins (default: 1)")
    text = "output pixels per input pixel, such as 4 or 3/2, or of width x height as in 1x2 (default: 1)"
    add("--scale", type=_scale, default="1", metavar="S", help=text)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=evaluate, verify=0, layout=None)
    add = parser.add_argument
    text = (
        "folder with two folders, of inputs (input, lr, lq, noisy, ...) and of targets (target, hr, gt, clean, ...), "
    )
    text += "or with both kinds of files, such as a_lr.png and a_hr.png; or the folder of inputs, with --targets"
    add("--pairs", metavar="DIR", required=True, help=text)
    add("--targets", metavar="DIR", help="folder of targets; then --pairs is that of inputs")
    add("-m", "--model", help=f"{MODEL_HELP} (default: the included model)")
    _add_scores(parser)
    add("--csv", metavar="FILE", help="write a table")
    add("--junit", metavar="FILE", help="write a JUnit document for CI: a test for each image")
    add("--json", action="store_true", help="print only one JSON document, at the end")
    add("--force", action="store_true", help="overwrite existing files")
    add("--quiet", action="store_true", help="print only warnings, errors, and what is below a limit")
    _add_max_pixels(add)
    _add_tiling(parser, asks_model=True)
    _add_speed(parser)
    _add_model(parser)


def _add_scores(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "measure the Y channel alone (BT.601), as papers on super-resolution do"
    add("--y-channel", action="store_true", help=text)
    text = "pixels at each side that are not measured; scale: as many as the model's scale (default: 0)"
    add("--crop-border", type=_or("scale"), default=0, metavar="N", help=text)
    text = "exit with status 1 if the PSNR of an image is below, and say of which"
    add("--fail-below", type=float, metavar="PSNR", help=text)
    text = "likewise for SSIM, from 0 to 1"
    add("--fail-below-ssim", type=float, metavar="SSIM", help=text)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.show_models)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=show_plan)
    add = parser.add_argument
    add("image", metavar="WIDTHxHEIGHT|FILE", help="image size, or an image file, .npy file or .zarr array")
    add("--channels", type=_number(1), metavar="N", help="channel count of the image (default: the file's, or 3)")
    _add_tiling(parser)
    add = parser.add_argument_group("with a model, which runs on small windows").add_argument
    add("-m", "--model", help=f"compare tiles and a stream for this model: {MODEL_HELP}")
    add("--device", help="cpu, cuda, mps, ... (default: the model's device)")
    text = "how to handle pooling and normalisation over the whole image (default: not at all)"
    add("--global-stats", choices=GLOBAL_STATS, help=text)
    add("--stats-size", type=_size, metavar="N|HxW", help=STATS_SIZE_HELP)
    add("--memory-limit", type=_bytes, metavar="N", help="memory limit in bytes, such as 700M or 2G (default: none)")
    text = "what a cluster of so many workers like this machine would take, such as 1,10,100 (the model is timed here)"
    add("--workers", type=_numbers, metavar="N,N,...", help=text)
    text = "bytes in a second that all workers together can read and write, such as 2G (default: no limit)"
    add("--store", type=_bytes, metavar="N", help=text)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.inspect)
    add = parser.add_argument
    add("-m", "--model", help=f"{MODEL_HELP} (default: the included model)")
    add("--device", help="cpu, cuda, mps, ... (default: the model's device)")
    add("--dtype", choices=MODEL_DTYPES, help="dtype of the model (default: its own)")
    add("--json", action="store_true", help="print JSON")
    add("--image", metavar="FILE", help="image on which the error of smaller halos is measured")


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.selftest)
    parser.add_argument("--device", help="mps, cuda, cpu, ... (default: mps, else cpu)")
    parser.add_argument("--report", metavar="FILE", help="also write the report as JSON, after every line")
    text = "exit status: 0 all is well; 1 something differs or fails; "
    parser.description = text + "3 the device, or memory to test it, is not available"


def _add_tiling(parser: argparse.ArgumentParser, asks_model: bool = False) -> None:
    """asks_model: allow words such as auto."""
    halo_default = "auto for torch modules, else 32" if asks_model else "32; that of a torch module with --model"
    phase_default = "as for --halo, else 1" if asks_model else "1; the model's with --model"
    number_or = _or if asks_model else _no_word
    group = parser.add_argument_group("tiling, in input pixels")
    add = group.add_argument
    text = f"largest tile{', or auto' if asks_model else ''} (default: 512)"
    add("--tile-size", "--tile", type=number_or("auto"), default=512, metavar="N", help=text)
    text = f"context around each tile: N{', exact or auto' if asks_model else ''} (default: {halo_default})"
    add("--halo", type=number_or("exact", "auto"), default=argparse.SUPPRESS, metavar="N", help=text)
    text = "windows of this size only, whose overlaps are blended; trained: that of the model's training"
    add("--window", type=_window, metavar="N|HxW|trained", help=text)
    text = "pixels shared by neighbouring tiles (default: auto)"
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help=text)
    add("--blend", choices=BLENDS, default="average", help="weighting of overlapping tiles (default: average)")
    text = "padding at the image border: reflection, the model's own, or the opposite edge (default: reflect)"
    add("--boundary", choices=BOUNDARIES, default="reflect", help=text)
    text = f"alignment of window origins{', or auto' if asks_model else ''} (default: {phase_default})"
    add("--phase", type=_phase(number_or("auto")), default=argparse.SUPPRESS, metavar="N", help=text)
    text = "output pixels per input pixel, such as 4 or 3/2, or of width x height as in 1x2 (default: detected, 1 for "
    add("--scale", type=_scale, metavar="S", help=text + "plan without --model)")
    text = f"windows per call of the model{', or auto' if asks_model else ''} (default: 1)"
    add("--batch-size", type=number_or("auto"), default=1, metavar="N", help=text)
    either = group.add_mutually_exclusive_group().add_argument
    dtypes = ("auto", *MODEL_DTYPES) if asks_model else MODEL_DTYPES
    either("--dtype", choices=dtypes, help="dtype of the model (default: its own)")
    if asks_model:
        either("--half", action="store_true", help="--dtype float16, or bfloat16 for a torch module on a CPU")
    add(
        "--bits",
        type=int,
        choices=BIT_DTYPES,
        help="bits per channel of the output, 32 for floats (default: the input's)",
    )


def _or(*words: str) -> Callable[[str], int | str]:
    def number_or_word(text: str) -> int | str:
        return text if text in words else _whole(text, f"{', '.join(words)} or a whole number")

    return number_or_word


def _no_word(*words: str) -> Callable[[str], int]:
    def number(text: str) -> int:
        if text in words:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, not {text!r}: with --model, plan finds it if it is left out"
            )
        return _whole(text, "a whole number")

    return number


def _whole(text: str, allowed: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    return int(text)


def _phase(number_or_auto: Callable[[str], Any]) -> Callable[[str], int | None]:
    def phase(text: str) -> int | None:
        value = number_or_auto(text)
        return None if value == "auto" else value

    return phase


def _scale(text: str) -> str | tuple[str, str]:
    """What the option `scale` takes: (rows, columns) of width x height."""
    width, by, height = text.partition("x")
    return (height, width) if by else text


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text)
    if match is None:
        allowed = "a whole number of bytes, or of K, M, G or T (powers of 1024) such as 700M"
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    return int(match[1]) * UNITS[match[2]]


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a number, or rows x columns such as 256x384, not {text!r}")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _window(text: str) -> int | tuple[int, int] | str:
    return text if text == "trained" else _size(text)


def _devices(text: str) -> str | list[str]:
    devices = text.split(",")
    if "" in devices:
        raise argparse.ArgumentTypeError(f"must be a device, or several separated by commas, not {text!r}")
    return devices if len(devices) > 1 else text


def _white(text: str) -> float | str:
    with suppress(ValueError):
        return float(text)
    return text


def _key(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


def _further(text: str) -> tuple[str | None, float]:
    name, equals, number = text.rpartition("=")
    with suppress(ValueError):
        return (name if equals else None), float(number)
    raise argparse.ArgumentTypeError(f"must be a number, or a name and a number such as sigma=0.1, not {text!r}")


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")


def _numbers(text: str) -> list[int]:
    return [_number(1, 10**6)(one) for one in text.split(",")]


def _number(low: int, high: int = 2**62) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return number


FILLED: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "restore": _add_restore,
    "compare": _add_compare,
    "evaluate": _add_evaluate,
    "plan": _add_plan,
    "inspect": _add_inspect,
    "models": _add_models,
    "selftest": _add_selftest,
}
