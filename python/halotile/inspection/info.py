# SPDX-License-Identifier: MIT
"""The result of inspecting a model: `ModelInfo`, its report and its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from ..notebook.field import field_svg
from ..notebook.svg import Printer, card
from ..scales import Scale, by_axis, scale_from_json, scale_to_json
from ..texts import quoted

__all__ = ["Field", "GlobalOperation", "ModelInfo"]

FORMAT = "halotile.ModelInfo"
VERSION = 2
AGAINST = ("contradicted", "receptive field could not be confirmed")  # in doubts about the field itself

# Kinds of operations that reduce the whole image to a few numbers, which can be held fixed.
STATISTICS = (
    *("global pooling", "squeeze-and-excite", "instance norm", "group norm"),
    *("norm over space", "matrix product over space"),
)

LOCAL = (
    "its statistics are of the whole image; a model that was trained on small images is usually better with those of "
    "windows of that size: global_stats='local', stats_size= (see docs/statistics.md)"
)

Pair = tuple[int, int]
T = TypeVar("T")


class Field(NamedTuple):
    """A receptive field: how far the inputs of an output pixel extend to each side, in input pixels.

    With scale ``s`` of the axis, output pixel ``o`` depends only on input pixels from ``floor(o / s) - left`` to
    ``floor(o / s) + right`` (rows: top, bottom). The numbers are the smallest that hold for all ``o``, at least 0.
    """

    left: int
    right: int
    top: int
    bottom: int

    @property
    def halo(self) -> Pair:
        """The larger of the two sides, (rows, columns)."""
        return max(self.top, self.bottom), max(self.left, self.right)

    def along(self, axis: int) -> Pair:
        """(before, after) along the rows (axis 0) or the columns (axis 1)."""
        return (self.top, self.bottom) if axis == 0 else (self.left, self.right)

    def union(self, other: Field) -> Field:
        """The larger of both fields on each side."""
        return Field(*map(max, self, other))


class GlobalOperation(NamedTuple):
    """An operation that depends on the whole image.

    Attributes:
        path: path of its module, as in ``named_modules()``; empty for the model itself or if unknown.
        kind: "global pooling", "norm over space", "attention", "Fourier transform", ...
        how: the method that found it.
    """

    path: str
    kind: str
    how: str


@dataclass(frozen=True)
class ModelInfo:
    """Requirements and behaviour of a model. Pairs are (rows, columns).

    Attributes:
        scale: output pixels per input pixel; a pair where rows and columns differ.
        in_channels, out_channels: None if unknown.
        receptive_field: exact radius in input pixels; None if unbounded or unknown.
        phase: shift in input pixels with which the output shifts too: total stride or attention window; None if there
            is none (the model depends on absolute position) or it is unknown.
        minimum_size: smallest window, input pixels.
        multiple: step between valid window sizes, input pixels.
        trim: output pixels that valid convolutions trim at each end of a window.
        global_operations: operations that depend on the whole image.
        local_field: the receptive field with the statistics of global operations held fixed; equal to receptive_field
            if there are none. None if unbounded or unknown.
        value_range: (low, high) to which outputs are clamped; None if they are not clamped.
        clamps: whether outputs stay in a range; None if unknown.
        deterministic: whether the same input gave the same output twice.
        batch_invariant: whether an image gives the same output alone and in a batch.
        edges_local: whether outputs near a window's edge depend only on inputs near it. This is false for circular
            padding, with which boundary="native" is not exact.
        how: the method that established each attribute.
        doubts: sentences about what is uncertain.
    """

    scale: Scale
    in_channels: int | None = None
    out_channels: int | None = None
    receptive_field: Field | None = None
    phase: tuple[int | None, int | None] = (1, 1)
    minimum_size: Pair = (1, 1)
    multiple: Pair = (1, 1)
    trim: Pair = (0, 0)
    global_operations: tuple[GlobalOperation, ...] = ()
    local_field: Field | None = None
    value_range: tuple[float, float] | None = None
    clamps: bool | None = None
    deterministic: bool = True
    batch_invariant: bool = True
    edges_local: bool = True
    how: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def halo(self) -> Pair | None:
        """The exact halo (rows, columns), input pixels; None if no halo is exact or none is known."""
        return None if self.receptive_field is None else self.receptive_field.halo

    @property
    def certain(self) -> bool:
        """Whether the field rests on more than noise, and nothing contradicted it."""
        established = self.how.get("receptive_field") or self.how.get("local_field") or ""
        shown = any(method in established for method in ("structure", "propagation"))
        return shown and self.deterministic and not any(word in one for one in self.doubts for word in AGAINST)

    @property
    def takes_statistics(self) -> bool:
        """Whether it looks at the whole image, but only by statistics. Those of training were of small images."""
        return bool(self.global_operations) and self.local_field is not None

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in self._lines())
        lines = [f"{name:<{width}}  {value}{f'  [{how}]' if how else ''}" for name, value, how in self._lines()]
        lines += [f"{'global':<{width}}  {operation_text(one)}" for one in self.global_operations]
        lines += [f"{'advice':<{width}}  {LOCAL}"] if self.takes_statistics else []
        lines += [f"{'doubt':<{width}}  {sentence}" for sentence in self.doubts]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(name, value, how) for name, value, how in self._lines()]
        rows += [("global", f"{one.path or '(the model)'}: {one.kind}", one.how) for one in self.global_operations]
        rows += [("advice", LOCAL, "")] if self.takes_statistics else []
        rows += [("doubt", sentence, "") for sentence in self.doubts]
        field = self.receptive_field or self.local_field
        picture = "" if field is None else field_svg(*field, self.phase)
        told = [(name, f"{value}  [{how}]" if how else value) for name, value, how in rows]
        return card("model", told, picture)

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        printer.text(str(self))

    def _lines(self) -> Iterator[tuple[str, str, str]]:
        """(name, value, how) of the printed lines."""

        def line(name: str, value: str, key: str) -> tuple[str, str, str]:
            return name, value, self.how.get(key, "")

        yield line("scale", both(*by_axis(self.scale)), "scale")
        yield line("channels", f"{known(self.in_channels)} in, {known(self.out_channels)} out", "in_channels")
        yield line("receptive field", field_text(self.receptive_field), "receptive_field")
        if self.local_field != self.receptive_field:
            yield line("with fixed statistics", field_text(self.local_field), "local_field")
        halo = self.halo
        yield "exact halo", "none known" if halo is None else both(*halo), ""
        yield line("phase", both(*(known(one) for one in self.phase)), "phase")
        sizes = f"at least {both(*self.minimum_size)}, multiples of {both(*self.multiple)}"
        yield line("window sizes", sizes, "multiple")
        yield line("trim", both(*self.trim), "trim")
        yield line("clamps", clamp_text(self.clamps, self.value_range), "clamps")
        yield line("deterministic", "yes" if self.deterministic else "no", "deterministic")
        yield line("batch-invariant", "yes" if self.batch_invariant else "no", "batch_invariant")

    def to_json(self) -> str:
        """The whole record as JSON, with format and version."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        content |= {"scale": scale_to_json(self.scale), "how": dict(self.how)}
        return json.dumps({"format": FORMAT, "version": VERSION} | content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is something else, or of another version.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"text must be what ModelInfo.to_json wrote, not {text[:40]!r}")
        if content.get("version") != VERSION:
            raise ValueError(f"version must be {VERSION}, not {content.get('version')!r}")
        names = {one.name for one in fields(cls)}
        given = content.keys() - {"format", "version"}
        if given != names:
            raise ValueError(f"fields are missing or unknown: {', '.join(sorted(given ^ names))}")
        return cls(**{name: restored(name, content[name]) for name in names})


def restored(name: str, value: object) -> Any:
    """An attribute's value from untrusted JSON data. Raises ValueError."""
    try:
        return RESTORED[name](value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{name} cannot be read from {value!r:.80}: {quoted(error)}") from error


LARGEST = 1 << 20  # for any number of pixels or channels


def _whole(value: object, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= LARGEST:
        raise ValueError(f"it must be a whole number from {least} to {LARGEST}")
    return value


def _sides(value: Iterable[object], least: int) -> Pair:
    rows, columns = value
    return _whole(rows, least), _whole(columns, least)


def _phase(value: Iterable[object]) -> tuple[int | None, int | None]:
    rows, columns = (None if one is None else _whole(one, 1) for one in value)
    return rows, columns


def _field(value: Iterable[object] | None) -> Field | None:
    return None if value is None else Field(*map(_whole, value))


def _range(value: Iterable[Any] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = map(float, value)
    if not -1e30 < low < high < 1e30:
        raise ValueError("it must be two numbers, the lower one first")
    return low, high


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("it must be a string")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else read(value)


def _operation(value: Iterable[object]) -> GlobalOperation:
    return GlobalOperation(*map(_string, value))


RESTORED: dict[str, Callable[[Any], object]] = {
    "scale": scale_from_json,
    **dict.fromkeys(("in_channels", "out_channels"), _optional(lambda value: _whole(value, 1))),
    **dict.fromkeys(("receptive_field", "local_field"), _field),
    "phase": _phase,
    **dict.fromkeys(("minimum_size", "multiple"), lambda value: _sides(value, 1)),
    "trim": lambda value: _sides(value, -LARGEST),
    "global_operations": lambda value: tuple(map(_operation, value)),
    "value_range": _range,
    "clamps": _optional(_truth),
    **dict.fromkeys(("deterministic", "batch_invariant", "edges_local"), _truth),
    "how": lambda value: {_string(name): _string(one) for name, one in dict(value).items()},
    "doubts": lambda value: tuple(map(_string, value)),
}


def known(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def both(rows: object, columns: object) -> str:
    return f"{rows}" if rows == columns else f"{rows} (rows), {columns} (columns)"


def field_text(one: Field | None) -> str:
    if one is None:
        return "unbounded or unknown"
    return f"left {one.left}, right {one.right}, top {one.top}, bottom {one.bottom}"


def clamp_text(clamps: bool | None, value_range: tuple[float, float] | None) -> str:
    if clamps is None:
        return "unknown"
    return f"to {value_range[0]:g} to {value_range[1]:g}" if clamps and value_range else ("yes" if clamps else "no")


def operation_text(one: GlobalOperation) -> str:
    return f"{one.path or '(the model)'}: {one.kind}  [{one.how}]"
