# SPDX-License-Identifier: MIT
"""How errors of others are quoted, and how amounts of memory are written.

What torch says of a failure may fill screens. An error of this package quotes the first sentence of it; the exception
itself, with all of its text, is chained as ``__cause__``.
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
LONGEST_LINE = 1000  # of an error that this package wrote itself
LOOKED_AT = 20_000  # characters of a text in which its first sentence is looked for
UNREADABLE = "(its text cannot be read)"

# A sentence ends at its stop, or at the end of its line. It goes on where a colon or a comma promises more, where the
# next line starts in small letters, and where the next sentence says what was expected: that is half of the message.
SENTENCE_END = re.compile(
    r"""(?: (?<=[.!?]) (?<!e\.g\.) (?<!i\.e\.) [ ]? \s (?![ ]?[a-z])
        |   (?<![:,;(\s]) [ ]? \n (?![ ]?[a-z(\[])
        |   (?<![:,;(\s]) [ ]? \n [ ]? \n )
        (?!\s?(?:Expected|Got|But|Tried)\b)""",
    re.VERBOSE,
)
SPACES = re.compile(r"[^\S\n]+")
LARGEST_MULTIPLE = 512  # pixels, that an error is believed
SHORTEST_SENTENCE = 12  # characters: "Sorry." says nothing

# A text that quotes a traceback says what happened where that ends.
QUOTES_A_TRACEBACK = re.compile(r"Traceback [^\n]{0,40}\(most recent call last\)")
END_OF_TRACEBACK = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b: .*", re.MULTILINE)

ABOUT_MULTIPLES = re.compile(r"\b(?:divisible by|multiples? of)\s+[a-z_ ]{0,24}[(=\s]{0,3}(\d{1,4})\b", re.IGNORECASE)

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def full_text(error: BaseException) -> str:
    """All of an exception's text, whatever its ``__str__`` does; empty where that cannot be read."""
    try:
        return str.__str__(str(error))  # of a subclass of str, the text alone
    except Exception:
        return ""


def quoted(error: BaseException) -> str:
    """The first sentence of an exception's text, on one line of at most 200 characters; its type where it has none."""
    return _first_sentence(error) or type(error).__name__


def named(error: BaseException) -> str:
    """The same after the exception's type."""
    text = _first_sentence(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(error: BaseException, longest: int = LONGEST_LINE) -> str:
    """All of the text of an exception that this package raised, on one line; its type where there is none."""
    return shortened(full_text(error), longest) or type(error).__name__


def multiple_told(text: str) -> int | None:
    """The number of which sides must be multiples, as far as a model's error says that; None if it does not."""
    found = [int(number) for number in ABOUT_MULTIPLES.findall(text[:LOOKED_AT])]
    return math.lcm(*found) if found and 1 < math.lcm(*found) <= LARGEST_MULTIPLE else None


def _first_sentence(error: BaseException) -> str:
    try:
        text = str.__str__(str(error))
    except Exception:
        return UNREADABLE
    text = SPACES.sub(" ", text[:LOOKED_AT]).strip()
    if QUOTES_A_TRACEBACK.search(text):
        text = (END_OF_TRACEBACK.findall(text) or [text])[-1]
    end = SENTENCE_END.search(text, SHORTEST_SENTENCE)
    return shortened((text if end is None else text[: end.start()]).removesuffix("."))


def shortened(text: str, longest: int = LONGEST_QUOTE) -> str:
    """A text on one line that any terminal can show, cut between words where it is longer."""
    line = " ".join(text[: 20 * longest].split())
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else _escaped(letter) for letter in line)
    if len(line) <= longest:
        return line
    whole_words = line[: longest - 3].rpartition(" ")[0]
    return (whole_words if len(whole_words) > longest // 2 else line[: longest - 3]) + "..."


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def bytes_text(count: float, rounded: Callable[[float], int] = round) -> str:
    """An amount of memory as people say it: "34 MiB", "1.2 GiB".

    Args:
        rounded: to whole numbers: round, math.floor for what is not to be exceeded, math.ceil for what is needed.
    """
    power = 0
    while power < len(UNITS) - 1 and rounded(count / 1024**power) >= 1024:
        power += 1
    amount = count / 1024**power
    if power < 2 or rounded(amount) >= 10:
        return f"{rounded(amount)} {UNITS[power]}"
    tenths = f"{rounded(amount * 10) / 10:.1f}".removesuffix(".0")
    return f"{tenths} {UNITS[power]}"
