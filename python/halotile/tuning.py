# SPDX-License-Identifier: MIT
"""tile_size="auto", batch_size="auto", memory_limit: tiles chosen for the user's model on this machine.

    a first, small window -> which cuts of the image memory allows -> a few probes, larger and larger
    -> the least predicted total: pixels of the balanced plan x measured cost of a pixel

Probes are real windows of the image, and as long as 5 % of the run at most. Larger windows than those that were tried
are taken to cost as much a pixel as the largest one tried: with the heap kept that is so. The first batch of what was
chosen is timed too; it is the run's own, unless another choice turns out to be better. What was measured is kept, so
that the next run with the same model on the same machine probes nothing.

On an accelerator the tile goes by free memory (memory.py), and nothing is timed.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import memory
from .cache import keep, kept
from .hidden import REACH, with_colours
from .images import torch_if_loaded
from .options import DEFAULT_TILE
from .plan import BYTES, TilePlan, make_plan
from .rows import bytes_of_bands
from .texts import bytes_text

__all__ = ["Tuner", "Tuning", "by_free_memory"]

Pair = tuple[int, int]

BUDGET = 0.05  # of the run may go to probes
START = 0.005  # of the image's pixels: the first window
SMALLEST = 64  # a tile's side to start with
CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)  # tiles along a side
LARGEST = 2048  # a tile's side, except for bands
ASPECT = 4  # of tiles that are not as wide as the image
GROWTH = 2.0  # of windows from probe to probe
TRUSTED = {True: 64, False: 4}  # windows so many times as large as any tried are considered: heap kept, or not
BETTER = 0.9  # of the time: to change the choice once its first batch was timed
CHANGES = 3  # of mind, at most
BATCHES = (2, 4, 8)
KINDS = ("channels_last", "contiguous")
SHARE = 0.8  # of what is available may be used
UNSEEN = {True: 3, False: 2}  # times the tensors that live together is what operators and malloc take: heap kept, not


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and why.

    Attributes:
        tile_size: (rows, columns), input pixels, as the balanced plan has it.
        batch_size: windows per call of the model.
        memory_format: how windows lie in memory: "channels_last" or "contiguous".
        bytes: what the run was predicted to take beyond what the process held; None where nothing is known.
        limit: what it might take, bytes; None where nothing is known.
        seconds: predicted for one image; None if nothing was timed.
        probed: seconds that went to windows whose results were not used.
        costs: seconds a pixel by window, as measured now or before.
        why: a sentence.
    """

    tile_size: Pair
    batch_size: int
    memory_format: str
    bytes: int | None
    limit: int | None
    seconds: float | None
    probed: float
    costs: dict[str, float] = field(repr=False)
    why: str

    def __str__(self) -> str:
        return f"tiles of {self.tile_size[0]}x{self.tile_size[1]} in batches of {self.batch_size}: {self.why}"


@dataclass
class Measured:
    """Of a model on this machine, by earlier runs and this one, and by others at the same time: what is here is put
    in place of what was, not changed.

    Attributes:
        seconds: a pixel, by a window's name.
        bytes: that the process grew by, and pixels of the batch that it was for: the two largest.
        live: bytes a pixel of tensors that live together; 0 where they cannot be seen.
        memory_format: the faster one; None where that was not tried.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: list[Pair] = field(default_factory=list)
    live: float = 0.0
    memory_format: str | None = None

    @classmethod
    def of(cls, found: Any) -> Measured:
        """What was kept; nothing, if that is something else."""
        try:
            seconds = {name: float(one) for name, one in found["seconds"].items() if _pixels_of(name) > 0}
            grown = [(int(p), int(b)) for p, b in found["bytes"]]
            live, kind = float(found["live"]), found["memory_format"]
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            return cls()
        rises = all(0 < p < q for (p, _), (q, _) in itertools.pairwise(grown)) and len(grown) <= 2
        numbers = all(0 <= one < math.inf for one in (live, *seconds.values()))
        return cls(seconds, grown, live, kind) if rises and numbers and kind in (None, *KINDS) else cls()

    def took(self, name: str, seconds: float) -> None:
        self.seconds = self.seconds | {name: seconds}

    def grew(self, pixels: int, size: int) -> None:
        if not self.bytes or pixels > 1.5 * self.bytes[-1][0]:
            self.bytes = [*self.bytes[-1:], (pixels, max(size, 0))]

    def activations(self, pixels: int, heap_kept: bool) -> int | None:
        """Bytes for a batch of so many pixels: by the line through two probes, and by what lives together."""
        least = UNSEEN[heap_kept] * self.live * pixels
        if len(self.bytes) > 1:
            (p, a), (q, b) = self.bytes
            least = max(least, b + (b - a) / (q - p) * (pixels - q))
        return int(least) or None

    def cost(self, plan: TilePlan, batch: int, kind: str) -> tuple[float | None, int]:
        """Seconds a pixel, and the pixels of the largest batch that was tried.

        Between batches that were timed, by the logarithm of their pixels; beyond them, as the nearest."""
        own = _name(plan, batch, kind)
        costs = {_pixels_of(name): cost for name, cost in self.seconds.items() if name.endswith(kind)}
        if not costs:
            return None, 0
        if own in self.seconds:
            return self.seconds[own], max(costs)
        sizes = sorted(costs)
        logs, values = [math.log(size) for size in sizes], [costs[size] for size in sizes]
        return float(np.interp(math.log(plan.window[0] * plan.window[1] * batch), logs, values)), sizes[-1]


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
    """The way of a run to its tiles.

    Attributes:
        run: a run.Run. Its options get numbers for tile_size and batch_size.
        measured: what is known of the model's costs.
    """

    def __init__(self, run: Any, heap_kept: bool):
        self.run, self.asked = run, run.options
        # Other threads have small heaps of their own.
        self.heap_kept = heap_kept and threading.current_thread() is threading.main_thread()
        self.probed, self.started = 0.0, memory.resident_bytes() or 0
        self.too_large: float = math.inf  # pixels of a batch with which memory ran out
        self.measured = self._known()

    def _known(self) -> Measured:
        known = self.run.restorer._costs
        if self.key not in known:
            known[self.key] = Measured.of(kept("cost", self.key)) if self.key[0] else Measured()
        return known[self.key]

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What costs depend on; its first item is None where the model cannot be told from others."""
        model, engine, torch = self.run.model.settled, self.run.engine, torch_if_loaded()
        threads = torch.get_num_threads() if torch is not None else 0
        what = self.run.restorer.told_apart
        return what, engine.name, model.dtype, threads, self.heap_kept, self.asked.memory_format, _machine()

    @cached_property
    def limit(self) -> int | None:
        """Bytes that the run may take."""
        free = memory.available_bytes()
        room = None if free is None else int(SHARE * free)
        return min((one for one in (self.asked.memory_limit, room) if one is not None), default=None)

    @property
    def kind(self) -> str:
        return self.run.model.settled.window_format

    # ---- a run -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Gives the run tiles to start with: the best that are known, or small ones. What an earlier image had compiled
        runs as it is until the run has its windows: compiling for those that are timed would be their cost."""
        self.run.model.settled.compiled = None
        if self.measured.memory_format is not None:
            self.run.model.settled.channels_last = self.measured.memory_format == "channels_last"
        best = self._best(self._choices()) if self._are_known() else None
        if best is not None:
            return self._take(best)
        height, width = self.run.image.size
        side = max(SMALLEST, int((START * height * width) ** 0.5) - 2 * max(self.asked.halo))
        tile = (side, side) if self.asked.tile_size == "auto" else tuple(min(side, one) for one in self.asked.tile_size)
        if self.asked.tile_size != "auto" and self.asked.memory_limit is None:
            tile = self.asked.tile_size  # only the batch is to be found
        rows, columns = (max(one, step) for one, step in zip(tile, self.asked.phase, strict=True))
        self._fit((rows, columns), 1)

    def _are_known(self) -> bool:
        return bool(self.measured.seconds or self.asked.tile_size != "auto") and bool(
            self.measured.activations(1, self.heap_kept)
        )

    def learned(self) -> None:
        """The run's first window, in which the memory that the model takes is watched."""
        with memory.watching() as watch:
            self.run.facts = self.run._learned()
        pixels = self.run.plan.window[0] * self.run.plan.window[1] * len(next(iter(self.run.ready.values()), ()))
        if pixels:
            self.measured.live = max(self.measured.live, watch.most / pixels)
            self._grew(pixels)

    def finish(self) -> None:
        """Gives the run the tiles that it is to have, and its first batch where that was made."""
        self.asked = replace(self.asked, phase=self.run.options.phase)  # the first window may have told another
        if self.asked.tile_size == "auto" and not self._are_known():
            self._probe()
        choices = self._choices()
        best = self._settled(choices)
        if self.asked.batch_size == "auto":
            best = self._with_batches(best)
        self._explain(best, len(choices))
        if self.key[0]:
            keep("cost", self.key, asdict(self.measured))

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
            ready = dict(self.run.ready)
            seconds = self._time(larger, keeps=True)
            if not self._is_timed(larger) or self._predicted(larger) > BETTER * self._predicted(best):
                self.run.ready, self.probed = ready, self.probed + seconds
                break
            output = self.run.ready
            self._take(larger)
            self.run.ready, best = output, larger
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
        phase, size = self.asked.phase, self.run.image.size
        if self.asked.tile_size != "auto":
            rows, columns = self.asked.tile_size
            yield rows, columns
            while self.asked.memory_limit is not None and max(rows, columns) > memory.SMALLEST_TILE:
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
        run = self.run
        options = self.asked.with_tiles(tile, 1, self.asked.phase)
        facts = run.restorer._facts.get(run.image.channels)
        scale, loss = (options.scale, (0, 0)) if facts is None else (facts.scale, facts.loss)
        return make_plan(options, run.image.size, scale, loss)

    def _fits(self, choice: Choice) -> bool:
        size = self._bytes(choice)
        if choice.pixels >= self.too_large:
            return False
        if size is None and self.asked.tile_size == "auto" and max(choice.plan.tile) > DEFAULT_TILE:
            return False
        return self.limit is None or (size or self._held(choice)) <= self.limit

    def _bytes(self, choice: Choice) -> int | None:
        """What a run takes; None where nobody knows what the model does."""
        activations = self.measured.activations(choice.pixels, self.heap_kept)
        return None if activations is None else self._held(choice) + activations

    def _held(self, choice: Choice) -> int:
        """What a run takes besides the model."""
        run, facts = self.run, self.run.restorer._facts.get(self.run.image.channels)
        channels = run.image.channels if facts is None else sum(facts.out_channels)
        parts = choice.plan.estimate_bytes(
            channels=run.image.channels,
            out_channels=channels,
            dtype=run.image.dtype,
            out_dtype=run.out_dtype,
            batch_size=choice.batch,
            engine=run.engine.name,
        )
        held = parts["total"] - parts["image"] - (0 if run.holds_result else parts["output"])
        return held + self._rows_read(choice, parts["image"]) + self._rows_made(choice, channels)

    def _rows_made(self, choice: Choice, channels: int) -> int:
        """Bytes of finished rows that no result holds, and of what takes them."""
        run, plan = self.run, choice.plan
        if run.bands_waiting is None:
            return 0
        bands = bytes_of_bands(plan, choice.batch, channels * BYTES[run.out_dtype], run.bands_waiting)
        return bands + run.bytes_beside((*plan.output_size, channels))

    def _rows_read(self, choice: Choice, whole: int) -> int:
        """Bytes of the image that the run holds, besides one that is in memory already."""
        run, plan = self.run, choice.plan
        facts = run.restorer._facts.get(run.image.channels)
        filled = facts is not None and run.forward.fills(facts.parts[0], 0)
        if not (run.image.by_rows or filled):
            return 0
        if run.engine.name != "host":
            return whole if run.image.by_rows else 0
        rows = plan.window[0] + (plan.rows_at_once(choice.batch) - 1) * plan.tile[0]
        if not filled:
            return run.image.held(0).bytes_for(rows)
        around = run.image.held(0).bytes_for(3 * REACH) if run.image.by_rows else 0
        return around + with_colours(run.image, 0).held(0).bytes_for(rows)

    def _predicted(self, choice: Choice) -> float:
        cost, _ = self.measured.cost(choice.plan, choice.batch, self.kind)
        calls = -(-len(choice.plan) // choice.batch)
        return (cost or 1.0) * calls * choice.pixels

    def _best(self, choices: list[Choice], but: Choice | None = None) -> Choice:
        """The least predicted total; the first that fits where tiles and batches are given.

        but: the choice so far, which stays unless another is clearly better."""
        if "auto" not in (self.asked.tile_size, self.asked.batch_size):
            return choices[0]
        trusted = [choice for choice in choices if self._is_trusted(choice)] or [min(choices, key=lambda c: c.pixels)]
        best = min(trusted, key=lambda choice: (self._predicted(choice), choice.pixels))
        if but is not None and self._predicted(best) > BETTER * self._predicted(but):
            return but
        return best

    def _is_trusted(self, choice: Choice) -> bool:
        """Whether what was tried tells something of it. Larger batches of larger windows are not looked at unasked."""
        cost, tried = self.measured.cost(choice.plan, choice.batch, self.kind)
        return cost is None or self._is_timed(choice) or choice.pixels <= TRUSTED[self.heap_kept] * tried

    def _is_timed(self, choice: Choice) -> bool:
        return _name(choice.plan, choice.batch, self.kind) in self.measured.seconds

    def _take(self, choice: Choice) -> None:
        run = self.run
        if (run.options.tile_size, run.options.batch_size) != (choice.tile, choice.batch):
            self._fit(choice.tile, choice.batch)
            run.ready.clear()
            run.forward.buffers.clear()
        if getattr(run, "facts", None) is not None:
            run._plan_anew()

    def _fit(self, tile: Pair, batch: int) -> None:
        """For this run alone, until `_explain` tells: what it tries out is nothing to start the next one with."""
        self.run.options = self.run.options.with_tiles(tile, batch, self.run.plan.phase)

    # ---- probes ------------------------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Times windows, larger and larger, until that has taken its share of the run."""
        first = self._choice_now()
        if len(first.plan) == 1:
            return
        seconds = self._time(first)
        self.probed += 2 * seconds  # learning took about as long
        budget = BUDGET * self._predicted(first) * first.plan.ideal_pixels / first.plan.processed_pixels
        if self.asked.memory_format == "auto" and getattr(self.run.model.settled, "may_choose", False):
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
        options = self.run.options
        plan = self._planned(options.tile_size)
        return Choice(plan, options.tile_size, plan.batch(options.batch_size))

    def _try_formats(self, choice: Choice, seconds: float, budget: float) -> None:
        """How windows lie: the other way, twice, since it is new to the model the first time."""
        if self.probed + 2 * seconds > 0.7 * budget:
            return
        model = self.run.model.settled
        own, was = model.channels_last, self.measured.seconds[_name(choice.plan, choice.batch, self.kind)]
        model.channels_last = not own
        self.run.forward.buffers.clear()
        self.probed += self._time(choice) + self._time(choice)
        if model.channels_last != own and self.measured.seconds[_name(choice.plan, choice.batch, self.kind)] > was:
            model.channels_last = own
            self.run.forward.buffers.clear()
        self.measured.memory_format = self.kind

    def _seconds(self, choice: Choice) -> float:
        return self._predicted(choice) / -(-len(choice.plan) // choice.batch)

    def _time(self, choice: Choice, keeps: bool = False) -> float:
        """Runs a choice's first batch. keeps: for the run. Where memory runs out, there is nothing to be kept."""
        run, part = self.run, self.run.facts.parts[0]
        start = time.perf_counter()
        try:
            output = run.forward(part, 0, choice.plan, choice.plan[: choice.batch])
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            memory.forget_frames(error)
            run.forward.buffers.clear()
            self.too_large = min(self.too_large, choice.pixels)
            return time.perf_counter() - start
        seconds = time.perf_counter() - start
        self.measured.took(_name(choice.plan, choice.batch, self.kind), seconds / choice.pixels)
        self._grew(choice.pixels)
        if keeps:
            run.ready[part] = output
        return seconds

    def _grew(self, pixels: int) -> None:
        now = memory.resident_bytes()
        if now is not None and self.heap_kept:
            self.measured.grew(pixels, now - self.started)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _explain(self, best: Choice, count: int) -> None:
        size, more = self._bytes(best), best.plan.processed_pixels / best.plan.ideal_pixels
        timed = self.measured.seconds.get(_name(best.plan, best.batch, self.kind))
        seconds = None if timed is None else timed * -(-len(best.plan) // best.batch) * best.pixels
        if seconds is None:
            why = "the largest that memory_limit allows"
        else:
            why = f"the least time predicted of {count} ways to cut the image, {seconds:.3g} s: {1e6 * timed:.3g} us a "
            why += f"pixel, {more:.2f} times the image's pixels"
        if size is None and self.limit is not None:
            why += "; without what the model itself takes, which cannot be seen"
        elif self.limit is not None:
            why += f"; {bytes_text(size)} of {bytes_text(self.limit)} that may be used"
        if self.probed:
            why += f"; {self.probed:.2g} s went to trying"
        tuning = Tuning(
            best.plan.tile,
            best.batch,
            self.kind,
            size,
            self.limit,
            seconds,
            self.probed,
            dict(self.measured.seconds),
            why,
        )
        self.run.tell(replace(self.run.halo, tuning=tuning))


def by_free_memory(run: Any, side: int) -> Tuning:
    """Of a run on an accelerator, where the memory that is free allows tiles of that side."""
    plan, limit = run.plan, run.options.memory_limit
    kind = run.model.settled.window_format
    who = "the device's free memory" if limit is None else "memory_limit or the device's free memory"
    why = f"{who} allows tiles of {side}x{side}"
    return Tuning(plan.tile, plan.batch(run.options.batch_size), kind, None, limit, None, 0.0, {}, why)


def _too_low(limit: int, least: int) -> ValueError:
    megabytes = -(-least >> 20)
    text = f"memory_limit must be at least {bytes_text(megabytes << 20, math.ceil)} for this model and image, not "
    text += bytes_text(limit, math.floor)
    return ValueError(f"{text}: pass memory_limit={megabytes} << 20, or --memory-limit {megabytes}M")


def _name(plan: TilePlan, batch: int, kind: str) -> str:
    return f"{plan.window[0]} x {plan.window[1]} x {batch} {kind}"


def _pixels_of(name: str) -> int:
    rows, _, columns, _, batch, _ = name.split(" ")
    return int(rows) * int(columns) * int(batch)


def _halves(batch: int) -> Iterator[int]:
    while batch:
        yield batch
        batch //= 2


def _machine() -> str:
    """The processor, as far as that can be had without asking long."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{platform.machine()} {name} {os.cpu_count()}"
