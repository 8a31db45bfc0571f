# SPDX-License-Identifier: MIT
"""The engines `torch` and `mps`: image, windows, sums and finished rows stay on the model's device.

    host      image (own dtype)                                            rows (output dtype)
                  | once                                                       ^ once, blocking
    device    strips -> read_tiles -> model -> accumulate -> ring of sums -> finish_rows

Nothing else is copied, and only the download of rows waits for the device. The three verbs come from torch_verbs, or
from `torch.ops.halotile` with Metal kernels.

A band holds dense float32 sums over the full width. Output row y uses row y % ring, for example in a ring of 48:

    ring row     0 ... 21 | 22 ... 39 | 40 ... 47
    output row  48 ... 69 |   free    | 40 ... 47

Apple's GPU is unreliable with tensors of 2^31 elements or bytes, so large images are split into strips of rows and wide
bands into panels of columns.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import _core
from ..fragile import dense, is_fragile
from ..images.channels import Part
from ..images.image import Image, as_words
from ..images.source import Source
from ..images.values import Values
from ..models.model import Model, TensorModel
from ..plan import Tile, TilePlan
from ..texts import bytes_text
from .engine import Found, Position

__all__ = ["DeviceBand", "DeviceEngine", "spelled"]

Tensor = torch.Tensor

LARGEST = 2**31  # a tensor on a fragile device has fewer elements and fewer bytes
SLAB = 64 << 20  # bytes per upload of a strided image

# MPS has no float64 and hardly any uint16, so they are transferred as float32 and int16.
TRAVELS_AS = {"uint16": "int16", "float64": "float32"}


class DeviceEngine:
    """Attributes:
    verbs: object with read_tiles, accumulate and finish_rows.
    """

    def __init__(self, name: str, device: torch.device, verbs: Any):
        self.name, self.device, self.verbs = name, device, verbs
        self.fragile = is_fragile(device)
        self.largest = LARGEST if self.fragile else sys.maxsize

    def open(self, image: Image, index: int) -> DeviceImage:
        if not image.on_host:
            tensor = image.tensor[index].to(self.device)
            return DeviceImage(tuple(self._strips(_as_it_travels(tensor))), image.size)
        if image.by_rows:
            return DeviceImage(tuple(self._uploaded_by_rows(image, index)), image.size)
        pixels = image.pixels[index]
        travels = np.dtype(TRAVELS_AS.get(pixels.dtype.name, pixels.dtype.name))
        strips = []
        for start, stop in self._cuts(pixels.shape, travels.itemsize):
            words = _uploaded(pixels[:, start:stop], travels, self.device)
            strips.append((start, words.view(torch.bfloat16) if image.dtype == "bfloat16" else words))
        return DeviceImage(tuple(strips), image.size)

    def _uploaded_by_rows(self, image: Image, index: int) -> Iterator[tuple[int, Tensor]]:
        source: Source = image.original.single(image.layout, index)
        height, width, channels = (*source.shape, 1)[:3]
        travels = np.dtype(TRAVELS_AS.get(source.dtype.name, source.dtype.name))
        count = max(1, SLAB // (width * channels * source.dtype.itemsize))
        slab = np.empty((min(count, height), *source.shape[1:]), source.dtype)
        for start, stop in self._cuts((channels, height, width), travels.itemsize):
            strip = torch.empty((stop - start, width, channels), dtype=_torch_dtype(travels), device=self.device)
            for y in range(start, stop, count):
                rows = slab[: min(count, stop - y)]
                source.read(y, rows)
                words = torch.from_numpy(_dense_words(rows, travels)).view(-1, width, channels)
                strip[y - start : y - start + len(rows)].copy_(words)
            strip = strip.view(torch.bfloat16) if image.dtype == "bfloat16" else strip
            yield start, strip.permute(2, 0, 1)

    def _strips(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        for start, stop in self._cuts(tensor.shape, tensor.element_size()):
            yield start, tensor[:, start:stop]

    def _cuts(self, shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
        channels, height, width = shape
        rows = (self.largest - 1) // (channels * width * itemsize)
        if rows == 0:
            raise ValueError(f"image must not have rows of {bytes_text(channels * width * itemsize)} on {self.device}")
        for start in range(0, height, rows):
            yield start, min(start + rows, height)

    def pixels_of(self, result: Image) -> Any:
        return result.tensor if result.device == self.device else result.pixels

    def new_windows(self, model: Model, shape: tuple[int, int, int, int]) -> Tensor:
        layout = torch.channels_last if model.channels_last and not self.fragile else torch.contiguous_format
        dtype = getattr(torch, model.dtype)
        if math.prod(shape) * dtype.itemsize >= self.largest:
            raise ValueError(f"windows of shape {shape} have 2 GiB or more")
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=layout)

    def read(
        self, windows: Tensor, source: DeviceImage, part: Part, plan: TilePlan, tiles: list[Tile], values: Values
    ) -> None:
        """Fills windows[k] with the window of tile k, padded by reflection."""
        peak, gain, offset, _ = values.numbers
        if len(tiles) == 1:  # its window may differ from the plan's size
            window = tiles[0].window
            where = [window.y, 0, 0, 0], [window.x, 0, 0, 0], 0, 1
        else:
            where = plan.core.starts(0), plan.core.starts(1), tiles[0].index, plan.grid[1]
        for start, strip in source.holding(tiles):
            pixels = part.view(strip)
            rows = [start, start + strip.shape[1]]
            self.verbs.read_tiles(windows, pixels, source.size, rows, *where, peak, gain, offset)

    def call(self, model: TensorModel, windows: Tensor) -> Tensor:
        """Models on a fragile device get dense windows, channels_last only where that was chosen for it."""
        if self.fragile:
            kind = torch.channels_last if model.channels_last else torch.contiguous_format
            windows = windows.contiguous(memory_format=kind)
        return model.run(windows)

    def first_nonfinite(self, output: Tensor) -> Position | None:
        """Finds the position of the first NaN or infinity. Waits for the device."""
        output = dense(output)
        if bool(torch.isfinite(output).all().item()):
            return None
        row, column, channel = torch.isfinite(output.cpu()).logical_not().permute(1, 2, 0).nonzero()[0].tolist()
        return channel, row, column

    def new_band(self, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int) -> DeviceBand:
        return DeviceBand(self, plan, channels, values, batch, first_row)

    def empty_cache(self) -> None:
        module = getattr(torch, self.device.type, None)
        if hasattr(module, "empty_cache"):
            module.empty_cache()


# ---- the image on its way up -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceImage:
    """Strips (first row, (C, rows, W)) of an image of `size`, on the device."""

    strips: tuple[tuple[int, Tensor], ...]
    size: tuple[int, int]

    def holding(self, tiles: list[Tile]) -> Iterator[tuple[int, Tensor]]:
        if len(self.strips) == 1:
            yield self.strips[0]
            return
        windows = {tile.row: tile.window for tile in tiles}.values()
        rows = np.array([_core.reflect(y, self.size[0]) for box in windows for y in range(box.y, box.y_stop)])
        for start, strip in self.strips:
            if ((rows >= start) & (rows < start + strip.shape[1])).any():
                yield start, strip


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, dtype.name)


def _as_it_travels(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else as_words(tensor)


def _uploaded(pixels: np.ndarray, dtype: np.dtype, device: torch.device) -> Tensor:
    """Uploads (C, H, W) in its memory order, in one copy if it is dense."""
    order = _memory_order(pixels)
    dense = pixels.transpose(order)
    if dense.flags.c_contiguous and dense.flags.writeable and pixels.dtype.itemsize == dtype.itemsize:
        return _flat(dense, dtype).to(device).view(dense.shape).permute(_inverse(order))
    order = [1, *(axis for axis in order if axis != 1)]  # rows first, so that slabs are dense on both sides
    sparse = pixels.transpose(order)
    tensor = torch.empty(sparse.shape, dtype=_torch_dtype(dtype), device=device)
    rows = max(1, SLAB // (sparse[0].size * dtype.itemsize))
    for start in range(0, len(sparse), rows):
        slab = _dense_words(sparse[start : start + rows], dtype)
        tensor[start : start + rows].copy_(torch.from_numpy(slab))
    return tensor.permute(_inverse(order))


def _dense_words(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if pixels.dtype.itemsize == dtype.itemsize:
        return pixels.copy(order="C").view(dtype)
    return pixels.astype(dtype, order="C")


def _flat(dense: np.ndarray, dtype: np.dtype) -> Tensor:
    """The same memory as a 1-D tensor: torch rejects negative strides, even for axes of length 1."""
    return torch.from_numpy(dense.reshape(-1).view(dtype))


def _memory_order(pixels: np.ndarray) -> list[int]:
    return sorted(range(3), key=lambda axis: -abs(pixels.strides[axis]))


def _inverse(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(3)]


# ---- sums ------------------------------------------------------------------------------------------------------------


def spelled(values: np.ndarray, device: torch.device) -> Tensor:
    """Builds a 1-D float32 array on the device from its constant runs, without copying from the host.

    Repeated stretches, such as blending ramps, are copied on the device.
    """
    starts = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1, [len(values)]))
    runs = [(int(a), int(b), float(values[a])) for a, b in itertools.pairwise(starts)]
    background = max(runs, key=lambda run: run[1] - run[0])[2]
    tensor = torch.full((len(values),), background, dtype=torch.float32, device=device)
    seen: dict[bytes, int] = {}
    for stretch in _stretches(runs, background):
        start, stop = stretch[0][0], stretch[-1][1]
        key = values[start:stop].tobytes()
        if key in seen:
            tensor.narrow(0, start, stop - start).copy_(tensor.narrow(0, seen[key], stop - start).clone())
            continue
        seen[key] = start
        for a, b, value in stretch:
            tensor.narrow(0, a, b - a).fill_(value)
    return tensor


def _stretches(runs: list[tuple[int, int, float]], background: float) -> Iterator[list[tuple[int, int, float]]]:
    stretch: list[tuple[int, int, float]] = []
    for run in runs:
        if run[2] != background:
            stretch.append(run)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _weight_table(plan: TilePlan, axis: int, device: torch.device) -> Tensor:
    """Blending weights along an axis, (tiles, longest keep range)."""
    weights = [plan.core.weights(axis, i) for i in range(plan.grid[axis])]
    table = np.ones((len(weights), max(len(row) for row in weights)), np.float32)
    for row, of_tile in zip(table, weights, strict=True):
        row[: len(of_tile)] = of_tile
    return spelled(table.reshape(-1), device).reshape(table.shape)


_made_tables: weakref.WeakKeyDictionary[TilePlan, dict[Any, tuple[Tensor, ...]]] = weakref.WeakKeyDictionary()


def _tables(plan: TilePlan, device: torch.device) -> tuple[Tensor, ...]:
    """Returns the weights of both axes, then their normalisers; cached for all images of a run."""
    made = _made_tables.setdefault(plan, {})
    if device not in made:
        weights = [_weight_table(plan, axis, device) for axis in (0, 1)]
        made[device] = (*weights, *(spelled(plan.normaliser(axis), device) for axis in (0, 1)))
    return made[device]


class DeviceBand:
    """The open rows of a result on the device. Output row y is row y % ring of every panel."""

    def __init__(self, engine: DeviceEngine, plan: TilePlan, channels: int, values: Values, batch: int, first_row: int):
        self.engine, self.plan, self.values, self.channels = engine, plan, values, channels
        device, width = engine.device, plan.output_size[1]
        self.ring = plan.rows_in_progress(batch, first_row)
        columns = (engine.largest - 1) // (channels * self.ring * 4)
        if columns == 0:
            raise ValueError(f"tile_size {plan.tile} makes columns of 2 GiB on {device}; make it smaller")
        self.panels = [
            (x, torch.zeros((channels, self.ring, min(columns, width - x)), dtype=torch.float32, device=device))
            for x in range(0, width, columns)
        ]
        self.wy, self.wx, self.ny, self.nx = _tables(plan, device)
        self.kept = plan.core.kept(0), plan.core.kept(1)
        self.bad = torch.zeros((plan.grid[0] * len(self.panels), 2), dtype=torch.int32, device=device)
        self.bad.narrow(1, 1, 1).copy_(torch.full((), -1, dtype=torch.int32, device=device))
        self.pieces: list[tuple[int, int, int, int]] = []  # (first row, first column, width, tile row), as in `bad`

    def add(self, tiles: list[Tile], outputs: Tensor, rows: dict[int, Any]) -> Found:
        """See HostBand.add. NaN and infinity are reported only at the end, by `nonfinite`."""
        first, last = tiles[0], tiles[-1]
        start, stop = (first.keep.x, last.keep.x_stop) if first.row == last.row else (0, self.plan.output_size[1])
        for x, panel in self.panels:
            left, right = max(start, x), min(stop, x + panel.shape[2])
            if left < right:
                box = [first.keep.y, left, last.keep.y_stop - first.keep.y, right - left]
                self.engine.verbs.accumulate(panel, outputs, self.wy, self.wx, box, x, *self.kept, first.index)
        for tile in tiles:
            if tile.column == self.plan.grid[1] - 1:
                self._finish(tile.row, rows[tile.row])
            yield tile, None

    def _finish(self, row: int, destination: Any) -> None:
        y, _ = self.plan.core.done(0, row)
        for x, panel in self.panels:
            part = destination[:, :, x : x + panel.shape[2]]
            bad = self.bad[len(self.pieces)]
            self.pieces.append((y, x, part.shape[2], row))
            on_device = isinstance(part, Tensor)
            target = as_words(part) if on_device else _rows_for(part, self.values, self.engine.device)
            where = y, x, x
            self.engine.verbs.finish_rows(target, panel, self.ny, self.nx, bad, *where, *self.values.numbers)
            if not on_device:
                _download(target, part)

    def close(self) -> None:
        self.panels.clear()

    def nonfinite(self) -> tuple[Tile, Position] | None:
        """The first NaN or infinity, with a tile that produced it. Waits for the device."""
        if int(dense(self.bad[:, 0]).sum().item()) == 0:
            return None
        for (y0, x0, width, row), (count, index) in zip(self.pieces, self.bad.cpu().tolist(), strict=False):
            if count:
                pixel, channel = divmod(index & 0xFFFFFFFF, self.channels)
                y, x = y0 + pixel // width, x0 + pixel % width
                tile = next(tile for tile in self.plan.row(row) if tile.keep.x <= x < tile.keep.x_stop)
                return tile, (channel, y, x)
        raise AssertionError("a count without a piece")


# ---- rows on their way down ------------------------------------------------------------------------------------------


def _rows_for(part: np.ndarray, values: Values, device: torch.device) -> Tensor:
    """An empty dense tensor (C, h, w) on the device, in the destination's memory order."""
    order = _memory_order(part)
    dtype = getattr(torch, TRAVELS_AS.get(values.dtype, values.dtype))
    shape = [part.shape[axis] for axis in order]
    return torch.empty(shape, dtype=dtype, device=device).permute(_inverse(order))


def _download(rows: Tensor, part: np.ndarray) -> None:
    """One blocking copy: directly if the destination is dense, else through a new array."""
    order = _memory_order(part)
    words = rows.permute(order)
    if words.dtype == torch.bfloat16:
        words = words.view(torch.int16)
    host = part.transpose(order)
    dtype = np.dtype(str(words.dtype).removeprefix("torch."))
    if host.flags.c_contiguous and host.dtype.itemsize == dtype.itemsize:
        _flat(host, dtype).copy_(words.reshape(-1))
        return
    came = words.cpu().numpy()
    host[...] = came.view(host.dtype) if came.itemsize == host.itemsize else came
