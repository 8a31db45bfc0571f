# SPDX-License-Identifier: MIT
"""Operators that take an image together, seen as they run: what they take, and what they give with other numbers.

A statistic is a count and a tensor or two that can be merged over parts of the image. An operator of `TABLE` becomes a
`Call`: its operands, the dimensions of theirs that are taken together, and its result for any statistic. `Watching` is
a torch dispatch mode, so nothing is changed in the model, and it makes no difference how the operator was called.
Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..models.around import eagerly

__all__ = ["Call", "Statistic", "Watching"]

Tensor = torch.Tensor


# ---- statistics ------------------------------------------------------------------------------------------------------


@dataclass
class Statistic:
    """Numbers that stand for many elements. The dimensions taken together are kept, with size 1.

    Attributes:
        kind: "mean" or "moments" (mean, and sum of squares of what differs from it), "power" (mean of `x ** p`), "most"
            (largest, smallest), "product" (mean of products).
        count: elements that each number stands for.
    """

    kind: str
    count: float
    first: Tensor
    second: Tensor | None = None

    def merged(self, other: Statistic) -> Statistic:
        """Of the elements of both."""
        count = self.count + other.count
        share = other.count / count
        if self.kind == "most":
            return Statistic(
                self.kind,
                count,
                torch.maximum(self.first, other.first),
                torch.minimum(self.second, other.second),
            )
        apart = other.first - self.first
        second = None
        if self.second is not None:
            second = self.second + other.second + apart * apart * (self.count * share)
        return Statistic(self.kind, count, self.first + apart * share, second)

    def of_as_many(self, times: float) -> Statistic:
        """Of so many times as many elements like these."""
        second = self.second * times if self.kind == "moments" else self.second
        return Statistic(self.kind, self.count * times, self.first, second)

    def variance(self, less: float = 0) -> Tensor:
        return self.second / max(self.count - less, 0) if self.count > less else torch.full_like(self.second, math.nan)

    def repeated(self, like: Sequence[int]) -> Statistic:
        """For several images at once, side by side in a dimension of an operand's statistic of the sizes `like`."""
        return Statistic(self.kind, self.count, *(_repeated(one, like) for one in (self.first, self.second)))


def _repeated(one: Tensor | None, like: Sequence[int]) -> Tensor | None:
    if one is None or tuple(one.shape) == tuple(like):
        return one
    return one.repeat([want // have for want, have in zip(like, one.shape, strict=True)])


def measured(kind: str, operands: Sequence[tuple[Tensor, tuple[int, ...]]], power: float = 2) -> Statistic:
    """Of the operands' elements; of two operands' products for the kind "product"."""
    x, dims = operands[0]
    count = float(math.prod(x.shape[dim] for dim in dims))
    x = x.float()
    if kind == "most":
        return Statistic(kind, count, x.amax(dims, True), x.amin(dims, True))
    if kind == "power":
        return Statistic(kind, count, (x * x if power == 2 else x.abs() ** power).mean(dims, True))
    if kind == "product":
        return Statistic(kind, count, torch.matmul(x, operands[1][0].float()) / count)
    mean = x.mean(dims, True)
    return Statistic(kind, count, mean, (x - mean).square().sum(dims, True) if kind == "moments" else None)


# ---- calls -----------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One call of an operator.

    Attributes:
        name: of the operator.
        kind, power: see Statistic.
        operands: (tensor, dimensions that are taken together); two matrices for "product".
        result: what the operator gives for a statistic of its operands.
    """

    name: str
    kind: str
    operands: tuple[tuple[Tensor, tuple[int, ...]], ...]
    result: Callable[[Statistic], Any]
    power: float = 2

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the statistic."""
        x, dims = self.operands[0]
        if self.kind == "product":
            return (*x.shape[:-1], self.operands[1][0].shape[-1])
        return tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))

    def measured(self, operands: Any = None) -> Statistic:
        """The statistic of the operands, or of parts of them."""
        return measured(self.kind, self.operands if operands is None else operands, self.power)


class Watching(TorchDispatchMode):
    """Counts calls of the table's operators in a run of a model, and lets `handle` give results of its own.

    handle(number, call): the result in place of the operator's own; NotImplemented for that one.
    made(inputs, outputs): every other operator's tensors; None: nobody wants to know.
    """

    def __init__(self, handle: Callable[[int, Call], Any], made: Callable[[Any, Any], None] | None = None):
        super().__init__()
        self.handle, self.made, self.count = handle, made, 0

    def __enter__(self) -> Watching:
        eagerly.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        eagerly.__exit__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        builder = TABLE.get(func._schema.name.removeprefix("aten::"))
        if builder is None and func._can_decompose():  # inference mode leaves the parts that it consists of to us
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        call = None if builder is None else builder(func, _given(func, args, kwargs))
        result = NotImplemented
        if call is not None:
            self.count += 1
            result = self.handle(self.count - 1, call)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if self.made is not None:
                self.made((args, kwargs), result)
        return result


def _given(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """Arguments by name, defaults included."""
    schema = func._schema.arguments
    given = {one.name: one.default_value for one in schema if one.has_default_value()}
    return given | {one.name: value for one, value in zip(schema, args, strict=False)} | kwargs


# ---- the table -------------------------------------------------------------------------------------------------------


def dims_of(x: Tensor, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.ndim))
    return tuple(sorted(one % x.ndim for one in ([dim] if isinstance(dim, int) else dim)))


def as_returned(value: Tensor, dims: tuple[int, ...], given: dict, like: Tensor) -> Tensor:
    """As the operator returns it: without the dimensions taken together, unless they are kept."""
    value = value if given.get("keepdim") else value.squeeze(dims)
    dtype = given.get("dtype") or like.dtype
    return value.to(dtype)


def reduction_statistic(
    kind: str, value: Callable[[Statistic, dict], Any], power: Callable[[dict], float] | None = None
):
    """An operator that reduces the dimensions `dim`; all of them without it."""

    def build(func: Any, given: dict) -> Call | None:
        x = given.get("self")
        if not x.is_floating_point():
            return None
        dims = dims_of(x, given.get("dim"))
        raised = 2.0 if power is None else power(given)
        if not 0 < raised < math.inf:
            return None

        def result(statistic: Statistic) -> Any:
            values = value(statistic, given)
            if isinstance(values, tuple):
                return tuple(as_returned(one, dims, given, x) for one in values)
            return as_returned(values, dims, given, x)

        return Call(func._schema.name, kind, ((x, dims),), result, raised)

    return build


def taken_off(given: dict) -> float:
    """What is taken off the count for a variance."""
    if "correction" in given:
        return 1 if given["correction"] is None else float(given["correction"])
    return float(given.get("unbiased", True))


def norm_power(given: dict) -> float:
    value = given.get("ord", given.get("p"))
    return 2.0 if value is None else float(value)


def root(statistic: Statistic, given: dict) -> Tensor:
    return (statistic.first * statistic.count) ** (1 / norm_power(given))


def group_norm_statistic(func: Any, given: dict) -> Call:
    x, groups = given["input"], given["group"]
    grouped = x.unflatten(1, (groups, -1))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        y = ((grouped - statistic.first) * rest).reshape(x.shape)
        y = affine(y, given["weight"], given["bias"], (-1, *[1] * (x.ndim - 2)))
        return y.to(x.dtype), statistic.first.flatten(1), rest.flatten(1)

    return Call(func._schema.name, "moments", ((grouped, tuple(range(2, grouped.ndim))),), result)


def batch_norm_statistic(func: Any, given: dict) -> Call | None:
    """By statistics of the images themselves; an instance norm is one of a single image with more channels."""
    uses_own = given.get("training", given.get("train", False))
    if not uses_own:
        return None
    x = given["input"]
    dims = (0, *range(2, x.ndim))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = affine((x - statistic.first) * rest, given["weight"], given["bias"], shape)
        return y.to(x.dtype), statistic.first.flatten(), rest.flatten()

    return Call(func._schema.name, "moments", ((x, dims),), result)


def layer_norm_statistic(func: Any, given: dict) -> Call:
    x, dims = given["input"], tuple(range(given["input"].ndim - len(given["normalized_shape"]), given["input"].ndim))

    def result(statistic: Statistic) -> Any:
        rest = torch.rsqrt(statistic.variance() + given["eps"])
        y = affine((x - statistic.first) * rest, given["weight"], given["bias"], given["normalized_shape"])
        return y.to(x.dtype), statistic.first, rest

    return Call(func._schema.name, "moments", ((x, dims),), result)


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def whole_pooling_statistic(kind: str, results: int):
    """Pooling whose one window is all there is."""

    def build(func: Any, given: dict) -> Call | None:
        x, kernel = given["self"], given.get("kernel_size")
        if kernel is not None:
            kernel = list(kernel) * (2 if len(kernel) == 1 else 1)
            padded = any(given.get("padding") or [0])
            if list(x.shape[-2:]) != list(kernel) or padded or given.get("divisor_override"):
                return None
        elif list(given["output_size"]) != [1, 1]:
            return None

        def result(statistic: Statistic) -> Any:
            value = statistic.first.to(x.dtype)
            return value if results == 1 else (value, torch.zeros_like(value, dtype=torch.int64))

        return Call(func._schema.name, kind, ((x, (x.ndim - 2, x.ndim - 1)),), result)

    return build


def product_statistic(func: Any, given: dict) -> Call | None:
    """(..., n, k) times (..., k, m): takes k together."""
    a, b = (given[name] for name in (("self", "mat2") if "mat2" in given else ("batch1", "batch2")))
    dims = ((a.ndim - 1,), (b.ndim - 2,))

    def result(statistic: Statistic) -> Tensor:
        return (statistic.first * statistic.count).to(a.dtype)

    return Call(func._schema.name, "product", ((a, dims[0]), (b, dims[1])), result)


mean_statistic = reduction_statistic("mean", lambda s, given: s.first)
sum_statistic = reduction_statistic("mean", lambda s, given: s.first * s.count)
variance_statistic = reduction_statistic("moments", lambda s, given: s.variance(taken_off(given)))
deviation_statistic = reduction_statistic("moments", lambda s, given: s.variance(taken_off(given)).sqrt())
norm_statistic = reduction_statistic("power", root, norm_power)
largest_statistic = reduction_statistic("most", lambda s, given: s.first)
smallest_statistic = reduction_statistic("most", lambda s, given: s.second)

TABLE: dict[str, Callable[[Any, dict], Call | None]] = {
    "mean": mean_statistic,
    "sum": sum_statistic,
    "var": variance_statistic,
    "std": deviation_statistic,
    "var_mean": reduction_statistic("moments", lambda s, given: (s.variance(taken_off(given)), s.first)),
    "std_mean": reduction_statistic("moments", lambda s, given: (s.variance(taken_off(given)).sqrt(), s.first)),
    "linalg_vector_norm": norm_statistic,
    "norm": norm_statistic,
    "amax": largest_statistic,
    "amin": smallest_statistic,
    "native_group_norm": group_norm_statistic,
    "native_batch_norm": batch_norm_statistic,
    "_native_batch_norm_legit": batch_norm_statistic,
    "cudnn_batch_norm": batch_norm_statistic,
    "native_layer_norm": layer_norm_statistic,
    "_adaptive_avg_pool2d": whole_pooling_statistic("mean", 1),
    "adaptive_max_pool2d": whole_pooling_statistic("most", 2),
    "avg_pool2d": whole_pooling_statistic("mean", 1),
    "max_pool2d_with_indices": whole_pooling_statistic("most", 2),
    "mm": product_statistic,
    "bmm": product_statistic,
}
