# SPDX-License-Identifier: MIT
"""What inspection found out about a model, kept on disk by what the model is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import types
import weakref
from pathlib import Path
from typing import Any

from .cache import keep, kept
from .images import torch_if_loaded

__all__ = ["known_model", "recalled", "remember", "told_about"]

_seen: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # what was found out in this process
_told: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def remember(model: Any, info: Any) -> None:
    """So that later runs can say what they lack."""
    with contextlib.suppress(TypeError):  # cannot be hashed, or referred to weakly
        _seen[model] = info


def recalled(model: Any) -> Any:
    """What was found out about a model in this process, for whatever reason; or None."""
    try:
        return _seen.get(model)
    except TypeError:
        return None


def told_about(model: Any) -> set[Any]:
    """What the user was told about a model."""
    try:
        return _told.setdefault(model, set())
    except TypeError:
        return set()


def known_model(model: Any, device: Any = None, dtype: Any = None) -> Any:
    """`inspect_model`, or what it found before about a module of the same structure and weights."""
    from .inspection import ModelInfo, inspect_model

    about = _about(model, dtype)
    if about is not None:
        try:
            info = ModelInfo.from_json(kept("model", about))
            remember(model, info)
            return info
        except Exception:  # nothing, or something else, was kept
            pass
    info = inspect_model(model, device=device, dtype=dtype)
    if about is not None and info.deterministic:
        keep("model", about, info.to_json())
    return info


def _about(model: Any, dtype: Any) -> tuple[object, ...] | None:
    """What tells a module from others: its classes and the files they are written in, settings, weights. None for what
    is no module, or has hooks. A function that a class calls in yet another file is not looked at."""
    from . import __version__

    torch = torch_if_loaded()
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    digest = hashlib.sha256()
    for name, inner in model.named_modules():
        kind = type(inner)
        code = getattr(kind.forward, "__code__", None)
        if code is None or "forward" in vars(inner) or inner._forward_hooks or inner._forward_pre_hooks:
            return None
        settings = {key: value for key, value in vars(inner).items() if key != "training" and key[0] != "_"}
        digest.update(repr((name, kind.__module__, kind.__qualname__, inner.extra_repr())).encode())
        digest.update(repr(sorted((key, _plain(value)) for key, value in settings.items())).encode())
        digest.update(_code(code) + _source(kind))
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return __version__, torch.__version__, str(dtype), digest.hexdigest()


def _plain(value: Any) -> str:
    """A setting, if it is one that prints what it is; else its type."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{type(value).__name__}({', '.join(map(_plain, value))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{_plain(key)}: {_plain(one)}' for key, one in value.items())})"
    plain = value is None or isinstance(value, (bool, int, float, complex, str, bytes))
    return repr(value) if plain or type(value).__module__ == "torch" else type(value).__qualname__


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
