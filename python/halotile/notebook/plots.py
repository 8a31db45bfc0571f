# SPDX-License-Identifier: MIT
"""Plots by matplotlib, which is imported when one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .svg import ACCENT, SECOND
from .tiles import Tiles, shared_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plotted_curve", "plotted_over_time", "plotted_tiles"]

ZEROS = 0.03  # of the axes' height: where zeros are marked, which have no place on a scale of powers of ten


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    from matplotlib import pyplot

    return pyplot.figure().add_subplot()


def plotted_tiles(tiles: Tiles, axes: Axes | None) -> Axes:
    """Edges of tiles, what neighbours share, and one window with its halo."""
    axes = _axes(axes)
    height, width = tiles.size
    for start, stop in shared_by(tiles.rows):
        axes.axhspan(start, stop, color=SECOND, alpha=0.25, linewidth=0)
    for start, stop in shared_by(tiles.columns):
        axes.axvspan(start, stop, color=SECOND, alpha=0.25, linewidth=0)
    axes.hlines(sorted({end for span in tiles.rows for end in span}), 0, width, color="grey", linewidth=0.8)
    axes.vlines(sorted({end for span in tiles.columns for end in span}), 0, height, color="grey", linewidth=0.8)
    for (y, x, tall, wide), style, name in ((tiles.window, "--", "its window"), (tiles.keep, "-", "a tile")):
        corners = [x, x + wide, x + wide, x, x], [y, y, y + tall, y + tall, y]
        axes.plot(*corners, style, color=ACCENT, label=name)
    y, x, tall, wide = tiles.window
    axes.set(xlim=(min(0, x), max(width, x + wide)), ylim=(max(height, y + tall), min(0, y)), aspect="equal")
    axes.set(xlabel="columns, input pixels", ylabel="rows, input pixels")
    axes.legend()
    return axes


def plotted_curve(
    halos: Sequence[int], series: Mapping[str, Sequence[float]], white: float, exact: int | None, axes: Axes | None
) -> Axes:
    """Differences by halo on a scale of powers of ten; zeros are marked below it. exact: the halo that is exact."""
    axes = _axes(axes)
    lines = [
        axes.plot(halos, [value or float("nan") for value in values], marker="o", label=name)[0]
        for name, values in series.items()
    ]
    place = axes.get_xaxis_transform()
    for line, values in zip(lines, series.values(), strict=True):
        zeros = [halo for halo, value in zip(halos, values, strict=True) if value == 0]
        axes.plot(zeros, [ZEROS] * len(zeros), "v", transform=place, color=line.get_color(), fillstyle="none")
    if any(0 in values for values in series.values()):
        axes.plot([], [], "v", color="grey", fillstyle="none", label="no difference")
    axes.axhline(white / 510, linestyle=":", label="half an 8-bit step")
    if exact is not None:
        axes.axvline(exact, linestyle="--", color="green", label=f"exact halo: {exact}")
    axes.set(xlabel="halo, input pixels", ylabel=f"difference, of {white:g}", yscale="log")
    axes.legend()
    return axes


def plotted_over_time(seconds: Sequence[float], series: Mapping[str, Sequence[int]], axes: Axes | None) -> Axes:
    """Amounts of memory over time, in MiB."""
    axes = _axes(axes)
    for name, values in series.items():
        axes.plot(list(seconds), [value / 2**20 for value in values], label=name)
    axes.set(xlabel="seconds", ylabel="memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    return axes
