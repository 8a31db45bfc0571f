# SPDX-License-Identifier: MIT
"""What a model's operators say about it: receptive field, phase, scale, loss, global operations. No pixel is computed.

The model runs twice, at two sizes, on tensors without data; constants of its own are computed as usual. Every ATen
operator that sees the image is looked up in the table of `operators.py`. What is true at one size only is unknown.
Imports torch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..models.around import Shared, looking, slow_attention, without_memory
from ..models.exported import FixedShape
from ..models.modes import evaluating
from ..models.reach import all_modules, roots_of
from ..models.untouched.copies import shell, uncompiled, without_hooks
from ..models.untouched.snapshot import preserved
from ..models.untouched.tensors import tensors_of
from ..texts import full_text, multiple_told, named
from . import mixes, moves, operators  # noqa: F401 - they enter their rules into the table
from .operators import RULES, Aligned, Operation
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

__all__ = ["Reach", "Structure", "analyse"]

LARGEST_SIDE = 1024  # of the images that the model is asked about, in pixels


class Reach(NamedTuple):
    """How far an output pixel sees, in input pixels.

    With scale `s` and loss `l`, pixel `o` of the model's output stands for pixel `O = o + l`, and may depend on input
    columns `floor(O / s) - left` to `floor(O / s) + right`, and rows accordingly; the largest over all `o`, at least 0.
    """

    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Structure:
    """Attributes:
    scale: output pixels per input pixel; None if unknown.
    receptive_field: in input pixels; None if it is the whole image, or unknown.
    phase: by how many input rows and columns the image may be shifted so that everything inside shifts with it.
    loss: output pixels (rows, columns) missing at each end, below 0 if there are more; None if unknown, or if the two
        ends differ.
    global_operations: (module path, operator, kind) of what depends on the whole image; kinds are "global pooling",
        "squeeze-and-excite", "instance norm", "group norm", "attention", "fft", "reduction".
    unknown: (module path, operator) of what is not understood: nothing is promised then.
    coordinate_sensitive: (module path, operator) of what depends on the place in the image.
    stochastic: (module path, operator) of what draws random numbers.
    notes: what happens at edges, and why something is unknown.
    sizes: the sizes (height, width) at which the model was looked at; with one alone, what depends on it is not told.
    """

    scale: Fraction | None = None
    receptive_field: Reach | None = None
    phase: tuple[int, int] | None = None
    loss: tuple[int, int] | None = None
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
    """What the operators of a module say about it. It is run on tensors without data, in eval mode, and left as it was.

    Args:
        module: a torch.nn.Module, also TorchScript, or a torch.export.ExportedProgram.
        channels: of the image. size: the smallest image (height, width) to look at, in pixels.
        dtype: of the image; by default that of the module's first floating-point parameter, else float32.
        looks: at how many sizes it is looked at, at most, until two agree. 1: what depends on the size is not told.

    Returns:
        A Structure. A model that cannot be run this way is `unknown`, with the reason.

    Raises:
        TypeError: if it is no module. ValueError: if channels or size are not positive.
    """
    module, fixed = _module_of(uncompiled(module))
    if channels < 1 or min(size) < 1:
        raise ValueError(f"channels and size must be positive, not {channels} and {size}")
    with looking(), _apart(module, hooks=looks > 1) as own:
        return _analysed(own, fixed, channels, size, dtype, looks)


@contextlib.contextmanager
def _apart(module: torch.nn.Module, hooks: bool) -> Iterator[torch.nn.Module]:
    """A copy that shares the module's tensors; the module itself where it cannot be copied, which gets all back."""
    own = module
    if not isinstance(module, torch.jit.ScriptModule):
        with contextlib.suppress(Exception):  # whatever its parts say
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
        look = _look(module, fake, channels, wanted, dtype)
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


# Sizes to try where a model refuses one: of all factors that windows and strides have, larger ones first.
MULTIPLES = (128, 240, 336, 432, 400, 392, 360, 176, 208)


def _not_settled(looks: list[Look], failures: list[Failure]) -> Structure:
    """The reasons why no two sizes agree."""
    path, reason = failures[-1][:2] if failures else ("", "its rows become a single one at every size tried")
    if not looks:
        return Structure(unknown=((path, f"the model cannot be run without data: {reason}"),))
    text = "what it does depends on the size of the image"
    if len(looks) == 1:
        text = f"it runs at {looks[0].size[0]}x{looks[0].size[1]} only: {reason}"
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
    """The module itself, and the only size that it takes, if there is but one."""
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


# ---- one size --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """The model at one size. Attributes: size: of the image. output: of the result. value: of the result. numbers: by
    what the image was multiplied, and so on: some models take its size for that."""

    size: tuple[int, int]
    output: tuple[int, int]
    value: Value
    numbers: tuple[Any, ...]

    @property
    def facts(self) -> tuple[Any, ...]:
        return self.value.maps, self.value.phase, self.value.events, self.numbers


class Failure(NamedTuple):
    """Attributes: path: of the module. reason: in words. final: whether another size would not help. multiple: of
    which sides must be multiples, if the reason says so."""

    path: str
    reason: str
    final: bool
    multiple: int | None = None


def _look(
    module: torch.nn.Module, fake: FakeTensorMode, channels: int, size: tuple[int, int], dtype: torch.dtype | None
) -> Look | Failure:
    tracer = Tracer(module, fake)
    try:
        with evaluating(roots_of(module)), tracer:
            output = tracer.run(channels, size, dtype)
        value = _plain(output, tracer.known(output))
    except TooSmall:
        return Failure(tracer.path, f"{size[0]}x{size[1]} pixels become a single one inside", False)
    except FAKE_ERRORS as error:
        return Failure(tracer.path, named(error), True)
    except Exception as error:  # whatever a model raises
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
    """The value of the result, its rows and columns where those of an image are; else it depends on everything."""
    if value is None:
        return Value(tuple(opaque(side) for side in output.shape), (NOWHERE, NOWHERE))
    try:
        if spatial(value.dims[0]):
            raise Unknown("windows are left in the batch")
        plain = mixed(value, [1], Event("unknown", "", "the result's channels"))
        for axis in (0, 1):
            if value.maps[axis].shift:
                plain = as_axis(plain, 2 + axis)
                if plain.dims[2 + axis][0].axis != axis:
                    raise Unknown("rows and columns are swapped")
        return plain
    except Unknown as error:
        return unknown_value(output.shape, [value], Event("unknown", "", "the result", str(error)))


class Tracer(TorchDispatchMode):
    """Runs a module on an image without data, and keeps the value of every tensor that depends on it."""

    def __init__(self, module: torch.nn.Module, fake: FakeTensorMode):
        super().__init__()
        self.module, self.fake, self.path = module, fake, ""
        self.values: dict[int, Value] = {}
        self.kept: list[torch.Tensor] = []  # so that no id is used twice
        self.numbers: list[tuple[Any, ...]] = []  # of element by element operators, where the result is local
        self.overwritten: set[int] = set()  # storages that were written to behind our back
        inners = all_modules(module)
        self.parameters = {_storage(tensor) for inner in inners for tensor in inner.parameters(recurse=False)}
        self.own = {_storage(tensor) for inner in inners for tensor in tensors_of(inner)}

    def run(self, channels: int, size: tuple[int, int], dtype: torch.dtype | None) -> torch.Tensor:
        """The module's output, without data.

        Raises:
            TypeError: it is not one tensor (batch, channels, rows, columns). And whatever the module raises.
        """
        like = next((tensor for tensor in self.module.parameters() if tensor.is_floating_point()), torch.empty(0))
        with self.fake:
            image = torch.empty(1, channels, *size, dtype=dtype or like.dtype, device=like.device)
        dims = ((), opaque(channels), (Part(0, size[0], 1),), (Part(1, size[1], 1),))
        self._keep(image, Value(dims, (IDENTITY, IDENTITY)))
        call = Followed(self).run if isinstance(self.module, torch.fx.GraphModule) else self.module
        with (
            torch.no_grad(),
            _plain_kernels(),
            _plain_functions(),
            self._following(),
            without_memory(self.fake) as look,
        ):
            output = torch.func.functionalize(lambda given: call(given.clone()))(image)
        if look.refused:  # and the model went on in some other way
            look.refuse()
        found = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if len(found) != 1 or found[0].dim() != 4:
            raise TypeError(f"it returns {len(found)} tensors, not one (batch, channels, rows, columns)")
        return found[0]

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Keeps `path` at the submodule that runs."""
        names = {id(inner): name for name, inner in self.module.named_modules()}
        stack, thread = [""], threading.get_ident()

        def enter(inner: torch.nn.Module, _: Any) -> None:
            if threading.get_ident() == thread:
                stack.append(self.path)
                self.path = names.get(id(inner), self.path)

        def leave(*_: Any) -> None:
            if threading.get_ident() == thread:
                self.path = stack.pop()

        hooks = torch.nn.modules.module
        entering = hooks.register_module_forward_pre_hook(enter)
        leaving = hooks.register_module_forward_hook(leave)
        try:
            yield
        finally:
            entering.remove()
            leaving.remove()

    def known(self, tensor: torch.Tensor) -> Value | None:
        """What is known of a tensor; None if it is a constant."""
        if self.overwritten and _storage(tensor) in self.overwritten:
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
        if torch.is_inference_mode_enabled() and func._can_decompose():  # a model that enters it leaves that to us
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sees = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        sees = sees or (bool(self.overwritten) and any(_storage(tensor) in self.overwritten for tensor in tensors))
        name = func._schema.name.removeprefix("aten::")
        if name in BLANK and sees:
            args, kwargs = _pytree.tree_map_only(FakeTensor, _stand_in, (args, kwargs))
            return getattr(torch.ops.aten, BLANK[name])(*args, **kwargs)
        if not sees and not _is_random(func, name):
            return self._constant(func, args, kwargs)
        if name == "as_strided_" and _same_elements(*args, **kwargs):  # adaptive_avg_pool2d's, on its own result
            return args[0]
        with self.fake:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if outputs:
            self._record(func, name, args, kwargs, outputs, tensors if sees else [])
        return result

    def _constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What depends on nothing is computed. What the model owns is never written to."""
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and _storage(args[0]) in self.own:
            args = (args[0].clone(), *args[1:])
        return func(*args, **kwargs)

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
            self.overwritten |= {_storage(tensor) for tensor in written if isinstance(tensor, torch.Tensor)}
        rule = _rule_of(func, name, tensors)
        values = self._apply(rule, operation, tensors)
        numbers = [given[key] for key in given if isinstance(given[key], (int, float))]
        if rule is operators.pointwise and numbers and not any(rows.is_global for rows in values[0].maps):
            self.numbers.append((self.path, str(func), *numbers))
        if _is_random(func, name):
            values = [value.with_events(operation.event(what="stochastic")) for value in values]
        for output, value in zip(outputs, values, strict=True):
            self._keep(output, value)

    def _is_parameter(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self.parameters

    def _apply(self, rule: operators.Rule | None, op: Operation, tensors: list[torch.Tensor]) -> list[Value]:
        sources = [value for value in map(self.known, tensors) if value is not None]
        try:
            if rule is None:
                raise Unknown("not in the table of operators")
            found = rule(op)
        except TooSmall:
            raise
        except Aligned:
            event = op.event("corners are aligned: it depends on the size of the image", "coordinate")
            return [unknown_value(output.shape, sources, event) for output in op.outputs]
        except Exception as error:  # also what a rule did not expect: never taken for local
            words = str(error) if isinstance(error, Unknown) else named(error)
            return [unknown_value(output.shape, sources, op.event(words, "unknown")) for output in op.outputs]
        values = found if isinstance(found, list) else [found] * len(op.outputs)
        odd = op.event("a result of unexpected shape", "unknown")
        return [
            value if value.shape == tuple(output.shape) else unknown_value(output.shape, sources, odd)
            for value, output in zip(values, op.outputs, strict=True)
        ]


class Followed(torch.fx.Interpreter):
    """Runs a graph, and tells a tracer the module from which each node came."""

    def __init__(self, tracer: Tracer):
        super().__init__(tracer.module)
        self.tracer = tracer

    def run_node(self, n: torch.fx.Node) -> Any:
        stack = n.meta.get("nn_module_stack")
        self.tracer.path = list(stack.values())[-1][0] if stack else self.tracer.path
        return super().run_node(n)


_here = threading.local()  # `plain`: whether this thread is inside `_plain_functions`


def _change_functions() -> Callable[[], None]:
    kind = torch.autograd.Function
    own = kind.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(_here, "plain", False) or cls.setup_context is not kind.setup_context:
            return own.__get__(None, cls)(*args, **kwargs)
        return cls.forward(torch.autograd.function.FunctionCtx(), *args, **kwargs)

    kind.apply = classmethod(apply)
    return lambda: setattr(kind, "apply", own)


_changed_functions = Shared(_change_functions)


@contextlib.contextmanager
def _plain_functions() -> Iterator[None]:
    """Lets autograd functions run as what they compute: those that save tensors in ``forward`` take part in none of
    torch's transforms, such as the one that does away with operations in place."""
    with _changed_functions:
        _here.plain = True
        try:
            yield
        finally:
            _here.plain = False


def _change_kernels() -> Callable[[], None]:
    silent, optimized = fake_tensor.log.disabled, torch._C._get_graph_executor_optimize()
    fake_tensor.log.disabled = True
    torch._C._set_graph_executor_optimize(False)

    def give_back() -> None:
        fake_tensor.log.disabled = silent
        torch._C._set_graph_executor_optimize(optimized)

    return give_back


_changed_kernels = Shared(_change_kernels)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention as its single operators, TorchScript as it is written; what fails at a size is not logged."""
    with slow_attention, _changed_kernels:
        yield


# Operators that take no more than the shape of a tensor, and what makes a constant in their place.
BLANK = {
    **{name: name for name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")},
    "new_empty": "new_zeros",
    "empty_like": "zeros_like",
}


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _same_elements(tensor: torch.Tensor, size: Any, stride: Any, offset: int | None = None) -> bool:
    """Whether other strides leave every element where it is: they differ along sides of one element."""
    before = [step for step, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]
    after = [step for step, side in zip(stride, size, strict=True) if side > 1]
    return tuple(size) == tuple(tensor.shape) and before == after and offset in (None, tensor.storage_offset())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_random(func: Any, name: str) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags and not name.startswith("_scaled_dot_product")


def _independent(op: Operation) -> Value:
    return Value(tuple(opaque(side) for side in op.shape), (NOWHERE, NOWHERE))


def _rule_of(func: Any, name: str, tensors: list[torch.Tensor]) -> operators.Rule | None:
    if func.namespace != "aten" or func._schema.is_mutable:
        return None
    if _is_random(func, name):
        return operators.pointwise if tensors and not name.endswith("_like") else _independent
    return RULES.get(name) or (operators.pointwise if torch.Tag.pointwise in func.tags else None)


# ---- what it means ---------------------------------------------------------------------------------------------------


def _structure(first: Look, last: Look) -> Structure:
    """What two sizes agree on."""
    value, looks = last.value, [first] if first is last else [first, last]
    scale, loss, problem = _scale_and_loss(looks, value)
    met = sorted(value.events)
    unknown = _places(met, "unknown") + _places(met, "strip") + ((("", problem),) if problem else ())
    reach = _reach(value, loss or (0, 0)) if scale is not None and not unknown else None
    notes = _notes([value])
    if first is last:
        notes += (f"seen at {last.size[0]}x{last.size[1]} only: what depends on the size of the image is not told",)
    if scale is not None and loss is None:
        notes += ("the output is not the image times the scale less as many pixels at one end as at the other",)
    return Structure(
        scale=scale,
        receptive_field=reach,
        phase=None if unknown else value.phase,
        loss=loss,
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
    """One entry for each place; squeeze-and-excite is also global pooling, and named by the former."""
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


def _scale_and_loss(looks: list[Look], value: Value) -> tuple[Fraction | None, tuple[int, int] | None, str]:
    """From the row maps and from how sizes grow, which must agree. The third is what is wrong, in words."""
    sizes, outputs = [look.size for look in looks], [look.output for look in looks]
    scales = {Fraction(rows.period, rows.shift) for rows in value.maps if rows.shift}
    if len(looks) == 2:
        scales |= {Fraction(outputs[1][axis] - outputs[0][axis], sizes[1][axis] - sizes[0][axis]) for axis in (0, 1)}
    scale = scales.pop() if scales else Fraction(0)
    if scales or scale <= 0:
        return None, None, "the size of the result does not follow from its rows"
    missing = [sizes[-1][axis] * scale - outputs[-1][axis] for axis in (0, 1)]
    if any(side.denominator != 1 or side.numerator % 2 for side in missing):
        return scale, None, ""
    return scale, (missing[0].numerator // 2, missing[1].numerator // 2), ""


def _reach(value: Value, loss: tuple[int, int]) -> Reach | None:
    """None if it is everything."""
    ends: list[int] = []
    for rows, lost in ((value.maps[1], loss[1]), (value.maps[0], loss[0])):
        if rows.is_global:
            return None
        before, after = 0, 0
        for row in range(rows.period if rows.shift else 0):
            lo, hi = rows.spans[row]
            if lo <= hi:
                center = (row + lost) * rows.shift // rows.period
                before, after = max(before, center - int(lo)), max(after, int(hi) - center)
        ends += [before, after]
    return Reach(*ends)
