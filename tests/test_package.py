# SPDX-License-Identifier: MIT
"""The package as it is installed: what importing costs and brings, and that it works without torch."""

import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import halotile
from halotile.options import Options, RestoreOptions

ROOT = Path(__file__).parents[1]


def python(code, *flags):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)


def test_importing_brings_numpy_and_nothing_else_that_is_heavy():
    done = python("import halotile, sys; print(sorted({m.split('.')[0] for m in sys.modules}))")
    assert done.returncode == 0, done.stderr
    for heavy in ("torch", "pyvips", "tqdm", "PIL", "scipy", "matplotlib"):
        assert f"'{heavy}'" not in done.stdout


def test_models_on_arrays_work_where_torch_cannot_be_imported():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
import halotile
image = np.random.default_rng(0).integers(1, 256, (90, 70, 4), np.uint8)
got = halotile.restore_tiled(image, lambda x: x.repeat(2, 2).repeat(2, 3), tile_size=32, halo=4)
assert np.array_equal(got, image.repeat(2, 0).repeat(2, 1))
for bad in ({"device": "cpu"}, {"dtype": "bfloat16"}):
    try:
        halotile.restore_tiled(image, lambda x: x, **bad)
    except ValueError as error:
        assert "NumPy arrays" in str(error)
    else:
        raise AssertionError(bad)
print("fine")
"""
    done = python(code)
    assert done.stdout.strip() == "fine", done.stderr


def test_version_is_told_once():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert halotile.__version__ == told
    assert f"## {told}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_signature_says_what_the_options_are():
    told = inspect.signature(halotile.restore_tiled).parameters
    taken = {field.name: field.default for field in dataclasses.fields(Options)}
    del taken["needs"]  # comes with the model
    assert {name: told[name].default for name in list(told)[2:]} == taken
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in list(told.values())[2:])


def test_every_source_file_says_its_licence():
    files = [
        *ROOT.glob("csrc/**/*.[ch]"),
        *ROOT.glob("python/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("tests/c/*.[ch]"),
    ]
    assert len(files) > 30
    for file in files:
        text = file.read_text()
        assert not text or "SPDX-License-Identifier: MIT" in text[:80], file
        assert text.isascii() or file.suffix == ".py", file


def test_c_files_stay_small():
    for file in [file for kind in ("c", "h", "cpp", "metal") for file in ROOT.glob(f"csrc/**/*.{kind}")]:
        lines = file.read_text().splitlines()
        assert len(lines) <= 400, file
        assert max(map(len, lines), default=0) <= 120, file


def test_every_option_has_a_type_a_check_and_a_paragraph():
    """A new option is a field of Options, a type for checkers and a paragraph of the docstring: none is forgotten."""
    options = {one.name: one for one in dataclasses.fields(Options) if one.name != "needs"}
    assert set(RestoreOptions.__annotations__) == set(options)
    paragraphs = re.findall(r"^        (\w+): ", halotile.restore_tiled.__doc__, re.MULTILINE)
    assert [name for name in options if name not in paragraphs] == []
    assert all(callable(one.metadata["check"]) for one in options.values())
    assert list(inspect.signature(halotile.restore_tiled).parameters)[2:] == list(options)
