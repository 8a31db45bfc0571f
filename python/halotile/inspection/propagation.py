# SPDX-License-Identifier: MIT
"""Dependency tracking: finds the inputs of every output pixel by running the model on positions instead of values.

Each element carries one number: the farthest input row (or column) that it depends on. Every operation takes the
farthest of its inputs: a convolution becomes a maximum over the taps with non-zero weight, an activation the identity,
a sum the maximum. So no value can hide a dependency (dead ReLUs, max-pooling, cancellation, underflow), one run covers
all phases, and one pass in each of the four directions gives the exact radius. Padding beyond the window's end carries
EDGE; an output without EDGE has all its inputs inside the window.

Windows are long along one axis and thin along the other. Convolutions and pooling wrap around the thin axis, as in an
image without ends. An operation that is not in the table depends on everything and is named.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeVar

import torch

from ..models.around import slow_attention
from ..scales import by_axis
from .info import STATISTICS, Field, GlobalOperation
from .operators.positions import CHUNK, EDGE, NOTHING
from .positions import Positions
from .shapes import Pair, Shapes

__all__ = ["Propagation", "propagate"]

LONGEST = 8192  # window, input pixels
# Input pixels to the next element, likely ones first.
STRIDES = (*(1, 2, 4, 8, 16, 32, 64), *(1 / 2, 1 / 3, 1 / 4, 1 / 8), *(3, 5, 6, 7, 10, 12, 14))
LARGEST_PHASE = 256  # input pixels

Call = Callable[[torch.Tensor], object]
Names = dict[int, str]  # paths of modules, by id
T = TypeVar("T")


@dataclass(frozen=True)
class Propagation:
    """The result of propagation.

    Attributes:
        field: None if unbounded or unknown.
        local_field: the same with the statistics of global operations held fixed.
        phase: period of the dependency pattern (rows, columns), input pixels; the model's phase is a multiple of it.
            None: none was found.
        unknown: operators that are not in the table.
        notes: sentences about problems.
    """

    field: Field | None
    local_field: Field | None
    phase: tuple[int | None, int | None]
    global_operations: tuple[GlobalOperation, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def propagate(call: Call, shapes: Shapes, modules: Sequence[torch.nn.Module], expected: int = 0) -> Propagation:
    """Propagates positions through a model.

    Args:
        call: the model in eval mode, on float32 tensors (1, channels, height, width) on the CPU. It runs on positions
            instead of values, so it must keep no state.
        modules: the modules that it consists of, for naming operations.
        expected: a guess of its radius, input pixels; the first window is long enough for it.

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
    length: int  # of the window that was long enough
    reach: Pair | None  # before, after
    phase: int | None
    global_operations: tuple[GlobalOperation, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def _along(axis: int, call: Call, shapes: Shapes, thin: int, names: Names, least: int) -> _Axis:
    """Doubles the window until the outputs in its middle third have all their inputs inside it."""
    length = shapes.legal(axis, max(least, 192, 8 * thin, 4 * shapes.multiple[axis]))
    while True:
        passes = []
        for backwards in (True, False):
            passes.append(_pass(call, shapes, axis, length, thin, names, backwards))
            clean = float(passes[-1].distances.max()) <= (length if shapes.fixed else length // 4)
            if not clean:
                break
        distances = [one.distances for one in passes]
        phase = _period(torch.stack(distances), by_axis(shapes.scale)[axis], length) if clean else None
        unknown = _all(one.mode.unknown for one in passes)
        size = (length, thin) if axis == 0 else (thin, length)
        if unknown or shapes.fixed or length * 2 > LONGEST:
            break
        operands = ((operand, i == 0) for i, one in enumerate(passes) for operand in one.mode.taken)
        enough = length > LONGEST // 4 or all(_reach_of(one, axis, size, phase or 1, back) for one, back in operands)
        if clean and phase and enough:
            break
        length = shapes.legal(axis, length * 2)
    seen = clean and all(float(one.max()) > NOTHING for one in distances)
    reach = (max(0, int(distances[0].max())), max(0, int(distances[1].max()))) if seen else None
    if reach and phase and passes[0].mode.found and not shapes.fixed:
        reach, phase = _with_operands(reach, phase, passes, axis, size)
    return _Axis(length, reach, phase, _all(m.mode.found for m in passes), unknown, _all(m.mode.notes for m in passes))


def _all(parts: Iterable[Sequence[T]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(one for part in parts for one in part))


class _Pass(NamedTuple):
    mode: Positions
    distances: torch.Tensor  # (others, outputs): distance of the farthest inputs, for outputs in the middle third


def _pass(call: Call, shapes: Shapes, axis: int, length: int, thin: int, names: Names, backwards: bool) -> _Pass:
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
        mode.notes.append("positions were lost inside the model, which may use code outside torch")
        mode.unknown.append("lost")
        output = torch.full(output.shape, EDGE)
    outputs = torch.arange(output.shape[2 + axis])
    scale = by_axis(shapes.scale)[axis]
    at = ((outputs + shapes.trim[axis]) * scale.denominator) // scale.numerator
    seen = output.real if output.is_complex() else output
    if shapes.fixed:
        seen = seen.narrow(3 - axis, seen.shape[3 - axis] // 3, max(1, seen.shape[3 - axis] // 3))
    seen = seen.movedim(2 + axis, -1).reshape(-1, len(outputs))
    seen = seen[: max(1, CHUNK // len(outputs))]
    distance = seen - (length - 1 - at if backwards else at)
    inner = (at >= length // 3) & (at < length - length // 3)
    return _Pass(mode, distance[:, inner])


# ---- inputs of global operations -------------------------------------------------------------------------------------


def _with_operands(reach: Pair, phase: int, passes: list[_Pass], axis: int, size: Pair) -> tuple[Pair | None, int]:
    """The reach and phase that cover both the outputs and the inputs of global operations, whose statistics are
    measured on tiles too, cut at multiples of the phase."""
    wide = list(reach)
    for i, one in enumerate(passes):
        for operand in one.mode.taken:
            found = _reach_of(operand, axis, size, phase, backwards=i == 0)
            if found is None:
                one.mode.notes.append("the receptive field of a global operation's inputs is unknown")
                return None, phase
            distance, stride = found
            phase = math.lcm(phase, stride)
            wide[i] = max(wide[i], -(-distance // stride) * stride)
    return (wide[0], wide[1]), phase


def _reach_of(seen: torch.Tensor, axis: int, size: Pair, phase: int, backwards: bool) -> tuple[int, int] | None:
    """The reach of elements in the middle third of a feature map, and its stride in input pixels; None if unknown. The
    dimension of the axis is the one along which positions grow evenly, up to steps of a phase."""
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
    """The feature map with each dimension moved last; then with dimensions that may be flattened images unflattened."""
    for dim in range(seen.ndim):
        if seen.shape[dim] > 12:
            yield seen.movedim(dim, -1)
    for dim, stride in itertools.product(range(seen.ndim), STRIDES):
        height, width = (side / stride for side in size)
        if height * width == seen.shape[dim] and height.is_integer() and width.is_integer():
            yield seen.unflatten(dim, (int(height), int(width))).movedim(dim + axis, -1)


def _period(distances: torch.Tensor, scale: Fraction, length: int) -> int | None:
    """The smallest period of the distances (..., outputs), in input pixels."""
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
    """Tells the mode which module is running, and makes attention run as single operators."""
    thread, hooks = threading.get_ident(), torch.nn.modules.module

    def enter(module: torch.nn.Module, _: object) -> None:
        if threading.get_ident() == thread:
            mode.enter(module)

    def leave(*_: object) -> None:
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
