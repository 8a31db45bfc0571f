# SPDX-License-Identifier: MIT
"""Are the verbs of a device right? Each is run on small strided arrays, and compared with torch_verbs on the CPU.

`python -m halotile selftest` prints a report (report.py); the engine `mps` runs `differing` before its first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import torch_verbs

__all__ = ["Comparison", "compare", "differing"]

Tensor = torch.Tensor

IMAGES = {
    "u8": torch.uint8,
    "u16": torch.int16,  # words travel as int16
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
WINDOWS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PEAKS = {"u8": 255.0, "u16": 65535.0}

HEIGHT, WIDTH, CHANNELS = 37, 41, 3
STARTS = [-5, 14, 2, 1], [-6, 18, 3, 0]  # of windows 27x30, two by two: origin, step, phase, longer
KEPT = [3, 16, -5, 14, 2, 1, 2, 37], [3, 18, -6, 18, 3, 0, 2, 41]  # what such tiles keep, without a scale
RING = 48  # rows of the band: row 37 - 48 of another image would be the same slot


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    kernel: its name.
    worst: the largest difference, in units in the last place of the destination (steps, for integers).
    """

    kernel: str
    worst: int

    @property
    def fine(self) -> bool:
        """One unit is rounding: a compiler that fuses a product with a sum."""
        return self.worst <= 1


def differing(verbs: Any, device: Any) -> list[str]:
    """The kernels that differ by more than rounding."""
    return [result.kernel for result in compare(verbs, device) if not result.fine]


def compare(verbs: Any, device: Any) -> Iterator[Comparison]:
    """Every kernel of `verbs` on the device, beside torch_verbs on the CPU."""
    generator = torch.Generator().manual_seed(0)
    for image in IMAGES:
        for window in WINDOWS:
            yield Comparison(f"read_{image}_{window}", _compare_read(verbs, device, image, window, generator))
    for output in WINDOWS:
        yield Comparison(f"accumulate_{output}", _compare_accumulate(verbs, device, output, generator))
    for rows in IMAGES:
        yield Comparison(f"finish_{rows}", _compare_finish(verbs, device, rows, generator))


def _compare_read(verbs: Any, device: Any, image: str, window: str, generator: torch.Generator) -> int:
    pixels = _strided(_pixels(IMAGES[image], generator))
    arguments = ([HEIGHT, WIDTH], [0, HEIGHT], *STARTS, 0, 2, PEAKS.get(image, 1.0), 2.0, -0.5)

    def run(verbs: Any, device: Any) -> Tensor:
        windows = torch.zeros((4, CHANNELS, 27, 30), dtype=WINDOWS[window], device=device)
        verbs.read_tiles(windows, _moved(pixels, device), *arguments)
        return windows.cpu()

    return _units(run(verbs, device), run(torch_verbs, "cpu"))


def _compare_accumulate(verbs: Any, device: Any, output: str, generator: torch.Generator) -> int:
    outputs = torch.randn((4, CHANNELS, 27, 30), generator=generator).to(WINDOWS[output])
    outputs = outputs.contiguous(memory_format=torch.channels_last)  # strides of its own
    wy, wx = (torch.rand((2, side), generator=generator) + 0.5 for side in (27, 30))

    def run(verbs: Any, device: Any) -> Tensor:
        band = torch.zeros((CHANNELS, RING, WIDTH), device=device)
        tables = wy.to(device), wx.to(device)
        verbs.accumulate(band, _moved(outputs, device), *tables, [0, 0, HEIGHT, WIDTH], 0, *KEPT, 0)
        return band.cpu()

    return _units(run(verbs, device), run(torch_verbs, "cpu"))


def _compare_finish(verbs: Any, device: Any, rows: str, generator: torch.Generator) -> int:
    sums = torch.randn((CHANNELS, RING, WIDTH), generator=generator)
    sums[1, 45, 7] = torch.nan
    sums[2, 2, 9] = torch.inf
    ny, nx = (torch.rand(side, generator=generator) + 0.5 for side in (2 * RING, WIDTH))
    peak = PEAKS.get(rows, 1.0)

    def run(verbs: Any, device: Any) -> tuple[Tensor, Tensor, Tensor]:
        band, bad = sums.clone().to(device), torch.tensor([0, -1], dtype=torch.int32).to(device)
        target = torch.zeros((30, WIDTH, CHANNELS), dtype=IMAGES[rows], device=device).permute(2, 0, 1)
        where = 40, 0, 0  # rows 40 to 69: they wrap around in the ring
        verbs.finish_rows(target, band, ny.to(device), nx.to(device), bad, *where, peak, 2.0, -0.5, peak > 1)
        return target.cpu(), band.cpu(), bad.cpu()

    got, want = run(verbs, device), run(torch_verbs, "cpu")
    return max(_units(a, b) for a, b in zip(got, want, strict=True))


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _pixels(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    shape = (HEIGHT, WIDTH, CHANNELS)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(dtype)


def _strided(pixels: Tensor) -> Tensor:
    """(C, H, W) from (H, W, C), inside a larger array: no stride and no offset is the obvious one."""
    height, width, channels = pixels.shape
    room = torch.zeros((height + 3, width + 2, channels + 1), dtype=pixels.dtype)
    room[2:-1, 1:-1, 1:] = pixels
    return room[2:-1, 1:-1, 1:].permute(2, 0, 1)


def _moved(tensor: Tensor, device: Any) -> Tensor:
    """The same view of the same memory, on a device."""
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _units(got: Tensor, want: Tensor) -> int:
    """The largest difference in units in the last place; NaN equals NaN."""
    both_nan = torch.isnan(got) & torch.isnan(want) if got.is_floating_point() else torch.zeros_like(got, dtype=bool)
    return int(torch.where(both_nan, 0, (_ordinal(got) - _ordinal(want)).abs()).max())


def _ordinal(values: Tensor) -> Tensor:
    """Whole numbers in the order of the values, neighbours next to each other."""
    if not values.is_floating_point():
        return values.to(torch.int64) & (0xFFFF if values.dtype == torch.int16 else -1)
    bits = {2: torch.int16, 4: torch.int32}[values.element_size()]
    signed = values.contiguous().view(bits).to(torch.int64)
    least = torch.iinfo(bits).min
    return torch.where(signed < 0, least - signed, signed)
