# SPDX-License-Identifier: MIT
"""A dispatch mode that runs operators on positions instead of values. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from ..models.around import decomposed
from .info import GlobalOperation
from .operators import entry
from .operators.positions import EDGE, HOW, NOTHING, NotInTable

if TYPE_CHECKING:
    from torch._ops import OpOverload

__all__ = ["Positions"]

# Operators whose result does not depend on the values of a tensor.
MAKING = {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like"}
MAKING |= {"ones_like", "full_like", "rand_like", "randn_like", "bernoulli"}
READING = {"_local_scalar_dense", "equal", "is_nonzero"}  # return a value that the model may branch on
TO_REAL = {"abs", "angle", "view_as_real", "_fft_c2r", "linalg_vector_norm", "norm"}  # also of complex operands


class Positions(TorchDispatchMode):
    """Runs operators on positions. Tensors with marked memory carry positions; all others are constants.

    Attributes:
        found: global operations. Their results are held fixed, as if their statistics were known.
        unknown: operators not in the table. Their results depend on everything.
    """

    def __init__(self, length: int, *, wraps: bool, names: dict[int, str]):
        super().__init__()
        self.length, self.wraps, self.names = length, wraps, names
        self.carried: dict[int, StorageWeakRef] = {}
        self.running: list[tuple[str, str]] = []  # path and class of modules
        self.found: list[GlobalOperation] = []
        self.taken: list[torch.Tensor] = []  # positions of the operands of global operations
        self.unknown: list[str] = []
        self.notes: list[str] = []

    def enter(self, module: torch.nn.Module) -> None:
        self.running.append((self.names.get(id(module), ""), type(module).__name__))

    def leave(self) -> None:
        if self.running:
            self.running.pop()

    def carry(self, tensor: torch.Tensor) -> torch.Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.carried[reference.cdata] = reference  # keeps the address from being reused
        return tensor

    def carries(self, tensor: object) -> TypeGuard[torch.Tensor]:
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
        if torch.is_inference_mode_enabled():  # the model entered it
            result = decomposed(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        name = func._schema.name.split("::")[1]
        if name in MAKING:
            return func(*args, **kwargs)
        if name in READING:
            return self._reading(name, func, args, kwargs)
        if func._schema.is_mutable:
            if name.endswith("_") and entry(name).positions is not None:
                return entry(name).positions(self, func, args, kwargs)
            if not name.endswith("_") or func._schema.name.split("::")[0] != "aten":
                return self.everything(func, args, kwargs)
            self.write(args[0], self.result(name[:-1], func, args, kwargs))
            return args[0]
        result = self.result(name, func, args, kwargs)
        if name not in TO_REAL and any(one.is_complex() for one in inputs):
            result = tree_map(as_complex, result)
        return tree_map(self._mark, result)

    def result(self, name: str, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        rule = entry(name).positions
        if rule is not None:
            try:
                return rule(self, func, args, kwargs)
            except NotInTable:
                return self.everything(func, args, kwargs)
        if torch.Tag.pointwise in func.tags:
            return self.pointwise(func, args, kwargs)
        if func.is_view:
            return self.moved(func, args, kwargs)
        return self.everything(func, args, kwargs)

    def _mark(self, value: object) -> object:
        return self.carry(value) if isinstance(value, torch.Tensor) else value

    def _reading(self, name: str, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        self.notes.append(f"the model reads a value ({name}{self.place()}) and may branch on it, which was not tracked")
        return func(*args, **kwargs)

    def place(self) -> str:
        return f" in {self.running[-1][0] or self.running[-1][1]}" if self.running else ""

    def write(self, target: torch.Tensor, result: torch.Tensor) -> None:
        """Writes in place. Constant memory depends on nothing except for the written elements."""
        if not self.carries(target):
            if not target.is_floating_point():
                raise RuntimeError("positions were written to a tensor of whole numbers")
            torch.empty(0, dtype=target.dtype).set_(target.untyped_storage()).fill_(NOTHING)
            self.carry(target)
        target.copy_(result)

    # ---- kinds of operators

    def real(self, value: object) -> torch.Tensor:
        """Positions of an operand; NOTHING for a constant."""
        if not self.carries(value):
            return torch.full((), NOTHING)
        return value.real if value.is_complex() else value

    def pointwise(self, func: OpOverload, args: tuple, kwargs: dict) -> torch.Tensor:
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        result: torch.Tensor | None = None
        for tensor in tensors:
            if self.carries(tensor):
                seen = self.real(tensor)
                result = seen if result is None else torch.maximum(result, seen)
        result = result.expand(shape)
        contiguous = kwargs.get("memory_format") == torch.contiguous_format
        return result.clone(memory_format=torch.contiguous_format) if contiguous else result.clone()

    def moved(self, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        """An operator that only moves elements. Elements of constants depend on nothing."""

        def of(leaf: object) -> object:
            if not isinstance(leaf, torch.Tensor) or self.carries(leaf):
                return leaf
            return torch.full_like(leaf, NOTHING, dtype=torch.float32) if leaf.is_floating_point() else leaf

        return func(*tree_map(of, args), **tree_map(of, kwargs))

    def everything(self, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        """Treats an operator that is not in the table as unknown, never as local."""
        self.unknown.append(func._schema.name)
        blank = tree_map(lambda leaf: torch.ones_like(leaf) if self.carries(leaf) else leaf, (args, kwargs))
        result = func(*blank[0], **blank[1])
        return tree_map(lambda leaf: torch.full(leaf.shape, EDGE) if isinstance(leaf, torch.Tensor) else leaf, result)

    def spread(
        self,
        kind: str,
        seen: torch.Tensor,
        result: torch.Tensor,
        fixed: torch.Tensor,
        taken: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """The result of an operation over several elements, or `fixed` if it depends on the whole image: nearly all of
        its outputs reach the far end, but most of its inputs do not. taken: its inputs, if `seen` is a reshaped form of
        them."""
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
        """How each spatial side of (batch, channels, ...) continues beyond its end: the longer one is the window's."""
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


def as_complex(value: object) -> object:
    if isinstance(value, torch.Tensor) and not value.is_complex():
        return torch.complex(value, torch.zeros_like(value))
    return value
