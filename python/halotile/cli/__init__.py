# SPDX-License-Identifier: MIT
"""The command line: ``halotile restore``, ``compare``, ``plan``, ``inspect``, ``models``, ``selftest``, ``--version``.

    parser.py      the commands, with examples; arguments.py: the arguments of each
    restore.py     the restore command; batch.py: its files; output.py: its output
    commands.py    the other commands
    selftest.py    the report of selftest
    common.py      shared code

The exit status is 0; 1 if an image is below a limit, or differs; 2 if something failed or was refused; 130 after
Ctrl-C; SIGTERM (143) and SIGHUP (129) end it in the same way. Errors are one line; the environment variable
HALOTILE_DEBUG=1 adds the traceback. A file that fails does not stop the others. torch and pyvips are imported only when
needed, and for `--help` nothing is.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .parser import new_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: sys.argv) and returns the exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        _end_as_ctrl_c()
        try:
            asked = new_parser().parse_args(arguments)
            return asked.run(asked) or 0
        except KeyboardInterrupt as ended:
            with suppress(OSError):  # the terminal may be gone
                print("halotile: interrupted", file=sys.stderr)
            return ended.args[0] if isinstance(ended, Ended) else 130
        except BrokenPipeError:  # whoever read the output has gone, as with `| head`
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            from .common import debugging, one_line

            if debugging():
                raise
            print(f"halotile: error: {one_line(error)}", file=sys.stderr)
            return 2


class Ended(KeyboardInterrupt):
    """A signal that ends the program as Ctrl-C does; its argument is the exit status."""


def _end_as_ctrl_c() -> None:
    """So that temporary files are removed, and --json says what was done."""

    def end(number: int, _: object) -> None:
        raise Ended(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        with suppress(ValueError):  # not in the main thread
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # which nohup sets
                signal.signal(number, end)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from .. import texts
    from .common import as_written

    text = texts.one_line(message) if isinstance(message, Warning) else texts.shortened(message, texts.LONGEST_LINE)
    print(f"halotile: warning: {as_written(text)}", file=sys.stderr)
