# SPDX-License-Identifier: MIT
"""Assertions for your own test suite, in the manner of torch.testing.

def test_no_seams():
    halotile.testing.assert_seamless(image, model, halo=18, tile_size=64)

def test_my_own_loop():
    halotile.testing.assert_matches_whole(my_tiles(image, model), image, model)

With pytest there are also the fixtures `restored` and `golden_image`: see `halotile.pytest_plugin`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from . import metrics
from .auto.knowledge import Knowledge
from .check.close import closeness
from .check.verify import remake
from .evaluation import measured
from .images.image import open_image
from .option_checks import dtype_name, integer, tolerance_of
from .options import IMAGE_DTYPES, JudgedOptions, RunOptions
from .plan import TilePlan
from .restore import TiledRestorer
from .run.remade import Remade
from .run.report import Verification, short

if TYPE_CHECKING:
    from .check.crossings import Crossings

__all__ = [
    "ImagesDiffer",
    "assert_close",
    "assert_exact",
    "assert_matches_whole",
    "assert_on_device",
    "assert_psnr",
    "assert_seamless",
    "assert_ssim",
]

# The largest difference that passes by the model's dtype, as a fraction of white: what rounding in deep models makes.
TOLERANCES = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
MOST_SINGLES = 16  # single numbers that a run may wait for, before and after its loop
OWN = ("out", "out_dtype")  # options that the assertions set
CLEARLY = 3  # ratio of differences near tile edges to those elsewhere that means a seam


def assert_seamless(
    image: Any,
    model: Callable[..., Any],
    *,
    tolerance: float | None = None,
    windows: int = 8,
    seed: int = 0,
    **options: Unpack[JudgedOptions],
) -> Verification:
    """Asserts that there are no seams: restores the image in float32 and verifies random windows of it (see `verify`).

    Args:
        image, model: as for `restore_tiled`. The image must need more than one tile: pass a small ``tile_size``.

    Keyword Args:
        tolerance: the largest difference that passes, as a fraction of white, whatever the image's dtype. None: what
            rounding in deep models makes, by the model's dtype: 1e-4 for float32, 4e-3 for float16, 3e-2 for bfloat16.
        windows, seed: the number of windows, and the seed of their positions.
        options: as for `restore_tiled`, except for out and out_dtype.

    Returns:
        The verification.

    Raises:
        AssertionError: a difference exceeds the tolerance. The message has its position and distance to the nearest
            tile edge, the ratio of differences near tile edges to those elsewhere, the run's halo and phase, and a
            remedy. ValueError, TypeError, TileError: as `restore_tiled`; ValueError also if the image is one tile.
    """
    count, seed = integer("windows", windows, 1), integer("seed", seed, 0)
    given = tolerance_of(tolerance, "as a fraction of white")
    remade, knowledge = _remade(model, image, options)
    found = remade.compared(remade.places(count, seed))
    return _judged(knowledge, found, _allowed(given, remade), "the result has seams")


def assert_exact(
    image: Any, model: Callable[..., Any], *, tolerance: float | None = None, **options: Unpack[JudgedOptions]
) -> Verification:
    """Asserts that tiles equal whole-image inference: runs the model on the whole image, or on each of several, and
    compares every pixel. For small images.

    The reference is ``crop(model(reflect_pad(image, halo)))`` for boundary="reflect", with wrap_pad for "wrap", and
    ``model(image)`` for "native"; sides are padded in the same way to a multiple of the phase.

    Args:
        image, model: as for `restore_tiled`. The image must need more than one tile: pass a small ``tile_size``.

    Keyword Args:
        tolerance: as for `assert_seamless`.
        options: as for `restore_tiled`, except for out and out_dtype.

    Returns:
        The verification, of one window; its attribute `whole` and its text name the reference.

    Raises:
        AssertionError, ValueError, TypeError, TileError: as `assert_seamless`.
    """
    given = tolerance_of(tolerance, "as a fraction of white")
    remade, knowledge = _remade(model, image, options)
    found = remade.compared_with_whole()
    claim = f"tiles do not equal whole-image inference, {found.whole} with boundary={remade.plan.boundary!r}"
    return _judged(knowledge, found, _allowed(given, remade), claim)


def _remade(model: Any, image: Any, options: JudgedOptions) -> tuple[Remade, Knowledge]:
    for name in OWN:
        if name in options:
            raise TypeError(f"{name} must not be given: the assertion restores the image itself, in float32")
    knowledge = TiledRestorer.of(model, {**options, "out_dtype": "float32"}).knowledge
    remade = remake(image, knowledge)
    if len(remade.plan) == 1:
        raise ValueError(
            f"image must need more than one tile to show anything, not be {remade.plan.image_size} (height, width) in "
            f"tiles of {remade.prepared.options.tile_size}; pass a smaller tile_size"
        )
    return remade, knowledge


def _allowed(given: float | None, remade: Remade) -> float:
    return TOLERANCES.get(remade.prepared.windows.model.dtype, TOLERANCES["float32"]) if given is None else given


def _judged(knowledge: Knowledge, found: Verification, tolerance: float, claim: str) -> Verification:
    if found.seamless(tolerance):
        return found
    raise AssertionError(
        f"{claim}: above the tolerance of {tolerance:g}\n{found}\n{_what_would_help(knowledge, found)}"
    )


def _what_would_help(knowledge: Knowledge, found: Verification) -> str:
    """A remedy, from inspecting the model, or else from the position of the differences."""
    try:
        info = knowledge.inspected()
    except Exception:  # the failed assertion matters, not this
        return _by_place(found)
    if info.global_operations:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in info.global_operations)
        return f"no halo helps: the model sees the whole image in {names}"
    if not info.deterministic:
        return "no halo helps: the model is not deterministic"
    advice = []
    if info.receptive_field is None:
        return _by_place(found)
    if any(step is None for step in info.phase):
        return "no halo helps: the model depends on the position in the image"
    if any(have % need for have, need in zip(found.phase, info.phase, strict=True)):
        advice.append(f"phase={short(info.phase)}, the model's")
    if info.halo is not None and any(have < need for have, need in zip(found.halo, info.halo, strict=True)):
        advice.append(f"halo={short(info.halo)}, the model's receptive field")
    return "remedy: " + " and ".join(advice) if advice else _by_place(found)


def _by_place(found: Verification) -> str:
    if found.edge_ratio > CLEARLY:
        return "differences are concentrated at tile edges: use a larger halo, or hide them with more overlap"
    return (
        "differences are everywhere: the phase may be too small (it must be the model's total stride or attention "
        "window), or the model sees the whole image, is not deterministic, or rounds more than the tolerance allows "
        "(float16, bfloat16)"
    )


# ---- two images ------------------------------------------------------------------------------------------------------


class ImagesDiffer(AssertionError):
    """Two images are not as near as they must be. The plugin for pytest saves a heat map of their differences.

    Attributes:
        actual, expected: the images. layout: the order of their axes, if it was given.
    """

    def __init__(self, text: str, actual: Any, expected: Any, layout: str | None = None):
        super().__init__(text)
        self.actual, self.expected, self.layout = actual, expected, layout

    def heatmap(self) -> np.ndarray | None:
        """The differences as a picture, uint8 (H, W, 3); None for images of different shapes, or several."""
        try:
            return metrics.heatmap(self.actual, self.expected, layout=self.layout)[0]
        except (TypeError, ValueError):
            return None


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    plan: TilePlan | None = None,
    layout: str | None = None,
) -> None:
    """Asserts that every value of two images differs by at most ``atol + rtol * |expected|``.

    Args:
        actual, expected: arrays or tensors of one shape and dtype, as for `restore_tiled`.

    Keyword Args:
        rtol, atol: both, or by the dtype: integers may differ by 1, float32 by 1e-4, float16 by 1e-3, bfloat16 by 1e-2.
        plan: the plan of the run that made `actual`: the message then says how far the worst place is from a tile edge.
        layout: the order of their axes, as for `restore_tiled`.

    Raises:
        AssertionError: they differ; an `ImagesDiffer` with the number of such values and the worst place.
    """
    _close(actual, expected, rtol, atol, plan, layout, "the images are not close")


def _close(
    actual: Any,
    expected: Any,
    rtol: float | None,
    atol: float | None,
    plan: TilePlan | None,
    layout: str | None,
    claim: str,
) -> None:
    found = closeness(actual, expected, rtol=rtol, atol=atol, plan=plan, layout=layout)
    if not found.close:
        raise ImagesDiffer(f"{claim}\n{found}", actual, expected, layout)


def assert_matches_whole(
    result: Any,
    image: Any,
    model: Callable[..., Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    plan: TilePlan | None = None,
    **options: Unpack[RunOptions],
) -> None:
    """Asserts that a result, whoever made it, is whole-image inference: your own loop over tiles, another package, or
    `restore_tiled`. The model runs once on the whole image. For small images.

    Args:
        result: of the image, as `restore_tiled` would return it: in its layout and units.
        image, model: as for `restore_tiled`.

    Keyword Args:
        rtol, atol: as for `assert_close`, by the dtype of the result.
        plan: the plan of tiles that made the result: its halo and boundary then say what the reference is, as for
            `assert_exact`, and the message how far the worst place is from a tile edge. None: ``model(image)``.
        options: as for `restore_tiled`: value_range, layout, phase, scale, device, ... but none about tiles.

    Raises:
        AssertionError: as `assert_close`. ValueError, TypeError, TileError: as `restore_tiled`.
    """
    taken = {"tile_size", "halo", "overlap", "blend", "boundary", "schedule", "out_dtype", "batch_size"}
    if given := taken & options.keys():
        raise TypeError(f"{', '.join(sorted(given))} must not be given: the reference is one window")
    dtype = dtype_name("result", result.dtype, IMAGE_DTYPES)
    opened = open_image(image, options.get("layout"))
    whole: dict[str, Any] = {"tile_size": opened.size, "overlap": 0, "schedule": "tiles", "out_dtype": dtype}
    if plan is None:
        whole |= {"halo": 0, "boundary": "native"}
    else:
        whole |= {"halo": plan.halo, "boundary": plan.boundary, "phase": options.get("phase") or plan.phase}
    expected = TiledRestorer(model, **{**options, **whole})(image)
    claim = "the result is not whole-image inference"
    _close(result, expected, rtol, atol, plan, options.get("layout"), claim)


def assert_psnr(
    actual: Any,
    expected: Any,
    at_least: float,
    *,
    y_channel: bool = False,
    crop_border: int = 0,
    layout: str | None = None,
) -> float:
    """Asserts that the PSNR is at least so many dB, and returns it.

    Args:
        actual, expected: arrays or tensors of one shape and dtype, as for `restore_tiled`.
        at_least: dB.

    Keyword Args:
        y_channel, crop_border: as for `evaluate`.
        layout: the order of their axes, as for `restore_tiled`.

    Raises:
        AssertionError: it is below; an `ImagesDiffer` that names the place of the largest difference.
    """
    return _at_least("psnr", actual, expected, at_least, y_channel, crop_border, layout)


def assert_ssim(
    actual: Any,
    expected: Any,
    at_least: float,
    *,
    y_channel: bool = False,
    crop_border: int = 0,
    layout: str | None = None,
) -> float:
    """Asserts that the SSIM is at least so high, and returns it. Arguments and errors are those of `assert_psnr`; needs
    scikit-image."""
    return _at_least("ssim", actual, expected, at_least, y_channel, crop_border, layout)


def _at_least(
    metric: str, actual: Any, expected: Any, limit: float, y_channel: bool, crop_border: int, layout: str | None
) -> float:
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"the shapes differ: {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if metric == "ssim":
        metrics.ssim(actual, expected, layout=layout)  # raises if there can be none
    psnr, ssim = measured(actual, expected, y_channel=y_channel, crop_border=crop_border, layout=layout)
    value = psnr if metric == "psnr" else ssim
    if value is None:
        raise ValueError("images must be larger for SSIM without their border")
    if value >= limit:
        return value
    worst = metrics.largest_difference(actual, expected, layout=layout)
    unit = " dB" if metric == "psnr" else ""
    raise ImagesDiffer(
        f"{metric.upper()} {value:.6g}{unit} is below {limit:g}{unit}\ngreatest absolute difference: {worst.value:.6g} "
        f"at row {worst.row}, column {worst.column}, channel {worst.channel}",
        actual,
        expected,
        layout,
    )


# ---- devices ---------------------------------------------------------------------------------------------------------


def assert_on_device(image: Any, model: Callable[..., Any], **options: Unpack[RunOptions]) -> Crossings:
    """Asserts that nothing but the image and its result crosses between host and device, each once, and that the model
    waits for no number on the device.

    The image is restored twice, and the second run is watched: the first one may have to look at the model. Operations
    that a backend runs on the CPU by itself (PYTORCH_ENABLE_MPS_FALLBACK) are not seen.

    Args:
        image, model: as for `restore_tiled`; the model's device is not the CPU.
        options: as for `restore_tiled`, with one device.

    Returns:
        What crossed.

    Raises:
        AssertionError: something else crosses; the message says what, and the line of the model's code. ValueError: the
            model runs on the CPU, where nothing can cross. TypeError, TileError: as `restore_tiled`.
    """
    import torch

    from .check.crossings import Crossings, Watch

    restorer = TiledRestorer(model, **options)
    devices = restorer.options.devices
    if len(devices) > 1:
        raise ValueError(f"device must be one for this assertion, not {devices!r}")
    opened = restorer.open(image)
    restorer(image)
    places = [one.device for one in restorer.knowledge.opened.values()]
    device = torch.device(next((one for one in places if one is not None), "cpu"))
    if device.type == "cpu":
        raise ValueError("model must not run on the CPU, where nothing can cross: give device=")
    with Watch(device) as watch:
        result = restorer(image)
    found = Crossings(tuple(watch.found))
    wrong = [str(one) for one in found.by_model]
    at_home = opened.device is not None and opened.device.type == device.type
    for way, crossed, whole in (("up to", found.up, image), ("down from", found.down, result)):
        allowed = 0 if at_home else _bytes_of(whole)
        if crossed > allowed and not wrong:
            wrong.append(f"{crossed} bytes go {way} the device, and {allowed} have to")
    if found.singles > MOST_SINGLES and not wrong:
        wrong.append(f"the host waits for {found.singles} single numbers")
    if wrong:
        more = [] if len(wrong) <= NAMED else [f"and {len(wrong) - NAMED} more"]
        raise AssertionError("\n".join(["more than the image and its result crosses:", *wrong[:NAMED], *more]))
    return found


NAMED = 8  # crossings that a message lists


def _bytes_of(image: Any) -> int:
    return int(image.nbytes) if hasattr(image, "nbytes") else int(np.prod(image.shape)) * 8
