# SPDX-License-Identifier: MIT
"""Other people's tile loops, each as a function (image, model, scale, tile, halo) -> image.

image:  uint8 NumPy array (H, W, 3), in and out; what comes out may be a view of planar memory, as the peers leave it.
model:  torch module on batches (1, 3, H, W) of float32 in [0, 1].
tile, halo: pixels between windows, and pixels of context on either side of a tile: a window has tile + 2 * halo. Peers
        that count otherwise get the numbers that mean the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch

__all__ = ["PEERS", "Peer"]

Restore = Callable[[np.ndarray, torch.nn.Module, int, int, int], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A loop, and the distribution it comes from (None: it is written out here)."""

    restore: Restore
    distribution: str | None = None


# ---- Real-ESRGAN -----------------------------------------------------------------------------------------------------


def real_esrgan(
    image: np.ndarray, model: torch.nn.Module, scale: int, tile: int, halo: int, device: str = "cpu"
) -> np.ndarray:
    """RealESRGANer.enhance() as it is published: a grid of tiles, the halo cropped, into one float32 result; then NumPy
    clamps, scales, rounds and converts the whole. pre_pad 0, as its command line has it."""
    kind = _real_esrganer()
    restorer = kind.__new__(kind)  # the constructor wants a file of weights
    vars(restorer).update(scale=scale, tile_size=tile, tile_pad=halo, pre_pad=0, mod_scale=None, half=False)
    vars(restorer).update(device=torch.device(device), model=model)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each tile
        result, _ = restorer.enhance(image[:, :, ::-1])  # it reckons in OpenCV's order
    return result[:, :, ::-1]


@cache
def _real_esrganer() -> type[Any]:
    """The class out of realesrgan/utils.py alone: the package imports OpenCV, BasicSR and what those need."""
    cv2 = ModuleType("cv2")
    cv2.COLOR_BGR2RGB = None  # the one conversion on the way of a colour image
    cv2.cvtColor = lambda image, code: np.ascontiguousarray(image[:, :, ::-1])
    download = ModuleType("basicsr.utils.download_util")
    download.load_file_from_url = None
    stubs = {"cv2": cv2, "basicsr": ModuleType("basicsr"), "basicsr.utils": ModuleType("basicsr.utils")}
    package = importlib.util.find_spec("realesrgan").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("realesrgan_utils", f"{package}/utils.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stubs | {download.__name__: download}):
        spec.loader.exec_module(module)
    return module.RealESRGANer


# ---- sum and count, as in SwinIR's demo ------------------------------------------------------------------------------


def sum_and_count(image: np.ndarray, model: torch.nn.Module, scale: int, tile: int, halo: int) -> np.ndarray:
    """The loop of SwinIR's demo, which Restormer and KAIR share, after its description: windows at equal steps, the
    last one shifted to the edge; sums and counts of the whole result in float32, in all channels; their quotient."""
    pixels = _to_tensor(image)
    height, width = pixels.shape[2:]
    window = min(tile + 2 * halo, height, width)
    sums = torch.zeros(1, 3, height * scale, width * scale)
    counts = torch.zeros_like(sums)
    with torch.no_grad():
        for y in _starts(height, window, tile):
            for x in _starts(width, window, tile):
                output = model(pixels[:, :, y : y + window, x : x + window])
                rows, columns = slice(y * scale, (y + window) * scale), slice(x * scale, (x + window) * scale)
                sums[:, :, rows, columns].add_(output)
                counts[:, :, rows, columns].add_(torch.ones_like(output))
    return _to_image(sums.div_(counts))


def _starts(size: int, window: int, step: int) -> list[int]:
    return [*range(0, size - window, step), size - window]


# ---- MONAI -----------------------------------------------------------------------------------------------------------


def monai(
    image: np.ndarray,
    model: torch.nn.Module,
    scale: int,
    tile: int,
    halo: int,
    sw_device: str = "cpu",
    device: str = "cpu",
    mode: str = "constant",
) -> np.ndarray:
    """monai.inferers.sliding_window_inference; it finds the scale by itself.

    sw_device, device: where the model runs, and where outputs are put together; the image is kept there, too."""
    from monai.inferers import sliding_window_inference

    window = tile + 2 * halo
    overlap = (2 * halo - 0.5) / window  # its step is int(window * (1 - overlap)): the half keeps rounding away
    options = {"mode": mode, "sw_device": sw_device, "device": device}
    with torch.no_grad():
        return _to_image(sliding_window_inference(_to_tensor(image, device), window, 1, model, overlap, **options))


# ---- pytorch-toolbelt ------------------------------------------------------------------------------------------------


def toolbelt(image: np.ndarray, model: torch.nn.Module, scale: int, tile: int, halo: int) -> np.ndarray:
    """ImageSlicer and TileMerger with pyramid weights, as its README has it: windows by OpenCV (here by NumPy, mirrored
    where they reach beyond the image), sums and weights of the whole result, cropped."""
    tiles = _toolbelt_tiles()
    slicer = tiles.ImageSlicer(image.shape, tile + 2 * halo, tile, weight="pyramid")
    larger = [side * scale for side in slicer.target_shape]
    weight = slicer.weight.astype(np.float32).repeat(scale, 0).repeat(scale, 1)
    merger = tiles.TileMerger(larger, 3, weight)
    with torch.no_grad():
        for window, place in slicer.iter_split(image):
            merger.integrate_batch(model(_to_tensor(np.ascontiguousarray(window))), place[None] * scale)
    top, left = slicer.margin_top * scale, slicer.margin_left * scale
    height, width = (side * scale for side in image.shape[:2])
    return _to_image(merger.merge_()[None, :, top : top + height, left : left + width])


@cache
def _toolbelt_tiles() -> ModuleType:
    """inference/tiles.py alone: the package imports much else."""
    cv2 = ModuleType("cv2")
    cv2.BORDER_CONSTANT = 0
    cv2.copyMakeBorder = lambda tile, top, bottom, left, right, **_: np.pad(
        tile, ((top, bottom), (left, right), (0, 0)), "reflect"
    )
    package = importlib.util.find_spec("pytorch_toolbelt").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("toolbelt_tiles", f"{package}/inference/tiles.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"cv2": cv2}):
        spec.loader.exec_module(module)
    return module


# ---- tiler -----------------------------------------------------------------------------------------------------------


def tiler(image: np.ndarray, model: torch.nn.Module, scale: int, tile: int, halo: int) -> np.ndarray:
    """Tiler and Merger with triangular weights, all in NumPy. A second Tiler describes the larger result; the window
    "overlap-tile", which crops a halo, knows no scale."""
    from tiler import Merger, Tiler

    side = tile + 2 * halo
    small = Tiler(image.shape, (side, side, 3), (2 * halo, 2 * halo, 0), channel_dimension=2, mode="reflect")
    shape = (image.shape[0] * scale, image.shape[1] * scale, 3)
    large = Tiler(shape, (side * scale, side * scale, 3), (2 * halo * scale, 2 * halo * scale, 0), channel_dimension=2)
    merger = Merger(large, window="triang")
    with torch.no_grad():
        for number, window in small(image):
            output = model(_to_tensor(np.ascontiguousarray(window)))[0]
            merger.add(number, output.permute(1, 2, 0).numpy())
    merged = merger.merge(unpad=True, dtype=np.float32)
    return np.rint(np.clip(merged, 0, 1) * 255).astype(np.uint8)


# ---- to and from tensors, as sparingly as torch allows ---------------------------------------------------------------


def _to_tensor(image: np.ndarray, device: str = "cpu") -> torch.Tensor:
    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float().div_(255)


def _to_image(result: torch.Tensor) -> np.ndarray:
    """In place as far as it goes; the memory stays planar."""
    return result.clamp_(0, 1).mul_(255).round_().to(torch.uint8)[0].cpu().permute(1, 2, 0).numpy()


PEERS = {
    "Real-ESRGAN loop": Peer(real_esrgan, "realesrgan"),
    "sum-and-count loop": Peer(sum_and_count),
    "MONAI sliding window": Peer(monai, "monai"),
    "MONAI, gaussian": Peer(partial(monai, mode="gaussian"), "monai"),
    "toolbelt TileMerger": Peer(toolbelt, "pytorch_toolbelt"),
    "tiler": Peer(tiler, "tiler"),
}
