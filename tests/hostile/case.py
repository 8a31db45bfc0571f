# SPDX-License-Identifier: MIT
"""A case of the corpus, and damage that any file can take. Everything is drawn from generators with fixed seeds."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Files = dict[str, bytes]  # by name, below the folder of the input

HUGE = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFF, 0, 1 << 20)


@dataclass(frozen=True)
class Case:
    """Attributes:
    kind: the format. how: the damage. number: of this kind and damage.
    files: makes the input.
    path: the input that is named on the command line.
    arguments: of `halotile restore`, with {input}.
    wanted: the content of the result, if the input is not refused; None if any result will do.
    named: what a refusal must have in its line.
    changes: other files that may change.
    absolute: whether the input is named from the root on.
    """

    kind: str
    how: str
    number: int
    files: Callable[[], Files]
    path: str
    arguments: tuple[str, ...]
    wanted: bytes | None = None
    named: str = "in/"
    changes: tuple[bytes, ...] = ()
    absolute: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.how}-{self.number}"


def seeded(*names: object) -> random.Random:
    return random.Random(zlib.crc32(repr(names).encode()))


# ---- damage ----------------------------------------------------------------------------------------------------------


def truncated(content: bytes, count: int, seed: object) -> Iterator[bytes]:
    """Nothing, one byte, all but one, and anything between."""
    draws = seeded("truncated", seed)
    lengths = [0, 1, len(content) - 1, len(content) // 2]
    lengths += [draws.randrange(len(content)) for _ in range(count)]
    return (content[:length] for length in lengths[:count])


def flipped(content: bytes, count: int, seed: object) -> Iterator[bytes]:
    """One to eight bits turned, half of the time near the start, where headers are."""
    draws = seeded("flipped", seed)
    for _ in range(count):
        damaged = bytearray(content)
        end = len(content) if draws.random() < 0.5 else min(len(content), 200)
        for _ in range(draws.choice((1, 1, 2, 4, 8))):
            damaged[draws.randrange(end)] ^= 1 << draws.randrange(8)
        yield bytes(damaged)


def claiming(content: bytes, count: int, seed: object) -> Iterator[bytes]:
    """Numbers of two, four or eight bytes that are huge, in either byte order."""
    draws = seeded("claiming", seed)
    for _ in range(count):
        size = draws.choice((2, 4, 4, 8))
        number = draws.choice(HUGE) & ((1 << 8 * size) - 1)
        end = max(1, min(len(content), draws.choice((64, 256, len(content)))) - size)
        at = draws.randrange(end)
        claim = number.to_bytes(size, draws.choice(("little", "big")))
        yield content[:at] + claim + content[at + size :]


def shuffled(content: bytes, count: int, seed: object) -> Iterator[bytes]:
    """Parts left out, repeated, or replaced by noise."""
    draws = seeded("shuffled", seed)
    for _ in range(count):
        start = draws.randrange(len(content))
        stop = min(len(content), start + draws.choice((1, 4, 16, 64, 256)))
        part = content[start:stop]
        new = draws.choice((b"", part * 2, part * 50, draws.randbytes(len(part)), bytes(len(part)), b"\xff" * 40))
        yield content[:start] + new + content[stop:]


DAMAGE = {"truncated": truncated, "bits flipped": flipped, "huge claims": claiming, "parts moved": shuffled}


UNDAMAGED = "undamaged"  # must be restored

# ---- commands --------------------------------------------------------------------------------------------------------

SIZES = ("--tile-size", "24", "--halo", "3", "--phase", "1")
IDENTITY = ("-m", "tests.hostile.zygote:identity")
IMAGE = ("{input}", "-o", "out/result.tif", *IDENTITY, *SIZES)


def damaged(
    kind: str, name: str, content: bytes, each: int, arguments: tuple[str, ...] = IMAGE, others: Files | None = None
) -> Iterator[Case]:
    """One good file, with other files beside it, and cases of all damage to it."""
    yield Case(kind, UNDAMAGED, 0, lambda: {**(others or {}), name: content}, name, arguments)
    for how, damage in DAMAGE.items():
        for number, one in enumerate(damage(content, each, (kind, name))):
            yield Case(kind, how, number, lambda one=one: {**(others or {}), name: one}, name, arguments)
