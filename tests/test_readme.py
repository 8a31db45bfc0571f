# SPDX-License-Identifier: MIT
"""What the README shows is what happens."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import testing  # noqa: E402

from .networks import Chain, Strided, seeded  # noqa: E402

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


@pytest.mark.parametrize(
    ("make", "shape", "options", "whole"),
    [
        (Chain, (60, 50), {}, r"crop\(model\(reflect_pad\(image, 1\)\)\) with boundary=\"reflect\""),
        (Chain, (60, 50), {"boundary": "native"}, r"model\(image\) with boundary=\"native\""),
        (
            lambda: Strided(4),
            (61, 50),
            {"boundary": "native", "phase": 4},
            r"crop\(model\(image completed by reflection to 64x52\)\) with boundary=\"native\"",
        ),
    ],
)
def test_assert_exact_says_what_it_compared_with(make, shape, options, whole):
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    with pytest.raises(AssertionError, match=whole):
        testing.assert_exact(seeded(make), image, halo=1, tile_size=24, tolerance=0, **options)
