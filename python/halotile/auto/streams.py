# SPDX-License-Identifier: MIT
"""schedule=: tiles, or rows that stream through the model.

may it stream?    a torch module by itself, and operators that run on rows: tried once on a small image
what does it cost?
    tiles         pixels of all windows
    a stream      pixels of the image, times the cost of a pixel in strips, which is measured where it matters; in
                  tiles if it holds more than memory has
the cheaper one   unless an option says which
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from .. import memory
from ..images.channels import Part
from ..images.image import Image
from ..models.model import TensorModel
from ..optional import torch_if_loaded
from ..options import Options
from ..plan import BYTES, TilePlan, make_plan
from ..run.out_of_memory import SMALLEST_TILE
from ..run.prepared import Delivery, Opened, Prepared
from ..run.reduction import expected
from ..run.report import Streaming
from ..scales import by_axis
from ..texts import bytes_text
from .knowledge import Knowledge, channels_tried
from .opening import learned, opened_model

if TYPE_CHECKING:
    from ..run.stream.schedule import Recorded, Stream

__all__ = [
    "NoStream",
    "check_schedule",
    "fitting_tiles",
    "in_its_dtype",
    "may_stream",
    "small_windows",
    "streaming",
    "with_stream",
]

Pair = tuple[int, int]

CLEAR = 1.5  # above this ratio of pixels, strips are cheaper whatever they cost
BETTER = 1.05  # a stream must save this
WORTH = 2e10  # multiplications that must be saved: a graph takes a second to record
SHARE = 0.8  # of the available memory that a run may use
TRIED = (48, 32)  # least size of the image of noise
COLUMNS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # numbers of streams beside each other
HEIGHTS = (128, 256, 512, 1024, 2048, 4096, 8192)  # rows of a tile through which several streams go


class NoStream(Exception):
    """The run goes in tiles, for this reason."""


def check_schedule(options: Options) -> None:
    """Raises ValueError if schedule="stream" contradicts another option."""
    if options.schedule == "stream":
        reason = _against(options)
        if reason is not None:
            raise ValueError(f"schedule must be 'auto' or 'tiles' {reason}, not 'stream'")


def _against(options: Options) -> str | None:
    if len(options.devices) > 1:
        return "on several devices"
    if options.compile:
        return "with compile=True, which compiles whole windows"
    if options.needs_tiles is not None:
        return f"with {options.needs_tiles}, which is of tiles"
    if options.needs.fixed:
        return "for a model that takes windows of one size"
    return _against_statistics(options.global_stats)


def _against_statistics(global_stats: str | None) -> str | None:
    if global_stats == "local":
        return "with global_stats='local': a window around each pixel needs rows below it that are not yet made"
    if global_stats in ("frozen", "tile"):
        return f"with global_stats={global_stats!r}: rows have the statistics of the whole image"
    return None


def may_stream(options: Options, knowledge: Knowledge, image: Image) -> bool:
    """Whether rows would stream with these options, which have numbers for halo and phase, as far as can be told
    without recording the model for the whole image."""
    try:
        _check_worth(make_plan(options, image.size), options, knowledge, image.count)
    except NoStream:
        return False
    return _refusal(knowledge, image, options) is None


def _refusal(knowledge: Knowledge, image: Image, options: Options) -> str | None:
    """Why the model cannot stream; tried once on a small image."""
    if knowledge.no_stream == "untried":
        knowledge.no_stream = _tried(knowledge, image, options)
    return knowledge.no_stream


def _tried(knowledge: Knowledge, image: Image, options: Options) -> str | None:
    model = opened_model(image, knowledge, options)
    if not isinstance(model, TensorModel) or not model.alone:
        return "only torch modules stream, not other callables"
    from ..run.stream.schedule import Recorded
    from ..run.stream.trial import refusal

    info = knowledge.at_hand()
    least = (1, 1) if info is None else info.minimum_size
    steps = options.phase or (1, 1) if info is None else (one or 1 for one in info.phase)
    # Two windows of attention along each side: a single one hides what rows lie in.
    size = tuple(-(-max(a, b, 2 * step) // step) * step for a, b, step in zip(TRIED, least, steps, strict=True))
    knowledge.recorded = Recorded(model.modules[0], model.device)
    traits, reasons = knowledge.traits.get(image.channels), []
    feeds = channels_tried(model.modules[0], image.channels) if traits is None else (traits.parts[0].feed,)
    for feed in feeds:
        reasons.append(refusal(model, feed, size))
        if reasons[-1] is None or "cannot be recorded" not in reasons[-1]:
            return reasons[-1]
    return reasons[0]


def with_stream(opened: Opened, knowledge: Knowledge, delivery: Delivery) -> tuple[Prepared | None, Opened]:
    """The run on rows; or None and the run in tiles, with the reason.

    Raises:
        ValueError: schedule="stream" is not possible. TileError: the model failed.
    """
    asked, modules = knowledge.options, opened.windows.modules
    if knowledge.recorded is not None and modules and knowledge.recorded.module is not modules[0]:
        _record_another(modules[0], opened, knowledge)
    changed = knowledge.recorded is not None and knowledge.recorded.changed()
    if opened.report.stream is not None and not changed:
        return _as_before(opened, knowledge), opened
    if changed:
        knowledge.no_stream = "untried"
        opened = replace(opened, report=replace(opened.report, stream=None))
    try:
        if asked.schedule == "tiles":
            raise NoStream
        if asked.schedule == "auto":
            if not isinstance(asked.halo, str) or opened.report.how not in ("exact", "unverified"):
                raise NoStream
            _check_worth(opened.plan, asked, knowledge, opened.image.count)
        prepared = streaming(opened, knowledge, delivery)
        if asked.schedule == "auto":
            prepared = _cheaper(opened, prepared)
        return prepared, opened
    except NoStream as reason:
        said = str(reason)
        if asked.schedule == "stream":
            raise ValueError(f"schedule must be 'auto' or 'tiles' for this model, not 'stream': {said}") from None
        return None, replace(opened, report=replace(opened.report, schedule_why=said or None))


def _record_another(module: Any, opened: Opened, knowledge: Knowledge) -> Recorded:
    from ..run.stream.schedule import Recorded

    knowledge.recorded = Recorded(module, opened.windows.engine.device)
    return knowledge.recorded


def in_its_dtype(prepared: Prepared, knowledge: Knowledge, delivery: Delivery) -> Prepared:
    """A run on rows whose model was replaced by one of another dtype."""
    schedule, module = cast("Stream", prepared.schedule), prepared.windows.modules[0]
    if schedule.recorded.module is module:
        return prepared
    schedule = replace(schedule, recorded=_record_another(module, prepared, knowledge))
    why = prepared.report.schedule_why
    prepared = _reported(prepared, schedule, delivery)
    return replace(prepared, report=replace(prepared.report, schedule_why=why))


def _as_before(opened: Opened, knowledge: Knowledge) -> Prepared:
    """As for an earlier image of this size."""
    from ..run.stream.schedule import Recorded, Stream

    found = opened.report.stream
    assert found is not None
    traits = knowledge.traits.get(opened.image.channels)
    if traits is None:
        traits = learned(small_windows(opened, knowledge), knowledge)[0].traits
    recorded = knowledge.recorded or Recorded(opened.windows.modules[0], opened.windows.engine.device)
    return Prepared.of(opened, traits, Stream(recorded, found.rows, found.as_is))


def _check_worth(plan: TilePlan, asked: Options, knowledge: Knowledge, images: int) -> None:
    """Raises NoStream if other options ask for tiles, or if they are as cheap."""
    reason = "" if asked.schedule == "tiles" else _against(asked)
    if reason is not None:
        raise NoStream(f"in tiles {reason}")
    if asked.memory_limit is not None:
        return  # tiles may have to be smaller
    tiles, rows = plan.processed_pixels, _window_pixels(plan)
    if tiles <= BETTER * rows:
        raise NoStream(f"in tiles, which take {tiles / plan.ideal_pixels:.2f} of the image's pixels")
    if (tiles - rows) * images * _weights(knowledge.model) < WORTH:
        raise NoStream("in tiles, which are done before the model is recorded")


def _cheaper(opened: Opened, prepared: Prepared) -> Prepared:
    """The stream, if it is cheaper than tiles, with the reason. Raises NoStream."""
    from ..run.stream.cost import strip_cost

    stream, plan = prepared.report.stream, fitting_tiles(opened, prepared).plan
    assert stream is not None
    tiles = plan.processed_pixels / plan.ideal_pixels
    text, strips = f"{tiles:.2f} of the image's pixels in tiles, {stream.recompute:.2f} in a stream", 1.0
    if tiles < CLEAR * stream.recompute:
        strips = strip_cost(_graph(prepared, cast("Stream", prepared.schedule)), stream.rows, min(plan.window))
        text += f", where each takes {strips:.2f} times as long"
    if tiles < BETTER * stream.recompute * max(strips, 1.0):
        raise NoStream(text)
    return replace(prepared, report=replace(prepared.report, schedule_why=text))


def fitting_tiles(opened: Opened, prepared: Prepared) -> Opened:
    """The run in tiles, smaller ones if memory has no room for the activations of a window.

    prepared: the run on rows.
    """
    from ..run.stream.cost import whole_memory

    stream = cast("Stream", prepared.schedule)
    graph = _graph(prepared, stream)
    pixel = whole_memory(graph) / (graph.image.rows * graph.image.shape[3])
    limit, least = _limit(prepared, Delivery()), max(SMALLEST_TILE, *opened.plan.phase)
    while pixel * math.prod(opened.plan.window) > limit and max(opened.plan.tile) > least:
        most = max(opened.plan.tile) // 2
        rows, columns = (max(least, min(side, most)) for side in opened.plan.tile)
        opened = opened.with_tiles((rows, columns), 1)
    return opened


def _window_pixels(plan: TilePlan) -> int:
    first, last = plan[0].window, plan[len(plan) - 1].window
    return (last.y_stop - first.y) * (last.x_stop - first.x)


def _weights(model: object) -> int:
    """Weights of a torch module; 0 for other callables."""
    torch = torch_if_loaded()
    if torch is None or not isinstance(model, torch.nn.Module):
        return 0
    return sum(one.numel() for one in model.parameters())


# ---- the run on rows -------------------------------------------------------------------------------------------------


def streaming(opened: Opened, knowledge: Knowledge, delivery: Delivery) -> Prepared:
    """The run on rows, whatever tiles would cost. Raises NoStream."""
    refused = _refusal(knowledge, opened.image, opened.options)
    if refused is not None:
        raise NoStream(refused)
    from ..inspection.operators.streaming import NotStreamable
    from ..run.stream.schedule import Stream

    assert knowledge.recorded is not None
    learned_from, _ = learned(small_windows(opened, knowledge), knowledge)
    windows = learned_from.windows
    options = replace(opened.options, batch_size=1)
    schedule = Stream(knowledge.recorded, 1, _taken_as_is(opened, learned_from))
    height = max(opened.image.size[0], opened.options.phase[0])
    whole = replace(opened, windows=windows, options=options).with_tiles((height, _width(opened)), 1)
    prepared = Prepared.of(whole, learned_from.traits, schedule)
    try:
        return _fitted(prepared, schedule, delivery)
    except NotStreamable as error:
        if schedule.as_is:  # not in its own size: padded to a multiple of the phase
            padded = replace(schedule, as_is=False)
            try:
                return _fitted(replace(prepared, schedule=padded), padded, delivery)
            except NotStreamable as error:
                raise NoStream(str(error)) from None
        raise NoStream(str(error)) from None


def _width(opened: Opened) -> int:
    return max(opened.image.size[1], opened.options.phase[1])


def _taken_as_is(opened: Opened, learned_from: Prepared) -> bool:
    """Whether to try the image in its own size, where windows would be padded to a multiple of the phase.

    With schedule="auto" it is padded, as for tiles: the schedule that is cheaper must not change the picture.
    """
    options, scales = opened.options, by_axis(learned_from.traits.scale)
    sides = list(zip(opened.image.size, options.phase, strict=True))
    if options.schedule == "auto" and any(side % step for side, step in sides):
        return False
    whole = all((side * scale).denominator == 1 for side, scale in zip(opened.image.size, scales, strict=True))
    return options.boundary == "native" and learned_from.traits.trim == (0, 0) and whole


def small_windows(opened: Opened, knowledge: Knowledge) -> Opened:
    """Windows that are only large enough to see what the model returns."""
    info = opened.report.model
    halo = opened.options.halo  # nobody knows what convolutions without padding lose
    if info is not None and info.trim is not None and info.scale is not None:
        sides = zip(info.trim, by_axis(info.scale), strict=True)
        halo = tuple(max(0, math.ceil(lost / scale)) for lost, scale in sides)
    phase = opened.options.phase
    least = (32, 32) if info is None else (max(32, one) for one in info.minimum_size)
    tile = tuple(-(-side // step) * step for side, step in zip(least, phase, strict=True))
    boundary = "reflect"  # of an image smaller than the window, too
    return replace(opened, options=replace(opened.options, halo=halo, boundary=boundary)).with_tiles(tile, 1)


def _fitted(prepared: Prepared, schedule: Stream, delivery: Delivery) -> Prepared:
    """The stream with as many rows in a step, and as many columns, as memory allows."""
    from ..inspection.operators.streaming import NotStreamable
    from ..run.stream.cost import memory as memory_of
    from ..run.stream.cost import usual_rows
    from ..run.stream.schedule import in_one_piece

    graph = _graph(prepared, schedule)
    returned = graph.result.rows, graph.result.shape[3]
    if schedule.as_is and returned != prepared.plan.output_size:
        raise NotStreamable(f"the model returns {returned[0]}x{returned[1]} pixels for the image")
    limit, rows = _limit(prepared, delivery), usual_rows(graph)
    streams = sum(part.how == "model" for part in prepared.traits.parts)
    peak = memory_of(graph, rows)[1]
    while streams * peak > limit and rows > schedule.smallest:
        rows = max(schedule.smallest, rows // 2)
        peak = memory_of(graph, rows)[1]
    chosen = replace(schedule, step=rows)
    if streams * peak <= limit:
        height = max(min(prepared.image.size[0], rows), prepared.plan.phase[0])
        return _reported(prepared.with_tiles((height, _width(prepared)), 1), chosen, delivery)
    column = streams * peak / graph.image.shape[3]
    whole = in_one_piece(prepared.report, graph)
    if whole is not None:
        raise NoStream(f"a stream needs {bytes_text(streams * peak)}, and {whole}")
    tile = _tile(prepared, column, limit, delivery)
    if tile is None:
        raise NoStream(
            f"a stream needs {bytes_text(column)} a column, also in tiles, and memory has {bytes_text(limit)}"
        )
    return _reported(prepared.with_tiles(tile, 1), replace(chosen, as_is=False), delivery)


def _tile(prepared: Prepared, column: float, limit: int, delivery: Delivery) -> Pair | None:
    """The tile with least recompute of those through which a stream fits in memory."""
    height, width = prepared.image.size
    best: tuple[int, Pair] | None = None
    for count in COLUMNS:
        for rows in (*HEIGHTS, height):
            tile = min(rows, height), -(-width // count)
            if any(side < step for side, step in zip(tile, prepared.plan.phase, strict=True)):
                continue
            plan = prepared.with_tiles(tile, 1).plan
            needed = plan.window[1] * column + _waiting(plan, prepared, delivery)
            if needed <= limit and (best is None or plan.processed_pixels < best[0]):
                best = plan.processed_pixels, tile
    return None if best is None else best[1]


def _waiting(plan: TilePlan, prepared: Prepared, delivery: Delivery) -> int:
    """Bytes of finished rows of a band, which wait until its last stream is done."""
    row = plan.output_size[1] * prepared.channels * BYTES[prepared.out_dtype]
    reduced = plan.tallest_band() * row if prepared.options.reduce is not None else 0
    if delivery.bands_waiting is None:
        return reduced
    row = plan.output_size[1] * math.prod(expected(prepared.options, prepared.channels, prepared.out_dtype))
    return reduced + (1 + delivery.bands_waiting) * plan.tallest_band() * row


def _limit(prepared: Prepared, delivery: Delivery) -> int:
    """Bytes that a stream may use beside the result and what receives it."""
    options, device = prepared.options, prepared.windows.engine.device
    free = memory.available_bytes() if device is None else memory.free_bytes(device)
    room = [int(SHARE * free)] if free is not None else []
    limit = min([*room, *([options.memory_limit] if options.memory_limit else [])], default=1 << 62)
    made = expected(prepared.options, prepared.channels, prepared.out_dtype)
    beside = delivery.bytes_beside((*prepared.plan.output_size, made[0]))
    if delivery.holds_result:
        beside += math.prod(prepared.plan.output_size) * math.prod(made) * prepared.image.count
    return max(0, limit - beside)


def _graph(prepared: Prepared, schedule: Stream) -> Any:
    """The graph of the model's first part; those of others are recorded when they run."""
    flow = schedule.flows(prepared)[0][0]
    part: Part = next(part for part in prepared.traits.parts if part.how == "model")
    return schedule.graph(prepared, part, flow)


def _reported(prepared: Prepared, schedule: Stream, delivery: Delivery) -> Prepared:
    from ..run.stream.cost import flops, repeated
    from ..run.stream.cost import memory as memory_of

    flows = [flow for row in schedule.flows(prepared) for flow in row]
    graph = _graph(prepared, schedule)
    streams = sum(part.how == "model" for part in prepared.traits.parts)
    held, peak = (streams * one for one in memory_of(graph, schedule.step))
    again = repeated(graph, schedule.step)
    pixels = again * sum(flow.window.height * flow.window.width for flow in flows)
    stream = Streaming(
        rows=schedule.step,
        streams=len(flows),
        columns=flows[0].window.width,
        as_is=schedule.as_is,
        recompute=pixels / prepared.plan.ideal_pixels,
        held=held,
        peak=peak,
        flops=round(again * flops(graph)) * streams * len(flows),
        sweeps=graph.levels + 1,
        device=str(graph.image.device),
    )
    report = replace(prepared.report, stream=stream, schedule_why=None)
    return replace(prepared, report=report, schedule=schedule)
