# SPDX-License-Identifier: MIT
"""read_tiles, accumulate and finish_rows in plain torch operations, for any device.

They are the reference for the operators `torch.ops.halotile.*` and take the same arguments, explained in
csrc/torch/operators.cpp. They use only operations that are reliable on every device: no padding, no fused or scattered
writes, only add_ and copy_ write to views, and only copies and index_select read views of an Apple GPU. Nothing waits
for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..fragile import dense

__all__ = ["accumulate", "finish_rows", "read_tiles"]

Tensor = torch.Tensor
Ints = Sequence[int]

PIECE = 1 << 24  # elements per step of finish_rows; bounds its temporaries


def read_tiles(
    windows: Tensor,
    image: Tensor,
    size: Ints,
    strip: Ints,
    rows: Ints,
    columns: Ints,
    first: int,
    across: int,
    peak: float,
    gain: float,
    offset: float,
) -> None:
    height, width = windows.shape[2:]
    for k, window in enumerate(windows):
        row, column = divmod(first + k, across)
        y, x = _start(rows, row), _start(columns, column)
        part = _reflected(image, 2, x, width, size[1])
        if strip[0] == 0 and strip[1] == size[0]:
            window.copy_(_scaled(_reflected(part, 1, y, height, size[0]), peak, gain, offset))
            continue
        for at, source, count in _runs_in_strip(y, height, size[0], strip):
            rows_of = part.narrow(1, source, count)
            window.narrow(1, at, count).copy_(_scaled(rows_of, peak, gain, offset))


def _start(starts: Ints, i: int) -> int:
    origin, step, phase, longer = starts
    return origin + i * step + min(i, longer) * phase


def _reflected(image: Tensor, axis: int, start: int, count: int, size: int) -> Tensor:
    """Pixels [start, start + count), reflected where they leave [0, size)."""
    if start >= 0 and start + count <= size:
        return image.narrow(axis, start, count)
    at = torch.arange(start, start + count, device=image.device)
    if size == 1:
        at = torch.zeros_like(at)
    else:
        period = 2 * (size - 1)
        at = torch.remainder(at, period)
        at = torch.where(at < size, at, period - at)
    return image.index_select(axis, at)


def _runs_in_strip(start: int, count: int, size: int, strip: Ints) -> Iterator[tuple[int, int, int]]:
    """Runs (first window row, first row of the strip, rows) of the window rows found in the strip.

    Reflected rows run backwards, so they come one by one; there are at most a few halos of them.
    """
    at = 0
    while at < count:
        y = start + at
        if 0 <= y < size:
            run = min(count - at, size - y)
            begin, end = max(y, strip[0]), min(y + run, strip[1])
            if begin < end:
                yield at + begin - y, begin - strip[0], end - begin
            at += run
        else:
            period = max(2 * (size - 1), 1)
            y %= period
            y = y if y < size else period - y
            if strip[0] <= y < strip[1]:
                yield at, y - strip[0], 1
            at += 1


def _scaled(pixels: Tensor, peak: float, gain: float, offset: float) -> Tensor:
    values = _words(dense(pixels)).to(torch.float32)
    if peak != 1:
        values = values / _divisor(values, peak)
    if gain != 1 or offset != 0:
        values = values * gain
        values = values + offset
    return values


def _words(pixels: Tensor) -> Tensor:
    """Undoes the transfer of 16-bit integers as int16."""
    return pixels.to(torch.int32) & 0xFFFF if pixels.dtype == torch.int16 else pixels


def _divisor(like: Tensor, value: float) -> Tensor:
    """A divisor on the device: some devices replace division by a host scalar with its reciprocal, which rounds
    differently."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def accumulate(
    band: Tensor,
    outputs: Tensor,
    wy: Tensor,
    wx: Tensor,
    box: Ints,
    band_x: int,
    rows: Ints,
    columns: Ints,
    first: int,
) -> None:
    across, ring = columns[6], band.shape[1]
    for k, output in enumerate(outputs):
        row, column = divmod(first + k, across)
        y0, y1, oy = _kept(rows, row)
        x0, x1, ox = _kept(columns, column)
        left, right = max(x0, box[1]), min(x1, box[1] + box[3])
        if left >= right:
            continue
        weight_x = wx[column].narrow(0, left - x0, right - left)
        for y, slot, count in _ring(max(y0, box[0]), min(y1, box[0] + box[2]), ring):
            weight = wy[row].narrow(0, y - y0, count)[:, None] * weight_x
            part = dense(output.narrow(1, y - oy, count).narrow(2, left - ox, right - left)).to(torch.float32)
            band.narrow(1, slot, count).narrow(2, left - band_x, right - left).add_(weight * part)


def _kept(axis: Ints, i: int) -> tuple[int, int, int]:
    """Start and stop of the pixels kept from tile i, and the start of its output; output pixels."""
    start, length, origin, step, phase, longer, tiles, size = axis
    moved = i * step + min(i, longer) * phase
    return (0 if i == 0 else start + moved), (size if i == tiles - 1 else start + length + moved), origin + moved


def _ring(start: int, stop: int, ring: int) -> Iterator[tuple[int, int, int]]:
    """Yields runs (first row, ring row, rows)."""
    while start < stop:
        slot = start % ring
        count = min(stop - start, ring - slot)
        yield start, slot, count
        start += count


def finish_rows(
    rows: Tensor,
    band: Tensor,
    ny: Tensor,
    nx: Tensor,
    bad: Tensor,
    y: int,
    x: int,
    band_x: int,
    peak: float,
    gain: float,
    offset: float,
    clamp: bool,
) -> None:
    channels, height, width = rows.shape
    piece = max(1, PIECE // (channels * width))
    weight_x = nx.narrow(0, x, width)
    for start in range(y, y + height, piece):
        for row, slot, count in _ring(start, min(start + piece, y + height), band.shape[1]):
            sums = band.narrow(1, slot, count).narrow(2, x - band_x, width)
            quotients = dense(sums) / (ny.narrow(0, row, count)[:, None] * weight_x)
            sums.copy_(torch.zeros((), device=band.device))
            _note_bad(bad, quotients, (row - y) * width * channels)
            _store(rows.narrow(1, row - y, count), _resolved(quotients, peak, gain, offset, clamp))


def _note_bad(bad: Tensor, quotients: Tensor, base: int) -> None:
    """Counts NaN and infinity, and records the lowest index in (row, column, channel) order, without waiting."""
    found = ~dense(torch.isfinite(quotients).permute(1, 2, 0))
    _, width, channels = found.shape
    row = _first(found.any(2).any(1))
    in_row = found.index_select(0, row)[0]
    column = _first(in_row.any(1))
    channel = _first(in_row.index_select(0, column)[0])
    index = (((row * width + column) * channels + channel) + base).to(torch.int32)[0]
    count = found.sum(dtype=torch.int32)
    unsigned_less = (bad[1] < 0) | (index < bad[1])  # as unsigned, -1 is the largest
    least = torch.where((count > 0) & unsigned_less, index, bad[1])
    bad[0].add_(count)
    bad[1].copy_(least)


def _first(flags: Tensor) -> Tensor:
    return flags.to(torch.uint8).argmax().reshape(1)


def _resolved(q: Tensor, peak: float, gain: float, offset: float, clamp: bool) -> Tensor:
    if gain != 1 or offset != 0:
        q = q - offset
        q = q / _divisor(q, gain)
    if peak != 1:
        q = q * peak
    if clamp:
        q = torch.where(q > 0, q, torch.zeros_like(q))  # also replaces -0 and NaN
        q = torch.where(q < peak, q, torch.full_like(q, peak))
    return q


def _store(rows: Tensor, values: Tensor) -> None:
    if rows.dtype == torch.uint8:
        values = values.round().to(torch.uint8)
    elif rows.dtype == torch.int16:
        words = values.round().to(torch.int32)
        values = (words - (words > 0x7FFF).to(torch.int32) * 0x10000).to(torch.int16)
    rows.copy_(values.to(rows.dtype))
