# SPDX-License-Identifier: MIT
"""What comes from elsewhere is restored or refused with a stated error; callbacks' own errors come out unchanged."""

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
pytest.importorskip("pyvips")

from halotile import TileError, iter_bands, load_model, restore_tiled, restore_to  # noqa: E402

TILES = {"tile_size": 24, "halo": 3}
STATED = (ValueError, TypeError, OSError)  # for what is wrong with an image: docs/reliability.md


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def restored_or_refused(path):
    """Nothing else may come of a file, and nothing may lie about afterwards."""
    before = sorted(os.listdir())
    try:
        restore_to("out.npy", path, torch.nn.Identity(), **TILES)
    except STATED as error:
        assert not isinstance(error, UnicodeError) and "\n" not in str(error)
        assert sorted(os.listdir()) == before
        return str(error)
    os.unlink("out.npy")
    return None


# ---- .npy ------------------------------------------------------------------------------------------------------------


def npy(header, version=1, more=3000):
    text = header.encode("latin1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    Path("in.npy").write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(more))


FINE = "{'descr': '|u1', 'fortran_order': False, 'shape': (30, 40)}"


@pytest.mark.parametrize(
    "header",
    [
        *("((((", "[" * 9000, "-" * 5000, "'''", "\\", "{", "", "0" * 5000, "{'descr': '|u1'", "\x00"),
        *(FINE.replace("(30, 40)", shape) for shape in ("(-3, 40)", "(2**40, 2)", "(10**30,)", "3", "((", "(1e9, 3)")),
        *(FINE.replace("|u1", kind) for kind in ("|O", "|V0", "<M8[s]", "", '"', "|S5", "<f16", "|u1,|u1")),
        FINE.replace("(30, 40)", "(99999999999, 99999999999)"),
    ],
)
def test_headers_of_npy_files(header):
    npy(header)
    assert restored_or_refused("in.npy") is not None


def test_a_header_longer_than_its_file():
    for length in (2**31 - 1, 2**32 - 1, 20_000):
        Path("in.npy").write_bytes(b"\x93NUMPY\x03\x00" + struct.pack("<I", length) + b"x" * 100)
        assert "not a readable .npy file" in restored_or_refused("in.npy")


def test_an_unknown_version():
    Path("in.npy").write_bytes(b"\x93NUMPY\x09\x00" + b"x" * 100)
    assert "version 9.0" in restored_or_refused("in.npy")


many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(at=st.integers(0, len(FINE)), text=st.text(st.characters(max_codepoint=127), max_size=6), cut=st.integers(0, 9))
def test_any_header_of_an_npy_file(at, text, cut):
    npy(FINE[:at] + text + FINE[at + cut :])
    restored_or_refused("in.npy")


@many
@given(at=st.integers(0, 127), value=st.integers(0, 255))
def test_any_byte_of_an_npy_file(at, value):
    np.save("in.npy", np.zeros((30, 40), np.uint8))
    content = bytearray(Path("in.npy").read_bytes())
    content[at] = value
    Path("in.npy").write_bytes(content)
    restored_or_refused("in.npy")


# ---- zarr ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def array():
    zarr.create_array(store="in.zarr", shape=(30, 40), dtype="u1", chunks=(10, 20))[...] = 7


def changed(**changes):
    metadata = json.loads(Path("in.zarr/zarr.json").read_text())
    for name, value in changes.items():
        place = metadata["chunk_grid"]["configuration"] if name == "chunk_shape" else metadata
        place[name] = value
    Path("in.zarr/zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "changes",
    [
        *({"chunk_shape": value} for value in ([0, 10], [0, 0], [-3, 10], [1.5, 10], [10], "x", None, [2**40, 2**40])),
        {"chunk_shape": [2**40, 2**40], "shape": [2**20, 2**20]},
        {"chunk_shape": [2**40, 1]},
        *({"shape": value} for value in ([-4, 4], [2**62, 2**62], "abc", [0, 0], [30, 40, 0])),
        *({"codecs": value} for value in (3, [], [{"name": "none"}], [{"name": "bytes"}] * 9)),
        *({name: None} for name in ("data_type", "fill_value", "node_type", "chunk_key_encoding")),
        {"data_type": "r99999999"},
        {"data_type": "string"},
    ],
)
def test_metadata_of_zarr_arrays(array, changes):
    changed(**changes)
    assert restored_or_refused("in.zarr") is not None


@pytest.mark.parametrize("content", ["[" * 100_000, "", "{}", "\x00", '"' + "x" * 100_000, "3", "[]"])
def test_metadata_that_is_none(array, content):
    Path("in.zarr/zarr.json").write_text(content)
    assert restored_or_refused("in.zarr") is not None


@many
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_any_byte_of_the_metadata(at, value):
    shutil.rmtree("in.zarr", ignore_errors=True)
    zarr.create_array(store="in.zarr", shape=(30, 40), dtype="u1", chunks=(10, 20))[...] = 7
    content = bytearray(Path("in.zarr/zarr.json").read_bytes())
    content[int(at * len(content))] = value
    Path("in.zarr/zarr.json").write_bytes(content)
    restored_or_refused("in.zarr")


@pytest.mark.parametrize("content", [b"", b"junk", b"\x28\xb5\x2f\xfd" + b"\xff" * 50])
def test_chunks_that_are_none(array, content):
    Path("in.zarr/c/1/0").write_bytes(content)
    assert restored_or_refused("in.zarr") is not None


# ---- models ----------------------------------------------------------------------------------------------------------


def zipped(name, pickle):
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("a/data.pkl", pickle)
        archive.writestr("a/version", "3\n")


def many_in_a_zip(name):
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        for number in range(70_000):
            archive.writestr(f"a/data/{number}", b"")


def many_headers(name):
    header = {f"t{one}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for one in range(20_000)}
    text = json.dumps(header).encode()
    Path(name).write_bytes(struct.pack("<Q", len(text)) + text)


def long_header(name):
    Path(name).write_bytes(struct.pack("<Q", 2**23) + b"{" + b" " * 2**23)


HOSTILE = {
    "marks.pth": (lambda name: Path(name).write_bytes(b"\x80\x02" + b"(" * 1_000_000), "too many for weights"),
    "lists.pth": (lambda name: Path(name).write_bytes(b"\x80\x02" + b"]" * 1_000_000 + b"."), "too many for weights"),
    "zip.pth": (lambda name: zipped(name, b"\x80\x02" + b"(" * 1_000_000 + b"t" * 1_000_000 + b"."), "too many"),
    "tensors.pth": (lambda name: torch.save({f"w{one}": torch.zeros(0) for one in range(12_000)}, name), "10000"),
    "files.pth": (many_in_a_zip, "a zip archive of 70001 files"),
    "many.safetensors": (many_headers, "it holds 20000 weights"),
    "long.safetensors": (long_header, "a header of 8388608 bytes"),
    "claims.safetensors": (lambda name: Path(name).write_bytes(struct.pack("<Q", 2**40) + b"{}"), "not a readable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_models_that_hold_too_much(name, monkeypatch):
    """They are refused before anything that takes long for each of their parts reads them."""
    make, text = HOSTILE[name]
    make(name)
    for reader in ("torch.load", *(("safetensors.torch.load_file",) if "claims" not in name else ())):
        monkeypatch.setattr(reader, lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=text):
        load_model(name)


# ---- callbacks and models --------------------------------------------------------------------------------------------


IMAGE = np.zeros((90, 60, 3), np.uint8)
CALLS = {
    "restore_tiled": lambda model, **options: restore_tiled(IMAGE, model, **TILES | options),
    "restore_to": lambda model, **options: restore_to("out.png", IMAGE, model, **TILES | options),
    "resume": lambda model, **options: restore_to("out.png", IMAGE, model, resume=True, **TILES | options),
    "iter_bands": lambda model, **options: list(iter_bands(IMAGE, model, **TILES | options)),
}
RAISED = (StopIteration, StopAsyncIteration, MemoryError, RecursionError, OSError, GeneratorExit, KeyboardInterrupt)


@pytest.mark.parametrize("at", [1, 5, 12])
@pytest.mark.parametrize("error", RAISED)
@pytest.mark.parametrize("call", CALLS)
def test_what_a_progress_callback_raises_comes_out(call, error, at):
    def progress(done, total):
        if done >= at:
            raise mine

    mine = error("mine")
    # Python turns StopIteration into RuntimeError where it leaves a generator, which iter_bands is.
    outside = RuntimeError if (call, error) == ("iter_bands", StopIteration) else error
    with pytest.raises(outside) as raised:
        CALLS[call](torch.nn.Identity(), progress=progress)
    assert mine in (raised.value, raised.value.__cause__)
    assert not os.path.exists("out.png")


class Unreadable(RuntimeError):
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("error", [*RAISED[:2], *RAISED[3:], Unreadable, Exception])
@pytest.mark.parametrize("call", CALLS)
def test_what_a_model_raises_is_a_tile_error(call, error, at):
    calls = []

    def model(windows):
        calls.append(1)
        if len(calls) == at:
            raise error("its")
        return windows

    ends = issubclass(error, (GeneratorExit, KeyboardInterrupt))
    with pytest.raises(error if ends else TileError) as raised:
        CALLS[call](model, scale=1)
    if not ends:
        assert type(raised.value.__cause__) is error
        assert "tile" in str(raised.value)
