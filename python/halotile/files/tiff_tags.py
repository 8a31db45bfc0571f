# SPDX-License-Identifier: MIT
"""Parses the directories of a TIFF or BigTIFF file, in either byte order.

The parser is bounded, for malicious files: it reads at most DIRECTORIES directories, each once, ENTRIES entries of
each, and VALUES numbers or TEXT bytes of an entry. Entries that point outside the file or have an unexpected type are
empty.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["TIFF_MAGIC", "Directory", "directories"]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

DIRECTORIES = 32
ENTRIES = 1024
VALUES = 16
TEXT = 4096

TEXT_TYPE = 2
NUMBER_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # BYTE, SHORT, LONG, IFD, LONG8, IFD8
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
SUB_DIRECTORIES = 330

ReadAt = Callable[[int, int], bytes]  # (offset, size) -> bytes; fewer at the end of the file


@dataclass(frozen=True)
class Directory:
    """The tags of one image.

    Attributes:
        numbers: values by tag; the first ones of a long list.
        texts: strings by tag; the beginning of a long one.
        counts: the stated number of values, by tag.
        children: the directories in its SubIFDs tag.
    """

    numbers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    children: tuple[Directory, ...] = ()

    def number(self, tag: int) -> int:
        """The first value of a tag, or 0."""
        return (self.numbers.get(tag) or (0,))[0]

    def with_children(self) -> Iterator[Directory]:
        yield self
        for child in self.children:
            yield from child.with_children()


def directories(read_at: ReadAt, most: int = DIRECTORIES) -> list[Directory]:
    """The first directories of a TIFF file, in order, each with its children; none if it is damaged.

    Args:
        most: the largest number, including children.
    """
    layout = Layout.of(read_at(0, 16))
    return [] if layout is None else _Walk(read_at, layout, most).chain()


@dataclass(frozen=True)
class Layout:
    """The number formats of a file.

    Attributes:
        order: "<" or ">".
        count, offset: struct codes of entry counts and of offsets.
        entry: bytes of an entry.
        first: offset of the first directory.
    """

    order: str
    count: str
    offset: str
    entry: int
    first: int

    @classmethod
    def of(cls, start: bytes) -> Layout | None:
        if start[:4] not in TIFF_MAGIC:
            return None
        order = "<" if start[:2] == b"II" else ">"
        big = start[:4] in TIFF_MAGIC[2:]
        count, offset, entry, at = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
        first = numbers(start[at : at + struct.calcsize(offset)], order, offset)
        return cls(order, count, offset, entry, first[0]) if first else None

    @property
    def offset_size(self) -> int:
        return struct.calcsize(self.offset)


def numbers(data: bytes, order: str, kind: str) -> tuple[int, ...]:
    """The complete numbers in the data."""
    count = len(data) // struct.calcsize(kind)
    return struct.unpack(f"{order}{count}{kind}", data[: count * struct.calcsize(kind)])


class _Walk:
    def __init__(self, read_at: ReadAt, layout: Layout, most: int):
        self.read_at, self.layout, self.most = read_at, layout, most
        self.seen: set[int] = set()

    def chain(self) -> list[Directory]:
        found, offset = [], self.layout.first
        while self._is_new(offset) and self._count(offset) > 0:
            directory, offset = self._directory(offset, with_children=True)
            found.append(directory)
        return found

    def _is_new(self, offset: int) -> bool:
        if offset <= 0 or offset in self.seen or len(self.seen) >= self.most:
            return False
        self.seen.add(offset)
        return True

    def _count(self, offset: int) -> int:
        """The stated number of entries of the directory at an offset; 0 if there is none."""
        layout = self.layout
        claimed = numbers(self.read_at(offset, struct.calcsize(layout.count)), layout.order, layout.count)
        return claimed[0] if claimed else 0

    def _directory(self, offset: int, with_children: bool) -> tuple[Directory, int]:
        """The directory at an offset, and the offset of the next one, or 0."""
        layout = self.layout
        head, claimed = struct.calcsize(layout.count), self._count(offset)
        count = min(claimed, ENTRIES)
        size = count * layout.entry
        data = self.read_at(offset + head, size + layout.offset_size)
        directory = Directory()
        for start in range(0, min(size, len(data)) - layout.entry + 1, layout.entry):
            self._enter(directory, data[start : start + layout.entry])
        if with_children:
            children = [
                self._directory(child, with_children=False)[0]
                for child in directory.numbers.get(SUB_DIRECTORIES, ())
                if self._is_new(child)
            ]
            directory = Directory(directory.numbers, directory.texts, directory.counts, tuple(children))
        following = numbers(data[size:], layout.order, layout.offset) if claimed == count else ()
        return directory, (following or (0,))[0]

    def _enter(self, directory: Directory, entry: bytes) -> None:
        layout = self.layout
        tag, kind = struct.unpack(f"{layout.order}HH", entry[:4])
        rest = 4 + layout.offset_size
        count = numbers(entry[4:rest], layout.order, layout.offset)[0]
        if kind == TEXT_TYPE:
            text = self._value(entry[rest:], count, min(count, TEXT))
            directory.texts.setdefault(tag, text.partition(b"\0")[0].decode("utf-8", "replace"))
        elif kind in NUMBER_TYPES:
            size = SIZES[kind]
            data = self._value(entry[rest:], count * size, min(count, VALUES) * size)
            directory.numbers.setdefault(tag, numbers(data, layout.order, NUMBER_TYPES[kind]))
        if kind in SIZES:
            directory.counts.setdefault(tag, count)

    def _value(self, inline: bytes, size: int, wanted: int) -> bytes:
        """The first bytes of a value: inline if it fits in the entry, else at the offset in the entry."""
        if size <= len(inline):
            return inline[:wanted]
        return self.read_at(numbers(inline, self.layout.order, self.layout.offset)[0], wanted)
