# SPDX-License-Identifier: MIT
"""The options of a run: a frozen dataclass that checks its values. Errors quote the value received."""

from __future__ import annotations

import inspect
import numbers
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np

from .layouts import checked_layout
from .models.chosen import checked_output
from .models.needs import Needs
from .scales import checked_scale

if TYPE_CHECKING:
    import torch

__all__ = [
    "ENGINES",
    "HalolessOptions",
    "JudgedOptions",
    "Options",
    "PlanOptions",
    "RestoreOptions",
    "RunOptions",
    "check_no_reduce",
    "checked_progress",
    "choice",
    "dtype_name",
    "integer",
    "signature_with_options",
    "white_level",
]

Boundary = Literal["reflect", "native"]
Blend = Literal["average", "linear", "cosine", "gaussian"]
Alpha = Literal["restore", "resize", "opaque", "channel"]
Nonfinite = Literal["raise", "warn", "ignore"]
Engine = Literal["host", "torch", "mps"]
GlobalStats = Literal["tile", "frozen", "exact"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]
Reduce: TypeAlias = "Literal['argmax'] | Callable[[Any], Any]"
Schedule = Literal["auto", "tiles", "stream"]

BOUNDARIES: tuple[str, ...] = get_args(Boundary)
BLENDS: tuple[str, ...] = get_args(Blend)
ALPHAS: tuple[str, ...] = get_args(Alpha)
NONFINITE: tuple[str, ...] = get_args(Nonfinite)
ENGINES: tuple[str, ...] = get_args(Engine)
GLOBAL_STATS: tuple[str, ...] = get_args(GlobalStats)
MEMORY_FORMATS: tuple[str, ...] = get_args(MemoryFormat)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
MODEL_DTYPES = ("float32", "float16", "bfloat16")
IMAGE_DTYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")

LARGEST = 2**40  # of any size: see HT_MAX_SIDE
AUTO_OVERLAP = 16
DEFAULT_TILE = 512
MOST_PLACES = 4096  # for verify=
MOST_BITS = 32  # for white=

NO_NEEDS = Needs()

Pair = tuple[int, int]

# ---- what may be passed, for type checkers ---------------------------------------------------------------------------

Device: TypeAlias = "str | int | torch.device"
Factor: TypeAlias = "float | str | Fraction"
Halo: TypeAlias = "int | Pair | Literal['exact', 'auto']"
DType: TypeAlias = "str | type[np.generic] | np.dtype[Any] | torch.dtype"


class SharedOptions(TypedDict, total=False):
    """Options of `restore_tiled` and their types, except halo, tolerance and the form of the result."""

    tile_size: int | Pair | Literal["auto"]
    overlap: int | Pair | Literal["auto"]
    blend: Blend
    boundary: Boundary
    scale: Factor | tuple[Factor, Factor] | None
    phase: int | Pair | None
    schedule: Schedule
    global_stats: GlobalStats | None
    batch_size: int | Literal["auto"]
    device: Device | Sequence[Device] | None
    dtype: DType | None
    engine: Engine | None
    value_range: tuple[float, float] | list[float] | None
    white: float | str | None
    nodata: float | Literal["nan"] | None
    output: int | str | None
    extra: Any
    layout: str | None
    alpha: Alpha
    on_nonfinite: Nonfinite
    progress: bool | Callable[[int, int], object] | None
    keep_heap: bool
    memory_format: MemoryFormat
    memory_limit: int | None
    compile: bool


class JudgedOptions(SharedOptions, total=False):
    halo: Halo


class HalolessOptions(SharedOptions, total=False):
    tolerance: float | None
    out_dtype: DType | None
    reduce: Reduce | None


class RunOptions(HalolessOptions, total=False):
    halo: Halo


class RestoreOptions(RunOptions, total=False):
    verify: int
    out: Any


class PlanOptions(RestoreOptions, total=False):
    needs: Needs


# ---- checks ----------------------------------------------------------------------------------------------------------


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


Check = Callable[[str, Any], Any]  # maps name and value of an option to the value used; raises an error that names it


def _one_of(*allowed: str) -> Check:
    return lambda name, value: choice(name, value, allowed)


def _whole(least: int, most: int = LARGEST) -> Check:
    return lambda name, value: integer(name, value, least, most)


def _or(word: str | None, check: Check) -> Check:
    return lambda name, value: value if (value is None and word is None) or value == word else check(name, value)


def _dtype_of(allowed: tuple[str, ...]) -> Check:
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


def _pair(name: str, value: Any, least: int) -> Pair:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or a pair (rows, columns), not {value!r}")
        return integer(name, value[0], least), integer(name, value[1], least)
    try:
        number = integer(name, value, least)
    except TypeError as error:
        raise TypeError(f"{error}, nor a pair (rows, columns)") from None
    return number, number


def _tile_size(_: str, value: Any) -> Pair | str:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"tile_size must be 'auto', a number or a pair (rows, columns), not {value!r}")
        return value
    return _pair("tile_size", value, 1)


def _halo(_: str, value: Any) -> Pair | str:
    if isinstance(value, str):
        if value not in ("exact", "auto"):
            raise ValueError(f"halo must be 'exact', 'auto', a number or a pair (rows, columns), not {value!r}")
        return value
    return _pair("halo", value, 0)


def tolerance_of(value: Any, units: str = "in units of the image's dtype") -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < float("inf"):
        raise ValueError(f"tolerance must be a number from 0 on, {units}, not {value!r}")
    return float(value)


def _value_range(_: str, value: Any) -> tuple[float, float] | None:
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


def _nodata(value: Any) -> float | None:
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


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _devices(_: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if not value or None in value:
            raise ValueError(f"device must be None, a device or a list of devices, not {value!r}")
        return tuple(value)
    return value


def _needs(_: str, value: Any) -> Needs:
    if not isinstance(value, Needs):
        raise TypeError(f"needs must be a halotile.models.needs.Needs, not {value!r}")
    return value


def _reduce(_: str, value: Any) -> Any:
    if value is None or value == "argmax" or callable(value):
        return value
    raise ValueError(f"reduce must be None, 'argmax' or a callable, not {value!r}")


def _positive(name: str, value: Any) -> Pair:
    return _pair(name, value, 1)


def _tolerance(_: str, value: Any) -> float | None:
    return tolerance_of(value)


def option(default: Any, check: Check = lambda _, value: value) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The options of `restore_tiled`, which documents them.

    needs: constraints on windows from a model file; they also adjust phase and scale.
    """

    tile_size: Any = option(DEFAULT_TILE, _tile_size)
    halo: Any = option(32, _halo)
    overlap: Any = option("auto")  # checked with tile_size: see `overlap_pixels`
    blend: str = option("average", _one_of(*BLENDS))
    boundary: str = option("reflect", _one_of(*BOUNDARIES))
    scale: Any = option(None, lambda _, value: checked_scale(value))
    phase: Any = option(None, _or(None, _positive))
    tolerance: float | None = option(None, _tolerance)
    schedule: str = option("auto", _one_of(*SCHEDULES))
    global_stats: str | None = option(None, _or(None, _one_of(*GLOBAL_STATS)))
    verify: int = option(0, _whole(0, MOST_PLACES))
    batch_size: int | Literal["auto"] = option(1, _or("auto", _whole(1)))
    device: Any = option(None, _devices)
    dtype: Any = option(None, _or("auto", _dtype_of(MODEL_DTYPES)))
    engine: str | None = option(None, _or(None, _one_of(*ENGINES)))
    value_range: tuple[float, float] | None = option(None, _value_range)
    white: float | str | None = option(None, white_level)
    nodata: float | None = option(None, lambda _, value: _nodata(value))
    out: Any = option(None)
    out_dtype: Any = option(None, _dtype_of(IMAGE_DTYPES))
    reduce: Any = option(None, _reduce)
    output: int | str | None = option(None, checked_output)
    extra: Any = option(None)
    layout: str | None = option(None, lambda _, value: checked_layout(value))
    alpha: str = option("restore", _one_of(*ALPHAS))
    on_nonfinite: str = option("raise", _one_of(*NONFINITE))
    progress: Any = option(None, checked_progress)
    keep_heap: bool = option(True, _flag)
    memory_format: str = option("auto", _one_of(*MEMORY_FORMATS))
    memory_limit: int | None = option(None, _or(None, _whole(1)))
    compile: bool = option(False, _flag)
    needs: Needs = option(NO_NEEDS, _needs)

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                from difflib import get_close_matches  # avoids the import in every process

                known.remove("needs")  # set by the model
                near = "".join(f", did you mean {one!r}?" for one in get_close_matches(name, known, n=1))
                raise TypeError(f"there is no option {name!r}{near}; options are {', '.join(known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, one.metadata["check"](one.name, getattr(self, one.name)))
        if self.verify and self.reduce is not None:
            raise ValueError(f"verify={self.verify} does not go with reduce=: labels do not show small differences")
        self.needs.check(self.scale, self.verify)
        if self.needs.scale is not None:
            object.__setattr__(self, "scale", Fraction(self.needs.scale))
        if self.phase is not None:
            object.__setattr__(self, "phase", self.needs.phase(self.phase))
        if self.tile_size != "auto" and (self.phase is not None or self.overlap != "auto"):
            _ = self.overlap_pixels  # raises now if invalid

    @property
    def asks_model(self) -> bool:
        """Whether the model must be inspected: see halo.py."""
        return isinstance(self.halo, str) or self.global_stats is not None

    @property
    def model_dtype(self) -> str | None:
        return None if self.dtype == "auto" else self.dtype

    @property
    def devices(self) -> tuple[Any, ...]:
        """Tiles are blended on the first."""
        return self.device if isinstance(self.device, tuple) else () if self.device is None else (self.device,)

    @property
    def first_device(self) -> Any:
        return self.devices[0] if self.devices else None

    @property
    def tuned(self) -> bool:
        """Whether tiles are tuned for the model and this machine: see auto/tiles.py."""
        return "auto" in (self.tile_size, self.batch_size) or self.memory_limit is not None

    @property
    def unsettled(self) -> bool:
        return isinstance(self.halo, str) or self.phase is None

    def within(self, white: float) -> float:
        return white / 510 if self.tolerance is None else self.tolerance

    def with_tiles(self, tile_size: Pair, batch_size: int, phase: Pair) -> Options:
        """The same with other tiles, and an overlap that fits them in steps of the phase."""
        overlap = self.overlap
        if not isinstance(overlap, str):
            asked = _pair("overlap", overlap, 0)
            overlap = tuple(
                max(0, min(lap, tile - step)) for lap, tile, step in zip(asked, tile_size, phase, strict=True)
            )
        return replace(self, tile_size=tile_size, batch_size=batch_size, overlap=overlap)

    @cached_property
    def overlap_pixels(self) -> Pair:
        """ "auto": 16 pixels, fewer for small tiles, so that tile_size - overlap is at least the phase."""
        if isinstance(self.overlap, str):
            if self.overlap != "auto":
                raise ValueError(f"overlap must be 'auto', a number or a pair (rows, columns), not {self.overlap!r}")
            y, x = (
                max(0, min(AUTO_OVERLAP, tile // 8, tile - phase))
                for tile, phase in zip(self.tile_size, self.phase, strict=True)
            )
            return y, x
        overlap = _pair("overlap", self.overlap, 0)
        for side, (lap, tile) in enumerate(zip(overlap, self.tile_size, strict=True)):
            if lap >= tile:
                raise ValueError(
                    f"overlap must be below tile_size, not {lap} with tile_size {tile} ({('rows', 'columns')[side]})"
                )
        return overlap


def check_no_reduce(options: Options) -> None:
    """Raises ValueError for what compares what models make."""
    if options.reduce is not None:
        text = "reduce must be None where results are compared: labels do not show small differences"
        raise ValueError(f"{text}, and what the model makes does")


def signature_with_options(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, with ``**options`` replaced by the options of `restore_tiled`."""
    own = inspect.signature(function)
    kept = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Options)
        if one.name != "needs"  # set by the model
    ]
    return own.replace(parameters=[*kept, *options])
