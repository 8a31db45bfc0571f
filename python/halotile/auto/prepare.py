# SPDX-License-Identifier: MIT
"""All decisions before rows are produced, in order, each with a reason.

open_run   halo and phase (halo.py), the model and its engine (opening.py): rejects bad options, does no work
prepare    tiles (tiles.py, memory.py), traits from the first batch (opening.py), dtype (dtype.py), devices
"""

from __future__ import annotations

from dataclasses import replace

from ..engine.choose import engine_beside
from ..engine.device_lock import turn
from ..errors import ColourWarning
from ..images.image import Image
from ..images.scan import is_grey
from ..models.kinds import open_model
from ..models.model import Model
from ..run import kept_heap
from ..run.again import Again
from ..run.devices import SLOTS, Devices
from ..run.low_band import with_low_band
from ..run.nonfinite import check_first_tile
from ..run.prepared import Delivery, First, Opened, Prepared
from ..run.progress import Progress
from ..run.shifted import with_shifted_grids
from .dtype import choose_dtype
from .error_curve import with_seams
from .formats import choose_format
from .halo import choose_halo_and_phase
from .knowledge import Knowledge
from .memory import tiles_by_free_memory
from .opening import learned, opened_for
from .shifts import with_shifts_tried
from .streams import check_schedule, in_its_dtype, with_stream
from .tiles import Tuner

__all__ = ["open_run", "prepare", "remember", "warn_of_colours"]

COLOURFUL = 8 / 255  # largest mean spread of channels for a grey input, as a share of white, without a warning


def open_run(image: Image, knowledge: Knowledge, out_dtype: str | None = None) -> Opened:
    """An image and its model, with numbers for halo and phase.

    Raises:
        ValueError, TypeError: a bad option, or one that does not fit. TileError: the model failed during measurements.
    """
    check_schedule(knowledge.options)
    options, report = knowledge.chosen.get(image.size) or choose_halo_and_phase(knowledge.options, knowledge, image)
    return opened_for(image, knowledge, options, report, out_dtype)


def prepare(
    opened: Opened,
    knowledge: Knowledge,
    progress: Progress,
    delivery: Delivery = Delivery(),  # noqa: B008 - frozen
) -> tuple[Prepared, First]:
    """Makes the remaining decisions by running the first batch and a few more windows if tiles or dtype are "auto".

    Returns:
        The input of `assemble`, and reusable outputs of the first batch.

    Raises:
        TileError: the model failed. ValueError: the options do not fit what only the model could reveal.
    """
    options, windows, count = opened.options, opened.windows, opened.image.count
    with turn(windows.engine.device):
        streaming, opened = with_stream(opened, knowledge, delivery)
        if streaming is not None:
            prepared, first = streaming, First()
            if options.dtype == "auto":
                prepared, first = choose_dtype(prepared, first, knowledge)
                prepared = in_its_dtype(prepared, knowledge, delivery)
            progress.begin(len(prepared.plan) * count)
            remember(prepared, knowledge)
            return _with_retry(prepared, knowledge), First()
        tuner = None
        if options.tuned and opened.report.tuning is None:
            if windows.on_cpu:
                tuner = Tuner(opened, knowledge, delivery, opened.keeps_heap and kept_heap.is_kept())
                opened = tuner.started()
            else:
                opened = tiles_by_free_memory(opened)
        progress.begin(len(opened.plan) * count)
        prepared, first = learned(opened, knowledge) if tuner is None else tuner.learned()
        prepared, first = with_shifts_tried(prepared, first, knowledge)
        if tuner is not None:
            prepared, first = tuner.finished(prepared, first)
        if options.dtype == "auto":
            prepared, first = choose_dtype(prepared, first, knowledge)
        prepared = choose_format(prepared, knowledge)
        if len(options.devices) > 1:
            prepared = replace(prepared, devices=_devices(prepared, knowledge))
        if options.compile and not prepared.report.holds:
            for model in (prepared.windows.model, *knowledge.others.values()):
                model.compile()
        check_first_tile(prepared, first)
        prepared = with_shifted_grids(with_low_band(with_seams(prepared)))
    progress.begin(len(prepared.plan) * count)
    if options.tuned or options.dtype == "auto" or _tiles(prepared) != _tiles(opened):
        remember(prepared, knowledge)
    return _with_retry(prepared, knowledge), first


def _with_retry(prepared: Prepared, knowledge: Knowledge) -> Prepared:
    retries = prepared.options.on_nonfinite == "retry"
    return replace(prepared, again=Again(knowledge.model)) if retries else prepared


def _tiles(opened: Opened) -> tuple[object, object]:
    return opened.options.tile_size, opened.options.batch_size


def remember(prepared: Prepared, knowledge: Knowledge) -> None:
    knowledge.chosen[prepared.image.size] = prepared.options, prepared.report


def warn_of_colours(prepared: Prepared, index: int, knowledge: Knowledge) -> None:
    first = prepared.traits.parts[0]
    if prepared.traits.colourful > COLOURFUL:
        text = "the model makes colours of a grey image, and their mean is returned: pass the image as RGB, "
        knowledge.warn_once("colourful", f"{text}numpy.dstack([image] * 3), to get them", ColourWarning)
    if first.reads > first.feed and not knowledge.has_warned("colours") and not is_grey(prepared.image, index):
        text = "the model takes grey images and makes several channels of them: it is given the image's grey, and "
        knowledge.warn_once("colours", f"{text}the image's own colours are not used", ColourWarning)


def _devices(prepared: Prepared, knowledge: Knowledge) -> Devices:
    windows, others = prepared.windows, knowledge.others
    own = windows.model
    slots = [[windows.through(own) for _ in range(SLOTS)]]
    for number, device in enumerate(prepared.options.devices[1:]):
        if (number, own.dtype) not in others:
            others[number, own.dtype] = open_model(
                knowledge.model, device=device, dtype=own.dtype, tensors=True, memory_format=own.window_format
            )
        model: Model = others[number, own.dtype]
        engine = engine_beside(windows.engine, model)
        sources: dict[tuple[int, bool, bool], object] = {}
        members = [windows.through(model, engine) for _ in range(SLOTS)]
        for one in members:
            one.sources = sources
        slots.append(members)
    return Devices(slots, windows.engine)
