# SPDX-License-Identifier: MIT
"""Random runs, and what each of them must give: the whole image at once, through a network written in NumPy.

Nothing here calls halotile, except to make the run. The network has two forms that share their weights and nothing
else: a torch module in float32, and loops over shifted arrays in float64.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

__all__ = ["Case", "Net", "cases", "result_of", "wrong"]

PEAKS = {"uint8": 255, "uint16": 65535}
HALF_STEPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # of a value: rounding to that dtype
BLENDS = ("average", "linear", "cosine", "gaussian")


@dataclass(frozen=True)
class Net:
    """convolutions of 3x3 -> reduction by such a stride -> convolution of 3x3 -> enlargement by such factors.

    Attributes:
        depth: convolutions before the reduction. valid: they do not pad, and lose a pixel at each end.
        down, up: (rows, columns).
    """

    channels: int
    depth: int
    valid: bool
    down: tuple[int, int]
    up: tuple[int, int]
    seed: int

    @property
    def phase(self) -> tuple[int, int]:
        return self.down

    @property
    def scales(self) -> tuple[Fraction, Fraction]:
        rows, columns = (Fraction(up, down) for up, down in zip(self.up, self.down, strict=True))
        return rows, columns

    @property
    def radius(self) -> int:
        """Input pixels that a result reaches to: of its own cell and of both neighbours, and what convolutions add."""
        return self.depth + 2 * max(self.down)

    @property
    def trim(self) -> tuple[int, int]:
        """Output pixels that are lost at each end, (rows, columns)."""
        rows, columns = (self.depth * up if self.valid else 0 for up in self.up)
        return rows, columns

    @property
    def weights(self) -> list[np.ndarray]:
        return _weights(self)


@lru_cache(256)
def _weights(net: Net) -> list[np.ndarray]:
    random, width = np.random.default_rng(net.seed), 3
    sides = [net.channels, *[width] * net.depth]
    shapes = [(b, a, 3, 3) for a, b in itertools.pairwise(sides)]
    shapes.append((width, sides[-1], *net.down))
    shapes.append((net.channels * net.up[0] * net.up[1], width, 3, 3))
    return [(random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32) for shape in shapes]


class Module(nn.Module):
    def __init__(self, net: Net):
        super().__init__()
        self.net = net
        self.layers = nn.ParameterList(torch.from_numpy(one.copy()) for one in net.weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net, layers = self.net, list(self.layers)
        for weight in layers[: net.depth]:
            x = torch.relu(nn.functional.conv2d(x, weight, padding=0 if net.valid else 1))
        x = torch.relu(nn.functional.conv2d(x, layers[-2], stride=net.down))
        x = nn.functional.conv2d(x, layers[-1], padding=1)
        (up, across), (batch, _, height, width) = net.up, x.shape
        x = x.reshape(batch, net.channels, up, across, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, net.channels, height * up, width * across) + 0.5


def on_arrays(net: Net, x: np.ndarray) -> np.ndarray:
    """The same in NumPy, in the dtype of the input."""
    weights = [one.astype(x.dtype) for one in net.weights]
    for weight in weights[: net.depth]:
        x = np.maximum(_convolved(x, weight, 0 if net.valid else 1), 0)
    rows, columns = net.down
    cells = x[:, :, : x.shape[2] // rows * rows, : x.shape[3] // columns * columns]
    cells = cells.reshape(*cells.shape[:2], cells.shape[2] // rows, rows, cells.shape[3] // columns, columns)
    x = np.maximum(np.einsum("bchiwj,ocij->bohw", cells, weights[-2]), 0)
    x = _convolved(x, weights[-1], 1)
    made = np.empty((len(x), net.channels, x.shape[2] * net.up[0], x.shape[3] * net.up[1]), x.dtype)
    for number in range(x.shape[1]):
        channel, place = divmod(number, net.up[0] * net.up[1])
        made[:, channel, place // net.up[1] :: net.up[0], place % net.up[1] :: net.up[1]] = x[:, number]
    return made + x.dtype.type(0.5)


def _convolved(x: np.ndarray, weight: np.ndarray, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = x.shape[2] - 2, x.shape[3] - 2
    made = np.zeros((len(x), len(weight), max(height, 0), max(width, 0)), x.dtype)
    for row in range(3):
        for column in range(3):
            shifted = x[:, :, row : row + height, column : column + width]
            made += np.einsum("bihw,oi->bohw", shifted, weight[:, :, row, column])
    return made


# ---- random runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Attributes:
    layout: axes of the image. memory: how it lies in memory. kind: an array or a tensor.
    form: what the network is given as: "module", "arrays" or "tensors".
    """

    net: Net
    size: tuple[int, int]
    images: int
    dtype: str
    kind: str
    layout: str
    memory: str
    form: str
    options: dict[str, Any]
    seed: int


LAYOUTS = ("HWC", "CHW", "NHWC", "NCHW", "HNCW", "WHC")
MEMORY = ("plain", "reversed", "every other", "transposed", "repeated")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pick = lambda *choices: draw(st.sampled_from(choices))  # noqa: E731
    whole_number = lambda least, most: draw(st.integers(least, most))  # noqa: E731
    valid = draw(st.booleans())
    down = (1, 1) if valid else pick((1, 1), (1, 1), (2, 2), (3, 3), (2, 1), (1, 4))
    up = pick((1, 1), (2, 2), (3, 2), (1, 2), (4, 4))
    depth = whole_number(1, 3)
    net = Net(whole_number(1, 5), depth, valid, down, up, whole_number(0, 15))
    kind = pick("array", "tensor")
    dtype = pick("uint8", "uint16", "float32", "float16", "float64", *(["bfloat16"] if kind == "tensor" else []))
    layout = pick(*LAYOUTS, *(["HW"] if net.channels == 1 else []))
    boundary = "reflect" if valid else pick("reflect", "native")
    form = pick("module", "module", "tensors", "arrays" if kind == "array" else "module")
    tile = tuple(max(step, whole_number(1, 24)) for step in down)
    lap = tuple(draw(st.integers(0, max(0, min(side - step, side - 1)))) for side, step in zip(tile, down, strict=True))
    options: dict[str, Any] = {
        "tile_size": tile,
        "halo": net.radius + whole_number(0, 3),
        "phase": down,
        "boundary": boundary,
        "overlap": pick("auto", lap),
        "blend": pick(*BLENDS),
        "batch_size": pick(1, 1, 2, 3, 7),
        "value_range": pick(None, None, (-1, 1), (0, 255)),
        "out_dtype": pick(None, None, "uint8", "uint16", "float32", "float16"),
        "engine": pick(None, None, "host", "torch") if form != "arrays" else None,
        "layout": layout,
        "alpha": "channel",
        "memory_format": pick("auto", "contiguous", "channels_last") if form == "module" else "auto",
    }
    if draw(st.booleans()):
        options["scale"] = net.scales if net.scales[0] != net.scales[1] else net.scales[0]
    if form == "module" and draw(st.integers(0, 5)) == 0:
        options |= {"schedule": "stream", "batch_size": 1}
    size = (whole_number(1, 45), whole_number(1, 45))
    images = whole_number(1, 3) if "N" in layout else 1
    memory = pick(*MEMORY)
    return Case(net, size, images, dtype, kind, layout, memory, form, options, whole_number(0, 10**6))


def image_of(case: Case) -> tuple[Any, np.ndarray]:
    """The image, and its values (N, C, H, W) in float64 where white is 1."""
    random = np.random.default_rng(case.seed)
    sides = {"N": case.images, "C": case.net.channels, "H": case.size[0], "W": case.size[1]}
    shape = [sides[axis] for axis in case.layout]
    if case.memory == "every other":
        shape = [2 * side for side in shape]
    if case.memory == "repeated":
        shape[0] = 1
    peak = PEAKS.get(case.dtype)
    values = random.random(shape) if peak is None else random.integers(0, peak + 1, shape)
    stored = values.astype("float32" if case.dtype == "bfloat16" else case.dtype)
    given: Any = stored
    if case.kind == "tensor":
        given = torch.from_numpy(stored)
        given = given.bfloat16() if case.dtype == "bfloat16" else given
    given = _laid(given, case, sides)
    seen = given.double().numpy() if isinstance(given, torch.Tensor) else given.astype(np.float64)
    axes = [axis for axis in "NCHW" if axis in case.layout]
    seen = seen.transpose([case.layout.index(axis) for axis in axes])
    seen = seen.reshape([sides[axis] for axis in "NCHW"])
    return given, seen / (peak or 1)


def _laid(stored: Any, case: Case, sides: dict[str, int]) -> Any:
    """The same axes, laid in memory in another way; tensors have no negative strides."""
    if case.memory == "every other":
        return stored[(slice(None, None, 2),) * stored.ndim]
    if case.memory == "repeated":
        shape = [sides[axis] for axis in case.layout]
        return stored.expand(shape) if isinstance(stored, torch.Tensor) else np.broadcast_to(stored, shape)
    if case.memory == "reversed" and isinstance(stored, np.ndarray):
        return stored[(slice(None, None, -1),) * stored.ndim]
    if case.memory == "transposed":
        if isinstance(stored, torch.Tensor):
            return stored.permute(*reversed(range(stored.ndim))).contiguous().permute(*reversed(range(stored.ndim)))
        return np.asfortranarray(stored)
    return stored


def model_of(case: Case) -> Any:
    net = case.net
    if case.form == "arrays":
        return lambda windows: on_arrays(net, windows)
    module = _module(net)
    return module if case.form == "module" else (lambda windows: module(windows))


@lru_cache(256)
def _module(net: Net) -> Module:
    return Module(net).eval()


def result_of(case: Case, given: Any) -> Any:
    from halotile import restore_tiled

    options = dict(case.options)
    if case.form == "tensors":
        options["device"] = "cpu"
    return restore_tiled(given, model_of(case), **options)


# ---- what is right ---------------------------------------------------------------------------------------------------


def wrong(case: Case) -> str | None:
    """What is wrong with the result of a run; None if nothing is."""
    given, values = image_of(case)
    before = given.clone() if isinstance(given, torch.Tensor) else given.copy()
    try:
        got = result_of(case, given)
    except ValueError as error:
        if is_one_cell(case) and "rows of the result are not its third dimension" in str(error):
            return None
        raise
    same = torch.equal(before, given) if isinstance(given, torch.Tensor) else np.array_equal(before, given)
    if not same:
        return "the image was changed"
    dtype = case.options["out_dtype"] or case.dtype
    if str(got.dtype).removeprefix("torch.") != dtype:
        return f"the result has dtype {got.dtype}"
    low, high = case.options["value_range"] or (0, 1)
    gain, net = high - low, case.net
    how = case.options["halo"], case.options["boundary"]
    seen = got.double().numpy() if isinstance(got, torch.Tensor) else got.astype(np.float64)
    axes = [axis for axis in "NCHW" if axis in case.layout]
    seen = seen.transpose([case.layout.index(axis) for axis in axes])
    want = np.stack([_whole(net, one * gain + low, *how) for one in values])
    if seen.size != want.size:
        return f"the result has shape {got.shape}, not that of {want.shape}"
    apart = _apart(seen.reshape(want.shape), (want - low) / gain, dtype, case.options["value_range"] is not None)
    if not apart.max() <= 1:
        worst = [int(at) for at in np.unravel_index(np.nanargmax(apart), apart.shape)]
        return f"{apart.max():.3g} of what is allowed, at {worst}"
    return None


def is_one_cell(case: Case) -> bool:
    """Whether a stream sees an image of one row of cells, in which nobody can tell where rows lie: it is refused."""
    cells = -(-case.size[0] // case.net.down[0])
    return cells == 1 and case.options["boundary"] == "native" and case.options.get("schedule") == "stream"


def _whole(net: Net, image: np.ndarray, halo: int, boundary: str) -> np.ndarray:
    """The network on the image (C, H, W) in one piece: padded by reflection as far as a halo reaches, to a multiple of
    the phase, and cropped again."""
    pads = []
    for side, step in zip(image.shape[1:], net.down, strict=True):
        before = -(-halo // step) * step if boundary == "reflect" else 0
        end = before + side + (halo if boundary == "reflect" else 0)
        pads.append((before, -(-end // step) * step - before - side))
    output = on_arrays(net, np.pad(image, ((0, 0), *pads), mode="reflect")[None])[0]
    y, x = (int(before * by) - lost for (before, _), by, lost in zip(pads, net.scales, net.trim, strict=True))
    height, width = (math.ceil(side * by) for side, by in zip(image.shape[1:], net.scales, strict=True))
    return output[:, y : y + height, x : x + width]


def _apart(got: np.ndarray, want: np.ndarray, dtype: str, clamps: bool) -> np.ndarray:
    """Differences, as shares of what is allowed: rounding to the dtype, and that of float32 on the way."""
    peak = PEAKS.get(dtype)
    noise = 2e-5 * max(1.0, float(np.abs(want).max()))
    if peak is not None or clamps:
        want = np.clip(want, 0, 1)
    if peak is not None:
        return np.abs(got - want * peak) / (0.5 + noise * peak + 1e-6)
    allowed = noise + np.abs(want) * HALF_STEPS.get(dtype, 0) + (6e-8 if dtype == "float16" else 0)
    return np.abs(got - want) / allowed
