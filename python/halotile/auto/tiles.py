# SPDX-License-Identifier: MIT
"""tile_size="auto", batch_size="auto", memory_limit: tiles chosen for the user's model on this machine.

    a first, small window -> which cuts of the image memory allows -> a few probes, larger and larger
    -> the least predicted total, pixels of the balanced plan x measured cost of a pixel; of totals within 5 % of it the
       one that takes least memory

Probes are real windows of the image, and as long as 5 % of the run at most. Larger windows than those that were tried
are taken to cost as much a pixel as the largest one tried: with the heap kept that is so. The first batch of what was
chosen is timed too; it is the run's own, unless another choice turns out to be better. What was measured is kept, so
that the next run with the same model on the same machine probes nothing.

On an accelerator the tile goes by free memory (memory.py), and nothing is timed.
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
from ..run.report import Tuning
from ..run.rows import bytes_of_bands
from ..run.traits import Traits
from ..texts import bytes_text
from .costs import Costs, cost_name, machine
from .knowledge import Knowledge
from .opening import learned

__all__ = ["Tuner"]

Pair = tuple[int, int]

BUDGET = 0.05  # of the run may go to probes
START = 0.005  # of the image's pixels: the first window
SMALLEST = 64  # a tile's side to start with
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)  # tiles along a side
LARGEST = 2048  # a tile's side, except for bands
ASPECT = 4  # of tiles that are not as wide as the image
GROWTH = 2.0  # of windows from probe to probe
TRUSTED = {True: 64, False: 4}  # windows so many times as large as any tried are considered: heap kept, or not
NEARLY = 1.05  # of the least time: what takes less memory is worth so much
BETTER = 0.9  # of the time: to change the choice once its first batch was timed
CHANGES = 3  # of mind, at most
BATCHES = (2, 4, 8)
SHARE = 0.8  # of what is available may be used


@dataclass(frozen=True)
class Choice:
    """A way to cut the image."""

    plan: TilePlan
    tile: Pair  # as an option
    batch: int

    @property
    def pixels(self) -> int:
        return self.batch * self.plan.window[0] * self.plan.window[1]


class Tuner:
    """The way to a run's tiles.

    Attributes:
        now: the run as it stands: its options get numbers for tile_size and batch_size.
        first: outputs of its first batch, where they are at hand.
        costs: what is known of the model's.
    """

    def __init__(self, opened: Opened, knowledge: Knowledge, delivery: Delivery, heap_kept: bool):
        self.now, self.first = opened, First()
        self.image, self.windows, self.asked = opened.image, opened.windows, opened.options
        self.knowledge, self.delivery = knowledge, delivery
        # Other threads have small heaps of their own.
        self.heap_kept = heap_kept and threading.current_thread() is threading.main_thread()
        self.probed, self.started_with = 0.0, memory.resident_bytes() or 0
        self.too_large: float = math.inf  # pixels of a batch with which memory ran out
        self.costs = self._known()

    def _known(self) -> Costs:
        known = self.knowledge.costs
        if self.key not in known:
            known[self.key] = Costs.of(kept("cost", self.key)) if self.key[0] else Costs()
        return known[self.key]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What costs depend on; its first item is None where the model cannot be told from others."""
        model, engine, torch = self.windows.model, self.windows.engine, torch_if_loaded()
        threads = torch.get_num_threads() if torch is not None else 0
        what = self.knowledge.fingerprint
        return what, engine.name, model.dtype, threads, self.heap_kept, self.asked.memory_format, machine()

    @cached_property
    def limit(self) -> int | None:
        """Bytes that the run may take."""
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
        """The run with tiles to start with: the best that are known, or small ones. What an earlier image had compiled
        runs as it is until the run has its windows: compiling for those that are timed would be their cost."""
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
            tile = self.asked.tile_size  # only the batch is to be found
        rows, columns = (max(one, step) for one, step in zip(tile, self.asked.phase, strict=True))
        self._fit((rows, columns), 1)
        return self.now

    def _are_known(self) -> bool:
        return bool(self.costs.seconds or self.asked.tile_size != "auto") and bool(
            self.costs.activations(1, self.heap_kept)
        )

    def finished(self, prepared: Prepared, first: First) -> tuple[Prepared, First]:
        """The run with the tiles that it is to have, and its first batch where that was made."""
        self.now, self.first, self.windows = prepared, first, prepared.windows
        self.asked = replace(self.asked, phase=prepared.options.phase)  # the first window may have told another
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
        assert isinstance(self.now, Prepared)  # since its first window
        return self.now

    def learned(self) -> tuple[Prepared, First]:
        """The run's first window, in which the memory that the model takes is watched."""
        with watching() as watch:
            prepared, first = learned(self.now, self.knowledge)
        plan = prepared.planned()
        pixels = plan.window[0] * plan.window[1] * len(next(iter(first.values()), ()))
        if pixels:
            self.costs.live = max(self.costs.live, watch.most / pixels)
            self._grew(pixels)
        return prepared, first

    def _settled(self, choices: list[Choice]) -> Choice:
        """The best choice, given to the run; its first batch is timed, which may show another to be better."""
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
        """The same with more windows in a call, where that is cheaper. It may take its share of the run, too."""
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
        """Those that memory allows. Raises ValueError where memory_limit allows none."""
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
        """What a run takes; None where nobody knows what the model does."""
        activations = self.costs.activations(choice.pixels, self.heap_kept)
        return None if activations is None else self._held(choice) + activations

    def _held(self, choice: Choice) -> int:
        """What a run takes besides the model."""
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
        held = parts["total"] - parts["image"] - (0 if self.delivery.holds_result else parts["output"])
        return held + self._rows_read(choice, parts["image"]) + self._rows_made(choice, channels)

    def _rows_made(self, choice: Choice, channels: int) -> int:
        """Bytes of finished rows that no result holds, and of what takes them."""
        plan, waiting = choice.plan, self.delivery.bands_waiting
        if waiting is None:
            return 0
        bands = bytes_of_bands(plan, choice.batch, channels * BYTES[self.now.out_dtype], waiting)
        return bands + self.delivery.bytes_beside((*plan.output_size, channels))

    def _rows_read(self, choice: Choice, whole: int) -> int:
        """Bytes of the image that the run holds, besides one that is in memory already."""
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
        """Of those whose predicted total is nearly the least, the one that takes least memory; the first that fits
        where tiles and batches are given.

        but: the choice so far, which stays unless another is clearly better."""
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
        """Whether what was tried tells something of it. Larger batches of larger windows are not looked at unasked."""
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
        options = self.now.options.with_tiles(tile, batch, self.now.plan.phase)
        self.now = replace(self.now, options=options)

    # ---- probes ------------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Times windows, larger and larger, until that has taken its share of the run."""
        first = self._choice_now()
        if len(first.plan) == 1:
            return
        seconds = self._time(first)
        self.probed += 2 * seconds  # learning took about as long
        budget = BUDGET * self._predicted(first) * first.plan.ideal_pixels / first.plan.processed_pixels
        if self.asked.memory_format == "auto" and getattr(self.windows.model, "may_choose", False):
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
        """How windows lie: the other way, twice, since it is new to the model the first time."""
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
        """Runs a choice's first batch. keeps: for the run. Where memory runs out, there is nothing to be kept."""
        windows, part = self.windows, self.prepared.traits.parts[0]
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
