# SPDX-License-Identifier: MIT
"""Models of every kind, called on a batch of windows.

Windows and outputs are NumPy arrays (batch, channels, height, width) of float32, float16, or uint16 with the bits of
bfloat16. A `TensorModel` also takes and returns tensors.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import frames_inside
from ..fragile import dense, moved
from ..optional import torch_if_loaded
from ..texts import full_text, named
from .around import preserved_rng, silence
from .grads import Grads
from .modes import evaluating
from .modules import device_and_dtype, first_convolution, mostly_convolutions
from .outputs import checked_array, checked_tensor
from .reach import roots_of
from .untouched.copies import shell, without_hooks
from .untouched.kept import tensors_kept
from .untouched.turns import turns

if TYPE_CHECKING:
    import torch

    Windows = TypeVar("Windows", np.ndarray, torch.Tensor)

__all__ = ["NUMPY_WINDOWS", "EitherModel", "Model", "TensorModel", "nearly_equal"]

NUMPY_WINDOWS: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
# torch's errors about tensors that are not contiguous.
ABOUT_LAYOUT = re.compile(r"view size is not compatible|contiguous", re.IGNORECASE)
# torch's errors about arrays, and NumPy's about tensors.
ABOUT_KINDS = re.compile(r"numpy|ndarray|'Tensor' object|got Tensor")


class Model:
    """A model that takes and returns NumPy arrays.

    Attributes:
        dtype: dtype of its windows: float32, float16 or bfloat16.
        in_channels: its input channels; None if only a run can tell.
        channels_last: whether its windows have interleaved channels in memory.
        modules: the torch modules that it runs.
        device: where it runs; None for the CPU, as NumPy has it.
        compiled: the module as torch.compile made it; None where it runs as it was written.
        alone: whether it is a module itself, not a callable around one.
        may_choose: whether the run may choose the memory format of its windows.
    """

    device: torch.device | None = None
    compiled: Callable[[torch.Tensor], object] | None = None
    alone = False
    may_choose = False
    call: Callable[[Any], Any]
    in_channels: int | None = None
    channels_last = False
    modules: Sequence[torch.nn.Module] = ()

    def __init__(self, call: Callable[[np.ndarray], object], dtype: str = "float32"):
        if dtype == "bfloat16":
            raise ValueError("dtype must not be bfloat16 for a model on NumPy arrays: NumPy has no such dtype")
        self.call = call
        self.dtype = dtype

    def new_windows(self, batch: int, channels: int, height: int, width: int) -> np.ndarray:
        """Uninitialised windows in the format that the model takes."""
        dtype = NUMPY_WINDOWS[self.dtype]
        if self.channels_last:
            return np.empty((batch, height, width, channels), dtype).transpose(0, 3, 1, 2)
        return np.empty((batch, channels, height, width), dtype)

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        return checked_array(self.call(windows), len(windows))

    def compile(self) -> None:
        """Only torch modules are compiled: options that ask for it elsewhere are refused before."""

    @property
    def window_format(self) -> str:
        """The memory format of its windows."""
        return "channels_last" if self.channels_last else "contiguous"


class TensorModel(Model):
    """A model that takes and returns tensors: a module, or a callable that runs modules."""

    double = False
    writes: bool | None = None  # whether it writes to its parameters or buffers; None before the first run
    may_compile = True  # False once compiling has failed
    format_checked = False  # whether `keeps_format` was called

    def __init__(
        self,
        call: Callable[[torch.Tensor], object],
        modules: list[torch.nn.Module],
        device: torch.device,
        dtype: str,
        memory_format: str = "auto",
    ):
        self.call, self.device, self.dtype = call, device, dtype
        self.modules = roots_of(*modules, call)  # also hidden ones; once, because the search is slow
        self.torch = torch_if_loaded()
        self.memory_format = memory_format
        self.grads = Grads()
        if modules:
            self.double = device_and_dtype(modules[0])[1] == "float64"  # its windows are float32, and converted
            self.in_channels, self.channels_last = first_convolution(modules[0])
        self.alone = bool(modules) and call is modules[0]  # a module, not a callable that runs some
        self.may_choose = memory_format == "auto" and self.alone and device.type == "cpu" and not self.channels_last
        # Convolutions follow the format of their input, whatever that of their weights. A callable may do anything.
        if memory_format != "auto":
            self.channels_last = memory_format == "channels_last"
        elif self.may_choose:
            self.channels_last = mostly_convolutions(modules[0])

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        return self.array_of(self.run(self.tensor_of(windows)))

    def tensor_of(self, windows: np.ndarray) -> torch.Tensor:
        """Windows on the model's device, in its dtype; shares their memory on a CPU."""
        tensor = self.torch.from_numpy(windows)
        tensor = tensor.view(self.torch.bfloat16) if self.dtype == "bfloat16" else tensor
        return moved(tensor, self.device)

    def array_of(self, output: torch.Tensor) -> np.ndarray:
        """An output as an array; uint16 has the bits of bfloat16."""
        output = dense(output).cpu()
        return (output.view(self.torch.uint16) if output.dtype == self.torch.bfloat16 else output).numpy()

    def run(self, windows: torch.Tensor) -> torch.Tensor:
        """Outputs for windows on the model's device: (batch, channels, height, width), float32, float16 or bfloat16, on
        that device, with any strides."""
        watched = self.writes is not False
        with turns.run(self.modules), tensors_kept(self.modules, watched=watched) as saved:
            with evaluating(self.modules):
                output = self.grads.run(self._output_of, windows, self.modules)
            if self.writes is None:
                self.writes = saved.written()
            return output

    def _output_of(self, windows: torch.Tensor) -> torch.Tensor:
        output = self._called(windows.double() if self.double else windows)
        if isinstance(output, np.ndarray):
            output = self.torch.from_numpy(checked_array(output, len(windows)))
        return checked_tensor(output, len(windows)).to(self.device)

    def output_of(self, output: torch.Tensor) -> torch.Tensor:
        """What the model returned, in a dtype that `run` returns, on its device."""
        return checked_tensor(output, len(output)).to(self.device)

    @functools.cached_property
    def twin(self) -> torch.nn.Module | None:
        """A copy for runs that the user did not ask for: it shares the weights, has its own attributes, and lacks the
        user's hooks. None for callables and for modules that cannot be copied."""
        if not self.alone:
            return None
        with contextlib.suppress(Exception):  # its parts may raise anything
            return without_hooks(shell(self.modules[0])).eval()
        return None

    @functools.cached_property
    def twin_modules(self) -> list[torch.nn.Module]:
        return roots_of(self.twin)

    def for_trials(self) -> TensorModel:
        """The model through its twin, if there is one; not compiled, with a memory format of its own."""
        _ = self.twin  # made once, before `self` is copied
        plain = copy.copy(self)
        plain.compiled = None
        if self.twin is not None:
            plain.call, plain.modules = self.twin, self.twin_modules
        return plain

    def probed(self, windows: Windows) -> Windows:
        """`__call__` on an array or `run` on a tensor, by the twin if there is one."""
        plain = self.for_trials()
        with preserved_rng, silence:
            return plain(windows) if isinstance(windows, np.ndarray) else plain.run(windows)

    def keeps_format(self, windows: np.ndarray | torch.Tensor, rounding: float) -> bool | None:
        """Whether windows in channels_last and contiguous ones give the same output, but for rounding (relative). None
        if the model fails on the windows."""
        _ = self.twin  # made once, before `self` is copied
        tensor = self.tensor_of(windows) if isinstance(windows, np.ndarray) else windows
        try:
            last = self._probed_in(tensor, channels_last=True)
        except Exception as error:  # a model may raise anything
            return False if ABOUT_LAYOUT.search(full_text(error)) else None
        try:
            contiguous = self._probed_in(tensor, channels_last=False)
        except Exception:
            return None
        return nearly_equal(last, contiguous, rounding)

    def _probed_in(self, windows: torch.Tensor, channels_last: bool) -> torch.Tensor:
        kind = self.torch.channels_last if channels_last else self.torch.contiguous_format
        plain = copy.copy(self)
        plain.channels_last, plain.may_choose = channels_last, False
        return plain.probed(windows.contiguous(memory_format=kind)).float()

    def compile(self) -> None:
        """Compiles the module for all later runs. The first run at each window shape takes seconds."""
        if self.compiled is None and self.may_compile:
            self.compiled = self.torch.compile(self.modules[0], dynamic=False)

    def _called(self, windows: torch.Tensor) -> object:
        if self.compiled is not None:
            try:
                return self.compiled(windows if self.channels_last else windows.contiguous())
            except Exception as error:  # torch's compilers raise many kinds
                text = f"compile=True failed, the model runs as it is: {named(error)}"
                warnings.warn(text, RuntimeWarning, stacklevel=frames_inside())
                self.compiled, self.may_compile = None, False
        return self._called_plainly(windows)

    def _called_plainly(self, windows: torch.Tensor) -> object:
        """Uncompiled. If channels_last, the default choice, fails, windows are contiguous from then on."""
        if not (self.may_choose and self.channels_last):
            return self.call(windows if self.channels_last or not self.may_choose else windows.contiguous())
        try:
            return self.call(windows)
        except RuntimeError as error:
            if not ABOUT_LAYOUT.search(full_text(error)):
                raise
        self.may_choose = self.channels_last = False
        return self.call(windows.contiguous())


def nearly_equal(output: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    """Whether the same values are finite, and differ by no more than rounding times the largest."""
    if output.shape != other.shape:
        return False
    finite = other.isfinite()
    if not finite.equal(output.isfinite()):
        return False
    apart, size = (output - other)[finite].abs(), other[finite].abs()
    return not apart.numel() or float(apart.max()) <= rounding * max(float(size.max()), 1e-30)


class EitherModel(Model):
    """A callable that takes either arrays or tensors: the first batch decides, with the likelier kind tried first."""

    def __init__(self, likely: Model, other: Model):
        super().__init__(likely.call)
        self.candidates = [likely, other]
        self.modules = [*likely.modules, *other.modules]
        self.in_channels = likely.in_channels or other.in_channels

    @property
    def chosen(self) -> Model:
        """The model of the kind that works; itself before the first batch."""
        return self if len(self.candidates) > 1 else self.candidates[0]

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        likely, *others = self.candidates
        if not others:
            return likely(windows)
        try:
            output = likely(windows.copy())  # a copy: it may write to its input before it fails
        except (TypeError, AttributeError, ValueError) as failure:  # as torch raises for arrays, and NumPy for tensors
            try:
                output = others[0](windows)
            except Exception as error:  # raise the one that is about the model
                if ABOUT_KINDS.search(full_text(failure)) and not ABOUT_KINDS.search(full_text(error)):
                    raise
            else:
                self.candidates = others
                return output
            raise
        self.candidates = [likely]
        return output
