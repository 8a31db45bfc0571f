# SPDX-License-Identifier: MIT
"""The network of the demo, and its weights read from an ncnn model as plain data.

SRVGG-compact is a chain of 3x3 convolutions at the input's size, with one pixel shuffle at the end and the enlarged
input added to it. It sees one pixel farther with each convolution: `network.radius` is the halo that makes tiling
exact.

An ncnn model is two files. The `.param` file is text: a magic number, the counts of layers and blobs, and a layer per
line. The `.bin` file holds the weights in the order of the layers. Only those two are read; nothing of the package they
come in is run.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

PARAM_MAGIC = "7767517"
FLOAT16_TAG = 0x01306B47  # float16 weights follow, padded to 4 bytes; tag 0 means float32
FLOAT32_TAG = 0


class SRVGGNetCompact(nn.Module):
    """conv, (PReLU, conv) x (depth + 1), pixel shuffle, plus the input enlarged by nearest neighbour.

    Takes and returns (N, 3, H, W) in [0, 1]; the output is `scale` times as high and wide.
    """

    def __init__(self, features=64, depth=16, scale=4):
        super().__init__()
        self.scale = scale
        self.radius = depth + 2  # one pixel for each 3x3 convolution
        widths = [3] + [features] * (depth + 1) + [3 * scale**2]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.activations = nn.ModuleList(nn.PReLU(features) for _ in range(depth + 1))

    def forward(self, image):
        x = image
        for convolution, activation in zip(self.convolutions[:-1], self.activations, strict=True):
            x = activation(convolution(x))
        x = F.pixel_shuffle(self.convolutions[-1](x), self.scale)
        return x + F.interpolate(image, scale_factor=self.scale, mode="nearest")


@dataclass(frozen=True)
class Layer:
    """One line of a .param file: `settings` maps ncnn's numbered parameters to their text."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    settings: dict[int, str]

    def integer(self, key, default=0):
        """The numbered parameter as an int; ncnn also writes whole numbers as 4.000000e+00."""
        value = float(self.settings.get(key, default))
        if not value.is_integer():
            raise ValueError(f"layer {self.name}: parameter {key} is {value}, and must be a whole number")
        return int(value)


def read_param(text):
    """The layers of a .param file's text, in order. Raises ValueError for a malformed file."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [PARAM_MAGIC]:
        raise ValueError(f"not an ncnn .param file: it must start with {PARAM_MAGIC}")
    try:
        layer_count, _ = map(int, lines[1])
        layers = [_read_layer(words) for words in lines[2:]]
    except (ValueError, IndexError) as error:
        raise ValueError(f"malformed .param file: {error}") from error
    if len(layers) != layer_count:
        raise ValueError(f"the .param file announces {layer_count} layers and holds {len(layers)}")
    return layers


def _read_layer(words):
    kind, name, n_in, n_out = words[0], words[1], int(words[2]), int(words[3])
    blobs, settings = words[4 : 4 + n_in + n_out], words[4 + n_in + n_out :]
    if n_in < 0 or n_out < 0 or len(blobs) != n_in + n_out:
        raise ValueError(f"layer {name} announces {n_in} inputs and {n_out} outputs and names {len(blobs)}")
    pairs = (setting.split("=", 1) for setting in settings)
    return Layer(kind, name, blobs[:n_in], blobs[n_in:], {int(key): value for key, value in pairs})


class _Weights:
    """Reads a .bin file front to back."""

    def __init__(self, data):
        self.data = data
        self.position = 0

    def take(self, count, dtype, what):
        """The next `count` numbers as float32. Raises ValueError where the file ends early."""
        end = self.position + count * np.dtype(dtype).itemsize
        if end > len(self.data):
            raise ValueError(f"the .bin file ends inside {what}: {end} bytes are needed, it has {len(self.data)}")
        numbers = np.frombuffer(self.data, dtype, count, self.position)
        self.position = end
        return torch.from_numpy(numbers.astype(np.float32))

    def take_tagged(self, count, what):
        """The next `count` weights behind their 4-byte storage tag."""
        tag = int(self.take(4, np.uint8, what).numpy().astype(np.uint8).view("<u4")[0])
        if tag not in (FLOAT16_TAG, FLOAT32_TAG):
            raise ValueError(f"{what}: storage tag {tag:#010x}, and only float16 and float32 weights are read")
        numbers = self.take(count, "<f2" if tag == FLOAT16_TAG else "<f4", what)
        self.take(-self.position % 4, np.uint8, what)
        return numbers

    def finish(self):
        if self.position != len(self.data):
            raise ValueError(f"the .bin file has {len(self.data)} bytes and the layers need {self.position}")


def srvgg_from_ncnn(param, weights):
    """Builds the network that a .param text and the bytes of its .bin file describe.

    Returns an SRVGGNetCompact in eval mode. Raises ValueError where the graph is not an SRVGG-compact network or the
    weights do not fit it to the last byte.
    """
    chain, scale = _check_graph(read_param(param))
    convolutions = chain[0::2]
    network = SRVGGNetCompact(convolutions[0].integer(0), len(convolutions) - 2, scale).eval()
    reader = _Weights(weights)
    modules = [None] * len(chain)
    modules[0::2], modules[1::2] = network.convolutions, network.activations
    for layer, module in zip(chain, modules, strict=True):
        fill = _fill_convolution if layer.kind == "Convolution" else _fill_prelu
        fill(layer, module, reader)
    reader.finish()
    return network.requires_grad_(False)


def _check_graph(layers):
    """Checks kinds and wiring. Returns the chain (convolution, PReLU, ..., convolution) and the scale."""
    kinds = [layer.kind for layer in layers]
    pairs = (len(layers) - 6) // 2
    body = ["Convolution", "PReLU"] * pairs
    expected = ["Input", "Split", *body, "Convolution", "PixelShuffle", "Interp", "BinaryOp"]
    if pairs < 1 or kinds != expected:
        raise ValueError(f"not an SRVGG-compact graph: its layers are {', '.join(kinds)}")
    source, split, *chain, shuffle, enlarge, add = layers
    for before, layer in pairwise([split, *chain, shuffle]):
        if len(layer.inputs) != 1 or layer.inputs[0] not in before.outputs:
            raise ValueError(f"layer {layer.name} reads {layer.inputs}, not the output of {before.name}")
    scale = shuffle.integer(0)
    wired = (
        split.inputs == source.outputs
        and enlarge.inputs[0] in set(split.outputs) - set(chain[0].inputs)
        and sorted(add.inputs) == sorted(shuffle.outputs + enlarge.outputs)
    )
    nearest = enlarge.integer(0) == 1 and enlarge.integer(1) == enlarge.integer(2) == scale
    if not wired or not nearest or scale < 1 or shuffle.integer(1) != 0 or add.integer(0) != 0:
        raise ValueError("not an SRVGG-compact graph: its end is not pixel shuffle + nearest-neighbour enlargement")
    return chain, scale


def _fill_convolution(layer, module, reader):
    settings = {0: module.out_channels, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: module.weight.numel()}
    defaults = {2: 1, 3: 1}
    for key, expected in settings.items():
        if layer.integer(key, defaults.get(key, 0)) != expected:
            found = layer.integer(key, defaults.get(key, 0))
            raise ValueError(f"layer {layer.name}: parameter {key} is {found}, and must be {expected}")
    with torch.no_grad():
        module.weight.copy_(reader.take_tagged(module.weight.numel(), layer.name).view_as(module.weight))
        module.bias.copy_(reader.take(module.bias.numel(), "<f4", layer.name))


def _fill_prelu(layer, module, reader):
    if layer.integer(0) != module.num_parameters:
        raise ValueError(f"layer {layer.name}: {layer.integer(0)} slopes, and must have {module.num_parameters}")
    with torch.no_grad():
        module.weight.copy_(reader.take(module.num_parameters, "<f4", layer.name))
