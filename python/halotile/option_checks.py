# SPDX-License-Identifier: MIT
"""Checks of options: each maps the name and value of one to the value used. Errors quote the value received."""

from __future__ import annotations

import numbers
import operator
import re
from collections.abc import Callable
from typing import Any

__all__ = [
    "LARGEST",
    "Check",
    "checked_devices",
    "checked_nodata",
    "checked_progress",
    "checked_reduce",
    "checked_tolerance",
    "checked_value_range",
    "checked_window",
    "choice",
    "dtype_name",
    "dtype_of",
    "flag",
    "integer",
    "one_of",
    "or_else",
    "pair",
    "pair_or",
    "positive",
    "tolerance_of",
    "white_level",
    "whole",
]

LARGEST = 2**40  # of any size: see HT_MAX_SIDE
MOST_BITS = 32  # for white=

Pair = tuple[int, int]


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


Check = Callable[[str, Any], Any]  # maps name and value of an option to the value used; raises an error that names it


def one_of(*allowed: str) -> Check:
    return lambda name, value: choice(name, value, allowed)


def whole(least: int, most: int = LARGEST) -> Check:
    return lambda name, value: integer(name, value, least, most)


def or_else(word: str | None, check: Check) -> Check:
    return lambda name, value: value if (value is None and word is None) or value == word else check(name, value)


def dtype_of(allowed: tuple[str, ...]) -> Check:
    return lambda name, value: dtype_name(name, value, allowed)


def integer(name: str, value: Any, least: int, most: int = LARGEST) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {'2**40' if most == LARGEST else most}, not {value!r}")
    return number


def pair(name: str, value: Any, least: int) -> Pair:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or a pair (rows, columns), not {value!r}")
        return integer(name, value[0], least), integer(name, value[1], least)
    try:
        number = integer(name, value, least)
    except TypeError as error:
        raise TypeError(f"{error}, nor a pair (rows, columns)") from None
    return number, number


def pair_or(*words: str, least: int) -> Check:
    def check(name: str, value: Any) -> Pair | str:
        if not isinstance(value, str):
            return pair(name, value, least)
        if value not in words:
            allowed = ", ".join(map(repr, words))
            raise ValueError(f"{name} must be {allowed}, a number or a pair (rows, columns), not {value!r}")
        return value

    return check


checked_window = pair_or("trained", least=1)


def tolerance_of(value: Any, units: str = "in units of the image's dtype") -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < float("inf"):
        raise ValueError(f"tolerance must be a number from 0 on, {units}, not {value!r}")
    return float(value)


def checked_value_range(_: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    hint = "value_range must be a pair (low, high) of numbers with low < high, both and high - low within float32"
    try:
        low, high = (float(v) for v in value) if isinstance(value, (tuple, list)) else ()
    except (TypeError, ValueError):
        raise ValueError(f"{hint}, not {value!r}") from None
    if not (1e-30 <= high - low <= 1e38 and abs(low) <= 1e38 and abs(high) <= 1e38):
        raise ValueError(f"{hint}, not {value!r}")
    return low, high


def white_level(name: str, value: Any) -> float | str | None:
    """A number above 0 from a number or "12bit"; "max" and None stay."""
    if value is None or value == "max":
        return value
    bits = re.fullmatch(r"([0-9]{1,2})[ -]?bits?", value) if isinstance(value, str) else None
    if bits is not None and 1 <= int(bits[1]) <= MOST_BITS:
        return float(2 ** int(bits[1]) - 1)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 1e-30 <= value <= 1e38:
        raise ValueError(
            f"{name} must be a number above 0, 'max', or bits such as '12bit' (which is 4095), not {value!r}"
        )
    return float(value)


def checked_nodata(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and value.lower() == "nan":
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"nodata must be a number or 'nan', not {value!r}")
    return float(value)


def dtype_name(name: str, value: Any, allowed: tuple[str, ...]) -> str | None:
    """'float32' from a string, a NumPy dtype or type, or a torch.dtype; None stays None."""
    if value is None:
        return None
    text = str(value).removeprefix("torch.")
    if not isinstance(value, str):
        text = getattr(value, "__name__", text)  # the type numpy.float32
    text = {"half": "float16", "single": "float32", "float": "float64", "double": "float64"}.get(text, text)
    if text not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return text


def checked_progress(_: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or callable(value):
        return value or None
    raise TypeError(f"progress must be True, None or a callable (done, total), not {value!r}")


def checked_reduce(_: str, value: Any) -> Any:
    if value is None or value == "argmax" or callable(value):
        return value
    raise ValueError(f"reduce must be None, 'argmax' or a callable, not {value!r}")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def checked_devices(_: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if not value or None in value:
            raise ValueError(f"device must be None, a device or a list of devices, not {value!r}")
        return tuple(value)
    return value


def positive(name: str, value: Any) -> Pair:
    return pair(name, value, 1)


def checked_tolerance(_: str, value: Any) -> float | None:
    return tolerance_of(value)
