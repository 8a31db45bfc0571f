# SPDX-License-Identifier: MIT
"""verify(): random windows of a restored image made again with a much larger halo, and compared."""

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
from ..options import RestoreOptions, integer
from ..restore import TiledRestorer
from ..run.progress import Progress
from ..run.remade import Remade, opened_result
from ..run.report import RunInfo, Verification

__all__ = ["Verification", "knowledge_of", "remake", "verify"]


def verify(
    image: Any,
    model: Callable[..., Any],
    result: Any = None,
    *,
    windows: int = 8,
    seed: int = 0,
    **options: Unpack[RestoreOptions],
) -> Verification:
    """Makes random windows of a restored image again and compares: is it what a much larger halo would give?

    The windows have at least three times the run's halo and 16 pixels more, and no less than the model's receptive
    field where that was found out (halo="exact" or "auto", phase=None). Half of them lie across tile edges, half
    anywhere; their origins keep the run's phase and nothing else, so that one too small for the model shows, too. With
    boundary="native" windows are shifted inwards where the image ends.

    Compared are the channels that go through the model (alpha with alpha="channel", or with "restore" where it is not
    the same everywhere). Of several images, windows are spread over all, so that there should be no fewer. A model that
    gives another output each time never agrees; one that takes windows of one size only cannot be verified.

    Args:
        image, model: as for `restore_tiled`. The model may be a `TiledRestorer`, whose options are then the options;
            where memory made it use smaller tiles, it knows their edges.
        result: the restored image as `restore_tiled` returned it with these options. None: it is made here.

    Keyword Args:
        windows: how many, at least 1.
        seed: of their places.
        options: as for `restore_tiled`.

    Raises:
        ValueError, TypeError: a bad option, or a result that is not this image's. TileError: the model fails, perhaps
            because larger windows do not fit in memory.
    """
    count, seed = integer("windows", windows, 1), integer("seed", seed, 0)
    remade = remake(image, knowledge_of(model, options), result)
    return remade.compared(remade.places(count, seed))


def knowledge_of(model: Any, options: RestoreOptions) -> Knowledge:
    """Of a model and options, or of a `TiledRestorer`, which has its own."""
    if not isinstance(model, TiledRestorer):
        return Knowledge.of(model, {**options})
    if options:
        raise TypeError(f"options must be those of the TiledRestorer, not also {', '.join(options)}")
    return model.knowledge


def remake(image: Any, knowledge: Knowledge, result: Any = None) -> Remade:
    """A restored image, and its way through the model for windows anywhere. result: None: it is made here."""
    image, report = knowledge.open(image), None
    if knowledge.options.asks_model or knowledge.options.unsettled:  # once: the run and the windows get the same halo
        chosen = knowledge.chosen.get(image.size) or choose_halo_and_phase(knowledge.options, knowledge, image)
        options, report = chosen
        opened = opened_for(image, knowledge, options, report, knowledge.options.out_dtype)
        if tries_shifts(opened, knowledge):  # the first batch tells the phase
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
