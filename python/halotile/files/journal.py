# SPDX-License-Identifier: MIT
"""Finished rows that outlive the process, so that another run can go on below them.

Beside a result that is being made lie two hidden files:

    .halotile-....rows       its finished rows, as they are in memory, one after the other
    .halotile-....journal    lines of JSON: first what is being made of what, then how many rows are kept

Rows are written and synced, and only then the line that counts them, with their checksum and its own. So after a kill
or a loss of power the last line is whole or no line, and the rows that it counts are there. What follows them is cut
off. The result itself is written as without a journal, at the same time; a later run writes the kept rows to it first.
So no format needs to be continued in the middle, and the result has the bytes that a single run gives it.

A sync takes milliseconds to seconds: the next one comes when fifty times as long has passed, so that all take at most
2 % of a run. The journal is locked as long as its process lives.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from . import disk
from .atomic import hidden_name, writing

__all__ = ["Journal", "discard", "has_journal", "open_journal"]

SHARE = 0.02  # of the time, at most, is spent on syncs
LONGEST = 2**26  # bytes of a journal; a longer one is none
AT_ONCE = 2**24  # bytes that are checked at a time


class Journal:
    """Attributes:
    path: of the result.
    found: what an earlier run was about; None if there is nothing to go on from.
    rows: finished rows that are kept.
    """

    def __init__(self, path: str, name: str, descriptor: int):
        self.path, self.name, self.descriptor = path, name, descriptor
        self.rows_name = hidden_name(os.path.realpath(path), "rows")
        self.spool = os.open(self.rows_name, os.O_RDWR | os.O_CREAT | NOFOLLOW | BINARY, 0o600)
        self.found: dict[str, Any] | None = None
        self.rows = self.row_bytes = 0
        self.waiting, self.checksum = 0, 0  # rows written after the last line, and their checksum
        self.next_commit = 0.0
        self._load()

    # ---- what an earlier run left ------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Reads lines up to the first that is not whole, or whose rows are not, and cuts off what follows."""
        lines, whole = self._lines(), 0
        for length, content in lines:
            if self.found is None:
                if not _is_start(content):
                    break
                self.found, self.row_bytes = content["about"], content["row_bytes"]
            elif not self._are_there(content):
                break
            else:
                self.rows += content["rows"]
            whole += length
        os.ftruncate(self.descriptor, whole)
        os.ftruncate(self.spool, self.rows * self.row_bytes)

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(bytes, content) of every line that is whole."""
        if os.fstat(self.descriptor).st_size > LONGEST:
            return
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        with open(self.descriptor, "rb", closefd=False) as file:
            for line in file:
                content = _content_of(line)
                if content is None:
                    return
                yield len(line), content

    def _are_there(self, content: dict[str, Any]) -> bool:
        """Whether the rows that a line counts are what was written."""
        count, checksum, left = content.get("rows"), 0, 0
        if type(count) is not int or count < 1:
            return False
        left = count * self.row_bytes
        os.lseek(self.spool, self.rows * self.row_bytes, os.SEEK_SET)
        while left:
            part = os.read(self.spool, min(left, AT_ONCE))
            if not part:
                return False
            checksum, left = zlib.crc32(part, checksum), left - len(part)
        return checksum == content.get("checksum")

    def read(self, start: int, stop: int) -> bytes:
        """Rows that are kept."""
        parts, left = [], (stop - start) * self.row_bytes
        with open(self.rows_name, "rb", buffering=0) as file:
            file.seek(start * self.row_bytes)
            while left:
                parts.append(file.read(left))
                if not parts[-1]:
                    raise OSError(errno.EIO, "rows that were kept are gone", self.rows_name)
                left -= len(parts[-1])
        return b"".join(parts)

    # ---- what this run adds ------------------------------------------------------------------------------------------

    def start(self, about: dict[str, Any], row_bytes: int) -> None:
        """Begins anew."""
        self.found, self.rows, self.row_bytes, self.waiting, self.checksum = about, 0, row_bytes, 0, 0
        with writing(self.path):
            os.ftruncate(self.descriptor, 0)
            os.ftruncate(self.spool, 0)
            self._add_line({"about": about, "row_bytes": row_bytes})
            disk.sync_folder(os.path.dirname(self.name))

    def append(self, rows: memoryview) -> None:
        """Keeps the next rows; they count after the next commit."""
        with writing(self.path):
            os.lseek(self.spool, (self.rows + self.waiting) * self.row_bytes, os.SEEK_SET)
            disk.write(self.spool, rows)
        self.waiting += rows.nbytes // self.row_bytes
        self.checksum = zlib.crc32(rows, self.checksum)
        if time.monotonic() >= self.next_commit:
            self.commit()

    def commit(self) -> None:
        if not self.waiting:
            return
        started = time.monotonic()
        with writing(self.path):
            disk.sync(self.spool)
            self._add_line({"rows": self.waiting, "checksum": self.checksum})
        self.rows += self.waiting
        self.waiting = self.checksum = 0
        ended = time.monotonic()
        self.next_commit = ended + (ended - started) / SHARE

    def _add_line(self, content: dict[str, Any]) -> None:
        os.lseek(self.descriptor, 0, os.SEEK_END)
        disk.write(self.descriptor, _line(content))
        disk.sync(self.descriptor)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """The result is there: nothing needs to be kept."""
        self.found = None
        for name in (self.name, self.rows_name):
            with suppress(FileNotFoundError):
                os.unlink(name)

    def close(self) -> None:
        """Keeps what was written, unless there is nothing."""
        try:
            with suppress(OSError):  # a full disk: what is synced stays
                self.commit()
            if self.found is None:
                self.remove()
        finally:
            os.close(self.spool)
            os.close(self.descriptor)


NOFOLLOW, BINARY = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_BINARY", 0)


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _content_of(line: bytes) -> dict[str, Any] | None:
    """None if the line is not as it was written."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    try:
        content = json.loads(text) if line.endswith(b"\n") and int(checksum, 16) == zlib.crc32(text) else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_start(content: dict[str, Any]) -> bool:
    size = content.get("row_bytes")
    return isinstance(content.get("about"), dict) and type(size) is int and size > 0


@contextmanager
def open_journal(path: str) -> Iterator[Journal]:
    """The journal of a result, locked. Raises OSError if another process has it."""
    name = hidden_name(os.path.realpath(path), "journal")
    with writing(path):
        descriptor = _locked(name, path)
        journal = Journal(path, name, descriptor)
    try:
        yield journal
    finally:
        journal.close()


def _locked(name: str, path: str) -> int:
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | NOFOLLOW | BINARY, 0o600)
        if disk.lock(descriptor) is False:
            os.close(descriptor)
            raise OSError(errno.EBUSY, "another process is making it", path)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        os.close(descriptor)  # its owner removed it meanwhile


def has_journal(path: str) -> bool:
    """Whether rows of a result may be kept."""
    return os.path.isfile(hidden_name(os.path.realpath(path), "journal"))


def discard(path: str) -> None:
    """Removes what is kept for a result. Raises OSError if another process is making it."""
    if has_journal(path):
        with open_journal(path) as journal:
            journal.remove()
