# SPDX-License-Identifier: MIT
"""What a stream costs: operations and memory, from the graph alone. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from math import prod

import torch

from ...inspection.operators.streaming import StreamNode
from ...inspection.recorder import Graph
from .steps import Constants, Stepper, idle, rows_per_step, rows_seen

__all__ = [
    "bytes_between",
    "flops",
    "largest_layer",
    "memory",
    "reach",
    "repeated",
    "strip_cost",
    "usual_rows",
    "whole_memory",
    "work_at",
]

PIXELS = 1 << 14  # of most layers in a step: fewer cost time for each call, more leave the processor's caches
LEAST, MOST = 8, 64  # rows of the image in a step
TIMED = 3  # kinds of convolutions that are timed
SEGMENTS = 4  # rows in a step, as a multiple of those that a segment computes again
LARGEST = 32 << 20  # bytes that a layer makes in a step
COARSEST = 2  # rows in a step of the layer with the fewest
FACTORS = {"mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}


def flops(graph: Graph) -> int:
    """Floating-point operations of convolutions, matrix products and attention for the whole image."""
    return sum(map(_flops_of, graph.nodes))


def repeated(graph: Graph, rows: int) -> float:
    """Operations in steps of `rows` rows of the image, as a multiple of `flops`: segments compute their halo again."""
    made, again = flops(graph), 0.0
    for node in graph.nodes:
        if node.segment is not None:
            step = max(1, rows * node.rows // graph.image.rows)
            again += _flops_of(node) * (rows_seen(node, step) * node.segment.scale / step - 1)
    return 1 + again / made if made else 1.0


def work_at(graph: Graph, marks: Sequence[int]) -> list[tuple[float, float]]:
    """For each mark, a row of the result: what a stream that begins there leaves out of all operations above it, and
    what one that ends there has made, as shares of `flops`. A stream over rows [a, b) takes made(b) - left_out(a)."""
    rates = {node: _flops_of(node) / max(1, node.rows) for node in graph.nodes if _flops_of(node)}
    everything = max(1, flops(graph))

    def share(ends: dict[StreamNode, int]) -> float:
        made = ((rate, max(0, min(ends.get(node, 0), node.rows))) for node, rate in rates.items())
        return sum(rate * rows for rate, rows in made) / everything

    return [(share(begins), share(ends)) for begins, ends in (reach(graph, mark) for mark in marks)]


def largest_layer(graph: Graph) -> float:
    """The share of `flops` that the largest operator has."""
    return max(map(_flops_of, graph.nodes), default=0) / max(1, flops(graph))


def bytes_between(graph: Graph) -> float:
    """Bytes for a row of the image that lie between an operator and those after it, on average over the operators that
    do most of the work."""
    stepper, now, seen = idle(graph), 0, []
    for node in stepper.nodes:
        now += _bytes_of(node)
        now -= sum(map(_bytes_of, stepper.last_use.get(node, ())))
        if _flops_of(node):
            seen.append(now)
    return sum(seen) / max(1, len(seen)) / graph.image.rows


def reach(graph: Graph, mark: int) -> tuple[dict[StreamNode, int], dict[StreamNode, int]]:
    """The first row that every node makes for a stream that begins at a row of the result, and the row before which
    every node has stopped in one that ends there."""
    begins = Stepper(graph, [graph.result], Constants(False), lambda start, stop: torch.empty(0), mark).done
    return begins, idle(graph).ends({graph.result: mark})


def _flops_of(node: StreamNode) -> int:
    if node.segment is not None:
        return node.segment.flops
    if node.name in ("convolution", "_convolution"):
        across = node["input"].shape if node["transposed"] else node.shape
        return 2 * prod(across) * prod(node["weight"].shape[1:])
    if node.name in FACTORS:
        return 2 * prod(node.shape) * node[FACTORS[node.name][0]].shape[-1]
    if node.name.startswith("_scaled_dot_product") and node.output == 0:
        return 4 * prod(node["query"].shape) * node["key"].shape[-2]
    return 0


def usual_rows(graph: Graph) -> int:
    """Rows of the image in a step, if memory is plentiful: enough pixels where most of the work is."""
    height, work, sizes = graph.image.rows, {graph.image.rows: 0}, [1]
    for node in graph.nodes:
        if not node.whole:
            work[node.rows] = work.get(node.rows, 0) + _flops_of(node)
            sizes.append(prod(node.shape) * node.dtype.itemsize // height)
    busiest = max(work, key=work.__getitem__)
    width = graph.image.shape[3] * busiest // height
    rows = -(-PIXELS // max(1, width)) * height // max(1, busiest)
    rows = max(rows, COARSEST * height // max(1, min(work)))
    rows = max(LEAST, min(MOST, rows, LARGEST // max(sizes)))
    halos = [rows_seen(node, 1) * height // node.edges[0].source.rows for node in graph.nodes if node.segment]
    return max(rows, SEGMENTS * max(halos, default=0))


def memory(graph: Graph, rows: int) -> tuple[int, int]:
    """Bytes held between steps of `rows` rows of the image, and in use during one."""
    return idle(graph).footprint(rows_per_step(graph, rows))


def whole_memory(graph: Graph) -> int:
    """The largest number of bytes in use if the model ran on the whole image."""
    stepper, now, most = idle(graph), 0, 0
    for node in stepper.nodes:
        now += _bytes_of(node)
        most = max(most, now + (node.segment.peak if node.segment else 0))
        now -= sum(map(_bytes_of, stepper.last_use.get(node, ())))
    return most


def _bytes_of(node: StreamNode) -> int:
    return prod(node.shape) * node.dtype.itemsize if node.owns or node.func is None else 0


def strip_cost(graph: Graph, rows: int, side: int) -> float:
    """The time of the heaviest convolutions for a pixel of a strip, as a multiple of that in a square window.

    Measured on noise, in about a second: strips of few rows keep processors less busy, or their caches fuller.

    Args:
        rows: rows of the image in a step. side: of the window, input pixels.
    """
    heaviest = sorted((node for node in graph.nodes if _is_plain(node)), key=_flops_of, reverse=True)
    kinds: dict[tuple[int, ...], list[StreamNode]] = {}
    for node in heaviest:
        kinds.setdefault((*node["weight"].shape, node["groups"], node.rows), []).append(node)
    taken = sorted(kinds.values(), key=lambda nodes: -sum(map(_flops_of, nodes)))[:TIMED]
    strips = windows = 0.0
    for nodes in taken:
        share = sum(map(_flops_of, nodes))
        scale, across = Fraction(nodes[0].rows, graph.image.rows), Fraction(nodes[0].shape[3], graph.image.shape[3])
        strips += share * _seconds_per_pixel(nodes[0], max(1, int(rows * scale)), nodes[0].shape[3])
        windows += share * _seconds_per_pixel(nodes[0], max(1, int(side * scale)), max(1, int(side * across)))
    return strips / windows if windows else 1.0


def _is_plain(node: StreamNode) -> bool:
    weight = node.get("weight")
    return node.name == "convolution" and isinstance(weight, torch.Tensor) and not node["transposed"]


def _seconds_per_pixel(node: StreamNode, height: int, width: int) -> float:
    weight, like = node["weight"], torch.channels_last if node.device.type == "cpu" else torch.contiguous_format
    channels = weight.shape[1] * node["groups"]
    x = torch.rand((1, channels, height, width), device=node.device).to(node.dtype).contiguous(memory_format=like)
    weight, padding = weight.contiguous(memory_format=like), [side // 2 for side in weight.shape[2:]]
    with torch.inference_mode():
        torch.conv2d(x, weight, None, 1, padding, 1, node["groups"])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            torch.conv2d(x, weight, None, 1, padding, 1, node["groups"])
            seconds.append(time.perf_counter() - start)
    return min(seconds) / (height * width)
