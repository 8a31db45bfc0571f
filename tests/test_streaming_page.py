# SPDX-License-Identifier: MIT
"""docs/streaming.md: its drawing is what a stream does, and the tests that it cites are there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


def test_the_drawing_is_of_a_stream():
    """What differs is drawn anew by ``python scripts/draw_streaming.py``."""
    script = runpy.run_path(str(ROOT / "scripts" / "draw_streaming.py"))
    assert script["drawing"]() == (ROOT / "docs" / "streaming.svg").read_text()
    for before, after in zip(*script["steps"](), strict=True):
        assert before.end == after.begin and after.end - after.begin == 4  # made once, as many in every step
    for layers in script["steps"]():
        assert [layer.begin - layer.held for layer in layers] == [2, 2, 2, 0]


@pytest.mark.parametrize("name", ["streaming", "cluster"])
def test_cited_tests_are_there(name):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    cited = set(re.findall(r"`(test_\w+)`", page))
    written = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert cited and cited - written == set()
    assert [
        path for path in re.findall(r"`((?:tests|scripts|benchmarks)/\S+?\.\w+)`", page) if not (ROOT / path).exists()
    ] == []
