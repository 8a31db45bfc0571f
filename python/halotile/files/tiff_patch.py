# SPDX-License-Identifier: MIT
"""Reads tags of a TIFF file that libvips does not know, and adds tags to a file that libvips has written.

A changed directory is written anew at the end of the file; pixels stay where they are.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .tiff_tags import SIZES, Layout, ReadAt, numbers

__all__ = ["ASCII", "DOUBLE", "RATIONAL", "SHORT", "Tag", "amend", "read_tags"]

ASCII, SHORT, RATIONAL, DOUBLE = 2, 3, 5, 12
CODES = {SHORT: "H", RATIONAL: "I", DOUBLE: "d"}
MOST_BYTES = 2**20  # of a value
MOST_ENTRIES = 1024
MOST_DIRECTORIES = 2**16
CLASSIC_END = 2**32 - 2**20


@dataclass(frozen=True)
class Tag:
    """A TIFF type and values: text for ASCII, else numbers; of a RATIONAL numerator and denominator."""

    kind: int
    values: bytes | tuple[float, ...]

    def packed(self, order: str) -> tuple[int, bytes]:
        """(count, bytes)."""
        if isinstance(self.values, bytes):
            return len(self.values), self.values
        values = [value if self.kind == DOUBLE else int(value) for value in self.values]
        return len(values) // (2 if self.kind == RATIONAL else 1), struct.pack(
            f"{order}{len(values)}{CODES[self.kind]}", *values
        )


def read_tags(read_at: ReadAt, wanted: Collection[int], page: int = 1) -> dict[int, Tag]:
    """Those tags of a page's directory that are text, shorts or doubles; none of a damaged file."""
    layout = Layout.of(read_at(0, 16))
    if layout is None:
        return {}
    directory = next((one for number, one in enumerate(_directories(read_at, layout), 1) if number == page), None)
    found: dict[int, Tag] = {}
    for entry in () if directory is None else directory.entries:
        tag, kind = struct.unpack(f"{layout.order}HH", entry[:4])
        if tag not in wanted or kind not in (ASCII, *CODES):
            continue
        rest = 4 + layout.offset_size
        count = numbers(entry[4:rest], layout.order, layout.offset)[0]
        size = count * SIZES[kind]
        if not 0 < size <= MOST_BYTES:
            continue
        data = entry[rest:] if size <= layout.offset_size else b""
        data = data or read_at(numbers(entry[rest:], layout.order, layout.offset)[0], size)
        if len(data) >= size:
            values = data[:size] if kind == ASCII else numbers(data[:size], layout.order, CODES[kind])
            found[tag] = Tag(kind, values)
    return found


@dataclass(frozen=True)
class _Directory:
    """Attributes:
    entries: as they are stored.
    following: the offset of the next directory, or 0.
    """

    entries: tuple[bytes, ...]
    following: int


def _directories(read_at: ReadAt, layout: Layout) -> Iterator[_Directory]:
    offset = layout.first
    head = struct.calcsize(layout.count)
    for _ in range(MOST_DIRECTORIES):
        claimed = numbers(read_at(offset, head), layout.order, layout.count) if offset else ()
        if not claimed or not 0 < claimed[0] <= MOST_ENTRIES:
            return
        size = claimed[0] * layout.entry
        data = read_at(offset + head, size + layout.offset_size)
        following = (numbers(data[size:], layout.order, layout.offset) or (0,))[0]
        entries = tuple(data[start : start + layout.entry] for start in range(0, size, layout.entry))
        yield _Directory(entries, following)
        offset = following


def amend(descriptor: int, first: Mapping[int, Tag], every: Mapping[int, Tag]) -> bool:
    """Adds or replaces tags of a TIFF file, open for reading and writing: some of its first directory, others of every
    one. Returns whether there was room; a classic TIFF ends at 4 GiB. Raises OSError."""

    def read_at(offset: int, size: int) -> bytes:
        return os.pread(descriptor, size, offset)

    layout = Layout.of(read_at(0, 16))
    if layout is None or not (first or every):
        return True
    found = list(_directories(read_at, layout))
    moved: int | None = None
    for directory in reversed(found if every else found[:1]):
        end = os.fstat(descriptor).st_size
        if layout.offset_size == 4 and end > CLASSIC_END:
            return False
        tags = {**every, **first} if directory is found[0] else every
        following = directory.following if moved is None else moved
        moved = _rewritten(descriptor, layout, directory.entries, following, tags, end + end % 2)
    if moved is not None:  # the last step: until then the file is as it was
        header = 4 if layout.offset_size == 4 else 8
        os.pwrite(descriptor, struct.pack(f"{layout.order}{layout.offset}", moved), header)
    return True


def _rewritten(
    descriptor: int, layout: Layout, stored: Sequence[bytes], following: int, tags: Mapping[int, Tag], at: int
) -> int:
    """Writes a directory and its new values at an offset. Returns that of the directory."""
    entries = {struct.unpack(f"{layout.order}H", entry[:2])[0]: entry for entry in stored}
    values = b""
    for tag, content in tags.items():
        count, data = content.packed(layout.order)
        inline = data.ljust(layout.offset_size, b"\0")
        if len(data) > layout.offset_size:
            inline = struct.pack(f"{layout.order}{layout.offset}", at + len(values))
            values += data + bytes(len(data) % 2)
        head = struct.pack(f"{layout.order}HH{layout.offset}", tag, content.kind, count)
        entries[tag] = head + inline
    packed = struct.pack(f"{layout.order}{layout.count}", len(entries))
    packed += b"".join(entries[tag] for tag in sorted(entries))
    packed += struct.pack(f"{layout.order}{layout.offset}", following)
    os.pwrite(descriptor, values + packed, at)
    return at + len(values)
