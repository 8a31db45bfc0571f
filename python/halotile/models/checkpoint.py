# SPDX-License-Identifier: MIT
"""Checkpoints, which are state dicts without a network: `load_checkpoint`. spandrel infers the network from the
weights.

No code in a file is run: .safetensors files hold only numbers, and torch's weights-only unpickler reads pickles (.pth,
.pt, .ckpt). A file that claims more weights than it holds is refused. Imports torch and, once the weights are read,
spandrel.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..optional import install_torchvision, torchvision_advice
from ..texts import bytes_text, full_text, named, quoted, shortened
from .bounds import MOST_WEIGHTS, check_pickle, check_safetensors
from .needs import Needs

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor, ModelDescriptor

__all__ = ["Checkpoint", "load_checkpoint", "open_descriptor", "why_not"]

NO_NETWORK = "it is a state dict, without its network"
INSTALL = "pip install 'halotile[spandrel]'"
SINGLE = {"SeemoRe"}  # architectures that take only one image at a time
BY_HAND = "Build and load it in a function of your own and pass module:function()"


class Checkpoint(nn.Module):
    """A network from a checkpoint: maps a float tensor (N, C, H, W), 0 to 1, to (N, C, scale * H, scale * W).

    Unlike spandrel's own call, it does not clamp values to 0 and 1, and does not pad sizes that the network rejects:
    `needs` states them.

    Attributes:
        network: the network itself.
        architecture: its name.
        scale: output pixels per input pixel.
        channels: its input channels.
        needs: its size constraints.
        purpose: "SR", "FaceSR" or "Restoration".
        tags: other properties according to spandrel, such as its size.
        tiling: "supported", or "discouraged" or "internal" for networks that see the whole image.
        supports_half, supports_bfloat16: whether it works with dtype="float16" or "bfloat16", according to spandrel.
    """

    def __init__(self, descriptor: ImageModelDescriptor):
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


def _needs(descriptor: ImageModelDescriptor) -> Needs:
    size = descriptor.size_requirements
    return Needs(size.multiple_of, max(size.minimum, size.multiple_of), size.square, scale=descriptor.scale)


def _adapter(descriptor: ImageModelDescriptor) -> Callable[[nn.Module, Tensor], Tensor] | None:
    """spandrel's adapter for single images, if the network has one: it adds a noise level, or selects an output."""
    adapter = getattr(descriptor, "_call_fn", None)
    plain = adapter is None or adapter.__module__ == type(descriptor).__module__
    return None if plain else adapter


def load_checkpoint(path: str) -> Checkpoint:
    """The network of a .safetensors, .pth, .pt or .ckpt file.

    Args:
        path: the file. Its weights may be under one of the usual keys ("params_ema", "state_dict", ...).

    Returns:
        A module in evaluation mode, without gradients, on the CPU.

    Raises:
        ValueError: the file is damaged, would run code, claims more than it holds, or its network is unknown to
            spandrel or takes more than an image.
        ImportError: spandrel or one of its dependencies is missing.
    """
    check_safetensors(path) if _is_safetensors(path) else check_pickle(path)
    weights = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    return open_descriptor(_recognised(_spandrel(), weights)).eval().requires_grad_(False)


def open_descriptor(descriptor: ModelDescriptor) -> Checkpoint:
    """The network of a spandrel descriptor as a module; its mode, dtype and device are unchanged.

    Raises:
        ValueError: the network takes more than an image.
    """
    if not isinstance(descriptor, _spandrel().ImageModelDescriptor):
        name = descriptor.architecture.name
        raise ValueError(f"it is a {name} network, which needs a mask in addition to the image; that is not supported")
    mode = descriptor.model.training
    opened = Checkpoint(descriptor)
    opened.training = mode
    return opened


# ---- reading ---------------------------------------------------------------------------------------------------------


def _is_safetensors(path: str) -> bool:
    """Recognises the first bytes: a length, and the opening brace of a JSON object."""
    with open(path, "rb") as file:
        head = file.read(9)
    return path.lower().endswith(".safetensors") or (head[8:] == b"{" and head[:1] != b"\x80")


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{NO_NETWORK}, and safetensors is needed to read it: {INSTALL} ({quoted(error)})") from error
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, or any error of torch from a bad header
        raise ValueError(f"it is not a readable .safetensors file: {quoted(error)}") from error


def _read_pickle(path: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(why_not(full_text(error))) from error


def why_not(message: str, what: str = "checkpoint") -> str:
    """A short form of torch's error about a pickle, which is long and recommends running the code."""
    if "legacy .tar" in message:
        return f"{NO_NETWORK}, in the format of torch before 0.1.10, which is not supported; load it and save it again"
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted:
        text = f"it is a pickle that would call {shortened(wanted[1])}; only weights are read"
        return f"{text}. Save only its state_dict()"
    wanted = re.search(r"WeightsUnpickler error:\s*(.+)", message)
    if wanted:
        return f"it is a pickle of something other than weights; only weights are read: {shortened(wanted[1])}"
    return f"it is not a readable {what}: {quoted(ValueError(message)) if message else 'it ends early'}"


def _spandrel() -> ModuleType:
    try:
        import spandrel
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            text = f"{NO_NETWORK}; spandrel is needed to rebuild it: {INSTALL}"
            raise ImportError(text) from error
        raise _not_imported(error) from error
    except Exception as error:  # torchvision made for another torch raises RuntimeError
        raise _not_imported(error) from error
    return spandrel


def _not_imported(error: Exception) -> ImportError:
    """The error for a failed import of spandrel. If only a submodule is missing, a package has an incompatible
    version."""
    package = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if package and "." not in package:
        command = install_torchvision() if package == "torchvision" else f"pip install {package}"
        return ImportError(f"{NO_NETWORK}; spandrel, which would rebuild it, needs {package}: {command}")
    reason = torchvision_advice(error) or named(error)
    return ImportError(f"{NO_NETWORK}, and spandrel cannot be imported: {reason}")


# ---- weights and networks --------------------------------------------------------------------------------------------


def _recognised(spandrel: ModuleType, weights: object) -> ModelDescriptor:
    """spandrel's descriptor of the network for the weights."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"it holds a {type(weights).__name__}, not weights by name")
    try:
        state_dict = spandrel.canonicalize_state_dict(weights)
    except Exception as error:  # names that are not strings
        raise ValueError(f"it does not hold weights by name: {quoted(error)}") from error
    _check(state_dict)
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws random numbers
            return spandrel.ModelLoader().load_from_state_dict(state_dict)
    except spandrel.UnsupportedModelError as error:
        raise ValueError(f"{NO_NETWORK}, and spandrel does not recognise it. {BY_HAND}") from error
    except Exception as error:  # spandrel decides by a few names; other missing ones may raise anything
        text = f"{NO_NETWORK}, and it does not fit the one that spandrel takes it for"
        raise ValueError(f"{text}: {named(error)}. {BY_HAND}") from error


def _check(weights: Mapping[object, object]) -> None:
    """Raises ValueError for weights that the file does not hold, and for names with numbers that imply a network far
    larger than the weights: spandrel builds the network from names and shapes before it checks anything else."""
    if len(weights) > MOST_WEIGHTS:
        raise ValueError(f"it holds {len(weights)} weights; at most {MOST_WEIGHTS} are read")
    most = 100 + 4 * len(weights)
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"it holds weights named {name!r:.80}, but names must be strings")
        if isinstance(value, Tensor):
            _check_tensor(name, value)
        if any(_number(part) > most for part in name.split(".")):
            raise ValueError(f"the number in its weight {name[:80]!r} is too large for {len(weights)} weights")


def _check_tensor(name: str, value: Tensor) -> None:
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"its weight {name[:80]!r} is not a plain tensor")
    claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if claimed > held:
        text = f"its weight {name[:80]!r} claims {bytes_text(claimed)}"
        raise ValueError(f"{text}, but the file holds {bytes_text(held)} of it")


def _number(text: str) -> int:
    """Parses a number as spandrel does, with underscores."""
    try:
        return int(text)
    except ValueError:
        return 0
