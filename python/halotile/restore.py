# SPDX-License-Identifier: MIT
"""restore_tiled(): an image too large for its model, restored tile by tile.

    plan -> for each batch: read -> model -> for each tile: accumulate -> for each completed tile row: finish

`_Run._bands` is that loop. What the first window teaches is found in learn.py, read and model are forward.py; who
reads, accumulates and finishes is the engine's affair (engines.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from . import heap, memory
from .channels import Part
from .engines import asked_engine, engine_for
from .errors import (
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    SeamWarning,
    TileError,
    TileSizeWarning,
    frames_inside,
)
from .forward import Forward, Resize, tile_error
from .halo import RunInfo, settled
from .host import OpaqueBand
from .images import Image, check_output_dtype, check_output_kind, delivered, new_image, open_image, open_output
from .known import about, told_about
from .learn import Facts, learn
from .model import Model, open_model
from .needs import needs_of
from .options import IMAGE_DTYPES, Options, dtype_name
from .plan import Tile, TilePlan, make_plan
from .progress import Progress
from .rows import Rows
from .turn import turn
from .values import Values

__all__ = ["TiledRestorer", "iter_bands", "restore_tiled"]

LARGEST_BATCH = 16  # that batch_size="auto" makes of windows which are small for an accelerator


def restore_tiled(
    image: Any,
    model: Any,
    *,
    tile_size: int | tuple[int, int] | Literal["auto"] = 512,
    halo: int | tuple[int, int] | Literal["exact", "auto"] = 32,
    overlap: int | tuple[int, int] | Literal["auto"] = "auto",
    blend: str = "average",
    boundary: str = "reflect",
    scale: Any = None,
    phase: int | tuple[int, int] | None = 1,
    tolerance: float | None = None,
    global_stats: Literal["tile", "frozen", "exact"] | None = None,
    verify: int = 0,
    batch_size: int | Literal["auto"] = 1,
    device: Any = None,
    dtype: Any = None,
    engine: Literal["host", "torch", "mps"] | None = None,
    value_range: tuple[float, float] | None = None,
    out: Any = None,
    out_dtype: Any = None,
    layout: str | None = None,
    alpha: str = "restore",
    on_nonfinite: str = "raise",
    progress: bool | Callable[[int, int], Any] | None = None,
    keep_heap: bool = True,
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
    memory_limit: int | None = None,
    compile: bool = False,
) -> Any:
    """Restores an image with a model that could not take it whole.

    With ``halo`` at least the model's receptive-field radius and the right ``phase`` the result equals whole-image
    inference within float rounding: ``crop(model(reflect_pad(image, halo)))`` for ``boundary="reflect"``,
    ``model(image)`` for ``boundary="native"``; sides that are no multiple of the phase are completed by reflection.

    Args:
        image: NumPy array ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, or torch tensor ``(H, W)``, ``(C, H, W)`` or
            ``(N, C, H, W)`` on any device; uint8, uint16, float16, bfloat16 (tensors), float32 or float64; any strides.
            Integers reach the model as [0, 1] and come back rounded and clamped; floats pass as they are. Two channels
            are grey with alpha, four are colour with alpha. The image is never modified. Or a zarr array ``(H, W)`` or
            ``(H, W, C)``, which is read by rows.
        model: torch module, or callable on batches ``(N, C, H, W)`` of tensors or of NumPy arrays. Modules run in eval
            and inference mode and get their own mode back. A colour model takes grey images, a grey model colour ones,
            channel by channel.

    Keyword Args:
        tile_size: largest tile, input pixels: a number or (rows, columns). Tiles are balanced, so they may be smaller.
            "auto": on a CPU by timing windows of the image with this model, on an accelerator by its free memory; see
            docs/speed.md, and `TiledRestorer.last_run` for what was chosen. Where memory runs out, smaller ones are
            tried.
            Larger only where a model that `load_model` opened says that it takes no smaller windows.
        halo: context around a tile, input pixels: a number or (rows, columns). "exact": the model's receptive field, as
            `inspect_model` finds it. "auto": that where it costs little, else the smallest whose error, measured on the
            image, is within the tolerance, and one step more. `TiledRestorer.last_run` says which, and why.
        overlap: input pixels that neighbouring tiles share at least; "auto" is 16, fewer for small tiles.
        blend: "average", "linear", "cosine" or "gaussian": how shared pixels are weighted.
        boundary: "reflect" (beyond its edge the image goes on mirrored) or "native" (windows stay inside the image, so
            that the model's own padding acts at the edge).
        scale: output pixels per input pixel: a number, fraction, or string such as "3/2". None: found from the first
            window.
        phase: multiple that window origins and sizes keep: the model's total stride or attention window; a number or
            (rows, columns). None: as `inspect_model` finds it.
        tolerance: for halo="auto": largest difference from an exact result, in units of the image's dtype. None: half
            an 8-bit step.
        global_stats: for models that pool or normalise over the whole image, where no halo is enough. "exact": what
            they take is measured over all tiles first (a sweep for each level of it), and used in every tile.
            "frozen": measured once, on the image reduced to a window's size. "tile": every tile has its own;
            `last_run` says how far tiles are apart.
        verify: so many random places are made again with a much larger halo and compared when the image is done:
            `TiledRestorer.last_run.verified`, a Verification. A `SeamWarning` where they differ by more than tolerance.
        batch_size: most windows per call of the model. All calls get as many: the last may see some tiles again.
            "auto": found like tile_size.
        device: where the model runs. None: where it is, else MPS, CUDA, CPU. A module that is elsewhere is copied.
        dtype: "float32", "float16" or "bfloat16" for the model. None: its own. A module of another dtype is copied.
            "auto": half precision where that is faster on this machine and within the tolerance of float32, by two
            small windows of the image; `TiledRestorer.last_run.precision` says what was found.
        engine: who cuts and assembles: "host" (memory of the CPU, any model), "torch" (torch operations on the model's
            device) or "mps" (Metal kernels). None: the environment variable HALOTILE_ENGINE, else what fits the device.
        value_range: (low, high) in which the model works: image values from 0 to white (255, 65535 or 1.0) are mapped
            to it, and its output back and clamped.
        out: array or tensor to write to, of the result's shape; may be a memmap. Its dtype stands in for out_dtype.
        out_dtype: dtype of the result. None: the image's.
        layout: order of the image's axes if not the usual one: "HW", "HWC", "NHWC", "CHW" or "NCHW".
        alpha: what becomes of an alpha channel: "restore" (through the model, as grey), "resize" (bilinear), "opaque",
            or "channel" (it is none: the model takes all channels).
        on_nonfinite: "raise", "warn" or "ignore" when the model returns NaN or infinity.
        progress: True for a tqdm bar, or a callable ``(tiles done, tiles in all)``.
        keep_heap: whether models on the CPU run with the memory that they free kept by the process until the image is
            done, where that is known to make them faster (glibc): see halotile.heap and docs/speed.md. The environment
            variable HALOTILE_KEEP_HEAP=0 turns it off.
        memory_format: how windows lie in memory: "channels_last" or "contiguous". "auto": channels_last for modules on
            the CPU that consist of convolutions, unless they turn out to be written for the other; for others as their
            weights lie. The module itself is left as it is.
        memory_limit: bytes that a run may take beyond what the process holds when it starts, the result included. Tiles
            and batches are made so small that it is kept to, as far as a small window tells what the model needs. None:
            four fifths of what the machine and its control groups leave, for tile_size="auto".
        compile: whether a torch module runs compiled (`torch.compile`) from its second batch on: it takes seconds once,
            and pays for many windows only. Where it cannot be compiled, a warning says so and it runs as it is, as it
            does where global_stats holds statistics fixed.

    Returns:
        The restored image: an array for an array (also of zarr), a tensor on the same device for a tensor, in the
        image's layout; or ``out``.

    Raises:
        ValueError, TypeError: a bad option or image: its name, value and what is allowed. Before any work, except for
            what only the model can tell (the shape of ``out``, a halo smaller than what valid convolutions take).
        TileError: the model failed on a tile (see its attributes; the cause is chained), returned something unusable
            (`ModelOutputError`, also a ValueError), NaN or infinity (`NonFiniteError`; where results are made on a
            device, that is known when the image is done), or ran out of memory with the smallest tiles
            (`OutOfMemoryError`, also a MemoryError). Rows finished before stay in ``out``, as on KeyboardInterrupt.
    """
    options = {name: value for name, value in locals().items() if name not in ("image", "model")}
    return TiledRestorer(model, **options)(image)


def iter_bands(image: Any, model: Any, **options: Any) -> Iterator[tuple[int, Any]]:
    """Yields ``(y, rows)``: finished rows of the restored image, from the top, ``rows`` starting at output row ``y``.

    Takes one image and the options of `restore_tiled` except ``out``; bad ones are refused at once, the model runs as
    rows are asked for. Rows are new arrays or tensors of the image's kind and layout, in order and without gaps;
    nothing of the size of the output is held.
    """
    return TiledRestorer(model, **options).iter_bands(image)


class TiledRestorer:
    """A model and its options, ready for many images; what the first image taught about the model is kept.

    ``TiledRestorer(model, **options)(image)`` is ``restore_tiled(image, model, **options)``. Several threads may use
    one as far as the model allows.

    Attributes:
        last_run: a RunInfo: which halo and phase the latest run had, how exact that is, and why; None before the
            first.
    """

    def __init__(self, model: Any, **options: Any):
        self.options = Options.of({"needs": needs_of(model)} | options)
        self.model = model
        self._opened: dict[bool, Model] = {}  # by whether it must take tensors
        self._facts: dict[int, Facts] = {}  # by the image's channels
        # By the image's size: the options with tiles that memory allows.
        self._fitting: dict[tuple[int, int], tuple[Options, RunInfo]] = {}
        self._inspected: Any = None
        self._costs: dict[Any, Any] = {}  # what tuning has measured
        self._precision: Any = None  # what dtype="auto" came to
        self.last_run: RunInfo | None = None

    def inspected(self) -> Any:
        """What is known of the model, a `ModelInfo`: found out once."""
        if self._inspected is None:
            from .known import known_model

            self._inspected = known_model(self.model, self.options.device, self.options.model_dtype)
        return self._inspected

    @cached_property
    def told_apart(self) -> Any:
        """What tells the model from others, also in other processes; None if nothing does."""
        return about(self.model, self.options.model_dtype)

    def like(self, options: Options) -> TiledRestorer:
        """Another one of this model, with what is known of it, for windows of any size: not compiled."""
        same = {field.name: getattr(options, field.name) for field in fields(options)}
        if options.dtype == "auto" and self._precision is None:
            same["dtype"] = None  # not found out yet
        other = TiledRestorer(self.model, **same | {"compile": False})
        other._inspected, other._costs, other._precision = self._inspected, self._costs, self._precision
        other._opened = self._opened if self._precision is not None else {}
        return other

    def tell_once(self, about: Any, text: str) -> None:
        """A SeamWarning, once for each model and subject."""
        told = told_about(self.model)
        if about not in told:
            told.add(about)
            warnings.warn(text, SeamWarning, stacklevel=frames_inside())

    def __call__(self, image: Any, *, out: Any = None) -> Any:
        """The restored image; ``out`` goes before the option of that name."""
        asked = self.options.out if out is None else out
        source = open_image(image, self.options.layout)
        if asked is not None:
            check_output_kind(asked, source, self.options.out_dtype)
        own_dtype = None if asked is None else dtype_name("out", asked.dtype, IMAGE_DTYPES)
        run = _Run(self, source, out_dtype=self.options.out_dtype or own_dtype)
        result = None
        run.holds_result = asked is None
        with Progress(self.options.progress) as progress, heap.kept(run.keeps_heap) as run.heap_kept:
            try:
                run.start(progress)
                result = run.new_result(asked)
                for index, pixels in enumerate(run.engine.pixels_of(result)):
                    for _ in run.bands(index, lambda start, stop, pixels=pixels: pixels[:, start:stop]):
                        pass
            except TileError as error:
                error.out = asked if result is None else result.original
                raise
            finally:
                delivery = None if result is None else run.delivered(result, asked)
        self.last_run = run.halo
        if self.options.verify:
            self._verify(run, image, delivery)
        return delivery

    def _verify(self, run: _Run, image: Any, result: Any) -> None:
        from .verification import Remade

        remade = Remade(image, self.like(run.options), result, {}, run)
        found = remade.compared(remade.places(self.options.verify, 0))
        self.last_run = replace(run.halo, verified=found)
        tolerance = run.options.within(found.white)
        if not found.seamless(tolerance):
            why = f"{run.halo.why}; but differences of {found.largest:.3g} of {found.white:g} were found"
            self.last_run = replace(self.last_run, how="doubtful", bound=found.largest, why=why)
            text = f"verify={self.options.verify}: above the tolerance of {tolerance:g}: {found}"
            warnings.warn(text, SeamWarning, stacklevel=frames_inside())

    def iter_bands(self, image: Any) -> Iterator[tuple[int, Any]]:
        """See `halotile.iter_bands`."""
        if self.options.out is not None:
            raise ValueError("out must be None for iter_bands, which yields new rows")
        if self.options.verify:
            raise ValueError(f"verify must be 0 for iter_bands, which holds no result, not {self.options.verify}")
        source = open_image(image, self.options.layout)
        if source.count != 1:
            raise ValueError(f"image must be a single one for iter_bands, not {source.count}")
        run = _Run(self, source, out_dtype=self.options.out_dtype)
        run.bands_waiting = 1
        return self._iterate(run)

    def _iterate(self, run: _Run) -> Iterator[tuple[int, Any]]:
        made: dict[int, Image] = {}  # by first row

        def new_rows(start: int, stop: int) -> Any:
            made[start] = run.new_rows(stop - start)
            return run.engine.pixels_of(made[start])[0]

        with Progress(self.options.progress) as progress:
            with heap.kept(run.keeps_heap) as run.heap_kept:
                run.start(progress)
            for start, _ in heap.stepwise(run.bands(0, new_rows), run.keeps_heap):
                yield start, run.delivered(made.pop(start), None)
        self.last_run = run.halo


class _Run:
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
        with turn():
            self.model = self._open_model()
            self._choose_engine()

    def _open_model(self) -> Model:
        opened, options = self.restorer._opened, self.options
        tensors = self.image.device is not None or asked_engine(options.engine) in ("torch", "mps")
        if tensors not in opened:
            opened[tensors] = open_model(
                self.restorer.model,
                device=options.device,
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
            self._plan_anew()
            if tuner is not None:
                tuner.finish()
            if self.options.dtype == "auto":
                from .precision import choose

                choose(self)
            if self.options.compile and not self.halo.holds:
                self.model.settled.compile()
            self._check_first_tile()
        progress.begin(len(self.plan) * self.image.count)

    def _learned(self) -> Facts:
        facts = self.restorer._facts.get(self.image.channels)
        while facts is None:
            memory.warn_about_device(self.model.settled, self._windows(), self.engine)
            try:
                facts, output = learn(self.forward, self.options, self._planned)
                self.ready[facts.parts[0]] = output
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                self._shrink(error)
                self.plan = self._planned(self.options.scale, (0, 0))
        self.restorer._facts[self.image.channels] = facts
        return facts

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
        most = memory.auto_tile_size(self.engine.device, self.options.memory_limit)
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

    def _another_engine_fits(self) -> bool:
        """Whether the first batch has shown that the model takes tensors, for which there is an engine of their own."""
        return type(engine_for(self.model.settled, self.options.engine)) is not type(self.engine)

    def _plan_anew(self) -> None:
        self.plan = self._planned(self.facts.scale, self.facts.loss)
        self.batch = self.plan.batch(self.options.batch_size)
        resize = Resize(self.facts.scale, self.facts.loss)
        self.forward.models = {part: resize for part in self.facts.parts if part.how == "resize"}

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
        while self.rows_done < self.plan.output_size[0]:
            try:
                yield from self._bands(index, destination)
            except (RuntimeError, MemoryError) as error:
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
            parts = [part for part in self.facts.parts if part.how == "model"]
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
        for tiles in self.plan.batches(self.batch, first_row * self.plan.grid[1]):
            with turn(self.engine.device):
                for tile in tiles:
                    if tile.column == 0:
                        rows.open(tile.row)
                first = 0
                for part, channels, band in zip(self.facts.parts, self.facts.out_channels, bands, strict=True):
                    outputs = self._outputs(part, channels, index, tiles)
                    for tile, position in band.add(tiles, outputs, rows.channels(first, channels)):
                        self._check_finite(tile, position)
                    first += channels
                    del outputs  # before the next ones are made
                for tile in tiles:
                    if tile.column == self.plan.grid[1] - 1:
                        rows.close(tile.row)
            for tile in tiles:
                if tile.column == self.plan.grid[1] - 1:
                    start, stop = self.rows_done, self.plan.rows_complete(tile.index)
                    if start < stop:
                        self.rows_done = stop
                        yield start, stop
            self.progress.advance(len(tiles))

    def _scratch(self, rows: int) -> Any:
        return self.engine.pixels_of(self.new_rows(rows))[0]

    def _first_row(self) -> int:
        """The first tile row that adds to rows which are not done."""
        keeps = (self.plan.core.keep(0, row) for row in range(self.plan.grid[0]))
        return next(row for row, (_, stop) in enumerate(keeps) if stop > self.rows_done)

    def _new_bands(self, first_row: int) -> list[Any]:
        values = Values(self.out_dtype, self.options.value_range)
        return [
            OpaqueBand(self.plan, values)
            if part.how == "opaque"
            else self.engine.new_band(self.plan, channels, values, self.batch, first_row)
            for part, channels in zip(self.facts.parts, self.facts.out_channels, strict=True)
        ]

    def _outputs(self, part: Part, channels: int, index: int, tiles: list[Tile]) -> Any:
        if part.how == "opaque":
            return None
        output = self.ready.pop(part, None)
        try:
            if output is None:  # a batch that is not full sees some tiles again: every call gets one shape
                full = self.plan[max(0, tiles[-1].index + 1 - self.batch) : tiles[-1].index + 1]
                output = self.forward(part, index, self.plan, full)
            expected = (channels, *self.plan.window_output)
            if output.shape[1:] != expected:
                text = f"the model returned an output of shape {tuple(output.shape[1:])}, after {expected} before"
                raise tile_error(ModelOutputError, tiles, text)
        except TileError as error:
            error.rows_done = self.rows_done
            raise
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
        memory.forget_frames(error)
        self.engine.empty_cache()
        smaller = self._smaller()
        if smaller is None:
            raise self._does_not_fit(error) from error
        tile, batch = smaller
        text = f"out of memory with {self.plan.batch(self.options.batch_size)} windows of "
        text += f"{self.plan.window[0]}x{self.plan.window[1]}: going on with tile_size={tile}, batch_size={batch}"
        warnings.warn(text, TileSizeWarning, stacklevel=frames_inside())
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
        text = f"out of memory with the smallest windows, {height}x{width} with halo {max(self.plan.halo)}: {error}"
        text += memory.what_would_fit(
            self.model.settled, self._windows(), self.plan.halo, self.engine.device, self.options.memory_limit
        )
        if not isinstance(error, TileError):
            return tile_error(OutOfMemoryError, [self.plan[0]], text, rows_done=self.rows_done)
        return OutOfMemoryError(text, tile=error.tile, box=error.box, rows_done=self.rows_done)
