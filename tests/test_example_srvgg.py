# SPDX-License-Identifier: MIT
"""The demo's reader of ncnn models: a synthetic one is read to the last byte, a wrong one is refused by name."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from srvgg import read_param, srvgg_from_ncnn  # noqa: E402

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
    network = srvgg_from_ncnn(param_text(param_lines()), data)
    assert (network.scale, network.radius) == (SCALE, DEPTH + 2)
    assert not network.training
    image = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(network(image), by_hand(arrays, image))


def test_the_radius_is_what_the_network_sees(rng):
    network = srvgg_from_ncnn(param_text(param_lines()), weights(rng)[0])
    image = torch.rand(1, 3, 21, 21)
    other = image.clone()
    other[..., 10, 10] += 1
    changed = (network(image) != network(other)).any(1)[0].nonzero()
    assert changed.min().item() == (10 - network.radius) * SCALE
    assert changed.max().item() == (10 + network.radius) * SCALE + SCALE - 1


@pytest.mark.parametrize("cut", [1, 4, 5, 100, 10**6])
def test_weights_that_end_early(rng, cut):
    data, _ = weights(rng)
    with pytest.raises(ValueError, match=r"the \.bin file ends inside (conv0|last)"):
        srvgg_from_ncnn(param_text(param_lines()), data[: max(0, len(data) - cut)])


def test_weights_that_are_too_many(rng):
    data, _ = weights(rng)
    with pytest.raises(ValueError, match=rf"the \.bin file has {len(data) + 4} bytes and the layers need {len(data)}"):
        srvgg_from_ncnn(param_text(param_lines()), data + bytes(4))


def test_weights_stored_in_another_way(rng):
    data, _ = weights(rng)
    with pytest.raises(ValueError, match="conv0: storage tag 0x000d4b38"):
        srvgg_from_ncnn(param_text(param_lines()), b"\x38\x4b\x0d\x00" + data[4:])


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        ("conv1", ("1=3", "1=5"), "layer conv1: parameter 1 is 5, and must be 3"),
        ("conv1", ("4=1", "4=0"), "layer conv1: parameter 4 is 0, and must be 1"),
        ("conv1", ("5=1", "3=2"), "layer conv1: parameter 3 is 2, and must be 1"),
        ("conv1", ("0=5", "0=6"), "layer conv1: parameter 0 is 6, and must be 5"),
        ("conv1", ("6=225", "6=224"), "layer conv1: parameter 6 is 224, and must be 225"),
        ("conv1", ("r0", "c0"), r"layer conv1 reads \['c0'\], not the output of relu0"),
        ("relu1", ("0=5", "0=1"), "layer relu1: 1 slopes, and must have 5"),
        ("relu1", ("PReLU", "ReLU"), "not an SRVGG-compact graph: its layers are Input, Split"),
        ("shuffle", ("0=2", "0=3"), "not an SRVGG-compact graph: its end"),
        ("shuffle", ("0=2", "1=1"), "not an SRVGG-compact graph: its end"),
        ("enlarge", ("0=1", "0=2"), "not an SRVGG-compact graph: its end"),
        ("enlarge", ("1=2.000000e+00", "1=2.5"), "layer enlarge: parameter 1 is 2.5, and must be a whole number"),
        ("enlarge", ("in_a", "in_b"), "not an SRVGG-compact graph: its end"),
        ("add", ("e", "c"), "not an SRVGG-compact graph: its end"),
    ],
)
def test_other_graphs(rng, layer, change, message):
    lines = param_lines()
    line = next(line for line in lines if line[1] == layer)
    line[line.index(change[0])] = change[1]
    with pytest.raises(ValueError, match=message):
        srvgg_from_ncnn(param_text(lines), weights(rng)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with 7767517"),
        ("7767518\n1 1\n", "must start with 7767517"),
        ("7767517\n", "malformed"),
        ("7767517\nmany few\n", "malformed"),
        ("7767517\n2 1\nInput data 0 1 in\n", "announces 2 layers and holds 1"),
        ("7767517\n1 1\nInput data 0 2 in\n", "layer data announces 0 inputs and 2 outputs and names 1"),
        ("7767517\n1 1\nInput data 0 -1 in\n", "malformed"),
        ("7767517\n1 1\nInput data\n", "malformed"),
        ("7767517\n1 1\nInput data 0 1 in width=3\n", "malformed"),
        ("7767517\n1 1\nInput data 0 1 in 3\n", "malformed"),
    ],
)
def test_malformed_params(text, message):
    with pytest.raises(ValueError, match=message):
        read_param(text)
