# SPDX-License-Identifier: MIT
"""evaluate(): restores images whose right result is known, and tells how near the results come."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Unpack
from xml.etree import ElementTree

import numpy as np

from . import metrics
from .errors import TileError
from .files.pairs import Pair, find_pairs, read_array
from .files.vips import Path
from .images.image import is_tensor, open_image
from .images.shown import floats_of
from .layouts import checked_layout
from .metrics import SSIM_WINDOW
from .option_checks import integer
from .options import RestoreOptions
from .restore import TiledRestorer
from .texts import one_line

__all__ = ["Evaluation", "Score", "evaluate", "luma", "measured"]

LUMA = (65.481, 128.553, 24.966)  # of red, green and blue from 0 to 1: BT.601, as MATLAB's rgb2ycbcr
LUMA_OF_BLACK, LUMA_WHITE = 16.0, 255.0
EXPECTED = (OSError, ValueError, TypeError, TileError)  # with one image: the others are evaluated all the same

Metric = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Score:
    """How near the result for one image comes to its target.

    Attributes:
        name: of the target's file, or as given.
        psnr: in dB; infinite for equal images. None if the image failed.
        ssim: None if the image failed, is too small, or scikit-image is not installed.
        others: the values of further metrics, by name.
        seconds: that the model took.
        error: why there are no values; None if there are.
    """

    name: str
    psnr: float | None = None
    ssim: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    def value(self, metric: str) -> float | None:
        """The value of a metric: "psnr", "ssim" or another one's name."""
        return {"psnr": self.psnr, "ssim": self.ssim, **self.others}.get(metric)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: one score for each pair, and how they were measured."""

    scores: tuple[Score, ...]
    y_channel: bool = False
    crop_border: int | str = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics, such as "psnr" and "ssim"."""
        return tuple(dict.fromkeys(("psnr", "ssim", *(name for one in self.scores for name in one.others))))

    def mean(self, metric: str = "psnr") -> float | None:
        """The mean over the images that have the value; None if none has."""
        values = [value for one in self.scores if (value := one.value(metric)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def failed(self) -> tuple[Score, ...]:
        return tuple(one for one in self.scores if one.error is not None)

    def below(self, **limits: float) -> list[str]:
        """A sentence for each value below its limit: ``below(psnr=30, ssim=0.9)``. NaN and missing values are below."""
        return [text for one in self.scores for text in _below(one, limits)]

    # ---- as text -----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = [
            [cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(row)]
            for row in self._padded()
        ]
        return "\n".join(["  ".join(cells).rstrip() for cells in lines] + [f"measured on {self._how()}"])

    def _padded(self) -> Iterator[list[tuple[str, int]]]:
        rows = [*self._table()]
        widths = [max(len(row[index]) for row in rows if index < len(row)) for index in range(len(rows[0]))]
        for row in rows:
            yield (
                list(zip(row, widths, strict=False)) if len(row) == len(widths) else [(row[0], widths[0]), (row[1], 0)]
            )

    def _table(self) -> Iterator[list[str]]:
        """Rows of cells; two cells for an image that failed."""
        yield ["image", *(HEADS.get(name, name) for name in self.metrics), "seconds"]
        for one in self.scores:
            if one.error is not None:
                yield [one.name, one.error]
            else:
                yield [one.name, *(_shown(name, one.value(name)) for name in self.metrics), f"{one.seconds:.2f}"]
        seconds = sum(one.seconds for one in self.scores)
        count = len(self.scores) - len(self.failed)
        yield [f"mean of {count}", *(_shown(name, self.mean(name)) for name in self.metrics), f"{seconds:.2f}"]

    def _how(self) -> str:
        what = "the Y channel (BT.601)" if self.y_channel else "all channels"
        return f"{what}, {f'without {self.crop_border} pixels at the border' if self.crop_border else 'whole images'}"

    def _repr_html_(self) -> str:
        rows = [*self._table()]
        span = len(rows[0]) - 1
        cells = [
            f"<td>{html.escape(row[0])}</td>"
            + (
                "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row[1:])
                if len(row) > 2
                else f'<td colspan="{span}">{html.escape(row[1])}</td>'
            )
            for row in rows[1:]
        ]
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
        caption = f"<caption>measured on {html.escape(self._how())}</caption>"
        return f"<table>{caption}<tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    # ---- as files ----------------------------------------------------------------------------------------------------

    def to_csv(self) -> str:
        """One line an image; empty cells for missing values, and an infinite PSNR as inf."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write(["image", *self.metrics, "seconds", "error"])
        for one in self.scores:
            values = (one.value(name) for name in self.metrics)
            write(
                [
                    one.name,
                    *("" if value is None else repr(value) for value in values),
                    f"{one.seconds:.3f}",
                    one.error or "",
                ]
            )
        return text.getvalue()

    def to_json(self) -> str:
        """Scores, means and how they were measured. An infinite PSNR is null, and "equal" is then true."""
        scores = [
            {"image": one.name, **{name: _finite(one.value(name)) for name in self.metrics},
             "equal": one.psnr == math.inf, "seconds": round(one.seconds, 3), "error": one.error}
            for one in self.scores
        ]  # fmt: skip
        how = {"y_channel": self.y_channel, "crop_border": self.crop_border}
        means = {name: _finite(self.mean(name)) for name in self.metrics}
        return json.dumps({"scores": scores, "mean": means, **how}, indent=1, allow_nan=False)

    def to_junit(self, **limits: float) -> str:
        """A JUnit document for CI: a test for each image, which fails if a value is below its limit (see `below`)."""
        suite = ElementTree.Element("testsuite", name="halotile evaluate", tests=str(len(self.scores)))
        counts = {"failures": 0, "errors": 0}
        for one in self.scores:
            case = ElementTree.SubElement(
                suite, "testcase", classname="halotile.evaluate", name=one.name, time=f"{one.seconds:.3f}"
            )
            properties = ElementTree.SubElement(case, "properties")
            for name in self.metrics:
                ElementTree.SubElement(properties, "property", name=name, value=str(one.value(name)))
            below = [] if one.error is not None else _below(one, limits)
            if one.error is not None:
                counts["errors"] += 1
                ElementTree.SubElement(case, "error", message=one.error)
            elif below:
                counts["failures"] += 1
                ElementTree.SubElement(case, "failure", message="; ".join(below))
        suite.attrib |= {name: str(count) for name, count in counts.items()}
        return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"


HEADS = {"psnr": "PSNR, dB", "ssim": "SSIM"}
DIGITS = {"psnr": 2, "ssim": 4}
UNITS = {"psnr": " dB"}


def _shown(metric: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{DIGITS.get(metric, 4)}f}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _below(one: Score, limits: Mapping[str, float]) -> list[str]:
    found = []
    for metric, limit in limits.items():
        value, unit = one.value(metric), UNITS.get(metric, "")
        if value is None:
            found.append(f"{one.name}: no {metric.upper()} to compare with {limit:g}{unit}: {one.error or 'not known'}")
        elif not value >= limit:
            found.append(f"{one.name}: {metric.upper()} {value:.4f}{unit} is below {limit:g}{unit}")
    return found


# ---- measuring -------------------------------------------------------------------------------------------------------


def evaluate(
    pairs: Path | Iterable[tuple[Any, Any] | Pair],
    model: Callable[..., Any] | None,
    *,
    targets: Path | None = None,
    y_channel: bool = False,
    crop_border: int | Literal["scale"] = 0,
    metrics: Mapping[str, Metric] | None = None,
    on_score: Callable[[Score], object] | None = None,
    **options: Unpack[RestoreOptions],
) -> Evaluation:
    """Restores images whose right result is known, and measures how near the results come.

    Results are rounded to the dtype of their targets before they are measured. A target that is larger by less than the
    scale, as sides that are no multiple of it give, loses its last rows and columns. An image that fails does not stop
    the others.

    Args:
        pairs: (input, target) pairs of arrays, tensors or paths; or a folder: see `halotile evaluate --help`.
        model: as for `restore_tiled`, or a `TiledRestorer`, whose options then apply. None: inputs are the results.

    Keyword Args:
        targets: the folder of targets; then `pairs` is the folder of inputs.
        y_channel: measure the luma of BT.601 alone, as papers on super-resolution do; grey images as they are.
        crop_border: pixels at each side of results that are not measured; "scale": as many as the scale.
        metrics: further metrics, functions of (result, target) that return a number, by name: LPIPS, for instance. They
            get the images as they are, without crop.
        on_score: called with each score as soon as it is known.
        options: as for `restore_tiled`.

    Returns:
        The scores: a table as text, and in notebooks; `to_csv`, `to_json`, `to_junit`.

    Raises:
        ValueError: a bad option, no pairs, or a file without partner. TypeError: likewise.

    >>> scores = evaluate([(noisy, clean)], model)
    >>> len(scores.scores), scores.metrics
    (1, ('psnr', 'ssim'))
    """
    if crop_border != "scale":
        crop_border = integer("crop_border", crop_border, 0)
    if isinstance(pairs, str | os.PathLike):
        found = find_pairs(pairs, targets)
    elif targets is not None:
        raise TypeError("targets must be left out where pairs are pairs, not a folder of inputs")
    else:
        found = [one if isinstance(one, Pair) else Pair(_name(index, one), *one) for index, one in enumerate(pairs)]
    if not found:
        raise ValueError("pairs must hold at least one, not none")
    if model is None and options:
        raise TypeError(f"options must be left out without a model, not {', '.join(options)}")
    restorer = None if model is None else TiledRestorer.of(model, {**options})
    measure = _Measure(restorer, y_channel, crop_border, metrics or {})
    scores = []
    for one in found:
        scores.append(measure(one))
        if on_score is not None:
            on_score(scores[-1])
    return Evaluation(tuple(scores), y_channel, crop_border)


def _name(index: int, pair: tuple[Any, Any]) -> str:
    target = pair[1]
    return os.path.basename(os.fspath(target)) if isinstance(target, str | os.PathLike) else str(index)


@dataclass(frozen=True)
class _Measure:
    restorer: TiledRestorer | None
    y_channel: bool
    crop_border: int | str
    others: Mapping[str, Metric]

    def __call__(self, pair: Pair) -> Score:
        try:
            given, target = (read_array(one) if isinstance(one, str | os.PathLike) else one for one in pair[1:])
            started = time.perf_counter()
            result = given if self.restorer is None else _restored(self.restorer, given, target)
            seconds = time.perf_counter() - started
            return self._scored(pair.name, given, result, target, seconds)
        except EXPECTED as error:
            return Score(pair.name, error=one_line(error))

    def _scored(self, name: str, given: Any, result: Any, target: Any, seconds: float) -> Score:
        options = None if self.restorer is None else self.restorer.options
        layout = checked_layout(None if options is None else options.layout)
        before, made = open_image(given, layout), open_image(result, layout)
        scale = max(1, made.size[0] // before.size[0])
        border = scale if self.crop_border == "scale" else int(self.crop_border)
        white = None if options is None or not isinstance(options.white, float) else options.white
        values = measured(
            result, target, y_channel=self.y_channel, crop_border=border, white=white, scale=scale, layout=layout
        )
        return Score(
            name, *values, {key: float(metric(result, target)) for key, metric in self.others.items()}, seconds
        )


def measured(
    result: Any,
    target: Any,
    *,
    y_channel: bool = False,
    crop_border: int = 0,
    white: float | None = None,
    scale: int = 1,
    layout: str | None = None,
) -> tuple[float, float | None]:
    """PSNR and SSIM of a result, the latter None where there can be none.

    Args:
        y_channel, crop_border: as for `evaluate`. white: None: the dtype's.
        scale: the target may be larger by less than this.
    """
    made, want = (open_image(one, checked_layout(layout)) for one in (result, target))
    if made.dtype != want.dtype:
        raise ValueError(f"result and target must have one dtype, not {made.dtype} and {want.dtype}")
    first, second = floats_of(made), _fitting(floats_of(want), made.size, scale)
    if first.shape != second.shape:
        of = "{0[1]} channels of {0[2]}x{0[3]}".format
        raise ValueError(f"the result has {of(first.shape)} (height x width), its target {of(second.shape)}")
    white = white or made.peak
    if y_channel:
        first, second, white = _luma(first, white), _luma(second, white), LUMA_WHITE
    first, second = (_cropped(one, crop_border) for one in (first, second))
    return metrics.psnr(first, second, white), _ssim(first, second, white)


def _restored(restorer: TiledRestorer, given: Any, target: Any) -> Any:
    """The result in the target's dtype, unless another was asked for."""
    dtype = str(target.dtype).removeprefix("torch.")
    if restorer.options.out_dtype is None and restorer.options.out is None:
        restorer = restorer.with_options(replace(restorer.options, out_dtype=dtype))
    if is_tensor(given) != is_tensor(target):
        kinds = f"{type(given).__name__} and {type(target).__name__}"
        raise TypeError(f"input and target must both be arrays or both be tensors, not {kinds}")
    return restorer(given)


def _fitting(target: np.ndarray, size: tuple[int, int], scale: int) -> np.ndarray:
    """The target without the last rows and columns that a multiple of the scale leaves out."""
    over = [have - want for have, want in zip(target.shape[2:], size, strict=True)]
    return target[:, :, : size[0], : size[1]] if all(0 <= one < scale for one in over) else target


def _cropped(pixels: np.ndarray, border: int) -> np.ndarray:
    if 2 * border >= min(pixels.shape[2:]):
        raise ValueError(f"crop_border must leave something of {pixels.shape[2]}x{pixels.shape[3]}, not be {border}")
    return pixels[:, :, border : pixels.shape[2] - border, border : pixels.shape[3] - border]


def _ssim(first: np.ndarray, second: np.ndarray, white: float) -> float | None:
    if min(first.shape[2:]) < SSIM_WINDOW:
        return None
    try:
        return metrics.ssim(first, second, white, layout="NCHW")
    except ImportError:
        return None


def luma(image: Any, *, layout: str | None = None) -> np.ndarray:
    """The Y channel of BT.601 from 16 to 235, not rounded: float64 (N, 1, H, W). Alpha is left out, and grey stays as
    it is, in 255ths of white."""
    opened = open_image(image, checked_layout(layout))
    return _luma(floats_of(opened), opened.peak)


def _luma(pixels: np.ndarray, white: float) -> np.ndarray:
    if pixels.shape[1] < 3:
        return pixels[:, :1] / white * LUMA_WHITE
    weights = np.array(LUMA).reshape(1, 3, 1, 1)
    return (pixels[:, :3] / white * weights).sum(axis=1, keepdims=True) + LUMA_OF_BLACK
