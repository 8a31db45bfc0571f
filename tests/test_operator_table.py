# SPDX-License-Identifier: MIT
"""The table of operators: one entry each, what the rules of an entry must agree on, and why a rule is missing.

``python -m tests.test_operator_table`` writes the list of docs/streaming.md anew.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from halotile.inspection.info import Field
from halotile.inspection.operators import OPERATORS, Operator, entry
from halotile.inspection.operators.streaming import Refused
from halotile.inspection.operators.table import (
    DECOMPOSED,
    FUNCTIONAL,
    OUT_OF_PLACE,
    POINTWISE,
    SIDES,
    VIEW,
    Family,
)
from halotile.inspection.propagation import propagate
from halotile.inspection.shapes import Shapes
from halotile.inspection.structure import analyse

PAGE = Path(__file__).parents[1] / "docs" / "streaming.md"
BEGIN, END = "<!-- operators: written by tests/test_operator_table.py -->\n", "<!-- end of operators -->\n"


def test_what_takes_a_statistic_is_known_to_both_passes():
    """What a run replaces by a statistic of the whole image must have been seen as global before."""
    assert [name for name, one in OPERATORS.items() if one.statistic and not (one.rows and one.positions)] == []


@pytest.mark.parametrize("side", SIDES)
def test_every_entry_has_each_side_or_says_why_not(side):
    silent = [name for name, one in OPERATORS.items() if not getattr(one, side) and not one.without.get(side)]
    assert silent == []


@pytest.mark.parametrize("side", SIDES)
def test_a_reason_is_given_only_for_what_is_missing(side):
    assert [name for name, one in OPERATORS.items() if getattr(one, side) and side in one.without] == []


def test_every_entry_has_a_family():
    assert [name for name, one in OPERATORS.items() if not one.family] == []


def overloads(name: str) -> Iterator[torch._ops.OpOverload]:
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        if "out" not in overload and "left" not in overload:
            yield getattr(packet, overload)


def is_composite(one: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(one.name(), "CompositeImplicitAutograd")


# What torch must say of an operator where this is the reason.
TRUE_OF: dict[str, Callable[[torch._ops.OpOverload], bool]] = {
    POINTWISE: lambda one: torch.Tag.pointwise in one.tags,
    VIEW: lambda one: one.is_view,
    DECOMPOSED: is_composite,
    OUT_OF_PLACE: lambda one: one._schema.is_mutable,
    FUNCTIONAL: lambda one: not one._schema.is_mutable,
}


@pytest.mark.parametrize("reason", TRUE_OF)
def test_torch_agrees_with_the_reason(reason):
    named = [name for name, one in OPERATORS.items() if reason in one.without.values()]
    assert named
    assert [name for name in named if not any(map(TRUE_OF[reason], overloads(name)))] == []


def test_an_operator_has_one_entry():
    with pytest.raises(ValueError, match="convolution already has an entry"):
        Family("tests")("convolution")


def test_an_operator_without_an_entry_says_nothing():
    assert entry("no_such_operator") == Operator()


def listed() -> str:
    """Which operators stream and which are refused, by family, as docs/streaming.md lists them."""
    families: dict[str, dict[str, list[str]]] = {}
    for name, one in OPERATORS.items():
        why = one.stream.why if isinstance(one.stream, Refused) else ""
        families.setdefault(one.family, {}).setdefault(why, []).append(f"`{name}`")
    parts = []
    for family, groups in families.items():
        said = [", ".join(groups.pop(""))] if "" in groups else []
        said += [f"refused: {', '.join(names)} ({why})" for why, names in groups.items()]
        text = f"- **{family}**: {'; '.join(said)}."
        parts.append(textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(parts) + "\n"


def test_the_page_lists_them_all():
    """What differs is written anew by ``python -m tests.test_operator_table``."""
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == listed()


class Applied(torch.nn.Module):
    """A convolution and a function after it."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], channels: int = 6):
        super().__init__()
        self.layer, self.function = torch.nn.Conv2d(3, channels, 3, padding=1), function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    "function",
    [
        torch.nn.Hardswish(),
        torch.nn.GLU(1),
        torch.nn.ChannelShuffle(3),
        lambda x: torch.cat(torch.unsafe_chunk(x, 2, 1), 1),
        lambda x: torch.ops.aten.view_copy(x, x.shape),
        lambda x: torch.ops.aten.unfold_copy(x, 2, 1, 1)[..., 0],
        lambda x: torch.ops.aten._safe_softmax(x, 1),
        lambda x: x.cumprod(1).logcumsumexp(1),
        lambda x: x.clone().zero_() + x,
    ],
    ids=["hardswish", "glu", "shuffle", "unsafe_chunk", "view_copy", "unfold_copy", "safe_softmax", "cumprod", "zero_"],
)
def test_both_passes_know_what_is_rare(function):
    model = Applied(function).eval()
    seen, channels = analyse(model), model(torch.zeros(1, 3, 4, 4)).shape[1]
    run = propagate(model, Shapes(3, channels, Fraction(1)), [model])
    assert (seen.unknown, seen.receptive_field) == ((), Field(1, 1, 1, 1))
    assert (run.unknown, run.field) == ((), Field(1, 1, 1, 1))


if __name__ == "__main__":
    above, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(above + BEGIN + listed() + END + rest.split(END)[1])
    sys.stdout.write(f"{len(OPERATORS)} operators\n")
