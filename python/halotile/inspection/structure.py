# SPDX-License-Identifier: MIT
"""Graph analysis: a model's receptive field, phase, scale, trim and global operations from its operators alone.

The model runs at two sizes on tensors without data; its own constants are computed as usual. Every ATen operator that
depends on the image is looked up in the table of `operators/`. Facts that hold at one size only count as unknown.
Imports torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.around import looking
from ..models.exported import FixedShape
from ..models.untouched.copies import shell, uncompiled, without_hooks
from ..models.untouched.snapshot import preserved
from ..scales import Scale, by_axis, joined
from .info import Field
from .rowmaps import Event, Value
from .tracer import Failure, Look, look_at

__all__ = ["Structure", "analyse"]

LARGEST_SIDE = 1024  # of the analysed images, in pixels


@dataclass(frozen=True)
class Structure:
    """Attributes:
    scale: output pixels per input pixel, a pair where rows and columns differ; None if unknown.
    receptive_field: in input pixels; None if it is the whole image, or unknown.
    phase: shift of the image in input rows and columns with which all activations shift too.
    trim: output pixels (rows, columns) missing at each end, negative for extra ones; None if unknown, or if the two
        ends differ.
    global_operations: (module path, operator, kind) of operators that depend on the whole image; kinds are "global
        pooling", "squeeze-and-excite", "instance norm", "group norm", "attention", "fft", "reduction".
    unknown: (module path, operator) of operators that are not understood; then nothing is promised.
    coordinate_sensitive: (module path, operator) of operators that depend on the position in the image.
    stochastic: (module path, operator) of operators that draw random numbers.
    notes: effects at edges, and reasons why something is unknown.
    sizes: the analysed sizes (height, width); a single one cannot reveal dependence on the size.
    """

    scale: Scale | None = None
    receptive_field: Field | None = None
    phase: tuple[int, int] | None = None
    trim: tuple[int, int] | None = None
    global_operations: tuple[tuple[str, str, str], ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()
    coordinate_sensitive: tuple[tuple[str, str], ...] = ()
    stochastic: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


def analyse(
    module: Any,
    *,
    channels: int = 3,
    size: tuple[int, int] = (64, 64),
    dtype: torch.dtype | None = None,
    looks: int = 3,
) -> Structure:
    """Analyses a module by its operators. It runs on tensors without data, in eval mode, and is left unchanged.

    Args:
        module: a torch.nn.Module, including TorchScript, or a torch.export.ExportedProgram.
        channels: channels of the image. size: the smallest image (height, width) to analyse, in pixels.
        dtype: dtype of the image; by default that of the module's first floating-point parameter, else float32.
        looks: the largest number of sizes to analyse until two agree. 1 cannot reveal dependence on the size.

    Returns:
        A Structure. For a model that cannot run this way, `unknown` has the reason.

    Raises:
        TypeError: it is not a module. ValueError: channels or size are not positive.
    """
    module, fixed = _module_of(uncompiled(module))
    if channels < 1 or min(size) < 1:
        raise ValueError(f"channels and size must be positive, not {channels} and {size}")
    with looking(), _apart(module, hooks=looks > 1) as own:
        return _analysed(own, fixed, channels, size, dtype, looks)


@contextlib.contextmanager
def _apart(module: torch.nn.Module, hooks: bool) -> Iterator[torch.nn.Module]:
    """A copy that shares the module's tensors; if it cannot be copied, the module itself, which is restored after
    use."""
    own = module
    if not isinstance(module, torch.jit.ScriptModule):
        with contextlib.suppress(Exception):  # its parts may raise anything
            own = shell(module) if hooks else without_hooks(shell(module))
    with preserved([own], values=own is module):
        yield own


def _analysed(
    module: torch.nn.Module,
    fixed: tuple[int, int] | None,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype | None,
    most: int,
) -> Structure:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    looks: list[Look] = []
    failures: list[Failure] = []
    wanted, moved = fixed or size, False  # whether the size was made a multiple of the phase
    others = list(MULTIPLES)
    while len(looks) < most and max(wanted) <= LARGEST_SIDE:
        look = look_at(module, fake, channels, wanted, dtype)
        if isinstance(look, Failure):
            failures.append(look)
            if look.multiple is not None and all(look.multiple != one.multiple for one in failures[:-1]):
                others.insert(0, look.multiple)
            if look.final or fixed or not others:
                break
            step = others.pop(0)
            wanted = _rounded_up((size[0] + 1, size[1] + 1), (step, step))
            continue
        if looks and look.facts == looks[-1].facts:
            return _structure(looks[-1], look)
        aligned = _rounded_up(wanted, look.value.phase)
        if aligned != wanted and max(aligned) <= 4 * max(wanted) and not (fixed or moved or looks):
            wanted, moved = aligned, True
            continue
        looks.append(look)
        if fixed or most == 1:
            return _structure(look, look)
        wanted = (wanted[0] * 2, wanted[1] * 2)
    return _not_settled(looks, failures)


# Multiples to try if a model rejects a size: they cover all usual factors of attention windows and strides.
MULTIPLES = (128, 240, 336, 432, 400, 392, 360, 176, 208)


def _not_settled(looks: list[Look], failures: list[Failure]) -> Structure:
    """The result if no two sizes agree, with the reasons."""
    path, reason = failures[-1][:2] if failures else ("", "at every size tried its rows become a single one")
    if not looks:
        return Structure(unknown=((path, f"the model cannot be run without data: {reason}"),))
    text = "what it does depends on the size of the image"
    if len(looks) == 1:
        text = f"it runs only at {looks[0].size[0]}x{looks[0].size[1]}: {reason}"
    met = sorted(looks[-1].value.events)
    return Structure(
        global_operations=_global_operations(met),
        unknown=(*_places(met, "unknown"), (path, text)),
        coordinate_sensitive=_places(met, "coordinate"),
        stochastic=_places(met, "stochastic"),
        notes=_notes(look.value for look in looks),
        sizes=_sizes(looks),
    )


def _module_of(module: Any) -> tuple[torch.nn.Module, tuple[int, int] | None]:
    """The module itself, and its fixed size or None."""
    if isinstance(module, FixedShape):
        inside, (height, width) = module.program, module.needs.window
        return inside, (height or width, width or height) if height or width else None
    if isinstance(module, torch.export.ExportedProgram):
        users = module.graph_signature.user_inputs
        shape = next(node.meta["val"].shape for node in module.graph.nodes if node.name in users)
        sides = tuple(side if isinstance(side, int) else None for side in shape[2:])
        return module.module(), (sides[0] or sides[1], sides[1] or sides[0]) if any(sides) else None
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module or an ExportedProgram, not a {type(module).__name__}")
    return module, None


def _rounded_up(size: tuple[int, int], phase: tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-side // step) * step for side, step in zip(size, phase, strict=True))  # type: ignore[return-value]


# ---- the result ------------------------------------------------------------------------------------------------------


def _structure(first: Look, last: Look) -> Structure:
    """The result of two sizes that agree."""
    value, looks = last.value, [first] if first is last else [first, last]
    scale, trim, problem = _scale_and_trim(looks, value)
    met = sorted(value.events)
    unknown = _places(met, "unknown") + _places(met, "strip") + ((("", problem),) if problem else ())
    field = _field(value, trim or (0, 0)) if scale is not None and not unknown else None
    notes = _notes([value])
    if first is last:
        notes += (
            f"analysed only at {last.size[0]}x{last.size[1]}: dependence on the size of the image is not revealed",
        )
    if scale is not None and trim is None:
        notes += ("the output is not the scaled image less the same number of pixels at one end as at the other",)
    return Structure(
        scale=scale,
        receptive_field=field,
        phase=None if unknown else value.phase,
        trim=trim,
        global_operations=_global_operations(met),
        unknown=unknown,
        coordinate_sensitive=_places(met, "coordinate"),
        stochastic=_places(met, "stochastic"),
        notes=notes,
        sizes=_sizes(looks),
    )


def _places(met: list[Event], what: str) -> tuple[tuple[str, str], ...]:
    return tuple(dict.fromkeys((event.path, event.operator) for event in met if event.what == what))


def _global_operations(met: list[Event]) -> tuple[tuple[str, str, str], ...]:
    """One entry for each place; squeeze-and-excite takes precedence over the global pooling that it contains."""
    found: dict[tuple[str, str], str] = {}
    for event in met:
        if event.what == "global" and found.get((event.path, event.operator)) != "squeeze-and-excite":
            found[event.path, event.operator] = event.kind
    return tuple((*place, kind) for place, kind in found.items())


def _notes(values: Any) -> tuple[str, ...]:
    met = sorted(event for value in values for event in value.events if event.kind and event.what != "global")
    return tuple(dict.fromkeys(f"{e.path or 'the model'}: {e.operator}: {e.kind}" for e in met))


def _sizes(looks: list[Look]) -> tuple[tuple[int, int], ...]:
    return tuple(look.size for look in looks)


def _scale_and_trim(looks: list[Look], value: Value) -> tuple[Scale | None, tuple[int, int] | None, str]:
    """From the row maps and from the growth of sizes, which must agree. The third item describes a problem, if any."""
    sizes, outputs = [look.size for look in looks], [look.output for look in looks]
    scales: list[set[Fraction]] = [{Fraction(rows.period, rows.shift)} if rows.shift else set() for rows in value.maps]
    if len(looks) == 2:
        for axis, found in enumerate(scales):
            found.add(Fraction(outputs[1][axis] - outputs[0][axis], sizes[1][axis] - sizes[0][axis]))
    known = scales[0] | scales[1]
    if not all(scales) and len(known) == 1:  # of a side that is one value throughout
        scales = [known, known]
    if any(len(found) != 1 or min(found) <= 0 for found in scales):
        return None, None, "the size of the result does not follow from its rows"
    scale = joined(min(scales[0]), min(scales[1]))
    missing = [sizes[-1][axis] * by - outputs[-1][axis] for axis, by in enumerate(by_axis(scale))]
    if any(side.denominator != 1 or side.numerator % 2 for side in missing):
        return scale, None, ""
    return scale, (missing[0].numerator // 2, missing[1].numerator // 2), ""


def _field(value: Value, trim: tuple[int, int]) -> Field | None:
    """The receptive field; None if it is the whole image."""
    ends: list[int] = []
    for rows, lost in ((value.maps[1], trim[1]), (value.maps[0], trim[0])):
        if rows.is_global:
            return None
        before, after = 0, 0
        for row in range(rows.period if rows.shift else 0):
            lo, hi = rows.spans[row]
            if lo <= hi:
                center = (row + lost) * rows.shift // rows.period
                before, after = max(before, center - int(lo)), max(after, int(hi) - center)
        ends += [before, after]
    return Field(*ends)
