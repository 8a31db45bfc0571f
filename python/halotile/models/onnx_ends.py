# SPDX-License-Identifier: MIT
"""Inputs and outputs of an ONNX graph: which is the image, how its axes lie, what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import NodeArg

__all__ = ["End", "end_of", "filled", "image_among", "named_inputs", "one_output"]

FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
INTEGERS = {"tensor(uint8)": "uint8", "tensor(uint16)": "uint16"}
NUMBERS = FLOATS | INTEGERS | {"tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
COLOURS = (1, 2, 3, 4)  # channel counts of images
NAMES = 8  # names in an error, and their longest
LONGEST = 60


@dataclass(frozen=True)
class End:
    """An input or output.

    Attributes:
        shape: sides that are fixed, else None.
        kind: ONNX's name of its type.
    """

    name: str
    shape: tuple[int | None, ...]
    kind: str
    text: str

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(NUMBERS.get(self.kind, "float32"))

    @property
    def peak(self) -> int | None:
        """White of an image of integers."""
        return int(np.iinfo(self.dtype).max) if self.kind in INTEGERS else None

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 4 and self.kind in FLOATS | INTEGERS

    @property
    def channels_last(self) -> bool | None:
        """Whether channels come last; None if the shape does not tell."""
        if len(self.shape) != 4 or (self.shape[1] in COLOURS) == (self.shape[3] in COLOURS):
            return None
        return self.shape[3] in COLOURS


def end_of(node: NodeArg) -> End:
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in node.shape or ())
    return End(node.name, shape, node.type, f"{node.name[:LONGEST]!r}, {node.type} {list(node.shape or ())}")


def image_among(inputs: Sequence[End], extra: Mapping[str, Any]) -> End:
    """The first input that may be an image and is not given otherwise. Raises ValueError if there is none."""
    left = [end for end in inputs if end.name not in extra]
    for end in left:
        if end.is_image:
            return end
    what = left[0].text if left else "nothing else"
    text = f"the ONNX graph takes {what}, not images (batch, channels, height, width)"
    raise ValueError(f"{text} of float, float16, double, uint8 or uint16")


def named_inputs(inputs: Sequence[End], extra: Any) -> dict[str, Any]:
    """Further inputs by name. Those in order are what is left after the first input that may be an image."""
    names = [end.name for end in inputs]
    if isinstance(extra, Mapping):
        for name in extra:
            if name not in names:
                known = ", ".join(one[:LONGEST] for one in names[:NAMES])
                raise ValueError(f"extra must have names of the ONNX graph's inputs, {known}, not {name!r}")
        return dict(extra)
    values = () if extra is None else tuple(extra) if isinstance(extra, tuple | list) else (extra,)
    image = image_among(inputs, {})
    others = [name for name in names if name != image.name]
    if len(values) > len(others):
        raise ValueError(f"extra must have at most {len(others)} inputs for this ONNX graph, not {len(values)}")
    return dict(zip(others, values, strict=False))


def one_output(outputs: Sequence[End], key: int | str | None) -> End | None:
    """The output that is the image: the one asked for, or the only one that may be one; None in doubt.

    Raises:
        ValueError: there is no such output.
    """
    if key is None:
        images = [end for end in outputs if end.is_image] or list(outputs)
        return images[0] if len(images) == 1 else None
    by_name = {end.name: end for end in outputs}
    if isinstance(key, str) and key in by_name:
        return by_name[key]
    if isinstance(key, int) and -len(outputs) <= key < len(outputs):
        return outputs[key]
    names = ", ".join(repr(end.name[:LONGEST]) for end in outputs[:NAMES])
    raise ValueError(f"output must be one of {names} for this ONNX graph, or its index, not {key!r}")


def filled(value: Any, end: End, windows: Sequence[int], channels_last: bool) -> np.ndarray:
    """A further input for a batch of windows (N, C, H, W): a number fills the shape that the graph asks for, an array
    whose first axis is of one is that for each window."""
    array = np.asarray(value, end.dtype)
    if array.ndim == 0 and end.shape:
        batch, _, height, width = windows
        like = (batch, height, width, 1) if channels_last else (batch, 1, height, width)
        free = like if len(end.shape) == 4 else (batch, *[1] * (len(end.shape) - 1))
        return np.full([side or own for side, own in zip(end.shape, free, strict=True)], array)
    if array.ndim and array.shape[0] == 1 and end.shape and end.shape[0] is None:
        return np.ascontiguousarray(np.broadcast_to(array, (windows[0], *array.shape[1:])))
    return array
