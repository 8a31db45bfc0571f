# SPDX-License-Identifier: MIT
"""ONNX files as models on NumPy arrays, run by ONNX Runtime: `load_onnx`. torch is not needed.

A graph is data, run by ONNX Runtime's own operators. External weights are read only from the graph's folder: ONNX
Runtime refuses paths that lead out of it, including links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..texts import quoted
from .needs import Needs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

__all__ = ["OnnxModel", "load_onnx"]

DTYPES: dict[str, np.dtype] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
COLOURS = (1, 2, 3, 4)  # channel counts of images
# Fastest first, with options that keep float32: CUDA would round to TF32, the neural engine to float16.
PROVIDERS: dict[str, dict[str, str]] = {
    "CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "CPUExecutionProvider": {},
}
SILENT = 4  # failures are raised, so they need not be logged

Provider = str | tuple[str, Mapping[str, object]]


class OnnxModel:
    """A graph that maps one image batch (N, C, H, W) to one.

    Attributes:
        dtype: dtype of its input; other windows are converted.
        batch: its fixed batch size, or None. Other batches are split.
        needs: its size constraints.
        providers: the execution providers in use.
        path: its file, if known.
    """

    def __init__(self, session: InferenceSession, path: str | None = None):
        taken, made = _only(session.get_inputs(), "inputs"), _only(session.get_outputs(), "outputs")
        shape = _checked_shape(taken)
        self.session, self.input, self.output, self.path = session, taken.name, made.name, path
        self.dtype = DTYPES[taken.type]
        self.batch, self.channels, *size = shape
        self.needs = _needs((size[0], size[1]), [_fixed(side) for side in made.shape or ()])
        self.providers: list[str] = session.get_providers()

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Outputs (N, C', H', W') for windows (N, C, H, W). Raises ValueError for unsupported sizes."""
        windows = np.ascontiguousarray(windows, self.dtype)
        self._check(windows.shape)
        step = self.batch or len(windows)
        parts = [self._run(windows[start : start + step], step) for start in range(0, len(windows), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _check(self, shape: tuple[int, ...]) -> None:
        wanted = (None, self.channels, *self.needs.window)
        if len(shape) != 4 or any(want not in (None, got) for want, got in zip(wanted, shape, strict=True)):
            sides = "x".join("any" if side is None else str(side) for side in wanted[1:])
            got = "x".join(map(str, shape[1:]))
            raise ValueError(f"the ONNX graph takes windows of {sides} (channels x height x width), not {got}")

    def _run(self, part: np.ndarray, step: int) -> np.ndarray:
        missing = step - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        return self.session.run([self.output], {self.input: full})[0][: len(part)]

    def __repr__(self) -> str:
        return f"OnnxModel({self.input!r} to {self.output!r}, {self.dtype}, {self.needs}, {', '.join(self.providers)})"


def load_onnx(path: str, providers: Sequence[Provider] | None = None) -> OnnxModel:
    """The model of an .onnx file.

    Args:
        path: the file. External weight files must be in its folder.
        providers: ONNX Runtime's execution providers by name or as (name, options), in order of preference. None: those
            available of CoreML, CUDA and CPU, in full float32.

    Raises:
        ValueError: the file is damaged or its input is not a batch of float images (batch, channels, height, width), or
            a provider is not available.
        ImportError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"ONNX files need onnxruntime: pip install 'halotile[onnx]' ({quoted(error)})") from error
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


# ---- inputs and outputs of a graph -----------------------------------------------------------------------------------


def _only(ends: Sequence[NodeArg], what: str) -> NodeArg:
    if len(ends) != 1:
        names = ", ".join(end.name[:60] for end in ends[:8])
        raise ValueError(f"the ONNX graph has {len(ends)} {what} and must have one: {names}")
    return ends[0]


def _fixed(side: object) -> int | None:
    """The side if it is fixed, else None: variable sides have a name, or no value."""
    return side if isinstance(side, int) and side > 0 else None


def _checked_shape(taken: NodeArg) -> list[int | None]:
    """Batch, channels, height, width; None where variable. Raises ValueError unless the input is an image batch."""
    described = f"the ONNX graph takes {taken.name[:60]!r}, {taken.type} {list(taken.shape or ())}"
    shape = [_fixed(side) for side in taken.shape or ()]
    if len(shape) != 4:
        raise ValueError(f"{described}, not images (batch, channels, height, width)")
    if shape[3] in COLOURS and shape[1] not in COLOURS:
        raise ValueError(f"{described}: that is (batch, height, width, channels), but channels must come second")
    if taken.type not in DTYPES:
        raise ValueError(f"{described}, but must take float or float16")
    return shape


def _needs(window: tuple[int | None, int | None], made: list[int | None]) -> Needs:
    """made: the output's shape, None where variable. If it is not a multiple of the window, the scale is unknown."""
    sides = zip(made[2:4], window, strict=False)
    factors = {out / side for out, side in sides if out is not None and side is not None}
    factor = factors.pop() if len(factors) == 1 else 0
    return Needs(window=window, scale=int(factor) if factor >= 1 and factor == int(factor) else None)
