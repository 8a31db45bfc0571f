# SPDX-License-Identifier: MIT
"""inspect_model(): inspects a model by independent methods and compares their results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..models.chosen import checked_output, with_choice
from ..models.descriptor import unwrapped
from ..models.recalled import remember
from ..option_checks import checked_progress, dtype_name
from ..options import MODEL_DTYPES, Device, DType
from ..stages import shown
from ..texts import named
from .info import STATISTICS, Field, GlobalOperation, ModelInfo
from .measure import INSPECTING, Measured, measured

if TYPE_CHECKING:
    from .structure import Structure

__all__ = ["inspect_model"]

STRUCTURE_SIDE = 64  # image side for graph analysis, input pixels; smaller images are a single attention window


def inspect_model(
    model: Any,
    *,
    device: Device | None = None,
    dtype: DType | None = None,
    sample: Any = None,
    output: int | str | None = None,
    extra: Any = None,
    progress: bool | Callable[[int, int], object] | None = None,
) -> ModelInfo:
    """Determines what a model needs to run on tiles, and how it behaves.

    Three methods are compared: analysis of its operators ("structure" in ``how``), propagation of positions through a
    copy ("propagation"), and runs of the model on noise that differs only outside the claimed field ("perturbation").
    If they disagree, the larger claim wins and ``doubts`` says so.

    Args:
        model: a torch module (including TorchScript and exported programs), or a callable on batches ``(N, C, H, W)``
            of tensors or arrays. It is left unchanged.

    Keyword Args:
        device: the device to run on. None: the model's. A module on another device is copied.
        dtype: "float32", "float16" or "bfloat16" for the model. None: its own.
        sample: an input ``(N, C, H, W)`` that the model takes. None: sizes and channel counts are tried.
        output, extra: which output is the image, and further inputs: see `restore_tiled`.
        progress: True for a tqdm bar, or a callable ``(steps done, steps in all)``. What it raises ends the inspection.

    Returns:
        A `ModelInfo`.

    Raises:
        ValueError, TypeError: an option is invalid, or the model accepts none of the windows that are tried.

    >>> info = inspect_model(model)
    >>> info.halo, info.phase, info.in_channels
    ((1, 1), (1, 1), 3)
    """
    with shown(checked_progress("progress", progress), INSPECTING):
        return _inspected(model, device, dtype, sample, output, extra)


def _inspected(
    model: Any, device: Device | None, dtype: DType | None, sample: Any, output: int | str | None, extra: Any
) -> ModelInfo:
    original = with_choice(unwrapped(model), checked_output("output", output), extra)
    model = opened(original)
    structure = Structural(model)
    dtype = dtype_name("dtype", dtype, MODEL_DTYPES)
    result = measured(model, device=device, dtype=dtype, sample=sample, expected=structure.expected)
    _compare(structure.found, result)
    shapes = result.shapes
    info = ModelInfo(
        scale=shapes.scale,
        in_channels=shapes.channels,
        out_channels=shapes.out_channels,
        receptive_field=result.field,
        phase=result.phase,
        minimum_size=shapes.minimum,
        multiple=shapes.multiple,
        trim=shapes.trim,
        global_operations=result.global_operations,
        local_field=result.local_field if result.global_operations else result.field,
        value_range=result.value_range,
        clamps=result.value_range is not None,
        deterministic=result.deterministic,
        batch_invariant=result.batch_invariant,
        edges_local=result.edges_local,
        how=result.how,
        doubts=tuple(dict.fromkeys(result.doubts)),
    )
    remember(original, info)
    return info


def opened(model: Any) -> Any:
    """Converts an exported program to a module; returns any other model unchanged."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.export.ExportedProgram):
        from ..models.exported import open_exported

        return open_exported(model)
    return model


class Structural:
    """Graph analysis of a model.

    Attributes:
        found: its result; None if the model is not a torch module, or the analysis failed.
    """

    def __init__(self, model: Any):
        self.model = model
        self.found: Structure | None = None

    def expected(self, result: Measured) -> int:
        """Analyses the model. Returns the radius of its field, so that windows of the right length are tried first."""
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(self.model, torch.nn.Module):
            return 0
        from .structure import analyse

        shapes = result.shapes
        size = shapes.legal(0, STRUCTURE_SIDE), shapes.legal(1, STRUCTURE_SIDE)
        try:
            self.found = analyse(self.model, channels=shapes.channels, size=size)
        except Exception as error:  # a second opinion only
            result.doubts.append(f"graph analysis failed ({named(error)})")
            return 0
        return max(self.found.receptive_field or (0,))


def _compare(structure: Structure | None, result: Measured) -> None:
    """Records agreement in `how` and disagreement in `doubts`; the larger claim wins."""
    if structure is None:
        return
    if structure.unknown:
        names = ", ".join(": ".join(part for part in map(str, one) if part) for one in structure.unknown[:3])
        result.doubts.append(f"graph analysis met unknown operators ({names}) and was not used")
        return
    _agree(result, "scale", result.shapes.scale, structure.scale)
    _agree(result, "trim", result.shapes.trim, structure.trim)
    if tuple(result.phase) != (None, None):
        _agree(result, "phase", result.phase, structure.phase)
    structural = tuple(GlobalOperation(path, kind, "structure") for path, _, kind in structure.global_operations)
    paths = {one.path for one in result.global_operations}
    if {one.path for one in structural} == paths:
        _add(result, "global_operations")
        result.global_operations = tuple(
            one._replace(kind=_kind(one, structural, result.global_operations), how=f"structure, {one.how}")
            for one in result.global_operations
        )
    else:
        result.doubts.append(f"graph analysis finds other global operations: {_paths(structural)}")
        result.global_operations += tuple(one for one in structural if one.path not in paths)
    _compare_fields(structure.receptive_field, result, bool(structural))


def _kind(one: GlobalOperation, structural: tuple[GlobalOperation, ...], own: tuple[GlobalOperation, ...]) -> str:
    """The name that graph analysis gives an operation; if its module has several, one of the same sort."""
    there = [other.kind for other in structural if other.path == one.path]
    if len(there) == 1 == sum(other.path == one.path for other in own):
        return there[0]
    alike = [kind for kind in there if (kind in STATISTICS) == (one.kind in STATISTICS)]
    return one.kind if one.kind in alike or not alike else alike[0]


def _compare_fields(structural: Field | None, result: Measured, globally: bool) -> None:
    if structural is None:
        if globally:
            result.field = None
        if (result.field is None) == globally:
            _add(result, "receptive_field")
        return
    _agree(result, "receptive_field", result.field, structural)
    if result.field is not None:
        result.field = result.field.union(structural)


def _agree(result: Measured, name: str, own: object, structural: object) -> None:
    if structural is None:
        return
    if own == structural:
        _add(result, name)
    else:
        text = f"{name.replace('_', ' ')}: {_plain(structural)} by graph analysis, {_plain(own)} by running the model"
        result.doubts.append(text)


def _add(result: Measured, name: str) -> None:
    how = result.how.get(name)
    result.how[name] = f"structure, {how}" if how else "structure"


def _plain(value: object) -> str:
    return str(tuple(value)) if isinstance(value, tuple) else str(value)


def _paths(operations: tuple[GlobalOperation, ...]) -> str:
    return ", ".join(one.path or "(the model)" for one in operations) or "none"
