# SPDX-License-Identifier: MIT
"""Runs a module on an image without data, operator by operator. Imports torch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..models.around import Shared, slow_attention, without_memory
from ..models.reach import all_modules
from ..models.untouched.tensors import tensors_of

__all__ = ["FakeRun", "is_random", "same_elements", "storage_of"]


class FakeRun(TorchDispatchMode):
    """Runs a module on an image without data. Subclasses see every operator in `__torch_dispatch__`.

    Attributes:
        path: path of the running submodule.
        own: storages of the module's tensors.
    """

    def __init__(self, module: torch.nn.Module, fake: FakeTensorMode):
        super().__init__()
        self.module, self.fake, self.path = module, fake, ""
        self.own = {storage_of(tensor) for inner in all_modules(module) for tensor in tensors_of(inner)}

    def begin(self, image: torch.Tensor) -> None:
        """Called with the image before the module runs."""
        raise NotImplementedError

    def entered(self, arguments: tuple[Any, ...]) -> None:
        """Called when the submodule at `path` starts, with its positional arguments."""

    def run(
        self, channels: int, size: tuple[int, int], dtype: torch.dtype | None, device: torch.device | None = None
    ) -> torch.Tensor:
        """The module's output, without data.

        Raises:
            TypeError: it is not one tensor (batch, channels, rows, columns). Also any error of the module.
        """
        like = next((tensor for tensor in self.module.parameters() if tensor.is_floating_point()), torch.empty(0))
        with self.fake:
            image = torch.empty(1, channels, *size, dtype=dtype or like.dtype, device=device or like.device)
        self.begin(image)
        call = Followed(self).run if isinstance(self.module, torch.fx.GraphModule) else self.module
        with (
            torch.no_grad(),
            _plain_kernels(),
            _plain_functions(),
            self._following(),
            without_memory(self.fake) as look,
        ):
            output = torch.func.functionalize(lambda given: call(given.clone()))(image)
        if look.refused:  # the model caught the error
            look.refuse()
        found = [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if len(found) != 1 or found[0].dim() != 4:
            raise TypeError(f"it returns {len(found)} tensors, not one (batch, channels, rows, columns)")
        return found[0]

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Keeps `path` at the running submodule."""
        names = {id(inner): name for name, inner in self.module.named_modules()}
        stack, thread = [""], threading.get_ident()

        def enter(inner: torch.nn.Module, arguments: Any) -> None:
            if threading.get_ident() == thread:
                stack.append(self.path)
                self.path = names.get(id(inner), self.path)
                self.entered(arguments)

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

    def constant(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Computes an operator on constants. Never writes to the model's own tensors."""
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor) and storage_of(args[0]) in self.own:
            args = (args[0].clone(), *args[1:])
        return func(*args, **kwargs)


class Followed(torch.fx.Interpreter):
    """Runs a graph and tells a tracer the module of each node."""

    def __init__(self, tracer: FakeRun):
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
    """A context in which autograd functions run as plain code: those that save tensors in ``forward`` do not support
    torch's transforms, such as functionalisation."""
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
    """A context in which attention runs as single operators, TorchScript is not optimised, and failures are not
    logged."""
    with slow_attention, _changed_kernels:
        yield


def same_elements(tensor: torch.Tensor, size: Any, stride: Any, offset: int | None = None) -> bool:
    """Whether other strides leave every element in place: they may differ only along sides of size 1."""
    before = [step for step, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]
    after = [step for step, side in zip(stride, size, strict=True) if side > 1]
    return tuple(size) == tuple(tensor.shape) and before == after and offset in (None, tensor.storage_offset())


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def is_random(func: Any, name: str) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags and not name.startswith("_scaled_dot_product")
