# SPDX-License-Identifier: MIT
"""ONNX files as models on NumPy arrays, run by ONNX Runtime: `load_onnx`. torch is not needed.

A graph is data, run by ONNX Runtime's own operators. External weights are read only from the graph's folder: ONNX
Runtime refuses paths that lead out of it, including links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..texts import quoted
from .needs import Needs
from .onnx_bounds import check_onnx
from .onnx_ends import end_of, filled, image_among, named_inputs, one_output

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["OnnxModel", "load_onnx"]

INTEGERS = (np.uint8, np.uint16)
# Fastest first, with options that keep float32: CUDA would round to TF32, the neural engine to float16.
PROVIDERS: dict[str, dict[str, str]] = {
    "CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "CPUExecutionProvider": {},
}
SILENT = 4  # failures are raised, so they need not be logged

Provider = str | tuple[str, Mapping[str, object]]


class OnnxModel:
    """A graph that maps one image batch (N, C, H, W), 0 to 1, to one, whatever its own order of axes and types. Its
    integers are 0 to white; its floats are as they are.

    Attributes:
        dtype: dtype of its input; other windows are converted.
        batch: its fixed batch size, or None. Other batches are split.
        needs: its size constraints.
        providers: the execution providers in use.
        path: its file, if known.
    """

    def __init__(
        self, session: InferenceSession, path: str | None = None, output: int | str | None = None, extra: Any = None
    ):
        self.session, self.path = session, path
        self.inputs = [end_of(node) for node in session.get_inputs()]
        self.outputs = [end_of(node) for node in session.get_outputs()]
        self.extra = named_inputs(self.inputs, extra)
        self.image, self.made = image_among(self.inputs, self.extra), one_output(self.outputs, output)
        self.channels_last = bool(self.image.channels_last)
        self.dtype = self.image.dtype
        self.batch, self.channels, height, width = _first(self.image.shape, self.channels_last)
        made = self.made.shape if self.made is not None and len(self.made.shape) == 4 else (None,) * 4
        self.needs = _needs((height, width), _first(made, self._made_last())[2:])
        self.providers: list[str] = session.get_providers()

    def with_choice(self, output: int | str | None, extra: Any) -> OnnxModel:
        """The model with an output picked and further inputs given: see `halotile.models.chosen.with_choice`.

        Raises:
            ValueError: there is no such output or input, or one that has to be given is not.
        """
        model = self if output is None and extra is None else OnnxModel(self.session, self.path, output, extra)
        if model.made is None:
            names = ", ".join(end.text for end in model.outputs)
            raise ValueError(f"output must say which one of this ONNX graph's outputs is the image: {names}")
        missing = [end for end in model.inputs if end.name not in model.extra and end is not model.image]
        if missing:
            names = ", ".join(end.text for end in missing)
            raise ValueError(f"extra must have further inputs of this ONNX graph: {names}")
        return model

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Outputs (N, C', H', W') for windows (N, C, H, W). Raises ValueError for unsupported sizes."""
        self._check(windows.shape)
        taken = self._taken(windows)
        step = self.batch or len(windows)
        parts = [self._run(taken[start : start + step], step) for start in range(0, len(taken), step)]
        return self._given(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _taken(self, windows: np.ndarray) -> np.ndarray:
        """Windows as the graph takes them."""
        peak = self.image.peak
        if peak is not None:
            windows = np.rint(np.clip(windows, 0, 1) * np.float32(peak))
        if self.channels_last:
            windows = windows.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(windows, self.dtype)

    def _given(self, output: np.ndarray) -> np.ndarray:
        """What the graph made, as floats (N, C, H, W)."""
        if self._made_last() and output.ndim == 4:
            output = output.transpose(0, 3, 1, 2)
        if output.dtype in INTEGERS:
            output = output.astype(np.float32) / np.iinfo(output.dtype).max
        return output

    def _made_last(self) -> bool:
        """Whether channels come last in what the graph makes: as in what it takes, where its shape does not tell."""
        told = None if self.made is None else self.made.channels_last
        return self.channels_last if told is None else told

    def _check(self, shape: tuple[int, ...]) -> None:
        wanted = (None, self.channels, *self.needs.window)
        if len(shape) != 4 or any(want not in (None, got) for want, got in zip(wanted, shape, strict=True)):
            sides = "x".join("any" if side is None else str(side) for side in wanted[1:])
            got = "x".join(map(str, shape[1:]))
            raise ValueError(f"the ONNX graph takes windows of {sides} (channels x height x width), not {got}")

    def _run(self, part: np.ndarray, step: int) -> np.ndarray:
        missing = step - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        sides = _first(full.shape, self.channels_last)
        ends = {end.name: end for end in self.inputs}
        others = {name: filled(value, ends[name], sides, self.channels_last) for name, value in self.extra.items()}
        made = self.outputs[0] if self.made is None else self.made
        return self.session.run([made.name], {self.image.name: full, **others})[0][: len(part)]

    def __repr__(self) -> str:
        made = "several" if self.made is None else repr(self.made.name)
        return f"OnnxModel({self.image.name!r} to {made}, {self.dtype}, {self.needs}, {', '.join(self.providers)})"


def load_onnx(path: str, providers: Sequence[Provider] | None = None) -> OnnxModel:
    """The model of an .onnx file.

    Args:
        path: the file. External weight files must be in its folder.
        providers: ONNX Runtime's execution providers by name or as (name, options), in order of preference. None: those
            available of CoreML, CUDA and CPU, in full float32.

    Raises:
        ValueError: the file is damaged or takes no batch of images, (batch, channels, height, width) or with channels
            last, or a provider is not available.
        ImportError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX files need onnxruntime: pip install 'halotile[onnx]' ({quoted(error)})") from error
    check_onnx(path)
    chosen = _chosen(providers, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=chosen)
    except Exception as error:  # its error classes share no base class
        raise ValueError(f"it is not an ONNX file that can be run: {quoted(error)}") from error
    return OnnxModel(session, path)


def _chosen(providers: Sequence[Provider] | None, available: Sequence[str]) -> list[Provider]:
    if providers is None:
        return [(name, options) for name, options in PROVIDERS.items() if name in available]
    if isinstance(providers, str) or not providers:
        raise ValueError(f"providers must be a list of names, not {providers!r}")
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise ValueError(f"provider {name!r} is not available (available: {', '.join(available)})")
    return list(providers)


T = TypeVar("T")


def _first(sides: Sequence[T], channels_last: bool) -> tuple[T, T, T, T]:
    """Batch, channels, height, width."""
    batch, *rest = sides
    one, two, three = rest
    return (batch, three, one, two) if channels_last else (batch, one, two, three)


def _needs(window: tuple[int | None, int | None], made: Sequence[int | None]) -> Needs:
    """made: the output's (height, width), None where variable. If it is not a multiple of the window, the scale is
    unknown."""
    sides = zip(made, window, strict=True)
    factors = {out / side for out, side in sides if out is not None and side is not None}
    factor = factors.pop() if len(factors) == 1 else 0
    return Needs(window=window, scale=int(factor) if factor >= 1 and factor == int(factor) else None)
