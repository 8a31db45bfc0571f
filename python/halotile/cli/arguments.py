# SPDX-License-Identifier: MIT
"""The command line's arguments, and which command each is for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from ..files.formats import FORMATS
from ..files.vips import MAX_PIXELS
from ..options import ALPHAS, BLENDS, BOUNDARIES, ENGINES, GLOBAL_STATS, MEMORY_FORMATS, MODEL_DTYPES, NONFINITE
from . import commands
from .common import BIT_DTYPES, SUFFIXES
from .restore import restore

__all__ = ["new_parser"]

DESCRIPTION = "Restores images too large for their model, tile by tile."
MODEL_HELP = (
    "a file (checkpoint, ONNX, ncnn .param, torch.export .pt2, TorchScript), a name that `halotile models` lists, "
    "module:callable (used as it is) or module:factory() (called first); modules are also looked for in the current "
    "directory. Modules, .pt2 and TorchScript files are code: run only what you trust"
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Versions(argparse.Action):
    """--version: found out only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        commands.show_versions()
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"halotile: error: {message} (see {self.prog} --help)\n")


def new_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="halotile", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Versions, nargs=0, help="show versions and exit")
    add_parser = parser.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser
    _add_restore(add_parser("restore", help="restore image files, or folders of them", allow_abbrev=False))
    _add_compare(add_parser("compare", help="how far are two images apart?", allow_abbrev=False))
    _add_plan(add_parser("plan", help="show the tiles and the memory that a run takes", allow_abbrev=False))
    _add_inspect(add_parser("inspect", help="what does a model need? halo, phase, scale", allow_abbrev=False))
    _add_models(add_parser("models", help="the models that come by name", allow_abbrev=False))
    _add_selftest(add_parser("selftest", help="is the device right? prints a report", allow_abbrev=False))
    return parser


def _add_restore(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=restore)
    add = parser.add_argument
    text = "PNG, JPEG, WebP or TIFF file, or a folder: all such files below it; a .npy file or .zarr array"
    add("inputs", metavar="INPUT", nargs="+", help=text)
    suffixes = ", ".join(FORMATS)
    add("-o", "--output", required=True, metavar="FILE|FOLDER", help=f"what to write: {suffixes}, or a folder of them")
    add("-m", "--model", help=f"{MODEL_HELP} (default: the one that comes with halotile)")
    _add_tiling(parser, asks_model=True)
    _add_speed(parser)
    add = parser.add_argument_group("model").add_argument
    text = "cpu, cuda, mps, ..., or several as in cuda:0,cuda:1 (default: where the model is)"
    add("--device", type=_devices, metavar="DEVICE", help=text)
    add("--engine", choices=ENGINES, help="who cuts and assembles (default: what fits the device)")
    add(
        "--strength",
        type=_share,
        metavar="X",
        help="how much the model that comes with halotile changes, 0 to 1",
    )
    add("--value-range", type=float, nargs=2, metavar=("LO", "HI"), help="its black and white (default: 0 1)")
    add("--global-stats", choices=GLOBAL_STATS, help="where it pools or normalises over the whole image")
    add("--tolerance", type=float, metavar="X", help="for --halo auto and --verify (default: half an 8-bit step)")
    text = "what becomes of an alpha channel: through the model, bilinear, white, or it is none (default: restore)"
    add("--alpha", choices=ALPHAS, default="restore", help=text)
    add("--on-nonfinite", choices=NONFINITE, default="raise", help="at NaN or infinity (default: raise)")
    add = parser.add_argument_group("files").add_argument
    add("--quality", type=_number(1, 100), default=95, metavar="N", help="of JPEG and WebP, 1 to 100 (default: 95)")
    add("--compression", type=_number(0, 9), default=6, metavar="N", help="of PNG and TIFF, 0 to 9 (default: 6)")
    _add_max_pixels(add)
    add("--layout", metavar="AXES", help="of .npy files and zarr arrays, as HWC or CYX (default: the usual one)")
    add("--page", type=_number(1), metavar="N", help="of TIFFs with several pages, from 1 on (default: all)")
    add("--format", choices=SUFFIXES, help="of what goes into a folder (default: each file's own)")
    add("--force", action="store_true", help="overwrite existing outputs")
    add("--skip-existing", action="store_true", help="leave existing outputs alone, and go on with the others")
    add("--json", action="store_true", help="print nothing but one JSON document at the end")
    add("--verify", type=_number(0), default=0, metavar="K", help="make K places again with a larger halo, compare")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("speed and memory").add_argument
    text = "bytes that a run may take, as 2000000000, 700M or 2G (default: most of what is free, with --tile-size auto)"
    add("--memory-limit", type=_bytes, metavar="N", help=text)
    text = "how windows lie in memory (default: auto, channels_last for convolutions on a CPU)"
    add("--memory-format", choices=MEMORY_FORMATS, default="auto", help=text)
    text = "let malloc hand back what the model frees, while it runs: slower, and less memory"
    add("--no-keep-heap", dest="keep_heap", action="store_false", help=text)
    add("--compile", action="store_true", help="torch.compile: takes seconds once, pays for many windows only")


def _add_max_pixels(add: Callable[..., Any]) -> None:
    add("--max-pixels", type=_number(1), default=MAX_PIXELS, metavar="N", help="of image files (default: 2**28)")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.compare)
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
    parser.set_defaults(run=commands.show_models)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.show_plan)
    add = parser.add_argument
    add("image", metavar="WIDTHxHEIGHT|FILE", help="size of an image, or an image file, .npy file or .zarr array")
    add("--channels", type=_number(1), metavar="N", help="channels of the image (default: the file's, or 3)")
    _add_tiling(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.inspect)
    add = parser.add_argument
    add("-m", "--model", help=f"{MODEL_HELP} (default: the one that comes with halotile)")
    add("--device", help="cpu, cuda, mps, ... (default: where the model is)")
    add("--dtype", choices=MODEL_DTYPES, help="number type of the model (default: its own)")
    add("--json", action="store_true", help="print JSON")
    add("--image", metavar="FILE", help="an image: also print how far halos are from exact there")


def _add_selftest(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=commands.selftest)
    parser.add_argument("--device", help="mps, cuda, cpu, ... (default: mps, else cpu)")


def _add_tiling(parser: argparse.ArgumentParser, asks_model: bool = False) -> None:
    """asks_model: whether words such as auto can be, and halo and phase are not set unless they are given."""
    halo, phase = (argparse.SUPPRESS, argparse.SUPPRESS) if asks_model else (32, 1)
    halo_default, phase_default = ("auto for networks in torch, else 32", "likewise, else 1") if asks_model else (32, 1)
    number_or = _or if asks_model else _no_word
    group = parser.add_argument_group("tiling, in input pixels")
    add = group.add_argument
    text = f"largest tile{', or auto' if asks_model else ''} (default: 512)"
    add("--tile-size", "--tile", type=number_or("auto"), default=512, metavar="N", help=text)
    text = f"context: N{', exact or auto' if asks_model else ''} (default: {halo_default})"
    add("--halo", type=number_or("exact", "auto"), default=halo, metavar="N", help=text)
    add("--overlap", type=_or("auto"), default="auto", metavar="N", help="what neighbours share (default: auto)")
    add("--blend", choices=BLENDS, default="average", help="how shared pixels are weighted (default: average)")
    add("--boundary", choices=BOUNDARIES, default="reflect", help="what lies beyond the image (default: reflect)")
    text = f"multiple that windows keep{', or auto' if asks_model else ''} (default: {phase_default})"
    add("--phase", type=_phase(number_or("auto")), default=phase, metavar="N", help=text)
    add("--scale", metavar="S", help="output pixels per input pixel: 4, 3/2 (default: restore finds it, plan takes 1)")
    text = f"windows per call of the model{', or auto' if asks_model else ''} (default: 1)"
    add("--batch-size", type=number_or("auto"), default=1, metavar="N", help=text)
    either = group.add_mutually_exclusive_group().add_argument
    dtypes = ("auto", *MODEL_DTYPES) if asks_model else MODEL_DTYPES
    either("--dtype", choices=dtypes, help="number type of the model (default: its own)")
    if asks_model:
        either("--half", action="store_true", help="--dtype float16; bfloat16 for a network on a CPU")
    add("--bits", type=int, choices=BIT_DTYPES, help="per channel of the output (default: the input's)")


def _or(*words: str) -> Callable[[str], int | str]:
    def number_or_word(text: str) -> int | str:
        return text if text in words else _whole(text, f"{', '.join(words)} or a whole number")

    return number_or_word


def _no_word(*words: str) -> Callable[[str], int]:
    """For what others find out with the model."""

    def number(text: str) -> int:
        if text in words:
            raise argparse.ArgumentTypeError(f"must be a whole number here, where no model is asked, not {text!r}")
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


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})([KMGT]?)", text)
    if match is None:
        allowed = "a whole number of bytes, or of K, M, G or T (powers of 1024) such as 700M"
        raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
    return int(match[1]) * UNITS[match[2]]


def _devices(text: str) -> str | list[str]:
    devices = text.split(",")
    if "" in devices:
        raise argparse.ArgumentTypeError(f"must be a device, or several with commas between them, not {text!r}")
    return devices if len(devices) > 1 else text


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
