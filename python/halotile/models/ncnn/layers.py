# SPDX-License-Identifier: MIT
"""Builds a torch module for each kind of layer: `KINDS`, by ncnn's names.

Settings have numbers: https://github.com/Tencent/ncnn, docs/developer-guide/operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from . import modules
from .read import ANY_COUNT, SAME_LOWER, SAME_UPPER, UNSET, Layer, Weights

__all__ = ["KINDS"]

Sides = tuple[int, int, int, int]  # left, right, top, bottom


def _convolution(layer: Layer, data: Weights) -> nn.Module:
    """Convolution and Deconvolution, with groups if "DepthWise": [padding,] convolution[, crop][, activation]."""
    layer.wires((1, 1))
    layer.refuse(8, "int8 weights")
    transposed = layer.kind.startswith("Deconvolution")
    groups = layer.whole(7, 1, least=1) if layer.kind.endswith("DepthWise") else 1
    outputs = layer.whole(0, least=1, most=ANY_COUNT)
    kernel, dilation, stride = (_pair(layer, *keys) for keys in ((11, 1, 0), (12, 2, 1), (13, 3, 1)))
    count = layer.whole(6, least=1, most=ANY_COUNT)
    inputs, rest = divmod(count * groups, outputs * math.prod(kernel)) if outputs else (0, 0)
    if rest or not inputs or outputs % groups or inputs % groups:
        raise ValueError(f"{layer}: {count} weights do not make {outputs} outputs, {kernel}, in {groups} groups")
    weight = data.take_tagged(count, layer)
    bias = data.take(outputs, layer) if layer.whole(5) else None
    settings = dict[str, Any](stride=stride, dilation=dilation, groups=groups, bias=bias is not None, device="meta")
    parts = _cropped(layer, settings) if transposed else _padded(layer, kernel, settings)
    plain = modules.PointConvolution if _is_point(kernel, stride, settings) else nn.Conv2d
    kind = nn.ConvTranspose2d if transposed else plain
    convolution = kind(inputs, outputs, kernel, **settings)
    if transposed:  # (groups, out / groups, in / groups, ...) to (in, out / groups, ...)
        weight = weight.view(groups, outputs // groups, inputs // groups, *kernel).transpose(1, 2).contiguous()
    _fill(convolution, weight, bias)
    whole = {name: convolution if part is None else part for name, part in parts.items()}
    return _sequence(whole | _activation(layer))


def _pair(layer: Layer, rows: int, columns: int, default: int) -> tuple[int, int]:
    """Two settings as (rows, columns): rows default to columns."""
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


def _padded(layer: Layer, kernel: tuple[int, int], settings: dict[str, Any]) -> dict[str, nn.Module | None]:
    """The convolution (None) with its padding set; asymmetric or non-zero padding is a module before it."""
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


def _cropped(layer: Layer, settings: dict[str, Any]) -> dict[str, nn.Module | None]:
    """The transposed convolution (None) with its padding set; an asymmetric crop is a module after it.

    Like torch, ncnn adds the output padding (18, 19) before it crops (4, 14 to 16)."""
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
    return {"convolution": None, "crop": modules.Crop(offsets=(left, top, 0), ends=(right, bottom, 0))}


def _inner_product(layer: Layer, data: Weights) -> nn.Module:
    layer.wires((1, 1))
    layer.refuse(8, "int8 weights")
    outputs, count = (layer.whole(key, least=1, most=ANY_COUNT) for key in (0, 2))
    if not outputs or not count or count % outputs:
        raise ValueError(f"{layer}: {count} weights do not make {outputs} outputs")
    weight = data.take_tagged(count, layer)
    bias = data.take(outputs, layer) if layer.whole(1) else None
    linear = modules.InnerProduct(count // outputs, outputs, bias=bias is not None, device="meta")
    _fill(linear, weight, bias)
    return _sequence({"linear": linear} | _activation(layer))


def _fill(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.reshape(module.weight.shape), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)


def _sequence(parts: dict[str, nn.Module]) -> nn.Module:
    if len(parts) == 1:
        return next(iter(parts.values()))
    chain = nn.Sequential()
    for name, part in parts.items():
        chain.add_module(name, part)
    return chain


def _activation(layer: Layer) -> dict[str, nn.Module]:
    """The layer's fused activation: https://github.com/Tencent/ncnn, src/layer/fused_activation.h."""
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
        return {"activation": modules.Clip(low=values[0], high=values[1])}
    return {"activation": modules.HardSwish(alpha=values[0], beta=values[1])}


def _simple(make: Callable[[Layer], nn.Module]) -> Callable[[Layer, Weights], nn.Module]:
    """The builder of a layer with one input and no weights."""

    def build(layer: Layer, _: Weights) -> nn.Module:
        layer.wires((1, 1))
        return make(layer)

    return build


def _wiring(inputs: tuple[float, float], outputs: tuple[float, float]) -> Callable[[Layer, Weights], None]:
    """The builder of a layer that only passes blobs on."""

    def build(layer: Layer, _: Weights) -> None:
        layer.wires(inputs, outputs)
        layer.used.update(layer.settings)  # the size of an input is a hint

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
    return modules.Constant(take(math.prod(shape), layer).view(1, *shape))


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
        layer.used.add(1)  # without weights there is no bias either: src/layer/scale.cpp
        return modules.Scale(None, None)
    layer.wires((1, 1))
    return modules.Scale(data.take(count, layer), data.take(count, layer) if layer.whole(1) else None)


def _relu(layer: Layer) -> nn.Module:
    slope = layer.number(0)
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def _clip(layer: Layer) -> nn.Module:
    highest = float(np.finfo(np.float32).max)
    return modules.Clip(low=layer.number(0, -highest), high=layer.number(1, highest))


def _dropout(layer: Layer) -> nn.Module:
    factor = layer.number(0, 1.0)
    return nn.Identity() if factor == 1 else modules.Multiple(factor=factor)


def _unary(layer: Layer) -> nn.Module:
    return modules.Unary(operation=modules.UNARY[layer.whole(0, most=len(modules.UNARY) - 1)])


def _binary(layer: Layer, _: Weights) -> nn.Module:
    operation = list(modules.BINARY)[layer.whole(0, most=len(modules.BINARY) - 1)]
    if layer.whole(1):
        layer.wires((1, 1))
        return modules.Binary(operation=operation, number=layer.number(2))
    layer.wires((2, 2))
    layer.used.add(2)
    return modules.Binary(operation=operation)


def _eltwise(layer: Layer, _: Weights) -> nn.Module:
    layer.wires((1, math.inf))
    operation = ("mul", "add", "max")[layer.whole(0, most=2)]
    factors = layer.numbers(1)
    if factors and (operation != "add" or len(factors) != len(layer.inputs)):
        raise ValueError(f"{layer} has {len(factors)} factors for {len(layer.inputs)} inputs, to {operation}")
    return modules.Eltwise(operation=operation, factors=factors)


def _concat(layer: Layer, _: Weights) -> nn.Module:
    layer.wires((1, math.inf))
    return modules.Concat(axis=layer.whole(0, least=-3, most=2))


def _crop(layer: Layer, _: Weights) -> nn.Module:
    starts, stops, axes = (layer.wholes(key) for key in (9, 10, 11))
    if starts or stops or axes:
        layer.wires((1, 1))
        if len(starts) != len(stops) or (axes and len(axes) != len(starts)) or not set(axes) <= set(range(-3, 3)):
            raise ValueError(f"{layer} has starts {starts}, ends {stops} and axes {axes}, which do not fit")
        starts, stops = ([0 if at == UNSET else at for at in ends] for ends in (starts, stops))
        return modules.Slices(starts=starts, stops=stops, axes=axes)
    layer.wires((1, 2))
    offsets = tuple(layer.whole(key) for key in (0, 1, 2))
    if len(layer.inputs) == 2:
        return modules.Crop(offsets=offsets)
    ends = tuple(layer.whole(key) for key in (6, 7, 8))
    return modules.Crop(offsets=offsets, ends=ends, sizes=tuple(layer.whole(key, UNSET, least=1) for key in (3, 4, 5)))


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
    return modules.Interp(**settings, scale=scale, size=size if all(size) and not by_blob else None)


def _pixel_shuffle(layer: Layer) -> nn.Module:
    factor = layer.whole(0, 1, least=1)
    return modules.Unshuffled(factor=factor) if layer.whole(1, most=1) else nn.PixelShuffle(factor)


def _pooling(layer: Layer) -> nn.Module:
    average = layer.whole(0, most=1)
    if layer.whole(4):
        layer.used.update(layer.settings)
        return modules.GlobalPooling(maximum=not average)
    if layer.whole(7):
        layer.used.update(layer.settings)
        width = layer.whole(8, least=1)
        size = (layer.whole(18, width, least=1), width)
        if not all(size):
            raise ValueError(f"{layer} pools to nothing")
        return nn.AdaptiveAvgPool2d(size) if average else nn.AdaptiveMaxPool2d(size)
    return _pooling_by_windows(layer, bool(average))


def _pooling_by_windows(layer: Layer, average: bool) -> nn.Module:
    """In ncnn's padding mode 0 windows may extend beyond the end, in 1 they do not; others depend on the image size."""
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
    return modules.Reshape(shape=given)


def _permute(layer: Layer) -> nn.Module:
    """ncnn lists axes innermost first: order 1 is (rows, columns, channels)."""
    order = ((1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1))[layer.whole(0, most=5)]
    return modules.Permute(order=(0, *order), matrix=(0, 1, 2) if order == (1, 2, 3) else (0, 2, 1))


def _hard(kind: type[modules.HardSigmoid]) -> Callable[[Layer], nn.Module]:
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
    "HardSwish": _simple(_hard(modules.HardSwish)),
    "HardSigmoid": _simple(_hard(modules.HardSigmoid)),
    "GELU": _simple(lambda layer: nn.GELU("tanh" if layer.whole(0) else "none")),
    "Clip": _simple(_clip),
    "Dropout": _simple(_dropout),
    "UnaryOp": _simple(_unary),
    "AbsVal": _simple(lambda _: modules.Unary(operation="abs")),
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
