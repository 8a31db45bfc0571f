# SPDX-License-Identifier: MIT
"""What inspection found out about a model, kept on disk by what the model is."""

from __future__ import annotations

import contextlib
import hashlib
import weakref
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
    """What tells a module from others: classes, what they print, their code, weights. None for what is no module."""
    from . import __version__

    torch = torch_if_loaded()
    if torch is None or not isinstance(model, torch.nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    digest = hashlib.sha256()
    for name, inner in model.named_modules():
        code = getattr(type(inner).forward, "__code__", None)
        if code is None or inner._forward_hooks or inner._forward_pre_hooks:
            return None
        digest.update(repr((name, type(inner).__qualname__, code.co_code, repr(code.co_consts))).encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return __version__, torch.__version__, str(dtype), repr(model), digest.hexdigest()
