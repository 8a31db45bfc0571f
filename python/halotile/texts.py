# SPDX-License-Identifier: MIT
"""Texts in messages: quotations of other libraries' errors, and amounts of memory.

Error texts of torch may fill screens. This package's errors quote the first sentence and chain the exception itself as
``__cause__``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

__all__ = [
    "LONGEST_LINE",
    "LONGEST_QUOTE",
    "bytes_text",
    "full_text",
    "multiple_told",
    "named",
    "one_line",
    "quoted",
    "shortened",
]

LONGEST_QUOTE = 200  # characters
LONGEST_LINE = 1000  # characters of this package's own errors
SEARCHED = 20_000  # characters that are searched for the end of the first sentence
LONGEST_END = 5_000  # characters that are kept of either end of a text: what is searched again and again must be short
UNREADABLE = "(its text cannot be read)"

# A sentence ends at a full stop or at the end of a line. It goes on after a colon or comma, if the next line starts
# with a small letter, and if the next sentence says what was expected.
SENTENCE_END = re.compile(
    r"""(?: (?<=[.!?]) (?<!e\.g\.) (?<!i\.e\.) [ ]? \s (?![ ]?[a-z])
        |   (?<![:,;(\s]) [ ]? \n (?![ ]?[a-z(\[])
        |   (?<![:,;(\s]) [ ]? \n [ ]? \n )
        (?!\s?(?:Expected|Got|But|Tried)\b)""",
    re.VERBOSE,
)
SPACES = re.compile(r"[^\S\n]+")
LARGEST_MULTIPLE = 512  # pixels; larger numbers are hardly multiples
SHORTEST_SENTENCE = 12  # characters: "Sorry." says nothing

# In a text that quotes a traceback, its last line has the error.
QUOTES_A_TRACEBACK = re.compile(r"Traceback [^\n]{0,40}\(most recent call last\)")
END_OF_TRACEBACK = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b: .*", re.MULTILINE)

ABOUT_MULTIPLES = re.compile(r"\b(?:divisible by|multiples? of)\s+[a-z_ ]{0,24}[(=\s]{0,3}(\d{1,4})\b", re.IGNORECASE)

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def full_text(error: BaseException) -> str:
    """An exception's text, of a long one both ends; empty if its ``__str__`` fails."""
    try:
        text = str.__str__(str(error))  # a plain str, even from a subclass
    except Exception:
        return ""
    return text if len(text) <= 2 * LONGEST_END else f"{text[:LONGEST_END]} ... {text[-LONGEST_END:]}"


def quoted(error: BaseException) -> str:
    """The first sentence of an exception's text, on one line of at most 200 characters; its type if it has no text."""
    return _first_sentence(error) or type(error).__name__


def named(error: BaseException) -> str:
    """An exception's type and the first sentence of its text."""
    text = _first_sentence(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException, longest: int = LONGEST_LINE) -> str:
    """The whole text of an exception of this package, on one line; its type if it has no text."""
    return shortened(full_text(error), longest) or type(error).__name__


def multiple_told(text: str) -> int | None:
    """The number that window sides must be multiples of, according to a model's error; None if it names none."""
    found = [int(number) for number in ABOUT_MULTIPLES.findall(text[:SEARCHED])]
    return math.lcm(*found) if found and 1 < math.lcm(*found) <= LARGEST_MULTIPLE else None


def _first_sentence(error: BaseException) -> str:
    try:
        text = str.__str__(str(error))
    except Exception:
        return UNREADABLE
    text = SPACES.sub(" ", text[:SEARCHED]).strip()
    if QUOTES_A_TRACEBACK.search(text):
        text = (END_OF_TRACEBACK.findall(text) or [text])[-1]
    end = SENTENCE_END.search(text, SHORTEST_SENTENCE)
    return shortened((text if end is None else text[: end.start()]).removesuffix("."))


def shortened(text: str, longest: int = LONGEST_QUOTE) -> str:
    """A text on one line of printable characters, cut between words if it is too long."""
    line = " ".join(text[: 20 * longest].split())
    if not line.isprintable():
        line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
    if len(line) <= longest:
        return line
    whole_words = line[: longest - 3].rpartition(" ")[0]
    return (whole_words if len(whole_words) > longest // 2 else line[: longest - 3]) + "..."


def bytes_text(count: float, rounded: Callable[[float], int] = round) -> str:
    """An amount of memory, such as "34 MiB" or "1.2 GiB".

    Args:
        rounded: rounds to whole numbers: math.floor for limits, math.ceil for requirements.
    """
    power = 0
    while power < len(UNITS) - 1 and rounded(count / 1024**power) >= 1024:
        power += 1
    amount = count / 1024**power
    if power < 2 or rounded(amount) >= 10:
        return f"{rounded(amount)} {UNITS[power]}"
    tenths = f"{rounded(amount * 10) / 10:.1f}".removesuffix(".0")
    return f"{tenths} {UNITS[power]}"
