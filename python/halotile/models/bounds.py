# SPDX-License-Identifier: MIT
"""How much a file of weights may hold, checked before it is read: a file must not take long only to be refused.

torch reads pickles one operation at a time, a microsecond or two each, and every weight costs both torch and spandrel
more. Networks for images have a few thousand weights, and a pickle some thirty operations for each.
"""

from __future__ import annotations

import json
import os
import pickletools
import zipfile
from contextlib import suppress
from typing import BinaryIO

__all__ = ["MOST_WEIGHTS", "check_pickle", "check_safetensors", "check_zip"]

MOST_WEIGHTS = 10_000
MOST_OPERATIONS = 400_000  # of all pickles in a file
PICKLES = 5  # in a file of torch before 1.6: a number, a version, a system, the weights, their names
LONGEST_HEADER = 2**22  # bytes of JSON
LONGEST_END = 2**16 + 22  # bytes of a zip archive that hold the number of its files
MORE_FILES = 100  # in an archive, beside weights


def check_zip(path: str) -> None:
    """Raises ValueError for a zip archive with more files than weights: reading its list takes long."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - LONGEST_END)
        file.seek(start)
        end = file.read()
        at = end.rfind(b"PK\5\6")
        files = int.from_bytes(end[at + 10 : at + 12], "little") if at >= 0 else 0
        if files == 0xFFFF and end[at - 20 : at - 16] == b"PK\6\7":  # zip64: the number is elsewhere
            file.seek(min(size, int.from_bytes(end[at - 12 : at - 4], "little")))
            files = int.from_bytes(file.read(40)[32:], "little")
    if files > MOST_WEIGHTS + MORE_FILES:
        raise ValueError(f"it is a zip archive of {files} files; at most {MOST_WEIGHTS} weights are read")


def check_pickle(path: str) -> None:
    """Raises ValueError for a checkpoint with too many operations or members. What is damaged is left to torch."""
    with suppress(OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                _count(file)
            return
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith("/data.pkl"):
                    with archive.open(member) as file:
                        _count(file)


def _count(file: BinaryIO) -> None:
    """Counts the operations of pickles that follow each other."""
    count, ended = 0, 0
    try:
        while ended < PICKLES:
            for _ in pickletools.genops(file):
                count += 1
                if count > MOST_OPERATIONS:
                    break
            else:
                ended += 1
                continue
            break
    except Exception:  # damaged, or weights follow: torch says what is wrong
        pass
    if count > MOST_OPERATIONS:
        raise ValueError(f"it is a pickle of more than {MOST_OPERATIONS} operations, too many for weights")


def check_safetensors(path: str) -> None:
    """Raises ValueError for a header that is too long or has too many weights. What is damaged is left to
    safetensors."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, os.path.getsize(path)):
            if length <= os.path.getsize(path):
                raise ValueError(f"it is a .safetensors file with a header of {length} bytes, too many for weights")
            return
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return
    if isinstance(header, dict) and len(header) > MOST_WEIGHTS + 1:  # and its metadata
        raise ValueError(f"it holds {len(header)} weights; at most {MOST_WEIGHTS} are read")
