# SPDX-License-Identifier: MIT
"""Calling a model on a batch of windows, whatever kind of model it is.

Windows and outputs are NumPy arrays (batch, channels, height, width) here: float32, float16, or uint16 holding
bfloat16. torch is used only if the model does.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import frames_inside
from ..optional import torch_if_loaded
from ..texts import full_text, named, quoted
from .around import same_luck, silence
from .needs import Needs
from .reach import reachable
from .recalled import recalled
from .untouched import copied, roots_of, shell, tensors_kept, turns, without_hooks

__all__ = [
    "BadOutput",
    "EmptyOutput",
    "Model",
    "TensorModel",
    "channels_of",
    "evaluating",
    "modules_of",
    "open_model",
    "usable_device",
]

NUMPY_WINDOWS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}


# What torch says where a model takes elements in an order that they do not have in memory.
ABOUT_LAYOUT = re.compile(r"view size is not compatible|contiguous", re.IGNORECASE)


AXES = "(batch, channels, height, width)"
# What torch says of arrays, and NumPy of tensors.
ABOUT_KINDS = re.compile(r"numpy|ndarray|'Tensor' object|got Tensor")


class BadOutput(Exception):
    """What the model returned is not a batch of outputs. Internal: users see ModelOutputError."""


class EmptyOutput(BadOutput):
    """It would be one if there were a pixel in it: the window was too small."""


class Model:
    """A model that takes and returns NumPy arrays.

    Attributes:
        dtype: of the windows it wants: float32, float16 or bfloat16.
        in_channels: how many it takes if that can be seen without running it, else None.
        channels_last: whether it wants windows with interleaved channels in memory.
        modules: the torch modules that it is, or carries.
    """

    in_channels: int | None = None
    channels_last = False
    modules: Sequence[Any] = ()

    def __init__(self, call: Callable[[np.ndarray], Any], dtype: str = "float32"):
        if dtype == "bfloat16":
            raise ValueError("dtype must not be bfloat16 for a model on NumPy arrays: NumPy has no such dtype")
        self.call = call
        self.dtype = dtype

    def new_windows(self, batch: int, channels: int, height: int, width: int) -> np.ndarray:
        dtype = NUMPY_WINDOWS[self.dtype]
        if self.channels_last:
            return np.empty((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)
        return np.empty((batch, channels, height, width), dtype)

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        return checked_array(self.call(windows), len(windows))

    @property
    def window_format(self) -> str:
        """How windows lie in memory."""
        return "channels_last" if self.channels_last else "contiguous"


def checked_array(output: Any, batch: int) -> np.ndarray:
    torch = torch_if_loaded()
    if torch is not None and isinstance(output, torch.Tensor):
        output = (
            output.detach().cpu().numpy() if output.dtype != torch.bfloat16 else output.detach().cpu().float().numpy()
        )
    if not isinstance(output, np.ndarray):
        raise BadOutput(f"the model returned {_kind(output)}, not one array {AXES}{_picked(output)}")
    if output.ndim != 4 or output.shape[0] != batch or 0 in output.shape:
        kind = EmptyOutput if output.ndim == 4 and output.shape[0] == batch else BadOutput
        raise kind(f"the model returned an array of shape {output.shape}, not ({batch}, channels, height, width)")
    if output.dtype == np.float64:
        return output.astype(np.float32)
    if output.dtype not in (np.float32, np.float16):
        raise BadOutput(f"the model returned an array of dtype {output.dtype}, not float32, float16 or float64")
    if not output.flags.aligned or any(stride % output.itemsize for stride in output.strides):
        output = output.copy()
    return output


def _picked(outputs: object) -> str:
    """How to pass a model that returns several things."""
    if isinstance(outputs, dict) and outputs:
        key = next(iter(outputs))
    elif isinstance(outputs, (tuple, list)) and outputs:
        key = 0
    else:
        return ""
    return f"; pass lambda x: model(x)[{key!r:.80}] if that is the image"


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class TensorModel(Model):
    """A model on tensors: a module, or a callable and the modules it carries."""

    double = False
    writes: bool | None = None  # to its parameters or buffers; None: not yet known
    compiled: Any = None
    may_compile = True  # until that has failed
    format_checked = False  # whether it was tried that windows in channels_last give the same

    def __init__(
        self, call: Callable[[Any], Any], modules: list[Any], device: Any, dtype: str, memory_format: str = "auto"
    ):
        self.call, self.device, self.dtype = call, device, dtype
        self.modules = roots_of(*modules, call)  # also those that nobody sees: once, for the search takes its time
        self.torch = torch_if_loaded()
        self.memory_format = memory_format
        if modules:
            self.double = _device_and_dtype(modules[0])[1] == "float64"  # windows stay float32, it gets float64
            self.in_channels, self.channels_last = _first_convolution(modules[0])
        # Convolutions go by their input: the module's weights need not be touched. A callable may do anything.
        self.alone = bool(modules) and call is modules[0]
        self.may_choose = memory_format == "auto" and self.alone and device.type == "cpu" and not self.channels_last
        if memory_format != "auto":
            self.channels_last = memory_format == "channels_last"
        elif self.may_choose:
            self.channels_last = _mostly_convolutions(modules[0])

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        torch = self.torch
        with torch.inference_mode():
            output = self.run(self._tensor(windows).to(self.device)).cpu()
        return (output.view(torch.uint16) if output.dtype == torch.bfloat16 else output).numpy()

    def _tensor(self, windows: np.ndarray) -> Any:
        tensor = self.torch.from_numpy(windows)
        return tensor.view(self.torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def run(self, windows: Any) -> Any:
        """Outputs (batch, channels, height, width) for windows on the model's device: float32, float16 or bfloat16,
        on that device, any strides."""
        torch = self.torch
        watched = self.writes is not False
        with turns.run(self.modules), tensors_kept(self.modules, watched=watched) as keeping:
            with evaluating(self.modules), torch.inference_mode():
                output = self._called(windows.double() if self.double else windows)
                if isinstance(output, np.ndarray):
                    output = torch.from_numpy(checked_array(output, len(windows)))
                output = self._checked(output, len(windows)).to(self.device)
            if self.writes is None:
                self.writes = keeping.written()
            return output

    @functools.cached_property
    def twin(self) -> Callable[[Any], Any] | None:
        """The module for windows that nobody asked for: the same weights, but attributes of its own, and no hooks of
        the user's. None for what cannot be had twice."""
        if not self.alone:
            return None
        with contextlib.suppress(Exception):  # whatever its parts say
            return without_hooks(shell(self.modules[0])).eval()
        return None

    @functools.cached_property
    def twin_modules(self) -> list[Any]:
        return roots_of(self.twin)

    def probed(self, windows: np.ndarray | Any) -> Any:
        """As `__call__` or `run`, by the twin where there is one: an array for an array, a tensor for a tensor."""
        plain = copy.copy(self)
        plain.compiled = None
        if self.twin is not None:
            plain.call, plain.modules = self.twin, self.twin_modules
        with same_luck(), silence:
            return plain(windows) if isinstance(windows, np.ndarray) else plain.run(windows)

    def keeps_format(self, windows: np.ndarray | Any, rounding: float) -> bool | None:
        """Whether the model gives the same for windows in channels_last and for contiguous ones. None: it takes no such
        windows."""
        outputs, _ = [], self.twin  # made once
        for channels_last in (True, False):
            kind = self.torch.channels_last if channels_last else self.torch.contiguous_format
            tensor = self._tensor(windows) if isinstance(windows, np.ndarray) else windows
            plain = copy.copy(self)
            plain.channels_last, plain.may_choose = channels_last, False
            try:
                outputs.append(plain.probed(tensor.contiguous(memory_format=kind)).float())
            except Exception as error:  # whatever a model raises about windows that it does not take
                if channels_last and ABOUT_LAYOUT.search(full_text(error)):
                    return False
                return None
        last, plain_one = outputs
        if last.shape != plain_one.shape:
            return False
        finite = plain_one.isfinite()
        if not self.torch.equal(finite, last.isfinite()):
            return False
        apart, size = (last - plain_one)[finite].abs(), plain_one[finite].abs()
        return not apart.numel() or float(apart.max()) <= rounding * max(float(size.max()), 1e-30)

    def compile(self) -> None:
        """Runs the module compiled from now on. The first call with windows of a shape takes seconds."""
        if self.compiled is None and self.may_compile:
            self.compiled = self.torch.compile(self.modules[0], dynamic=False)

    def _called(self, windows: Any) -> Any:
        if self.compiled is not None:
            try:
                return self.compiled(windows if self.channels_last else windows.contiguous())
            except Exception as error:  # of torch's compilers: every kind
                text = f"compile=True failed, the model runs as it is: {named(error)}"
                warnings.warn(text, RuntimeWarning, stacklevel=frames_inside())
                self.compiled, self.may_compile = None, False
        return self._called_plainly(windows)

    def _called_plainly(self, windows: Any) -> Any:
        """Of what it was not asked for, a model that is written for contiguous tensors must not fail."""
        if not (self.may_choose and self.channels_last):
            return self.call(windows if self.channels_last or not self.may_choose else windows.contiguous())
        try:
            return self.call(windows)
        except RuntimeError as error:
            if not ABOUT_LAYOUT.search(full_text(error)):
                raise
        self.may_choose = self.channels_last = False
        return self.call(windows.contiguous())

    def _checked(self, output: Any, batch: int) -> Any:
        torch = self.torch
        if not isinstance(output, torch.Tensor):
            raise BadOutput(f"the model returned {_kind(output)}, not one tensor {AXES}{_picked(output)}")
        if output.ndim != 4 or output.shape[0] != batch or 0 in output.shape:
            kind = EmptyOutput if output.ndim == 4 and output.shape[0] == batch else BadOutput
            raise kind(
                f"the model returned a tensor of shape {tuple(output.shape)}, not ({batch}, channels, height, width)"
            )
        if output.layout != torch.strided:
            raise BadOutput(f"the model returned a tensor of layout {output.layout}, not a dense one")
        if output.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise BadOutput(f"the model returned a tensor of dtype {output.dtype}, not a floating one")
        output = output.detach().resolve_neg()
        return output.float() if output.dtype == torch.float64 else output


class EitherModel(Model):
    """A callable on arrays or on tensors, who knows: the likelier kind is tried on the first batch, then the other."""

    def __init__(self, likely: Model, other: Model):
        super().__init__(likely.call)
        self.candidates = [likely, other]
        self.modules = [*likely.modules, *other.modules]
        self.in_channels = likely.in_channels or other.in_channels

    @property
    def chosen(self) -> Model:
        """The kind that it turned out to be; itself before the first batch."""
        return self if len(self.candidates) > 1 else self.candidates[0]

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        likely, *others = self.candidates
        if not others:
            return likely(windows)
        try:
            output = likely(windows.copy())  # it may change its input before it fails
        except (TypeError, AttributeError, ValueError) as failure:  # what torch says to arrays, and NumPy to tensors
            try:
                output = others[0](windows)
            except Exception as error:  # the model's own, of which one says more
                if ABOUT_KINDS.search(full_text(failure)) and not ABOUT_KINDS.search(full_text(error)):
                    raise
            else:
                self.candidates = others
                return output
            raise
        self.candidates = [likely]
        return output


# ---- which kind it is ------------------------------------------------------------------------------------------------


def open_model(model: Any, *, device: Any, dtype: str | None, tensors: bool, memory_format: str = "auto") -> Model:
    """The Model around the user's model.

    Args:
        device, dtype: as the user gave them; a module that is elsewhere or of another dtype runs as a converted copy.
        tensors: whether a callable of unknown kind gets tensors: the image is one, or an engine for tensors is asked.
        memory_format: of windows: "channels_last", "contiguous", or "auto": channels_last for modules on the CPU that
            consist of convolutions and for those whose weights lie so, contiguous for others.

    Raises:
        TypeError: if it cannot be called.
    """
    if isinstance(model, type):
        raise TypeError(f"model must be a torch module or a callable, not the class {model.__name__}; call it first")
    if not callable(model):
        raise TypeError(f"model must be a torch module or a callable, not {_kind(model)}")
    torch = torch_if_loaded()
    if torch is None:
        if device is not None:
            raise ValueError(f"device must be None for a model on NumPy arrays, not {device!r}")
        return Model(model, dtype or "float32")
    if isinstance(model, torch.nn.Module):
        _refuse_lazy(roots_of(model))
        module = _converted(model, device, dtype)
        own_device, own_dtype = _device_and_dtype(module)
        where = own_device or _default_device(device)
        return TensorModel(module, [module], where, _window_dtype(own_dtype or dtype), memory_format)
    modules = modules_of(model)
    _refuse_lazy(modules)
    own_device, own_dtype = _device_and_dtype(modules[0]) if modules else (None, None)
    where = usable_device(device) or own_device or _default_device(None)
    on_tensors = TensorModel(model, modules, where, _window_dtype(dtype or own_dtype), memory_format)
    elsewhere = bool(modules) and where.type != "cpu"
    if tensors or elsewhere or device is not None or dtype == "bfloat16":
        return on_tensors
    on_arrays = Model(model, dtype or "float32")
    if on_tensors.dtype != on_arrays.dtype:  # a module in half precision
        return on_tensors
    speaks_torch = bool(modules) or _mentions(model, "torch")
    return EitherModel(on_tensors, on_arrays) if speaks_torch else EitherModel(on_arrays, on_tensors)


def _refuse_lazy(modules: list[Any]) -> None:
    """Raises ValueError for modules that get their weights from the first input: no run may decide about those."""
    kind = torch_if_loaded().nn.parameter.UninitializedTensorMixin
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if isinstance(tensor, kind):
                text = f"model must have its weights, and {name} has no size yet"
                raise ValueError(f"{text}: run the module on an input of its own once, and load its weights, before")


def channels_of(model: Any) -> int | None:
    """How many channels a model takes: as inspection found, or its file says, or by the first convolution of the
    modules that it carries, which something else may precede; None if none of them tells."""
    known, torch = getattr(recalled(model), "in_channels", None), torch_if_loaded()
    if known is None and isinstance(getattr(model, "needs", None), Needs):
        known = getattr(model, "channels", None)
    if known is None and torch is not None:
        modules = [model] if isinstance(model, torch.nn.Module) else modules_of(model)
        known = _first_convolution(modules[0])[0] if modules else None
    return known if isinstance(known, int) and known > 0 else None


def modules_of(model: Any) -> list[Any]:
    """The torch modules that a callable carries: its owner, those that it closes over, binds or names."""
    kind = torch_if_loaded().nn.Module
    return list({id(value): value for value in reachable(model) if isinstance(value, kind)}.values())


def _mentions(model: Any, package: str) -> bool:
    """Whether a callable's code names something out of a package."""
    for value in reachable(model):
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.split(".")[0] == package:
            return True
    return False


def _window_dtype(dtype: str | None) -> str:
    return dtype if dtype in NUMPY_WINDOWS else "float32"


# ---- modules ---------------------------------------------------------------------------------------------------------


def _device_and_dtype(module: Any) -> tuple[Any, str | None]:
    """Of the first floating-point parameter or buffer."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor.device, str(tensor.dtype).removeprefix("torch.")
    return (tensors[0].device if tensors else None), None


def usable_device(device: Any) -> Any:
    """The torch.device that is meant; None for None. Raises ValueError."""
    if device is None:
        return None
    torch = torch_if_loaded()
    text = f"device must be one that torch can use here, not {device!r:.80}"
    try:
        asked = torch.device(device)
    except Exception as error:  # whatever torch raises about names and things
        raise ValueError(f"{text}: torch has no such device") from error
    missing = _why_missing(asked)
    if missing is not None:
        raise ValueError(f"{text}: {missing}")
    try:
        return torch.empty(0, device=asked).device
    except Exception as error:  # a driver may raise anything
        raise ValueError(f"{text}: {quoted(error)}") from error


ACCELERATORS = {"mps": "Apple GPU", "cuda": "NVIDIA or AMD GPU", "xpu": "Intel GPU"}


def _why_missing(device: Any) -> str | None:
    """Why torch cannot use a device, as far as it can be asked without trying."""
    torch = torch_if_loaded()
    if device.type == "meta":
        return "meta tensors hold no values"
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    name = ACCELERATORS.get(device.type, f"{device.type} device")
    if hasattr(backend, "is_available") and not backend.is_available():
        return f"this torch sees no {name}"
    count = backend.device_count() if device.index is not None and hasattr(backend, "device_count") else None
    if count is not None and device.index >= count:
        return f"this torch sees {count} {name}{'' if count == 1 else 's'}, counted from 0"
    return None


def _default_device(device: Any) -> Any:
    """The device asked for, else MPS, CUDA, CPU."""
    if device is not None:
        return usable_device(device)
    torch = torch_if_loaded()
    if torch.backends.mps.is_available():
        return usable_device("mps")  # with the index that tensors there have
    return usable_device("cuda" if torch.cuda.is_available() else "cpu")


def _converted(module: Any, device: Any, dtype: str | None) -> Any:
    """The module itself if it is as asked, else a copy on the device and in the dtype."""
    torch = torch_if_loaded()
    device = usable_device(device)
    own_device, own_dtype = _device_and_dtype(module)
    moves = device is not None and own_device is not None and device != own_device
    casts = dtype is not None and own_dtype is not None and dtype != own_dtype
    if not (moves or casts):
        return module
    try:
        return copied(module).to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except Exception as error:  # whatever a module does to stay as it is
        asked = " and ".join(f"{name}={value}" for name, value in (("device", device), ("dtype", dtype)) if value)
        text = f"{asked} asks for a converted copy of model, which cannot be copied: {quoted(error)}"
        raise ValueError(f"{text}; convert it yourself") from error


def _first_convolution(module: Any) -> tuple[int | None, bool]:
    """Input channels of the first convolution, and whether its weights are stored channels-last."""
    torch = torch_if_loaded()
    for inner in module.modules():
        for weight in _weights_of(inner):
            lazy = isinstance(weight, torch.nn.parameter.UninitializedTensorMixin)
            if isinstance(weight, torch.Tensor) and not lazy and weight.ndim == 4:
                last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
                return getattr(inner, "in_channels", None), last
    return None, False


def _weights_of(module: Any) -> Iterator[Any]:
    """What a layer holds under that name, or its parametrization makes it from: nothing is computed."""
    if isinstance(module, torch_if_loaded().jit.ScriptModule):
        yield getattr(module, "weight", None)
        return
    yield vars(module).get("weight")
    yield module._parameters.get("weight")
    parametrized = module._modules.get("parametrizations")
    if parametrized is not None and "weight" in parametrized._modules:
        yield from parametrized._modules["weight"].parameters(recurse=False)


def _mostly_convolutions(module: Any) -> bool:
    """Whether more than half of the weights are those of two-dimensional convolutions, and none has more dimensions."""
    sizes = [(weight.ndim, weight.numel()) for weight in module.parameters()]
    ours = sum(size for dims, size in sizes if dims == 4)
    return all(dims <= 4 for dims, _ in sizes) and 2 * ours > sum(size for _, size in sizes)


_lock = threading.Lock()
_evaluating: dict[int, list[Any]] = {}  # id of a submodule -> [runs inside, its own mode]


@contextlib.contextmanager
def evaluating(modules: list[Any]) -> Iterator[None]:
    """The modules in eval mode. Each submodule's own mode returns with the last of the runs that share it."""
    entered: list[list[Any]] = []
    try:
        with _lock:
            for module in modules:
                entered.append(_note_modes(module))
            for module, inners in zip(modules, entered, strict=True):
                if any(inner.training for inner in inners):
                    with contextlib.suppress(NotImplementedError):  # exported programs have no modes
                        module.eval()  # may change those of others
        yield
    finally:
        with _lock:
            _leave_eval(entered)


def _note_modes(module: Any) -> list[Any]:
    inners = [inner for inner in module.modules() if hasattr(inner, "training")]  # frozen TorchScript has no modes
    for inner in inners:
        _evaluating.setdefault(id(inner), [0, inner.training])[0] += 1
    return inners


def _leave_eval(entered: list[list[Any]]) -> None:
    own: dict[int, bool] = {}
    for inner in (inner for inners in entered for inner in inners):
        entry = _evaluating[id(inner)]
        entry[0] -= 1
        if entry[0] == 0:
            own[id(inner)] = _evaluating.pop(id(inner))[1]
    for inners in entered:
        if inners and own.get(id(inners[0])) and all(id(inner) in own for inner in inners):
            with contextlib.suppress(NotImplementedError):
                inners[0].train()  # may do more than set modes
    for inner in (inner for inners in entered for inner in inners):
        if inner.training != own.get(id(inner), inner.training):
            inner.training = own[id(inner)]
