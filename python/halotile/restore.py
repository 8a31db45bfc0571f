# SPDX-License-Identifier: MIT
"""restore_tiled(): restores an image by tiles or strips of rows, with a model that cannot take it whole.

open -> prepare -> assemble -> deliver

open_run   opens the image and its model, with numbers for halo and phase   auto/prepare.py
prepare    replaces every other option by a number, with a reason           auto/prepare.py
assemble   runs the windows and sends finished rows to a sink               run/assemble.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from .auto.knowledge import Knowledge
from .auto.prepare import open_run, prepare, remember, warn_of_colours
from .auto.ranges import warn_of_clamped, watch_ranges, with_room_for_data
from .errors import TileError
from .files.vips import MAX_PIXELS
from .images.given import as_given
from .images.image import Image, check_output_kind
from .images.nodata import rounded_to
from .models.untouched.kept import tensors_kept
from .notebook.svg import card
from .option_checks import dtype_name
from .options import IMAGE_DTYPES, Options, RestoreOptions, RunOptions, signature_with_options
from .run import kept_heap
from .run.assemble import assemble, drained, timed
from .run.nodata import putting_back, with_filled
from .run.prepared import Delivery, Opened, Prepared, Sink
from .run.progress import Progress
from .run.reducing import reducing, with_reduction
from .run.remade import VERIFYING, verified
from .run.report import RunInfo
from .run.results import ArraySink, NewRows
from .run.shifted import with_spread
from .stages import shown

if TYPE_CHECKING:
    from torch import Tensor

    from .files.metadata import Picture
    from .inspection import ModelInfo

__all__ = ["Fitted", "TiledRestorer", "for_file", "iter_bands", "restore_tiled"]


@overload
def restore_tiled(image: np.ndarray, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> np.ndarray: ...
@overload
def restore_tiled(image: Tensor, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Tensor: ...
@overload
def restore_tiled(image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any: ...
def restore_tiled(image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any:
    """Restores an image tile by tile or by strips of rows, for models that cannot take it whole.

    With ``halo`` at least the radius of the model's receptive field and the right ``phase``, the result equals
    whole-image inference within float rounding: ``crop(model(reflect_pad(image, halo)))`` for ``boundary="reflect"``,
    with ``wrap_pad`` for ``boundary="wrap"``, and ``model(image)`` for ``boundary="native"``. Sides are padded by
    reflection (or wrapped around) to a multiple of the phase.

    Args:
        image: NumPy array ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, or torch tensor ``(H, W)``, ``(C, H, W)`` or
            ``(N, C, H, W)`` on any device; uint8, uint16, float16, bfloat16 (tensors), float32 or float64; any strides;
            never modified. Or a Pillow image, or an xarray.DataArray, whose names of axes tell the layout; the result
            is one, too (an array where Pillow has no such images). Or an array of zarr, dask or h5py, or the path of a
            .npy file, a zarr array's folder or an image file, which are read by rows; see `restore_to`. Integers are
            scaled to [0, 1] for the model and results are rounded and clamped; floats pass unchanged. Two channels are
            grey with alpha, four colour with alpha. For other axis orders see ``layout``.
        model: torch module, or callable on batches ``(N, C, H, W)`` of tensors or NumPy arrays. Modules run in eval and
            inference mode; their own mode is restored. Colour models also take grey images. Grey models take colour
            images channel by channel, or converted to grey if they return several channels: see docs/images.md. A
            spandrel descriptor provides its module, scale and size requirements.

    Keyword Args:
        tile_size: largest tile, input pixels: a number or (rows, columns). Balanced tiles may be smaller; they are
            larger only for a `load_model` model with a minimum window size. "auto": on a CPU from timing windows of the
            image, on an accelerator from its free memory; see docs/speed.md and `TiledRestorer.last_run`. If memory
            runs out, smaller tiles are tried.
        halo: context around a tile, input pixels: a number or (rows, columns). "exact": the model's receptive field
            from `inspect_model`. "auto": the same if it is cheap, else one step above the smallest halo whose error,
            measured on the image, is within the tolerance. `TiledRestorer.last_run` gives the choice and the reason.
        overlap: minimum overlap of neighbouring tiles, input pixels; "auto" is 16, fewer for small tiles.
        blend: blending weights: "average", "linear", "cosine" or "gaussian".
        boundary: "reflect" (pads the image by reflection) or "native" (windows stay inside the image, so the model's
            own padding acts at the border), or "wrap" (windows go on at the opposite edge, for seamless textures; with
            a model that pads circularly the result is ``model(image)`` if the phase divides the sides).
        scale: output pixels per input pixel: a number, fraction, or string such as "3/2"; or a pair (rows, columns) of
            them. None: detected from the first window.
        phase: alignment of window origins and sizes, the model's total stride or attention window: a number or (rows,
            columns). None: detected. With halo="exact" or "auto" it comes from `inspect_model`; for other torch
            modules, also inside a callable, from their operators, in a second or two the first time; it is 1 if nothing
            is found. If the model rejects the first window, other sizes are tried. For opaque callables, small windows
            of noise are shifted to see whether the output moves along.
        schedule: "tiles"; "stream": strips of full-width rows go through the model once, every layer keeps the few rows
            that its next strip needs, nothing is computed twice, and memory does not depend on the height (torch
            modules whose operators run on rows; statistics of the whole image are exact; see docs/streaming.md);
            "auto": the cheaper one if halo is "exact" or "auto", else tiles. `TiledRestorer.last_run` gives the choice
            (``schedule``), the reason (``schedule_why``) and the cost of a stream (``stream``).
        tolerance: for halo="auto": largest difference from an exact result, in units of the image's dtype. None: half
            an 8-bit step.
        global_stats: for models that pool or normalise over the whole image, for which no halo is enough. "exact":
            statistics are measured over all tiles first (one sweep for each level of dependent statistics) and used in
            every tile. "frozen": measured once, on the image subsampled to a window's size. "tile": every tile uses its
            own; `last_run` gives the difference between tiles. "local": every pixel uses those of a window around it,
            as large as the images of training, which suits models trained on small images better than the whole image
            does (TLC, arXiv 2112.04491); one pass; an exact halo includes half a window for each level.
        stats_size: for global_stats="local", the window of every statistic: a number or (rows, columns), input pixels.
            None: the model's attribute ``stats_size``, ``base_size``, ``train_size`` or ``training_size``.
        match_low: ties the slowly varying part of every tile, its colours, to that of one pass over the image reduced
            to so many pixels a side, or to about a window with "auto"; for models that shift the colours of windows.
            The result is then not exact. See docs/statistics.md.
        shift_average: number of grids of tiles, begun at different places, whose results are averaged; for models that
            no halo makes exact. `TiledRestorer.last_run.averaged` has their spread. Not with boundary="native".
        window: the only size of windows: a number, (rows, columns), or "trained", the model's attribute ``train_size``,
            ``training_size``, ``trained_size``, ``img_size``, ``image_size`` or ``input_size``. Overlaps are blended;
            halo and overlap are an eighth of it and blend is "cosine" unless they are given; tile_size follows.
        verify: number of random windows to recompute with a much larger halo afterwards: see
            `TiledRestorer.last_run.verified`, a Verification. Issues a `SeamWarning` if they differ by more than the
            tolerance.
        batch_size: maximum windows per model call. All calls have the same size: the last may repeat tiles. Several
            images go through the model together if a batch holds all their tiles. "auto": chosen like tile_size.
        device: where the model runs; a module on another device is copied. None: where it is, else the first available
            of MPS, CUDA, XPU and CPU; "best" also moves modules on the CPU there. A list such as ["cuda:0", "cuda:1"]
            shares batches and blends on the first; not with global_stats "exact", "frozen" or "local".
        dtype: "float32", "float16" or "bfloat16" for the model. None: its own. A module of another dtype is copied.
            "auto": half precision if two small windows of the image show that it is faster and within the tolerance of
            float32; see `TiledRestorer.last_run.precision`.
        engine: tiling backend: "host" (CPU memory, any model), "torch" (torch operations on the model's device) or
            "mps" (Metal kernels). None: the environment variable HALOTILE_ENGINE, else what fits the device.
        value_range: (low, high), the model's values for black and white. Image values from 0 to white are
            mapped to it; outputs are mapped back and clamped.
        white: the image's value of white: a number such as 10000, bits such as "12bit" (4095), or "max", the image's
            largest value. None: 255 for uint8, 65535 for uint16, 1 for floats. A result of the image's dtype has the
            same white, and so have floats of floats; any other has its dtype's own. Integers are clamped to it.
        nodata: the value of pixels without data: a number such as -9999, or "nan". Such values, each channel by itself
            and alpha excepted, are filled from their surroundings for the model and put back into the result, where
            valid integers that equal it are moved by one. `TiledRestorer.last_run.filled` tells how much was filled
            and how far results may depend on it.
        out: array or tensor of the result's shape to write to; may be a memmap. Its dtype replaces out_dtype.
        out_dtype: dtype of the result. None: the image's; float32 if the model makes something else than a picture of
            its input's channels, such as classes.
        reduce: "argmax": the result is the index of the model's largest channel, (H, W) of uint8 or uint16: labels of
            classes. Or a callable that makes (rows, W) or (channels, rows, W) of the model's float32 (C, rows, W), an
            array or tensor like the image. Rows are reduced as soon as they are finished, so that what the model makes
            is never held whole. See docs/images.md.
        output: index or key of the image among several outputs of the model.
        extra: further inputs of the model, the same for every window: a dict by name, a tuple in order, or one value.
            Arrays and tensors go to its device; where their first axis is of length one, it becomes that of the batch.
        layout: order of the image's axes, one letter each: H or Y for rows, W or X for columns, C or S for channels, N,
            Z, T or B for images, as in "CHW", "NHWC", "ZYX" or "TYXC". None: the usual order if plausible (at most four
            channels, or fewer than rows and columns), else the only one that fits the model's channels. An ambiguous
            image is rejected before any work. See docs/images.md.
        alpha: treatment of an alpha channel: "restore" (through the model, as grey; bilinear if the model turns grey
            into colour or colour into grey), "resize" (bilinear), "opaque" (white), or "channel" (data, passed to the
            model with the others). Hidden pixels (alpha 0) are filled with surrounding colours to prevent leaks.
            Constant alpha keeps its value.
        on_nonfinite: reaction to NaN or infinity from the model: "raise", "warn", "ignore", or "retry": windows of a
            model in half precision, or under autocast, are made again in float32, and raise if that is no better.
        progress: True for a tqdm bar, or a callable ``(tiles done, tiles in all)``. What it raises ends the run and
            reaches the caller as it is: raise in it to cancel. No file appears, and finished rows stay in ``out``.
        keep_heap: keep memory that a CPU model frees in the process until the image is done, where this is known to be
            faster (glibc): see docs/speed.md. The environment variable HALOTILE_KEEP_HEAP=0 turns it off.
        memory_format: memory format of windows: "channels_last" or "contiguous". "auto": channels_last for
            convolutional modules on the CPU, unless they turn out to need contiguous windows, and on an Apple GPU where
            the first two batches of a long run show that it pays; else the weights' format. The module is not changed.
        memory_limit: bytes that a run may add to the process, including the result. Tiles and batches are chosen to
            stay below it, extrapolating the model's memory from a small window. None: for tile_size="auto", four fifths
            of the memory that the machine and its control groups have free.
        compile: compile a torch module (`torch.compile`) from its second batch on: this takes seconds and pays only for
            many windows. It runs uncompiled, with a warning, if compilation fails, and also with fixed global_stats.

    Returns:
        The restored image in the image's layout: an array for an array (also of zarr), a tensor on the same device for
        a tensor; or ``out``. Several channels add an axis if the image has none for them (last for arrays, before rows
        and columns for tensors).

    Raises:
        ValueError, TypeError: a bad option or image, with its name, value and what is allowed. Raised before any work,
            except for what only the model can reveal (the shape of ``out``, a halo smaller than the trim of valid
            convolutions).
        TileError: the model failed on a tile (see its attributes; the cause is chained), returned an unusable output
            (`ModelOutputError`, also a ValueError), NaN or infinity (`NonFiniteError`; on a device known only when the
            image is done), or ran out of memory with the smallest tiles (`OutOfMemoryError`, also a MemoryError). Rows
            finished before stay in ``out``, as on KeyboardInterrupt.

    >>> restore_tiled(photo, model, halo="exact").shape
    (72, 80, 3)
    """
    return TiledRestorer(model, **options)(image)


restore_tiled.__signature__ = signature_with_options(restore_tiled)  # type: ignore[attr-defined]


@overload
def iter_bands(
    image: np.ndarray, model: Callable[..., Any], **options: Unpack[RunOptions]
) -> Iterator[tuple[int, np.ndarray]]: ...
@overload
def iter_bands(
    image: Tensor, model: Callable[..., Any], **options: Unpack[RunOptions]
) -> Iterator[tuple[int, Tensor]]: ...
@overload
def iter_bands(image: Any, model: Callable[..., Any], **options: Unpack[RunOptions]) -> Iterator[tuple[int, Any]]: ...
def iter_bands(image: Any, model: Callable[..., Any], **options: Unpack[RunOptions]) -> Iterator[tuple[int, Any]]:
    """Yields ``(y, rows)``: finished rows of the restored image, from the top; ``rows`` starts at output row ``y``.

    Takes one image and the options of `restore_tiled` except ``out`` and ``verify``. Bad options are rejected at once;
    the model runs as rows are requested. Rows are new arrays or tensors of the image's type and layout, in order and
    without gaps: those of a row of tiles, or of a step of a stream. No buffer has the size of the output.

    >>> [(y, rows.shape) for y, rows in iter_bands(photo, model, tile_size=48, halo=8)]
    [(0, (33, 80, 3)), (33, (39, 80, 3))]
    """
    return TiledRestorer(model, **options).iter_bands(image)


class TiledRestorer:
    """A model and its options, for many images. What the first image reveals about the model is reused.

    ``TiledRestorer(model, **options)(image)`` is ``restore_tiled(image, model, **options)``. Several threads may share
    one if the model allows it.

    Attributes:
        options: an `Options`. knowledge: what is known about the model.
        last_run: a RunInfo: halo and phase of the latest run, how exact it is, and why; None before the first.

    >>> TiledRestorer(model, halo="exact")(photo).shape
    (72, 80, 3)
    """

    def __init__(self, model: Callable[..., Any], **options: Unpack[RestoreOptions]):
        self.knowledge = Knowledge.of(model, {**options})
        self.last_run: RunInfo | None = None
        self._fitted: Fitted = {}

    @classmethod
    def of(cls, model: Callable[..., Any], options: dict[str, Any]) -> TiledRestorer:
        """Of a model and options; a `TiledRestorer` stays what it is, and has its own."""
        if not isinstance(model, TiledRestorer):
            return cls(model, **options)
        if options:
            raise TypeError(f"options must be those of the TiledRestorer, not also {', '.join(options)}")
        return model

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in _given(self.options).items())
        return f"<TiledRestorer of {self._named()}{given}>"

    def _repr_html_(self) -> str:
        if self.last_run is None:
            return card("restorer", [*self._facts(), ("last run", "none yet")])
        return card("restorer", self._facts()) + self.last_run._repr_html_()

    def _facts(self) -> list[tuple[str, str]]:
        return [("model", self._named()), *((name, str(value)) for name, value in _given(self.options).items())]

    def _named(self) -> str:
        return str(getattr(self.model, "__name__", type(self.model).__name__))

    @property
    def model(self) -> Callable[..., Any]:
        return self.knowledge.model

    @property
    def options(self) -> Options:
        return self.knowledge.options

    def inspected(self) -> ModelInfo:
        """What is known about the model, a `ModelInfo`; inspects it the first time."""
        return self.knowledge.inspected()

    def with_options(self, options: Options) -> TiledRestorer:
        """A restorer for the same model with other options; shares what is known about the model."""
        return TiledRestorer.knowing(self.knowledge.like(options))

    @classmethod
    def knowing(cls, knowledge: Knowledge) -> TiledRestorer:
        """A restorer that starts from existing knowledge."""
        restorer = cls.__new__(cls)
        restorer.knowledge, restorer.last_run, restorer._fitted = knowledge, None, {}
        return restorer

    def open(self, image: Any) -> Image:
        """Opens an image in the layout given by the options or the model's channels; an Image is returned unchanged."""
        return self.knowledge.open(image)

    @overload
    def __call__(self, image: np.ndarray, *, out: Any = None) -> np.ndarray: ...
    @overload
    def __call__(self, image: Tensor, *, out: Any = None) -> Tensor: ...
    @overload
    def __call__(self, image: Any, *, out: Any = None) -> Any: ...
    def __call__(self, image: Any, *, out: Any = None) -> Any:
        """Restores an image; ``out`` overrides the option of that name."""
        asked = self.options.out if out is None else out
        if isinstance(image, str | os.PathLike):
            restorer, source = self.for_path(image)
            try:
                result = restorer._restored(restorer.open(source), asked)
            finally:
                self.last_run = restorer.last_run
            return result
        result = self._restored(opened := self.open(image), asked)
        return as_given(result, image, opened.layout) if asked is None else result

    def for_path(
        self, path: str | os.PathLike[str], max_pixels: int | None = MAX_PIXELS, strict: bool = False
    ) -> tuple[TiledRestorer, Any]:
        """The source of rows at a path, and a restorer with what the file says of its pixels: see `for_file`."""
        from .files.open import open_source  # needs libraries that arrays do not

        source = open_source(os.fspath(path), self.options.layout, max_pixels, strict)
        return for_file(self, getattr(source, "like", None), self._fitted), source

    def _restored(self, image: Image, asked: Any) -> Any:
        result = ArraySink(asked)
        delivery = Delivery(holds_result=asked is None)
        with (
            Progress(self.options.progress) as progress,
            nullcontext(open_run(image, self.knowledge, _out_dtype(asked, image, self.options))) as opened,
            tensors_kept(opened.windows.modules, watched=opened.windows.may_write),
            kept_heap.kept(opened.keeps_heap),
        ):
            try:
                prepared = drained(self.restored(opened, result.opened, delivery, progress, asked is not None))
            except TileError as error:
                error.out = result.original
                raise
            finally:
                delivered = result.delivered()
        if self.options.verify:
            with shown(True if self.options.progress is True else None, VERIFYING):
                self.last_run = verified(prepared, delivered, self.options.verify, self.knowledge.at_hand())
        return delivered

    def restored(
        self,
        opened: Opened,
        sink_for: Callable[[Prepared], Sink],
        delivery: Delivery,
        progress: Progress,
        keeps_dtype: bool = False,
    ) -> Generator[tuple[int, int], None, Prepared]:
        """Restores the images of a run one by one, and yields (start, stop) when rows are finished.

        Args:
            sink_for: returns the sink once the size of the result is known.
            keeps_dtype: whether the sink takes the dtype of `opened` only.
        """
        prepared, first = prepare(opened, self.knowledge, progress, delivery)
        prepared = with_reduction(prepared)
        if not keeps_dtype and self.options.out_dtype is None:
            prepared = with_room_for_data(prepared)
        watch_ranges(prepared, first, self.knowledge)
        sink, seconds = reducing(putting_back(sink_for(prepared), prepared), prepared), 0.0
        for index in range(opened.image.count):
            warn_of_colours(prepared, index, self.knowledge)
            before = prepared
            prepared, taken = yield from timed(assemble(prepared, index, sink, first, progress))
            seconds += taken
            if prepared is not before:
                remember(prepared, self.knowledge)
            warn_of_clamped(prepared, self.knowledge)
        prepared = replace(prepared, report=with_spread(prepared))
        report = with_filled(prepared).after(seconds / opened.image.count, prepared.plan)
        prepared = replace(prepared, report=report if prepared.again is None else prepared.again.report(report))
        self.last_run = prepared.report
        return prepared

    @overload
    def iter_bands(self, image: np.ndarray) -> Iterator[tuple[int, np.ndarray]]: ...
    @overload
    def iter_bands(self, image: Tensor) -> Iterator[tuple[int, Tensor]]: ...
    @overload
    def iter_bands(self, image: Any) -> Iterator[tuple[int, Any]]: ...
    def iter_bands(self, image: Any) -> Iterator[tuple[int, Any]]:
        """See `halotile.iter_bands`."""
        if self.options.out is not None:
            raise ValueError("out must be None for iter_bands, which yields new rows")
        if self.options.verify:
            raise ValueError(f"verify must be 0 for iter_bands, which holds no result, not {self.options.verify}")
        if isinstance(image, str | os.PathLike):
            restorer, image = self.for_path(image)
            if restorer is not self:
                return self._following(restorer, restorer.iter_bands(image))
        image = self.open(image)
        if image.count != 1:
            raise ValueError(f"image must be a single one for iter_bands, not {image.count}")
        return self._bands(open_run(image, self.knowledge, self.options.out_dtype))

    def _following(
        self, restorer: TiledRestorer, bands: Iterator[tuple[int, Any]]
    ) -> Generator[tuple[int, Any], None, None]:
        yield from bands
        self.last_run = restorer.last_run

    def _bands(self, opened: Opened) -> Iterator[tuple[int, Any]]:
        made = NewRows()
        with Progress(self.options.progress) as progress:
            rows = self.restored(opened, made.opened, Delivery(bands_waiting=1), progress)
            for start, _ in kept_heap.stepwise(rows, opened.keeps_heap):
                yield start, made.taken(start)


Fitted = dict[str, TiledRestorer]


def for_file(restorer: TiledRestorer, like: Picture | None, known: Fitted | None = None) -> TiledRestorer:
    """The restorer, with what an image file says of its pixels unless options do: the value of those without data, and
    bands that are no alpha.

    known: those of earlier files, which have learnt about the model; gets this one.
    """
    if like is None:
        return restorer
    options, extras, found = restorer.options, like.extras, {}
    if options.nodata is None and extras.nodata is not None and rounded_to(extras.nodata, extras.dtype) is not None:
        found["nodata"] = extras.nodata
    if options.alpha == "restore" and extras.data and extras.bands in (2, 4):
        found["alpha"] = "channel"
    if not found:
        return restorer
    known = {} if known is None else known
    if str(found) not in known:
        known[str(found)] = restorer.with_options(replace(options, **found))
    return known[str(found)]


def _out_dtype(asked: Any, image: Image, options: Options) -> str | None:
    """Dtype of the result from the options or ``out``. Raises ValueError or TypeError if ``out`` cannot hold the
    result."""
    if asked is None:
        return options.out_dtype
    check_output_kind(asked, image, options.out_dtype)
    return options.out_dtype or dtype_name("out", asked.dtype, IMAGE_DTYPES)


def _given(options: Options) -> dict[str, Any]:
    """The options that are not their defaults, but those that hold images or functions."""
    told = [one.name for one in fields(Options) if one.name not in ("needs", "out", "extra", "progress")]
    usual = Options()
    return {name: getattr(options, name) for name in told if getattr(options, name) != getattr(usual, name)}
