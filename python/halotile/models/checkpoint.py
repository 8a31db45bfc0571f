# SPDX-License-Identifier: MIT
"""Checkpoints, which hold weights without the network: `load_checkpoint`. spandrel tells the network from the weights.

Nothing in a file is run: .safetensors holds none but numbers, and pickles (.pth, .pt, .ckpt) are read by torch's
unpickler for weights only. A file cannot claim more weights than it holds either. Imports torch and, for a file whose
weights could be read, spandrel.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..optional import install_torchvision, torchvision_advice
from ..texts import bytes_text, full_text, named, quoted, shortened
from .needs import Needs

__all__ = ["Checkpoint", "load_checkpoint", "open_descriptor", "why_not"]

NO_NETWORK = "it is a checkpoint: weights without the network"
INSTALL = "pip install 'halotile[spandrel]'"
SINGLE = {"SeemoRe"}  # architectures that take one image at a time
BY_HAND = "Load them in a function and pass module:function()"


class Checkpoint(nn.Module):
    """A network out of a checkpoint, from a float tensor (N, C, H, W), 0 to 1, to (N, C, scale * H, scale * W).

    It is what spandrel calls, without what spandrel does around it: values beyond 0 and 1 are not cut off, and sizes
    that the network does not take are not padded, but told in `needs`.

    Attributes:
        network: the network itself.
        architecture: its name.
        scale: output pixels per input pixel.
        channels: that it takes.
        needs: which windows it takes.
        purpose: "SR", "FaceSR" or "Restoration".
        tags: what else spandrel says of it, such as its size.
        tiling: "supported", or "discouraged" or "internal" for networks that look at the whole image.
        supports_half, supports_bfloat16: whether it is known to work with dtype="float16" or "bfloat16".
    """

    def __init__(self, descriptor: Any):
        super().__init__()
        self.network: nn.Module = descriptor.model
        self.architecture: str = descriptor.architecture.name
        self.scale: int = descriptor.scale
        self.channels: int = descriptor.input_channels
        self.needs = _needs(descriptor)
        self.purpose: str = descriptor.purpose
        self.tags: list[str] = list(descriptor.tags)
        self.tiling: str = descriptor.tiling.name.lower()
        self.supports_half: bool = descriptor.supports_half
        self.supports_bfloat16: bool = descriptor.supports_bfloat16
        self.adapter, self.single = _adapter(descriptor), descriptor.architecture.id in SINGLE

    def forward(self, x: Tensor) -> Tensor:
        if self.adapter is None and not self.single:
            return self.network(x)
        return torch.cat([self._run(one) for one in x.split(1)])

    def _run(self, one: Tensor) -> Tensor:
        return self.network(one) if self.adapter is None else self.adapter(self.network, one)

    def extra_repr(self) -> str:
        return f"{self.architecture}, x{self.scale}, {self.needs}"


def _needs(descriptor: Any) -> Needs:
    size = descriptor.size_requirements
    return Needs(size.multiple_of, max(size.minimum, size.multiple_of), size.square, scale=descriptor.scale)


def _adapter(descriptor: Any) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """What spandrel puts between image and network: a noise level that is added, one of several outputs that is taken.
    It is written for single images. None where there is no such thing."""
    adapter = getattr(descriptor, "_call_fn", None)
    plain = adapter is None or adapter.__module__ == type(descriptor).__module__
    return None if plain else adapter


def load_checkpoint(path: str) -> Checkpoint:
    """The network of a .safetensors, .pth, .pt or .ckpt file.

    Args:
        path: the file. Weights may lie in it under the usual names ("params_ema", "state_dict", ...).

    Returns:
        A module in evaluation mode, without gradients, on the CPU.

    Raises:
        ValueError: the file is damaged, would run code, claims what it does not hold, belongs to no network that
            spandrel knows, or to one that takes more than an image.
        ImportError: spandrel, or what it needs, is missing.
    """
    weights = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    spandrel = _spandrel()
    descriptor = _recognised(spandrel, weights)
    return open_descriptor(descriptor).eval().requires_grad_(False)


def open_descriptor(descriptor: Any) -> Checkpoint:
    """What spandrel describes as a module, in the mode, dtype and place that it has.

    Raises:
        ValueError: it takes more than an image.
    """
    if not isinstance(descriptor, _spandrel().ImageModelDescriptor):
        name = descriptor.architecture.name
        raise ValueError(f"it is a {name} network, which takes a mask beside the image, and only images can be given")
    mode = descriptor.model.training
    opened = Checkpoint(descriptor)
    opened.training = mode
    return opened


# ---- reading ---------------------------------------------------------------------------------------------------------


def _is_safetensors(path: str) -> bool:
    """By the first bytes: a length, and the brace that opens a JSON object."""
    with open(path, "rb") as file:
        head = file.read(9)
    return path.lower().endswith(".safetensors") or (head[8:] == b"{" and head[:1] != b"\x80")


def _read_safetensors(path: str) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{NO_NETWORK}. safetensors, which reads it, is missing: {INSTALL}") from error
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and whatever a header makes of torch
        raise ValueError(f"it is no readable .safetensors file: {quoted(error)}") from error


def _read_pickle(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(why_not(full_text(error))) from error


def why_not(message: str, what: str = "checkpoint") -> str:
    """What torch said of a pickle, which is long and recommends to run the code."""
    if "legacy .tar" in message:
        return f"{NO_NETWORK}, in the format of torch before 0.1.10, which is not read; load it and save it again"
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted:
        text = f"it is a pickle that would call {shortened(wanted[1])}, and only weights are read"
        return f"{text}. Save its state_dict() alone"
    wanted = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    if wanted:
        return f"it is a pickle of something else than weights, and only weights are read: {shortened(wanted[1])}"
    return f"it is no readable {what}: {quoted(ValueError(message)) if message else 'it ends early'}"


def _spandrel() -> Any:
    try:
        import spandrel
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            text = f"{NO_NETWORK}. spandrel, which knows many networks, is missing: {INSTALL}"
            raise ImportError(text) from error
        raise _not_imported(error) from error
    except Exception as error:  # torchvision made for another torch raises RuntimeError
        raise _not_imported(error) from error
    return spandrel


def _not_imported(error: Exception) -> ImportError:
    """Of spandrel; where a module lacks only a part, an older or newer one is installed than spandrel knows."""
    package = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if package and "." not in package:
        command = install_torchvision() if package == "torchvision" else f"pip install {package}"
        return ImportError(f"{NO_NETWORK}. spandrel, which knows many networks, needs {package}: {command}")
    said = torchvision_advice(error) or named(error)
    return ImportError(f"{NO_NETWORK}, and spandrel cannot be imported: {said}")


# ---- weights and networks --------------------------------------------------------------------------------------------


def _recognised(spandrel: Any, weights: Any) -> Any:
    """spandrel's descriptor of the network that fits the weights."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"it holds a {type(weights).__name__}, not weights by name")
    try:
        weights = spandrel.canonicalize_state_dict(weights)
    except Exception as error:  # names that are no strings
        raise ValueError(f"it does not hold weights by name: {quoted(error)}") from error
    _check(weights)
    try:
        with torch.random.fork_rng(devices=[]):  # networks start from random numbers
            return spandrel.ModelLoader().load_from_state_dict(weights)
    except spandrel.UnsupportedModelError as error:
        raise ValueError(f"{NO_NETWORK}, and spandrel knows none for them. {BY_HAND}") from error
    except Exception as error:  # spandrel guesses by a few names; what is missing may raise anything
        text = f"{NO_NETWORK}, and they do not fit the network that spandrel takes them for"
        raise ValueError(f"{text}: {named(error)}. {BY_HAND}") from error


def _check(weights: Mapping[Any, Any]) -> None:
    """Raises ValueError for weights that are not there, and for numbers in names that stand for a network far larger
    than the weights: spandrel builds what names and shapes say before it looks at the rest."""
    most = 100 + 4 * len(weights)
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"it holds weights named {name!r:.80}, and names must be strings")
        if isinstance(value, Tensor):
            _check_tensor(name, value)
        if any(_number(part) > most for part in name.split(".")):
            raise ValueError(f"its weight {name[:80]!r} counts further than its {len(weights)} weights can")


def _check_tensor(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"its weight {name[:80]!r} is no plain tensor")
    claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if claimed > held:
        text = f"its weight {name[:80]!r} claims {bytes_text(claimed)}"
        raise ValueError(f"{text}, and the file holds {bytes_text(held)} of it")


def _number(text: str) -> int:
    """As spandrel reads it, to which 1_000 is a thousand."""
    try:
        return int(text)
    except ValueError:
        return 0
