# SPDX-License-Identifier: MIT
"""Graph analysis at one size: runs a model on tensors without data and looks up every operator. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree

from ..models.around import decomposed
from ..models.modes import evaluating
from ..models.reach import all_modules, roots_of
from ..texts import full_text, multiple_told, named
from .following import FakeRun, is_random, same_elements, storage_of
from .operators import Aligned, Operation, RowRule, entry
from .operators.elementwise import pointwise_rows
from .rowmaps import (
    IDENTITY,
    NOWHERE,
    Event,
    Part,
    TooSmall,
    Unknown,
    Value,
    as_axis,
    mixed,
    opaque,
    spatial,
    unknown_value,
)

__all__ = ["Failure", "Look", "look_at"]


@dataclass(frozen=True)
class Look:
    """The analysis at one size. Attributes: size: of the image. output: size of the result. value: of the result.
    numbers: scalar operands of elementwise operators, which some models derive from the image size."""

    size: tuple[int, int]
    output: tuple[int, int]
    value: Value
    numbers: tuple[Any, ...]

    @property
    def facts(self) -> tuple[Any, ...]:
        return self.value.maps, self.value.phase, self.value.events, self.numbers


class Failure(NamedTuple):
    """Attributes: path: path of the module. reason: a description. final: whether no other size would help. multiple:
    the multiple of sides that the reason names, or None."""

    path: str
    reason: str
    final: bool
    multiple: int | None = None


def look_at(
    module: torch.nn.Module, fake: FakeTensorMode, channels: int, size: tuple[int, int], dtype: torch.dtype | None
) -> Look | Failure:
    tracer = Tracer(module, fake)
    try:
        with evaluating(roots_of(module)), tracer:
            output = tracer.run(channels, size, dtype)
        value = _plain(output, tracer.known(output))
    except TooSmall:
        return Failure(tracer.path, f"an image of {size[0]}x{size[1]} becomes a single pixel inside", False)
    except FAKE_ERRORS as error:
        return Failure(tracer.path, named(error), True)
    except Exception as error:  # a model may raise anything
        return Failure(tracer.path, named(error), False, multiple_told(full_text(error)))
    return Look(size, tuple(output.shape[2:]), value, tuple(tracer.numbers))


FAKE_ERRORS = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
    TypeError,
    AttributeError,
    NotImplementedError,
)


def _plain(output: torch.Tensor, value: Value | None) -> Value:
    """The value of the result with rows and columns in the dimensions of an image; else one that depends on
    everything."""
    if value is None:
        return Value(tuple(opaque(side) for side in output.shape), (NOWHERE, NOWHERE))
    try:
        if spatial(value.dims[0]):
            raise Unknown("the batch dimension still holds windows")
        plain = mixed(value, [1], Event("unknown", "", "the result's channels"))
        for axis in (0, 1):
            if value.maps[axis].shift:
                plain = as_axis(plain, 2 + axis)
                if plain.dims[2 + axis][0].axis != axis:
                    raise Unknown("rows and columns are swapped")
        return plain
    except Unknown as error:
        return unknown_value(output.shape, [value], Event("unknown", "", "the result", str(error)))


class Tracer(FakeRun):
    """Runs a module on an image without data and records the value of every tensor that depends on it."""

    def __init__(self, module: torch.nn.Module, fake: FakeTensorMode):
        super().__init__(module, fake)
        self.values: dict[int, Value] = {}
        self.kept: list[torch.Tensor] = []  # so that no id is reused
        self.numbers: list[tuple[Any, ...]] = []  # scalar operands of local elementwise operators
        self.overwritten: set[int] = set()  # storages written to by untracked operators
        inners = all_modules(module)
        self.parameters = {storage_of(tensor) for inner in inners for tensor in inner.parameters(recurse=False)}

    def begin(self, image: torch.Tensor) -> None:
        _, channels, height, width = image.shape
        dims = ((), opaque(channels), (Part(0, height, 1),), (Part(1, width, 1),))
        self._keep(image, Value(dims, (IDENTITY, IDENTITY)))

    def known(self, tensor: torch.Tensor) -> Value | None:
        """The value of a tensor; None if it is a constant."""
        if self.overwritten and storage_of(tensor) in self.overwritten:
            return unknown_value(tensor.shape, [], Event("unknown", self.path, "a tensor written to in place"))
        value = self.values.get(id(tensor))
        if value is None and isinstance(tensor, FakeTensor):
            return unknown_value(tensor.shape, [], Event("unknown", self.path, "a tensor of unknown origin"))
        return value

    def _keep(self, tensor: torch.Tensor, value: Value) -> None:
        self.kept.append(tensor)
        self.values[id(tensor)] = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # the model entered it
            result = decomposed(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sees = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        sees = sees or (bool(self.overwritten) and any(storage_of(tensor) in self.overwritten for tensor in tensors))
        name = func._schema.name.removeprefix("aten::")
        if name in BLANK and sees:
            args, kwargs = _pytree.tree_map_only(FakeTensor, _stand_in, (args, kwargs))
            return getattr(torch.ops.aten, BLANK[name])(*args, **kwargs)
        if not sees and not is_random(func, name):
            return self.constant(func, args, kwargs)
        if name == "as_strided_" and same_elements(*args, **kwargs):  # adaptive_avg_pool2d's, on its own result
            return args[0]
        with self.fake:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if outputs:
            self._record(func, name, args, kwargs, outputs, tensors if sees else [])
        return result

    def _record(
        self, func: Any, name: str, args: Any, kwargs: Any, outputs: list[torch.Tensor], tensors: list[torch.Tensor]
    ) -> None:
        schema = func._schema
        given = {entry.name: entry.default_value for entry in schema.arguments if entry.has_default_value()}
        given |= dict(zip((entry.name for entry in schema.arguments), args, strict=False)) | kwargs
        operation = Operation(str(func), self.path, given, outputs, self.known, self._is_parameter)
        if schema.is_mutable:
            written = [
                given[entry.name] for entry in schema.arguments if entry.alias_info and entry.alias_info.is_write
            ]
            self.overwritten |= {storage_of(tensor) for tensor in written if isinstance(tensor, torch.Tensor)}
        rule = _rule_of(func, name, tensors)
        values = self._apply(rule, operation, tensors)
        numbers = [given[key] for key in given if isinstance(given[key], (int, float))]
        if rule is pointwise_rows and numbers and not any(rows.is_global for rows in values[0].maps):
            self.numbers.append((self.path, str(func), *numbers))
        if is_random(func, name):
            values = [value.with_events(operation.event(what="stochastic")) for value in values]
        for output, value in zip(outputs, values, strict=True):
            self._keep(output, value)

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        return storage_of(tensor) in self.parameters

    def _apply(self, rule: RowRule | None, op: Operation, tensors: list[torch.Tensor]) -> list[Value]:
        sources = [value for value in map(self.known, tensors) if value is not None]
        try:
            if rule is None:
                raise Unknown("not in the table of operators")
            found = rule(op)
        except TooSmall:
            raise
        except Aligned:
            event = op.event("align_corners makes it depend on the size of the image", "coordinate")
            return [unknown_value(output.shape, sources, event) for output in op.outputs]
        except Exception as error:  # includes bugs of a rule: never treated as local
            words = str(error) if isinstance(error, Unknown) else named(error)
            return [unknown_value(output.shape, sources, op.event(words, "unknown")) for output in op.outputs]
        values = found if isinstance(found, list) else [found] * len(op.outputs)
        odd = op.event("a result of unexpected shape", "unknown")
        return [
            value if value.shape == tuple(output.shape) else unknown_value(output.shape, sources, odd)
            for value, output in zip(values, op.outputs, strict=True)
        ]


# Operators that use only the shape of a tensor, and the ones that make a constant in their place.
BLANK = {
    **{name: name for name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")},
    "new_empty": "new_zeros",
    "empty_like": "zeros_like",
}


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _independent(op: Operation) -> Value:
    return Value(tuple(opaque(side) for side in op.shape), (NOWHERE, NOWHERE))


def _rule_of(func: Any, name: str, tensors: list[torch.Tensor]) -> RowRule | None:
    if func.namespace != "aten" or func._schema.is_mutable:
        return None
    if is_random(func, name):
        return pointwise_rows if tensors and not name.endswith("_like") else _independent
    return entry(name).rows or (pointwise_rows if torch.Tag.pointwise in func.tags else None)
