# SPDX-License-Identifier: MIT
"""SRVGG-compact out of ncnn's files: a synthetic one of few channels."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import inspect_model  # noqa: E402
from halotile.models.ncnn import load_ncnn  # noqa: E402

FEATURES, DEPTH, SCALE = 5, 2, 2
F16, F32 = 0x01306B47, 0


def param_lines():
    """input -> split -> (convolution -> PReLU) x 3 -> convolution -> shuffle, + nearest enlargement of the input."""
    lines = [
        ["Input", "data", "0", "1", "in"],
        ["Split", "split", "1", "2", "in", "in_a", "in_b"],
    ]
    blob, inputs = "in_b", 3
    for i in range(DEPTH + 1):
        shape = [f"0={FEATURES}", "1=3", "4=1", "5=1", f"6={9 * inputs * FEATURES}"]
        lines.append(["Convolution", f"conv{i}", "1", "1", blob, f"c{i}", *shape])
        lines.append(["PReLU", f"relu{i}", "1", "1", f"c{i}", f"r{i}", f"0={FEATURES}"])
        blob, inputs = f"r{i}", FEATURES
    out = 3 * SCALE**2
    weights = f"6={9 * FEATURES * out}"
    lines.append(["Convolution", "last", "1", "1", blob, "c", f"0={out}", "1=3", "4=1", "5=1", weights])
    lines.append(["PixelShuffle", "shuffle", "1", "1", "c", "s", f"0={SCALE}"])
    lines.append(["Interp", "enlarge", "1", "1", "in_a", "e", "0=1", "1=2.000000e+00", "2=2.000000e+00"])
    lines.append(["BinaryOp", "add", "2", "1", "s", "e", "out"])
    return lines


def param_text(lines):
    return "\n".join(["7767517", f"{len(lines)} {len(lines) + 1}", *(" ".join(line) for line in lines)]) + "\n"


def weights(rng, tag=F16):
    """The bytes of a .bin file and the arrays in it: (weight, bias, slopes) ..., (weight, bias)."""
    data, arrays, inputs = b"", [], 3
    for outputs in [FEATURES] * (DEPTH + 1) + [3 * SCALE**2]:
        weight = rng.normal(size=(outputs, inputs, 3, 3)).astype("<f2")
        bias, slopes = rng.normal(size=outputs).astype("<f4"), rng.random(outputs).astype("<f4")
        raw = weight.tobytes() if tag == F16 else weight.astype("<f4").tobytes()
        data += np.uint32(tag).tobytes() + raw + bytes(-len(raw) % 4) + bias.tobytes()
        last = outputs != FEATURES
        data += b"" if last else slopes.tobytes()
        arrays.append((weight, bias) if last else (weight, bias, slopes))
        inputs = outputs
    return data, arrays


def by_hand(arrays, image):
    tensors = [[torch.from_numpy(a.astype(np.float32)) for a in layer] for layer in arrays]
    x = image
    for weight, bias, slopes in tensors[:-1]:
        x = torch.conv2d(x, weight, bias, padding=1)
        x = torch.where(x > 0, x, x * slopes[:, None, None])
    weight, bias = tensors[-1]
    x = torch.pixel_shuffle(torch.conv2d(x, weight, bias, padding=1), SCALE)
    return x + image.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)


@pytest.mark.parametrize("tag", [F16, F32])
def test_reads_graph_and_weights(rng, tag):
    data, arrays = weights(rng, tag)
    network = load_ncnn(param_text(param_lines()), data)
    assert not network.training
    image = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(network(image), by_hand(arrays, image))


def test_what_the_demo_asks_for(rng):
    network = load_ncnn(param_text(param_lines()), weights(rng)[0]).to(memory_format=torch.channels_last)
    info = inspect_model(network)
    assert (info.halo, info.scale, info.phase) == ((DEPTH + 2, DEPTH + 2), SCALE, (1, 1))
