# SPDX-License-Identifier: MIT
"""The two files as they are written: a line of settings for each layer, and weights in the order of the layers."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

__all__ = ["ANY_COUNT", "SAME_LOWER", "SAME_UPPER", "UNSET", "Layer", "Weights", "read_layers"]

MAGIC = "7767517"
# What weights may be stored as: https://github.com/Tencent/ncnn, src/modelbin.cpp.
FLOAT32_TAGS, FLOAT16_TAG, INT8_TAG = (0, 0x0002C056), 0x01306B47, 0x000D4B38
ANY_COUNT = 2**31 - 1
LARGEST = 4096  # of paddings, strides, crops and scales: what is beyond is no model, and would take all memory
UNSET = -233  # ncnn's "not given"
SAME_UPPER, SAME_LOWER = -233, -234  # as the padding of a convolution
HINTS = (30, 31)  # shapes and features that ncnn's tools leave behind: they change no result


class Layer:
    """A line of a .param file: kind, name, blobs read and written, numbered settings."""

    def __init__(self, words: list[str]):
        if len(words) < 4:
            raise ValueError(f"the .param file has the line {' '.join(words)[:60]!r}, which describes no layer")
        self.kind, self.name = words[:2]
        reads, writes = (self._count(word) for word in words[2:4])
        blobs, settings = words[4 : 4 + reads + writes], words[4 + reads + writes :]
        if len(blobs) != reads + writes or any("=" in blob for blob in blobs):
            raise ValueError(f"{self} announces {reads} inputs and {writes} outputs, and does not name them")
        self.inputs, self.outputs = blobs[:reads], blobs[reads:]
        self.settings = self._settings(settings)
        self.asked = set(HINTS)

    def __str__(self) -> str:
        return f"layer {self.name[:60]} ({self.kind[:60]})"

    def _count(self, word: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", word):
            raise ValueError(f"{self} must tell how many inputs and outputs it has, not {word[:60]!r}")
        return int(word)

    def _settings(self, words: list[str]) -> dict[int, list[float]]:
        """Arrays have keys from -23300 downwards and say their length first: -23303=2,0.1,0.2 is number 3."""
        settings: dict[int, list[float]] = {}
        for word in words:
            key, _, text = word.partition("=")
            try:
                number, values = int(key), [float(value) for value in text.split(",")]
            except ValueError:
                raise ValueError(f"{self} has the setting {word[:60]!r}, which is not understood") from None
            is_array = number <= -23300
            number = -number - 23300 if is_array else number
            length = values.pop(0) if is_array else 1
            if length != len(values) or number < 0 or number in settings or not all(map(math.isfinite, values)):
                raise ValueError(f"{self} has the setting {word[:60]!r}, which is not understood")
            settings[number] = values
        return settings

    def number(self, key: int, default: float = 0.0) -> float:
        values = self.numbers(key) or [default]
        if len(values) != 1:
            raise ValueError(f"{self}: parameter {key} must be one number, not {len(values)}")
        return values[0]

    def whole(self, key: int, default: int = 0, least: int = 0, most: int = LARGEST) -> int:
        """ncnn also writes whole numbers as 4.000000e+00."""
        value = float(self.number(key, default))
        if key not in self.settings or value == default == UNSET:
            return default
        if not value.is_integer():
            raise ValueError(f"{self}: parameter {key} is {value:g}, and must be a whole number")
        if not least <= value <= most:
            raise ValueError(f"{self}: parameter {key} is {value:g}, and must be from {least:g} to {most:g}")
        return int(value)

    def numbers(self, key: int) -> list[float]:
        self.asked.add(key)
        return self.settings.get(key, [])

    def wholes(self, key: int) -> list[int]:
        values = self.numbers(key)
        if not all(value.is_integer() for value in values):
            raise ValueError(f"{self}: parameter {key} must be whole numbers")
        return [int(value) for value in values]

    def refuse(self, key: int, what: str) -> None:
        if any(self.numbers(key)):
            raise ValueError(f"{self} has {what}, which is not supported")

    def wires(self, inputs: tuple[float, float], outputs: tuple[float, float] = (1, 1)) -> None:
        """Raises ValueError unless (least, most) blobs are read and written."""
        for blobs, (least, most), verb in ((self.inputs, inputs, "reads"), (self.outputs, outputs, "writes")):
            if not least <= len(blobs) <= most:
                raise ValueError(f"{self} {verb} {len(blobs)} blobs, which such a layer does not")

    def finish(self) -> None:
        """Raises ValueError if there is a setting that nobody asked for and that says something."""
        for key, values in self.settings.items():
            if key not in self.asked and any(values):
                raise ValueError(f"{self}: parameter {key} is not understood")


def read_layers(param: str) -> list[Layer]:
    """The layers of a .param file's text, in order. Raises ValueError for a malformed file."""
    lines = [line.split() for line in param.split("\n") if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise ValueError(f"this is not the text of an ncnn .param file, which starts with {MAGIC}")
    counts = lines[1] if len(lines) > 1 else []
    if len(counts) != 2 or not all(re.fullmatch("[0-9]{1,10}", word) for word in counts):
        raise ValueError("the .param file must tell in its second line how many layers and blobs it has")
    if int(counts[0]) != len(lines) - 2:
        raise ValueError(f"the .param file announces {counts[0]} layers and holds {len(lines) - 2}")
    return [Layer(words) for words in lines[2:]]


class Weights:
    """Reads a .bin file front to back."""

    def __init__(self, data: bytes):
        self.data, self.position = memoryview(data).cast("B"), 0

    def take(self, count: int, layer: Layer, dtype: str = "<f4") -> Tensor:
        """The next numbers as float32. Raises ValueError where the file ends early."""
        end = self.position + count * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ValueError(f"the .bin file ends inside {layer}: {end} bytes are needed, it has {len(self.data)}")
        numbers = np.frombuffer(self.data, dtype, count, self.position)
        self.position = end
        return torch.from_numpy(numbers.astype(np.float32))

    def take_tagged(self, count: int, layer: Layer) -> Tensor:
        """The next weights behind the four bytes that tell how they are stored, which is checked."""
        tag = int.from_bytes(self.data[self.position : self.position + 4], "little")
        self.take(1, layer)
        if tag == INT8_TAG:
            raise ValueError(f"{layer} has int8 weights, and only float32 and float16 are read")
        if tag not in (*FLOAT32_TAGS, FLOAT16_TAG):
            raise ValueError(f"{layer} has quantised weights (tag {tag:#010x}), and only float32 and float16 are read")
        numbers = self.take(count, layer, "<f2" if tag == FLOAT16_TAG else "<f4")
        self.take(-self.position % 4, layer, "u1")
        return numbers

    def finish(self) -> None:
        if self.position != len(self.data):
            raise ValueError(f"the .bin file has {len(self.data)} bytes and the layers need {self.position}")
