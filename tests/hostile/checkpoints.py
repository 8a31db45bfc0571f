# SPDX-License-Identifier: MIT
"""Files of weights: pickles in zip archives and bare, and safetensors."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from ..published import spandrel_imported
from .case import SIZES, Case, Files, damaged
from .images import SMALL, saved_image
from .marker import Marker

MODEL = ("in/good.png", "-o", "out/result.png", "-m", "{input}", *SIZES)
CODE = (  # pickles that run something as they are read
    b"cos\nmkdir\n(S'marker'\ntR.",
    b'\x80\x02cbuiltins\neval\n(S\'__import__("os").mkdir("marker")\'\ntR.',
    b"\x80\x02c__builtin__\nexec\n(S'import os; os.mkdir(\"marker\")'\ntR.",
    b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00x\x85R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    b"\x80\x02ctorch\nload\nX\x06\x00\x00\x00marker\x85R.",
    b"\x80\x02ctorch.serialization\nos.mkdir\nX\x06\x00\x00\x00marker\x85R.",
    b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x06marker\x85R.",
    b"(S'marker'\nios\nmkdir\n.",
    b"(cos\nmkdir\nS'marker'\no.",
)


def image() -> bytes:
    return saved_image(SMALL, ".png")


def weights() -> OrderedDict[str, torch.Tensor]:
    """Those of a small network that spandrel knows."""
    with spandrel_imported() as module_of:
        network = module_of("Compact.__arch.SRVGG").SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2)
    torch.manual_seed(0)
    return OrderedDict((name, torch.rand(one.shape) - 0.5) for name, one in network.state_dict().items())


def saved(content: object, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def _checkpoint(data: bytes, **members: bytes) -> bytes:
    return archive({"a/data.pkl": data, "a/version": b"3\n", "a/byteorder": b"little", **members})


def _safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# ---- pickles ---------------------------------------------------------------------------------------------------------


def nested_pickle(depth: int, kind: str) -> bytes:
    """Lists, tuples or dicts in one another, as deep as asked."""
    if kind == "list":
        return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    if kind == "tuple":
        return b"\x80\x02)" + b"\x85" * depth + b"."
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"N" + b"s" * depth + b"."


def _pickles() -> Iterator[bytes]:
    for code in CODE:
        yield code
        yield _checkpoint(code)
    for content in (Marker(), {"params": Marker()}, {"a": torch.zeros(2), "b": Marker()}, [Marker()] * 100):
        yield pickle.dumps(content)
        yield _checkpoint(pickle.dumps(content, 2))
        yield saved(content)
        yield saved(content, _use_new_zipfile_serialization=False)
    for byte in b"(]})N0":
        yield b"\x80\x02" + bytes([byte]) * 1_000_000
        yield _checkpoint(b"\x80\x02" + bytes([byte]) * 1_000_000 + b".")
    for depth in (50, 1000, 30_000, 120_000):
        for kind in ("list", "tuple", "dict"):
            yield nested_pickle(depth, kind)
            yield _checkpoint(nested_pickle(depth, kind))
    yield saved({f"w{one}": torch.zeros(0) for one in range(200_000)}, _use_new_zipfile_serialization=False)
    yield archive({"a/data.pkl": b"\x80\x02}."} | {f"a/data/{one}": b"" for one in range(70_000)})
    for size in (2**31 - 1, 2**32 - 1, 2**20):
        for start in (b"B", b"T", b"X", b"\x8a", b"\x8b"):
            yield b"\x80\x02" + start + struct.pack("<I", size)
            yield _checkpoint(b"\x80\x02" + start + struct.pack("<I", size) + b"x" * 100)
        yield b"\x80\x04\x95" + struct.pack("<Q", size << 30) + b"x"
        yield _checkpoint(b"\x80\x04\x8e" + struct.pack("<Q", size << 20) + b"x")
        yield b"\x80\x02r" + struct.pack("<I", size) + b"."
    yield _checkpoint(b"\x80\x02I" + b"9" * 500_000 + b"\n.")
    yield _checkpoint(b"\x80\x02\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000 + b".")
    good = saved(weights())
    with zipfile.ZipFile(io.BytesIO(good)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    data = next(name for name in members if name.endswith("data.pkl"))
    for size in (2**31 - 1, 2**30, 2**24):  # storages and shapes that claim more than there is
        yield archive(members | {data: members[data].replace(b"K\x03", b"J" + struct.pack("<i", size), 2)})
    yield archive({name.replace("archive/", "../../elsewhere/deep/"): one for name, one in members.items()})
    yield archive({name.replace("archive/", "/tmp/"): one for name, one in members.items()})
    yield archive(
        {f"{name}\n\ud800".encode("utf-8", "surrogatepass").decode("latin1"): b"" for name in members} | members
    )
    yield archive({name: content for name, content in members.items() if "/data/" not in name})
    yield archive(members, zipfile.ZIP_DEFLATED)
    yield archive({"a/data.pkl": bytes(300 << 20)}, zipfile.ZIP_DEFLATED)
    expanded = {name: torch.zeros(1).expand(2**30, 2**10) for name in ("a.weight", "b.weight")}
    yield saved(expanded)
    for name in ("body.999999999.weight", "layers.1_000_000_000.blocks.0.weight", "model.2147483647.weight"):
        yield saved(weights() | {name: torch.zeros(2, 2, 3, 3)})
    for name in ("../../elsewhere/x", "\n", "\ud800", "x" * 100_000, "", "__class__", "%s%s%n"):
        yield saved({name: torch.zeros(64, 3, 3, 3)})


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _tensors() -> Iterator[bytes]:
    one = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    for length in (0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1):
        yield _safetensors({"a": one}, bytes(16), length)
    for depth in (100, 1000, 100_000, 1_000_000):
        yield _safetensors(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")
        yield _safetensors(b'{"a": ' * depth + b"1" + b"}" * depth)
    for shape in ([2**62], [2**32, 2**32], [-1], [0] * 1000, [1] * 100_000, ["x"], 7, None, [1.5], [2**64]):
        yield _safetensors({"a": one | {"shape": shape}}, bytes(16))
    for offsets in ([0, 2**63], [16, 0], [-1, 15], [0, 15], [8, 24], ["a", "b"], [], None, [0, 16, 32]):
        yield _safetensors({"a": one | {"data_offsets": offsets}}, bytes(16))
    for dtype in ("F128", "", None, 7, "I64", "F8_E4M3", "F4", "x" * 10_000):
        yield _safetensors({"a": one | {"dtype": dtype}}, bytes(16))
    for header in (b"", b"{", b"{}", b"[]", b"{" + b" " * 5_000_000 + b"}", b'{"__metadata__": 7}', b"\xff" * 100):
        yield _safetensors(header)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for count in (20_000, 200_000):
        yield _safetensors({f"t{number}": empty for number in range(count)})
    yield _safetensors({"__metadata__": {f"m{one}": "x" for one in range(100_000)}})
    for name in ("../../elsewhere/x", "\n", "x" * 100_000, "body.999999999.weight", "", "layers.1_000_000.weight"):
        yield _safetensors({name: one}, bytes(16))
    overlap = {f"t{number}": one for number in range(50)}
    yield _safetensors(overlap, bytes(16))


def beside(name: str, content: bytes, **others: bytes) -> Files:
    return {"good.png": image(), name: content, **others}


def cases(each: int) -> Iterator[Case]:
    from safetensors.torch import save

    with_image = {"good.png": image()}
    good = weights()
    yield from damaged("checkpoint .pth", "a.pth", saved(good), each, MODEL, with_image)
    old = saved({"params": good}, _use_new_zipfile_serialization=False)
    yield from damaged("checkpoint .pth", "old.pth", old, each, MODEL, with_image)
    yield from damaged("safetensors", "a.safetensors", save(good), each, MODEL, with_image)
    for number, content in enumerate(_pickles()):
        made = beside("a.pth", content)
        yield Case("checkpoint .pth", "made to harm", number, made.copy, "a.pth", MODEL)
    for number, content in enumerate(_tensors()):
        made = beside("a.safetensors", content)
        yield Case("safetensors", "made to harm", number, made.copy, "a.safetensors", MODEL)
