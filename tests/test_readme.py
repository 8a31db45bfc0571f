# SPDX-License-Identifier: MIT
"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_sentence_says_with_which_boundary():
    first = README.split("\n\n")[1]
    assert "`model(image)`" in first and '`boundary="native"`' in first


def test_the_first_example_is_true(capsys):
    exec(compile(EXAMPLES[0], "README.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def test_every_example_runs(tmp_path, monkeypatch):
    """One after the other; those after the first on a small photo."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pyvips")
    monkeypatch.chdir(tmp_path)
    image.new("RGB", (80, 72)).save("photo.jpg")
    assert len(EXAMPLES) >= 4
    known = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), known)
        known["photo"] = known["photo"][:, :72, :80]


def test_it_fits_a_screen_and_names_the_two_commands():
    assert len(README.splitlines()) <= 70
    assert "make demo" in README and "make test" in README
