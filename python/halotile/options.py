# SPDX-License-Identifier: MIT
"""The options of a run: one frozen dataclass, checked when it is made. Errors quote what was received."""

from __future__ import annotations

import inspect
import numbers
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np

from .layouts import checked_layout
from .models.needs import Needs

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
    "choice",
    "dtype_name",
    "integer",
    "signature_with_options",
]

Boundary = Literal["reflect", "native"]
Blend = Literal["average", "linear", "cosine", "gaussian"]
Alpha = Literal["restore", "resize", "opaque", "channel"]
Nonfinite = Literal["raise", "warn", "ignore"]
Engine = Literal["host", "torch", "mps"]
GlobalStats = Literal["tile", "frozen", "exact"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]

BOUNDARIES: tuple[str, ...] = get_args(Boundary)
BLENDS: tuple[str, ...] = get_args(Blend)
ALPHAS: tuple[str, ...] = get_args(Alpha)
NONFINITE: tuple[str, ...] = get_args(Nonfinite)
ENGINES: tuple[str, ...] = get_args(Engine)
GLOBAL_STATS: tuple[str, ...] = get_args(GlobalStats)
MEMORY_FORMATS: tuple[str, ...] = get_args(MemoryFormat)
MODEL_DTYPES = ("float32", "float16", "bfloat16")
IMAGE_DTYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")

LARGEST = 2**40  # of any size: see HT_MAX_SIDE
LARGEST_SCALE = 1024
AUTO_OVERLAP = 16
DEFAULT_TILE = 512

NO_NEEDS = Needs()

Pair = tuple[int, int]

# ---- what may be passed, for type checkers ---------------------------------------------------------------------------

Device: TypeAlias = "str | int | torch.device"
Halo: TypeAlias = "int | Pair | Literal['exact', 'auto']"
DType: TypeAlias = "str | type[np.generic] | np.dtype[Any] | torch.dtype"


class SharedOptions(TypedDict, total=False):
    """The options of `restore_tiled`, as they may be passed, but for halo, tolerance and what the result is like."""

    tile_size: int | Pair | Literal["auto"]
    overlap: int | Pair | Literal["auto"]
    blend: Blend
    boundary: Boundary
    scale: float | str | Fraction | None
    phase: int | Pair | None
    global_stats: GlobalStats | None
    batch_size: int | Literal["auto"]
    device: Device | Sequence[Device] | None
    dtype: DType | None
    engine: Engine | None
    value_range: tuple[float, float] | list[float] | None
    layout: str | None
    alpha: Alpha
    on_nonfinite: Nonfinite
    progress: bool | Callable[[int, int], object] | None
    keep_heap: bool
    memory_format: MemoryFormat
    memory_limit: int | None
    compile: bool


class JudgedOptions(SharedOptions, total=False):
    """Those of `halotile.testing`, which makes the result and has a tolerance of its own."""

    halo: Halo


class HalolessOptions(SharedOptions, total=False):
    """Those of `error_curve`, which tries halos."""

    tolerance: float | None
    out_dtype: DType | None


class RunOptions(HalolessOptions, total=False):
    """Those of `iter_bands` and `restore_to`, which hold no result."""

    halo: Halo


class RestoreOptions(RunOptions, total=False):
    """All of them."""

    verify: int
    out: Any


class PlanOptions(RestoreOptions, total=False):
    """Those of `plan_tiles`."""

    needs: Needs


# ---- checks ----------------------------------------------------------------------------------------------------------


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return value


def _optional(name: str, value: Any, allowed: tuple[str, ...]) -> str | None:
    return None if value is None else choice(name, value, allowed)


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
    """A number for both axes, or (rows, columns)."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or a pair (rows, columns), not {value!r}")
        return integer(name, value[0], least), integer(name, value[1], least)
    try:
        number = integer(name, value, least)
    except TypeError as error:
        raise TypeError(f"{error}, nor a pair (rows, columns)") from None
    return number, number


def _tile_size(value: Any) -> Pair | str:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"tile_size must be 'auto', a number or a pair (rows, columns), not {value!r}")
        return value
    return _pair("tile_size", value, 1)


def _halo(value: Any) -> Pair | str:
    if isinstance(value, str):
        if value not in ("exact", "auto"):
            raise ValueError(f"halo must be 'exact', 'auto', a number or a pair (rows, columns), not {value!r}")
        return value
    return _pair("halo", value, 0)


def tolerance_of(value: Any, units: str = "in units of the image's dtype") -> float | None:
    """A largest difference that is allowed. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < float("inf"):
        raise ValueError(f"tolerance must be a number from 0 on, {units}, not {value!r}")
    return float(value)


def _scale(value: Any) -> Fraction | None:
    if value is None:
        return None
    hint = "scale must be a positive fraction such as 4, 0.5, '3/2' or Fraction(3, 2) with terms up to 1024"
    if isinstance(value, bool):
        raise TypeError(f"{hint}, not {value!r}")
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Rational):
            fraction = _simple_fraction(float(str(value)))  # numpy.float32(1.2) is 1.2
        else:
            fraction = Fraction(value)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{hint}, not {value!r}") from None
    if fraction <= 0 or max(fraction.numerator, fraction.denominator) > LARGEST_SCALE:
        raise ValueError(f"{hint}, not {value!r}")
    return fraction


def _simple_fraction(value: float) -> Fraction:
    """6/5 for 1.2 and 1/3 for 0.333...: what was meant by a float, if it has small terms."""
    simple = Fraction(value).limit_denominator(LARGEST_SCALE)
    return simple if abs(float(simple) - value) <= 1e-12 * abs(value) else Fraction(value)


def _value_range(value: Any) -> tuple[float, float] | None:
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


def dtype_name(name: str, value: Any, allowed: tuple[str, ...]) -> str | None:
    """'float32' from None, a string, a NumPy dtype or type, or a torch.dtype; None stays None."""
    if value is None:
        return None
    text = str(value).removeprefix("torch.")
    if not isinstance(value, str):
        text = getattr(value, "__name__", text)  # numpy.float32, the type
    text = {"half": "float16", "single": "float32", "float": "float64", "double": "float64"}.get(text, text)
    if text not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return text


def _progress(value: Any) -> Any:
    if value is None or isinstance(value, bool) or callable(value):
        return value or None
    raise TypeError(f"progress must be True, None or a callable (done, total), not {value!r}")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _devices(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if not value or None in value:
            raise ValueError(f"device must be None, a device or a list of devices, not {value!r}")
        return tuple(value)
    return value


def _needs(value: Any) -> Needs:
    if not isinstance(value, Needs):
        raise TypeError(f"needs must be a halotile.models.needs.Needs, not {value!r}")
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """Everything `restore_tiled` takes besides image and model; see there for the meaning of each.

    needs: what the model's file says about windows. phase and scale are made what it asks for.
    """

    tile_size: int | Pair | Literal["auto"] = DEFAULT_TILE
    halo: int | Pair | Literal["exact", "auto"] = 32
    overlap: int | Pair | Literal["auto"] = "auto"
    blend: str = "average"
    boundary: str = "reflect"
    scale: Any = None
    phase: int | Pair | None = None
    tolerance: float | None = None
    global_stats: str | None = None
    verify: int = 0
    batch_size: int | Literal["auto"] = 1
    device: Any = None
    dtype: Any = None
    engine: str | None = None
    value_range: tuple[float, float] | None = None
    out: Any = None
    out_dtype: Any = None
    layout: str | None = None
    alpha: str = "restore"
    on_nonfinite: str = "raise"
    progress: bool | Callable[[int, int], Any] | None = None
    keep_heap: bool = True
    memory_format: str = "auto"
    memory_limit: int | None = None
    compile: bool = False
    needs: Needs = NO_NEEDS

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                from difflib import get_close_matches  # not with every import of halotile

                known.remove("needs")  # comes with the model
                near = "".join(f", did you mean {one!r}?" for one in get_close_matches(name, known, n=1))
                raise TypeError(f"there is no option {name!r}{near}; options are {', '.join(known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        needs, scale = _needs(self.needs), _scale(self.scale)
        needs.check(scale, integer("verify", self.verify, 0, 4096))
        checked: dict[str, Any] = {
            "tile_size": _tile_size(self.tile_size),
            "halo": _halo(self.halo),
            "phase": None if self.phase is None else needs.phase(_pair("phase", self.phase, 1)),
            "tolerance": tolerance_of(self.tolerance),
            "global_stats": _optional("global_stats", self.global_stats, GLOBAL_STATS),
            "verify": integer("verify", self.verify, 0, 4096),
            "blend": choice("blend", self.blend, BLENDS),
            "boundary": choice("boundary", self.boundary, BOUNDARIES),
            "scale": scale if needs.scale is None else Fraction(needs.scale),
            "device": _devices(self.device),
            "batch_size": "auto" if self.batch_size == "auto" else integer("batch_size", self.batch_size, 1),
            "dtype": "auto" if self.dtype == "auto" else dtype_name("dtype", self.dtype, MODEL_DTYPES),
            "engine": _optional("engine", self.engine, ENGINES),
            "value_range": _value_range(self.value_range),
            "out_dtype": dtype_name("out_dtype", self.out_dtype, IMAGE_DTYPES),
            "layout": checked_layout(self.layout),
            "alpha": choice("alpha", self.alpha, ALPHAS),
            "on_nonfinite": choice("on_nonfinite", self.on_nonfinite, NONFINITE),
            "progress": _progress(self.progress),
            "keep_heap": _flag("keep_heap", self.keep_heap),
            "memory_format": choice("memory_format", self.memory_format, MEMORY_FORMATS),
            "compile": _flag("compile", self.compile),
            "memory_limit": None if self.memory_limit is None else integer("memory_limit", self.memory_limit, 1),
            "needs": needs,
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.tile_size != "auto" and (self.phase is not None or self.overlap != "auto"):
            _ = self.overlap_pixels  # refused now, if it must be

    @property
    def asks_model(self) -> bool:
        """Whether the model is to be inspected: see halo.py."""
        return isinstance(self.halo, str) or self.global_stats is not None

    @property
    def model_dtype(self) -> str | None:
        """The dtype that the model is opened with; None: its own."""
        return None if self.dtype == "auto" else self.dtype

    @property
    def devices(self) -> tuple[Any, ...]:
        """Those that were asked for; the first is that where tiles are put together."""
        return self.device if isinstance(self.device, tuple) else () if self.device is None else (self.device,)

    @property
    def first_device(self) -> Any:
        return self.devices[0] if self.devices else None

    @property
    def tuned(self) -> bool:
        """Whether tiles are chosen for the model and this machine: see tuning.py."""
        return "auto" in (self.tile_size, self.batch_size) or self.memory_limit is not None

    @property
    def unsettled(self) -> bool:
        """Whether halo or phase are not numbers yet."""
        return isinstance(self.halo, str) or self.phase is None

    def within(self, white: float) -> float:
        """The tolerance, in units of an image with that white."""
        return white / 510 if self.tolerance is None else self.tolerance

    def with_tiles(self, tile_size: Pair, batch_size: int, phase: Pair) -> Options:
        """The same with other tiles, and an overlap that they can have in steps of a phase."""
        overlap = self.overlap
        if not isinstance(overlap, str):
            asked = _pair("overlap", overlap, 0)
            overlap = tuple(
                max(0, min(lap, tile - step)) for lap, tile, step in zip(asked, tile_size, phase, strict=True)
            )
        return replace(self, tile_size=tile_size, batch_size=batch_size, overlap=overlap)

    @cached_property
    def overlap_pixels(self) -> Pair:
        """ "auto": 16 pixels, fewer where tiles are small, so that tile_size - overlap still holds a phase."""
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


def signature_with_options(function: Callable[..., Any]) -> inspect.Signature:
    """A function's signature with the options of `restore_tiled` one by one in the place of ``**options``."""
    own = inspect.signature(function)
    kept = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Options)
        if one.name != "needs"  # comes with the model
    ]
    return own.replace(parameters=[*kept, *options])
