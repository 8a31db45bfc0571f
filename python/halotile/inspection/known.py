# SPDX-License-Identifier: MIT
"""A cache on disk for inspection results, keyed by a model's weights, settings and code."""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import keep, kept
from ..models.descriptor import unwrapped
from ..models.needs import Needs
from ..models.recalled import remember
from ..models.untouched.copies import uncompiled
from ..optional import torch_if_loaded
from ..options import Device, DType
from ..version import __version__
from .info import ModelInfo

if TYPE_CHECKING:
    import torch

    from .quick import Quick

__all__ = ["FORMATS", "about", "known_model", "known_quick", "state_of"]

WORTH_KEEPING = 0.3  # seconds; shorter quick checks are not worth a file
Key = tuple[object, ...]  # everything that a result depends on
# The structure at the last quick check, and its result.
_looked_at: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Key | None, Quick]] = weakref.WeakKeyDictionary()


def known_model(model: Any, device: Device | None = None, dtype: DType | None = None) -> ModelInfo:
    """`inspect_model`, or its cached result for a module with the same structure and weights."""
    from . import inspect_model

    model = unwrapped(model)
    what = about(uncompiled(model), dtype)
    if what is not None:
        try:
            info = ModelInfo.from_json(kept("model", what))
            remember(model, info)
            return info
        except Exception:  # nothing valid is cached
            pass
    info = inspect_model(model, device=device, dtype=dtype)
    if what is not None and info.certain:  # uncertain results may improve elsewhere
        keep("model", what, info.to_json())
    return info


def known_quick(model: Any, channels: tuple[int, ...]) -> Quick | None:
    """`quick_look`, or its cached result for a module with the same structure; None unless it is a torch module.

    Args:
        channels: possible input channels, likeliest first.
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
    except Exception:  # nothing valid is cached
        found = None
    if found is None:
        start = time.monotonic()
        try:
            found = quick_look(model, channels)
        except Exception:  # optional; a model may raise anything
            found = Quick()
        if what is not None and found.phase is not None and time.monotonic() - start > WORTH_KEEPING:
            keep("quick", what, found.to_json())
    _looked_at[model] = what, found
    return found


class Formats:
    """Which modules give the same output for channels_last windows, in this process. Each is tried once, until it
    changes."""

    def __init__(self) -> None:
        self.tried: weakref.WeakKeyDictionary[torch.nn.Module, tuple[Key | None, bool]] = weakref.WeakKeyDictionary()

    def keeps(self, module: torch.nn.Module, tries: Callable[[], bool]) -> bool:
        """What is known of a module, or what trying it gives."""
        key, known = _shape_of(module, (), torch_if_loaded()), self.tried.get(module)
        if known is None or key is None or known[0] != key:
            known = self.tried[module] = key, tries()
        return known[1]


FORMATS = Formats()


def _shape_of(model: torch.nn.Module, channels: tuple[int, ...], torch: ModuleType) -> Key | None:
    """A key of everything that a module's operators depend on: that of `about` without the values of tensors, which may
    be on a device. None if there is no such key."""
    structure = None if isinstance(model, torch.jit.ScriptModule) else _structure(model, torch)
    if structure is None:
        return None
    try:
        shapes = [(name, value.dtype, tuple(value.shape)) for name, value in _tensors(model)]
    except RuntimeError:  # tensors without a shape
        return None
    return __version__, torch.__version__, channels, hashlib.sha256(structure).hexdigest(), repr(shapes)


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def about(model: Any, dtype: DType | None) -> Key | None:
    """A key that identifies a module: its classes, their source files, settings and weights. None if it is not a
    module, or has hooks. Functions in other files that its classes call are not part of the key."""
    torch = torch_if_loaded()
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    structure = _structure(model, torch)
    if structure is None:
        return None
    digest = hashlib.sha256(structure)
    try:
        for name, value in _tensors(model):
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            digest.update(_bytes(value, torch))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # tensors whose values cannot be read
        return None
    return __version__, torch.__version__, str(dtype), digest.hexdigest()


def state_of(model: torch.nn.Module) -> Key | None:
    """A key that changes with everything that a recorded module depends on, also with values written to its tensors.
    Those on a device are not looked at, only counted. None if there is no such key."""
    torch = torch_if_loaded()
    shape = _shape_of(model, (), torch)
    if shape is None:
        return None
    try:
        return shape, *(_value_of(value, torch) for _, value in _tensors(model))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # tensors whose values cannot be read
        return None


def _value_of(tensor: torch.Tensor, torch: ModuleType) -> Key:
    version = None if tensor.is_inference() else tensor._version
    digest = hashlib.blake2b(_bytes(tensor, torch)).digest() if tensor.device.type == "cpu" else None
    return id(tensor), tensor.device, version if digest is None else digest


def _structure(model: torch.nn.Module, torch: ModuleType) -> bytes | None:
    """A module's classes, their files and settings; None if something has no complete printed form."""
    try:
        modules = model.named_modules()
        return b"".join(
            repr((name, _settings(inner, torch))).encode() + _source(type(inner)) for name, inner in modules
        )
    except Exception:  # includes errors of the module's own description
        return None


def _bytes(tensor: torch.Tensor, torch: ModuleType) -> memoryview:
    """The values of a tensor of any shape and dtype, including scalars."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
    return flat.contiguous().view(torch.uint8).numpy().data


SETTINGS = {"dtype", "device", "layout", "memory_format", "Size"}  # torch types with a complete printed form


class Unprintable(Exception):
    """Something has no complete printed form."""


def _settings(module: torch.nn.Module, torch: ModuleType) -> str:
    """A text of everything about a module except its weights and submodules. Raises Unprintable."""
    kind, own = type(module), vars(module)
    if module._forward_hooks or module._forward_pre_hooks or "forward" in own:
        raise Unprintable
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


def _plain(value: object) -> str:
    """The printed form of a setting. Raises Unprintable if it is not complete."""
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
        raise Unprintable
    return repr(value)


def _builtin(function: types.BuiltinFunctionType | types.MethodDescriptorType) -> str:
    """The name of a builtin, as its printed form has an address that varies between processes. Raises Unprintable."""
    if not isinstance(getattr(function, "__self__", None), (type, types.ModuleType, type(None))):
        raise Unprintable  # a bound method
    return f"{getattr(function, '__module__', None)}.{function.__qualname__}"


def _function(function: types.FunctionType) -> str:
    """A digest of a function's code, defaults, closure and simple globals. Other content of its file is part of the
    file's digest; globals that are set at run time are not covered. Raises Unprintable."""
    if function.__module__.split(".")[0] == "torch":
        return f"{function.__module__}.{function.__qualname__}"
    closed = [_plain(cell.cell_contents) for cell in function.__closure__ or () if cell.cell_contents is not function]
    names = function.__code__.co_names
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    simple = {name: repr(value) for name, value in used.items() if isinstance(value, (bool, int, float, str))}
    rest = repr((_code(function.__code__), function.__defaults__ and _plain(function.__defaults__), closed, simple))
    return hashlib.sha256(rest.encode()).hexdigest()


def _code(code: types.CodeType) -> bytes:
    """A function's code without addresses and line numbers."""
    inner = [_code(one) if isinstance(one, types.CodeType) else repr(one).encode() for one in code.co_consts]
    return b"".join((code.co_code, repr(code.co_names).encode(), *inner))


@functools.lru_cache(maxsize=1024)
def _source(kind: type) -> bytes:
    """The digest of a class's source file; empty for torch's classes."""
    if kind.__module__.split(".")[0] == "torch":
        return b""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).digest()
    except (OSError, TypeError):  # without a source file, as in a notebook
        return b""
