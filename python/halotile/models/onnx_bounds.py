# SPDX-License-Identifier: MIT
"""How many nodes an ONNX file may have, checked before ONNX Runtime reads it: it takes longer than in proportion.

A file is a message of Protocol Buffers: fields, each with its number and either a number or bytes, which may be a
message again. Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from contextlib import closing

__all__ = ["MOST_NODES", "check_onnx"]

MOST_NODES, MOST_FIELDS = 20_000, 1_000_000
GRAPH_OF_MODEL, NODE_OF_GRAPH, ATTRIBUTE_OF_NODE, GRAPH_OF_ATTRIBUTE = 7, 1, 5, 6
NUMBER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
LONGEST_NUMBER = 10  # bytes


def check_onnx(path: str) -> None:
    """Raises ValueError for a graph with too many nodes, those of graphs inside it included. What is damaged is left to
    ONNX Runtime."""
    with open(path, "rb") as file:
        if not file.read(1):
            return
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            _count(content)


def _count(content: mmap.mmap) -> None:
    seen, nodes = itertools.count(1), 0
    graphs = list(_fields(content, 0, len(content), GRAPH_OF_MODEL, seen))
    while graphs:
        for node in _fields(content, *graphs.pop(), NODE_OF_GRAPH, seen):
            nodes += 1
            if nodes > MOST_NODES:
                raise ValueError(f"it is a graph of more than {MOST_NODES} nodes")
            for attribute in _fields(content, *node, ATTRIBUTE_OF_NODE, seen):
                graphs += _fields(content, *attribute, GRAPH_OF_ATTRIBUTE, seen)


def _fields(content: mmap.mmap, at: int, end: int, wanted: int, seen: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Where the bytes of a message's fields of one number lie. seen: counts fields of all messages."""
    while at < end:
        if next(seen) > MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS} fields")
        key, at = _number(content, at, end)
        kind = key & 7
        if kind == NUMBER:
            _, at = _number(content, at, end)
        elif kind == BYTES:
            size, at = _number(content, at, end)
            if size > end - at:
                return
            if key >> 3 == wanted:
                yield at, at + size
            at += size
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            at += 8 if kind == EIGHT_BYTES else 4
        else:
            return


def _number(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends; 7, which is no kind of field, where there is none."""
    value = 0
    for index, byte in enumerate(content[at : min(end, at + LONGEST_NUMBER)]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, at + index + 1
    return 7, end
