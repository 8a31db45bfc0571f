# SPDX-License-Identifier: MIT
"""What every output pixel depends on, found by running the model on positions instead of values.

Each element carries one number: the farthest input row (or column) that it depends on. Every operation is run as
"farthest of everything that goes in": a convolution becomes a maximum over the taps whose weight is not exactly zero,
an activation the identity, a sum the maximum. So no value can hide a dependency (dead ReLUs, losers of max-pooling,
cancellation, underflow), all phases are seen at once, and one pass in each of the four directions gives the exact
radius. What lies beyond the window's end carries EDGE; an output that does not carry it was given all it depends on.

Windows are long along one axis and thin along the other, where convolutions and pooling wrap around: an image without
ends in that direction. An operation that is not in the table depends on everything and is named.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from ..models.around import slow_attention
from .info import STATISTICS, Field, GlobalOperation
from .operators.positions import CHUNK, EDGE, NOTHING
from .perturbation import Sizes
from .positions import Positions

__all__ = ["Propagation", "propagate"]

LONGEST = 8192  # window, input pixels
STRIDES = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    1 / 2,
    1 / 3,
    1 / 4,
    1 / 8,
    3,
    5,
    6,
    7,
    10,
    12,
    14,
)  # input pixels to the next element
LARGEST_PHASE = 256  # input pixels

Pair = tuple[int, int]


@dataclass(frozen=True)
class Propagation:
    """What propagation tells.

    Attributes:
        field: None if unbounded or unknown.
        local_field: the same with the statistics of global operations held fixed.
        phase: of the pattern of dependencies (rows, columns), input pixels; the model's is this or a multiple. None:
            none was found.
        unknown: operators that are not in the table.
        notes: sentences about what went wrong.
    """

    field: Field | None
    local_field: Field | None
    phase: tuple[int | None, int | None]
    global_operations: tuple[GlobalOperation, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def propagate(
    call: Callable[[torch.Tensor], Any], shapes: Sizes, modules: Sequence[torch.nn.Module], expected: int = 0
) -> Propagation:
    """Propagates positions through a model.

    Args:
        call: takes float32 tensors (1, channels, height, width) on the CPU; in eval mode. It is run with positions for
            values, so it must keep no state.
        modules: that it consists of, to name places.
        expected: how far it may see, input pixels: windows that are tried first are long enough for that.

    Raises:
        Exception: whatever the model raises when it is run on positions.
    """
    names = {id(inner): name for module in modules for name, inner in module.named_modules()}
    thin = [shapes.legal(0, 1), shapes.legal(1, 1)]
    axes = [_along(0, call, shapes, thin[1], names, 4 * expected + 16)]
    axes.append(_along(1, call, shapes, thin[0], names, axes[0].length))
    for axis in (0, 1):  # the thin axis must hold whole phases
        other = axes[1 - axis].phase
        if other and thin[1 - axis] % other and not shapes.fixed:
            whole = shapes.legal(1 - axis, math.lcm(other, shapes.multiple[1 - axis]))
            axes[axis] = _along(axis, call, shapes, whole, names, axes[axis].length)
    rows, columns = axes
    found = {(one.path, one.kind): one for axis in axes for one in axis.global_operations}
    unknown = sorted({name for axis in axes for name in axis.unknown})
    local = None
    if not unknown and rows.reach and columns.reach and all(kind in STATISTICS for _, kind in found):
        local = Field(*columns.reach, *rows.reach)
    notes = tuple(dict.fromkeys(rows.notes + columns.notes))
    phase = (rows.phase, columns.phase)
    return Propagation(None if found else local, local, phase, tuple(found.values()), tuple(unknown), notes)


# ---- one axis --------------------------------------------------------------------------------------------------------


class _Axis(NamedTuple):
    length: int  # of the window that was enough
    reach: Pair | None  # before, after
    phase: int | None
    global_operations: tuple[GlobalOperation, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def _along(axis: int, call: Callable, shapes: Sizes, thin: int, names: dict[int, str], least: int) -> _Axis:
    """Longer and longer windows, until those outputs in the middle third are given all they depend on."""
    length = shapes.legal(axis, max(least, 192, 8 * thin, 4 * shapes.multiple[axis]))
    while True:
        passes = []
        for backwards in (True, False):
            passes.append(_pass(call, shapes, axis, length, thin, names, backwards))
            clean = float(passes[-1].distances.max()) <= (length if shapes.fixed else length // 4)
            if not clean:
                break
        distances = [one.distances for one in passes]
        phase = _period(torch.stack(distances), shapes.scale, length) if clean else None
        unknown = _all(one.mode.unknown for one in passes)
        size = (length, thin) if axis == 0 else (thin, length)
        told = (
            shapes.fixed
            or length > LONGEST // 4
            or all(
                _taken(taken, axis, size, phase or 1, backwards=i == 0)
                for i, one in enumerate(passes)
                for taken in one.mode.taken
            )
        )
        if (clean and phase and told) or unknown or shapes.fixed or length * 2 > LONGEST:
            break
        length = shapes.legal(axis, length * 2)
    seen = clean and all(float(one.max()) > NOTHING for one in distances)
    reach = tuple(max(0, int(one.max())) for one in distances) if seen else None
    if reach and phase and passes[0].mode.found and not shapes.fixed:
        reach, phase = _with_taken(reach, phase, passes, axis, size)
    return _Axis(length, reach, phase, _all(m.mode.found for m in passes), unknown, _all(m.mode.notes for m in passes))


def _all(parts: Iterable[Sequence]) -> tuple:
    return tuple(dict.fromkeys(one for part in parts for one in part))


class _Pass(NamedTuple):
    mode: Positions
    distances: torch.Tensor  # (others, outputs): how far outputs in the middle third see


def _pass(call: Callable, shapes: Sizes, axis: int, length: int, thin: int, names: dict, backwards: bool) -> _Pass:
    """Runs the model once, in one direction."""
    size = [thin, thin]
    size[axis] = length
    if shapes.fixed:
        size = list(shapes.window)
    positions = torch.arange(length, dtype=torch.float32)
    positions = positions.flip(0) if backwards else positions
    window = positions.view(-1, 1) if axis == 0 else positions.view(1, -1)
    window = window.expand(1, shapes.channels, *size).contiguous()
    mode = Positions(length, wraps=not shapes.fixed, names=names)
    with torch.no_grad(), _named(mode), mode:
        mode.carry(window)
        output = call(window)
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        raise ValueError("the model did not return one tensor (batch, channels, height, width)")
    if not mode.carries(output):
        mode.notes.append("positions got lost inside the model, which may have left torch on the way")
        mode.unknown.append("lost")
        output = torch.full(output.shape, EDGE)
    outputs = torch.arange(output.shape[2 + axis])
    at = ((outputs + shapes.trim[axis]) * shapes.scale.denominator) // shapes.scale.numerator
    seen = output.real if output.is_complex() else output
    if shapes.fixed:
        seen = seen.narrow(3 - axis, seen.shape[3 - axis] // 3, max(1, seen.shape[3 - axis] // 3))
    seen = seen.movedim(2 + axis, -1).reshape(-1, len(outputs))
    seen = seen[: max(1, CHUNK // len(outputs))]
    distance = seen - (length - 1 - at if backwards else at)
    inner = (at >= length // 3) & (at < length - length // 3)
    return _Pass(mode, distance[:, inner])


# ---- what global operations take -------------------------------------------------------------------------------------


def _with_taken(
    reach: Pair, phase: int, passes: list[_Pass], axis: int, size: Pair
) -> tuple[tuple[int, ...] | None, int]:
    """Reach and phase of outputs and of what global operations take together: statistics are measured on tiles, too,
    cut at multiples of the phase."""
    wide = list(reach)
    for i, one in enumerate(passes):
        for taken in one.mode.taken:
            found = _taken(taken, axis, size, phase, backwards=i == 0)
            if found is None:
                one.mode.notes.append("how far what global operations take sees could not be told")
                return None, phase
            distance, stride = found
            phase = math.lcm(phase, stride)
            wide[i] = max(wide[i], -(-distance // stride) * stride)
    return tuple(wide), phase


def _taken(seen: torch.Tensor, axis: int, size: Pair, phase: int, backwards: bool) -> tuple[int, int] | None:
    """How far elements in the middle third of a feature map see, and input pixels from one to the next; None if that
    cannot be told. The dimension of the axis is the one along which positions grow evenly, but for steps of a phase."""
    length = size[axis]
    for lines in _lines(seen, axis, size):
        count = lines.shape[-1]
        farthest = torch.where(lines < EDGE, lines, NOTHING).reshape(-1, count).amax(0)
        first, last = count // 3, count - count // 3 - 1
        if last - first < 4 or not math.isfinite(farthest[first].item() + farthest[last].item()):
            continue
        growth = (farthest[last] - farthest[first]).item() / (last - first) * (-1 if backwards else 1)
        likely = [stride for stride in STRIDES if abs(growth / stride - 1) <= 0.2]
        stride = min(likely, key=lambda stride: abs(count * stride / length - 1), default=0)
        if abs(count * stride / length - 1) > 0.3:
            continue
        even = farthest[first] + (-stride if backwards else stride) * torch.arange(last + 1 - first)
        if (farthest[first : last + 1] - even).abs().max() > 2 * max(stride, phase) + 2:
            continue
        at = ((torch.arange(count) + (length / stride - count) / 2) * stride).floor()
        inner = (at >= length // 3) & (at < length - length // 3)
        distance = (lines - (length - 1 - at if backwards else at))[..., inner]
        return max(0, int(distance.max())), max(1, int(stride))
    return None


def _lines(seen: torch.Tensor, axis: int, size: Pair) -> Iterator[torch.Tensor]:
    """Every dimension as the last one; then those that may be rows one after the other."""
    for dim in range(seen.ndim):
        if seen.shape[dim] > 12:
            yield seen.movedim(dim, -1)
    for dim, stride in itertools.product(range(seen.ndim), STRIDES):
        height, width = (side / stride for side in size)
        if height * width == seen.shape[dim] and height.is_integer() and width.is_integer():
            yield seen.unflatten(dim, (int(height), int(width))).movedim(dim + axis, -1)


def _period(distances: torch.Tensor, scale: Fraction, length: int) -> int | None:
    """The least number of input pixels after which the distances (..., outputs) repeat themselves."""
    finite = torch.nan_to_num(distances, neginf=-EDGE)
    count = finite.shape[-1]
    for period in range(1, min(LARGEST_PHASE, length // 6) + 1):
        step = period * scale
        if (
            step.denominator == 1
            and step < count
            and torch.equal(finite[..., step.numerator :], finite[..., : -step.numerator])
        ):
            return period
    return None


@contextlib.contextmanager
def _named(mode: Positions) -> Iterator[None]:
    """Tells the mode which module is running, and keeps attention from being done by an operator that hides it."""
    thread, hooks = threading.get_ident(), torch.nn.modules.module

    def enter(module: torch.nn.Module, _: Any) -> None:
        if threading.get_ident() == thread:
            mode.enter(module)

    def leave(*_: Any) -> None:
        if threading.get_ident() == thread:
            mode.leave()

    with slow_attention:
        before = hooks.register_module_forward_pre_hook(enter)
        after = hooks.register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            after.remove()
            before.remove()
