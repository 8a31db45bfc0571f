# SPDX-License-Identifier: MIT
"""Views images of every type as (image, channel, row, column), and builds results of the same type.

There is a NumPy view for the host and a tensor view for tensors. NumPy has no bfloat16: such tensors are viewed as
uint16, and `Image.dtype` tells what the bits mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..layouts import layout_of, with_channels, with_standard_names
from ..optional import torch_if_loaded
from ..options import IMAGE_DTYPES
from .pillow import array_of, is_picture
from .source import HeldRows, Source, as_source

if TYPE_CHECKING:
    import torch

__all__ = [
    "Alpha",
    "Image",
    "NoData",
    "Pixels",
    "as_words",
    "bfloat16_bits",
    "check_output_dtype",
    "check_output_kind",
    "copied",
    "delivered",
    "from_bfloat16",
    "is_tensor",
    "new_image",
    "open_image",
    "open_output",
    "peak_of",
    "shape_of_result",
    "to_bfloat16",
]

Pixels: TypeAlias = "np.ndarray | torch.Tensor"

ALLOWED = "image must be a NumPy array, a torch tensor, a Pillow image, or a zarr, dask or xarray array"
INTEGER_PEAK = {"uint8": 255, "uint16": 65535}
AXES = "NCHW"


def is_tensor(value: object) -> bool:
    torch = torch_if_loaded()
    return torch is not None and isinstance(value, torch.Tensor)


class Alpha(NamedTuple):
    """The alpha channel of an image.

    Attributes:
        constant: its value in the image's units if it is the same everywhere; else None.
        hidden: whether there may be pixels with alpha 0.
    """

    constant: float | None
    hidden: bool


class NoData(NamedTuple):
    """The value that means "no data" (as the image's dtype holds it), and how many channels, the first ones, may have
    it."""

    value: float
    channels: int


@dataclass(frozen=True)
class Image:
    """An array or tensor as the engines see it.

    Attributes:
        original: the user's input, or the future result; a Source for images read by rows.
        dtype: one of uint8, uint16, float16, bfloat16, float32, float64.
        layout: axes of the original, spelled with N, C, H and W.
        device: the tensor's device; None for NumPy arrays.
        by_model: whether the channels that the model seems to take decided the layout.
        white: its value of white, if it is not the dtype's.
        nodata: the value of pixels without data, if there is one.
    """

    original: Any
    dtype: str
    layout: str
    device: torch.device | None = None
    by_model: bool = False
    white: float | None = None
    nodata: NoData | None = None

    @property
    def peak(self) -> float:
        """The value of white."""
        return peak_of(self.dtype) if self.white is None else self.white

    def peak_in(self, dtype: str) -> float:
        """The value of white in a result of that dtype."""
        floats = INTEGER_PEAK.keys().isdisjoint((dtype, self.dtype))
        return self.peak if dtype == self.dtype or floats else peak_of(dtype)

    @property
    def by_rows(self) -> bool:
        """Whether it is read by rows: use `held`, since `pixels` would load everything."""
        return isinstance(self.original, Source)

    def held(self, index: int) -> HeldRows:
        """Buffered rows of image `index`, if it is read by rows; buffers of other images are released."""
        if index not in self._held:
            self._held.clear()
            self._held[index] = HeldRows(self.original.single(self.layout, index))
        return self._held[index]

    @cached_property
    def _held(self) -> dict[int, HeldRows]:
        return {}

    @cached_property
    def alphas(self) -> dict[int, Alpha]:
        return {}

    @cached_property
    def missing(self) -> dict[int, Any]:
        return {}

    @cached_property
    def pixels(self) -> np.ndarray:
        """(N, C, H, W) view of its memory (of a copy for tensors on other devices), any strides."""
        view = _array_view if self.device is None else _tensor_view
        return _to_nchw(view(self.original.whole() if self.by_rows else self.original), self.layout)

    def rows(self, index: int, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of image `index`: (C, rows, W). Valid until the next call."""
        stop = min(stop, self.size[0])
        if self.by_rows:
            rows, first = self.held(index).holding(start, stop)
            return rows[:, start - first : stop - first]
        return self.pixels[index, :, start:stop]

    @cached_property
    def tensor(self) -> Any:
        """(N, C, H, W) view of a tensor on its device."""
        order = [self.layout.index(axis) for axis in AXES if axis in self.layout]
        view = self.original.detach().resolve_neg().permute(order)
        for position, axis in enumerate(AXES):
            if axis not in self.layout:
                view = view.unsqueeze(position)
        return view

    def _side(self, axis: str) -> int:
        return self.original.shape[self.layout.index(axis)] if axis in self.layout else 1

    @property
    def count(self) -> int:
        return self._side("N")

    @property
    def channels(self) -> int:
        return self._side("C")

    @property
    def size(self) -> tuple[int, int]:
        return self._side("H"), self._side("W")

    @property
    def on_host(self) -> bool:
        return self.device is None or self.device.type == "cpu"


def copied(pixels: Pixels) -> Pixels:
    return pixels.copy() if isinstance(pixels, np.ndarray) else pixels.clone()


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """uint16 as int16, which devices support better."""
    torch = torch_if_loaded()
    return tensor.view(torch.int16) if tensor.dtype == torch.uint16 else tensor


def bfloat16_bits(value: float) -> int:
    """The nearest bfloat16 as a 16-bit integer."""
    return int(to_bfloat16(np.array([value], np.float32))[0])


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of float32 values, as uint16; ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 as uint16."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def peak_of(dtype: str) -> int:
    """The value of white; 1 for floats."""
    return INTEGER_PEAK.get(dtype, 1)


def open_image(image: Any, layout: str | None, channels_of_model: Callable[[], int | None] = lambda: None) -> Image:
    """Views `image` as an Image, without changing it; an Image is returned as it is.

    Args:
        layout: order of its axes in any spelling; None: found by `layouts.layout_of`.
        channels_of_model: channels that its model takes, or None; called only if the layout is ambiguous.

    Raises:
        TypeError, ValueError: not an image, not in that layout, or ambiguous.
    """
    if isinstance(image, Image):
        return image
    if is_picture(image):
        image = array_of(image)
    source = as_source(image)
    tensor = is_tensor(image)
    if source is not None:
        image = source
    elif tensor:
        _refuse_tensor_without_memory("image", image)
    elif isinstance(image, np.ma.MaskedArray):
        raise TypeError("image must not be a masked array: its mask would be lost; fill it first")
    elif not isinstance(image, np.ndarray):
        raise TypeError(f"{ALLOWED}, not {_other_kind(image)}")
    dtype = str(image.dtype).removeprefix("torch.") if tensor else image.dtype.name
    if dtype not in IMAGE_DTYPES:
        text = f"image must have one of the dtypes {', '.join(IMAGE_DTYPES)}, not {image.dtype}"
        as_floats = "float()" if tensor else "astype('float32')"
        raise TypeError(f"{text}; image.{as_floats} / white is one of them")
    if 0 in image.shape:
        raise ValueError(f"image must not be empty, not shape {tuple(image.shape)}")
    asked: list[int | None] = []

    def asked_model() -> int | None:
        asked.append(channels_of_model())
        return asked[-1]

    standard = _layout(image, layout, tensor, asked_model)
    if source is not None:
        image = source.laid(standard)
    return Image(image, dtype, standard, image.device if tensor else None, by_model=bool(asked))


def _other_kind(image: object) -> str:
    name = type(image).__name__
    if isinstance(image, str | os.PathLike):
        return f"a path, {os.fspath(image)!r}; restore_tiled and restore_to read files"
    if callable(image):
        return f"{name}, which is a model: arguments swapped? (image, model) is their order"
    if type(image).__module__.split(".")[0] == "zarr":
        return f"a zarr {name}; pass one of its arrays"
    if isinstance(image, (list, tuple)):
        return f"{name}; pass its images one at a time, or numpy.stack(images) if they are of one size"
    return f"{name}; numpy.asarray(image) may help"


def _layout(image: Any, asked: str | None, channels_first: bool, channels_of_model: Callable[[], int | None]) -> str:
    shape = tuple(image.shape)
    certain = image.layout if isinstance(image, Source) else None
    if asked is None:
        found = certain or layout_of("image", shape, channels_first, channels_of_model)
        if found is None:
            text = "; of several axes of images pass those of one at a time, or reshape them into one"
            raise ValueError(f"image must have 2 to 4 dimensions, not shape {shape}{text if len(shape) > 4 else ''}")
        return found
    if len(asked) != len(shape):
        raise ValueError(f"image must have the {len(asked)} dimensions of layout {asked!r}, not shape {shape}")
    standard = with_standard_names(asked)
    if certain not in (None, standard):
        raise ValueError(f"layout must be {certain!r} for this image file, not {asked!r}")
    return standard


def _refuse_tensor_without_memory(name: str, tensor: torch.Tensor) -> None:
    if tensor.layout != torch_if_loaded().strided:
        raise TypeError(f"{name} must be a dense tensor, not {tensor.layout}")
    if tensor.device.type == "meta":
        raise ValueError(f"{name} must have values, not be on the device 'meta'")


def _array_view(image: np.ndarray) -> np.ndarray:
    array = image.view(np.ndarray)
    if not array.dtype.isnative or not array.flags.aligned or any(s % array.itemsize for s in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))  # rare: foreign byte order, fields of packed records
    return array


def _tensor_view(image: Any) -> np.ndarray:
    torch = torch_if_loaded()
    host = image.detach().resolve_neg().cpu()
    return (host.view(torch.uint16) if host.dtype == torch.bfloat16 else host).numpy()


def _to_nchw(array: np.ndarray, layout: str) -> np.ndarray:
    order = [layout.index(axis) for axis in AXES if axis in layout]
    view = array.transpose(order)
    for position, axis in enumerate(AXES):
        if axis not in layout:
            view = np.expand_dims(view, position)
    return view


def shape_of_result(
    source: Image, channels: int, size: tuple[int, int], flat: bool = False
) -> tuple[str, tuple[int, ...]]:
    """Adds a channel axis if there are several channels. flat: there is none, whatever the source has."""
    layout = source.layout.replace("C", "") if flat else source.layout
    if "C" not in layout and channels > 1:
        layout = with_channels(layout, channels_first=source.device is not None)
    sides = {"N": source.count, "C": channels, "H": size[0], "W": size[1]}
    return layout, tuple(sides[axis] for axis in layout)


def new_image(
    source: Image,
    channels: int,
    size: tuple[int, int],
    dtype: str,
    device: torch.device | None,
    flat: bool = False,
) -> Image:
    """An uninitialised result of the source's type: on `device` if the source is there, else in host memory, from where
    `delivered` copies it."""
    layout, shape = shape_of_result(source, channels, size, flat)
    if source.device is None:
        return Image(np.empty(shape, dtype), dtype, layout)
    torch = torch_if_loaded()
    where = device if device == source.device else torch.device("cpu")
    return Image(torch.empty(shape, dtype=getattr(torch, dtype), device=where), dtype, layout, where)


def check_output_dtype(source: Image, dtype: str) -> None:
    if dtype == "bfloat16" and source.device is None:
        raise ValueError("out_dtype must not be bfloat16 for a NumPy image: NumPy has no such dtype")


def check_output_kind(out: Any, source: Image, dtype: str | None) -> None:
    """Rejects an `out` that cannot hold a result for this source; checks everything but its shape."""
    wants_tensor = source.device is not None
    if is_tensor(out) != wants_tensor or not (wants_tensor or isinstance(out, np.ndarray)):
        kind = "torch tensor" if wants_tensor else "NumPy array"
        raise TypeError(f"out must be a {kind} like image, not {type(out).__name__}")
    name = str(out.dtype).removeprefix("torch.")
    if name not in IMAGE_DTYPES or (dtype and name != dtype):
        raise TypeError(f"out must have dtype {dtype or ' or '.join(IMAGE_DTYPES)}, not {out.dtype}")
    if wants_tensor:
        _refuse_tensor_without_memory("out", out)
        if out.requires_grad:
            raise ValueError("out must not require a gradient: results have none")
        if out.is_inference() and out.device.type != "cpu" and not torch_if_loaded().is_inference_mode_enabled():
            raise ValueError("out must not be made in inference mode: torch lets nobody write to it outside")
        strides, shared = out.stride(), _tensors_share_memory(source.original, out)
    else:
        if not out.flags.writeable:
            raise ValueError("out must be writeable")
        if not out.dtype.isnative or not out.flags.aligned or any(s % out.itemsize for s in out.strides):
            raise ValueError("out must be aligned and in native byte order")
        strides, shared = out.strides, not source.by_rows and _share_memory(source.pixels, out)
    if any(stride == 0 and side > 1 for stride, side in zip(strides, out.shape, strict=True)):
        raise ValueError("out must not share memory with itself, as expanded and broadcast arrays do")
    if shared:
        raise ValueError("out must not share memory with image: image is never modified")


def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)
    except RuntimeError:  # TooHardError: undecided
        return True


def _tensors_share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.device != b.device:
        return False
    if a.device.type == "cpu":
        return _share_memory(_tensor_view(a), _tensor_view(b))
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():  # on MPS these are handles, not addresses
        return False
    (start_a, stop_a), (start_b, stop_b) = (_extent(tensor) for tensor in (a, b))
    return start_a < stop_b and start_b < stop_a


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Byte range of its elements in its storage."""
    last = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset()
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def open_output(
    out: Any,
    source: Image,
    channels: int,
    size: tuple[int, int],
    device: torch.device | None,
    flat: bool = False,
) -> Image:
    """Views the user's `out`, already checked by `check_output_kind`, as an Image to write to. A tensor neither in host
    memory nor on `device` is copied, so that rows the run does not reach keep their values."""
    layout, shape = shape_of_result(source, channels, size, flat)
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, not {tuple(out.shape)}")
    dtype = str(out.dtype).removeprefix("torch.")
    if source.device is None:
        return Image(out, dtype, layout)
    where = out if out.device.type == "cpu" or out.device == device else out.cpu()
    return Image(where, dtype, layout, where.device)


def delivered(result: Image, source: Image, asked: Any) -> Any:
    """`asked` (their `out`) filled, or the result on the source's device."""
    if asked is not None:
        return asked if result.original is asked else asked.copy_(result.original)
    return result.original if result.device == source.device else result.original.to(source.device)
