# SPDX-License-Identifier: MIT
"""verify(): recomputes random windows of a restored image with a much larger halo and compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from ..auto.halo import choose_halo_and_phase
from ..auto.knowledge import Knowledge
from ..auto.opening import opened_for
from ..auto.prepare import prepare
from ..auto.shifts import tries_shifts
from ..images.image import is_tensor
from ..option_checks import integer
from ..options import RestoreOptions, check_no_reduce
from ..restore import TiledRestorer
from ..run.progress import Progress
from ..run.remade import VERIFYING, Remade, opened_result
from ..run.report import RunInfo, Verification
from ..stages import shown

__all__ = ["Verification", "remake", "verify"]


def verify(
    image: Any,
    model: Callable[..., Any],
    result: Any = None,
    *,
    windows: int = 8,
    seed: int = 0,
    **options: Unpack[RestoreOptions],
) -> Verification:
    """Recomputes random windows of a restored image with a much larger halo and compares.

    The halo of these windows is at least three times the run's plus 16 pixels, and at least the model's receptive field
    if that is known (halo="exact" or "auto", phase=None). Half of the windows lie across tile edges, half anywhere.
    Their origins are multiples of the run's phase only, so a phase too small for the model shows as well. With
    boundary="native" windows are shifted inwards at the image border.

    Only channels that pass through the model are compared (alpha with alpha="channel", or with "restore" if it is not
    constant). Windows are spread over all images, so use at least one for each. A non-deterministic model never agrees;
    a model with a fixed window size cannot be verified.

    Args:
        image, model: as for `restore_tiled`. The model may be a `TiledRestorer`, whose options then apply; it also
            knows the tile edges of a run that fell back to smaller tiles.
        result: the restored image as `restore_tiled` returned it with these options. None: computed here.

    Keyword Args:
        windows: number of windows, at least 1.
        seed: of their random places.
        options: as for `restore_tiled`; ``progress`` counts tiles, if the result is computed here, then windows.

    Raises:
        ValueError, TypeError: a bad option, or a result that does not match the image. TileError: the model fails,
            perhaps because larger windows do not fit in memory.

    >>> found = verify(photo, model, tile_size=40, halo=2)
    >>> found.windows, found.largest < 1e-5
    (8, True)
    """
    count, seed = integer("windows", windows, 1), integer("seed", seed, 0)
    knowledge = TiledRestorer.of(model, {**options}).knowledge
    with shown(knowledge.options.progress, VERIFYING):
        remade = remake(image, knowledge, result)
        return remade.compared(remade.places(count, seed))


def remake(image: Any, knowledge: Knowledge, result: Any = None) -> Remade:
    """Prepares windows of a restored image; computes the result if it is None."""
    check_no_reduce(knowledge.options)
    image, report = knowledge.open(image), None
    if knowledge.options.asks_model or knowledge.options.unsettled:  # once: the run and the windows share the halo
        chosen = knowledge.chosen.get(image.size) or choose_halo_and_phase(knowledge.options, knowledge, image)
        options, report = chosen
        if tries_shifts(report, knowledge):  # the first batch determines the phase
            opened = opened_for(image, knowledge, options, report, knowledge.options.out_dtype)
            tried, _ = prepare(opened, knowledge, Progress(None))
            options, report = tried.options, tried.report
        knowledge = knowledge.for_windows(replace(options, verify=0))
    if result is None:
        result = TiledRestorer.knowing(knowledge)(image)
    given = knowledge.options, report or RunInfo.given(knowledge.options)
    opened = opened_for(image, knowledge, *(knowledge.chosen.get(image.size) or given), _dtype_of(result))
    prepared, _ = prepare(opened, knowledge, Progress(None))
    return Remade(prepared, opened_result(result, prepared), knowledge.at_hand())


def _dtype_of(result: Any) -> str:
    if not (is_tensor(result) or isinstance(result, np.ndarray)):
        raise TypeError(f"result must be what restore_tiled returned, not {type(result).__name__}")
    return str(result.dtype).removeprefix("torch.")
