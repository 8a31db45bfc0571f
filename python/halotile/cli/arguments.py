# SPDX-License-Identifier: MIT
"""The arguments of each command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from ..files.formats import FORMATS
from ..files.vips import MAX_PIXELS
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
from .plan import show_plan
from .restore import restore
from .saving import colour, factor, sides

__all__ = ["new_parser"]

DESCRIPTION = "Runs image-restoration models on images of any size, by tiles or by rows that stream."
MODEL_HELP = (
    "a file (checkpoint, ONNX, ncnn .param, torch.export .pt2, TorchScript), a name that `halotile models` lists, "
    "module:callable (used as it is) or module:factory() (called first); modules are also searched for in the current "
    "directory. Modules, .pt2 and TorchScript files are code: run only what you trust"
)
COMMANDS = ("restore", "compare", "plan", "inspect", "models", "selftest")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Versions(argparse.Action):
    """--version, whose text takes time to collect."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        commands.show_versions()
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuses unknown options in the command's own parser, which knows what may have been meant."""
        asked, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown[0].split('=')[0])}")
        return asked, unknown

    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)' ", message)
        meant = _near(wrong[1], COMMANDS) if wrong else ""
        self.exit(2, f"halotile: error: {message}{meant} (see {self.prog} --help)\n")

    def _meant(self, option: str) -> str:
        return _near(option, [name for name in self._option_string_actions if name.startswith("--")])


def _near(word: str, known: Sequence[str]) -> str:
    return "".join(f"; did you mean {one}?" for one in get_close_matches(word, known, n=1))


def new_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="halotile", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Versions, nargs=0, help="show versions and exit")
    add_parser = parser.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser
    _add_restore(add_parser("restore", help="restore image files, or folders of them", allow_abbrev=False))
    _add_compare(add_parser("compare", help="compare two images: PSNR, SSIM, seams", allow_abbrev=False))
    _add_plan(add_parser("plan", help="preview tiles, memory use and, with a model, streams", allow_abbrev=False))
    _add_inspect(add_parser("inspect", help="determine the halo, phase and scale of a model", allow_abbrev=False))
    _add_models(add_parser("models", help="list the models that --model takes by name", allow_abbrev=False))
    _add_selftest(add_parser("selftest", help="check this device, print a report", allow_abbrev=False))
    return parser


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
    parser.add_argument("--cluster", metavar="ADDRESS|local", help=text)
    add = parser.add_argument_group("model").add_argument
    text = "cpu, cuda, mps, ..., or several, such as cuda:0,cuda:1 (default: the model's device)"
    add("--device", type=_devices, metavar="DEVICE", help=text)
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
    text = "largest error for --halo auto and --verify (default: half an 8-bit step)"
    add("--tolerance", type=float, metavar="X", help=text)
    text = "alpha: run it through the model, resize it, make it opaque, or treat it as data (default: restore)"
    add("--alpha", choices=ALPHAS, default="restore", help=text)
    text = "what to do if the model returns NaN or Inf (default: raise)"
    add("--on-nonfinite", choices=NONFINITE, default="raise", help=text)
    _add_files(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
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
    text = "memory format of windows (default: auto, which is channels_last for convolutions on a CPU)"
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
    add("a", metavar="REFERENCE", help="reference image file")
    add("b", metavar="TEST", help="image file of the same size, to be compared with it")
    add("--json", action="store_true", help="print JSON")
    text = "value of white: a number, bits such as 12bit (4095), or max, REFERENCE's largest (default: the dtype's)"
    add("--white", type=_white, metavar="W", help=text)
    add("--heatmap", metavar="FILE", help="write a heatmap of the differences")
    add("--force", action="store_true", help="overwrite an existing heatmap")
    add("--fail-below", type=float, metavar="PSNR", help="exit with status 1 if the PSNR is below")
    _add_max_pixels(add)
    add = parser.add_argument_group("tiling used for TEST, in input pixels (adds a seam score)").add_argument
    add("--tile-size", "--tile", type=int, metavar="N", help="largest tile")
    add("--halo", type=int, default=32, metavar="N", help="context around each tile (default: 32)")
    text = "pixels shared by neighbouring tiles (default: auto)"
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help=text)
    text = "padding at the image border: reflection, or the model's own (default: reflect)"
    add("--boundary", choices=BOUNDARIES, default="reflect", help=text)
    add("--phase", type=int, default=1, metavar="N", help="alignment of window origins (default: 1)")
    text = "output pixels per input pixel, such as 4 or 3/2, or of width x height as in 1x2 (default: 1)"
    add("--scale", type=_scale, default="1", metavar="S", help=text)


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
    text = "pixels shared by neighbouring tiles (default: auto)"
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help=text)
    add("--blend", choices=BLENDS, default="average", help="weighting of overlapping tiles (default: average)")
    text = "padding at the image border: reflection, or the model's own (default: reflect)"
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
