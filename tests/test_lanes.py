# SPDX-License-Identifier: MIT
"""The tests that are thinned out are there, under their names."""

import re
from pathlib import Path

import pytest

from .lanes import STEPS


@pytest.mark.parametrize("file", STEPS)
def test_thinned_tests_are_there(file):
    text = (Path(__file__).parent / f"{file}.py").read_text()
    assert set(STEPS[file]) <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
