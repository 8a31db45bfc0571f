# SPDX-License-Identifier: MIT
"""Properties of a user's model without running it: its kind and channel count."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..optional import torch_if_loaded
from .devices import BEST, Device, default_device, usable_device
from .model import NUMPY_WINDOWS, EitherModel, Model, TensorModel
from .modules import converted, device_and_dtype, first_convolution
from .needs import Needs
from .outputs import described
from .reach import mentions, modules_of, roots_of
from .recalled import recalled

if TYPE_CHECKING:
    import torch

__all__ = ["channels_of", "check_model", "open_model"]


def open_model(
    model: Any, *, device: Device | None, dtype: str | None, tensors: bool, memory_format: str = "auto"
) -> Model:
    """Wraps the user's model in a `Model`.

    Args:
        device, dtype: the user's options; a module on another device or of another dtype runs as a converted copy.
            "best" moves modules on the CPU only.
        tensors: whether a callable of unknown kind gets tensors, because the image is one or the engine needs them.
        memory_format: of windows: "channels_last", "contiguous", or "auto": channels_last for modules on the CPU that
            are mostly convolutions and for modules whose weights are stored so, else contiguous.

    Raises:
        TypeError: the model cannot be called.
        ValueError: the model cannot run on that device or in that dtype, or has no weights yet.
    """
    check_model(model)
    torch = torch_if_loaded()
    if torch is None:
        if device not in (None, BEST):
            raise ValueError(f"device must be None for a model on NumPy arrays, not {device!r}")
        return Model(model, dtype or "float32")
    if isinstance(model, torch.nn.Module):
        return _open_module(model, device, dtype, memory_format)
    return _open_callable(model, device, dtype, tensors, memory_format)


def check_model(model: Any) -> None:
    """Raises TypeError for what cannot be called."""
    if isinstance(model, type):
        raise TypeError(f"model must be a torch module or a callable, not the class {model.__name__}; call it first")
    if not callable(model):
        raise TypeError(f"model must be a torch module or a callable, not {described(model)}{_swapped(model)}")


def _swapped(model: Any) -> str:
    is_image = hasattr(model, "shape") or type(model).__module__.split(".")[0] == "PIL"
    if isinstance(model, str | os.PathLike):
        return f": load_model({os.fspath(model)!r}) opens files and known models"
    return ": arguments swapped? (image, model) is their order" if is_image else ""


def _open_module(module: torch.nn.Module, device: Device | None, dtype: str | None, memory_format: str) -> TensorModel:
    _refuse_lazy(roots_of(module))
    _refuse_volumes(module)
    module = converted(module, device, dtype)
    own_device, own_dtype = device_and_dtype(module)
    where = own_device or default_device(device)
    return TensorModel(module, [module], where, _window_dtype(own_dtype or dtype), memory_format)


def _open_callable(call: Any, device: Device | None, dtype: str | None, tensors: bool, memory_format: str) -> Model:
    modules, device = modules_of(call), None if device == BEST else device
    _refuse_lazy(modules)
    own_device, own_dtype = device_and_dtype(modules[0]) if modules else (None, None)
    where = usable_device(device) or own_device or default_device(None)
    on_tensors = TensorModel(call, modules, where, _window_dtype(dtype or own_dtype), memory_format)
    elsewhere = bool(modules) and where.type != "cpu"
    if tensors or elsewhere or device is not None or dtype == "bfloat16":
        return on_tensors
    on_arrays = Model(call, dtype or "float32")
    if on_tensors.dtype != on_arrays.dtype:  # a module in half precision
        return on_tensors
    likely_tensors = bool(modules) or mentions(call, "torch")
    return EitherModel(on_tensors, on_arrays) if likely_tensors else EitherModel(on_arrays, on_tensors)


def _refuse_lazy(modules: list[torch.nn.Module]) -> None:
    """Raises ValueError for lazy modules: the first window must not decide the shapes of their weights."""
    kind = torch_if_loaded().nn.parameter.UninitializedTensorMixin
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if isinstance(tensor, kind):
                text = f"model must have initialised weights, but {name} has no size yet"
                raise ValueError(f"{text}: run the module once on some input and load its weights first")


def _refuse_volumes(module: torch.nn.Module) -> None:
    """Raises ValueError for a module with 3-D convolutions: torch would take a batch of images for one volume."""
    nn = torch_if_loaded().nn
    for name, inner in module.named_modules():
        kind = getattr(inner, "original_name", type(inner).__name__)  # of TorchScript's modules
        if isinstance(inner, (nn.Conv3d, nn.ConvTranspose3d)) or kind in ("Conv3d", "ConvTranspose3d"):
            what = f"its layer {name}" if name else "it"
            text = f"model must take images, but {what} is a {kind}, which takes volumes (N, C, D, H, W)"
            advice = "pass a function that makes volumes of windows, such as lambda x: model(x[:, None])[:, 0]"
            raise ValueError(f"{text}: {advice}, or lambda x: model(x) if the model does so itself")


def channels_of(model: Any) -> int | None:
    """A model's input channels, from inspection, its file, or else its first convolution; None if unknown."""
    known, torch = getattr(recalled(model), "in_channels", None), torch_if_loaded()
    if known is None and isinstance(getattr(model, "needs", None), Needs):
        known = getattr(model, "channels", None)
    if known is None and torch is not None:
        modules = [model] if isinstance(model, torch.nn.Module) else modules_of(model)
        known = first_convolution(modules[0])[0] if modules else None
    return known if isinstance(known, int) and known > 0 else None


def _window_dtype(dtype: str | None) -> str:
    return dtype if dtype in NUMPY_WINDOWS else "float32"
