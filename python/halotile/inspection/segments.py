# SPDX-License-Identifier: MIT
"""Submodules that cannot run on rows by their operators run as a whole on each strip, with a halo of their own.

    strip of the source   | halo |   rows that are made   | halo |     the halo is computed again for every strip;
    segment               |      the submodule, at once          |     rows outside it stream as elsewhere
    its rows                     |   rows that are made   |

This is exact if the submodule's receptive field and phase are known from its operators. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import torch

from ..scales import by_axis
from .operators.padding import BEYOND_EDGE
from .operators.segment import Segment
from .operators.streaming import Edge, StreamNode, Strip, image_like
from .structure import Structure, analyse

__all__ = ["RECORDING", "Segmented", "assign_segment", "segment_around"]

Tensor = torch.Tensor


class Recording(Protocol):
    def begin_segment(self) -> None:
        """Operators are not recorded until `end_segment`; the last node is the source."""

    def end_segment(self, segment: Segment) -> None:
        """The next operator's result is that of the segment."""


# Not an attribute of the module: what is reached from there is put back as it was once a model has run.
RECORDING: ContextVar[Recording] = ContextVar("RECORDING")


class Segmented(torch.nn.Module):
    """Stands for a submodule while a model is recorded."""

    def __init__(self, segment: Segment):
        super().__init__()
        self.inner, self.segment = segment.module, segment

    def forward(self, x: Tensor) -> Tensor:
        recording, source = RECORDING.get(), x.clone()
        recording.begin_segment()
        result = self.inner(source)
        recording.end_segment(self.segment)
        return result.clone()


def segment_around(
    root: torch.nn.Module, path: str, shapes: Mapping[str, tuple[int, ...] | None], dtype: torch.dtype
) -> dict[str, Segment]:
    """The smallest submodule around a path that may run as a whole, and others of its class, by path; empty if none.

    shapes: the shape of the image that each submodule took, by path; None if it took something else.
    """
    while path:
        found = _segment(root.get_submodule(path), shapes.get(path), dtype)
        if found is not None:
            alike = {path: found}
            for name, module in root.named_modules():
                if type(module) is type(found.module) and name != path:
                    other = _segment(module, shapes.get(name), dtype)
                    alike |= {} if other is None else {name: other}
            return alike
        path = path.rpartition(".")[0]
    return {}


def _segment(module: torch.nn.Module, shape: tuple[int, ...] | None, dtype: torch.dtype) -> Segment | None:
    if shape is None or len(shape) != 4 or shape[0] != 1:
        return None
    try:
        seen = analyse(module, channels=shape[1], dtype=dtype)
    except (TypeError, ValueError):
        return None
    if not _is_local(seen):
        return None
    assert seen.receptive_field is not None and seen.phase is not None and seen.scale is not None
    rows = by_axis(seen.scale)[0]
    return Segment(module.eval(), seen.receptive_field.top, seen.receptive_field.bottom, seen.phase[0], rows)


def _is_local(seen: Structure) -> bool:
    known = seen.receptive_field is not None and seen.phase is not None and seen.scale is not None
    whole = seen.global_operations or seen.unknown or seen.coordinate_sensitive or seen.stochastic
    # A strip's own ends must lie in its halo: what is mirrored there does, what comes from the other end does not.
    edges = all(note.endswith(BEYOND_EDGE) for note in seen.notes)
    return known and not whole and edges and seen.trim == (0, 0) and len(seen.sizes) > 1


def assign_segment(node: StreamNode, segment: Segment) -> None:
    source, scale = image_like(node), segment.scale
    step = math.lcm(segment.phase, scale.denominator)
    if node.rows != source.rows * scale:
        raise node.refuse("a submodule that runs as a whole changes its height by another factor")
    node.unit = scale.numerator * step // scale.denominator

    def low(a: int) -> int:
        return (math.floor(a / scale) - segment.above) // step * step

    def high(b: int) -> int:
        return -(-(math.ceil(b / scale) + segment.below) // step) * step

    def make(strip: Strip) -> Tensor:
        result: Any = segment.module(strip.slabs[0])
        return result.narrow(2, strip.start - int(strip.first * scale), strip.stop - strip.start)

    node.edges, node.make = [Edge(source, low, high)], make
