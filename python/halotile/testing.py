# SPDX-License-Identifier: MIT
"""For the test suites of those who use halotile: is a model exact in tiles, with these options?

def test_no_seams():
    halotile.testing.assert_seamless(model, image, halo=18, tile_size=64)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from .auto.knowledge import Knowledge
from .check.verify import knowledge_of, remake
from .options import JudgedOptions, integer, tolerance_of
from .run.remade import Remade
from .run.report import Verification

__all__ = ["assert_exact", "assert_seamless"]

TOLERANCE = 1e-4  # of white
OWN = ("out", "out_dtype")  # options that are chosen here
CLEARLY = 3  # times as large near tile edges as elsewhere: there is a seam


def assert_seamless(
    model: Callable[..., Any],
    image: Any,
    *,
    tolerance: float | None = None,
    windows: int = 8,
    seed: int = 0,
    **options: Unpack[JudgedOptions],
) -> Verification:
    """Asserts that tiles do not show: restores the image in float32 and verifies random windows of it (see `verify`).

    Args:
        model, image: as for `restore_tiled`. The image must need more than one tile: pass a small ``tile_size``.

    Keyword Args:
        tolerance: the largest difference that passes, as a fraction of white, whatever the image's dtype. None: 1e-4,
            which leaves room for float32 rounding in deep models; models in float16 or bfloat16 need more.
        windows, seed: how many places are looked at, and which.
        options: as for `restore_tiled`, except for out and out_dtype.

    Returns:
        The verification.

    Raises:
        AssertionError: with the worst position, its distance to the nearest tile edge, the differences near tile edges
            over those elsewhere, halo and phase of the run, and what would help. ValueError, TypeError, TileError: as
            `restore_tiled`; ValueError also if the image is one tile.
    """
    count, seed, allowed = integer("windows", windows, 1), integer("seed", seed, 0), _allowed(tolerance)
    remade, knowledge = _remade(model, image, options)
    return _judged(knowledge, remade.compared(remade.places(count, seed)), allowed, "the result has seams")


def assert_exact(
    model: Callable[..., Any], image: Any, *, tolerance: float | None = None, **options: Unpack[JudgedOptions]
) -> Verification:
    """Asserts that tiles equal whole-image inference: the model sees the image once as a whole, every pixel is
    compared; of several images every one. For small images.

    With boundary="reflect" the whole is ``crop(model(reflect_pad(image, halo)))``, with "native" it is
    ``model(image)``; a side that is no multiple of the phase is completed by reflection.

    Args:
        model, image: as for `restore_tiled`. The image must need more than one tile: pass a small ``tile_size``.

    Keyword Args:
        tolerance: as for `assert_seamless`.
        options: as for `restore_tiled`, except for out and out_dtype.

    Returns:
        The verification, of one window; its attribute `whole` and its text say which whole image was compared.

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
            raise TypeError(f"{name} must not be given: the result that is judged is made here, in float32")
    knowledge = knowledge_of(model, {**options, "out_dtype": "float32"})
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
    """From what inspection finds; where it finds nothing, from where the differences are."""
    try:
        info = knowledge.inspected()
    except Exception:  # whatever it is, the failure to report is another
        return _by_place(found)
    if info.global_operations:
        names = ", ".join(f"{one.path or 'the model'} ({one.kind})" for one in info.global_operations)
        return f"no halo helps: the model looks at the whole image in {names}"
    if not info.deterministic:
        return "no halo helps: the model gives another output each time"
    advice = []
    if info.receptive_field is None:
        return _by_place(found)
    if any(step is None for step in info.phase):
        return "no halo helps: the model gives something else at every place of the image"
    if any(have % need for have, need in zip(found.phase, info.phase, strict=True)):
        advice.append(f"phase={_option(info.phase)}, the model's")
    if info.halo is not None and any(have < need for have, need in zip(found.halo, info.halo, strict=True)):
        advice.append(f"halo={_option(info.halo)}, the model's receptive field")
    return "what would help: " + " and ".join(advice) if advice else _by_place(found)


def _option(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else str(pair)


def _by_place(found: Verification) -> str:
    if found.edge_ratio > CLEARLY:
        return "differences gather at tile edges: a larger halo would help, or more overlap would hide them"
    return (
        "differences are everywhere: the phase may be too small (it must be the model's total stride or attention "
        "window), or the model looks at the whole image, gives another output each time, or rounds more than the "
        "tolerance allows (float16, bfloat16)"
    )
