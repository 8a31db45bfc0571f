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
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import frames_inside
from ..optional import torch_if_loaded
from ..texts import full_text, named
from .around import same_luck, silence
from .modes import evaluating
from .modules import device_and_dtype, first_convolution, mostly_convolutions
from .outputs import AXES, BadOutput, EmptyOutput, checked_array, described, how_to_pick
from .reach import roots_of
from .untouched.copies import shell, without_hooks
from .untouched.kept import tensors_kept
from .untouched.turns import turns

__all__ = ["NUMPY_WINDOWS", "EitherModel", "Model", "TensorModel"]

NUMPY_WINDOWS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16)}
# What torch says where a model takes elements in an order that they do not have in memory.
ABOUT_LAYOUT = re.compile(r"view size is not compatible|contiguous", re.IGNORECASE)
# What torch says of arrays, and NumPy of tensors.
ABOUT_KINDS = re.compile(r"numpy|ndarray|'Tensor' object|got Tensor")


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
            self.double = device_and_dtype(modules[0])[1] == "float64"  # windows stay float32, it gets float64
            self.in_channels, self.channels_last = first_convolution(modules[0])
        # Convolutions go by their input: the module's weights need not be touched. A callable may do anything.
        self.alone = bool(modules) and call is modules[0]
        self.may_choose = memory_format == "auto" and self.alone and device.type == "cpu" and not self.channels_last
        if memory_format != "auto":
            self.channels_last = memory_format == "channels_last"
        elif self.may_choose:
            self.channels_last = mostly_convolutions(modules[0])

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
            raise BadOutput(f"the model returned {described(output)}, not one tensor {AXES}{how_to_pick(output)}")
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
