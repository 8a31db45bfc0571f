# SPDX-License-Identifier: MIT
"""A sample of the hostile files: restored, or refused with one line; no code run, nothing written elsewhere."""

import importlib.util
import itertools
import json
import os
import re
import sys

import pytest

torch = pytest.importorskip("torch")
LIBRARIES = ("zarr", "pyvips", "pillow_heif", "onnx", "onnxruntime", "spandrel", "safetensors", "tifffile", "einops")
if not all(map(importlib.util.find_spec, LIBRARIES)):
    pytest.skip("a library of the corpus is missing", allow_module_level=True)

from halotile import load_model  # noqa: E402

from .hostile import arrays, checkpoints, images, programs  # noqa: E402
from .hostile.run import Runner  # noqa: E402

SLOW_MACHINE = 10  # seconds of the processor, where the table of the whole corpus allows two
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures children by /proc")


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with Runner(tmp_path_factory.mktemp("corpus"), SLOW_MACHINE) as runner:
        yield runner


@pytest.mark.parametrize("part", [images, arrays, checkpoints])
def test_a_sample_of_the_corpus(runner, part):
    sample = itertools.islice(part.cases(1), 0, None, 16)
    wrong = [f"{one.case}: {one.what}: {one.text[-300:]}" for one in runner.all(sample) if not one.fine]
    assert wrong == []


@pytest.mark.parametrize("text", programs.EXPRESSIONS[:-1])
def test_sizes_of_exported_programs_run_no_code(tmp_path, monkeypatch, text):
    """torch evaluates them as Python while it reads the file."""
    if text == "1/0":
        pytest.skip("a formula, which torch refuses")
    monkeypatch.chdir(tmp_path)
    good = programs.members_of(programs.exported())
    model = next(name for name in good if name.endswith("models/model.json"))
    size = f'"expr_str": {json.dumps(text)}'
    changed = re.sub(r'"expr_str": "(?:[^"\\]|\\.)*"', lambda _: size, good[model].decode())
    (tmp_path / "a.pt2").write_bytes(programs.archive(good | {model: changed.encode()}))
    monkeypatch.setattr("torch.export.load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"a\.pt2.*(is not a formula|too many for a program)"):
        load_model("a.pt2")
    assert os.listdir() == ["a.pt2"]


@pytest.mark.parametrize("code", [b"(" * 20_000, b"-" * 20_000, b"not " * 20_000, b" " * 20_000, b"#" * 5_000_000])
def test_torchscript_that_crashes_its_reader(tmp_path, monkeypatch, code):
    good = programs.members_of(programs.script())
    name = min((one for one in good if one.endswith(".py")), key=len)
    (tmp_path / "a.pt").write_bytes(programs.archive(good | {name: good[name] + b"\n" + code}))
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"nests too deeply|bytes of code"):
        load_model(str(tmp_path / "a.pt"))


def nested_node(count):
    """A node with a graph of so many nodes inside it."""
    message = programs.message
    return message(1, message(5, message(6, message(1, b"") * count)))


@pytest.mark.parametrize(
    "content",
    [
        programs.message(7, programs.message(1, b"") * 20_001),
        programs.message(7, nested_node(20_001)),
        programs.message(7, nested_node(12_000) * 2),
        programs.message(7, programs.message(5, b"") * 1_000_001),
        programs.message(99, b"") * 1_000_001,
    ],
)
def test_graphs_that_onnx_runtime_takes_long_to_read(tmp_path, monkeypatch, content):
    (tmp_path / "a.onnx").write_bytes(content)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"a\.onnx' cannot be run as it is: it (is a graph of|has) more than \d+ "):
        load_model(str(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    "content", [b"", b"\x3a", b"\x3b" * 100, b"\x3a\x80", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 20]
)
def test_damaged_graphs_are_left_to_onnx_runtime(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.onnx"):
        load_model(str(tmp_path / "a.onnx"))


def test_what_a_model_raises_names_its_file(runner):
    """Where a message names neither the image nor the model."""
    cases = [one for one in programs.cases(1) if str(one).startswith("ONNX-made to harm")]
    raised = [outcome for outcome in map(runner.run, cases[:4]) if outcome.what != "restored"]
    assert len(raised) == 4
    assert all(one.what == "refused" and one.text.rstrip().endswith("(model: in/a.onnx)") for one in raised)
