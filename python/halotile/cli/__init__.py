# SPDX-License-Identifier: MIT
"""The command line: ``halotile restore``, ``compare``, ``plan``, ``inspect``, ``models``, ``selftest``, ``--version``.

    arguments.py   what can be written, and which command it is for
    restore.py     the restore command; reports.py: what it says
    commands.py    the others
    common.py      what they share

Exit status: 0, 1 if something failed, 2 if the command line is wrong, 130 after Ctrl-C. Errors are one line; the
environment variable HALOTILE_DEBUG=1 adds the traceback. Of several files one that fails stops no other. torch and
pyvips are imported when they are needed.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .. import texts
from .arguments import new_parser
from .common import UsageError, as_written, debugging, one_line

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, sys.argv's by default. Returns the exit status."""
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
        except Exception as error:
            if debugging():
                raise
            print(f"halotile: error: {one_line(error)}", file=sys.stderr)
            return 2 if isinstance(error, UsageError) else 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    text = texts.one_line(message) if isinstance(message, Warning) else texts.shortened(message, texts.LONGEST_LINE)
    print(f"halotile: warning: {as_written(text)}", file=sys.stderr)
