# SPDX-License-Identifier: MIT
"""Models by name, for the command line: a TorchScript file, a torch.export file, or ``module:callable``.

torch is imported when a file is loaded, and not before.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

__all__ = ["load_model"]


def load_model(name: str) -> Callable[..., Any]:
    """The model that a name stands for.

    Args:
        name: a TorchScript file; a torch.export file (.pt2); ``module:callable``, used as it is; or
            ``module:factory()``, called without arguments first. Modules are looked for in the current directory too.
            TorchScript files and modules are code: they can do whatever a program can.

    Raises:
        ValueError: if the name is of no such kind, or the file holds something else.
        ImportError: if the module cannot be imported or lacks the name, if the factory fails, or if torch is missing.
        TypeError: if it names a class, or something that cannot be called.
    """
    if os.path.exists(name):
        return _from_file(name)
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"model {name!r}: there is no such file, and it is not of the form module:callable")
    return _from_module(name, module, attribute)


def _from_module(name: str, module: str, attribute: str) -> Callable[..., Any]:
    attribute, is_factory = attribute.removesuffix("()"), attribute.endswith("()")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        model = operator.attrgetter(attribute)(importlib.import_module(module))
        if is_factory:
            model = model()
    except Exception as error:  # whatever the module and the factory raise
        raise ImportError(f"model {name!r} cannot be had: {type(error).__name__}: {error}") from error
    if isinstance(model, type):
        raise TypeError(f"model {name!r} is a class; write '{module}:{attribute}()' for an instance of it")
    if not callable(model):
        raise TypeError(f"model {name!r} must be a torch module or a callable, not a {type(model).__name__}")
    return model


# ---- files -----------------------------------------------------------------------------------------------------------


def _from_file(path: str) -> Callable[..., Any]:
    kind = _kind_of(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"model {path!r}: {kind} files need torch: pip install 'halotile[torch]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            if kind == "torch.export":
                from .exported import open_exported

                return open_exported(torch.export.load(path))
            return torch.jit.load(path, map_location="cpu")
    except (RuntimeError, OSError, KeyError, ValueError) as error:  # what torch raises for a damaged file
        raise ValueError(f"model {path!r} is not a readable {kind} file: {error}") from error


def _kind_of(path: str) -> str:
    """TorchScript or torch.export, from the members of the zip archive that both are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.partition("/")[2] for member in archive.namelist()}
    except (zipfile.BadZipFile, IsADirectoryError):
        members = set()
    if "archive_format" in members:
        return "torch.export"
    if "constants.pkl" in members and any(member.startswith("code/") for member in members):
        return "TorchScript"
    if "data.pkl" in members:
        hint = "it is a checkpoint: weights without the network. Load them in a function and pass module:function()"
    else:
        hint = "it is neither TorchScript nor torch.export (.pt2)"
    raise ValueError(f"model {path!r} cannot be run as it is: {hint}")
