# SPDX-License-Identifier: MIT
"""Drawings of results, as PNG and SVG beside them; nothing where matplotlib is missing."""

from __future__ import annotations

from typing import Any

from common import MIB, RESULTS

__all__ = ["bars", "scaling", "streams"]

OURS, OTHERS, WHOLE = "#c8442c", "#8a9aa8", "#3d4a56"


def _colour(name: str) -> str:
    return OURS if name.startswith("halotile") else WHOLE if name.startswith("whole") else OTHERS


def _new(columns: int, width: float, height: float) -> Any:
    try:
        import matplotlib
    except ImportError:
        print("no drawing: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "halotile", "svg.fonttype": "none", "font.size": 9}
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")


def _save(figure: Any, name: str) -> None:
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    print(f"drawn: results/{name}.png, results/{name}.svg")


def bars(part: str, found: dict[str, Any]) -> None:
    """Seconds and memory of each contender, the fastest first."""
    of = {name: one for name, one in found["contenders"].items() if "bfloat16" not in name}
    names = sorted(of, key=lambda name: -of[name]["seconds"]["median"])
    made = _new(2, 10, 0.26 * len(names) + 1)
    if made is None:
        return
    figure, (left, right) = made
    colours = [_colour(name) for name in names]
    seconds = [of[name]["seconds"] for name in names]
    spread = [[s["median"] - s["least"] for s in seconds], [s["most"] - s["median"] for s in seconds]]
    left.barh(names, [s["median"] for s in seconds], xerr=spread, color=colours, ecolor="#00000080")
    left.axvline(found["ideal_seconds"], color=OURS, linestyle=":", linewidth=1)
    left.set_xlabel("seconds; dotted: the model alone, no halo")
    right.barh(names, [of[name]["above_baseline_bytes"]["median"] / MIB for name in names], color=colours)
    right.set_yticklabels([])
    right.set_xlabel("MiB above the model and torch")
    figure.suptitle(f"{part}: one photo, the same weights")
    _save(figure, f"peers-{part}")


def scaling(found: dict[str, Any]) -> None:
    """Microseconds a pixel, and memory, over the image's size."""
    made = _new(2, 10, 3.6)
    if made is None:
        return
    figure, (left, right) = made
    lines = ["-", "--", "-.", ":"]
    for index, (name, of) in enumerate(found.items()):
        sides = sorted(map(int, of))
        style = {"color": _colour(name), "marker": "o", "markersize": 3, "linestyle": lines[index % 4], "label": name}
        left.plot(sides, [of[str(side)]["seconds"]["median"] / side for side in sides], **style)
        right.plot(sides, [of[str(side)]["above_baseline_bytes"]["median"] / MIB for side in sides], **style)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        axes.set_xlabel("megapixels")
    right.set_yscale("log")
    left.set_ylim(bottom=0)
    left.set_ylabel("microseconds a pixel")
    right.set_ylabel("MiB above the model and torch")
    left.legend(fontsize=8)
    _save(figure, "peers-scaling")


def streams(found: dict[str, Any]) -> None:
    """Time over that of the whole image, and memory beside image and result, of each network."""
    made = _new(2, 10, 0.9 * len(found) + 1.6)
    if made is None:
        return
    figure, (left, right) = made
    names = list(next(iter(found.values())))
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        ran = [(row + index * height, one[name]) for row, one in enumerate(found.values()) if name in one]
        places = [place for place, _ in ran]
        colour = OURS if name.endswith("stream") else _colour("" if name.startswith("halotile") else name)
        style = {"height": height * 0.9, "color": colour, "label": name, "hatch": "//" if "tiles" in name else None}
        left.barh(places, [one["over_whole"]["median"] for _, one in ran], **style)
        right.barh(places, [max(1, one["bytes"]["median"] / MIB) for _, one in ran], **style)
    left.set_yticks([row + 0.4 for row in range(len(found))], list(found))
    right.set_yticks([])
    left.axvline(1, color=WHOLE, linestyle=":", linewidth=1)
    left.set_xlabel("time, as a multiple of the whole image's")
    right.set_xlabel("MiB beside image and result")
    right.set_xscale("log")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.invert_yaxis()
    figure.suptitle("one image, the same weights")
    _save(figure, "stream")
