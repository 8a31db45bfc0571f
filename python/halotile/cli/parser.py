# SPDX-License-Identifier: MIT
"""The parser of the command line: commands with what they are for and examples. Arguments are added when a command is
chosen, so that `halotile --help` imports nothing that takes time."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

__all__ = ["COMMANDS", "new_parser"]

DESCRIPTION = "Runs image-restoration models on images of any size, by tiles or by rows that stream."


class Command(NamedTuple):
    """What a command is for, in a line, and examples: lines of a shell, each with what it does."""

    purpose: str
    examples: tuple[tuple[str, str], ...]


COMMANDS = {
    "restore": Command(
        "restore image files, or folders of them",
        (
            ("halotile restore photo.jpg", "by the included model, into photo_restored.jpg"),
            ("halotile restore photos/ -o restored/ --format png", "a folder, into another one"),
            ("halotile restore scan.tif -m x4.pth -o big.tif", "by a checkpoint of your own"),
            ("halotile restore big.zarr -o big_clean.zarr --memory-limit 2G", "more than memory holds"),
            ("halotile restore photo.png --verify 8", "and recompute eight windows of it"),
        ),
    ),
    "compare": Command(
        "compare two images, or folders of them: PSNR, SSIM, seams",
        (
            ("halotile compare clean.png restored.png", "all figures"),
            ("halotile compare clean.png restored.png --heatmap where.png", "and where they differ"),
            ("halotile compare a.png b.png --fail-below 40", "exit with status 1 below 40 dB"),
            ("halotile compare clean/ restored/", "a table of files of the same names"),
        ),
    ),
    "evaluate": Command(
        "restore images whose right result is known: a table of PSNR and SSIM",
        (
            ("halotile evaluate -m x4.pth --pairs Set5/ --y-channel --crop-border scale", "as papers do"),
            ("halotile evaluate --pairs noisy/ --targets clean/ --csv scores.csv", "into a file"),
            ("halotile evaluate --pairs data/ --junit scores.xml --fail-below 30", "for CI"),
        ),
    ),
    "plan": Command(
        "preview tiles, memory use and, with a model, streams",
        (
            ("halotile plan 3840x2160", "for a size, with a halo of 32"),
            ("halotile plan photo.jpg --tile-size 256 --halo 16", "for a file, with other tiles"),
            ("halotile plan 100000x80000 -m x4.onnx", "tiles or a stream, for a model"),
        ),
    ),
    "inspect": Command(
        "determine the halo, phase and scale of a model",
        (
            ("halotile inspect -m x4.pth", "what the model needs, and how that is known"),
            ("halotile inspect -m 'mynet:Net()' --image photo.png", "and the error of smaller halos"),
            ("halotile inspect -m x4.onnx --json", "for a program to read"),
        ),
    ),
    "models": Command(
        "list the models that --model takes by name",
        (("halotile models", "names, licences, and which are installed"),),
    ),
    "selftest": Command(
        "check this device, print a report",
        (
            ("halotile selftest", "the GPU of a Mac, else the CPU"),
            ("halotile selftest --device cuda", "another device"),
            ("halotile selftest --device mps --report selftest.json", "the same, also for a program to read"),
        ),
    ),
}


class _Versions(argparse.Action):
    """--version, whose text takes time to collect."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        from .commands import show_versions

        show_versions()
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)' ", message)
        meant = _near(wrong[1], COMMANDS) if wrong else ""
        self.exit(2, f"halotile: error: {message}{meant} (see {self.prog} --help)\n")


class _CommandParser(_Parser):
    """The parser of one command, which gets its arguments when it is used, and refuses unknown options itself: it knows
    what may have been meant."""

    command = ""
    filled = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if not self.filled:
            from .arguments import add_arguments

            add_arguments(self.command, self)
            self.filled = True
        asked, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{_near(unknown[0].split('=')[0], known)}")
        return asked, unknown


def _near(word: str, known: Iterable[str]) -> str:
    return "".join(f"; did you mean {one}?" for one in get_close_matches(word, [*known], n=1))


def new_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="halotile", description=DESCRIPTION, allow_abbrev=False, epilog=_first_examples(), **RAW)
    parser.add_argument("--version", action=_Versions, nargs=0, help="show versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.purpose, allow_abbrev=False, epilog=_told(command.examples), **RAW)
        one.command = name
    return parser


RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}  # keeps the lines of examples


def _first_examples() -> str:
    return _told(COMMANDS[name].examples[0] for name in ("restore", "compare", "inspect"))


def _told(examples: Any) -> str:
    lines = (f"  {line}\n{textwrap.indent(what, ' ' * 6)}" for line, what in examples)
    return "\n".join(["examples:", *lines])
