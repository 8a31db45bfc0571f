# SPDX-License-Identifier: MIT
"""Assertions for your own test suite: does a model give the same result in tiles, with these options?

def test_no_seams():
    halotile.testing.assert_seamless(image, model, halo=18, tile_size=64)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from .auto.knowledge import Knowledge
from .check.verify import remake
from .option_checks import integer, tolerance_of
from .options import JudgedOptions
from .restore import TiledRestorer
from .run.remade import Remade
from .run.report import Verification, short

__all__ = ["assert_exact", "assert_seamless"]

TOLERANCE = 1e-4  # as a fraction of white
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
        tolerance: the largest difference that passes, as a fraction of white, whatever the image's dtype. None: 1e-4,
            which allows for float32 rounding in deep models; models in float16 or bfloat16 need more.
        windows, seed: the number of windows, and the seed of their positions.
        options: as for `restore_tiled`, except for out and out_dtype.

    Returns:
        The verification.

    Raises:
        AssertionError: a difference exceeds the tolerance. The message has its position and distance to the nearest
            tile edge, the ratio of differences near tile edges to those elsewhere, the run's halo and phase, and a
            remedy. ValueError, TypeError, TileError: as `restore_tiled`; ValueError also if the image is one tile.
    """
    count, seed, allowed = integer("windows", windows, 1), integer("seed", seed, 0), _allowed(tolerance)
    remade, knowledge = _remade(model, image, options)
    return _judged(knowledge, remade.compared(remade.places(count, seed)), allowed, "the result has seams")


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
    allowed = _allowed(tolerance)
    remade, knowledge = _remade(model, image, options)
    found = remade.compared_with_whole()
    claim = f"tiles do not equal whole-image inference, {found.whole} with boundary={remade.plan.boundary!r}"
    return _judged(knowledge, found, allowed, claim)


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


def _allowed(tolerance: float | None) -> float:
    given = tolerance_of(tolerance, "as a fraction of white")
    return TOLERANCE if given is None else given


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
