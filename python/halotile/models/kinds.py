# SPDX-License-Identifier: MIT
"""Which kind of model the user's is: a module, a callable on tensors, or one on arrays."""

from __future__ import annotations

from typing import Any

from ..optional import torch_if_loaded
from .devices import default_device, usable_device
from .model import NUMPY_WINDOWS, EitherModel, Model, TensorModel
from .modules import converted, device_and_dtype, first_convolution
from .needs import Needs
from .outputs import described
from .reach import mentions, modules_of, roots_of
from .recalled import recalled

__all__ = ["channels_of", "open_model"]


def open_model(model: Any, *, device: Any, dtype: str | None, tensors: bool, memory_format: str = "auto") -> Model:
    """The Model around the user's model.

    Args:
        device, dtype: as the user gave them; a module that is elsewhere or of another dtype runs as a converted copy.
        tensors: whether a callable of unknown kind gets tensors: the image is one, or an engine for tensors is asked.
        memory_format: of windows: "channels_last", "contiguous", or "auto": channels_last for modules on the CPU that
            consist of convolutions and for those whose weights lie so, contiguous for others.

    Raises:
        TypeError: if it cannot be called.
    """
    if isinstance(model, type):
        raise TypeError(f"model must be a torch module or a callable, not the class {model.__name__}; call it first")
    if not callable(model):
        raise TypeError(f"model must be a torch module or a callable, not {described(model)}")
    torch = torch_if_loaded()
    if torch is None:
        if device is not None:
            raise ValueError(f"device must be None for a model on NumPy arrays, not {device!r}")
        return Model(model, dtype or "float32")
    if isinstance(model, torch.nn.Module):
        _refuse_lazy(roots_of(model))
        module = converted(model, device, dtype)
        own_device, own_dtype = device_and_dtype(module)
        where = own_device or default_device(device)
        return TensorModel(module, [module], where, _window_dtype(own_dtype or dtype), memory_format)
    modules = modules_of(model)
    _refuse_lazy(modules)
    own_device, own_dtype = device_and_dtype(modules[0]) if modules else (None, None)
    where = usable_device(device) or own_device or default_device(None)
    on_tensors = TensorModel(model, modules, where, _window_dtype(dtype or own_dtype), memory_format)
    elsewhere = bool(modules) and where.type != "cpu"
    if tensors or elsewhere or device is not None or dtype == "bfloat16":
        return on_tensors
    on_arrays = Model(model, dtype or "float32")
    if on_tensors.dtype != on_arrays.dtype:  # a module in half precision
        return on_tensors
    speaks_torch = bool(modules) or mentions(model, "torch")
    return EitherModel(on_tensors, on_arrays) if speaks_torch else EitherModel(on_arrays, on_tensors)


def _refuse_lazy(modules: list[Any]) -> None:
    """Raises ValueError for modules that get their weights from the first input: no run may decide about those."""
    kind = torch_if_loaded().nn.parameter.UninitializedTensorMixin
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if isinstance(tensor, kind):
                text = f"model must have its weights, and {name} has no size yet"
                raise ValueError(f"{text}: run the module on an input of its own once, and load its weights, before")


def channels_of(model: Any) -> int | None:
    """How many channels a model takes: as inspection found, or its file says, or by the first convolution of the
    modules that it carries, which something else may precede; None if none of them tells."""
    known, torch = getattr(recalled(model), "in_channels", None), torch_if_loaded()
    if known is None and isinstance(getattr(model, "needs", None), Needs):
        known = getattr(model, "channels", None)
    if known is None and torch is not None:
        modules = [model] if isinstance(model, torch.nn.Module) else modules_of(model)
        known = first_convolution(modules[0])[0] if modules else None
    return known if isinstance(known, int) and known > 0 else None


def _window_dtype(dtype: str | None) -> str:
    return dtype if dtype in NUMPY_WINDOWS else "float32"
