# SPDX-License-Identifier: MIT
"""Everything about a model that is found by running it: sizes, scale, trim, field, phase, behaviour."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..memory import is_out_of_memory
from ..models.around import looking
from ..models.untouched.copies import uncompiled
from ..texts import named
from .copies import float_copy, one_thread, own_copy
from .info import Field, GlobalOperation
from .perturbation import PHASES, Verdict, ends_agree, falsify, field_by_perturbation, repeats
from .runner import Runner, close, random
from .shapes import Pair, Shapes, find_shapes, fixed_window

__all__ = ["Measured", "measured", "multiple_of"]

UNCONFIRMED = "the receptive field could not be confirmed"
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5))


# ---- behaviour -------------------------------------------------------------------------------------------------------


def repeatable(run: Runner, shapes: Shapes) -> bool:
    windows = random(shapes.channels, *shapes.small, seed=1)
    return close(run, run(windows), run(windows))


def alone_or_beside(run: Runner, shapes: Shapes) -> bool | None:
    """Whether an image gives the same alone and beside another. None: the model takes no two."""
    windows = random(shapes.channels, *shapes.small, batch=2, seed=2)
    windows[1] *= 0.25
    try:
        both = run(windows)
    except Exception:  # whatever it raises about two
        return None
    return all(close(run, run(windows[i : i + 1]), both[i : i + 1]) for i in (0, 1))


def range_of(run: Runner, shapes: Shapes) -> tuple[float, float] | None:
    """What outputs are clamped to: a usual range, of which inputs from -1000 to 1000 reach both ends and no more."""
    loud = random(shapes.channels, *shapes.small, seed=3) * 2000 - 1000
    try:
        with np.errstate(all="ignore"):
            outputs = [run(loud * by) for by in (1, -1)] + [run(np.full_like(loud, by)) for by in (-1000, 1000)]
    except Exception:  # a model that takes no such values
        return None
    low, high = min(float(o.min()) for o in outputs), max(float(o.max()) for o in outputs)
    near = [(a, b) for a, b in RANGES if abs(a - low) < 1e-3 * (b - a) and abs(b - high) < 1e-3 * (b - a)]
    return near[0] if near else None


# ---- together --------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What running the model told; the fields of ModelInfo."""

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
    device: Any = None,
    dtype: str | None = None,
    sample: Any = None,
    expected: Callable[[Measured], int] = lambda _: 0,
) -> Measured:
    """Measures a model: see `inspect_model` for the arguments.

    expected(result), once shapes are known: how far the model may see, input pixels. Only how much is tried first
    depends on it.

    Raises:
        ValueError: no window was found that the model takes.
    """
    with one_thread(), looking(), own_copy(model) as own:
        return _measured(uncompiled(model), Runner(own, device, dtype), sample, expected)


def multiple_of(model: Any, device: Any = None, dtype: str | None = None) -> Pair:
    """The multiples (rows, columns) of which a model takes windows, by trying small ones; 1 where that cannot be told.
    The model is left as it was."""
    try:
        with one_thread(), looking(), own_copy(model) as own:
            shapes = find_shapes(Runner(own, device, dtype), fixed=fixed_window(model))
    except Exception:  # nothing that it takes
        return 1, 1
    return (1, 1) if shapes.fixed else shapes.multiple


def _measured(model: Any, run: Runner, sample: Any, expected: Callable[[Measured], int]) -> Measured:
    result = Measured(find_shapes(run, sample=sample, fixed=fixed_window(model)))
    result.how |= dict.fromkeys(
        ("scale", "trim", "multiple", "minimum_size", "in_channels"), "windows of several sizes"
    )
    if result.shapes.fixed:
        sides = "x".join(map(str, result.shapes.window))
        result.doubts.append(f"the model takes windows of {sides} only: scale and trim cannot be told apart")
    _behaviour(run, result)
    _propagated(model, result, expected(result))
    if not result.deterministic:
        result.doubts.append("the model is not deterministic: nothing could be confirmed by perturbation")
        return result
    if result.local_field is None and not result.global_operations:
        with _doubtful(result, "the receptive field could not be measured"):
            _perturbed(run, result)
    with _doubtful(result, "the phase could not be confirmed"):
        _confirm_phase(run, result)
    with _doubtful(result, UNCONFIRMED):
        _confirm_field(model, run, result)
    return result


@contextlib.contextmanager
def _doubtful(result: Measured, what: str) -> Iterator[None]:
    """What a model raises in windows that it is tried with is a doubt, and no reason to end the run."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # the model's own
        if is_out_of_memory(error):
            raise
        result.doubts.append(f"{what}: with one of the windows that were tried the model raised {named(error)}")


def _behaviour(run: Runner, result: Measured) -> None:
    shapes = result.shapes
    with _doubtful(result, "whether the same input gives the same output twice is not known"):
        result.deterministic = repeatable(run, shapes)
    result.how |= dict.fromkeys(("deterministic", "batch_invariant", "clamps"), "run")
    if result.deterministic:
        beside = alone_or_beside(run, shapes)
        result.batch_invariant = beside is not False
        if beside is None:
            result.doubts.append("the model takes no batch of two: whether images affect each other is not known")
    result.value_range = range_of(run, shapes)


# ---- propagation -----------------------------------------------------------------------------------------------------


def _propagated(model: Any, result: Measured, expected: int) -> None:
    """Fills in what propagation tells. Models that cannot be run on positions are left to perturbation."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    from .propagation import propagate

    try:
        with float_copy(model, torch) as (call, modules):
            found = propagate(call, result.shapes, modules, expected)
    except Exception as error:  # the model's own, on what it does not expect
        result.doubts.append(f"positions could not be propagated through the model ({named(error)})")
        return
    result.doubts += found.notes
    result.unknown = tuple(name for name in found.unknown if name != "lost")
    if result.unknown:
        result.doubts.append(f"operators that are not known: {', '.join(result.unknown)}")
    if found.unknown:
        return
    result.field, result.local_field, result.phase = found.field, found.local_field, found.phase
    result.global_operations = found.global_operations
    result.how |= dict.fromkeys(("receptive_field", "local_field", "phase", "global_operations"), "propagation")


# ---- perturbation ----------------------------------------------------------------------------------------------------


class Doubled:
    """A copy of a module in float64: what differs there too is not rounding. See `Runner`.

    Some models answer noise, which they were not made for, with values of hundreds that cancel: a ten-thousandth of
    them is lost in float32.
    """

    rounding = 1e-9

    def __init__(self, call: Callable, torch: Any, seconds: float):
        self.call, self.torch, self.seconds = call, torch, seconds

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        with self.torch.inference_mode():
            return self.call(self.torch.from_numpy(np.array(windows, np.float64))).numpy()


def _in_double(model: Any, run: Runner, check: Callable, otherwise: Any) -> Any:
    """What check(run) gives for the model in float64; `otherwise` where it cannot be run so."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return otherwise
    try:
        with float_copy(model, torch, "float64") as (call, _):
            return check(Doubled(call, torch, run.seconds))
    except Exception:  # the model's own: it may insist on float32
        return otherwise


def _perturbed(run: Runner, result: Measured) -> None:
    """The field by perturbation alone: a lower bound."""
    result.field = result.local_field = field_by_perturbation(run, result.shapes)
    result.how["receptive_field"] = "perturbation"
    text = "the receptive field was measured by noise alone: a dependency that noise did not wake would be missed"
    if result.field is None:
        text = "noise reached the end of the longest window: the receptive field is unbounded, or too large to measure"
    result.doubts.append(text)


def _confirm_phase(run: Runner, result: Measured) -> None:
    """The least shift with which the model's output moves: a multiple of what propagation saw."""
    phase: list[int | None] = []
    for axis in (0, 1):
        seen = result.phase[axis]
        phase.append(_least_shift(run, result, axis, seen) if result.field is not None else seen)
    result.phase = (phase[0], phase[1])


def _least_shift(run: Runner, result: Measured, axis: int, seen: int | None) -> int | None:
    reach = (result.field.top, result.field.bottom) if axis == 0 else (result.field.left, result.field.right)
    shapes, name = result.shapes, ("rows", "columns")[axis]
    if shapes.fixed:
        result.doubts.append(f"the phase of {name} cannot be confirmed with windows of one size")
        return seen
    start = math.lcm(seen or 1, shapes.scale.denominator)
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
        text = f"the output does not move with the input along the {name}, whatever the shift: the model knows where a"
        result.doubts.append(f"{text} pixel is, or its phase is above {PHASES[-1]}")
        return None
    result.doubts.append(f"the phase of {name} could not be confirmed: windows would be too large")
    return seen


def _confirm_field(model: Any, run: Runner, result: Measured) -> None:
    if result.field is None:
        return
    phase = tuple(one or 1 for one in result.phase)

    def attempts(run) -> Verdict:
        return falsify(run, result.shapes, result.field, phase)

    verdict = attempts(run)
    if not verdict.held:
        verdict = _in_double(model, run, attempts, verdict)
    if verdict.held:
        result.how["receptive_field"] += f"; {verdict.runs} attempts to falsify it: {verdict.how}"
        _confirm_ends(model, run, result)
        return
    result.doubts.append(f"the receptive field {tuple(result.field)} was contradicted: {verdict.how}")
    shown = field_by_perturbation(run, result.shapes)
    result.field = None if shown is None else result.field.union(shown)


def _confirm_ends(model: Any, run: Runner, result: Measured) -> None:
    """Windows of two sizes must agree."""
    if result.shapes.fixed:
        return

    def along(axis: int, step: int) -> tuple[bool, bool]:
        def agree(run) -> tuple[bool, bool]:
            return ends_agree(run, result.shapes, result.field, step, axis)

        agreed = agree(run)
        return agreed if all(agreed) else _in_double(model, run, agree, agreed)

    agreed = [along(axis, step) for axis, step in enumerate(result.phase) if step]
    if not all(inside for inside, _ in agreed):
        text = (
            f"the receptive field {tuple(result.field)} was contradicted: windows of two sizes differ inside, so the "
        )
        result.doubts.append(text + "model acts on its window's size")
        result.field = None
    elif not all(at_end for _, at_end in agreed):
        result.edges_local = False
        text = (
            "what a window's edge gives depends on the opposite edge, as with circular padding: that is not exact with "
        )
        result.doubts.append(text + "boundary='native'")
