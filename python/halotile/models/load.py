# SPDX-License-Identifier: MIT
"""Models by name: model files, known models, ``module:callable``.

A file's type is detected from its first bytes, so that a web page saved as a checkpoint is reported as a web page.
torch, spandrel and onnxruntime are imported only for files that need them.
"""

from __future__ import annotations

import difflib
import importlib
import operator
import os
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from ..optional import torchvision_advice
from ..texts import named, one_line, quoted
from . import catalog
from .bounds import check_zip
from .needs import Needs
from .onnx import Provider, load_onnx
from .program_bounds import check_script

__all__ = ["load_model"]

Loaded = Callable[..., Any]
Providers = Sequence[Provider]


def load_model(
    name: str | os.PathLike[str] | None = None,
    *,
    providers: Providers | None = None,
    strength: float | None = None,
) -> Loaded:
    """Loads a model by name.

    Args:
        name: None for the included model; the name of a known model (`halotile.models.catalog`); a file; or
            ``module:callable``, used as it is, or ``module:factory()``, called without arguments first. Files are

            - checkpoints (.safetensors, .pth, .pt, .ckpt) of architectures that spandrel supports, weights only;
            - ONNX (.onnx);
            - ncnn: NAME.param, with NAME.bin beside it;
            - torch.export (.pt2) and TorchScript.

            Modules are also searched for in the current directory. Modules, TorchScript and torch.export files are
            code, which can do whatever a program can. The others are data.
        providers: for ONNX files, ONNX Runtime's execution providers; see `halotile.models.onnx.load_onnx`.
        strength: strength of the included model, from 0, which changes nothing, to 1. None: 1.

    Returns:
        A model for `restore_tiled`: a torch module, except for ONNX files and callables. If the file has size
        constraints, its attribute ``needs`` is a `halotile.models.needs.Needs`.

    Raises:
        ValueError: there is no such model, the file is damaged or not a model, a known model is not installed, or the
            model takes no providers or no strength.
        ImportError: the module cannot be imported or lacks the name, the factory fails, or a package is missing.
        TypeError: the name is that of a class, or of something that cannot be called.

    >>> model = load_model()  # the included one
    >>> type(model).__name__
    'Restorer'
    """
    if name is None:
        return _embedded(providers, 1.0 if strength is None else strength)
    name = os.fspath(name)
    if strength is not None:
        raise ValueError(f"strength must be None for model {name!r}: only the included model has one")
    if os.path.isfile(name):
        return _from_file(name, providers)
    if providers is not None:
        raise ValueError(f"providers must be None for model {name!r}, which is not an ONNX file")
    if name in catalog.KNOWN:
        return _from_catalog(name)
    if os.path.exists(name):
        kind = "a folder" if os.path.isdir(name) else "not a regular file"
        raise ValueError(f"model {name!r} cannot be run as it is: it is {kind}, {NONE_OF_THEM}")
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        text = f"model {name!r}: no such file, and not of the form module:callable"
        near = difflib.get_close_matches(name, catalog.KNOWN, n=1)
        raise ValueError(f"{text}; did you mean the known model {near[0]!r}?" if near else text)
    return _from_module(name, module, attribute)


def _embedded(providers: Providers | None, strength: float) -> Loaded:
    if providers is not None:
        raise ValueError("providers must be None for the included model, which is not an ONNX file")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be a number from 0 to 1, not {strength!r}")
    _need_torch("the included model needs")
    from .embedded import load_embedded

    return load_embedded(strength=strength)


def _from_module(name: str, module: str, attribute: str) -> Loaded:
    attribute, is_factory = attribute.removesuffix("()"), attribute.endswith("()")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        model = operator.attrgetter(attribute)(importlib.import_module(module))
        if is_factory:
            model = model()
    except Exception as error:  # whatever the module and the factory raise
        raise ImportError(f"model {name!r} cannot be imported: {torchvision_advice(error) or named(error)}") from error
    if isinstance(model, type):
        raise TypeError(f"model {name!r} is a class; write '{module}:{attribute}()' for an instance of it")
    if not callable(model):
        raise TypeError(f"model {name!r} must be a torch module or a callable, not a {type(model).__name__}")
    return model


def _from_catalog(name: str) -> Loaded:
    try:
        param, weights = catalog.known_files(name)
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be loaded: {error}") from error
    _need_torch(f"model {name!r}: ncnn files need")
    model = _opened(name, "ncnn", lambda: _ncnn(str(param), str(weights)))
    model.needs = Needs(scale=catalog.KNOWN[name].scale)
    return model


# ---- files -----------------------------------------------------------------------------------------------------------

NONE_OF_THEM = "neither TorchScript nor torch.export (.pt2), nor a checkpoint, ONNX or ncnn's .param"
LONGEST_PARAM = 2**22  # bytes
HEAD = 512  # bytes that identify the type of a file


def _from_file(path: str, providers: Providers | None) -> Loaded:
    kind = _kind_of(path)
    if kind == "ONNX":
        return _opened(path, kind, lambda: load_onnx(path, providers))
    if providers is not None:
        raise ValueError(f"providers must be None for model {path!r}, which is not an ONNX file")
    _need_torch(f"model {path!r}: {kind} files need")
    return _opened(path, kind, lambda: OPENERS[kind](path))


def _need_torch(who: str) -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{who} torch: pip install 'halotile[torch]' ({quoted(error)})") from error


def _opened(name: str, kind: str, opener: Callable[[], Loaded]) -> Any:
    """Calls `opener`; its errors get the model's name, and one line."""
    try:
        return opener()
    except ImportError as error:
        raise ImportError(f"model {name!r} cannot be run as it is: {one_line(error)}") from error
    except Exception as error:  # a damaged file may raise anything
        text = one_line(error) if isinstance(error, ValueError) and kind != "TorchScript" else quoted(error)
        if kind in ("TorchScript", "torch.export"):
            raise ValueError(f"model {name!r} is not a readable {kind} file: {text}") from error
        raise ValueError(f"model {name!r} cannot be run as it is: {text}") from error


def _checkpoint(path: str) -> Loaded:
    from .checkpoint import load_checkpoint

    return load_checkpoint(path)


def _exported(path: str) -> Loaded:
    from .exported import load_exported

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # by torch, about its own code
        return load_exported(path)


def _script(path: str) -> Loaded:
    import torch

    check_script(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about TorchScript itself
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(path, map_location="cpu")


def _ncnn_pair(path: str) -> Loaded:
    weights = f"{os.path.splitext(path)[0]}.bin"
    if not os.path.isfile(weights):
        raise ValueError(f"it is an ncnn .param file, but its weights are missing: there is no {weights!r}")
    return _ncnn(path, weights)


def _ncnn(param: str, weights: str) -> Loaded:
    from .ncnn import load_ncnn

    if os.path.getsize(param) > LONGEST_PARAM:
        raise ValueError(f"its .param file has {os.path.getsize(param)} bytes, too many for layers")
    with open(param, encoding="utf-8") as text, open(weights, "rb") as data:
        return load_ncnn(text.read(), data.read())


OPENERS: dict[str, Callable[[str], Loaded]] = {
    "checkpoint": _checkpoint,
    "torch.export": _exported,
    "TorchScript": _script,
    "ncnn": _ncnn_pair,
}

# ---- file types ------------------------------------------------------------------------------------------------------


def _kind_of(path: str) -> str:
    """ "ONNX" or a key of OPENERS, from the file's first bytes, or else its name."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    refusal = _other_thing(head)
    if refusal is None and head[:4] in (b"PK\3\4", b"PK\5\6"):
        return _kind_of_zip(path)
    suffix = os.path.splitext(path)[1].lower()
    if refusal is None:
        if suffix == ".onnx":
            return "ONNX"
        if suffix == ".param" or head.startswith(b"7767517"):
            return "ncnn"
        if suffix == ".safetensors" or head[8:9] == b"{" or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
            return "checkpoint"
        if suffix == ".bin" and os.path.isfile(f"{path[:-4]}.param"):
            refusal = f"it holds the weights of an ncnn model; pass {path[:-4]}.param"
        elif tarfile.is_tarfile(path):
            refusal = "it is a tar archive; such checkpoints, of torch before 0.1.10, are not supported"
    raise ValueError(f"model {path!r} cannot be run as it is: {refusal or f'it is {NONE_OF_THEM}'}")


def _other_thing(head: bytes) -> str | None:
    """Names what is commonly saved under a model's name by mistake; else None."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page (HTML), probably from a failed download"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run git lfs pull"
    return None


def _kind_of_zip(path: str) -> str:
    """Tells checkpoint, TorchScript and torch.export apart by the members of the zip archive that all three are."""
    try:
        check_zip(path)
    except ValueError as error:
        raise ValueError(f"model {path!r} cannot be run as it is: {error}") from error
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        infos = []
    members = {info.filename.partition("/")[2] for info in infos}
    if "archive_format" in members:
        return "torch.export"
    if "constants.pkl" in members and any(member.startswith("code/") for member in members):
        return "TorchScript"
    if "data.pkl" not in members:
        what = "a zip archive" if infos else "a damaged or truncated zip archive"
        raise ValueError(f"model {path!r} cannot be run as it is: it is {what}, {NONE_OF_THEM}")
    if sum(info.file_size for info in infos) > os.path.getsize(path):
        raise ValueError(f"model {path!r} cannot be run as it is: it is a checkpoint that unpacks to more than it is")
    return "checkpoint"
