# SPDX-License-Identifier: MIT
"""Everything about a model that is found by running it: sizes, scale, loss, field, phase, behaviour."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ..memory import is_out_of_memory
from ..models.around import Shared, looking
from ..models.kinds import open_model
from ..models.model import Model
from ..models.modes import evaluating
from ..models.needs import needs_of
from ..models.outputs import BadOutput, EmptyOutput
from ..models.reach import modules_of, roots_of
from ..models.untouched.copies import copied, uncompiled
from ..models.untouched.snapshot import preserved
from ..texts import full_text, multiple_told, named
from .info import Field, GlobalOperation
from .perturbation import PHASES, Verdict, ends_agree, falsify, field_by_perturbation, repeats

__all__ = ["Measured", "Runner", "Shapes", "find_shapes", "measured", "moves_of", "multiple_of"]

# Windows that are tried, input pixels: of all factors that strides and windows have.
SIDES = (16, 32, 64, 128, 24, 48, 56, 96, 112, 40, 72, 80, 140, 144, 188, 192, 224, 256, 120, 168, 200, 196, 216, 176)
SIDES += (208, 180, 240, 336, 384, 512, 572, 400, 392, 432)
CHANNELS = (3, 1, 4, 2, 6, 8, 12, 16)
ROUNDING = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}  # relative differences that are no more than that
UNCONFIRMED = "the receptive field could not be confirmed"
RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5))

Pair = tuple[int, int]


@dataclass(frozen=True)
class Shapes:
    """What sizes a model takes and makes. Pairs are (rows, columns).

    Attributes:
        channels, out_channels: of input and output.
        scale: output pixels per input pixel.
        loss: output pixels missing at each end.
        minimum, multiple: of windows, input pixels.
        window: one that works, input pixels. Others differ from it by multiples.
        fixed: it is the only one.
    """

    channels: int
    out_channels: int
    scale: Fraction
    loss: Pair = (0, 0)
    minimum: Pair = (1, 1)
    multiple: Pair = (1, 1)
    window: Pair = (16, 16)
    fixed: bool = False

    @property
    def small(self) -> Pair:
        """A small window that works."""
        sides = [min(self.window[axis], self.legal(axis, 8)) for axis in (0, 1)]
        return sides[0], sides[1]

    def legal(self, axis: int, least: int) -> int:
        """The smallest legal size along an axis from `least` on."""
        if self.fixed:
            return self.window[axis]
        multiple = self.multiple[axis]
        rest = self.window[axis] % multiple
        return -(-(max(least, self.minimum[axis]) - rest) // multiple) * multiple + rest


class Runner:
    """A model of any kind on arrays (batch, channels, height, width) of float32.

    Attributes:
        rounding: relative differences that are no more than rounding.
        seconds: it takes for an input pixel, by the fastest run.
    """

    def __init__(self, model: Any, device: Any = None, dtype: str | None = None, opened: Model | None = None):
        """opened: the model, where it is open already."""
        self.opened = opened or open_model(model, device=device, dtype=dtype, tensors=False)
        self.rounding = ROUNDING[getattr(self.opened, "dtype", "float32")]
        self.seconds = math.inf
        self.in_channels = self.opened.in_channels
        self.refusal = ""  # what the model said first about a window
        self.told: int | None = None  # of which sides must be multiples, as far as the model says that

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        start = time.monotonic()
        model = self.opened
        output = model(self._typed(windows, model.dtype))
        if model.dtype == "bfloat16":
            output = (output.astype(np.uint32) << 16).view(np.float32)
        self.seconds = min(self.seconds, (time.monotonic() - start) / windows[:, 0].size)
        return np.asarray(output, np.float32)

    def _typed(self, windows: np.ndarray, dtype: str) -> np.ndarray:
        windows = np.array(windows, np.float32, order="C")  # models may write to it
        if dtype == "bfloat16":
            return (windows.view(np.uint32) >> 16).astype(np.uint16)
        return windows.astype(dtype)

    def size_of(self, channels: int, height: int, width: int) -> tuple[int, int, int] | None:
        """(channels, height, width) of the output; None if the model refuses such windows."""
        try:
            return self(random(channels, height, width)).shape[1:]
        except MemoryError:
            raise
        except EmptyOutput as error:  # valid convolutions, of a window that is too small for them
            self.refusal = self.refusal or str(error)
        except BadOutput as error:  # no image, whatever the window
            text = "model must take and return one tensor or array (batch, channels, height, width) of floating-point"
            raise ValueError(f"{text} numbers, but {error}") from error
        except Exception as error:  # whatever a model raises about sizes it does not take
            self.refusal = self.refusal or f"it raised {named(error)}"
            self.told = self.told or multiple_told(full_text(error))
        return None


def random(channels: int, height: int, width: int, *, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, channels, height, width), np.float32)


# ---- sizes -----------------------------------------------------------------------------------------------------------


def find_shapes(run: Runner, *, sample: Any = None, fixed: Pair | None = None) -> Shapes:
    """What sizes the model takes and makes.

    Args:
        sample: an input (batch, channels, height, width) that the model takes, or None.
        fixed: the one window (rows, columns) that it takes, or None.

    Raises:
        ValueError: no window was found that the model takes, or no scale that fits.
    """
    window, channels, output = _first(run, sample, fixed)
    if fixed is not None:
        scale = Fraction(output[1], window[0])
        return Shapes(channels, output[0], scale, minimum=window, multiple=window, window=window, fixed=True)
    sides = [_Side(run, channels, window, output, axis) for axis in (0, 1)]
    rhythms = [side.rhythm() for side in sides]
    if rhythms[0] is None or rhythms[1] is None:  # nothing larger is taken
        scale = Fraction(output[1], window[0])
        return Shapes(channels, output[0], scale, minimum=window, multiple=window, window=window, fixed=True)
    scales, multiple = zip(*rhythms, strict=True)
    if scales[0] != scales[1]:
        raise ValueError(f"the model scales rows by {scales[0]} and columns by {scales[1]}: that cannot be tiled")
    window, output = _whole(run, channels, window, output, multiple)
    sides = [_Side(run, channels, window, output, axis) for axis in (0, 1)]
    loss = tuple(math.floor((s * scales[0] - o) / 2) for s, o in zip(window, output[1:], strict=True))
    minimum = tuple(side.minimum(scales[0], multiple[axis]) for axis, side in enumerate(sides))
    while minimum != window and run.size_of(channels, *minimum) is None:  # one side may be small where the other is not
        minimum = tuple(
            min(least + step, max(least, side)) for least, step, side in zip(minimum, multiple, window, strict=True)
        )
    return Shapes(channels, output[0], scales[0], loss, minimum, multiple, window)


def _whole(run: Runner, channels: int, window: Pair, output: tuple[int, int, int], multiple: Pair):
    """A window whose sides are multiples, if the model takes one: in others, a stride leaves something over."""
    whole = tuple(-(-side // step) * step for side, step in zip(window, multiple, strict=True))
    if whole == window:
        return window, output
    size = run.size_of(channels, *whole)
    return (window, output) if size is None else (whole, size)


def _first(run: Runner, sample: Any, fixed: Pair | None) -> tuple[Pair, int, tuple[int, int, int]]:
    """A window that the model takes, its channels, and the size of the output."""
    if sample is not None:
        shape = getattr(sample, "shape", None)
        if shape is None:
            raise TypeError(f"sample must be an array or tensor (batch, channels, height, width), not {sample!r:.80}")
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"sample must have the shape (batch, channels, height, width), not {tuple(shape)}")
        windows, channels = [tuple(shape[2:])], [shape[1]]
    else:
        windows = [fixed] if fixed else _windows_tried(run)
        channels = list(dict.fromkeys((*([run.in_channels] if run.in_channels else []), *CHANNELS)))
    for window in windows:
        for count in channels:
            output = run.size_of(count, *window)
            if output is not None:
                return (window, count, output) if fixed else _smaller(run, window, count, output)
    if sample is not None:
        raise ValueError(
            f"sample must be an input that the model takes, not one of {tuple(shape)}: it said {run.refusal}"
        )
    text = f"the model took no window, of {channels} channels and {SIDES[0]} to {SIDES[-1]} pixels: {run.refusal}; "
    text += "it must take one tensor or array (batch, channels, height, width) of floating-point numbers"
    raise ValueError(f"{text}; sample=, an input that it takes, says which size it needs")


def _windows_tried(run: Runner) -> Iterator[Pair]:
    """Those that the model asks for go first, once it has said so."""
    asked = False
    for side in SIDES:
        if run.told is not None and not asked:
            asked, least = True, -(-64 // run.told) * run.told
            yield from ((least, least), (4 * least, 4 * least))
        yield side, side


def _smaller(run: Runner, window: Pair, channels: int, output: tuple[int, int, int]):
    """A smaller window, where the output is as many times its size: less to run."""
    for side in (4, 8):
        small = run.size_of(channels, side, side) if side < min(window) else None
        if small is not None and all(s * w == o * side for s, w, o in zip(small[1:], window, output[1:], strict=True)):
            return (side, side), channels, small
    return window, channels, output


class _Side:
    """One axis: how the output grows with the window."""

    def __init__(self, run: Runner, channels: int, window: Pair, output: tuple[int, int, int], axis: int):
        self.run, self.channels, self.window, self.axis = run, channels, window, axis
        self.known = {window[axis]: output[1 + axis]}

    def output(self, side: int) -> int | None:
        """Output pixels for a window of that side; None if the model refuses it."""
        if side not in self.known:
            size = list(self.window)
            size[self.axis] = side
            output = self.run.size_of(self.channels, *size)
            self.known[side] = None if output is None else output[1 + self.axis]
        return self.known[side]

    @property
    def side(self) -> int:
        return self.window[self.axis]

    def rhythm(self) -> tuple[Fraction, int] | None:
        """Scale and multiple: the least steps by which the output grows evenly. None: nothing larger is taken."""
        parts = (step for step in range(1, PHASES[-1]) if self.side % step == 0)
        for step in sorted({*PHASES, *parts}):
            grown = self.output(self.side + step)
            if grown is None or grown <= self.output(self.side):
                continue
            scale = Fraction(grown - self.output(self.side), step)
            if all(self.fits(self.side + times * step, scale) for times in (2, 3, 8)):  # 8: steps of almost a stride
                return scale, step
        return None

    def fits(self, side: int, scale: Fraction) -> bool:
        output = self.output(side)
        return output is not None and output - self.output(self.side) == (side - self.side) * scale

    def minimum(self, scale: Fraction, multiple: int) -> int:
        """By bisection: what is too small once is too small from there on."""
        least = self.side % multiple or multiple
        low, high = 0, (self.side - least) // multiple  # in multiples above the least; high works
        while low < high:
            middle = (low + high) // 2 if low else 0
            if self.fits(least + middle * multiple, scale):
                high = middle
            else:
                low = middle + 1
        return least + high * multiple


# ---- behaviour -------------------------------------------------------------------------------------------------------


def repeatable(run: Runner, shapes: Shapes) -> bool:
    windows = random(shapes.channels, *shapes.small, seed=1)
    return close(run, run(windows), run(windows))


def close(run: Runner, one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if np.array_equal(one, other, equal_nan=True):
        return True
    return float(np.abs(one - other).max()) <= run.rounding * float(np.abs(one).max())


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
    with _one_thread(), looking(), _apart(model) as own:
        return _measured(uncompiled(model), Runner(own, device, dtype), sample, expected)


def multiple_of(model: Any, device: Any = None, dtype: str | None = None) -> Pair:
    """The multiples (rows, columns) of which a model takes windows, by trying small ones; 1 where that cannot be told.
    The model is left as it was."""
    try:
        with _one_thread(), looking(), _apart(model) as own:
            shapes = find_shapes(Runner(own, device, dtype), fixed=fixed_window(model))
    except Exception:  # nothing that it takes
        return 1, 1
    return (1, 1) if shapes.fixed else shapes.multiple


# ---- does the output move with the input? ----------------------------------------------------------------------------

STEPS = (64, 48, 56, 60, 63)  # shifts that are tried, from which smaller ones are found: input pixels
UNSEEN = 1 / 1020  # of white: a quarter of a step of 8 bits
CLEARLY = 8  # times less apart than after a shift by less


class Moves(NamedTuple):
    """How the output of a model moves with its input.

    Attributes:
        step: the least shift, in input pixels along both axes, after which the output is the same, moved; None: none of
            those that were tried.
        apart: how far it is from that, as a share of white, after the least shift that windows can have; where there is
            no step, after the worst of those that were tried.
    """

    step: int | None
    apart: float


def moves_of(opened: Model, shapes: Shapes, values: tuple[float, float]) -> Moves | None:
    """Finds by trying after which shifts a model's output is the same, moved: what its phase is.

    Two windows of noise, of 64 pixels a side, that differ by the least shift are enough where the output moves with
    them. Else windows of 192 pixels and other shifts are tried: 15 of them at most, less than two tiles.

    Args:
        shapes: what is known of the model: channels, scale, loss, least and multiple of windows.
        values: black and white of the model.

    Returns:
        None where that cannot be told: the model takes no such windows, or gives another output each time.
    """
    base = math.lcm(*shapes.multiple, shapes.scale.denominator)
    if base > 16:
        return None
    try:
        with _one_thread(), looking():
            run = Runner(opened.call, opened=opened)
            small = _Shifted(run, shapes, values, base, side=64, margin=24, most=base)
            if small.apart(base) <= UNSEEN:
                return Moves(base, 0.0)
            return _moves(_Shifted(run, shapes, values, base, side=192, margin=48, most=max(STEPS)))
    except MemoryError:
        raise
    except Exception as error:  # a second opinion only, of a model that may be anything
        if is_out_of_memory(error):
            raise
        return None


def _moves(shifted: _Shifted) -> Moves | None:
    base = shifted.base
    first = shifted.apart(base)
    if first <= UNSEEN:
        return Moves(base, first)
    left: dict[int, float] = {}
    for step in (one for one in STEPS if one % base == 0):
        left[step] = shifted.apart(step)
        if left[step] <= shifted.run.rounding:
            break
    best = min(left, key=lambda step: left[step])
    if CLEARLY * left[best] <= first:
        return Moves(_least(shifted, best, max(4 * left[best], shifted.run.rounding)), first)
    return None if shifted.apart(0) > UNSEEN else Moves(None, max(first, *left.values()))


def _least(shifted: _Shifted, step: int, allowed: float) -> int:
    for factor in (2, 3, 5, 7):
        while step % (factor * shifted.base) == 0 and shifted.apart(step // factor) <= allowed:
            step //= factor
    return step


class _Shifted:
    """A model on windows that are cut out of one field of noise.

    Attributes:
        side: of the windows, input pixels, a multiple of base.
        start, stop: what is compared of the window that is not shifted, input pixels: `margin` pixels and more from the
            edges of both windows, also where the other is shifted by `most`.
    """

    def __init__(
        self, run: Runner, shapes: Shapes, values: tuple[float, float], base: int, *, side: int, margin: int, most: int
    ):
        self.run, self.shapes, self.base = run, shapes, base
        self.side, self.start = -(-side // base) * base, -(-(margin + most) // base) * base
        self.stop = (self.side - margin) // base * base
        if any(self.side < least for least in shapes.minimum):
            raise ValueError(f"windows of {self.side} are too small")
        self.low, self.white = values[0], values[1] - values[0]
        self.noise = random(shapes.channels, self.side + most, self.side + most, seed=4)
        self.still = self._cut(0)

    def apart(self, shift: int) -> float:
        """The largest difference, as a share of white, between what a window gives and what one gives that starts
        `shift` rows and columns later."""
        return float(np.abs(self.still - self._cut(shift)).max()) / self.white

    def _cut(self, shift: int) -> np.ndarray:
        """Raises ValueError for outputs of another size, or that are not finite."""
        scale, part = self.shapes.scale, slice(shift, shift + self.side)
        output = self.run(self.noise[:, :, part, part] * self.white + self.low)
        y, x = (
            slice(*(int((end - shift) * scale) - lost for end in (self.start, self.stop))) for lost in self.shapes.loss
        )
        cut = output[:, :, y, x]
        expected = tuple(self.side * scale - 2 * lost for lost in self.shapes.loss)
        if output.shape[2:] != expected or not cut.size or not np.isfinite(cut).all():
            raise ValueError("such windows do not tell")
        return cut.copy()  # some models write to one buffer again and again


@contextlib.contextmanager
def _apart(model: Any) -> Iterator[Any]:
    """A copy to run, so that counters and caches of the model stay as they are; itself where it cannot be copied, which
    gets all back."""
    own = _own(uncompiled(model))
    with preserved(_modules_in(own), values=own is uncompiled(model)):
        yield own


def _own(model: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return model
    try:
        return copied(model)
    except Exception:  # whatever its parts say
        return model


def _modules_in(model: Any) -> list[Any]:
    """The torch modules that a model is, or carries."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    return roots_of(model) if isinstance(model, torch.nn.Module) else roots_of(*modules_of(model), model)


def _measured(model: Any, run: Runner, sample: Any, expected: Callable[[Measured], int]) -> Measured:
    result = Measured(find_shapes(run, sample=sample, fixed=fixed_window(model)))
    result.how |= dict.fromkeys(
        ("scale", "loss", "multiple", "minimum_size", "in_channels"), "windows of several sizes"
    )
    if result.shapes.fixed:
        sides = "x".join(map(str, result.shapes.window))
        result.doubts.append(f"the model takes windows of {sides} only: scale and loss cannot be told apart")
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


def fixed_window(model: Any) -> Pair | None:
    """The only window (rows, columns) that a model takes, if its file says so."""
    rows, columns = needs_of(model).window
    return (rows or columns, columns or rows) if rows or columns else None


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
        with _copied(model, torch) as (call, modules):
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


def _found_threads() -> Callable[[], object]:
    torch = sys.modules.get("torch")
    return (lambda: None) if torch is None else functools.partial(torch.set_num_threads, torch.get_num_threads())


_threads = Shared(_found_threads)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of tiny operations gain little from more, and lose very much where cores are busy."""
    torch = sys.modules.get("torch")
    with _threads:
        if torch is not None:
            torch.set_num_threads(1)  # of this thread, and of those that have no number yet
        try:
            yield
        finally:
            _threads.give_back()


@contextlib.contextmanager
def _copied(model: Any, torch: Any, dtype: str = "float32") -> Iterator[tuple[Callable, list]]:
    """A copy in that dtype on the CPU, in eval mode; the callable itself where there is no module to copy."""
    if isinstance(model, torch.nn.Module):
        fixed = type(model).__name__ == "FixedShape"
        module = copied(model.program if fixed else model).to(device="cpu", dtype=getattr(torch, dtype))
        with contextlib.suppress(NotImplementedError):  # exported programs have no modes
            module.eval()
        batch = fixed and model.batch
        with evaluating(roots_of(module)):
            yield (lambda x: module(x.repeat(batch, 1, 1, 1))[:1]) if batch else module, [module]
        return
    modules = modules_of(model)
    everything = roots_of(*modules, model)
    with evaluating(everything), preserved(everything):
        yield model, modules


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
        with _copied(model, torch, "float64") as (call, _):
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
