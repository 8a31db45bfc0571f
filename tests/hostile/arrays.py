# SPDX-License-Identifier: MIT
"""Arrays: .npy files, and zarr arrays of both versions with shards and codecs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from .case import DAMAGE, IDENTITY, SIZES, UNDAMAGED, Case, Files, damaged, seeded
from .images import pixels
from .marker import Marker

ARRAY = ("{input}", "-o", "out/result.npy", *IDENTITY, *SIZES, "--on-nonfinite", "ignore")

# ---- .npy ------------------------------------------------------------------------------------------------------------


def npy(header: str, version: int = 1, more: bytes = bytes(3000), length: int | None = None) -> bytes:
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + more


def _saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


NPY = {
    "u1.npy": _saved(pixels()),
    "f4.npy": _saved(np.linspace(0, 1, 3600, dtype="f4").reshape(30, 40, 3)),
    "big.npy": _saved(pixels(1, (30, 40), "u2").astype(">u2"), (2, 0)),
    "fortran.npy": _saved(np.asfortranarray(pixels(2)), (3, 0)),
}
FINE = "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 40)}"


def _npys() -> Iterator[bytes]:
    texts = ["((((", "[" * 9000, "-" * 5000, "{" * 5000, "(" * 9900, "~" * 9000 + "1", "not " * 2400 + "1", "'''", "\\"]
    texts += ["", "0" * 9000, "9" * 9000, "1e999999999", "9**9**9**9", "__import__('os').system('touch marker')"]
    texts += [
        FINE.replace("(30, 40)", one) for one in ("(-3, 40)", "(2**40, 2)", "(10**30,)", "(1e9, 3)", "()", "(0, 0)")
    ]
    texts += [FINE.replace("(30, 40)", f"({'9' * size}, 2)") for size in (5, 9, 18, 19, 4000)]
    texts += [FINE.replace("(30, 40)", f"({'1,' * size})") for size in (3, 33, 70, 2000)]
    kinds = ("|O", "|V0", "<M8[s]", "", "|S5", "<f16", "<c16", "<f2", "<i8", "|b1", "|u1,|u1", "|V9999999", "<U9999999")
    texts += [FINE.replace("|u1", kind) for kind in kinds]
    texts += [FINE.replace("'|u1'", "[" * depth + "('a', '|u1')" + "]" * depth) for depth in (1, 50, 500)]
    texts += [FINE.replace("'|u1'", "[" + "('a', '|u1'), " * 400 + "]"), FINE * 2, FINE.replace("False", "7")]
    yield from map(npy, texts)
    for version in (0, 2, 3, 9, 255):
        yield npy(FINE, version)
    for length in (2**16, 2**31 - 1, 2**32 - 1):
        yield npy(FINE, 3, length=length)
    yield npy(FINE.replace("|u1", "|O"), more=pickle.dumps([Marker()] * 1200))
    yield pickle.dumps(Marker())
    yield _zipped_npy()


def _zipped_npy() -> bytes:
    """An archive of .npy files under the name of one."""
    out = io.BytesIO()
    np.savez(out, pixels())
    return out.getvalue()


# ---- zarr ------------------------------------------------------------------------------------------------------------


def _stored(**options: Any) -> Files:
    """The files of an array."""
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(store=folder, **{"shape": (30, 40), "dtype": "u1", "chunks": (10, 20)} | options)
        array[...] = pixels(3, array.shape).astype(array.dtype)
        found = {}
        for here, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(here, name)
                with open(path, "rb") as file:
                    found[f"a.zarr/{os.path.relpath(path, folder)}"] = file.read()
    return dict(sorted(found.items()))


def _codecs() -> dict[str, dict[str, Any]]:
    from zarr import codecs

    plain = {"dtype": "u2", "compressors": codecs.BloscCodec()}
    return {
        "zarr v3": {},
        "zarr v3, no codec": {"compressors": None},
        "zarr v3, gzip": {"compressors": codecs.GzipCodec(), "shape": (30, 40, 3), "chunks": (10, 20, 3)},
        "zarr v3, blosc": plain,
        "zarr v3, crc32c": {"compressors": codecs.Crc32cCodec()},
        "zarr v3, shards": {"shards": (20, 40)},
        "zarr v3, shards of float": {"shards": (30, 40), "dtype": "f4", "compressors": codecs.GzipCodec()},
        "zarr v2": {"zarr_format": 2},
        "zarr v2, no codec": {"zarr_format": 2, "compressors": None},
    }


def _metadata(files: Files) -> str:
    return next(name for name in files if name.rpartition("/")[2] in ("zarr.json", ".zarray"))


def _zarr_damaged(kind: str, files: Files, each: int) -> Iterator[Case]:
    """Damage to the metadata and to a chunk or shard; files that lack or are something else."""
    about = _metadata(files)
    chunk = next(name for name in files if name.rpartition("/")[2][0].isdigit())
    for name in (about, chunk):
        for how, damage in DAMAGE.items():
            for number, one in enumerate(damage(files[name], each, (kind, name))):
                made = {**files, name: one}
                yield Case(
                    kind, f"{how} ({'metadata' if name == about else 'data'})", number, made.copy, "a.zarr", ARRAY
                )
    for number, name in enumerate((about, chunk)):
        less = {key: content for key, content in files.items() if key != name}
        yield Case(kind, "lacks a file", number, less.copy, "a.zarr", ARRAY)
        folder = less | {f"{name}/inside": b"x"}
        yield Case(kind, "a folder for a file", number, folder.copy, "a.zarr", ARRAY)


def _changed(files: Files, change: Any) -> Files:
    about = _metadata(files)
    content = json.loads(files[about])
    return {**files, about: json.dumps(change(content)).encode()}


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


VALUES = (None, 0, -1, 2**31, 2**64, 1.5, "x", "x" * 100_000, [], {}, [[]] * 1000, True, "NaN", [2**40, 2**40], [0, 0])


def _wrong_types(files: Files) -> Iterator[Files]:
    """Any field of the metadata, also inside, with a value of another kind."""
    content = json.loads(files[_metadata(files)])
    draws = seeded("zarr types", sorted(content))
    for path in _paths(content):
        for value in draws.sample(VALUES, 3):
            changed = json.loads(files[_metadata(files)])
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            yield {**files, _metadata(files): json.dumps(changed).encode()}


def _paths(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from _paths(value, (*above, key))


def _zarrs() -> Iterator[Files]:
    three, two, shards = (_stored(**_codecs()[kind]) for kind in ("zarr v3", "zarr v2", "zarr v3, shards"))
    about = "a.zarr/zarr.json"
    for depth in (100, 1000, 100_000, 1_000_000):
        yield {**three, about: deep(depth)}
        yield {**three, about: three[about][:-1] + b', "attributes": ' + deep(depth) + b"}"}
        yield {**two, "a.zarr/.zattrs": deep(depth)}
    yield {**three, about: b'"' + b"x" * 5_000_000 + b'"'}
    yield {**three, about: b"{" + b",".join(b'"%d": 1' % one for one in range(200_000)) + b"}"}
    nested: Any = json.loads(shards[about])["codecs"]
    for _ in range(60):  # shards in shards in shards
        nested = [{"name": "sharding_indexed", "configuration": {"chunk_shape": [10, 20], "codecs": nested}}]
    yield _changed(shards, lambda content: content | {"codecs": nested})
    yield _changed(three, lambda content: content | {"codecs": content["codecs"] * 500})
    pickles = {"id": "pickle", "protocol": 4}
    yield {**_changed(two, lambda c: c | {"dtype": "|O", "filters": [pickles]}), "a.zarr/0.0": pickle.dumps(Marker())}
    yield {**_changed(two, lambda c: c | {"compressor": pickles}), "a.zarr/0.0": pickle.dumps(Marker())}
    yield {**_changed(two, lambda c: c | {"filters": [pickles]}), "a.zarr/0.0": pickle.dumps(Marker())}
    for name in ("../../elsewhere/secret", "/etc/passwd", "numcodecs.pickles", "os.system", "shuffle" * 1000):
        yield _changed(two, lambda content, name=name: content | {"compressor": {"id": name}})
        yield _changed(three, lambda content, name=name: content | {"codecs": [{"name": name}]})
    for separator in ("../", "/../../../elsewhere/", "\0", "\n", "//"):
        yield _changed(two, lambda content, one=separator: content | {"dimension_separator": one})
        key = {"name": "default", "configuration": {"separator": separator}}
        yield _changed(three, lambda content, key=key: content | {"chunk_key_encoding": key})
    bomb = gzip.compress(bytes(600 << 20), 9)
    gzipped = _stored(compressors=__import__("zarr").codecs.GzipCodec())
    yield {**gzipped, "a.zarr/c/0/0": bomb}
    yield {**_stored(zarr_format=2, compressors=__import__("numcodecs").GZip()), "a.zarr/0.0": bomb}
    blosc = struct.pack("<BBBBIII", 2, 1, 0x21, 2, 2**31 - 1, 2**31 - 1, 2**31 - 1)
    yield {**_stored(**_codecs()["zarr v3, blosc"]), "a.zarr/c/0/0": blosc + bytes(64)}
    yield {
        **three,
        "a.zarr/c/0/0": b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**62) + bytes(64),
    }  # zstd's content size
    for offset, size in ((2**63, 2**63), (2**64 - 2, 1), (0, 2**40), (2**40, 10), (0, 2**64 - 2)):
        shard = shards["a.zarr/c/0/0"]
        index = struct.pack("<QQ", offset, size)
        yield {**shards, "a.zarr/c/0/0": shard[:-68] + index * 4 + shard[-4:]}
    yield {"a.zarr/.zgroup": b'{"zarr_format": 2}', "a.zarr/zarr.json": b"{}"}
    group = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
    yield {"a.zarr/zarr.json": group}
    yield {"a.zarr/zarr.json": group, **{f"a.zarr/{one}/zarr.json": group for one in range(300)}}
    yield {"a.zarr/" + "d/" * 400 + "zarr.json": group, "a.zarr/zarr.json": group}
    yield {"a.zarr": b"a file, no folder"}


def cases(each: int) -> Iterator[Case]:
    for name, content in NPY.items():
        yield from damaged(".npy", name, content, each, ARRAY)
    for number, content in enumerate(_npys()):
        yield Case(".npy", "made to harm", number, lambda content=content: {"a.npy": content}, "a.npy", ARRAY)
    for kind, options in _codecs().items():
        files = _stored(**options)
        yield Case(kind, UNDAMAGED, 0, files.copy, "a.zarr", ARRAY)
        yield from _zarr_damaged(kind, files, max(1, each // 2))
        for number, made in enumerate(_wrong_types(files) if each > 2 else ()):
            yield Case(kind, "wrong types", number, made.copy, "a.zarr", ARRAY)
    for number, made in enumerate(_zarrs()):
        yield Case("zarr", "made to harm", number, made.copy, "a.zarr", ARRAY)
