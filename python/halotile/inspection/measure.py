# SPDX-License-Identifier: MIT
"""Measures a model by running it: sizes, scale, trim, field, phase, behaviour."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..memory import is_out_of_memory
from ..models.around import looking
from ..models.devices import Device
from ..models.untouched.copies import uncompiled
from ..scales import by_axis
from ..stages import reached
from ..texts import named
from .copies import float_copy, one_thread, own_copy
from .info import Field, GlobalOperation
from .perturbation import Runs, Verdict, ends_agree, falsify, field_by_perturbation, repeats
from .runner import Runner, close, random
from .shapes import PHASES, Pair, Shapes, find_shapes, fixed_window

if TYPE_CHECKING:
    import torch

    T = TypeVar("T")

__all__ = ["INSPECTING", "Measured", "measured", "multiple_of"]

UNCONFIRMED = "the receptive field could not be confirmed"
INSPECTING = "inspecting"
STEPS = ("sizes", "behaviour", "operators", "the field by noise", "the phase by shifts", "the field again")
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5))


# ---- behaviour -------------------------------------------------------------------------------------------------------


def repeatable(run: Runner, shapes: Shapes) -> bool:
    windows = random(shapes.channels, *shapes.small, seed=1)
    return close(run, run(windows), run(windows))


def alone_or_beside(run: Runner, shapes: Shapes) -> bool | None:
    """Whether an image gives the same output alone and in a batch of two. None: the model takes no batch of two."""
    windows = random(shapes.channels, *shapes.small, batch=2, seed=2)
    windows[1] *= 0.25
    try:
        both = run(windows)
    except Exception:  # it may raise anything for a batch of two
        return None
    return all(close(run, run(windows[i : i + 1]), both[i : i + 1]) for i in (0, 1))


def range_of(run: Runner, shapes: Shapes) -> tuple[float, float] | None:
    """The range to which outputs are clamped: a usual one whose ends inputs from -1000 to 1000 reach but do not
    exceed."""
    loud = random(shapes.channels, *shapes.small, seed=3) * 2000 - 1000
    try:
        with np.errstate(all="ignore"):
            outputs = [run(loud * by) for by in (1, -1)] + [run(np.full_like(loud, by)) for by in (-1000, 1000)]
    except Exception:  # the model rejects such values
        return None
    low, high = min(float(o.min()) for o in outputs), max(float(o.max()) for o in outputs)
    near = [(a, b) for a, b in RANGES if abs(a - low) < 1e-3 * (b - a) and abs(b - high) < 1e-3 * (b - a)]
    return near[0] if near else None


# ---- together --------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """The results of running the model; attributes as in ModelInfo."""

    shapes: Shapes
    field: Field | None = None
    local_field: Field | None = None
    phase: tuple[int | None, int | None] = (None, None)
    global_operations: tuple[GlobalOperation, ...] = ()
    unknown: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    deterministic: bool = True
    batch_invariant: bool = True
    edges_local: bool = True
    how: dict[str, str] = dataclasses.field(default_factory=dict)
    doubts: list[str] = dataclasses.field(default_factory=list)


def measured(
    model: Any,
    *,
    device: Device | None = None,
    dtype: str | None = None,
    sample: Any = None,
    expected: Callable[[Measured], int] = lambda _: 0,
) -> Measured:
    """Measures a model: see `inspect_model` for the arguments.

    expected(result) is called once shapes are known and returns a guess of the receptive-field radius, in input pixels;
    it only affects which window length is tried first.

    Raises:
        ValueError: the model accepts none of the windows that are tried.
    """
    with one_thread(), looking(), own_copy(model) as own:
        return _measured(uncompiled(model), Runner(own, device, dtype), sample, expected)


def multiple_of(model: Any, device: Device | None = None, dtype: str | None = None) -> Pair:
    """The multiples (rows, columns) that window sizes must have, found by trying small windows; 1 if unknown. The model
    is left unchanged."""
    try:
        with one_thread(), looking(), own_copy(model) as own:
            shapes = find_shapes(Runner(own, device, dtype), fixed=fixed_window(model))
    except Exception:  # it accepts no window
        return 1, 1
    return (1, 1) if shapes.fixed else shapes.multiple


def _measured(model: Any, run: Runner, sample: Any, expected: Callable[[Measured], int]) -> Measured:
    _step(0)
    result = Measured(find_shapes(run, sample=sample, fixed=fixed_window(model)))
    result.how |= dict.fromkeys(
        ("scale", "trim", "multiple", "minimum_size", "in_channels"), "windows of several sizes"
    )
    if result.shapes.fixed:
        sides = "x".join(map(str, result.shapes.window))
        result.doubts.append(f"the model takes windows of {sides} only: scale and trim cannot be distinguished")
    _step(1)
    _behaviour(run, result)
    _step(2)
    _propagated(model, result, expected(result))
    if not result.deterministic:
        result.doubts.append("the model is not deterministic, so perturbation could confirm nothing")
        _step(len(STEPS))
        return result
    _step(3)
    if result.local_field is None and not result.global_operations:
        with _doubtful(result, "the receptive field could not be measured"):
            _perturbed(run, result)
    _step(4)
    with _doubtful(result, "the phase could not be confirmed"):
        _confirm_phase(run, result)
    _step(5)
    with _doubtful(result, UNCONFIRMED):
        _confirm_field(model, run, result)
    _step(len(STEPS))
    return result


def _step(number: int) -> None:
    reached(INSPECTING, "" if number == len(STEPS) else STEPS[number], number, len(STEPS))


@contextlib.contextmanager
def _doubtful(result: Measured, what: str) -> Iterator[None]:
    """Turns errors that the model raises in test windows into a doubt."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the model's own
        if is_out_of_memory(error):
            raise
        result.doubts.append(f"{what}: in a test window the model raised {named(error)}")


def _behaviour(run: Runner, result: Measured) -> None:
    shapes = result.shapes
    with _doubtful(result, "whether the model is deterministic is unknown"):
        result.deterministic = repeatable(run, shapes)
    result.how |= dict.fromkeys(("deterministic", "batch_invariant", "clamps"), "run")
    if result.deterministic:
        beside = alone_or_beside(run, shapes)
        result.batch_invariant = beside is not False
        if beside is None:
            result.doubts.append("the model takes no batch of two: whether images affect each other is unknown")
    result.value_range = range_of(run, shapes)


# ---- propagation -----------------------------------------------------------------------------------------------------


def _propagated(model: Any, result: Measured, expected: int) -> None:
    """Fills in the results of propagation. Models that cannot run on positions are left to perturbation."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    from .propagation import propagate

    try:
        with float_copy(model, torch) as (call, modules):
            found = propagate(call, result.shapes, modules, expected)
    except Exception as error:  # the model may raise anything on unexpected values
        result.doubts.append(f"positions could not be propagated through the model ({named(error)})")
        return
    result.doubts += found.notes
    result.unknown = tuple(name for name in found.unknown if name != "lost")
    if result.unknown:
        result.doubts.append(f"unknown operators: {', '.join(result.unknown)}")
    if found.unknown:
        return
    result.field, result.local_field, result.phase = found.field, found.local_field, found.phase
    result.global_operations = found.global_operations
    result.how |= dict.fromkeys(("receptive_field", "local_field", "phase", "global_operations"), "propagation")


# ---- perturbation ----------------------------------------------------------------------------------------------------


class Doubled:
    """A copy of a module in float64, to rule out rounding as the cause of a difference. See `Runner`.

    Some models respond to noise, on which they were not trained, with values of hundreds that cancel; float32 loses a
    ten-thousandth of them.
    """

    rounding = 1e-9

    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor], torch: ModuleType, seconds: float):
        self.call, self.torch, self.seconds = call, torch, seconds

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        with self.torch.inference_mode():
            return self.call(self.torch.from_numpy(np.array(windows, np.float64))).numpy()


def _in_double(model: Any, run: Runner, check: Callable[[Runs], T], otherwise: T) -> T:
    """The result of check(run) for the model in float64, or `otherwise` if it cannot run in float64."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return otherwise
    try:
        with float_copy(model, torch, "float64") as (call, _):
            return check(Doubled(call, torch, run.seconds))
    except Exception:  # the model may require float32
        return otherwise


def _perturbed(run: Runner, result: Measured) -> None:
    """Measures the field by perturbation alone, which is a lower bound."""
    result.field = result.local_field = field_by_perturbation(run, result.shapes)
    result.how["receptive_field"] = "perturbation"
    text = "the receptive field was measured by noise alone, which misses dependencies that it does not trigger"
    if result.field is None:
        text = "noise reached the end of the longest window: the receptive field is unbounded, or too large to measure"
    result.doubts.append(text)


def _confirm_phase(run: Runner, result: Measured) -> None:
    """Finds the smallest shift with which the output shifts too: a multiple of the phase from propagation."""
    if result.field is not None:
        rows, columns = (_least_shift(run, result, axis, result.field.along(axis)) for axis in (0, 1))
        result.phase = rows, columns


def _least_shift(run: Runner, result: Measured, axis: int, reach: Pair) -> int | None:
    shapes, name, seen = result.shapes, ("rows", "columns")[axis], result.phase[axis]
    if shapes.fixed:
        result.doubts.append(f"the phase of {name} cannot be confirmed with windows of one size")
        return seen
    start = math.lcm(seen or 1, by_axis(shapes.scale)[axis].denominator)
    candidates = dict.fromkeys((start, *sorted({*PHASES, shapes.multiple[axis]})))
    for candidate in (one for one in candidates if one % start == 0):
        if run.seconds * (sum(reach) + 3 * candidate) * shapes.legal(1 - axis, 1) > 10:
            break
        moves = repeats(run, shapes, reach, candidate, axis)
        if moves is None:
            break
        if moves:
            how = f"{result.how['phase']}, " if "phase" in result.how and seen else ""
            result.how["phase"] = f"{how}shifts" if "shifts" not in how else result.how["phase"]
            return candidate
    else:
        text = f"the output does not shift with the input along the {name}: the model depends on absolute position"
        result.doubts.append(f"{text}, or its phase is above {PHASES[-1]}")
        return None
    result.doubts.append(f"the phase of {name} could not be confirmed: windows would be too large")
    return seen


def _confirm_field(model: Any, run: Runner, result: Measured) -> None:
    field = result.field
    if field is None:
        return
    rows, columns = (step or 1 for step in result.phase)

    def attempts(run: Runs) -> Verdict:
        return falsify(run, result.shapes, field, (rows, columns))

    verdict = attempts(run)
    if not verdict.held:
        verdict = _in_double(model, run, attempts, verdict)
    if verdict.held:
        result.how["receptive_field"] += f"; {verdict.runs} attempts to falsify it: {verdict.how}"
        _confirm_ends(model, run, result, field)
        return
    result.doubts.append(f"the receptive field {tuple(field)} was contradicted: {verdict.how}")
    shown = field_by_perturbation(run, result.shapes)
    result.field = None if shown is None else field.union(shown)


def _confirm_ends(model: Any, run: Runner, result: Measured, field: Field) -> None:
    """Checks that windows of two sizes agree."""
    if result.shapes.fixed:
        return

    def along(axis: int, step: int) -> tuple[bool, bool]:
        def agree(run: Runs) -> tuple[bool, bool]:
            return ends_agree(run, result.shapes, field, step, axis)

        agreed = agree(run)
        return agreed if all(agreed) else _in_double(model, run, agree, agreed)

    agreed = [along(axis, step) for axis, step in enumerate(result.phase) if step]
    if not all(inside for inside, _ in agreed):
        text = f"the receptive field {tuple(field)} was contradicted: windows of two sizes differ inside"
        result.doubts.append(f"{text}, so the model depends on its window's size")
        result.field = None
    elif not all(at_end for _, at_end in agreed):
        result.edges_local = False
        text = "outputs near a window's edge depend on the opposite edge, as with circular padding, which is not exact"
        result.doubts.append(text + " with boundary='native'")
