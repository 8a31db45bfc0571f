# SPDX-License-Identifier: MIT
"""restore_tiled(): an image too large for its model, restored tile by tile.

    plan -> for each batch: read -> model -> for each tile: accumulate -> for each completed tile row: finish

`_Run.bands` is that loop. What the first window teaches is found in learn.py, read and model are forward.py, accumulate
and finish are engines.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from .channels import Part
from .engines import HostBand, OpaqueBand, Values
from .errors import ModelOutputError, NonFiniteError, NonFiniteWarning, TileError
from .forward import Forward, bilinear, tile_error
from .images import Image, check_output_dtype, check_output_kind, delivered, new_image, open_image, open_output
from .learn import Facts, learn
from .model import Model, open_model
from .options import IMAGE_DTYPES, Options, dtype_name
from .plan import Tile, TilePlan, make_plan
from .progress import Progress

__all__ = ["TiledRestorer", "iter_bands", "restore_tiled"]


def restore_tiled(
    image: Any,
    model: Any,
    *,
    tile_size: int | tuple[int, int] = 512,
    halo: int | tuple[int, int] = 32,
    overlap: int | tuple[int, int] | Literal["auto"] = "auto",
    blend: str = "average",
    boundary: str = "reflect",
    scale: Any = None,
    phase: int | tuple[int, int] = 1,
    batch_size: int = 1,
    device: Any = None,
    dtype: Any = None,
    value_range: tuple[float, float] | None = None,
    out: Any = None,
    out_dtype: Any = None,
    layout: str | None = None,
    alpha: str = "restore",
    on_nonfinite: str = "raise",
    progress: bool | Callable[[int, int], Any] | None = None,
) -> Any:
    """Restores an image with a model that could not take it whole.

    With ``halo`` at least the model's receptive-field radius and the right ``phase`` the result equals whole-image
    inference within float rounding: ``crop(model(reflect_pad(image, halo)))`` for ``boundary="reflect"``,
    ``model(image)`` for ``boundary="native"``.

    Args:
        image: NumPy array ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, or torch tensor ``(H, W)``, ``(C, H, W)`` or
            ``(N, C, H, W)`` on any device; uint8, uint16, float16, bfloat16 (tensors), float32 or float64; any strides.
            Integers reach the model as [0, 1] and come back rounded and clamped; floats pass as they are. Two channels
            are grey with alpha, four are colour with alpha. The image is never modified.
        model: torch module, or callable on batches ``(N, C, H, W)`` of tensors or of NumPy arrays. Modules run in eval
            and inference mode and get their own mode back. A colour model takes grey images, a grey model colour ones,
            channel by channel.

    Keyword Args:
        tile_size: largest tile, input pixels: a number or (rows, columns). Tiles are balanced, so they may be smaller.
        halo: context around a tile, input pixels: a number or (rows, columns).
        overlap: input pixels that neighbouring tiles share at least; "auto" is 16, fewer for small tiles.
        blend: "average", "linear", "cosine" or "gaussian": how shared pixels are weighted.
        boundary: "reflect" (beyond its edge the image goes on mirrored) or "native" (windows stay inside the image, so
            that the model's own padding acts at the edge).
        scale: output pixels per input pixel: a number, fraction, or string such as "3/2". None: found from the first
            window.
        phase: multiple that window origins and sizes keep: the model's total stride or attention window; a number or
            (rows, columns).
        batch_size: windows per call of the model.
        device: where the model runs. None: where it is, else MPS, CUDA, CPU. A module that is elsewhere is copied.
        dtype: "float32", "float16" or "bfloat16" for the model. None: its own. A module of another dtype is copied.
        value_range: (low, high) in which the model works: image values from 0 to white (255, 65535 or 1.0) are mapped
            to it, and its output back and clamped.
        out: array or tensor to write to, of the result's shape; may be a memmap. Its dtype stands in for out_dtype.
        out_dtype: dtype of the result. None: the image's.
        layout: order of the image's axes if not the usual one: "HW", "HWC", "NHWC", "CHW" or "NCHW".
        alpha: what becomes of an alpha channel: "restore" (through the model, as grey), "resize" (bilinear), "opaque",
            or "channel" (it is none: the model takes all channels).
        on_nonfinite: "raise", "warn" or "ignore" when the model returns NaN or infinity.
        progress: True for a tqdm bar, or a callable ``(tiles done, tiles in all)``.

    Returns:
        The restored image: an array for an array, a tensor on the same device for a tensor, in the image's layout; or
        ``out``.

    Raises:
        ValueError, TypeError: a bad option or image: its name, value and what is allowed. Before any work, except for
            what only the model can tell (the shape of ``out``, a halo smaller than what valid convolutions take).
        TileError: the model failed on a tile (see its attributes; the cause is chained), returned something unusable
            (`ModelOutputError`, also a ValueError), or NaN or infinity (`NonFiniteError`). Rows finished before stay in
            ``out``, as they do on KeyboardInterrupt.
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
    """

    def __init__(self, model: Any, **options: Any):
        self.options = Options.of(options)
        self.model = model
        self._opened: dict[bool, Model] = {}  # as images are arrays or tensors
        self._facts: dict[int, Facts] = {}  # by the image's channels

    def __call__(self, image: Any, *, out: Any = None) -> Any:
        """The restored image; ``out`` goes before the option of that name."""
        asked = self.options.out if out is None else out
        source = open_image(image, self.options.layout)
        if asked is not None:
            check_output_kind(asked, source, self.options.out_dtype)
        own_dtype = None if asked is None else dtype_name("out", asked.dtype, IMAGE_DTYPES)
        run = _Run(self, source, out_dtype=self.options.out_dtype or own_dtype)
        result = None
        with Progress(self.options.progress) as progress:
            try:
                run.start(progress)
                result = run.new_result(asked)
                for index, pixels in enumerate(result.pixels):
                    for _ in run.bands(index, lambda start, stop, pixels=pixels: pixels[:, start:stop]):
                        pass
            except TileError as error:
                error.out = asked if result is None else result.original
                raise
            finally:
                delivery = None if result is None else delivered(result, asked)
        return delivery

    def iter_bands(self, image: Any) -> Iterator[tuple[int, Any]]:
        """See `halotile.iter_bands`."""
        if self.options.out is not None:
            raise ValueError("out must be None for iter_bands, which yields new rows")
        source = open_image(image, self.options.layout)
        if len(source.pixels) != 1:
            raise ValueError(f"image must be a single one for iter_bands, not {len(source.pixels)}")
        return self._iterate(_Run(self, source, out_dtype=self.options.out_dtype))

    def _iterate(self, run: _Run) -> Iterator[tuple[int, Any]]:
        made: list[Image] = []

        def new_rows(start: int, stop: int) -> np.ndarray:
            made.append(run.new_rows(stop - start))
            return made[-1].pixels[0]

        with Progress(self.options.progress) as progress:
            run.start(progress)
            for start, _ in run.bands(0, new_rows):
                yield start, delivered(made.pop(0), None)


class _Run:
    """One image, or several of one size, on the way through the model."""

    def __init__(self, restorer: TiledRestorer, image: Image, out_dtype: str | None):
        self.restorer, self.options, self.image = restorer, restorer.options, image
        self.out_dtype = out_dtype or image.dtype
        check_output_dtype(image, self.out_dtype)
        self.plan = self._planned(self.options.scale, (0, 0))  # refuses bad combinations before anything is run
        tensors = image.device is not None
        if tensors not in restorer._opened:
            device, dtype = self.options.device, self.options.dtype
            restorer._opened[tensors] = open_model(restorer.model, device=device, dtype=dtype, tensors=tensors)
        self.forward = Forward(image, restorer._opened[tensors], self.options.value_range)
        self.ready: dict[Part, np.ndarray] = {}  # outputs of the first batch that learning made
        self.rows_done = 0

    def _planned(self, scale: Fraction | None, loss: tuple[int, int]) -> TilePlan:
        return make_plan(self.options, self.image.size, scale, loss)

    def start(self, progress: Progress) -> None:
        """Learns what the model does from the first batch, unless an earlier image taught it, and plans with that."""
        self.progress = progress
        progress.begin(len(self.plan) * len(self.image.pixels))
        facts = self.restorer._facts.get(self.image.channels)
        if facts is None:
            facts, output = learn(self.forward, self.options, self._planned)
            self.ready[facts.parts[0]] = output
        self.facts = facts
        self.plan = self._planned(facts.scale, facts.loss)
        self.restorer._facts[self.image.channels] = facts
        resize = Model(bilinear(facts.scale, facts.loss))
        self.forward.models = {part: resize for part in facts.parts if part.how == "resize"}
        progress.begin(len(self.plan) * len(self.image.pixels))

    # ---- results -----------------------------------------------------------------------------------------------------

    def new_result(self, asked: Any) -> Image:
        channels, size = sum(self.facts.out_channels), self.plan.output_size
        if asked is None:
            return new_image(self.image, channels, size, self.out_dtype)
        return open_output(asked, self.image, channels, size)

    def new_rows(self, rows: int) -> Image:
        return new_image(self.image, sum(self.facts.out_channels), (rows, self.plan.output_size[1]), self.out_dtype)

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def bands(self, index: int, destination: Callable[[int, int], np.ndarray]) -> Iterator[tuple[int, int]]:
        """Restores image `index`, yielding output rows (start, stop) as they are complete.

        destination(start, stop) gives the array (C, rows, W) that they go to, asked for in order, once each."""
        self.rows_done = 0
        bands = self._new_bands()
        rows: dict[int, np.ndarray] = {}  # of the tile rows in progress
        for tiles in self.plan.batches(self.options.batch_size):
            for tile in tiles:
                if tile.column == 0:
                    rows[tile.row] = destination(*self.plan.core.done(0, tile.row))
            first = 0
            for part, channels, band in zip(self.facts.parts, self.facts.out_channels, bands, strict=True):
                outputs = self._outputs(part, channels, index, tiles)
                self._add(band, tiles, outputs, {row: rows[row][first : first + channels] for row in rows})
                first += channels
                del outputs  # before the next ones are made
            for tile in tiles:
                if tile.column == self.plan.grid[1] - 1:
                    del rows[tile.row]
                    start, self.rows_done = self.rows_done, self.plan.rows_complete(tile.index)
                    yield start, self.rows_done
            self.progress.advance(len(tiles))

    def _add(self, band: HostBand | OpaqueBand, tiles: list[Tile], outputs: Any, rows: dict[int, np.ndarray]) -> None:
        for tile, output in zip(tiles, outputs, strict=True):
            if tile.column == 0:
                band.open_row(tile.row, rows[tile.row])
            self._check_finite(tile, band.add(tile, output))
            if tile.column == self.plan.grid[1] - 1:
                self._check_finite(tile, band.close_row())

    def _new_bands(self) -> list[HostBand | OpaqueBand]:
        values = Values(self.out_dtype, self.options.value_range)
        return [
            OpaqueBand(values) if part.how == "opaque" else HostBand(self.plan, channels, values)
            for part, channels in zip(self.facts.parts, self.facts.out_channels, strict=True)
        ]

    def _outputs(self, part: Part, channels: int, index: int, tiles: list[Tile]) -> Any:
        if part.how == "opaque":
            return [None] * len(tiles)
        output = self.ready.pop(part, None)
        try:
            if output is None:
                output = self.forward(part, index, tiles)
            expected = (channels, *self.plan.window_output)
            if output.shape[1:] != expected:
                text = f"the model returned an output of shape {output.shape[1:]}, after {expected} before"
                raise tile_error(ModelOutputError, tiles, text)
        except TileError as error:
            error.rows_done = self.rows_done
            raise
        return output

    def _check_finite(self, tile: Tile, position: tuple[int, int, int] | None) -> None:
        if position is None or self.options.on_nonfinite == "ignore":
            return
        channel, y, x = position
        text = f"the model returned NaN or infinity, first at output row {y}, column {x}, channel {channel}"
        error = tile_error(NonFiniteError, [tile], text, rows_done=self.rows_done)
        if self.options.on_nonfinite == "raise":
            raise error
        warnings.warn(str(error), NonFiniteWarning, stacklevel=_frames_inside())


def _frames_inside() -> int:
    """The stacklevel at which a warning points to whoever called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    return level
