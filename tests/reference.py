# SPDX-License-Identifier: MIT
"""Independent NumPy twins of the C stages, and whole-image inference: what tests compare with. Slow and plain."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

F32 = np.float32


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bits of bfloat16, to nearest even."""
    bits = np.asarray(values, F32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(F32)


def reflect_index(index: int, size: int) -> int:
    """By walking: turn round at every edge."""
    at, step = 0, 1 if index > 0 else -1
    for _ in range(abs(index)):
        if size == 1:
            return 0
        if not 0 <= at + step < size:
            step = -step
        at += step
    return at


def read(image: np.ndarray, y: int, x: int, height: int, width: int, peak=1.0, gain=1.0, offset=0.0) -> np.ndarray:
    """image (C, H, W) -> float32 window (C, height, width)."""
    rows = [reflect_index(i, image.shape[1]) for i in range(y, y + height)]
    columns = [reflect_index(i, image.shape[2]) for i in range(x, x + width)]
    values = image[:, rows][:, :, columns].astype(F32)
    if peak != 1:
        values = values / F32(peak)
    if (gain, offset) != (1, 0):
        values = values * F32(gain) + F32(offset)
    return values


def accumulate(sums: np.ndarray, source: np.ndarray, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    return sums + (wy[:, None] * wx[None, :]) * source.astype(F32)


def finish(source, ny, nx, dtype, peak=1.0, gain=1.0, offset=0.0, clamp=False) -> np.ndarray:
    values = source.astype(F32) + F32(0)
    if nx is not None:
        values = values / (ny[:, None] * nx[None, :])
    if (gain, offset) != (1, 0):
        values = (values - F32(offset)) / F32(gain)
    if peak != 1:
        values = values * F32(peak)
    if clamp or np.dtype(dtype).kind == "u":
        values = np.where(values > 0, values, F32(0))
        values = np.where(values < F32(peak), values, F32(peak))
    if np.dtype(dtype).kind == "u":
        return np.rint(values).astype(dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def ramp(blend: str, t: float) -> float:
    return {
        "average": 1.0,
        "linear": t,
        "cosine": math.sin(math.pi / 2 * t) ** 2,
        "gaussian": math.exp(-0.5 * (3 * (1 - t)) ** 2),
    }[blend]


def axis_weights(keeps: list[tuple[int, int]], i: int, blend: str) -> np.ndarray:
    """From the keep ranges alone: 1, and ramps over the overlaps with the neighbours."""
    start, stop = keeps[i]
    before = keeps[i - 1][1] - start if i else 0
    after = stop - keeps[i + 1][0] if i + 1 < len(keeps) else 0
    weights = []
    for at in range(stop - start):
        left = ramp(blend, (at + 0.5) / before) if at < before else 1.0
        right = ramp(blend, (stop - start - at - 0.5) / after) if stop - start - at - 1 < after else 1.0
        weights.append(left * right)
    return np.array(weights, F32)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def whole(image: np.ndarray, model, *, halo=0, phase=1, scale=1, boundary="reflect", trim=0) -> np.ndarray:
    """Whole-image inference: image float32 (C, H, W), model on arrays (1, C, H, W), the design's oracle.

    reflect: crop(model(reflect_pad(image, halo))); native: model(image), completed to the phase by reflection."""
    scales = [Fraction(one) for one in (scale if isinstance(scale, tuple) else (scale, scale))]
    before = [round_up(halo, phase) if boundary == "reflect" else 0] * 2
    sides = image.shape[1:]
    after = [
        round_up(b + side + (halo if boundary == "reflect" else 0), phase) - b - side
        for b, side in zip(before, sides, strict=True)
    ]
    padded = np.pad(image, ((0, 0), (before[0], after[0]), (before[1], after[1])), mode="reflect")
    output = model(padded[None])[0]
    y, x = (int(b * by) - trim for b, by in zip(before, scales, strict=True))
    height, width = (math.ceil(side * by) for side, by in zip(sides, scales, strict=True))
    return output[:, y : y + height, x : x + width]
