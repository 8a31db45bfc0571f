# SPDX-License-Identifier: MIT
"""Draws the curve of a training run, log.csv, as curve.png and curve.svg beside it."""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams |= {"svg.hashsalt": "halotile", "svg.fonttype": "none"}  # the same file every time, words as words
from matplotlib import pyplot  # noqa: E402

PANELS = {
    "loss": "loss (mean log of the square error)",
    "gain_sigma25": "gain at sigma 25, dB",
    "gain_jpeg30": "gain at JPEG quality 30, dB",
    "clean_psnr": "clean photographs, dB",
}


def draw(log: Path) -> None:
    """Four panels by training steps; the steps in which the learning rate falls are shaded."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    full = max(float(row["rate"]) for row in rows)
    falls = max(step for step, row in zip(steps, rows, strict=True) if float(row["rate"]) == full)
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.5), sharex=True, layout="constrained")
    for axis, (column, title) in zip(axes.flat, PANELS.items(), strict=True):
        axis.axvspan(falls, steps[-1], color="#f0f0ee", lw=0)
        axis.plot(steps, [float(row[column]) for row in rows], color="#2457a6", marker="o", markersize=3)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(color="#dddddd", lw=0.5)
    for axis in axes[1]:
        axis.set_xlabel("step (shaded: the learning rate falls)")
    figure.savefig(log.with_name("curve.png"), dpi=100, metadata={"Software": None})
    figure.savefig(log.with_name("curve.svg"), metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, nargs="?", default=Path(__file__).with_name("log.csv"))
    draw(parser.parse_args().log)


if __name__ == "__main__":
    main()
