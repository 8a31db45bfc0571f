# SPDX-License-Identifier: MIT
"""Checks the verbs of a device: each runs on small strided arrays and is compared with torch_verbs on the CPU.

Test values make every step exact in float32, so results must agree bit for bit. In one case image values are divided by
255; there one unit in the last place may differ.

`python -m halotile selftest` prints a report (report.py); the engine `mps` runs `differing` before its first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import torch_verbs

__all__ = ["VERSION", "Comparison", "compare", "differing"]

VERSION = 2  # of the comparison; cached results of other versions are ignored

Tensor = torch.Tensor

IMAGES = {
    "u8": torch.uint8,
    "u16": torch.int16,  # transferred as int16
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
}
WINDOWS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
INTEGERS = {"u8": 255.0, "u16": 65535.0}  # with their white

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    worst: largest difference in units in the last place of the destination (steps for integers).
    tolerance: 1 if rounded values may differ, else 0.
    """

    kernel: str
    worst: int
    tolerance: int = 0

    @property
    def fine(self) -> bool:
        return self.worst <= self.tolerance


def differing(verbs: Any, device: torch.device) -> list[str]:
    return [result.kernel for result in compare(verbs, device) if not result.fine]


def compare(verbs: Any, device: torch.device) -> Iterator[Comparison]:
    generator = torch.Generator(device="cpu").manual_seed(0)
    for image in IMAGES:
        for window in WINDOWS:
            yield _result(f"read_{image}_{window}", _reads(image, window, generator), verbs, device)
    for output in WINDOWS:
        yield _result(f"accumulate_{output}", _sums(output, generator), verbs, device)
    for rows in IMAGES:
        yield _result(f"finish_{rows}", _ends(rows, generator), verbs, device)


# Runs verbs on a device and returns what they wrote; with its tolerance.
Case = tuple[Callable[[Any, Any], list[Tensor]], int]


def _result(kernel: str, cases: Iterator[Case], verbs: Any, device: torch.device) -> Comparison:
    result = Comparison(kernel, 0)
    for case, tolerance in cases:
        pairs = zip(case(verbs, device), case(torch_verbs, CPU), strict=True)
        worst = max(_units(got, want) for got, want in pairs)
        if worst - tolerance > result.worst - result.tolerance or worst > result.worst:
            result = Comparison(kernel, worst, tolerance)
        if not result.fine:
            break
    return result


# ---- read ------------------------------------------------------------------------------------------------------------


def _reads(image: str, window: str, generator: torch.Generator) -> Iterator[Case]:
    starts = [-5, 14, 2, 1], [-6, 18, 3, 0]
    exact = 1.0, 2.0, -0.5
    far = [-150, 0, 0, 0], [77, 0, 0, 0]  # reflected several times
    # size, strip, window starts, first tile, tiles in a row, (windows, channels), (peak, gain, offset)
    yield _read(image, window, generator, (37, 41), (0, 37), starts, 0, 2, (4, 3), exact), 0
    yield _read(image, window, generator, (37, 41), (9, 30), starts, 3, 2, (2, 1), (4.0, 1.0, 0.0)), 0
    yield _read(image, window, generator, (13, 19), (0, 13), far, 0, 1, (1, 4), (1.0, 1.0, 0.0)), 0
    yield _read(image, window, generator, (1, 2), (0, 1), starts, 1, 3, (2, 3), (1.0, 1.0, -0.25)), 0
    yield _read(image, window, generator, (37, 41), (0, 37), starts, 0, 2, (4, 3), (255.0, 1.0, 0.0)), 1


def _read(
    image: str,
    window: str,
    generator: torch.Generator,
    size: tuple[int, int],
    strip: tuple[int, int],
    starts: tuple[list[int], list[int]],
    first: int,
    across: int,
    shape: tuple[int, int],
    values: tuple[float, float, float],
) -> Callable[[Any, Any], list[Tensor]]:
    batch, channels = shape
    whole = _pixels(IMAGES[image], (*size, channels), generator)
    pixels = _strided(whole)[:, strip[0] : strip[1]]

    def run(verbs: Any, device: torch.device) -> list[Tensor]:
        windows = torch.zeros((batch, channels, 27, 30), dtype=WINDOWS[window], device=device)
        verbs.read_tiles(windows, _moved(pixels, device), size, strip, *starts, first, across, *values)
        return [windows.cpu()]

    return run


# ---- accumulate ------------------------------------------------------------------------------------------------------


def _sums(output: str, generator: torch.Generator) -> Iterator[Case]:
    """3 x 2 tiles of 27x30 in a ring of 40 rows that wraps around: the first batch, one across a row's end, and a
    panel of columns."""
    for first, tiles, box, band_x in [
        (0, 4, [0, 0, 37, 41], 0),
        (3, 3, [16, 0, 37, 41], 0),
        (1, 1, [2, 25, 9, 12], 23),
    ]:
        outputs = _dyadic((tiles, 3, 27, 30), generator).to(WINDOWS[output])
        yield _sum(outputs.contiguous(memory_format=torch.channels_last), generator, box, band_x, first), 0


def _sum(
    outputs: Tensor, generator: torch.Generator, box: list[int], band_x: int, first: int
) -> Callable[[Any, Any], list[Tensor]]:
    kept = [3, 18, -5, 14, 2, 1, 3, 50], [3, 20, -6, 18, 3, 0, 2, 41]
    wy, wx = (_dyadic((tiles, 40), generator).abs() + 0.5 for tiles in (3, 2))
    sums = _dyadic((3, 40, 41 - band_x), generator)

    def run(verbs: Any, device: torch.device) -> list[Tensor]:
        band = sums.clone().to(device)
        tables = wy.to(device), wx.to(device)
        verbs.accumulate(band, _moved(outputs, device), *tables, box, band_x, *kept, first)
        return [band.cpu()]

    return run


# ---- finish ----------------------------------------------------------------------------------------------------------


def _ends(rows: str, generator: torch.Generator) -> Iterator[Case]:
    peak = 64.0 if rows in INTEGERS else 1.0  # sums are multiples of 1/128, so half of them fall between integers
    clamps = [True] if rows in INTEGERS else [False, True]
    for clamp in clamps:
        yield _end(rows, generator, (40, 3, 2), (peak, 1.0, 0.0, clamp)), 0
        yield _end(rows, generator, (8, 0, 0), (peak, 2.0, -0.5, clamp)), 0
    yield _end(rows, generator, (40, 0, 0), (INTEGERS.get(rows, 1.0), 1.0, 0.0, True)), 1


def _end(
    rows: str, generator: torch.Generator, where: tuple[int, int, int], values: tuple[float, float, float, bool]
) -> Callable[[Any, Any], list[Tensor]]:
    """The rows wrap around in a ring of 48."""
    _, x, band_x = where
    sums = torch.randint(-100, 300, (3, 48, 41 - band_x), generator=generator, device="cpu").to(torch.float32) / 128
    sums[1, 45, 7] = torch.nan
    sums[2, 10, 9] = torch.inf
    ny, nx = (2.0 ** torch.randint(-2, 2, (side,), generator=generator, device="cpu") for side in (96, 41))

    def run(verbs: Any, device: torch.device) -> list[Tensor]:
        band, bad = sums.clone().to(device), torch.tensor([0, -1], dtype=torch.int32, device="cpu").to(device)
        target = torch.zeros((30, 41 - x, 3), dtype=IMAGES[rows], device=device).permute(2, 0, 1)
        verbs.finish_rows(target, band, ny.to(device), nx.to(device), bad, *where, *values)
        return [target.cpu(), band.cpu(), bad.cpu()]

    return run


# ---- arrays ----------------------------------------------------------------------------------------------------------


def _dyadic(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 values with few bits: exact in half precision, as are their products and short sums."""
    return torch.randint(-32, 33, shape, generator=generator, device="cpu").to(torch.float32) / 8


def _pixels(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if dtype == torch.float32:  # too many bits for half precision, with ties; doubling is exact
        return torch.randint(-(2**20), 2**20, shape, generator=generator, device="cpu").to(dtype) / 2**16
    if dtype.is_floating_point:
        return _dyadic(shape, generator).to(dtype)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, generator=generator, device="cpu").to(dtype)


def _strided(pixels: Tensor) -> Tensor:
    """(C, H, W) as a view into a larger (H, W, C) array, with unusual strides and offset."""
    height, width, channels = pixels.shape
    room = torch.zeros((height + 3, width + 2, channels + 1), dtype=pixels.dtype, device="cpu")
    room[2:-1, 1:-1, 1:] = pixels
    return room[2:-1, 1:-1, 1:].permute(2, 0, 1)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    whole = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(tensor.untyped_storage()).to(device)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _units(got: Tensor, want: Tensor) -> int:
    """The largest difference in units in the last place; NaN equals NaN."""
    both_nan = torch.isnan(got) & torch.isnan(want) if got.is_floating_point() else torch.zeros_like(got, dtype=bool)
    return int(torch.where(both_nan, 0, (_ordinal(got) - _ordinal(want)).abs()).max())


def _ordinal(values: Tensor) -> Tensor:
    """Maps values to consecutive integers in the same order."""
    if not values.is_floating_point():
        return values.to(torch.int64) & (0xFFFF if values.dtype == torch.int16 else -1)
    bits = {2: torch.int16, 4: torch.int32}[values.element_size()]
    signed = values.contiguous().view(bits).to(torch.int64)
    least = torch.iinfo(bits).min
    return torch.where(signed < 0, least - signed, signed)
