# SPDX-License-Identifier: MIT
"""What the README shows is what happens."""

import ast
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


def test_every_example_is_python():
    assert len(EXAMPLES) >= 4
    for example in EXAMPLES:
        ast.parse(example)
