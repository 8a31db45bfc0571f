# SPDX-License-Identifier: MIT
"""Values that differ from pixel to pixel although the model takes them for one: what it makes of local statistics.

    pool(x)            (1, 8, 1, 1) for the model; a value for each of the h * w pixels behind it
    mix(pool(x))       the same operators for each of them, computed when they are needed
    x * mix(pool(x))   an ordinary tensor (1, 8, h, w): each pixel of x meets the value that belongs to it

They are computed some rows of pixels at a time. Imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_iter, tree_map, tree_unflatten

from ..inspection.operators import entry

__all__ = ["Factored", "LocalTensor", "Made", "NotLocal", "Space", "local_call", "noted", "reciprocal", "reshaped"]

Pair = tuple[int, int]
Tensor = torch.Tensor
ELEMENTS = 1 << 22  # computed at a time, of the largest value
VIEWS = {"view": torch.ops.aten.reshape.default, "_unsafe_view": torch.ops.aten.reshape.default}
PRODUCTS = ("bmm", "mm")


class NotLocal(ValueError):
    """The model does something with a statistic that cannot be done for every pixel."""


@dataclass(frozen=True)
class Space:
    """The pixels to which values belong.

    Attributes:
        constants: addresses of the model's weights, which are never taken for an image.
        keys: torch's dispatch keys outside all modes, with which `vmap` works inside them.
    """

    rows: int
    columns: int
    constants: frozenset[int] = field(compare=False)
    keys: tuple[Any, Any] = field(compare=False)

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


class Source(Protocol):
    """Makes values (pixels, *shape) for rows of pixels.

    largest: elements for a pixel of the largest value that it takes.
    """

    largest: int

    def rows(self, start: int, stop: int, made: Made) -> Tensor: ...


class Made:
    """Values of some rows of pixels: each is made once."""

    def __init__(self, start: int, stop: int):
        self.start, self.stop = start, stop
        self.values: dict[int, Any] = {}

    def of(self, source: Any) -> Any:
        if id(source) not in self.values:
            self.values[id(source)] = source.rows(self.start, self.stop, self)
        return self.values[id(source)]


class LocalTensor(torch.Tensor):
    """Attributes:
    like: an ordinary tensor of its shape.
    dims: where rows and columns would be, from the end; equal if flattened; None if that is not known.
    shared: whether it is a view of another value, or has views.
    """

    space: Space
    source: Source
    like: Tensor
    dims: Pair | None
    shared: bool

    @staticmethod
    def __new__(cls, like: Tensor, space: Space, source: Source, dims: Pair | None = None) -> LocalTensor:
        made: LocalTensor = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        made.like, made.space, made.source, made.dims, made.shared = like, space, source, dims, False
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return local_call(func, args, kwargs or {})


class Applied:
    """An operator for every pixel by itself."""

    def __init__(self, func: Any, args: Any, kwargs: Any):
        self.func = VIEWS.get(func._schema.name.removeprefix("aten::"), func)
        kwargs = {name: one for name, one in kwargs.items() if name != "memory_format"}  # that is one of many values
        leaves, self.spec = tree_flatten((args, kwargs))
        self.leaves = [(one.source, one.like) if isinstance(one, LocalTensor) else one for one in leaves]
        self.locals = [i for i, one in enumerate(leaves) if isinstance(one, LocalTensor)]
        self.space = leaves[self.locals[0]].space
        self.largest = max(_largest(leaves[i]) for i in self.locals)

    def rows(self, start: int, stop: int, made: Made) -> Any:
        def run(*values: Tensor) -> Any:
            leaves = list(self.leaves)
            for i, value in zip(self.locals, values, strict=True):
                leaves[i] = value
            args, kwargs = tree_unflatten(leaves, self.spec)
            return self.func(*args, **kwargs)

        values = [made.of(self.leaves[i][0]) for i in self.locals]
        with torch._C._ForceDispatchKeyGuard(*self.space.keys):
            return torch.vmap(run)(*values)


def _largest(one: LocalTensor) -> int:
    """Elements for a pixel of the largest value that it is made of."""
    return max(one.numel(), one.source.largest)


class Result:
    """One of several results of an operator."""

    def __init__(self, applied: Applied, index: int):
        self.applied, self.index, self.largest = applied, index, applied.largest

    def rows(self, start: int, stop: int, made: Made) -> Tensor:
        of_it: Tensor = made.of(self.applied)[self.index]
        return of_it


@dataclass(frozen=True)
class Factored:
    """What an ordinary tensor is the product of: a sum of it over a window is one of `base`, times the pixel's factor.

    Attributes:
        base: None for ones.
        dims: dimensions of rows and columns, equal if flattened; there, the factor has size 1.
    """

    base: Tensor | None
    factor: LocalTensor
    dims: Pair


# ---- operators -------------------------------------------------------------------------------------------------------


def local_call(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator with local values among its arguments."""
    if func._can_decompose():
        return func.decompose(*args, **kwargs)
    name = func._schema.name.removeprefix("aten::")
    tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
    locals_ = [one for one in tensors if isinstance(one, LocalTensor)]
    space = locals_[0].space
    _check(name, args, locals_)
    if name in ("as_strided", "as_strided_"):
        return args[0]  # only another memory format, which values of many pixels do not have
    wide = _spread_shape(name, args, kwargs)
    if wide is not None and _wide(locals_, [wide]):
        return _spread(args[0], wide)
    plain = [one for one in tensors if not isinstance(one, LocalTensor)]
    if name in PRODUCTS and plain and not _is_constant(plain[0], space):
        return _product(args[0], args[1])
    if _is_pointwise(func, name) and _wide(locals_, [one.shape for one in plain]):
        return _met(func, args, kwargs, name)
    for one in plain:
        if not _is_constant(one, space) and _holds_space(one.shape, space):
            raise NotLocal(f"{name} takes a statistic and an image together")
    return _in_place(func, args, kwargs, name) if func._schema.is_mutable else _applied(func, args, kwargs)


def _check(name: str, args: Any, locals_: Sequence[LocalTensor]) -> None:
    """Raises NotLocal for what is of one value only."""
    if any(one.space != locals_[0].space for one in locals_):
        raise NotLocal(f"{name} takes statistics of two resolutions together")
    if name in ("_local_scalar_dense", "is_nonzero", "item"):
        raise NotLocal(f"{name} takes a statistic as a number, which is one for every pixel")
    if name in ("as_strided", "as_strided_") and tuple(args[1]) != tuple(args[0].shape):
        raise NotLocal(f"{name} takes a statistic by its place in memory")


def _is_pointwise(func: Any, name: str) -> bool:
    return torch.Tag.pointwise in func.tags or entry(name.rstrip("_")).family == "elementwise"


def _is_constant(one: Tensor, space: Space) -> bool:
    return one.untyped_storage().data_ptr() in space.constants


def _holds_space(shape: Sequence[int], space: Space) -> bool:
    return space.pixels in shape or (space.rows, space.columns) in itertools.pairwise(shape)


def _applied(func: Any, args: Any, kwargs: Any) -> Any:
    locals_ = [one for one in tree_iter((args, kwargs)) if isinstance(one, LocalTensor)]
    space, dims = locals_[0].space, locals_[0].dims
    likes = tree_map(lambda one: one.like if isinstance(one, LocalTensor) else one, (args, kwargs))
    applied = Applied(func, args, kwargs)
    like = applied.func(*likes[0], **likes[1])
    is_view = any(one.alias_info is not None for one in func._schema.returns)
    for one in locals_:
        one.shared = one.shared or is_view

    def made(one: Tensor, source: Any) -> LocalTensor:
        result = LocalTensor(one, space, source, dims if one.shape == locals_[0].shape else None)
        result.shared = is_view
        return result

    if isinstance(like, torch.Tensor):
        return made(like, applied)
    return type(like)(made(one, Result(applied, i)) for i, one in enumerate(like))


def _in_place(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """The variant that makes a new value, which then takes the place of the old one."""
    target = args[0]
    functional = getattr(torch.ops.aten, name.removesuffix("_"), None)
    functional = getattr(functional, func._overloadname, None)
    if not name.endswith("_") or functional is None or not isinstance(target, LocalTensor) or target.shared:
        raise NotLocal(f"{name} writes a statistic into a tensor")
    made = _applied(functional, args, kwargs)
    target.source, target.like, target.dims = made.source, made.like, made.dims
    return target


# ---- where values meet their pixels ----------------------------------------------------------------------------------


def _padded(shape: Sequence[int], rank: int) -> list[int]:
    return [*[1] * (rank - len(shape)), *shape]


def _wide(locals_: Sequence[LocalTensor], shapes: Sequence[Sequence[int]]) -> list[int]:
    """Dimensions along which local values would be repeated."""
    every = [tuple(one.shape) for one in locals_]
    rank = max(len(one) for one in (*every, *shapes)) if shapes else 0
    narrow = [max(_padded(one, rank)[dim] for one in every) for dim in range(rank)]
    return [dim for dim in range(rank) if narrow[dim] == 1 and any(_padded(one, rank)[dim] != 1 for one in shapes)]


def _place(locals_: Sequence[LocalTensor], shapes: Sequence[Sequence[int]], name: str) -> tuple[Pair, int]:
    """The dimensions of rows and columns where local values meet an image, and the rank."""
    wide, space = _wide(locals_, shapes), locals_[0].space
    rank = max(len(one) for one in (*(one.shape for one in locals_), *shapes))
    sizes = [max(_padded(one, rank)[dim] for one in shapes) for dim in range(rank)]
    hints = [(one.dims[0] % rank, one.dims[1] % rank) for one in locals_ if one.dims is not None]
    pairs = [(dim, dim + 1) for dim in reversed(range(rank - 1))]
    for row, column in (*hints, *pairs, *((dim, dim) for dim in reversed(range(rank)))):
        if row not in wide or column not in wide:
            continue
        flat = row == column
        if (sizes[row] == space.pixels) if flat else (sizes[row], sizes[column]) == (space.rows, space.columns):
            return (row, column), rank
    raise NotLocal(
        f"{name} uses a statistic of {space.rows}x{space.columns} elements where {tuple(sizes)} elements are"
    )


def _shaped(value: Tensor, place: Pair, rank: int, space: Space) -> Tensor:
    """Values (pixels, *shape), with the pixels along the dimensions where they meet the image."""
    value = value.reshape(value.shape[0], *_padded(value.shape[1:], rank))
    row, column = place
    if row == column:
        return value.squeeze(1 + row).movedim(0, row)
    value = torch.unflatten(value, 0, (-1, space.columns))
    return value.squeeze((2 + row, 2 + column)).movedim((0, 1), (row, column))


def _strips(locals_: Sequence[LocalTensor]) -> Iterator[Made]:
    space = locals_[0].space
    largest = max(_largest(one) for one in locals_)
    step = max(1, ELEMENTS // max(1, largest * space.columns))
    for start in range(0, space.rows, step):
        yield Made(start, min(start + step, space.rows))


def _narrowed(one: Tensor, place: Pair, rank: int, made: Made, space: Space) -> Tensor:
    """Some rows of an image; what has none stays as it is."""
    dim = place[0] - (rank - one.ndim)
    if dim < 0 or one.shape[dim] == 1:
        return one
    each = space.columns if place[0] == place[1] else 1
    return one.narrow(dim, made.start * each, (made.stop - made.start) * each)


def _met(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """An elementwise operator between an image and local values."""
    leaves, spec = tree_flatten((args, kwargs))
    locals_ = [one for one in leaves if isinstance(one, LocalTensor)]
    plain = [one for one in leaves if isinstance(one, torch.Tensor) and not isinstance(one, LocalTensor)]
    space = locals_[0].space
    place, rank = _place(locals_, [one.shape for one in plain], name)
    if any(_is_constant(one, space) and _padded(one.shape, rank)[place[0]] != 1 for one in plain):
        raise NotLocal(f"{name} makes weights of a statistic")

    def part(made: Made) -> Tensor:
        def changed(one: Any) -> Any:
            if isinstance(one, LocalTensor):
                return _shaped(made.of(one.source), place, rank, space)
            return _narrowed(one, place, rank, made, space) if isinstance(one, torch.Tensor) else one

        inner_args, inner_kwargs = tree_unflatten([changed(one) for one in leaves], spec)
        result: Tensor = func(*inner_args, **inner_kwargs)
        return result

    if func._schema.is_mutable:
        for made in _strips(locals_):
            part(made)
        return args[0]
    result = _joined([part(made) for made in _strips(locals_)], place[0])
    _note(result, name, args, place, rank)
    return result


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _note(result: Tensor, name: str, args: Any, place: Pair, rank: int) -> None:
    """Notes that a result is a product, for sums of it."""
    if name not in ("mul", "div") or len(args) != 2 or not isinstance(args[1 if name == "div" else 0], torch.Tensor):
        return
    base, factor = args if isinstance(args[1], LocalTensor) else (args[1], args[0])
    if not isinstance(base, torch.Tensor) or isinstance(base, LocalTensor) or base.shape != result.shape:
        return
    if name == "div":
        if factor is not args[1]:
            return
        factor = reciprocal(factor)
    noted(result, Factored(base, reshaped(factor, _padded(factor.shape, rank)), place))


def reshaped(one: LocalTensor, sizes: Sequence[int]) -> LocalTensor:
    made = one.reshape(sizes)
    assert isinstance(made, LocalTensor)
    return made


def reciprocal(one: LocalTensor) -> LocalTensor:
    made = torch.reciprocal(one)
    assert isinstance(made, LocalTensor)
    return made


def noted(result: Tensor, factored: Factored) -> None:
    result.factored = factored  # type: ignore[attr-defined]


def _spread_shape(name: str, args: Any, kwargs: Any) -> tuple[int, ...] | None:
    """The shape to which an operator repeats its first argument, if that is what it does."""
    one = args[0] if args and isinstance(args[0], LocalTensor) else None
    if one is None:
        return None
    if name == "expand":
        own = _padded(one.shape, len(args[1]))
        return tuple(have if want == -1 else want for have, want in zip(own, args[1], strict=True))
    if name == "repeat":
        return tuple(have * times for have, times in zip(_padded(one.shape, len(args[1])), args[1], strict=True))
    if name.startswith("upsample_") and one.shape[-2:] == (1, 1) and args[1] is not None:
        return (*one.shape[:-2], *args[1])
    return None


def _spread(one: LocalTensor, shape: tuple[int, ...]) -> Tensor:
    place, rank = _place([one], [shape], "expand")
    sizes = list(shape)

    def part(made: Made) -> Tensor:
        value = _shaped(made.of(one.source), place, rank, one.space)
        sizes[place[0]] = value.shape[place[0]]
        return value.expand(sizes)

    result = _joined([part(made) for made in _strips([one])], place[0])
    noted(result, Factored(None, reshaped(one, _padded(one.shape, rank)), place))
    return result


def _product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix for each pixel times the pixel's column, or its row times the matrix."""
    turned = isinstance(right, LocalTensor)
    local, image = (right, left) if isinstance(right, LocalTensor) else (left, right)
    assert isinstance(local, LocalTensor)
    space, side = local.space, -2 if turned else -1
    if image.shape[side] != space.pixels:
        raise NotLocal(f"a matrix product uses a statistic of {space.pixels} elements where {image.shape[side]} are")
    parts = []
    for made in _strips([local]):
        count = (made.stop - made.start) * space.columns
        pixels = image.narrow(side, made.start * space.columns, count).movedim(side, 0)
        value = made.of(local.source)
        met = torch.matmul(pixels.unsqueeze(-2), value) if turned else torch.matmul(value, pixels.unsqueeze(-1))
        parts.append(met.squeeze(-2 if turned else -1).movedim(0, side))
    return _joined(parts, image.ndim + side)
