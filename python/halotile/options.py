# SPDX-License-Identifier: MIT
"""The options of a run: a frozen dataclass that checks its values. Errors quote the value received."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np

from .layouts import checked_layout
from .models.chosen import checked_output
from .models.devices import BEST
from .models.needs import Needs
from .option_checks import (
    Check,
    checked_devices,
    checked_nodata,
    checked_progress,
    checked_reduce,
    checked_tolerance,
    checked_value_range,
    checked_window,
    dtype_of,
    flag,
    one_of,
    or_else,
    pair,
    pair_or,
    positive,
    white_level,
    whole,
)
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
    "signature_with_options",
    "windowed",
]

Boundary = Literal["reflect", "native", "wrap"]
Blend = Literal["average", "linear", "cosine", "gaussian"]
Alpha = Literal["restore", "resize", "opaque", "channel"]
Nonfinite = Literal["raise", "warn", "ignore", "retry"]
Engine = Literal["host", "torch", "mps"]
GlobalStats = Literal["tile", "frozen", "exact", "local"]
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

AUTO_OVERLAP = 16
DEFAULT_TILE = 512
MOST_PLACES = 4096  # for verify=
MOST_GRIDS = 64  # for shift_average=
SHARE = 8  # of a window of one size: its halo, and the overlap

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
    stats_size: int | Pair | None
    match_low: int | Literal["auto"] | None
    shift_average: int
    window: int | Pair | Literal["trained"] | None
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


def _needs(_: str, value: Any) -> Needs:
    if not isinstance(value, Needs):
        raise TypeError(f"needs must be a halotile.models.needs.Needs, not {value!r}")
    return value


def option(default: Any, check: Check = lambda _, value: value) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The options of `restore_tiled`, which documents them.

    needs: constraints on windows from a model file; they also adjust phase and scale.
    """

    tile_size: Any = option(DEFAULT_TILE, pair_or("auto", least=1))
    halo: Any = option(32, pair_or("exact", "auto", least=0))
    overlap: Any = option("auto")  # checked with tile_size: see `overlap_pixels`
    blend: str = option("average", one_of(*BLENDS))
    boundary: str = option("reflect", one_of(*BOUNDARIES))
    scale: Any = option(None, lambda _, value: checked_scale(value))
    phase: Any = option(None, or_else(None, positive))
    tolerance: float | None = option(None, checked_tolerance)
    schedule: str = option("auto", one_of(*SCHEDULES))
    global_stats: str | None = option(None, or_else(None, one_of(*GLOBAL_STATS)))
    stats_size: Any = option(None, or_else(None, positive))
    match_low: int | Literal["auto"] | None = option(None, or_else(None, or_else("auto", whole(1))))
    shift_average: int = option(1, whole(1, MOST_GRIDS))
    window: Any = option(None, or_else(None, checked_window))
    verify: int = option(0, whole(0, MOST_PLACES))
    batch_size: int | Literal["auto"] = option(1, or_else("auto", whole(1)))
    device: Any = option(None, checked_devices)
    dtype: Any = option(None, or_else("auto", dtype_of(MODEL_DTYPES)))
    engine: str | None = option(None, or_else(None, one_of(*ENGINES)))
    value_range: tuple[float, float] | None = option(None, checked_value_range)
    white: float | str | None = option(None, white_level)
    nodata: float | None = option(None, lambda _, value: checked_nodata(value))
    out: Any = option(None)
    out_dtype: Any = option(None, dtype_of(IMAGE_DTYPES))
    reduce: Any = option(None, checked_reduce)
    output: int | str | None = option(None, checked_output)
    extra: Any = option(None)
    layout: str | None = option(None, lambda _, value: checked_layout(value))
    alpha: str = option("restore", one_of(*ALPHAS))
    on_nonfinite: str = option("raise", one_of(*NONFINITE))
    progress: Any = option(None, checked_progress)
    keep_heap: bool = option(True, flag)
    memory_format: str = option("auto", one_of(*MEMORY_FORMATS))
    memory_limit: int | None = option(None, or_else(None, whole(1)))
    compile: bool = option(False, flag)
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
        if self.stats_size is not None and self.global_stats != "local":
            raise ValueError(f"stats_size must be None unless global_stats is 'local', not {self.stats_size!r}")
        if self.shift_average > 1 and self.boundary == "native":
            text = f"with shift_average={self.shift_average}, whose grids begin outside the image"
            raise ValueError(f"boundary must be 'reflect' or 'wrap' {text}, not 'native'")
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
    def inspected_on(self) -> Any:
        """The device to inspect the model on; None for its own, where it stays if the best one is asked for."""
        return None if self.first_device == BEST else self.first_device

    @property
    def tuned(self) -> bool:
        """Whether tiles are tuned for the model and this machine: see auto/tiles.py."""
        return "auto" in (self.tile_size, self.batch_size) or self.memory_limit is not None

    @property
    def needs_tiles(self) -> str | None:
        """The first option, with its value, that is of tiles only."""
        asked = {"match_low": self.match_low, "window": self.window}
        if isinstance(self.window, tuple) and self.window[0] == self.window[1]:
            asked["window"] = self.window[0]
        asked["shift_average"] = self.shift_average if self.shift_average > 1 else None
        return next((f"{name}={value!r}" for name, value in asked.items() if value is not None), None)

    @property
    def refuses_nonfinite(self) -> bool:
        return self.on_nonfinite in ("raise", "retry")

    @property
    def unsettled(self) -> bool:
        return isinstance(self.halo, str) or self.phase is None

    def within(self, white: float) -> float:
        return white / 510 if self.tolerance is None else self.tolerance

    def with_tiles(self, tile_size: Pair, batch_size: int, phase: Pair) -> Options:
        """The same with other tiles, and an overlap that fits them in steps of the phase."""
        overlap = self.overlap
        if not isinstance(overlap, str):
            asked = pair("overlap", overlap, 0)
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
        overlap = pair("overlap", self.overlap, 0)
        for side, (lap, tile) in enumerate(zip(overlap, self.tile_size, strict=True)):
            if lap >= tile:
                raise ValueError(
                    f"overlap must be below tile_size, not {lap} with tile_size {tile} ({('rows', 'columns')[side]})"
                )
        return overlap


def windowed(given: dict[str, Any], size: Pair, needs: Needs, phase_of: Callable[[], Pair | None]) -> dict[str, Any]:
    """The given options for windows of one size: they are what the model needs, and halo, overlap and blend suit them
    where they are not given.

    phase_of: tells the model's phase, if it is known; asked if none is given.
    """
    phase = positive("phase", given["phase"]) if given.get("phase") is not None else phase_of() or (1, 1)
    steps = needs.phase(phase)
    halo = tuple(_share(side, step) for side, step in zip(size, steps, strict=True))
    own = {"halo": halo, "overlap": tuple(side // SHARE for side in size), "blend": "cosine"}
    return own | given | {"window": size, "needs": replace(needs, window=size, square=False)}


def _share(side: int, step: int) -> int:
    """The halo within a window: some pixels, as a model is worst at its window's edge, in steps of the phase."""
    return side // SHARE // step * step or (step if 4 * step <= side else 0)


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
