# SPDX-License-Identifier: MIT
"""Optional packages, and the commands that install missing or incompatible ones."""

from __future__ import annotations

import re
import sys
import traceback
from types import ModuleType
from typing import Any

from .texts import full_text, quoted

__all__ = ["import_distributed", "import_zarr", "install_torchvision", "torch_if_loaded", "torchvision_advice"]

INDEXED = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")  # builds of torch with their own package index
MADE_FOR = re.compile(r"torch\s*\(?==\s*([\w.+]+)")


def torch_if_loaded() -> Any:
    """The torch module if it was imported; else None, and there can be no tensors."""
    return sys.modules.get("torch")


def import_zarr() -> ModuleType:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"zarr arrays need zarr: pip install 'halotile[zarr]' ({quoted(error)})") from error
    return zarr


def import_distributed() -> ModuleType:
    try:
        import distributed
    except ImportError as error:
        raise ImportError(f"cluster= needs dask: pip install 'halotile[dask]' ({quoted(error)})") from error
    return distributed


def torchvision_advice(error: BaseException) -> str | None:
    """The message of an import that failed in torchvision, and the remedy: torchvision works only with the torch that
    it was built for. None if the failure has another cause."""
    if not _is_about_torchvision(error):
        return None
    own, torch = _version("torchvision"), _version("torch")
    if own is None and isinstance(error, ModuleNotFoundError):
        return f"{quoted(error)}: {install_torchvision()}"
    made_for = _torch_of_torchvision()
    fit = f", which is for torch {made_for}," if made_for not in (None, (torch or "").partition("+")[0]) else ""
    versions = f"torchvision {own or '(unknown version)'}{fit} and torch {torch or '(unknown version)'}"
    return f"{quoted(error)}. {versions} do not fit together: {install_torchvision(upgrade=True)}"


def _is_about_torchvision(error: BaseException) -> bool:
    name = error.name if isinstance(error, ImportError) else None
    if (name or "").partition(".")[0] == "torchvision" or "torchvision" in full_text(error):
        return True
    modules = (frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(module, str) and module.partition(".")[0] == "torchvision" for module in modules)


def _version(package: str) -> str | None:
    """A package's version, without importing it, as that may be what failed."""
    import importlib.metadata  # slow to import

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules.get(package), "__version__", None)
        return None if version is None else str(version)


def _torch_of_torchvision() -> str | None:
    import importlib.metadata

    try:
        wanted = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [match[1] for match in map(MADE_FOR.match, wanted) if match]
    return found[0] if found else None


def install_torchvision(upgrade: bool = False) -> str:
    """The command for pip: it finds the torchvision for the installed torch and leaves torch as it is."""
    version, _, build = (_version("torch") or "").partition("+")
    pinned = f' "torch=={version}"' if version else " torch"
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if INDEXED.fullmatch(build) else ""
    return f"pip install{' --upgrade' if upgrade else ''} torchvision{pinned}{index}"
