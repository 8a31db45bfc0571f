# SPDX-License-Identifier: MIT
"""Scales: output pixels per input pixel. One number, or a pair (rows, columns) where the axes differ."""

from __future__ import annotations

import numbers
from fractions import Fraction
from typing import Any, TypeAlias

__all__ = [
    "LARGEST_SCALE",
    "Scale",
    "by_axis",
    "checked_scale",
    "joined",
    "largest_term",
    "scale_from_json",
    "scale_text",
    "scale_to_json",
]

LARGEST_SCALE = 1024  # of numerators and denominators: see HT_MAX_SCALE

# Never a pair of equal ones, so that equal scales compare equal.
Scale: TypeAlias = Fraction | tuple[Fraction, Fraction]


def joined(rows: Fraction, columns: Fraction) -> Scale:
    """The scale with these factors."""
    return rows if rows == columns else (rows, columns)


def by_axis(scale: Scale) -> tuple[Fraction, Fraction]:
    """(rows, columns)."""
    return scale if isinstance(scale, tuple) else (scale, scale)


def largest_term(scale: Scale) -> int:
    """The largest numerator or denominator."""
    return max(term for one in by_axis(scale) for term in (one.numerator, one.denominator))


def scale_text(scale: Scale) -> str:
    """A scale as the option ``scale`` takes it: 3/2, or (2, 1) for (rows, columns)."""
    return f"({scale[0]}, {scale[1]})" if isinstance(scale, tuple) else str(scale)


def checked_scale(value: Any) -> Scale | None:
    """The value of the option `scale`. Raises ValueError or TypeError."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"scale must be a number or a pair (rows, columns), not {value!r}")
        return joined(_factor(value[0]), _factor(value[1]))
    return None if value is None else _factor(value)


def _factor(value: Any) -> Fraction:
    hint = "scale must be a positive fraction such as 4, 0.5, '3/2' or Fraction(3, 2) with terms up to 1024"
    if isinstance(value, bool):
        raise TypeError(f"{hint}, not {value!r}")
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
            fraction = _simple_fraction(float(str(value)))  # str: numpy.float32(1.2) is 1.2
        else:
            fraction = Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{hint}, not {value!r}") from None
    if fraction <= 0 or largest_term(fraction) > LARGEST_SCALE:
        raise ValueError(f"{hint}, not {value!r}")
    return fraction


def _simple_fraction(value: float) -> Fraction:
    """The intended fraction of a float, if its terms are small: 6/5 for 1.2, 1/3 for 0.333...."""
    simple = Fraction(value).limit_denominator(LARGEST_SCALE)
    return simple if abs(float(simple) - value) <= 1e-12 * abs(value) else Fraction(value)


def scale_to_json(scale: Scale) -> str | list[str]:
    return [str(one) for one in scale] if isinstance(scale, tuple) else str(scale)


def scale_from_json(value: object) -> Scale:
    """Reads what `scale_to_json` wrote. Raises ValueError for anything else, and for larger terms."""
    parts = value if isinstance(value, list) else [value, value]
    if len(parts) != 2 or not all(isinstance(one, str) for one in parts):
        raise ValueError("it must be a fraction as a string, or a list of two")
    rows, columns = map(Fraction, parts)
    scale = joined(rows, columns)
    if min(by_axis(scale)) <= 0 or largest_term(scale) > LARGEST_SCALE:
        raise ValueError("it must be a positive fraction with terms up to 1024, or a list of two")
    return scale
