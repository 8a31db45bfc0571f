# SPDX-License-Identifier: MIT
"""tile_size="auto", batch_size="auto", memory_limit: choose tiles for this model on this machine.

    first small window -> tilings that fit in memory -> timed probes -> cheapest tiling -> time its first batch

    seconds    *
    per pixel     *                      *  probe: a real window, each at least twice as large as the last
                       *- - - - - - -    -  assumed: the cost of the largest probe
                    pixels per batch

A tiling costs (pixels of its plan) x (seconds per pixel). Among tilings within 5 % of the lowest cost, the one that
needs least memory wins; the time of its first batch can overturn the choice. Probes take at most 5 % of the run.
Measurements are cached, so the next run with this model on this machine probes nothing.

On an accelerator, free memory alone sets the tile size (memory.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from .. import memory
from ..cache import keep, kept
from ..images.hidden import REACH, with_colours
from ..models.activations import watching
from ..optional import torch_if_loaded
from ..options import DEFAULT_TILE
from ..plan import BYTES, TilePlan, make_plan
from ..run.out_of_memory import SMALLEST_TILE
from ..run.prepared import Delivery, First, Opened, Prepared
from ..run.reduction import expected
from ..run.report import Tuning
from ..run.rows import bytes_of_bands
from ..run.traits import Traits
from ..stages import reached
from ..texts import bytes_text
from .costs import Costs, cost_name, machine
from .knowledge import Knowledge
from .opening import learned

__all__ = ["Tuner"]

Pair = tuple[int, int]

BUDGET = 0.05  # share of the run that probes may take
START = 0.005  # first window, as a share of the image's pixels
SMALLEST = 64  # side of the first tile
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)  # tiles along a side
LARGEST = 2048  # side of a tile, unless it spans the full width
ASPECT = 4  # largest aspect ratio of tiles narrower than the image
GROWTH = 2.0  # smallest growth in pixels from probe to probe
TRUSTED = {True: 64, False: 4}  # largest extrapolation in pixels, with and without the heap kept
NEARLY = 1.05  # tilings within this factor of the least time compete on memory
BETTER = 0.9  # time relative to the current choice that justifies a change
CHANGES = 3  # changes of choice at most
BATCHES = (2, 4, 8)
SHARE = 0.8  # share of the available memory that a run may use


@dataclass(frozen=True)
class Choice:
    plan: TilePlan
    tile: Pair  # value of tile_size
    batch: int

    @property
    def pixels(self) -> int:
        return self.batch * self.plan.window[0] * self.plan.window[1]


class Tuner:
    """Chooses tile_size and batch_size for one run.

    Attributes:
        now: the run so far; its options receive the chosen numbers.
        first: outputs of its first batch, if available.
        costs: measured time and memory of the model.
    """

    def __init__(self, opened: Opened, knowledge: Knowledge, delivery: Delivery, heap_kept: bool):
        self.now, self.first = opened, First()
        self.image, self.windows, self.asked = opened.image, opened.windows, opened.options
        self.knowledge, self.delivery = knowledge, delivery
        # Only the main thread allocates from the kept heap.
        self.heap_kept = heap_kept and threading.current_thread() is threading.main_thread()
        self.probed, self.started_with = 0.0, memory.resident_bytes() or 0
        self.too_large: float = math.inf  # pixels of the smallest batch that ran out of memory
        self.costs = self._known()

    def _known(self) -> Costs:
        known = self.knowledge.costs
        if self.key not in known:
            known[self.key] = Costs.of(kept("cost", self.key)) if self.key[0] else Costs()
        return known[self.key]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """Everything the costs depend on; the first item is None if the model has no fingerprint."""
        model, engine, torch = self.windows.model, self.windows.engine, torch_if_loaded()
        threads = torch.get_num_threads() if torch is not None else 0
        what = self.knowledge.fingerprint
        return what, engine.name, model.dtype, threads, self.heap_kept, self.asked.memory_format, machine()

    @cached_property
    def limit(self) -> int | None:
        free = memory.available_bytes()
        room = None if free is None else int(SHARE * free)
        return min((one for one in (self.asked.memory_limit, room) if one is not None), default=None)

    @property
    def kind(self) -> str:
        return self.windows.model.window_format

    @property
    def traits(self) -> Traits | None:
        return self.knowledge.traits.get(self.image.channels)

    # ---- a run -------------------------------------------------------------------------------------------------------

    def started(self) -> Opened:
        """Starts with the best known tiles, or with small ones. Probes run uncompiled: compiling would dominate their
        time."""
        model = self.windows.model
        model.compiled = None
        if self.costs.memory_format is not None:
            model.channels_last = self.costs.memory_format == "channels_last"
        best = self._best(self._choices()) if self._are_known() else None
        if best is not None:
            self._take(best)
            return self.now
        height, width = self.image.size
        side = max(SMALLEST, int((START * height * width) ** 0.5) - 2 * max(self.asked.halo))
        tile = (side, side) if self.asked.tile_size == "auto" else tuple(min(side, one) for one in self.asked.tile_size)
        if self.asked.tile_size != "auto" and self.asked.memory_limit is None:
            tile = self.asked.tile_size  # only the batch size is open
        rows, columns = (max(one, step) for one, step in zip(tile, self.asked.phase, strict=True))
        self._fit((rows, columns), 1)
        return self.now

    def _are_known(self) -> bool:
        return bool(self.costs.seconds or self.asked.tile_size != "auto") and bool(
            self.costs.activations(1, self.heap_kept)
        )

    def finished(self, prepared: Prepared, first: First) -> tuple[Prepared, First]:
        """Returns the run with its final tiles, and reusable outputs of its first batch."""
        self.now, self.first, self.windows = prepared, first, prepared.windows
        self.asked = replace(self.asked, phase=prepared.options.phase)  # the first window may have changed the phase
        if self.asked.tile_size == "auto" and not self._are_known():
            self._probe()
        choices = self._choices()
        best = self._settled(choices)
        if self.asked.batch_size == "auto":
            best = self._with_batches(best)
        tuning = self._explained(best, len(choices))
        if self.key[0]:
            keep("cost", self.key, asdict(self.costs))
        return replace(self.prepared, report=replace(self.now.report, tuning=tuning)), self.first

    @property
    def prepared(self) -> Prepared:
        assert isinstance(self.now, Prepared)
        return self.now

    def learned(self) -> tuple[Prepared, First]:
        """Runs the first window and records the model's peak memory."""
        with watching() as watch:
            prepared, first = learned(self.now, self.knowledge)
        plan = prepared.planned()
        pixels = plan.window[0] * plan.window[1] * len(next(iter(first.values()), ()))
        if pixels:
            self.costs.live = max(self.costs.live, watch.most / pixels)
            self._grew(pixels)
        return prepared, first

    def _settled(self, choices: list[Choice]) -> Choice:
        """Takes the best choice and times its first batch, which may reveal a better one."""
        for _ in range(CHANGES):
            best = self._best(choices)
            self._take(best)
            if "auto" not in (self.asked.tile_size, self.asked.batch_size) or self._is_timed(best):
                return best
            seconds = self._time(best, keeps=True)
            choices = [choice for choice in choices if choice.pixels < self.too_large] or choices[:1]
            if best in choices and best is self._best(choices, but=best):
                return best
            self.probed += seconds
        best = self._best([choice for choice in choices if self._is_timed(choice)] or choices)
        self._take(best)
        return best

    def _with_batches(self, best: Choice) -> Choice:
        """Tries larger batches while they pay off; they share the probe budget."""
        budget = BUDGET * self._predicted(best) - self.probed
        for size in BATCHES:
            larger = Choice(best.plan, best.tile, best.plan.batch(size))
            if larger.batch <= best.batch or self._is_timed(larger):
                continue
            if not self._fits(larger) or self._seconds(larger) > budget:
                break
            before = self.first
            self.first = First()
            seconds = self._time(larger, keeps=True)
            if not self._is_timed(larger) or self._predicted(larger) > BETTER * self._predicted(best):
                self.first, self.probed = before, self.probed + seconds
                break
            output = self.first
            self._take(larger)
            self.first, best = output, larger
        return best

    # ---- choices -----------------------------------------------------------------------------------------------------

    def _choices(self) -> list[Choice]:
        """Raises ValueError if memory_limit admits no tiling."""
        batches = (1, *BATCHES) if self.asked.batch_size == "auto" else (self.asked.batch_size,)
        found: dict[tuple[Pair, int], Choice] = {}
        for tile in self._tiles():
            plan = self._planned(tile)
            for size in batches if self.asked.batch_size == "auto" else _halves(self.asked.batch_size):
                choice = Choice(plan, tile, plan.batch(size))
                found.setdefault((plan.window, choice.batch), choice)
        fitting = [choice for choice in found.values() if self._fits(choice)]
        if fitting:
            return fitting
        smallest = min(found.values(), key=lambda choice: choice.pixels)
        if self.asked.memory_limit is not None and self.limit == self.asked.memory_limit:
            raise _too_low(self.asked.memory_limit, self._bytes(smallest) or self._held(smallest))
        return [smallest]

    def _tiles(self) -> Iterator[Pair]:
        phase, size = self.asked.phase, self.image.size
        if self.asked.tile_size != "auto":
            rows, columns = self.asked.tile_size
            yield rows, columns
            while self.asked.memory_limit is not None and max(rows, columns) > SMALLEST_TILE:
                half = max(rows, columns, 2) // 2
                rows, columns = min(rows, half), min(columns, half)
                yield max(rows, phase[0]), max(columns, phase[1])
            return
        sides = [sorted({max(-(-side // cut), step) for cut in CUTS}) for side, step in zip(size, phase, strict=True)]
        for rows in sides[0]:
            for columns in sides[1]:
                if rows > LARGEST or (columns > LARGEST and columns < size[1]):
                    continue
                if columns >= size[1] or 1 / ASPECT <= rows / columns <= ASPECT:
                    yield rows, columns

    def _planned(self, tile: Pair) -> TilePlan:
        options, traits = self.asked.with_tiles(tile, 1, self.asked.phase), self.traits
        scale, trim = (options.scale, (0, 0)) if traits is None else (traits.scale, traits.trim)
        return make_plan(options, self.image.size, scale, trim)

    def _fits(self, choice: Choice) -> bool:
        size = self._bytes(choice)
        if choice.pixels >= self.too_large:
            return False
        if size is None and self.asked.tile_size == "auto" and max(choice.plan.tile) > DEFAULT_TILE:
            return False
        return self.limit is None or (size or self._held(choice)) <= self.limit

    def _bytes(self, choice: Choice) -> int | None:
        """Memory of a run in bytes; None if the model's share is unknown."""
        activations = self.costs.activations(choice.pixels, self.heap_kept)
        return None if activations is None else self._held(choice) + activations

    def _held(self, choice: Choice) -> int:
        """Memory of a run in bytes, without the model's activations."""
        traits, image = self.traits, self.image
        channels = image.channels if traits is None else sum(traits.out_channels)
        parts = choice.plan.estimate_bytes(
            channels=image.channels,
            out_channels=channels,
            dtype=image.dtype,
            out_dtype=self.now.out_dtype,
            batch_size=choice.batch,
            engine=self.windows.engine.name,
        )
        held = parts["total"] - parts["image"] - parts["output"]
        if self.delivery.holds_result:
            held += math.prod(choice.plan.output_size) * math.prod(expected(self.asked, channels, self.now.out_dtype))
        return held + self._rows_read(choice, parts["image"]) + self._rows_made(choice, channels)

    def _rows_made(self, choice: Choice, channels: int) -> int:
        """Bytes of finished rows outside the result, and of their consumer."""
        plan, waiting, dtype = choice.plan, self.delivery.bands_waiting, self.now.out_dtype
        made, reduced = expected(self.asked, channels, dtype), self.asked.reduce is not None
        rows = bytes_of_bands(plan, choice.batch, channels * BYTES[dtype], 0) if reduced else 0
        if waiting is None:
            return rows
        bands = bytes_of_bands(plan, choice.batch, math.prod(made), waiting)
        return rows + bands + self.delivery.bytes_beside((*plan.output_size, made[0]))

    def _rows_read(self, choice: Choice, whole: int) -> int:
        """Bytes of the image that the run buffers, unless it was in memory already."""
        image, plan, traits = self.image, choice.plan, self.traits
        filled = traits is not None and self.windows.fills(traits.parts[0], 0)
        if not (image.by_rows or filled):
            return 0
        if self.windows.engine.name != "host":
            return whole if image.by_rows else 0
        rows = plan.window[0] + (plan.rows_at_once(choice.batch) - 1) * plan.tile[0]
        if not filled:
            return image.held(0).bytes_for(rows)
        around = image.held(0).bytes_for(3 * REACH) if image.by_rows else 0
        return around + with_colours(image, 0).held(0).bytes_for(rows)

    def _predicted(self, choice: Choice) -> float:
        cost, _ = self.costs.cost(choice.plan, choice.batch, self.kind)
        calls = -(-len(choice.plan) // choice.batch)
        return (cost or 1.0) * calls * choice.pixels

    def _best(self, choices: list[Choice], but: Choice | None = None) -> Choice:
        """The choice with least memory among the nearly fastest; the first that fits if tile and batch size are given.

        but: the current choice, which only a clearly faster one replaces.
        """
        if "auto" not in (self.asked.tile_size, self.asked.batch_size):
            return choices[0]
        trusted = [choice for choice in choices if self._is_trusted(choice)] or [min(choices, key=lambda c: c.pixels)]
        seconds = {id(choice): self._predicted(choice) for choice in trusted}
        most = NEARLY * min(seconds.values())
        near = [choice for choice in trusted if seconds[id(choice)] <= most]
        best = min(near, key=lambda choice: (self._bytes(choice) or self._held(choice), seconds[id(choice)]))
        if but is not None and self._predicted(best) > BETTER * self._predicted(but):
            return but
        return best

    def _is_trusted(self, choice: Choice) -> bool:
        cost, tried = self.costs.cost(choice.plan, choice.batch, self.kind)
        return cost is None or self._is_timed(choice) or choice.pixels <= TRUSTED[self.heap_kept] * tried

    def _is_timed(self, choice: Choice) -> bool:
        return cost_name(choice.plan, choice.batch, self.kind) in self.costs.seconds

    def _take(self, choice: Choice) -> None:
        options = self.now.options
        if (options.tile_size, options.batch_size) != (choice.tile, choice.batch):
            self._fit(choice.tile, choice.batch)
            self.first = First()
            self.windows.buffers.clear()

    def _fit(self, tile: Pair, batch: int) -> None:
        self.now = self.now.with_tiles(tile, batch)

    # ---- probes ------------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        first = self._choice_now()
        if len(first.plan) == 1:
            return
        seconds = self._time(first)
        self.probed += 2 * seconds  # the first window took about as long
        budget = BUDGET * self._predicted(first) * first.plan.ideal_pixels / first.plan.processed_pixels
        if self.asked.memory_format == "auto" and self.windows.model.may_choose:
            self._try_formats(first, seconds, budget)
        choices = self._choices()
        pixels = first.pixels
        while True:
            larger = [one for one in choices if one.batch == first.batch and one.pixels >= GROWTH * pixels]
            if not larger:
                return
            nearest = min(one.pixels for one in larger)
            probe = min((one for one in larger if one.pixels <= 1.5 * nearest), key=self._predicted)
            if self.probed + self._seconds(probe) > budget:
                return
            self.probed += self._time(probe)
            choices, pixels = [one for one in choices if self._fits(one)], probe.pixels

    def _choice_now(self) -> Choice:
        options = self.now.options
        plan = self._planned(options.tile_size)
        return Choice(plan, options.tile_size, plan.batch(options.batch_size))

    def _try_formats(self, choice: Choice, seconds: float, budget: float) -> None:
        """Times the other memory format. It runs twice: the first call includes warm-up."""
        if self.probed + 2 * seconds > 0.7 * budget:
            return
        model = self.windows.model
        own, was = model.channels_last, self.costs.seconds[cost_name(choice.plan, choice.batch, self.kind)]
        model.channels_last = not own
        self.windows.buffers.clear()
        self.probed += self._time(choice) + self._time(choice)
        if model.channels_last != own and self.costs.seconds[cost_name(choice.plan, choice.batch, self.kind)] > was:
            model.channels_last = own
            self.windows.buffers.clear()
        self.costs.memory_format = self.kind

    def _seconds(self, choice: Choice) -> float:
        return self._predicted(choice) / -(-len(choice.plan) // choice.batch)

    def _time(self, choice: Choice, keeps: bool = False) -> float:
        """Times the first batch of a choice. keeps: store its outputs for the run, unless memory runs out."""
        windows, part = self.windows, self.prepared.traits.parts[0]
        reached("tuning", f"windows of {choice.plan.window[0]}x{choice.plan.window[1]}", 0, 0)
        start = time.perf_counter()
        try:
            output = windows(part, 0, choice.plan, choice.plan[: choice.batch])
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            memory.forget_frames(error)
            windows.buffers.clear()
            self.too_large = min(self.too_large, choice.pixels)
            return time.perf_counter() - start
        seconds = time.perf_counter() - start
        self.costs.took(cost_name(choice.plan, choice.batch, self.kind), seconds / choice.pixels)
        self._grew(choice.pixels)
        if keeps:
            self.first[part] = output
        return seconds

    def _grew(self, pixels: int) -> None:
        now = memory.resident_bytes()
        if now is not None and self.heap_kept:
            self.costs.grew(pixels, now - self.started_with)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _explained(self, best: Choice, count: int) -> Tuning:
        size, more = self._bytes(best), best.plan.processed_pixels / best.plan.ideal_pixels
        timed = self.costs.seconds.get(cost_name(best.plan, best.batch, self.kind))
        seconds = None if timed is None else timed * -(-len(best.plan) // best.batch) * best.pixels
        if seconds is None:
            why = "the largest that memory_limit allows"
        else:
            why = f"of {count} ways to cut the image, the least memory within 5 % of the least time predicted, "
            why += f"{seconds:.3g} s: {1e6 * timed:.3g} us a "
            why += f"pixel, {more:.2f} times the image's pixels"
        if size is None and self.limit is not None:
            why += "; without what the model itself takes, which cannot be seen"
        elif self.limit is not None:
            why += f"; {bytes_text(size)} of {bytes_text(self.limit)} that may be used"
        if self.probed:
            why += f"; {self.probed:.2g} s went to trying"
        return Tuning(
            best.plan.tile,
            best.batch,
            self.kind,
            size,
            self.limit,
            seconds,
            self.probed,
            dict(self.costs.seconds),
            why,
        )


def _too_low(limit: int, least: int) -> ValueError:
    megabytes = -(-least >> 20)
    text = f"memory_limit must be at least {bytes_text(megabytes << 20, math.ceil)} for this model and image, not "
    text += bytes_text(limit, math.floor)
    return ValueError(f"{text}: pass memory_limit={megabytes} << 20, or --memory-limit {megabytes}M")


def _halves(batch: int) -> Iterator[int]:
    while batch:
        yield batch
        batch //= 2
