# SPDX-License-Identifier: MIT
"""A run: one image, or several of one size, on the way through the model.

    start -> for each batch: read -> model -> for each tile: accumulate -> for each completed tile row: finish

`Run._bands` is that loop. What the first window teaches is found in learn.py, read and model are forward.py; who
reads, accumulates and finishes is the engine's affair (engines.py).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from . import memory
from .channels import Part
from .engines import asked_engine, engine_beside, engine_for
from .errors import (
    ColourWarning,
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    TileError,
    TileSizeWarning,
    frames_inside,
    tile_error,
)
from .forward import Forward, Resize, lacks_pixels
from .halo import RunInfo, settled
from .host import ConstantBand
from .images import Image, check_output_dtype, delivered, new_image, open_output, torch_if_loaded
from .layouts import check_layout_found
from .learn import Facts, Sizes, learn
from .model import Model, modules_of, open_model, usable_device
from .plan import Tile, TilePlan, make_plan
from .progress import Progress
from .rows import Rows
from .scan import alpha_of, is_grey
from .team import HANDS, Team
from .texts import full_text, one_line, quoted
from .turn import turn
from .values import Values

if TYPE_CHECKING:
    from .inspection.measure import Moves
    from .restore import TiledRestorer

__all__ = ["Run"]

# What models say of windows whose sides they do not take.
ABOUT_SIZES = re.compile(r"size|shape|divisible|multiple|must match|dimension|broadcast|split|stride", re.IGNORECASE)
COLOURFUL = 8 / 255  # of white: what channels made of grey may be apart on average
UNSEEN = "nothing of the model can be seen"
WORTH_TRYING = 2 * 64**2  # pixels of an image: as many as the windows have that are shifted at first
STRIKING = 1 / 128  # of white: what shifted windows of noise may differ by, far from their edges, without a warning
LARGEST_BATCH = 16  # that batch_size="auto" makes of windows which are small for an accelerator


def _hint(error: Exception, window: tuple[int, int], phase: tuple[int, int]) -> None:
    """Adds to a failure of the first window which option may be the cure."""
    cause, size = error.__cause__, f"{window[0]}x{window[1]}"
    if not isinstance(error, TileError) or cause is None:
        return
    if lacks_pixels(error):
        error.args = (f"{error}; windows of {size} are too small for it: a larger halo makes them larger",)
    elif ABOUT_SIZES.search(full_text(cause)):
        text = f"{error}; windows of {size} are multiples of the phase, {max(phase)}: networks that halve their input, "
        error.args = (text + "or cut it into windows, need phase= such as 8, 16 or 64",)


def told(moves: Moves | None, base: int) -> str:
    """What was found by trying, in words."""
    least = "a pixel" if base == 1 else f"{base} pixels"
    if moves is None:
        return "it could not be told whether its output moves with the image: the phase was taken to be that of windows"
    if moves.step == base:
        return f"its output moves with the image, by {least}"
    text = f"its output does not move with the image by {least}, it is up to {moves.apart:.2g} of white apart"
    if moves.step is None:
        return f"{text}, and no shift was found with which it moves"
    return f"{text}, but it does by {moves.step}: that is the phase"


class Run:
    """One image, or several of one size, on the way through the model."""

    def __init__(self, restorer: TiledRestorer, image: Image, out_dtype: str | None, known: RunInfo | None = None):
        """known: what halo and phase of the restorer's options are; None: that is to be settled."""
        self.restorer, self.image = restorer, image
        self.options, self.halo = (
            restorer._fitting.get(image.size)
            or (known and (restorer.options, known))
            or settled(restorer.options, restorer, image)
        )
        self.out_dtype = out_dtype or image.dtype
        check_output_dtype(image, self.out_dtype)
        self.plan = self._planned(self.options.scale, (0, 0))  # refuses bad combinations before anything is run
        self.index = self.rows_done = 0
        self.held_for: int | None = None  # the image whose statistics are held
        self.holds_result = self.heap_kept = False
        self.bands_waiting: int | None = None  # at most, besides those in work; None: rows are made where they stay
        self.bytes_beside: Callable[[tuple[int, ...]], int] = lambda shape: 0  # that a sink for the result takes
        self.bands_at_work: list[Any] = []
        self.team: Team | None = None
        with turn():
            self.model = self._open_model()
            self._choose_engine()
            self._check_devices()

    def _open_model(self) -> Model:
        opened, options = self.restorer._opened, self.options
        tensors = self.image.device is not None or asked_engine(options.engine) in ("torch", "mps")
        if tensors not in opened:
            opened[tensors] = open_model(
                self.restorer.model,
                device=options.first_device,
                dtype=options.model_dtype,
                tensors=tensors,
                memory_format=options.memory_format,
            )
        if options.compile and not getattr(opened[tensors], "alone", False):
            raise ValueError("compile must be False for a model that is no torch module")
        return opened[tensors]

    def _choose_engine(self) -> None:
        self.engine = engine_for(self.model.settled, self.options.engine)
        self.forward = Forward(self.image, self.model, self.engine, self.options.value_range)
        self.ready: dict[Part, Any] = {}  # outputs of the first batch that learning made

    def _check_devices(self) -> None:
        if len(self.options.devices) > 1:
            for device in self.options.devices:
                usable_device(device)
            if self.halo.holds:
                text = f"device must be one with global_stats={self.halo.global_stats!r}, which holds statistics in the"
                raise ValueError(f"{text} model, not {len(self.options.devices)}")

    def _form_team(self) -> None:
        """The other devices, with models like the run's own."""
        if len(self.options.devices) < 2:
            return
        own, others = self.model.settled, self.restorer._others
        hands = [self._hands(own, self.engine, self.forward.sources)]
        for number, device in enumerate(self.options.devices[1:]):
            if (number, own.dtype) not in others:
                others[number, own.dtype] = open_model(
                    self.restorer.model, device=device, dtype=own.dtype, tensors=True, memory_format=own.window_format
                )
            model = others[number, own.dtype]
            hands.append(self._hands(model, engine_beside(self.engine, model), {}))
        self.team = Team(hands, self.engine)

    def _hands(self, model: Model, engine: Any, sources: dict[int, Any]) -> list[Forward]:
        hands = [Forward(self.image, model, engine, self.options.value_range) for _ in range(HANDS)]
        for hand in hands:
            hand.models, hand.sources = self.forward.models, sources
        return hands

    @property
    def on_cpu(self) -> bool:
        """Whether the model's activations are in memory that malloc gives out."""
        where = getattr(self.model.settled, "device", None) or self.engine.device
        return where is None or where.type == "cpu"

    @property
    def keeps_heap(self) -> bool:
        return self.options.keep_heap and self.on_cpu

    def _planned(self, scale: Fraction | None, loss: tuple[int, int]) -> TilePlan:
        return make_plan(self.options, self.image.size, scale, loss)

    def start(self, progress: Progress) -> None:
        """Learns what the model does from the first batch, unless an earlier image taught it, and plans with that."""
        self.progress = progress
        with turn(self.engine.device):
            tuner = self._begin_tuning()
            self.plan = self._planned(self.options.scale, (0, 0))
            progress.begin(len(self.plan) * self.image.count)
            if tuner is None:
                self.facts = self._learned()
            else:
                tuner.learned()
            if self._another_engine_fits():
                self._choose_engine()
            self._try_shifts()
            self._plan_anew()
            if tuner is not None:
                tuner.finish()
            if self.options.dtype == "auto":
                from .precision import choose

                choose(self)
            self._form_team()
            if self.options.compile and not self.halo.holds:
                for model in (self.model.settled, *self.restorer._others.values()):
                    model.compile()
            self._check_first_tile()
        progress.begin(len(self.plan) * self.image.count)

    def _learned(self) -> Facts:
        facts = self.restorer._facts.get(self.image.channels)
        while facts is None:
            memory.warn_about_device(self.model.settled, self._windows(), self.engine)
            try:
                facts, output = learn(self.forward, self.options, self._planned, self._known_sizes())
                self.ready[facts.parts[0]] = output
            except (RuntimeError, MemoryError) as error:
                if memory.is_out_of_memory(error):
                    self._shrink(error)
                elif not self._takes_multiples(error):
                    raise
                self.plan = self._planned(self.options.scale, (0, 0))
        self.restorer._facts[self.image.channels] = facts
        if self.image.by_model:
            image, takes = self.image, facts.parts[0].feed
            check_layout_found("image", tuple(image.original.shape), image.layout, image.device is not None, takes)
        return facts

    def _known_sizes(self) -> Sizes | None:
        """Scale and loss, where the model was looked at."""
        known = self.halo.model or (self.restorer.quick_look() if self.restorer.options.phase is None else None)
        if known is None or known.scale is None or known.loss is None or min(known.loss) < 0:
            return None
        return Sizes(known.scale, known.loss)

    def _takes_multiples(self, error: Exception) -> bool:
        """After a first window that failed, with a phase that nobody gave: whether the model takes windows of certain
        multiples only. Then the run has them."""
        asked = self.restorer.options
        if asked.phase is not None or self.restorer.multiple is not None:
            _hint(error, self.plan.window, self.options.phase)
            return False
        from .inspection.measure import multiple_of

        self.restorer.multiple = multiple_of(self.restorer.model, asked.first_device, asked.model_dtype)
        phase = tuple(math.lcm(*pair) for pair in zip(self.options.phase, self.restorer.multiple, strict=True))
        if phase == self.options.phase:
            _hint(error, self.plan.window, phase)
            return False
        self.options = replace(self.options, phase=phase)
        why = f"{self.halo.why}; the phase is the multiple of which the model takes windows"
        self.halo = replace(self.halo, phase=phase, why=why)
        self.forward.buffers.clear()
        return True

    @property
    def tries_shifts(self) -> bool:
        """Whether nobody gave a phase, and there is nothing to be seen of the model that would tell it."""
        asked, model = self.restorer.options, self.restorer.model
        if asked.phase is not None or asked.asks_model or asked.needs.fixed or self.halo.model is not None:
            return False
        return torch_if_loaded() is None or not modules_of(model)

    def _try_shifts(self) -> None:
        """Finds the phase by trying how the model's output moves with the image, where there are tiles to fit together.
        It is used, and said; where none was found, there is a word for that."""
        if self.plan.grid == (1, 1) or UNSEEN in self.halo.why or not self.tries_shifts:
            return  # or an earlier image of this size had it found
        if math.prod(self.image.size) * self.image.count < WORTH_TRYING:
            text = f"{UNSEEN}, and the image is too small to try how its output moves"
            self.halo = replace(self.halo, why=f"{self.halo.why}; {text}")
            return
        moves, base = self._moves(), math.lcm(*self.plan.phase, self.facts.scale.denominator)
        text = f"{UNSEEN}, and by trying {told(moves, base)}"
        if moves is None or moves.step is None:
            cure = "pass phase=, its total stride or the multiple to which it pads"
            if moves is not None and moves.apart > STRIKING:
                self.restorer.tell_once("shifts", f"{text}: tiles may not fit together; {cure}")
        elif moves.step != base and not self._takes_phase(moves.step):
            text += f", which tiles of {self.plan.tile} cannot have"
            self.restorer.tell_once("shifts", f"{text}: they may not fit together; pass a larger tile_size")
        self.halo = replace(self.halo, phase=self.options.phase, why=f"{self.halo.why}; {text}")

    def _moves(self) -> Moves | None:
        """What was found by trying, now or before."""
        from .inspection.measure import Shapes, moves_of

        model, facts, values = self.model.settled, self.facts, self.forward.values.numbers
        takes, white = facts.parts[0].feed, (values[2], values[2] + values[1])
        key = (takes, facts.scale, facts.loss, white, self.plan.phase, model.dtype, self.options.needs)
        if key not in self.restorer.tried:
            for part, output in self.ready.items():  # some models write to one buffer again and again
                self.ready[part] = output.copy() if isinstance(output, np.ndarray) else output.clone()
            shapes = Shapes(takes, 1, facts.scale, facts.loss, self.options.needs.least, self.plan.phase)
            self.restorer.tried[key] = moves_of(model, shapes, white)
        return self.restorer.tried[key]

    def _takes_phase(self, step: int) -> bool:
        """Goes on with another phase, if the other options allow it."""
        rows, columns = (math.lcm(step, one) for one in self.options.phase)
        try:
            options = replace(self.options, phase=(rows, columns))
            make_plan(options, self.image.size, self.facts.scale, self.facts.loss)
        except ValueError:
            return False
        self.options = options
        self.ready.clear()
        self.forward.buffers.clear()
        return True

    def _windows(self) -> tuple[int, int, int, int]:
        """The shape of a batch of windows."""
        channels = self.model.settled.in_channels or self.image.channels
        return (self.plan.batch(self.options.batch_size), channels, *self.plan.window)

    def _begin_tuning(self) -> Any:
        """A Tuner for what is to be found out by timing; None where there is nothing, or it goes by free memory."""
        if not self.options.tuned or self.halo.tuning is not None:
            return None
        if not self.on_cpu:
            self._fit_automatically()
            return None
        from .tuning import Tuner

        tuner = Tuner(self, self.heap_kept)
        tuner.begin()
        return tuner

    def tell(self, halo: RunInfo) -> None:
        """What the run did; also for the next images of this size."""
        self.halo = halo
        self.restorer._fitting[self.image.size] = self.options, halo

    def _fit_automatically(self) -> None:
        """On an accelerator: by its free memory, and memory_limit."""
        self.engine.empty_cache()  # what torch only keeps for later is free
        devices = [usable_device(device) for device in self.options.devices] or [self.engine.device]
        most = min(memory.auto_tile_size(device, self.options.memory_limit) for device in devices)
        asked, batch = self.options.tile_size, self.options.batch_size
        if asked == "auto" or self.options.memory_limit is not None:
            wanted = (most, most) if asked == "auto" else tuple(min(most, side) for side in asked)
            tile = tuple(max(side, step) for side, step in zip(wanted, self.plan.phase, strict=True))
        else:
            tile = asked
        if batch == "auto":
            batch = max(1, min(LARGEST_BATCH, most**2 // (tile[0] * tile[1])))
        smaller: tuple[tuple[int, int], int] | None = (tile, batch)
        while smaller is not None:
            self._fit(*smaller)
            self.plan = self._planned(self.options.scale, (0, 0))
            doubtful = memory.is_doubtful(self.model.settled, self._windows(), self.engine)
            smaller = self._smaller() if doubtful else None
        from .tuning import by_free_memory

        self.tell(replace(self.halo, tuning=by_free_memory(self, most)))

    def _another_engine_fits(self) -> bool:
        """Whether the first batch has shown that the model takes tensors, for which there is an engine of their own."""
        return type(engine_for(self.model.settled, self.options.engine)) is not type(self.engine)

    def _plan_anew(self) -> None:
        self.plan = self._planned(self.facts.scale, self.facts.loss)
        self.batch = self.plan.batch(self.options.batch_size)
        resize = Resize(self.facts.scale, self.facts.loss)
        self.forward.models = {part: resize for part in self.facts.parts if part.how == "resize"}

    def parts_of(self, index: int) -> tuple[Part, ...]:
        """Those of image `index`: alpha that is the same everywhere stays as it is, and nothing is run for it."""
        parts = self.facts.parts
        if not parts[-1].alpha or parts[-1].how == "constant":
            return parts
        constant = alpha_of(self.image, index).constant
        return parts if constant is None else (*parts[:-1], replace(parts[-1], how="constant", value=constant))

    def _tell_of_colours(self, index: int) -> None:
        """Where the model makes nothing of colours, or something colourful of grey that is not returned."""
        first = self.facts.parts[0]
        if self.facts.colourful > COLOURFUL:
            text = "the model makes colours of a grey image, and their mean is returned: pass the image as RGB, "
            self.restorer.tell_once("colourful", f"{text}numpy.dstack([image] * 3), to get them", ColourWarning)
        if first.reads > first.feed and not self.restorer.is_told("colours") and not is_grey(self.image, index):
            text = "the model takes grey images and makes several channels of them: it is given the image's grey, and "
            self.restorer.tell_once("colours", f"{text}the image's own colours are not used", ColourWarning)

    # ---- results -----------------------------------------------------------------------------------------------------

    def new_result(self, asked: Any) -> Image:
        channels, size, device = sum(self.facts.out_channels), self.plan.output_size, self.engine.device
        with turn(device):
            if asked is None:
                return new_image(self.image, channels, size, self.out_dtype, device)
            return open_output(asked, self.image, channels, size, device)

    def delivered(self, result: Image, asked: Any) -> Any:
        with turn(self.engine.device):
            return delivered(result, self.image, asked)

    def new_rows(self, rows: int) -> Image:
        size = rows, self.plan.output_size[1]
        return new_image(self.image, sum(self.facts.out_channels), size, self.out_dtype, self.engine.device)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def bands(self, index: int, destination: Callable[[int, int], Any]) -> Iterator[tuple[int, int]]:
        """Restores image `index`, yielding output rows (start, stop) as they are complete.

        destination(start, stop) gives the array or tensor (C, rows, W) that they go to, asked for in order, once each.
        Where memory runs out, it goes on below the rows that are done with smaller tiles."""
        self.index, self.rows_done = index, 0
        with turn(self.engine.device):
            self.parts = self.parts_of(index)
            self._tell_of_colours(index)
        while self.rows_done < self.plan.output_size[0]:
            try:
                yield from self._bands(index, destination)
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, TileError):
                    error.rows_done = self.rows_done
                if not memory.is_out_of_memory(error):
                    raise
                with turn(self.engine.device):
                    self._shrink(error)
                    self._check_bands()
                    self.engine.empty_cache()
                self._plan_anew()
                left = len(self.plan) * (self.image.count - index) - self._first_row() * self.plan.grid[1]
                self.progress.begin(self.progress.done + left)
        with turn(self.engine.device):
            self._check_bands()

    def hold(self, index: int) -> None:
        """Measures what the model takes of the whole of image `index`, where that is to be held fixed."""
        if not self.halo.holds or self.held_for == index:
            return
        from .global_stats import GlobalStats

        self.ready.clear()
        self.forward.held.clear()
        stats = GlobalStats(self.forward, self.halo.global_stats, self.halo.model)
        with turn(self.engine.device):
            parts = [part for part in self.parts_of(index) if part.how == "model"]
            sweeps = sum(stats.sweeps(part, index, self.plan) for part in parts)
            self.progress.begin(self.progress.total + sweeps * len(self.plan))
            held = {part: stats.measured(part, index, self.plan, self.progress.advance) for part in parts}
            self.forward.held |= held
        self.held_for = index

    def _bands(self, index: int, destination: Callable[[int, int], Any]) -> Iterator[tuple[int, int]]:
        self.hold(index)
        first_row = self._first_row()
        with turn(self.engine.device):
            bands = self.bands_at_work = self._new_bands(first_row)
        rows = Rows(self.plan, destination, self._scratch, self.rows_done)
        with closing(self._batches(index, first_row)) as batches:
            for tiles in batches:
                with turn(self.engine.device):
                    self._assemble(index, tiles, bands, rows)
                last = [tile for tile in tiles if tile.column == self.plan.grid[1] - 1]
                for stop in (self.plan.rows_complete(tile.index) for tile in last):
                    if self.rows_done < stop:
                        start, self.rows_done = self.rows_done, stop
                        yield start, stop
                self.progress.advance(len(tiles))

    def _batches(self, index: int, first_row: int) -> Iterator[list[Tile]]:
        """From that tile row on. Where there are several devices, they are at work ahead of what is yielded."""
        batches = self.plan.batches(self.batch, first_row * self.plan.grid[1])
        if self.team is None:
            yield from batches
            return
        if self.ready:
            yield next(batches)
        parts = [part for part in self.parts if part.how != "constant"]
        yield from self.team.ahead(index, self.plan, parts, ((tiles, self._full(tiles)) for tiles in batches))

    def _full(self, tiles: list[Tile]) -> list[Tile]:
        """A batch that is not full sees some tiles again: every call gets one shape."""
        stop = tiles[-1].index + 1
        return self.plan[max(0, stop - self.batch) : stop]

    def _assemble(self, index: int, tiles: list[Tile], bands: list[Any], rows: Rows) -> None:
        for tile in tiles:
            if tile.column == 0:
                rows.open(tile.row)
        first = 0
        for part, channels, band in zip(self.parts, self.facts.out_channels, bands, strict=True):
            outputs = self._outputs(part, channels, index, tiles)
            for tile, position in band.add(tiles, outputs, rows.channels(first, channels)):
                self._check_finite(tile, position)
            first += channels
            del outputs  # before the next ones are made
        for tile in tiles:
            if tile.column == self.plan.grid[1] - 1:
                rows.close(tile.row)

    def _scratch(self, rows: int) -> Any:
        return self.engine.pixels_of(self.new_rows(rows))[0]

    def _first_row(self) -> int:
        """The first tile row that adds to rows which are not done."""
        keeps = (self.plan.core.keep(0, row) for row in range(self.plan.grid[0]))
        return next(row for row, (_, stop) in enumerate(keeps) if stop > self.rows_done)

    def _new_bands(self, first_row: int) -> list[Any]:
        values = Values(self.out_dtype, self.options.value_range)
        return [
            ConstantBand(self.plan, values, self.forward.values, part.value)
            if part.how == "constant"
            else self.engine.new_band(self.plan, channels, values, self.batch, first_row)
            for part, channels in zip(self.parts, self.facts.out_channels, strict=True)
        ]

    def _outputs(self, part: Part, channels: int, index: int, tiles: list[Tile]) -> Any:
        if part.how == "constant":
            return None
        output = self.ready.pop(part, None)
        if output is None and self.team is not None:
            output = self.team.outputs.pop(part, None)
        if output is None:
            output = self.forward(part, index, self.plan, self._full(tiles))
        expected = (channels, *self.plan.window_output)
        if output.shape[1:] != expected:
            text = f"the model returned an output of shape {tuple(output.shape[1:])}, after {expected} before"
            raise tile_error(ModelOutputError, tiles, text)
        return output[-len(tiles) :]

    # ---- what goes wrong ---------------------------------------------------------------------------------------------

    def _check_first_tile(self) -> None:
        """A model that returns NaN mostly does so everywhere: on a device that is looked for before the loop, since
        inside it nothing waits."""
        if self.options.on_nonfinite == "raise":
            tile = self.plan[0]
            for output in self.ready.values():
                kept = output[0, :, tile.crop[0] :, tile.crop[1] :][:, : tile.keep.height, : tile.keep.width]
                self._check_finite(tile, self.engine.first_nonfinite(kept))

    def _check_bands(self) -> None:
        bands, self.bands_at_work = self.bands_at_work, []
        if self.options.on_nonfinite != "ignore":
            for band in bands:
                found = band.nonfinite()
                if found is not None:
                    self._check_finite(*found, self.plan.core.done(0, found[0].row)[0])

    def _check_finite(self, tile: Tile, position: tuple[int, int, int] | None, rows_done: int | None = None) -> None:
        if position is None or self.options.on_nonfinite == "ignore":
            return
        channel, y, x = position
        text = f"the model returned NaN or infinity, first at output row {y}, column {x}, channel {channel}"
        done, image = self.rows_done if rows_done is None else rows_done, self.forward.which(self.index)
        if self.options.on_nonfinite == "raise":
            raise tile_error(NonFiniteError, [tile], text, rows_done=done, image=image)
        message = str(tile_error(NonFiniteError, [tile], text, image=image))
        warnings.warn(message, NonFiniteWarning, stacklevel=frames_inside())

    def _shrink(self, error: Exception) -> None:
        """After running out of memory: half the batch, or half the tile."""
        self.forward.buffers.clear()
        self.ready.clear()
        if self.team is not None:
            self.team.forget()
        memory.forget_frames(error)
        self.engine.empty_cache()
        smaller = self._smaller()
        if smaller is None:
            raise self._does_not_fit(error) from error
        tile, batch = smaller
        text = f"out of memory with {self.plan.batch(self.options.batch_size)} windows of "
        text += f"{self.plan.window[0]}x{self.plan.window[1]}: going on with tile_size={tile}, batch_size={batch}"
        warnings.warn(text, TileSizeWarning, stacklevel=frames_inside())
        tuning = self.halo.tuning
        if tuning is not None:
            tuning = replace(tuning, tile_size=tile, batch_size=batch, why=f"{tuning.why}; then memory ran out")
            self.halo = replace(self.halo, tuning=tuning)
        self._fit(tile, batch)

    def _smaller(self) -> tuple[tuple[int, int], int] | None:
        """The next smaller tile and batch; None if there is none."""
        batch = self.plan.batch(self.options.batch_size)
        smallest = [
            max(memory.SMALLEST_TILE, phase, least - 2 * halo)
            for phase, least, halo in zip(self.plan.phase, self.options.needs.least, self.plan.halo, strict=True)
        ]
        tile = self.plan.tile
        if batch > 1:
            return tuple(max(side, phase) for side, phase in zip(tile, self.plan.phase, strict=True)), batch // 2
        half = max(tile) // 2
        halved = tuple(max(min(side, half), min(side, least)) for side, least in zip(tile, smallest, strict=True))
        if halved == tile:
            return None
        return tuple(max(side, phase) for side, phase in zip(halved, self.plan.phase, strict=True)), 1

    def _fit(self, tile: tuple[int, int], batch: int) -> None:
        """Goes on with other tiles, and starts with them for the next image of this size."""
        self.options = self.options.with_tiles(tile, batch, self.plan.phase)
        self.restorer._fitting[self.image.size] = self.options, self.halo

    def _does_not_fit(self, error: Exception) -> TileError:
        height, width = self.plan.window
        said = one_line(error) if isinstance(error, TileError) else quoted(error)
        text = f"out of memory with the smallest windows, {height}x{width} with halo {max(self.plan.halo)}: {said}"
        text += memory.what_would_fit(
            self.model.settled, self._windows(), self.plan.halo, self.engine.device, self.options.memory_limit
        )
        if not isinstance(error, TileError):
            return tile_error(OutOfMemoryError, [self.plan[0]], text, rows_done=self.rows_done)
        return OutOfMemoryError(text, tile=error.tile, box=error.box, rows_done=self.rows_done)
