# SPDX-License-Identifier: MIT
"""Programs: TorchScript, torch.export, ONNX, ncnn. The first two are code when they run; reading them must run none."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .case import UNDAMAGED, Case, Files, damaged
from .checkpoints import CODE, MODEL, archive, image, nested_pickle
from .marker import Marker

Members = dict[str, bytes]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1)).eval()


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


# ---- TorchScript -----------------------------------------------------------------------------------------------------


def script() -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network()), out)
    return out.getvalue()


def _member(members: Members, end: str) -> str:
    return min((name for name in members if name.endswith(end)), key=len)


def _scripts() -> Iterator[bytes]:
    good = members_of(script())
    code, data, constants = (_member(good, end) for end in (".py", "data.pkl", "constants.pkl"))
    text = good[code]
    at = text.index(b"return ")
    for depth in (100, 1000, 20_000, 200_000):
        for start, end in ((b"(", b")"), (b"[", b"]"), (b"-", b""), (b"not ", b""), (b"torch.relu(", b")")):
            nested = start * depth + b"input" + end * depth
            yield archive(good | {code: text[:at] + b"x = " + nested + b"\n    " + text[at:]})
        ifs = b"".join(b"  " * (2 + one) + b"if True:\n" for one in range(min(depth, 3000)))
        yield archive(good | {code: text[:at] + ifs + b"  " * 3003 + b"pass\n    " + text[at:]})
    for size in (1 << 20, 16 << 20):
        yield archive(good | {code: text + b"#" * size})
        yield archive(good | {code: text + b"\n".join(b"def f%d(): pass" % one for one in range(size >> 5))})
        yield archive(good | {code: text[:at] + b"\n    ".join([b"x = 1 + 2"] * (size >> 5)) + b"\n    " + text[at:]})
    for name in (data, constants):
        for pickled in (
            *CODE,
            pickle.dumps(Marker(), 2),
            b"",
            b"\x80\x02" + b"(" * 1_000_000 + b".",
            b"\x80\x02}" * 500_000,
        ):
            yield archive(good | {name: pickled})
        for depth in (1000, 100_000, 150_000):
            for kind in ("list", "tuple", "dict"):
                yield archive(good | {name: nested_pickle(depth, kind)})
        for size in (2**31 - 1, 2**32 - 1):
            for start in (b"B", b"X", b"\x8b"):
                yield archive(good | {name: b"\x80\x02" + start + struct.pack("<I", size) + b"."})
    for size in (2**31 - 1, 2**28):
        yield archive(good | {data: good[data].replace(b"K\x08", b"J" + struct.pack("<i", size))})
    yield archive(good | {f"{code[:-3]}_{one}.py": text for one in range(12_000)})
    yield archive({name: one for name, one in good.items() if name != code})
    yield archive(good | {code: bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    yield archive(good | {"../../elsewhere/deep/x": b"y", "/tmp/x": b"y"})
    for version in (b"", b"99999999999999999999\n", b"-1", b"x"):
        yield archive(good | {_member(good, "version"): version})
    calls = (
        b"ops.aten.from_file('marker', True, 100)",
        b"torch.save(input, 'marker')",
        b"__import__('os')",
        b"open('marker')",
    )
    for call in calls:
        yield archive(good | {code: text[:at] + b"x = " + call + b"\n    " + text[at:]})


# ---- torch.export ----------------------------------------------------------------------------------------------------


def exported() -> bytes:
    out = io.BytesIO()
    sides = {2: torch.export.Dim("h", min=4, max=4096), 3: torch.export.Dim("w", min=4, max=4096)}
    program = torch.export.export(network(), (torch.rand(1, 3, 24, 24),), dynamic_shapes=(sides,))
    torch.export.save(program, out)
    return out.getvalue()


def _texts(content: Any, key: str, text: str) -> Any:
    """JSON with every string under a key replaced."""
    if isinstance(content, dict):
        return {
            name: text if name == key and isinstance(one, str) else _texts(one, key, text)
            for name, one in content.items()
        }
    return [_texts(one, key, text) for one in content] if isinstance(content, list) else content


EXPRESSIONS = (
    "__import__('os').mkdir('marker')",
    "exec('import os; os.mkdir(\"marker\")')",
    "().__class__.__base__.__subclasses__()",
    "s0.__class__.__init__.__globals__['__builtins__']['__import__']('os').mkdir('marker')",
    "9**9**9**9",
    "factorial(10**9)",
    "factorial(100000)",
    "(" * 5000 + "s0" + ")" * 5000,
    "s0+" * 20_000 + "s0",
    "(s0+1)**100000",
    "expand((s0+s1+1)**300)",
    "integrate(sin(s0)**50*exp(s0**2), s0)",
    "primepi(10**14)",
    "open('marker', 'w')",
    "Symbol('../x')",
    "1/0",
    "",
    "lambda: 0",
    "x" * 1_000_000,
    "[s0 for s0 in range(10**10)]",
    "-" * 50_000 + "s0",
    "9" * 100_000,
)


def _exporteds() -> Iterator[bytes]:
    good = members_of(exported())
    model = _member(good, ".json") if "models/model.json" not in str(list(good)) else _named(good, "models/model.json")
    content = json.loads(good[model])
    for text in EXPRESSIONS:
        yield archive(good | {model: json.dumps(_texts(content, "expr_str", text)).encode()})
    for key in ("target", "name", "as_name", "nn_module_stack", "stack_trace", "path_name", "torch_fn"):
        for text in (
            "os.mkdir",
            "builtins.eval",
            "torch.load",
            "torch.ops.aten.from_file",
            "../../elsewhere/secret",
            "x" * 100_000,
        ):
            yield archive(good | {model: json.dumps(_texts(content, key, text)).encode()})
    for depth in (500, 100_000, 1_000_000):
        yield archive(good | {model: b"[" * depth + b"]" * depth})
        yield archive(good | {model: good[model][:-1] + b', "x": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"})
    for size in (1 << 20, 32 << 20):
        yield archive(good | {model: good[model] + b" " * size})
        yield archive(good | {model: good[model][:-1] + b', "x": [' + b"1," * (size >> 1) + b"1]}"})
    node = content["graph_module"]["graph"]["nodes"][0]
    for count in (5_000, 50_000):
        content["graph_module"]["graph"]["nodes"] = [node] * count
        yield archive(good | {model: json.dumps(content).encode()})
    configs = [name for name in good if name.endswith(".json") and name != model]
    for name in configs:
        for number in (2**31, 2**62, -1):
            yield archive(good | {name: _numbers(good[name], number)})
        yield archive(good | {name: _texts_of(good[name], "path_name", "../../../elsewhere/secret")})
        yield archive(good | {name: b"[" * 100_000})
        yield archive(good | {name: good[name].replace(b'"use_pickle": false', b'"use_pickle": true')})
    weight = next(name for name in good if "/weights/weight_" in name)
    pickled = {name: one.replace(b'"use_pickle": false', b'"use_pickle": true') for name, one in good.items()}
    for code in (*CODE, pickle.dumps(Marker(), 2)):
        yield archive(pickled | {weight: code})
        yield archive(good | {name: code for name in good if name.endswith(".pt")})
        yield archive(good | {weight.partition("/")[0] + "/data/constants/custom_obj_0": code})
        yield archive(good | {weight.partition("/")[0] + "/DATA/Constants/opaque_obj_0": code})
    yield archive(good | {f"{weight}_{one}": b"" for one in range(30_000)})
    yield archive({name: one for name, one in good.items() if name != weight})
    yield archive(good | {weight: bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    yield archive(good | {weight.partition("/")[0] + "/data/aotinductor/model/x.so": b"\x7fELF"})


def _named(members: Members, end: str) -> str:
    return next(name for name in members if name.endswith(end))


def _numbers(content: bytes, number: int) -> bytes:
    def changed(one: Any) -> Any:
        if isinstance(one, dict):
            return {name: changed(value) for name, value in one.items()}
        if isinstance(one, list):
            return [changed(value) for value in one]
        return number if type(one) is int else one

    return json.dumps(changed(json.loads(content))).encode()


def _texts_of(content: bytes, key: str, text: str) -> bytes:
    return json.dumps(_texts(json.loads(content), key, text)).encode()


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def _onnx(
    nodes: list[Any], initializers: list[Any] = (), sides: tuple[Any, ...] = (1, 3, "h", "w"), **more: Any
) -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=list(initializers))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **more
    ).SerializeToString()


def onnx() -> bytes:
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).random((3, 3, 3, 3), np.float32), "w")
    return _onnx([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], [weight])


def _chain(count: int) -> bytes:
    from onnx import helper

    names = ["x", *(f"n{one}" for one in range(count - 1)), "y"]
    return _onnx([helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


def _nested(depth: int) -> bytes:
    """Ifs in the branches of ifs."""
    from onnx import TensorProto, helper

    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    leaf = graph = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "g", [], [out])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=graph, else_branch=graph if depth < 8 else leaf)
        graph = helper.make_graph([node], "g", [], [out])
    top = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    true = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    return _onnx([top], [true])


def _nested_bytes(depth: int) -> bytes:
    """A model whose graph is in a node's attribute, again and again, by hand: fields 7, 1, 5 and 6."""
    content = b""
    for _ in range(depth):
        for field in (6, 5, 1):  # g of an attribute, attribute of a node, node of a graph
            content = message(field, content)
    return b"\x08\x08" + message(7, content)


def message(field: int, content: bytes) -> bytes:
    """A field of Protocol Buffers that holds bytes."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _onnxs() -> Iterator[Files]:
    from onnx import TensorProto, helper, numpy_helper

    def shape(*sides: int) -> Any:
        return numpy_helper.from_array(np.array(sides, np.int64), "s")

    for sides in ((2**16, 2**16), (2**40,), (2**20, 2**10), (20_000, 20_000), (-5,), (2**62, 4)):
        for kind in ("ConstantOfShape", "Expand", "Tile", "RandomUniform"):
            inputs = {"ConstantOfShape": ["s"], "Expand": ["one", "s"], "Tile": ["ones", "s"], "RandomUniform": []}[
                kind
            ]
            options = {"shape": [abs(one) for one in sides]} if kind == "RandomUniform" else {}
            one = numpy_helper.from_array(np.ones(1, np.float32), "one")
            ones = numpy_helper.from_array(np.ones((1,) * len(sides), np.float32), "ones")
            nodes = [
                helper.make_node(kind, inputs, ["b"], **options),
                helper.make_node("ReduceMax", ["b"], ["m"], keepdims=0),
            ]
            yield {"a.onnx": _onnx([*nodes, helper.make_node("Add", ["x", "m"], ["y"])], [one, ones, shape(*sides)])}
    parts = [
        numpy_helper.from_array(np.array(one, np.int64), name) for name, one in (("a", 0), ("b", 10**10), ("c", 1))
    ]
    ranged = [
        helper.make_node("Range", ["a", "b", "c"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["i"], keepdims=0),
    ]
    cast = [helper.make_node("Cast", ["i"], ["m"], to=1), helper.make_node("Add", ["x", "m"], ["y"])]
    yield {"a.onnx": _onnx(ranged + cast, parts)}
    for count in (2_000, 100_000):
        yield {"a.onnx": _chain(count)}
    for depth in (3, 40):
        yield {"a.onnx": _nested(depth) if depth < 10 else _nested_bytes(depth)}
    for depth in (100, 300, 5_000, 50_000):
        yield {"a.onnx": _nested_bytes(depth)}
    for places in (
        "../elsewhere/secret",
        "/etc/passwd",
        "/dev/zero",
        "in/../../elsewhere/secret",
        "good.png",
        "",
        "x" * 5000,
    ):
        for length in ("108", str(2**40), "-1"):
            weight = TensorProto(name="w", data_type=1, dims=[3, 3, 3, 3], data_location=TensorProto.EXTERNAL)
            for key, value in (("location", places), ("length", length), ("offset", "0")):
                weight.external_data.add(key=key, value=value)
            yield {"a.onnx": _onnx([helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], [weight])}
    for dims in ([2**62], [2**31, 2**31], [-1, 3, 3, 3], [3, 3, 3, 2**40], []):
        weight = TensorProto(name="w", data_type=1, dims=dims, raw_data=bytes(324))
        yield {"a.onnx": _onnx([helper.make_node("Conv", ["x", "w"], ["y"])], [weight])}
    for kernel in ([2**31, 2**31], [2**62, 1], [-1, -1], [0, 0]):
        for name in ("MaxPool", "AveragePool"):
            yield {"a.onnx": _onnx([helper.make_node(name, ["x"], ["y"], kernel_shape=kernel)])}
    for pads in ([2**62] * 4, [2**31] * 4, [-5] * 4, [2**30] * 4):
        yield {"a.onnx": _onnx([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[1, 1], pads=pads)])}
    for domain in ("com.microsoft", "ai.onnx.contrib", "../x", "\n"):
        node = helper.make_node("PyOp", ["x"], ["y"], domain=domain)
        yield {"a.onnx": _onnx([node])}
    for number in (0, 1, 3, 99, 2**31):
        yield {
            "a.onnx": _onnx(
                [helper.make_node("Relu", ["x"], ["y"])] * number if number < 100 else [],
                sides=(1, 3, number or "h", "w"),
            )
        }
    for sides in ((2**40, 3, "h", "w"), (1, 2**31, "h", "w"), (1, 3, 0, 0), (1, 3, 2**62, 2**62), (), ("a",) * 500):
        yield {"a.onnx": _onnx([helper.make_node("Relu", ["x"], ["y"])], sides=sides)}
    yield {"a.onnx": _onnx([helper.make_node("Relu", ["x" * 5_000_000], ["y"])])}
    yield {"a.onnx": _onnx([helper.make_node("Relu", ["x"], ["y"])], doc_string="d" * 5_000_000)}
    looped = [helper.make_node("Relu", ["y"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    yield {"a.onnx": _onnx(looped)}
    yield {"a.onnx": b"\x3a\xff\xff\xff\xff\x7f"}
    yield {"a.onnx": b"ORTM" + bytes(400)}
    yield {"a.onnx": b"\x08\x00\x00\x00ORTM" + bytes(400)}
    yield {"a.onnx": pickle.dumps(Marker())}


# ---- ncnn ------------------------------------------------------------------------------------------------------------


def param(*lines: str, blobs: int | None = None) -> bytes:
    text = "\n".join(("7767517", f"{len(lines)} {len(lines) if blobs is None else blobs}", *lines, ""))
    return text.encode("utf-8", "surrogateescape")


IN = "Input data 0 1 data"
CONVOLUTION = "Convolution c 1 1 data out 0=3 1=3 4=1 5=1 6=81"
WEIGHTS = bytes(4) + np.linspace(-1, 1, 84, dtype="<f4").tobytes()


def _ncnns() -> Iterator[tuple[bytes, bytes]]:
    for settings in (
        "0=2147483647",
        "6=2147483647",
        "0=3 6=2147483646",
        "11=4096 1=4096 6=50331648",
        "1=0",
        "1=-1",
        "3=0",
    ):
        yield param(IN, f"Convolution c 1 1 data out 0=3 1=3 4=1 5=1 6=81 {settings}"), WEIGHTS
        for kind in ("Convolution", "Deconvolution", "ConvolutionDepthWise", "InnerProduct", "MemoryData"):
            yield param(IN, f"{kind} c 1 1 data out {settings}"), WEIGHTS
    for settings in ("1=4096 2=4096", "1=1 2=4096", "0=2 3=4096 4=4096", "0=3 1=9 2=9", "1=1e30", "1=nan", "1=inf"):
        yield param(IN, f"Interp c 1 1 data out {settings}"), b""
        yield param(IN, f"PixelShuffle c 1 1 data out {settings}"), b""
        yield param(IN, f"Pooling c 1 1 data out {settings}"), b""
        yield param(IN, f"Padding c 1 1 data out {settings}"), b""
    for sides in ("0=2147483647", "0=65536 1=65536", "0=65536 1=65536 2=65536", "0=-1", "0=1 1=1 2=1 3=1 11=1"):
        yield param(IN, f"MemoryData m 0 1 m {sides}", "BinaryOp b 2 1 data m out 0=0"), bytes(64)
    for count in (30_000, 300_000):
        yield (
            param(IN, *(f"ReLU r{one} 1 1 {'data' if not one else f'b{one - 1}'} b{one}" for one in range(count))),
            b"",
        )
        yield param(IN, "ReLU r 1 1 data " + "b" * count), b""
        yield param(IN, f"Split s 1 {count} data " + " ".join(f"b{one}" for one in range(count))), b""
        yield param(IN, f"ReLU r 1 1 data out -23300={count}," + ",".join(["1"] * count)), b""
        yield param(IN, "ReLU r 1 1 data out " + " ".join(f"{one}=1" for one in range(count))), b""
        yield param(*(["ReLU same 1 1 data data"] * count)), b""
        yield (
            param(IN, *(f"Swish same 1 1 {'data' if not one else f'b{one - 1}'} b{one}" for one in range(count // 10))),
            b"",
        )
    yield param(IN, "Concat c " + str(2**31) + " 1 data out"), b""
    yield param(IN, "ReLU " + "r" * 5_000_000 + " 1 1 data out"), b""
    yield param(IN, "ReLU r 1 1 data out " + "0=" + "9" * 2_000_000), b""
    yield b"7767517\n" + b"9" * 1_000_000 + b" 1\n", b""
    yield b"7767517\n" * 300_000, b""
    yield b"7767517\n1 1\n" + b"\n" * 20_000_000, b""
    yield b"7767517\n1 1\n" + b" " * 50_000_000, b""
    yield b"7767517\n2 2\n" + b"\xff\xfe" * 100, b""
    yield param(IN, "Exec os.system 1 1 data out 0=touch"), b""
    for name in ("../../elsewhere/x", "__class__", "forward", "\x00", "\u202e", "training", "_modules", "a.b"):
        yield param(IN, f"Convolution {name} 1 1 data out 0=3 1=3 4=1 5=1 6=81"), WEIGHTS
    for tag in (0x01306B47, 0x000D4B38, 0x0002C056, 1, 0xFFFFFFFF):
        yield param(IN, CONVOLUTION), struct.pack("<I", tag) + WEIGHTS[4:]
    yield param(IN, CONVOLUTION), b""
    yield param(IN, CONVOLUTION), WEIGHTS + bytes(64 << 20)


# ---- all -------------------------------------------------------------------------------------------------------------


def _cases(kind: str, name: str, good: Callable[[], bytes], made: Iterator[bytes], each: int) -> Iterator[Case]:
    with_image = {"good.png": image()}
    yield from damaged(kind, name, good(), each, MODEL, with_image)
    for number, content in enumerate(made):
        files = with_image | {name: content}
        yield Case(kind, "made to harm", number, files.copy, name, MODEL)


def _ncnn_cases(each: int) -> Iterator[Case]:
    with_image = {"good.png": image()}
    both = with_image | {"a.bin": WEIGHTS}
    yield from damaged("ncnn", "a.param", param(IN, CONVOLUTION), each, MODEL, both)
    for case in damaged("ncnn", "a.bin", WEIGHTS, each, MODEL, with_image | {"a.param": param(IN, CONVOLUTION)}):
        if case.how != UNDAMAGED:
            yield Case("ncnn", f"{case.how} (weights)", case.number, case.files, "a.param", MODEL)
    for number, (text, weights) in enumerate(_ncnns()):
        files = with_image | {"a.param": text, "a.bin": weights}
        yield Case("ncnn", "made to harm", number, files.copy, "a.param", MODEL)


def cases(each: int) -> Iterator[Case]:
    yield from _cases("TorchScript", "a.pt", script, _scripts(), each)
    yield from _cases("torch.export", "a.pt2", exported, _exporteds(), each)
    yield from _cases("ONNX", "a.onnx", onnx, (files["a.onnx"] for files in _onnxs()), each)
    yield from _ncnn_cases(each)
