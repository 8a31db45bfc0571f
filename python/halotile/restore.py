# SPDX-License-Identifier: MIT
"""restore_tiled(): an image too large for its model, restored tile by tile.

options and model -> TiledRestorer -> for each image: a Run (run.py), which has the loop over tiles
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from . import heap
from .descriptor import unwrapped
from .errors import SeamWarning, TileError, frames_inside
from .halo import RunInfo
from .images import Image, check_output_kind, open_image, torch_if_loaded
from .known import about
from .learn import Facts
from .model import Model, channels_of, modules_of
from .needs import needs_of
from .options import IMAGE_DTYPES, Options, RestoreOptions, RunOptions, dtype_name, signature_with_options
from .progress import Progress
from .recalled import told_about, tried_with
from .run import Run
from .untouched import tensors_kept

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
        last_run: a RunInfo: which halo and phase the latest run had, how exact that is, and why; None before the
            first.
    """

    def __init__(self, model: Callable[..., Any], **options: Unpack[RestoreOptions]):
        self.model = unwrapped(model)
        self.options = Options.of({"needs": needs_of(self.model)} | options)
        self._opened: dict[bool, Model] = {}  # by whether it must take tensors
        self._others: dict[Any, Model] = {}  # on other devices, by which and dtype
        self._facts: dict[int, Facts] = {}  # by the image's channels
        # By the image's size: the options with tiles that memory allows.
        self._fitting: dict[tuple[int, int], tuple[Options, RunInfo]] = {}
        self._inspected: Any = None
        self._costs: dict[Any, Any] = {}  # what tuning has measured
        self.multiple: tuple[int, int] | None = None  # of which the model takes windows, where that had to be tried
        self.tried: dict[Any, Any] = tried_with(self.model)
        self._precision: Any = None  # what dtype="auto" came to
        self.last_run: RunInfo | None = None

    def inspected(self) -> ModelInfo:
        """What is known of the model, a `ModelInfo`: found out once."""
        if self._inspected is None:
            from .known import known_model

            self._inspected = known_model(self.model, self.options.first_device, self.options.model_dtype)
        return self._inspected

    def quick_look(self) -> Any:
        """What the model's operators tell at a glance, a `Quick`: of a callable the phase of the modules that it
        carries. None for what neither is nor carries a torch module."""
        from .known import known_quick

        torch = torch_if_loaded()
        if torch is None:
            return None
        if isinstance(self.model, torch.nn.Module):
            return known_quick(self.model, self._channels_tried(self.model))
        looks = [known_quick(module, self._channels_tried(module)) for module in modules_of(self.model)]
        phases = [look.phase for look in looks if look is not None and look.phase is not None]
        if not phases:
            return None
        return replace(looks[0], phase=tuple(map(math.lcm, *phases)), scale=None, loss=None)

    def _channels_tried(self, module: Any) -> tuple[int, ...]:
        own = channels_of(module)
        return (*((own,) if own else ()), 3, 1, 4, 2)

    @cached_property
    def told_apart(self) -> Any:
        """What tells the model from others, also in other processes; None if nothing does."""
        return about(self.model, self.options.model_dtype)

    def with_options(self, options: Options) -> TiledRestorer:
        """Another one of this model, with what is known of it."""
        other = TiledRestorer(self.model, **{field.name: getattr(options, field.name) for field in fields(options)})
        other._inspected, other._costs, other._precision = self._inspected, self._costs, self._precision
        other._opened = self._opened if self._precision is not None else {}
        other.multiple = self.multiple
        other._others = self._others
        return other

    def like(self, options: Options) -> TiledRestorer:
        """The same for windows of any size: not compiled, and of the model's own dtype unless another was chosen."""
        unknown = options.dtype == "auto" and self._precision is None
        return self.with_options(replace(options, compile=False, dtype=None if unknown else options.dtype))

    def tell_once(self, about: Any, text: str, kind: type[Warning] = SeamWarning) -> None:
        """A warning, once for each model and subject."""
        if not self.is_told(about):
            told_about(self.model).add(about)
            warnings.warn(text, kind, stacklevel=frames_inside())

    def is_told(self, about: Any) -> bool:
        return about in told_about(self.model)

    def open(self, image: Any) -> Image:
        """Sees an image as these options and the model's channels say; an Image stays what it is."""
        return open_image(image, self.options.layout, lambda: channels_of(self.model))

    @overload
    def __call__(self, image: np.ndarray, *, out: Any = None) -> np.ndarray: ...
    @overload
    def __call__(self, image: Tensor, *, out: Any = None) -> Tensor: ...
    @overload
    def __call__(self, image: Any, *, out: Any = None) -> Any: ...
    def __call__(self, image: Any, *, out: Any = None) -> Any:
        """The restored image; ``out`` goes before the option of that name."""
        asked = self.options.out if out is None else out
        source = self.open(image)
        if asked is not None:
            check_output_kind(asked, source, self.options.out_dtype)
        own_dtype = None if asked is None else dtype_name("out", asked.dtype, IMAGE_DTYPES)
        run = Run(self, source, out_dtype=self.options.out_dtype or own_dtype)
        result = None
        run.holds_result = asked is None
        with (
            tensors_kept(run.model.modules, watched=True),
            Progress(self.options.progress) as progress,
            heap.kept(run.keeps_heap) as run.heap_kept,
        ):
            try:
                run.start(progress)
                with heap.aside():
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
            self._verify(run, delivery)
        return delivery

    def _verify(self, run: Run, result: Any) -> None:
        from .verification import Remade

        remade = Remade(run.image, self.like(run.options), result, {}, run)
        found = remade.compared(remade.places(self.options.verify, 0))
        self.last_run = replace(run.halo, verified=found)
        tolerance = run.options.within(found.white)
        if not found.seamless(tolerance):
            why = f"{run.halo.why}; but differences of {found.largest:.3g} of {found.white:g} were found"
            self.last_run = replace(self.last_run, how="doubtful", bound=found.largest, why=why)
            text = f"verify={self.options.verify}: above the tolerance of {tolerance:g}: {found}"
            warnings.warn(text, SeamWarning, stacklevel=frames_inside())

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
        source = self.open(image)
        if source.count != 1:
            raise ValueError(f"image must be a single one for iter_bands, not {source.count}")
        run = Run(self, source, out_dtype=self.options.out_dtype)
        run.bands_waiting = 1
        return self._iterate(run)

    def _iterate(self, run: Run) -> Iterator[tuple[int, Any]]:
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
