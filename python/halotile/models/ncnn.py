# SPDX-License-Identifier: MIT
"""Models in ncnn's files, read as plain data and run by torch: `load_ncnn`.

Many restoration networks are published for ncnn only. Their two files hold no code: the ``.param`` file is text, with a
layer per line, the ``.bin`` file holds weights in the order of the layers. So a model of unknown origin can be looked
at and run, which a pickled checkpoint does not allow.

What the files say is believed only where the bytes are there. A kind of layer, a setting or a way to store weights that
is not understood is refused by name: a model is read as ncnn runs it, or not at all. Imports torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NcnnModel", "load_ncnn"]

MAGIC = "7767517"
# What weights may be stored as: https://github.com/Tencent/ncnn, src/modelbin.cpp.
FLOAT32_TAGS, FLOAT16_TAG, INT8_TAG = (0, 0x0002C056), 0x01306B47, 0x000D4B38
ANY_COUNT = 2**31 - 1
LARGEST = 4096  # of paddings, strides, crops and scales: what is beyond is no model, and would take all memory
UNSET = -233  # ncnn's "not given"
SAME_UPPER, SAME_LOWER = -233, -234  # as the padding of a convolution
HINTS = (30, 31)  # shapes and features that ncnn's tools leave behind: they change no result


def load_ncnn(param: str, weights: bytes) -> NcnnModel:
    """The model of a ``.param`` file's text and a ``.bin`` file's bytes.

    Returns:
        A module in evaluation mode, without gradients, from one float tensor (N, C, H, W) to one. Its submodules have
        the names of ncnn's layers, as far as submodules may have them.

    Raises:
        ValueError: the files are damaged, do not fit each other, or hold what is not understood: a kind of layer, a
            setting, int8 or quantised weights, more than one input or output.
    """
    data = Weights(weights)
    model = NcnnModel()
    for layer in read_layers(param):
        kind = KINDS.get(layer.kind)
        if kind is None:
            raise ValueError(f"{layer} is of a kind that is not understood")
        module = kind(layer, data)
        layer.finish()
        model.add(layer, module)
    data.finish()
    model.close()
    return model.eval().requires_grad_(False)


class NcnnModel(nn.Module):
    """A graph of layers. `steps`: (submodule's name or None, blobs read, blobs written, blobs needed no more)."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str | None, list[str], list[str], list[str]]] = []
        self.input = self.output = ""
        self.written: set[str] = set()
        self.namesakes: dict[str, int] = {}

    def add(self, layer: Layer, module: nn.Module | None) -> None:
        """Appends a layer; without a module it hands on what it reads. Raises ValueError for impossible wiring."""
        for blob in layer.inputs:
            if blob not in self.written:
                raise ValueError(f"{layer} reads {blob[:60]!r}, which no layer before it writes")
        for blob in layer.outputs:
            if blob in self.written:
                raise ValueError(f"{layer} writes {blob[:60]!r}, which was written before")
            self.written.add(blob)
        if layer.kind == "Input":
            if self.input:
                raise ValueError(f"{layer} is a second input, and the model must have one")
            self.input = layer.outputs[0]
            return
        name = None if module is None else self._free_name(layer.name)
        if name is not None:
            self.add_module(name, module)
        self.steps.append((name, layer.inputs, layer.outputs, []))

    def _free_name(self, wanted: str) -> str:
        name = base = re.sub(r"\W+", "_", wanted).strip("_") or "layer"
        while hasattr(self, name):
            self.namesakes[base] = self.namesakes.get(base, 1) + 1
            name = f"{base}_{self.namesakes[base]}"
        return name

    def close(self) -> None:
        """Finds the output, and which step needs a blob last. Raises ValueError unless there is one output."""
        last = {blob: done for _, inputs, _, done in self.steps for blob in inputs}
        unread = [blob for _, _, outputs, _ in self.steps for blob in outputs if blob not in last]
        if not self.input or len(unread) != 1:
            found = f"{1 if self.input else 0} inputs and {len(unread)} outputs"
            raise ValueError(f"the model has {found}, and must have one of each{_some(unread)}")
        self.output = unread[0]
        for blob, done in last.items():
            done.append(blob)

    def extra_repr(self) -> str:
        """The wiring: the same layers wired in another way are another model."""
        wires = (f"{', '.join(reads)} -> {name or '='} -> {', '.join(writes)}" for name, reads, writes, _ in self.steps)
        return "\n".join((f"input {self.input}", *wires))

    def forward(self, x: Tensor) -> Tensor:
        blobs = {self.input: x}
        for name, inputs, outputs, done in self.steps:
            values = [blobs[blob] for blob in inputs]
            if name is not None:
                values = [getattr(self, name)(*values)]
            elif len(values) != len(outputs):
                values = values * len(outputs)
            for blob in done:
                del blobs[blob]
            blobs.update(zip(outputs, values, strict=True))
        return blobs[self.output]


def _some(blobs: list[str]) -> str:
    return f": {', '.join(blob[:60] for blob in blobs[:5])}" if blobs else ""


# ---- the .param file -------------------------------------------------------------------------------------------------


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


# ---- the .bin file ---------------------------------------------------------------------------------------------------


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


# ---- convolutions ----------------------------------------------------------------------------------------------------

Sides = tuple[int, int, int, int]  # left, right, top, bottom


def _convolution(layer: Layer, data: Weights) -> nn.Module:
    """Convolution, Deconvolution, and both with groups ("DepthWise"): [padding,] convolution[, crop][, activation]."""
    layer.wires((1, 1))
    layer.refuse(8, "int8 weights")
    back = layer.kind.startswith("Deconvolution")
    groups = layer.whole(7, 1, least=1) if layer.kind.endswith("DepthWise") else 1
    outputs = layer.whole(0, least=1, most=ANY_COUNT)
    kernel, dilation, stride = (_pair(layer, *keys) for keys in ((11, 1, 0), (12, 2, 1), (13, 3, 1)))
    count = layer.whole(6, least=1, most=ANY_COUNT)
    inputs, rest = divmod(count * groups, outputs * math.prod(kernel)) if outputs else (0, 0)
    if rest or not inputs or outputs % groups or inputs % groups:
        raise ValueError(f"{layer}: {count} weights do not make {outputs} outputs, {kernel}, in {groups} groups")
    weight = data.take_tagged(count, layer)
    bias = data.take(outputs, layer) if layer.whole(5) else None
    settings = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias is not None, "device": "meta"}
    parts = _back(layer, settings) if back else _forth(layer, kernel, settings)
    kind = nn.ConvTranspose2d if back else PointConvolution if _is_point(kernel, stride, settings) else nn.Conv2d
    convolution = kind(inputs, outputs, kernel, **settings)
    if back:  # from (groups, out / groups, in / groups, ...) to (in, out / groups, ...)
        weight = weight.view(groups, outputs // groups, inputs // groups, *kernel).transpose(1, 2).contiguous()
    _fill(convolution, weight, bias)
    parts = {name: convolution if part is None else part for name, part in parts.items()}
    return _chain(parts | _fused(layer))


def _pair(layer: Layer, rows: int, columns: int, default: int) -> tuple[int, int]:
    width = layer.whole(columns, default, least=1)
    if width < 1:
        raise ValueError(f"{layer}: parameter {columns} is {width}, and must be at least 1")
    return layer.whole(rows, width, least=1), width


def _is_point(kernel: tuple[int, int], stride: tuple[int, int], settings: dict[str, Any]) -> bool:
    return kernel == stride == (1, 1) and settings["padding"] == (0, 0)


def _pads(layer: Layer, least: int = 0) -> Sides:
    left = layer.whole(4, least=least)
    top = layer.whole(14, left, least=least)
    return left, layer.whole(15, left, least=least), top, layer.whole(16, top, least=least)


def _forth(layer: Layer, kernel: tuple[int, int], settings: dict[str, Any]) -> dict[str, nn.Module | None]:
    """Padding, as a module of its own where a convolution has none such; None stands for the convolution."""
    left, right, top, bottom = pads = _pads(layer, least=SAME_LOWER)
    if pads in ((SAME_UPPER,) * 4, (SAME_LOWER,) * 4):
        if settings["stride"] != (1, 1):
            raise ValueError(f"{layer} pads in a way that depends on the size of the image, which is not supported")
        whole = [dilation * (side - 1) for dilation, side in zip(settings["dilation"], kernel, strict=True)]
        less, more = [side // 2 for side in whole], [side - side // 2 for side in whole]
        before, after = (less, more) if left == SAME_UPPER else (more, less)
        left, right, top, bottom = pads = before[1], after[1], before[0], after[0]
    if min(pads) < 0:
        raise ValueError(f"{layer} has paddings {pads}, which are not understood")
    value = layer.number(18)
    if (left, top) == (right, bottom) and (not value or not any(pads)):
        settings["padding"] = (top, left)
        return {"convolution": None}
    settings["padding"] = (0, 0)
    return {"padding": nn.ConstantPad2d(pads, value), "convolution": None}


def _back(layer: Layer, settings: dict[str, Any]) -> dict[str, nn.Module | None]:
    """What of a transposed convolution's result is cropped, as a module of its own where it is not the same all round.

    ncnn adds the output padding (18, 19) before it crops (4, 14 to 16), as torch does."""
    layer.refuse(20, "a fixed output size")
    layer.refuse(21, "a fixed output size")
    left, right, top, bottom = _pads(layer)
    more = layer.whole(18)
    settings["output_padding"] = (layer.whole(19, more), more)
    limits = [max(both) for both in zip(settings["stride"], settings["dilation"], strict=True)]
    if any(side >= limit for side, limit in zip(settings["output_padding"], limits, strict=True)):
        raise ValueError(f"{layer} has an output padding as large as its stride, which is not supported")
    if (left, top) == (right, bottom):
        settings["padding"] = (top, left)
        return {"convolution": None}
    settings["padding"] = (0, 0)
    return {"convolution": None, "crop": Crop(offsets=(left, top, 0), ends=(right, bottom, 0))}


class PointConvolution(nn.Conv2d):
    """1x1, of an image or of a vector: ncnn takes vectors (N, C) for images of one pixel here, and returns such."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.ndim == 4 else super().forward(x[..., None, None]).flatten(1)


class InnerProduct(nn.Linear):
    """Of all that there is in a blob, or of the rows of a matrix if they are as long."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.ndim == 3 and x.shape[-1] == self.in_features
        return super().forward(x if rows else x.flatten(1))


def _inner_product(layer: Layer, data: Weights) -> nn.Module:
    layer.wires((1, 1))
    layer.refuse(8, "int8 weights")
    outputs, count = (layer.whole(key, least=1, most=ANY_COUNT) for key in (0, 2))
    if not outputs or not count or count % outputs:
        raise ValueError(f"{layer}: {count} weights do not make {outputs} outputs")
    weight = data.take_tagged(count, layer)
    bias = data.take(outputs, layer) if layer.whole(1) else None
    linear = InnerProduct(count // outputs, outputs, bias=bias is not None, device="meta")
    _fill(linear, weight, bias)
    return _chain({"linear": linear} | _fused(layer))


def _fill(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.reshape(module.weight.shape), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)


def _chain(parts: dict[str, nn.Module]) -> nn.Module:
    if len(parts) == 1:
        return next(iter(parts.values()))
    chain = nn.Sequential()
    for name, part in parts.items():
        chain.add_module(name, part)
    return chain


def _fused(layer: Layer) -> dict[str, nn.Module]:
    """The activation within a layer: https://github.com/Tencent/ncnn, src/layer/fused_activation.h."""
    kind, values = layer.whole(9), layer.numbers(10)
    needed = {2: 1, 3: 2, 6: 2}.get(kind, 0)
    if kind > 6 or len(values) < needed:
        raise ValueError(f"{layer} has the activation {kind} of {len(values)} numbers, which is not understood")
    if kind == 0:
        return {}
    simple = {1: nn.ReLU, 4: nn.Sigmoid, 5: nn.Mish}
    if kind in simple:
        return {"activation": simple[kind]()}
    if kind == 2:
        return {"activation": nn.LeakyReLU(values[0])}
    if kind == 3:
        return {"activation": Clip(low=values[0], high=values[1])}
    return {"activation": HardSwish(alpha=values[0], beta=values[1])}


# ---- layers that torch has not ---------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A layer of settings alone, which it prints."""

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        settings = self.__dict__.get("settings", {})
        return settings[name] if name in settings else super().__getattr__(name)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class Clip(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


class HardSigmoid(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return (x * self.alpha + self.beta).clamp(0, 1)


class HardSwish(HardSigmoid):
    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Multiple(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Constant(nn.Module):
    """MemoryData: (1, ...), the same for all images of a batch."""

    def __init__(self, data: Tensor):
        super().__init__()
        self.register_buffer("data", data)

    def forward(self) -> Tensor:
        return self.data


class Scale(nn.Module):
    """Factors, and summands, along the first axis of an image, a matrix or a vector; or factors of another blob."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = (
            None if one is None else nn.Parameter(one, requires_grad=False) for one in (weight, bias)
        )

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        if self.weight is None:
            return x * factors.reshape(len(factors), *shape)
        y = x * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


UNARY = (
    *("abs", "neg", "floor", "ceil", "square", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "tan"),
    *("asin", "acos", "atan", "reciprocal", "tanh", "log10", "round", "trunc"),
)


class Unary(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(torch, self.operation)(x)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "max": lambda a, b: torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp(min=b),
    "min": lambda a, b: torch.minimum(a, b) if isinstance(b, Tensor) else a.clamp(max=b),
    "pow": operator.pow,
    "rsub": lambda a, b: b - a,
    "rdiv": lambda a, b: b / a,
    "rpow": lambda a, b: b**a,
}


class Binary(Plain):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            return BINARY[self.operation](a, self.number)
        return BINARY[self.operation](aligned(a, b), aligned(b, a))


def aligned(a: Tensor, b: Tensor) -> Tensor:
    """`a`, as ncnn would broadcast it to a `b` of more axes.

    Not as NumPy does: a vector goes along the channels if there are as many, else along the columns; a matrix goes
    along channels and rows. https://github.com/Tencent/ncnn/wiki/binaryop-broadcasting, src/layer/binaryop.cpp."""
    missing = b.ndim - a.ndim
    if missing <= 0:
        return a
    if a.ndim == 2 and a.shape[1] != b.shape[1]:
        return a.reshape(a.shape[0], *[1] * missing, a.shape[1])
    return a.reshape(*a.shape, *[1] * missing)


class Eltwise(Plain):
    def forward(self, *xs: Tensor) -> Tensor:
        if self.factors:
            xs = tuple(x if factor == 1 else x * factor for x, factor in zip(xs, self.factors, strict=True))
        y = xs[0]
        for x in xs[1:]:
            y = BINARY[self.operation](y, x)
        return y


class Concat(Plain):
    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.axis + 1 if self.axis >= 0 else self.axis)


class Slices(Plain):
    """Crop along named axes, as NumPy does it, except that a stop of 0 is the end."""

    def forward(self, x: Tensor) -> Tensor:
        axes = self.axes or range(x.ndim - 1)
        for axis, start, stop in zip(axes, self.starts, self.stops, strict=False):
            at = axis + 1 if axis >= 0 else x.ndim + axis
            side = x.shape[at]
            first = start if start >= 0 else side + start
            last = min(side, stop if stop > 0 else side + stop)
            x = x.narrow(at, first, last - first)
        return x


class Crop(Plain):
    """Crop to sizes, or to the size of another blob. Triples are (columns, rows, channels)."""

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        sizes = self.settings.get("sizes", (UNSET,) * 3)
        if like is not None:
            sizes = (like.shape[-1], like.shape[-2], like.shape[1] if like.ndim == 4 else UNSET)
        ends = self.settings.get("ends", (0, 0, 0))
        for at, first, end, size in zip((3, 2, 1), self.offsets, ends, sizes, strict=True):
            rest = x.shape[at] - first - end
            x = x.narrow(at, first, rest if size == UNSET else size if like is not None else min(size, rest))
        return x


class Interp(Plain):
    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        if x.ndim == 2:
            x = x[..., None, None]
        corners = {} if self.mode == "nearest" else {"align_corners": self.align_corners}
        size = self.size if like is None else tuple(like.shape[-2:])
        if size is not None:
            return F.interpolate(x, size, mode=self.mode, **corners)
        return F.interpolate(x, scale_factor=self.scale, mode=self.mode, **corners)


class Unshuffled(Plain):
    """Pixel shuffle of channels that are ordered (row, column, output channel)."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        by = self.factor
        y = x.reshape(n, by, by, c // by**2, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // by**2, height * by, width * by)


class GlobalPooling(Plain):
    """To a vector (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) if self.maximum else x.mean((2, 3))


class Reshape(Plain):
    """`shape` is (columns), (columns, rows) or (columns, rows, channels): 0 for as it was, -1 for the rest."""

    def forward(self, x: Tensor) -> Tensor:
        was = [*reversed(x.shape[1:]), 1, 1]
        return x.reshape(len(x), *reversed([side or was[i] for i, side in enumerate(self.shape)]))


class Permute(Plain):
    """`order`: of the axes (N, channels, rows, columns) or (N, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order if x.ndim == 4 else self.matrix)


# ---- their settings --------------------------------------------------------------------------------------------------
#
# By number, as in https://github.com/Tencent/ncnn, docs/developer-guide/operators.md.


def _simple(make: Callable[[Layer], nn.Module]) -> Callable[[Layer, Weights], nn.Module]:
    """Of layers without weights, with one input."""

    def build(layer: Layer, _: Weights) -> nn.Module:
        layer.wires((1, 1))
        return make(layer)

    return build


def _wiring(inputs: tuple[float, float], outputs: tuple[float, float]) -> Callable[[Layer, Weights], None]:
    def build(layer: Layer, _: Weights) -> None:
        layer.wires(inputs, outputs)
        layer.asked.update(layer.settings)  # the size of an input is a hint

    return build


def _noop(layer: Layer, _: Weights) -> None:
    layer.wires((1, math.inf), (len(layer.inputs), len(layer.inputs)))


def _memory_data(layer: Layer, data: Weights) -> nn.Module:
    layer.wires((0, 0))
    layer.refuse(11, "four axes")
    width, height, channels = (layer.whole(key, most=ANY_COUNT) for key in (0, 1, 2))
    shape = [side for side in (channels, height, width) if side]
    if not shape or (channels and not height) or not width:
        raise ValueError(f"{layer} has the sides {(width, height, channels)}, which are not understood")
    take = data.take if layer.whole(21, 1) else data.take_tagged
    return Constant(take(math.prod(shape), layer).view(1, *shape))


def _prelu(layer: Layer, data: Weights) -> nn.Module:
    layer.wires((1, 1))
    count = layer.whole(0, least=1, most=ANY_COUNT)
    if not count:
        raise ValueError(f"{layer} has no slopes")
    slopes = data.take(count, layer)
    prelu = nn.PReLU(count, device="meta")
    _fill(prelu, slopes, None)
    return prelu


def _scale(layer: Layer, data: Weights) -> nn.Module:
    count = layer.whole(0, UNSET, least=1, most=ANY_COUNT)
    if count == UNSET:
        layer.wires((2, 2))
        layer.asked.add(1)  # without weights there is no bias either: src/layer/scale.cpp
        return Scale(None, None)
    layer.wires((1, 1))
    return Scale(data.take(count, layer), data.take(count, layer) if layer.whole(1) else None)


def _relu(layer: Layer) -> nn.Module:
    slope = layer.number(0)
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def _clip(layer: Layer) -> nn.Module:
    highest = float(np.finfo(np.float32).max)
    return Clip(low=layer.number(0, -highest), high=layer.number(1, highest))


def _dropout(layer: Layer) -> nn.Module:
    factor = layer.number(0, 1.0)
    return nn.Identity() if factor == 1 else Multiple(factor=factor)


def _unary(layer: Layer) -> nn.Module:
    return Unary(operation=UNARY[layer.whole(0, most=len(UNARY) - 1)])


def _binary(layer: Layer, _: Weights) -> nn.Module:
    operation = list(BINARY)[layer.whole(0, most=len(BINARY) - 1)]
    if layer.whole(1):
        layer.wires((1, 1))
        return Binary(operation=operation, number=layer.number(2))
    layer.wires((2, 2))
    layer.asked.add(2)
    return Binary(operation=operation)


def _eltwise(layer: Layer, _: Weights) -> nn.Module:
    layer.wires((1, math.inf))
    operation = ("mul", "add", "max")[layer.whole(0, most=2)]
    factors = layer.numbers(1)
    if factors and (operation != "add" or len(factors) != len(layer.inputs)):
        raise ValueError(f"{layer} has {len(factors)} factors for {len(layer.inputs)} inputs, to {operation}")
    return Eltwise(operation=operation, factors=factors)


def _concat(layer: Layer, _: Weights) -> nn.Module:
    layer.wires((1, math.inf))
    return Concat(axis=layer.whole(0, least=-3, most=2))


def _crop(layer: Layer, _: Weights) -> nn.Module:
    starts, stops, axes = (layer.wholes(key) for key in (9, 10, 11))
    if starts or stops or axes:
        layer.wires((1, 1))
        if len(starts) != len(stops) or (axes and len(axes) != len(starts)) or not set(axes) <= set(range(-3, 3)):
            raise ValueError(f"{layer} has starts {starts}, ends {stops} and axes {axes}, which do not fit")
        starts, stops = ([0 if at == UNSET else at for at in ends] for ends in (starts, stops))
        return Slices(starts=starts, stops=stops, axes=axes)
    layer.wires((1, 2))
    offsets = tuple(layer.whole(key) for key in (0, 1, 2))
    if len(layer.inputs) == 2:
        return Crop(offsets=offsets)
    ends = tuple(layer.whole(key) for key in (6, 7, 8))
    return Crop(offsets=offsets, ends=ends, sizes=tuple(layer.whole(key, UNSET, least=1) for key in (3, 4, 5)))


def _padding(layer: Layer) -> nn.Module:
    top, bottom, left, right = (layer.whole(key) for key in (0, 1, 2, 3))
    layer.refuse(6, "a value per channel")
    layer.refuse(7, "padding of channels")
    layer.refuse(8, "padding of channels")
    kind, value = layer.whole(4, most=2), layer.number(5)
    sides = (left, right, top, bottom)
    return (nn.ConstantPad2d(sides, value), nn.ReplicationPad2d(sides), nn.ReflectionPad2d(sides))[kind]


def _interp(layer: Layer, _: Weights) -> nn.Module:
    mode = layer.whole(0, most=3)
    if not mode:
        raise ValueError(f"{layer} does not tell how it interpolates")
    scale = tuple(layer.number(key, 1.0) for key in (1, 2))
    size = tuple(layer.whole(key) for key in (3, 4))
    by_blob = layer.whole(5, most=1) or len(layer.inputs) == 2
    layer.wires((2, 2) if by_blob else (1, 1))
    if not all(1 / 64 <= side <= 64 for side in scale):
        raise ValueError(f"{layer} scales by {scale}, and must by 1/64 to 64")
    settings = {"mode": ("nearest", "bilinear", "bicubic")[mode - 1], "align_corners": bool(layer.whole(6))}
    return Interp(**settings, scale=scale, size=size if all(size) and not by_blob else None)


def _pixel_shuffle(layer: Layer) -> nn.Module:
    factor = layer.whole(0, 1, least=1)
    return Unshuffled(factor=factor) if layer.whole(1, most=1) else nn.PixelShuffle(factor)


def _pooling(layer: Layer) -> nn.Module:
    average = layer.whole(0, most=1)
    if layer.whole(4):
        layer.asked.update(layer.settings)
        return GlobalPooling(maximum=not average)
    if layer.whole(7):
        layer.asked.update(layer.settings)
        width = layer.whole(8, least=1)
        size = (layer.whole(18, width, least=1), width)
        if not all(size):
            raise ValueError(f"{layer} pools to nothing")
        return nn.AdaptiveAvgPool2d(size) if average else nn.AdaptiveMaxPool2d(size)
    return _pooling_by_windows(layer, bool(average))


def _pooling_by_windows(layer: Layer, average: bool) -> nn.Module:
    """ncnn's padding mode 0 lets windows jut out at the end, 1 does not; others depend on the size of the image."""
    kernel, stride = _pair(layer, 11, 1, 0), _pair(layer, 12, 2, 1)
    left = layer.whole(3)
    top = layer.whole(13, left)
    ceil = layer.whole(5, most=1) == 0 and stride != (1, 1)
    inside = layer.whole(6) == 0
    if (layer.whole(14, left), layer.whole(15, top)) != (left, top) or 2 * left > kernel[1] or 2 * top > kernel[0]:
        raise ValueError(f"{layer} has paddings that are not the same all round or beyond its windows: not supported")
    late = any(side - step < pad for side, step, pad in zip(kernel, stride, (top, left), strict=True))
    if ceil and (late or (average and not inside)):
        raise ValueError(f"{layer} pools beyond the edge in a way that is not supported")
    if average:
        return nn.AvgPool2d(kernel, stride, (top, left), ceil_mode=ceil, count_include_pad=not inside)
    return nn.MaxPool2d(kernel, stride, (top, left), ceil_mode=ceil)


def _reshape(layer: Layer) -> nn.Module:
    layer.refuse(11, "four axes")
    layer.refuse(3, "another order of axes")
    shape = [layer.whole(key, UNSET, least=-1, most=ANY_COUNT) for key in (0, 1, 2)]
    given = [side for side in shape if side != UNSET]
    if shape[: len(given)] != given or not given or given.count(-1) > 1:
        raise ValueError(f"{layer} has the sides {shape}, which are not understood")
    return Reshape(shape=given)


def _permute(layer: Layer) -> nn.Module:
    """Orders are written innermost first in ncnn: 1 is (rows, columns, channels)."""
    order = ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))[layer.whole(0, most=5)]
    return Permute(order=(0, *order), matrix=(0, 1, 2) if order == (1, 2, 3) else (0, 2, 1))


def _hard(kind: type[HardSigmoid]) -> Callable[[Layer], nn.Module]:
    return lambda layer: kind(alpha=layer.number(0, 0.2), beta=layer.number(1, 0.5))


KINDS: dict[str, Callable[[Layer, Weights], nn.Module | None]] = {
    "Input": _wiring((0, 0), (1, 1)),
    "Split": _wiring((1, 1), (1, math.inf)),
    "Noop": _noop,
    "MemoryData": _memory_data,
    **dict.fromkeys(("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise"), _convolution),
    "InnerProduct": _inner_product,
    "PReLU": _prelu,
    "Scale": _scale,
    "ReLU": _simple(_relu),
    "Sigmoid": _simple(lambda _: nn.Sigmoid()),
    "TanH": _simple(lambda _: nn.Tanh()),
    "Swish": _simple(lambda _: nn.SiLU()),
    "Mish": _simple(lambda _: nn.Mish()),
    "HardSwish": _simple(_hard(HardSwish)),
    "HardSigmoid": _simple(_hard(HardSigmoid)),
    "GELU": _simple(lambda layer: nn.GELU("tanh" if layer.whole(0) else "none")),
    "Clip": _simple(_clip),
    "Dropout": _simple(_dropout),
    "UnaryOp": _simple(_unary),
    "AbsVal": _simple(lambda _: Unary(operation="abs")),
    "BinaryOp": _binary,
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Crop": _crop,
    "Padding": _simple(_padding),
    "Interp": _interp,
    "PixelShuffle": _simple(_pixel_shuffle),
    "Pooling": _simple(_pooling),
    "Reshape": _simple(_reshape),
    "Flatten": _simple(lambda _: nn.Flatten()),
    "Permute": _simple(_permute),
}
