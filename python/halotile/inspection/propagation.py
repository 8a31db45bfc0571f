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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from .info import Field, GlobalOperation
from .perturbation import Sizes

__all__ = ["Propagation", "propagate"]

NOTHING = -math.inf  # depends on no input pixel
EDGE = 1e9  # depends on what lies beyond the window's end
HOW = "propagation"
LONGEST = 8192  # window, input pixels
STATISTICS = ("global pooling", "norm over space", "matrix product over space")  # may be held fixed: a few numbers
STRIDES = (1, 2, 4, 8, 16, 32, 64, 1 / 2, 1 / 4, 1 / 8, 3, 6, 12)  # input pixels from one element to the next
LARGEST_PHASE = 256  # input pixels
CHUNK = 1 << 24  # elements of a temporary

Pair = tuple[int, int]


@dataclass(frozen=True)
class Propagation:
    """Attributes:
    field: None if unbounded or unknown.
    local_field: the same with the statistics of global operations held fixed.
    phase: of the pattern of dependencies (rows, columns), input pixels; the model's is this or a multiple. None: none
        was found.
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
    axes = [_along(0, call, shapes, thin[1], names, 3 * expected + 16)]
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
            clean = float(passes[-1].distances.max()) <= (length if shapes.fixed else length // 3)
            if not clean:
                break
        distances = [one.distances for one in passes]
        phase = _period(torch.stack(distances), shapes.scale, length) if clean else None
        unknown = _all(one.mode.unknown for one in passes)
        if (clean and phase) or unknown or shapes.fixed or length * 2 > LONGEST:
            break
        length = shapes.legal(axis, length * 2)
    seen = clean and all(float(one.max()) > NOTHING for one in distances)
    reach = tuple(max(0, int(one.max())) for one in distances) if seen else None
    if reach and phase and passes[0].mode.found and not shapes.fixed:
        reach, phase = _with_taken(reach, phase, passes, axis, (length, thin) if axis == 0 else (thin, length))
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
    at = ((outputs + shapes.loss[axis]) * shapes.scale.denominator) // shapes.scale.numerator
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
            found = _taken(taken, axis, size, backwards=i == 0)
            if found is None:
                one.mode.notes.append("how far what global operations take sees could not be told")
                return None, phase
            distance, stride = found
            phase = math.lcm(phase, stride)
            wide[i] = max(wide[i], -(-distance // stride) * stride)
    return tuple(wide), phase


def _taken(seen: torch.Tensor, axis: int, size: Pair, backwards: bool) -> tuple[int, int] | None:
    """How far elements in the middle third of a feature map see, and input pixels from one to the next; None if that
    cannot be told from its shape."""
    for dim, stride in itertools.product(range(seen.ndim - 1, -1, -1), STRIDES):
        lost = [side / stride - count for side, count in zip(size, seen.shape[dim : dim + 2], strict=False)]
        if len(lost) == 2 and abs(lost[0] - lost[1]) < 1 and abs(lost[0]) * stride <= size[axis] / 4:
            break
        if seen.shape[dim] * stride * stride == size[0] * size[1]:  # rows one after the other
            seen, lost = seen.unflatten(dim, [int(side / stride) for side in size]), [0, 0]
            break
    else:
        return None
    length = size[axis]
    at = ((torch.arange(seen.shape[dim + axis]) + lost[axis] / 2) * stride).floor()
    distance = seen.movedim(dim + axis, -1) - (length - 1 - at if backwards else at)
    inner = (at >= length // 3) & (at < length - length // 3)
    return max(0, int(distance[..., inner].max())), max(1, int(stride))


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
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    before = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: mode.enter(module))
    after = torch.nn.modules.module.register_module_forward_hook(lambda *_: mode.leave(), always_call=True)
    try:
        yield
    finally:
        after.remove()
        before.remove()
        torch.backends.mha.set_fastpath_enabled(fast)


# ---- the mode --------------------------------------------------------------------------------------------------------


class Positions(TorchDispatchMode):
    """Runs operators on positions. A tensor carries positions if its memory was marked; all others are constants.

    Attributes:
        found: global operations. Their results are held fixed: what comes after is seen as if statistics were known.
        unknown: operators not in the table. Their results depend on everything.
    """

    def __init__(self, length: int, *, wraps: bool, names: dict[int, str]):
        super().__init__()
        self.length, self.wraps, self.names = length, wraps, names
        self.carried: dict[int, StorageWeakRef] = {}
        self.running: list[tuple[str, str]] = []  # path and class of modules
        self.found: list[GlobalOperation] = []
        self.taken: list[torch.Tensor] = []  # positions of what these take
        self.unknown: list[str] = []
        self.notes: list[str] = []

    def enter(self, module: torch.nn.Module) -> None:
        self.running.append((self.names.get(id(module), ""), type(module).__name__))

    def leave(self) -> None:
        if self.running:
            self.running.pop()

    def carry(self, tensor: torch.Tensor) -> torch.Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.carried[reference.cdata] = reference  # keeps the address from being used again
        return tensor

    def carries(self, tensor: Any) -> bool:
        return (
            isinstance(tensor, torch.Tensor)
            and tensor.layout == torch.strided
            and tensor.untyped_storage()._cdata in self.carried
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: PLR0911
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_iter((args, kwargs)) if self.carries(leaf)]
        if not inputs:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name in MAKING:
            return func(*args, **kwargs)
        if name in READING:
            return self._reading(name, func, args, kwargs)
        if name in WRITING:
            return WRITING[name](self, *args, **kwargs)
        if func._schema.is_mutable:
            if not name.endswith("_") or func._schema.name.split("::")[0] != "aten":
                return self.everything(func, args, kwargs)
            self.write(args[0], self.result(name[:-1], func, args, kwargs))
            return args[0]
        result = self.result(name, func, args, kwargs)
        if name not in TO_REAL and any(one.is_complex() for one in inputs):
            result = tree_map(as_complex, result)
        return tree_map(self._mark, result)

    def result(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        if name in TABLE:
            try:
                return TABLE[name](self, func, args, kwargs)
            except NotInTable:
                return self.everything(func, args, kwargs)
        if torch.Tag.pointwise in func.tags or name in POINTWISE:
            return self.pointwise(func, args, kwargs)
        if func.is_view or name in MOVING:
            return self.moved(func, args, kwargs)
        return self.everything(func, args, kwargs)

    def _mark(self, value: Any) -> Any:
        return self.carry(value) if isinstance(value, torch.Tensor) else value

    def _reading(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        self.notes.append(f"the model reads a value ({name}{self.place()}) and may act on it: that was not followed")
        return func(*args, **kwargs)

    def place(self) -> str:
        return f" in {self.running[-1][0] or self.running[-1][1]}" if self.running else ""

    def write(self, target: torch.Tensor, result: torch.Tensor) -> None:
        """An operation in place. Memory that was constant depends on nothing, but for what is written."""
        if not self.carries(target):
            if not target.is_floating_point():
                raise RuntimeError("positions were written to a tensor of whole numbers")
            torch.empty(0, dtype=target.dtype).set_(target.untyped_storage()).fill_(NOTHING)
            self.carry(target)
        target.copy_(result)

    # ---- kinds of operators

    def real(self, value: Any) -> torch.Tensor:
        """Positions of an operand; NOTHING for a constant."""
        if not self.carries(value):
            return torch.full((), NOTHING)
        return value.real if value.is_complex() else value

    def pointwise(self, func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        result: torch.Tensor | None = None
        for tensor in tensors:
            if self.carries(tensor):
                seen = self.real(tensor)
                result = seen if result is None else torch.maximum(result, seen)
        return result.expand(shape).clone()

    def moved(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Elements go elsewhere, by constant indices. Those of constants depend on nothing."""

        def of(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor) or self.carries(leaf):
                return leaf
            return torch.full_like(leaf, NOTHING, dtype=torch.float32) if leaf.is_floating_point() else leaf

        return func(*tree_map(of, args), **tree_map(of, kwargs))

    def everything(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """An operator that is not in the table: unknown, never local."""
        self.unknown.append(func._schema.name)
        blank = tree_map(lambda leaf: torch.ones_like(leaf) if self.carries(leaf) else leaf, (args, kwargs))
        result = func(*blank[0], **blank[1])
        return tree_map(lambda leaf: torch.full(leaf.shape, EDGE) if isinstance(leaf, torch.Tensor) else leaf, result)

    def spread(
        self, kind: str, seen: torch.Tensor, result: torch.Tensor, fixed: torch.Tensor, taken: Any = None
    ) -> torch.Tensor:
        """The result of an operation over several elements; `fixed` instead if it looks at the whole image: nearly
        all it gives reaches the far end, and most of what it is given does not. taken: what it is given, if `seen` is
        that in another shape."""
        if not self._full(result, 0.9) or self._full(seen, 0.6):
            return result
        path, own = self.running[-1] if self.running else ("", "")
        if "Norm" in own:
            kind = "norm over space"
        self.found.append(GlobalOperation(path, kind, HOW))
        self.taken += taken or [seen]
        return fixed

    def _full(self, seen: torch.Tensor, share: float) -> bool:
        finite = seen[seen > NOTHING]
        return finite.numel() > 0 and (finite >= self.length - 1).float().mean().item() >= share

    # ---- ends of windows

    def ends(self, shape: Sequence[int]) -> list[str]:
        """How each spatial side of (batch, channels, ...) goes on beyond its end: the longer one is the window's."""
        if len(shape) == 2 and self.wraps:
            if shape[0] != shape[1]:
                return ["edge", "wrap"] if shape[0] > shape[1] else ["wrap", "edge"]
            return ["none", "none"]
        return ["edge"] * len(shape) if len(shape) == 2 else ["none"] * len(shape)

    def extended(self, seen: torch.Tensor, dim: int, left: int, right: int, end: str) -> torch.Tensor:
        if end == "wrap":
            at = torch.arange(-left, seen.shape[dim] + right) % seen.shape[dim]
            return seen.index_select(dim, at)
        if left < 0 or right < 0:
            seen = seen.narrow(dim, max(0, -left), seen.shape[dim] + min(0, left) + min(0, right))
        after = seen.ndim - 1 - dim % seen.ndim
        value = EDGE if end == "edge" else NOTHING
        return pad(seen, [0, 0] * after + [max(0, left), max(0, right)], value=value)


def as_complex(value: Any) -> Any:
    real = isinstance(value, torch.Tensor) and not value.is_complex()
    return torch.complex(value, torch.zeros_like(value)) if real else value


class NotInTable(Exception):
    """The operator is in the table, but not for such arguments."""


# ---- convolutions and matrix products --------------------------------------------------------------------------------


def convolution(mode, func, args, kwargs):
    seen, weight, _, stride, padding, dilation, transposed, extra, groups = args[:9]
    dims = weight.ndim - 2
    if mode.carries(weight) or seen.ndim != weight.ndim:
        raise NotInTable
    stride, padding, dilation, extra = (
        list(v) * (dims if len(v) == 1 else 1) for v in (stride, padding, dilation, extra)
    )
    taps = weight.detach() != 0
    dense = bool(taps.all())
    if dense:  # the farthest of all channels of a group goes to all its outputs
        seen = seen.unflatten(1, (groups, -1)).amax(2)
    if transposed:
        inputs, outputs, *kernel = taps.shape
        taps = taps.reshape(groups, inputs // groups, outputs, *kernel).transpose(1, 2).flip(*range(3, 3 + dims))
        taps = taps.reshape(groups * outputs, inputs // groups, *kernel)
    kernel, ends = taps.shape[2:], mode.ends(seen.shape[2:])
    for d in range(dims):
        reach, size = dilation[d] * (kernel[d] - 1), seen.shape[2 + d]
        if transposed:
            out = (size - 1) * stride[d] - 2 * padding[d] + reach + extra[d] + 1
            seen = _spaced(seen, 2 + d, stride[d])
            left = reach - padding[d]
            seen = mode.extended(seen, 2 + d, left, out + reach - left - seen.shape[2 + d], ends[d])
        else:
            seen = mode.extended(seen, 2 + d, padding[d], padding[d], ends[d])
    stride = [1] * dims if transposed else stride
    if dense:
        pool = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[dims - 1]
        result = pool(seen, list(kernel), stride, 0, dilation).unsqueeze(2)
        return result.expand(-1, -1, len(taps) // groups, *result.shape[3:]).flatten(1, 2).contiguous()
    return taken(seen, taps, stride, dilation, groups)


def _spaced(seen: torch.Tensor, dim: int, stride: int) -> torch.Tensor:
    """With `stride` - 1 elements that depend on nothing behind each."""
    if stride == 1:
        return seen
    shape = [*seen.shape[: dim + 1], stride, *seen.shape[dim + 1 :]]
    spaced = torch.full(shape, NOTHING)
    spaced.select(dim + 1, 0).copy_(seen)
    return spaced.flatten(dim, dim + 1)


def taken(seen: torch.Tensor, taps: torch.Tensor, stride, dilation, groups: int) -> torch.Tensor:
    """The farthest of what the taps (outputs, inputs of a group, *kernel) take, some of which are zero."""
    outputs, inputs, *kernel = taps.shape
    grouped = seen.unflatten(1, (groups, inputs))
    size = [
        (side - reach * (count - 1) - 1) // step + 1
        for side, count, step, reach in zip(seen.shape[2:], kernel, stride, dilation, strict=True)
    ]
    patterns, which = torch.cat([taps.flatten(1).long(), _groups_of(outputs, groups)], 1).unique(
        dim=0, return_inverse=True
    )
    result = torch.full((len(seen), len(patterns), *size), NOTHING)
    for i, pattern in enumerate(patterns):
        group, used = grouped[:, int(pattern[-1])], pattern[:-1].reshape(inputs, *kernel).bool()
        for tap in used.any(0).nonzero().tolist():
            inner = group[:, used[(slice(None), *tap)]].amax(1)
            for d, at in enumerate(tap):
                inner = inner.index_select(1 + d, torch.arange(size[d]) * stride[d] + at * dilation[d])
            torch.maximum(result[:, i], inner, out=result[:, i])
    return result.index_select(1, which)


def _groups_of(outputs: int, groups: int) -> torch.Tensor:
    """The group that each output belongs to, as a column."""
    return (torch.arange(outputs) // (outputs // groups)).unsqueeze(1)


def times_constant(seen: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Positions (..., k) in a product with a constant (k, m)."""
    used = weight != 0
    if used.all():
        return seen.amax(-1, keepdim=True).expand(*seen.shape[:-1], weight.shape[1]).contiguous()
    flat = seen.reshape(-1, seen.shape[-1])
    step = max(1, CHUNK // max(1, used.numel()))
    parts = [torch.where(used, part.unsqueeze(-1), NOTHING).amax(1) for part in flat.split(step)]
    return torch.cat(parts).reshape(*seen.shape[:-1], weight.shape[1])


def product(mode, a, b):
    """a (..., n, k) times b (..., k, m)."""
    if not mode.carries(b) and b.ndim == 2:
        result = times_constant(mode.real(a), b)
    elif not mode.carries(a) and a.ndim == 2:
        result = times_constant(mode.real(b).transpose(-1, -2), a.transpose(0, 1)).transpose(-1, -2)
    else:
        rows = mode.real(a).amax(-1, keepdim=True) if mode.carries(a) else torch.full((), NOTHING)
        columns = mode.real(b).amax(-2, keepdim=True) if mode.carries(b) else torch.full((), NOTHING)
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        result = torch.maximum(rows, columns).expand(shape).clone()
    taken = [mode.real(one) for one in (a, b.transpose(-1, -2)) if mode.carries(one)]
    parts = [one.flatten() for one in taken]
    kind = "attention" if len(parts) == 2 and a.shape[-1] <= max(result.shape[-2:]) else "matrix product over space"
    return mode.spread(kind, torch.cat(parts), result, torch.full_like(result, NOTHING), taken)


def matrix_product(mode, func, args, kwargs):
    return product(mode, args[0], args[1])


def added_product(mode, func, args, kwargs):
    bias, a, b = args[:3]
    result = (
        product(mode, a, b) if mode.carries(a) or mode.carries(b) else torch.full((a.shape[-2], b.shape[-1]), NOTHING)
    )
    return torch.maximum(result, mode.real(bias)).contiguous()


def attention(mode, func, args, kwargs):
    """Scaled dot products: queries with the keys and values that a constant mask leaves them."""
    query, key, value = (mode.real(one) if mode.carries(one) else torch.full(one.shape, NOTHING) for one in args[:3])
    mask = kwargs.get("attn_mask")
    source = torch.maximum(key.amax(-1), value.amax(-1)).unsqueeze(-2)
    if mask is not None and not mode.carries(mask):
        source = torch.where(mask if mask.dtype == torch.bool else mask != -math.inf, source, NOTHING)
    seen = torch.maximum(query.amax(-1), source.amax(-1)).unsqueeze(-1)
    result = seen.expand(*query.shape[:-1], value.shape[-1]).contiguous()
    result = mode.spread(
        "attention", torch.cat([query.flatten(), value.flatten()]), result, torch.full_like(result, NOTHING)
    )
    return result, result.amax(-1)


# ---- reductions, norms, Fourier transforms ---------------------------------------------------------------------------


def over(mode, seen, dims, keep, kind="global pooling"):
    dims = list(range(seen.ndim)) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else list(dims))
    result = seen.amax(dims, keep) if seen.ndim else seen.clone()
    return mode.spread(kind, seen, result, torch.full_like(result, NOTHING))


def reduction(mode, func, args, kwargs):
    """Several elements become one; with `dim`, along those dimensions."""
    if len(args) > 1 and isinstance(args[1], torch.Tensor):  # max(a, b)
        return mode.pointwise(func, args, kwargs)
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
    result = over(mode, mode.real(args[0]), given.get("dim"), given.get("keepdim", False))
    return result if len(func._schema.returns) == 1 else (result, result.clone())


def along_one(kind: str):
    """Softmax and the like: each element takes in all along a dimension, and stays where it is."""

    def run(mode, func, args, kwargs):
        seen = mode.real(args[0])
        result = seen.amax(args[1], keepdim=True).expand(seen.shape).contiguous()
        return mode.spread(kind, seen, result, seen.clone())

    return run


def cumulative(mode, func, args, kwargs):
    seen = mode.real(args[0])
    result = torch.cummax(seen, args[1])[0]
    return mode.spread("sum along an axis", seen, result, seen.clone())


def group_norm(mode, func, args, kwargs):
    x, n, groups = mode.real(args[0]), args[3], args[6]
    flat = x.reshape(n * groups, -1)
    seen = flat.amax(1, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(flat.shape).reshape(x.shape).contiguous(), x.clone())
    return result, seen.reshape(n, groups).clone(), seen.reshape(n, groups).clone()


def layer_norm(mode, func, args, kwargs):
    x, dims = mode.real(args[0]), list(range(-len(args[1]), 0))
    seen = x.amax(dims, keepdim=True)
    result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
    return result, seen.clone(), seen.clone()


def batch_norm(training: int | None):
    """Argument `training` says whether the batch's own statistics are used; None: never."""

    def run(mode, func, args, kwargs):
        x = mode.real(args[0])
        taught = x.new_zeros(0)
        if training is None or not args[training]:
            return x.clone(), taught, taught.clone()
        seen = x.amax([0, *range(2, x.ndim)], keepdim=True)
        result = mode.spread("norm over space", x, seen.expand(x.shape).contiguous(), x.clone())
        return result, seen.flatten(), seen.flatten().clone()

    return run


def fourier(mode, func, args, kwargs):
    x, dims = mode.real(args[0]), args[1]
    blank = func(torch.zeros(x.shape, dtype=args[0].dtype), *args[1:], **kwargs)
    seen = x.amax(dims, keepdim=True)
    result = seen.expand(blank.shape).contiguous()
    result = mode.spread("Fourier transform", x, result, torch.full_like(result, NOTHING))
    return torch.complex(result, torch.zeros_like(result)) if blank.is_complex() else result


# ---- pooling, resampling, padding ------------------------------------------------------------------------------------


def pooling(results: int):
    def run(mode, func, args, kwargs):
        names = [one.name for one in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        x, kernel = mode.real(args[0]), given["kernel_size"]
        flat = x if x.ndim == 4 else x.unsqueeze(0)
        blank = func(torch.zeros(1, 1, *x.shape[-2:]), *args[1:], **kwargs)
        size = (blank[0] if results > 1 else blank).shape[-2:]
        kernel, stride, padding, dilation = (
            list(v) * (2 if len(v) == 1 else 1)
            for v in (kernel, given.get("stride") or kernel, given.get("padding") or [0], given.get("dilation") or [1])
        )
        for d, end in enumerate(mode.ends(x.shape[-2:])):
            needed = (size[d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1
            right = max(padding[d], needed - padding[d] - x.shape[d - 2])
            if padding[d] == 0 and needed <= x.shape[d - 2]:
                continue
            flat = mode.extended(flat, 2 + d, padding[d], right, end)
        result = torch.max_pool2d(flat, kernel, stride, 0, dilation)[..., : size[0], : size[1]]
        result = result.reshape(*x.shape[:-2], *size).clone()
        result = mode.spread("global pooling", x, result, torch.full_like(result, NOTHING))
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def adaptive_pooling(results: int):
    """Into a fixed number of cells: those of a size that the image decides look at all of it."""

    def run(mode, func, args, kwargs):
        x, size = mode.real(args[0]), args[1]
        result = torch.nn.functional.adaptive_max_pool2d(x, size)
        fixed = torch.full_like(result, NOTHING)
        if max(side / cells for side, cells in zip(x.shape[-2:], size, strict=True)) >= max(x.shape[-2:]) / 16 >= 2:
            mode.found.append(GlobalOperation(mode.running[-1][0] if mode.running else "", "global pooling", HOW))
            mode.taken.append(x)
            result = fixed
        return result if results == 1 else (result, torch.zeros_like(result, dtype=torch.int64))

    return run


def resampling(mode, func, args, kwargs):
    """Interpolation, axis by axis: the operator itself, on unit vectors, shows which pixels go into which."""
    x = mode.real(args[0])
    size, *rest = args[1:]
    for d, end in enumerate(mode.ends(x.shape[-2:])):
        length, out = x.shape[d - 2], size[d]
        copies = 3 if end == "wrap" and length < 64 else 1
        if copies == 3:
            x = torch.cat([x] * 3, d - 2)
        inner = torch.eye(length * copies)[None].unsqueeze(2 if d == 1 else 3)
        target = [1, out * copies] if d == 1 else [out * copies, 1]
        options = [rest[0], *(one if i == d else None for i, one in enumerate(rest[1:3]))]
        weights = func(inner, target, *options, **kwargs).reshape(length * copies, out * copies).T
        used = weights != 0
        most = int(used.sum(1).max())
        order = torch.where(used, torch.arange(length * copies), length * copies).sort(1)[0][:, :most]
        order = torch.where(order < length * copies, order, order[:, :1])
        taken_from = x.index_select(d - 2, order.flatten()).unflatten(d - 2, order.shape)
        x = taken_from.amax(d - 2)
        if copies == 3:
            x = x.narrow(d - 2, out, out)
    return x.contiguous()


def padding_by(mode, func, args, kwargs):
    """Reflection and replication: what comes of it lies beyond the end."""
    pads = list(args[1])
    return padded(mode, args[0], pads)


def constant_padding(mode, func, args, kwargs):
    return padded(mode, args[0], list(args[1]))


def padded(mode, x, pads):
    seen = mode.real(x)
    wide = [seen.ndim - 1 - i for i in range(len(pads) // 2) if pads[2 * i] or pads[2 * i + 1]]
    last = seen.ndim >= 4 and (seen.ndim - 1 in wide or seen.ndim - 3 not in wide)
    spatial = [seen.ndim - 2, seen.ndim - 1] if last or seen.ndim == 3 else [seen.ndim - 3, seen.ndim - 2]
    ends = dict(zip(spatial, mode.ends([seen.shape[d] for d in spatial]), strict=True)) if seen.ndim >= 3 else {}
    for i in range(len(pads) // 2):
        dim = seen.ndim - 1 - i
        if pads[2 * i] or pads[2 * i + 1]:
            seen = mode.extended(seen, dim, pads[2 * i], pads[2 * i + 1], ends.get(dim, "none"))
    return seen.clone()


# ---- others ----------------------------------------------------------------------------------------------------------


def multiplied(mode, func, args, kwargs):
    """A factor that is exactly zero leaves no dependency."""
    result = mode.pointwise(func, args, kwargs)
    for factor in args[:2]:
        if isinstance(factor, torch.Tensor) and not mode.carries(factor) and factor.is_floating_point():
            result = torch.where(factor == 0, NOTHING, result)
        elif isinstance(factor, (int, float)) and factor == 0:
            result = torch.full_like(result, NOTHING)
    return result


def masked(mode, func, args, kwargs):
    """Elements that a constant mask replaces by a constant depend on nothing."""
    result = mode.pointwise(func, args[:1] + args[2:], kwargs).expand(
        torch.broadcast_shapes(args[0].shape, args[1].shape)
    )
    if mode.carries(args[1]):
        return torch.maximum(result, mode.real(args[1])).contiguous()
    inner = mode.real(args[2]) if len(args) > 2 else torch.full((), NOTHING)
    return torch.where(args[1], inner, result).contiguous()


def chosen(mode, func, args, kwargs):
    """where(condition, a, b)."""
    condition, a, b = args
    if mode.carries(condition):
        return mode.pointwise(func, args, kwargs)
    return torch.where(condition, mode.real(a), mode.real(b)).contiguous()


def halves(mode, func, args, kwargs):
    dim = args[1] if len(args) > 1 else -1
    first, second = mode.real(args[0]).chunk(2, dim)
    return torch.maximum(first, second)


def by_index(mode, func, args, kwargs):
    """Reads or writes by indices, which must be constant."""
    indices = [leaf for leaf in tree_iter(args[1:]) if isinstance(leaf, torch.Tensor) and not leaf.is_floating_point()]
    if not indices or any(
        mode.carries(leaf) for leaf in tree_iter(args[1:2] if func._schema.name == "aten::index" else ())
    ):
        raise NotInTable
    return mode.moved(func, args, kwargs)


def copied(mode, target, source, non_blocking=False):
    shape = target.shape
    mode.write(target, mode.real(source).expand(shape))
    return target


def filled(mode, target, *_, **__):
    if mode.carries(target):
        target.fill_(NOTHING)
    return target


def cast(mode, func, args, kwargs):
    return args[0].clone()


def viewed_as_real(mode, func, args, kwargs):
    seen = mode.real(args[0])
    return torch.stack([seen, seen], -1)


def viewed_as_complex(mode, func, args, kwargs):
    seen = mode.real(args[0]).amax(-1)
    return torch.complex(seen, torch.zeros_like(seen))


MAKING = {
    "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like", "ones_like",
    "full_like", "rand_like", "randn_like", "bernoulli",
}  # fmt: skip
TO_REAL = {"abs", "angle", "view_as_real", "_fft_c2r", "linalg_vector_norm", "norm"}
READING = {"_local_scalar_dense", "equal", "is_nonzero"}
WRITING = {"copy_": copied, "fill_": filled, "zero_": filled}
POINTWISE = {
    "_prelu_kernel", "hardswish", "softplus", "rrelu_with_noise", "celu", "mish", "lerp", "dropout", "contiguous",
}  # fmt: skip
MOVING = {
    "cat", "stack", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "roll", "flip",
    "repeat", "im2col", "slice_scatter", "select_scatter", "upsample_nearest2d", "_upsample_nearest_exact2d",
    "upsample_nearest1d", "upsample_nearest3d", "_unsafe_view", "unfold_copy", "tril", "triu", "rot90",
    "repeat_interleave", "view_copy", "permute_copy", "as_strided", "_reshape_copy"
}  # fmt: skip
TABLE: dict[str, Callable] = {
    "convolution": convolution, "_convolution": convolution,
    "mm": matrix_product, "bmm": matrix_product, "addmm": added_product, "baddbmm": added_product,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "mean": reduction, "sum": reduction, "amax": reduction, "amin": reduction, "var": reduction,
    "std": reduction, "prod": reduction, "any": reduction, "all": reduction, "logsumexp": reduction,
    "linalg_vector_norm": reduction, "norm": reduction, "argmax": reduction, "argmin": reduction,
    "max": reduction, "min": reduction, "var_mean": reduction,
    "std_mean": reduction, "median": reduction,
    "_softmax": along_one("attention"), "_log_softmax": along_one("attention"), "cumsum": cumulative,
    "native_group_norm": group_norm, "native_layer_norm": layer_norm, "native_batch_norm": batch_norm(5),
    "_native_batch_norm_legit": batch_norm(5), "_native_batch_norm_legit_no_training": batch_norm(None),
    "cudnn_batch_norm": batch_norm(5),
    "_fft_r2c": fourier, "_fft_c2c": fourier, "_fft_c2r": fourier,
    "max_pool2d_with_indices": pooling(2), "max_pool2d": pooling(1), "avg_pool2d": pooling(1),
    "_adaptive_avg_pool2d": adaptive_pooling(1), "adaptive_max_pool2d": adaptive_pooling(2),
    "upsample_bilinear2d": resampling, "upsample_bicubic2d": resampling, "_upsample_bilinear2d_aa": resampling,
    "_upsample_bicubic2d_aa": resampling,
    "reflection_pad2d": padding_by, "replication_pad2d": padding_by, "constant_pad_nd": constant_padding,
    "mul": multiplied, "masked_fill": masked, "where": chosen, "glu": halves,
    "index": by_index, "index_select": by_index, "gather": by_index, "index_put": by_index, "scatter": by_index,
    "_to_copy": cast, "view_as_real": viewed_as_real, "view_as_complex": viewed_as_complex,
}  # fmt: skip
