# SPDX-License-Identifier: MIT
"""The command line: ``halotile restore``, ``compare``, ``plan``, ``inspect``, ``models``, ``selftest``, ``--version``.

    parser.py      the commands, with examples; arguments.py: the arguments of each
    restore.py     the restore command; batch.py: its files; output.py: its output
    commands.py    the other commands
    selftest.py    the report of selftest
    common.py      shared code

The exit status is 0, 1 if something failed, 2 if the command line is wrong, 130 after Ctrl-C. Errors are one line; the
environment variable HALOTILE_DEBUG=1 adds the traceback. A file that fails does not stop the others. torch and pyvips
are imported only when needed, and for `--help` nothing is.
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
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
        try:
            asked = new_parser().parse_args(arguments)
            return asked.run(asked) or 0
        except KeyboardInterrupt:
            print("halotile: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # whoever read the output has gone, as with `| head`
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            from .common import UsageError, debugging, one_line

            if debugging():
                raise
            print(f"halotile: error: {one_line(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from .. import texts
    from .common import as_written

    text = texts.one_line(message) if isinstance(message, Warning) else texts.shortened(message, texts.LONGEST_LINE)
    print(f"halotile: warning: {as_written(text)}", file=sys.stderr)
