# SPDX-License-Identifier: MIT
"""The table of operators: one entry each, and what the rules of an entry must agree on."""

import pytest

pytest.importorskip("torch")

from halotile.inspection.operators import OPERATORS, entry
from halotile.inspection.operators.table import operator


def test_what_takes_a_statistic_is_known_to_both_passes():
    """What a run replaces by a statistic of the whole image must have been seen as global before."""
    assert [name for name, one in OPERATORS.items() if one.statistic and not (one.rows and one.positions)] == []


def test_every_entry_says_something():
    assert [name for name, one in OPERATORS.items() if not (one.rows or one.positions or one.statistic)] == []


def test_an_operator_has_one_entry():
    with pytest.raises(ValueError, match="convolution already has an entry"):
        operator("convolution")


def test_an_operator_without_an_entry_says_nothing():
    unknown = entry("no_such_operator")
    assert unknown.rows is None and unknown.positions is None and unknown.statistic is None
