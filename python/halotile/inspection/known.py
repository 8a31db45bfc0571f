# SPDX-License-Identifier: MIT
"""What inspection found out about a model, kept on disk by what the model is."""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import keep, kept
from ..models.descriptor import unwrapped
from ..models.needs import Needs
from ..models.recalled import remember
from ..models.untouched.copies import uncompiled
from ..optional import torch_if_loaded
from ..version import __version__

if TYPE_CHECKING:
    from .quick import Quick

__all__ = ["FORMATS", "about", "known_model", "known_quick"]

WORTH_KEEPING = 0.3  # seconds that a quick look took, from which on a file is read faster
# What a quick look told, and about which structure.
_looked_at: weakref.WeakKeyDictionary[Any, tuple[Any, Quick]] = weakref.WeakKeyDictionary()


def known_model(model: Any, device: Any = None, dtype: Any = None) -> Any:
    """`inspect_model`, or what it found before about a module of the same structure and weights."""
    from . import ModelInfo, inspect_model

    model = unwrapped(model)
    what = about(uncompiled(model), dtype)
    if what is not None:
        try:
            info = ModelInfo.from_json(kept("model", what))
            remember(model, info)
            return info
        except Exception:  # nothing, or something else, was kept
            pass
    info = inspect_model(model, device=device, dtype=dtype)
    if what is not None and info.certain:  # what failed here may succeed elsewhere
        keep("model", what, info.to_json())
    return info


def known_quick(model: Any, channels: tuple[int, ...]) -> Quick | None:
    """`quick_look`, or what it found before about a module of the same structure; None for what is no torch module.

    Args:
        channels: that it may take, likeliest first.
    """
    torch = torch_if_loaded()
    model = uncompiled(model)
    if torch is None or not isinstance(model, torch.nn.Module):
        return None
    from .quick import Quick, quick_look

    what = _shape_of(model, channels, torch)
    seen = _looked_at.get(model)
    if seen is not None and seen[0] == what:
        return seen[1]
    try:
        found = Quick.from_json(kept("quick", what)) if what is not None else None
    except Exception:  # nothing, or something else, was kept
        found = None
    if found is None:
        start = time.monotonic()
        try:
            found = quick_look(model, channels)
        except Exception:  # a second opinion only, of a model that may be anything
            found = Quick()
        if what is not None and found.phase is not None and time.monotonic() - start > WORTH_KEEPING:
            keep("quick", what, found.to_json())
    _looked_at[model] = what, found
    return found


class Formats:
    """Which modules give the same for windows in channels_last, in this process: each is tried once, while it is what
    it was."""

    def __init__(self) -> None:
        self.tried: weakref.WeakKeyDictionary[Any, tuple[Any, bool]] = weakref.WeakKeyDictionary()

    def recall(self, module: Any) -> bool | None:
        """None: it was not tried, or has changed since."""
        what, keeps = self.tried.get(module, (None, False))
        return keeps if what is not None and what == _shape_of(module, (), torch_if_loaded()) else None

    def remember(self, module: Any, keeps: bool) -> None:
        self.tried[module] = _shape_of(module, (), torch_if_loaded()), keeps


FORMATS = Formats()


def _shape_of(model: Any, channels: tuple[int, ...], torch: Any) -> tuple[object, ...] | None:
    """What the operators of a module depend on: all that `about` looks at but the values of tensors, which may be far
    away, on a device. None for what `about` cannot tell."""
    digest = None if isinstance(model, torch.jit.ScriptModule) else _structure(model, torch)
    if digest is None:
        return None
    try:
        shapes = [(name, value.dtype, tuple(value.shape)) for name, value in _tensors(model)]
    except RuntimeError:  # of tensors without a shape
        return None
    return __version__, torch.__version__, channels, digest.hexdigest(), repr(shapes)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def about(model: Any, dtype: Any) -> tuple[object, ...] | None:
    """What tells a module from others: its classes and the files they are written in, settings, weights. None for what
    is no module, or has hooks. A function that a class calls in yet another file is not looked at."""
    torch = torch_if_loaded()
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    digest = _structure(model, torch)
    if digest is None:
        return None
    try:
        for name, value in _tensors(model):
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            digest.update(_bytes(value, torch))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # of tensors whose values cannot be had
        return None
    return __version__, torch.__version__, str(dtype), digest.hexdigest()


def _structure(model: Any, torch: Any) -> Any:
    """A digest of a module's classes, their files, and settings; None where something does not print what it is."""
    digest = hashlib.sha256()
    try:
        for name, inner in model.named_modules():
            digest.update(repr((name, _settings(inner, torch))).encode() + _source(type(inner)))
    except Exception:  # also what a module's own description raises
        return None
    return digest


def _bytes(tensor: Any, torch: Any) -> memoryview:
    """The values of a tensor of any shape and dtype, also of one without dimensions."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    return memoryview(flat.contiguous().view(torch.uint8).numpy())


SETTINGS = {"dtype", "device", "layout", "memory_format", "Size"}  # of torch, which print all that they are


class Untold(Exception):
    """Something does not print what it is."""


def _settings(module: Any, torch: Any) -> str:
    """Everything about a module but its weights and parts. Raises Untold."""
    kind, own = type(module), vars(module)
    if module._forward_hooks or module._forward_pre_hooks or "forward" in own:
        raise Untold
    inside = vars(torch.nn.Module())
    settings = {key: _plain(value) for key, value in own.items() if key not in inside}
    settings |= {
        f"{base.__qualname__}.{key}": _plain(value)
        for base in kind.__mro__
        if base.__module__.split(".")[0] not in ("torch", "builtins")
        for key, value in vars(base).items()
        if not (key.startswith("__") and key.endswith("__"))
    }
    return f"{kind.__module__}.{kind.__qualname__} {module.extra_repr()} {sorted(settings.items())}"


def _plain(value: Any) -> str:
    """A setting, if it is one that prints all that it is. Raises Untold."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{type(value).__name__}({', '.join(map(_plain, value))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_plain(key)}: {_plain(one)}' for key, one in value.items())})"
    if isinstance(value, (staticmethod, classmethod, types.FunctionType)):
        return _function(getattr(value, "__func__", value))
    if isinstance(value, np.ndarray):
        return f"array({value.dtype}, {value.shape}, {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()})"
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType)):
        return _builtin(value)
    simple = value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic, type, Needs))
    if not simple and not (type(value).__module__.split(".")[0] == "torch" and type(value).__name__ in SETTINGS):
        raise Untold
    return repr(value)


def _builtin(function: types.BuiltinFunctionType | types.MethodDescriptorType) -> str:
    """Its name: what it prints has an address, another one in each process. Raises Untold."""
    if not isinstance(getattr(function, "__self__", None), (type, types.ModuleType, type(None))):
        raise Untold  # bound to something
    return f"{getattr(function, '__module__', None)}.{function.__qualname__}"


def _function(function: types.FunctionType) -> str:
    """Its code, defaults and what it closes over; what it takes from its file is told by that file's digest, and a
    global that is set at run time is not. Raises Untold."""
    if function.__module__.split(".")[0] == "torch":
        return f"{function.__module__}.{function.__qualname__}"
    closed = [_plain(cell.cell_contents) for cell in function.__closure__ or () if cell.cell_contents is not function]
    names = function.__code__.co_names
    taken = {name: function.__globals__[name] for name in names if name in function.__globals__}
    told = {name: repr(one) for name, one in taken.items() if isinstance(one, (bool, int, float, str))}
    rest = repr((_code(function.__code__), function.__defaults__ and _plain(function.__defaults__), closed, told))
    return hashlib.sha256(rest.encode()).hexdigest()


def _code(code: types.CodeType) -> bytes:
    """Without addresses and line numbers."""
    inner = [_code(one) if isinstance(one, types.CodeType) else repr(one).encode() for one in code.co_consts]
    return b"".join((code.co_code, repr(code.co_names).encode(), *inner))


@functools.lru_cache(maxsize=1024)
def _source(kind: type) -> bytes:
    """The digest of the file that a class is written in; of none for those of torch."""
    if kind.__module__.split(".")[0] == "torch":
        return b""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).digest()
    except (OSError, TypeError):  # written in a notebook, or nowhere
        return b""
