# SPDX-License-Identifier: MIT
"""What a stream costs: operations and memory, from the graph alone. Imports torch."""

from __future__ import annotations

from math import prod

from ...inspection.operators.streaming import StreamNode
from ...inspection.recorder import Graph
from .steps import idle, rows_per_step

__all__ = ["flops", "memory", "usual_rows"]

PIXELS = 1 << 15  # of the image in a step: fewer cost time for each call, more leave the processor's caches
LEAST, MOST = 8, 64  # rows of the image in a step
COARSEST = 4  # rows in a step of the layer with the fewest
FACTORS = {"mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}


def flops(graph: Graph) -> int:
    """Floating-point operations of convolutions, matrix products and attention for the whole image."""
    return sum(map(_flops_of, graph.nodes))


def _flops_of(node: StreamNode) -> int:
    if node.name in ("convolution", "_convolution"):
        across = node["input"].shape if node["transposed"] else node.shape
        return 2 * prod(across) * prod(node["weight"].shape[1:])
    if node.name in FACTORS:
        return 2 * prod(node.shape) * node[FACTORS[node.name][0]].shape[-1]
    if node.name.startswith("_scaled_dot_product") and node.output == 0:
        return 4 * prod(node["query"].shape) * node["key"].shape[-2]
    return 0


def usual_rows(graph: Graph) -> int:
    """Rows of the image in a step, if memory is plentiful."""
    width, height = graph.image.shape[3], graph.image.rows
    coarsest = min(node.rows for node in graph.nodes if not node.whole)
    rows = max(-(-PIXELS // width), COARSEST * height // max(1, coarsest))
    return max(LEAST, min(MOST, rows))


def memory(graph: Graph, rows: int) -> tuple[int, int]:
    """Bytes held between steps of `rows` rows of the image, and in use during one."""
    return idle(graph).footprint(rows_per_step(graph, rows))
