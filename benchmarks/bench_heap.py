# SPDX-License-Identifier: MIT
"""What does a pixel cost a model, by window, memory format and heap, in the first thread and in another?

One process; the heap as it is found comes first, since one that was kept before leaves its traces. Seconds are of
processor time on one thread.
"""

from __future__ import annotations

from threading import Thread
from time import process_time
from typing import Any

import torch
from common import memory, save
from models import Compact, Denoiser, window_cost
from torch import nn

from halotile.run import kept_heap as heap


def costs_by_window() -> dict[str, dict[str, float]]:
    """Microseconds a pixel of the compact network alone, in the first thread and in another, and MiB that the process
    grew by."""
    torch.manual_seed(0)
    model, found = Compact().eval(), {}
    settings = [(torch.contiguous_format, False), (torch.channels_last, False), (torch.contiguous_format, True)]

    def go(where: str) -> None:
        for layout, keep in [*settings, (torch.channels_last, True)]:
            lies = str(layout).removeprefix("torch.").removesuffix("_format")
            key = f"{where}, {lies}, heap {'kept' if keep else 'default'}"
            found[key] = {str(side): 1e6 * window_cost(model, side, layout, keep) for side in (128, 256, 384, 512)}
            print(key, {side: round(cost, 2) for side, cost in found[key].items()}, flush=True)

    go("first thread")
    thread = Thread(target=go, args=("another thread",))
    thread.start()
    thread.join()
    return found


def heights() -> dict[str, float]:
    """MiB that a process holds before, during and after the heap is kept, with windows of 512."""
    model, before = Compact().eval(), memory()[0]
    with heap.kept():
        window_cost(model, 512, torch.channels_last, True)
        inside = memory()[0]
    return {"before": before / 2**20, "inside": inside / 2**20, "after": memory()[0] / 2**20}


def half(model: nn.Module, dtype: torch.dtype) -> float:
    """Of the time in float32, windows of 256."""
    sides = (model, torch.float32), (model.to(dtype), dtype)
    costs = []
    for one, kind in sides:
        window = torch.rand(1, 3, 256, 256).to(kind).contiguous(memory_format=torch.channels_last)
        one.to(kind)
        with torch.inference_mode():
            one(window)
            start = process_time()
            one(window)
            costs.append(process_time() - start)
    return costs[1] / costs[0]


def main() -> None:
    torch.set_num_threads(1)
    costs: dict[str, Any] = costs_by_window()
    halves = {make.__name__: half(make().eval(), torch.bfloat16) for make in (Compact, Denoiser)}
    save("heap", {"microseconds_a_pixel": costs, "memory_MiB": heights(), "bfloat16_over_float32": halves})


if __name__ == "__main__":
    main()
