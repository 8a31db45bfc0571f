# SPDX-License-Identifier: MIT
"""restore_tiled(): an image too large for its model, restored tile by tile.

open -> prepare -> assemble -> deliver

open_run   an image and its model, with numbers for halo and phase         auto/prepare.py
prepare    every other option becomes a number, with a reason              auto/prepare.py
assemble   windows through the model, and finished rows into a sink        run/assemble.py
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from .auto.knowledge import Knowledge
from .auto.prepare import open_run, prepare, remember, warn_of_colours
from .errors import TileError
from .images.image import Image, check_output_kind
from .models.untouched.kept import tensors_kept
from .options import IMAGE_DTYPES, Options, RestoreOptions, RunOptions, dtype_name, signature_with_options
from .run import kept_heap
from .run.assemble import assemble, drained
from .run.prepared import Delivery, Opened, Prepared, Sink
from .run.progress import Progress
from .run.remade import verified
from .run.report import RunInfo
from .run.results import ArraySink, NewRows

if TYPE_CHECKING:
    from torch import Tensor

    from .inspection import ModelInfo

__all__ = ["TiledRestorer", "iter_bands", "restore_tiled"]


@overload
def restore_tiled(image: np.ndarray, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> np.ndarray: ...
@overload
def restore_tiled(image: Tensor, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Tensor: ...
@overload
def restore_tiled(image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any: ...
def restore_tiled(image: Any, model: Callable[..., Any], **options: Unpack[RestoreOptions]) -> Any:
    """Restores an image with a model that could not take it whole.

    With ``halo`` at least the model's receptive-field radius and the right ``phase`` the result equals whole-image
    inference within float rounding: ``crop(model(reflect_pad(image, halo)))`` for ``boundary="reflect"``,
    ``model(image)`` for ``boundary="native"``; sides that are no multiple of the phase are completed by reflection.

    Args:
        image: NumPy array ``(H, W)``, ``(H, W, C)`` or ``(N, H, W, C)``, or torch tensor ``(H, W)``, ``(C, H, W)`` or
            ``(N, C, H, W)`` on any device; uint8, uint16, float16, bfloat16 (tensors), float32 or float64; any strides.
            Integers reach the model as [0, 1] and come back rounded and clamped; floats pass as they are. Two channels
            are grey with alpha, four are colour with alpha. Axes in another order: see ``layout``. The image is never
            modified. Or a zarr array, which is read by rows.
        model: torch module, or callable on batches ``(N, C, H, W)`` of tensors or of NumPy arrays. Modules run in eval
            and inference mode and get their own mode back. A colour model takes grey images, a grey model colour ones,
            channel by channel, or their grey if it makes several channels of it. docs/images.md has a table. A spandrel
            descriptor stands for its module, scale and size requirements.

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
            (rows, columns). None: for torch modules, and those that a callable carries, found from their operators, in
            a second or two the first time, and kept; with halo="exact" or "auto" as `inspect_model` finds it; 1 where
            nothing is found. Where the first window is refused, sizes are tried that the model takes. Where nothing of
            a callable can be seen, small windows of noise are shifted, to see whether its output moves with them.
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
        device: where the model runs. None: where it is, else MPS, CUDA, CPU. A module that is elsewhere is copied. A
            list, as ["cuda:0", "cuda:1"]: batches are shared out, tiles are put together on the first; the devices
            should be equally fast. Not with global_stats "exact" or "frozen".
        dtype: "float32", "float16" or "bfloat16" for the model. None: its own. A module of another dtype is copied.
            "auto": half precision where that is faster on this machine and within the tolerance of float32, by two
            small windows of the image; `TiledRestorer.last_run.precision` says what was found.
        engine: who cuts and assembles: "host" (memory of the CPU, any model), "torch" (torch operations on the model's
            device) or "mps" (Metal kernels). None: the environment variable HALOTILE_ENGINE, else what fits the device.
        value_range: (low, high) in which the model works: image values from 0 to white (255, 65535 or 1.0) are mapped
            to it, and its output back and clamped.
        out: array or tensor to write to, of the result's shape; may be a memmap. Its dtype stands in for out_dtype.
        out_dtype: dtype of the result. None: the image's.
        layout: order of the image's axes, each named by a letter: H or Y for rows, W or X for columns, C or S for
            channels, N, Z, T or B for images, as in "CHW", "NHWC", "ZYX" or "TYXC". None: the usual order, where it is
            plausible (at most four channels, or fewer than rows and columns); else the only one that the model's
            channels allow. Where they do not decide, the image is refused before any work. See docs/images.md.
        alpha: what becomes of an alpha channel: "restore" (through the model, as grey; bilinear where the model makes
            colour of grey, or grey of colour), "resize" (bilinear), "opaque" (white), or "channel" (it is none: the
            model takes all channels as they are). Where alpha is 0, the model is shown the colours around, so that
            hidden ones do not leak; alpha that is the same everywhere stays what it is, and nothing is run for it.
        on_nonfinite: "raise", "warn" or "ignore" when the model returns NaN or infinity.
        progress: True for a tqdm bar, or a callable ``(tiles done, tiles in all)``.
        keep_heap: whether models on the CPU run with the memory that they free kept by the process until the image is
            done, where that is known to make them faster (glibc): see docs/speed.md. The environment variable
            HALOTILE_KEEP_HEAP=0 turns it off.
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
        image's layout, with an axis for channels where there are several and it has none (last for arrays, before rows
        and columns for tensors); or ``out``.

    Raises:
        ValueError, TypeError: a bad option or image: its name, value and what is allowed. Before any work, except for
            what only the model can tell (the shape of ``out``, a halo smaller than what valid convolutions take).
        TileError: the model failed on a tile (see its attributes; the cause is chained), returned something unusable
            (`ModelOutputError`, also a ValueError), NaN or infinity (`NonFiniteError`; where results are made on a
            device, that is known when the image is done), or ran out of memory with the smallest tiles
            (`OutOfMemoryError`, also a MemoryError). Rows finished before stay in ``out``, as on KeyboardInterrupt.
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
        options: an `Options`.
        knowledge: what is known of the model.
        last_run: a RunInfo: which halo and phase the latest run had, how exact that is, and why; None before the
            first.
    """

    def __init__(self, model: Callable[..., Any], **options: Unpack[RestoreOptions]):
        self.knowledge = Knowledge.of(model, {**options})
        self.last_run: RunInfo | None = None

    @property
    def model(self) -> Callable[..., Any]:
        return self.knowledge.model

    @property
    def options(self) -> Options:
        return self.knowledge.options

    def inspected(self) -> ModelInfo:
        """What is known of the model, a `ModelInfo`: found out once."""
        return self.knowledge.inspected()

    def with_options(self, options: Options) -> TiledRestorer:
        """Another one of this model, with what is known of it."""
        return TiledRestorer.knowing(self.knowledge.like(options))

    @classmethod
    def knowing(cls, knowledge: Knowledge) -> TiledRestorer:
        """One that starts with what is known of its model."""
        restorer = cls.__new__(cls)
        restorer.knowledge, restorer.last_run = knowledge, None
        return restorer

    def open(self, image: Any) -> Image:
        """Sees an image as these options and the model's channels say; an Image stays what it is."""
        return self.knowledge.open(image)

    @overload
    def __call__(self, image: np.ndarray, *, out: Any = None) -> np.ndarray: ...
    @overload
    def __call__(self, image: Tensor, *, out: Any = None) -> Tensor: ...
    @overload
    def __call__(self, image: Any, *, out: Any = None) -> Any: ...
    def __call__(self, image: Any, *, out: Any = None) -> Any:
        """The restored image; ``out`` goes before the option of that name."""
        asked = self.options.out if out is None else out
        image = self.open(image)
        opened = open_run(image, self.knowledge, _out_dtype(asked, image, self.options))
        result = ArraySink(asked)
        delivery = Delivery(holds_result=asked is None)
        with (
            tensors_kept(opened.windows.modules, watched=True),
            Progress(self.options.progress) as progress,
            kept_heap.kept(opened.keeps_heap),
        ):
            try:
                prepared = drained(self.restored(opened, result.opened, delivery, progress))
            except TileError as error:
                error.out = result.original
                raise
            finally:
                delivered = result.delivered()
        if self.options.verify:
            self.last_run = verified(prepared, delivered, self.options.verify, self.knowledge.at_hand())
        return delivered

    def restored(
        self, opened: Opened, sink_for: Callable[[Prepared], Sink], delivery: Delivery, progress: Progress
    ) -> Generator[tuple[int, int], None, Prepared]:
        """Restores the images of a run, one after the other, and yields (start, stop) when rows of one are finished.

        Args:
            sink_for: gives the sink when the size of the result is known.
        """
        prepared, first = prepare(opened, self.knowledge, progress, delivery)
        sink = sink_for(prepared)
        for index in range(opened.image.count):
            warn_of_colours(prepared, index, self.knowledge)
            before = prepared
            prepared = yield from assemble(prepared, index, sink, first, progress)
            if prepared is not before:
                remember(prepared, self.knowledge)
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
        image = self.open(image)
        if image.count != 1:
            raise ValueError(f"image must be a single one for iter_bands, not {image.count}")
        return self._bands(open_run(image, self.knowledge, self.options.out_dtype))

    def _bands(self, opened: Opened) -> Iterator[tuple[int, Any]]:
        made = NewRows()
        with Progress(self.options.progress) as progress:
            rows = self.restored(opened, made.opened, Delivery(bands_waiting=1), progress)
            for start, _ in kept_heap.stepwise(rows, opened.keeps_heap):
                yield start, made.taken(start)


def _out_dtype(asked: Any, image: Image, options: Options) -> str | None:
    """Of the result, as options or ``out`` say. Raises ValueError or TypeError for an ``out`` that cannot hold it."""
    if asked is None:
        return options.out_dtype
    check_output_kind(asked, image, options.out_dtype)
    return options.out_dtype or dtype_name("out", asked.dtype, IMAGE_DTYPES)
