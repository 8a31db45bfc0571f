# SPDX-License-Identifier: MIT
"""Reads both files: layers with their settings from the .param file, weights from the .bin file."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

__all__ = ["ANY_COUNT", "SAME_LOWER", "SAME_UPPER", "UNSET", "Layer", "Weights", "read_layers"]

MAGIC = "7767517"
MOST_LAYERS = 10_000
# How weights are stored: https://github.com/Tencent/ncnn, src/modelbin.cpp.
FLOAT32_TAGS, FLOAT16_TAG, INT8_TAG = (0, 0x0002C056), 0x01306B47, 0x000D4B38
ANY_COUNT = 2**31 - 1
LARGEST = 1024  # padding, stride, crop or scale; larger ones would exhaust memory
UNSET = -233  # ncnn's "not set"
SAME_UPPER, SAME_LOWER = -233, -234  # as the padding of a convolution: the output is as large as the input
HINTS = (30, 31)  # shapes and features that ncnn's tools record; results do not depend on them


class Layer:
    """A line of a .param file: kind, name, input and output blobs, numbered settings."""

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
        self.used = set(HINTS)

    def __str__(self) -> str:
        return f"layer {self.name[:60]} ({self.kind[:60]})"

    def _count(self, word: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", word):
            raise ValueError(f"{self} must tell how many inputs and outputs it has, not {word[:60]!r}")
        return int(word)

    def _settings(self, words: list[str]) -> dict[int, list[float]]:
        """Setting n is ``n=value``, or ``-(23300 + n)=length,values`` for an array: -23303=2,0.1,0.2 is number 3."""
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
        """A setting, or the default. Raises ValueError for an array."""
        values = self.numbers(key) or [default]
        if len(values) != 1:
            raise ValueError(f"{self}: parameter {key} must be one number, not {len(values)}")
        return values[0]

    def whole(self, key: int, default: int = 0, least: int = 0, most: int = LARGEST) -> int:
        """An integer setting within limits, or the default. ncnn also writes integers as 4.000000e+00."""
        value = float(self.number(key, default))
        if key not in self.settings or value == default == UNSET:
            return default
        if not value.is_integer():
            raise ValueError(f"{self}: parameter {key} is {value:g}, and must be a whole number")
        if not least <= value <= most:
            raise ValueError(f"{self}: parameter {key} is {value:g}, and must be from {least:g} to {most:g}")
        return int(value)

    def numbers(self, key: int) -> list[float]:
        """A setting that is an array; empty if it is not set."""
        self.used.add(key)
        return self.settings.get(key, [])

    def wholes(self, key: int) -> list[int]:
        """A setting that is an array of integers."""
        values = self.numbers(key)
        if not all(value.is_integer() for value in values):
            raise ValueError(f"{self}: parameter {key} must be whole numbers")
        return [int(value) for value in values]

    def refuse(self, key: int, what: str) -> None:
        """Raises ValueError if a setting is not zero. what: its meaning."""
        if any(self.numbers(key)):
            raise ValueError(f"{self} has {what}, which is not supported")

    def wires(self, inputs: tuple[float, float], outputs: tuple[float, float] = (1, 1)) -> None:
        """Raises ValueError unless the layer reads and writes (least, most) blobs."""
        for blobs, (least, most), verb in ((self.inputs, inputs, "reads"), (self.outputs, outputs, "writes")):
            if not least <= len(blobs) <= most:
                raise ValueError(f"{self} {verb} {len(blobs)} blobs, which such a layer does not")

    def finish(self) -> None:
        """Raises ValueError if a setting other than zero was not used."""
        for key, values in self.settings.items():
            if key not in self.used and any(values):
                raise ValueError(f"{self}: parameter {key} is not understood")


def read_layers(param: str) -> list[Layer]:
    """The layers in the text of a .param file, in order. Raises ValueError if it is malformed."""
    lines = [line.split() for line in param.split("\n") if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise ValueError(f"this is not the text of an ncnn .param file, which starts with {MAGIC}")
    counts = lines[1] if len(lines) > 1 else []
    if len(counts) != 2 or not all(re.fullmatch("[0-9]{1,10}", word) for word in counts):
        raise ValueError("the .param file must tell in its second line how many layers and blobs it has")
    if len(lines) - 2 > MOST_LAYERS:
        raise ValueError(f"the .param file has {len(lines) - 2} layers; at most {MOST_LAYERS} are read")
    if int(counts[0]) != len(lines) - 2:
        raise ValueError(f"the .param file announces {counts[0]} layers and holds {len(lines) - 2}")
    return [Layer(words) for words in lines[2:]]


class Weights:
    """Reads a .bin file from start to end."""

    def __init__(self, data: bytes):
        self.data, self.position = memoryview(data).cast("B"), 0

    def take(self, count: int, layer: Layer, dtype: str = "<f4") -> Tensor:
        """The next numbers as float32. Raises ValueError at the end of the file."""
        end = self.position + count * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ValueError(f"the .bin file ends inside {layer}: {end} bytes are needed, it has {len(self.data)}")
        numbers = np.frombuffer(self.data, dtype, count, self.position)
        self.position = end
        return torch.from_numpy(numbers.astype(np.float32))

    def take_tagged(self, count: int, layer: Layer) -> Tensor:
        """The next weights, stored as the four bytes before them say. Raises ValueError unless float32 or float16."""
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
        """Raises ValueError if bytes are left."""
        if self.position != len(self.data):
            raise ValueError(f"the .bin file has {len(self.data)} bytes and the layers need {self.position}")
