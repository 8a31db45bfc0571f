# SPDX-License-Identifier: MIT
"""An emulated Apple GPU: a torch device "fakemps" whose memory the host cannot touch, and torch's Metal functions.

`load()` builds it where that is needed and registers it, once in a process; `for_tests()` skips the test where that
cannot be. Both return the module `torch.fakemps`.

As torch.mps has them:
    is_available() device_count() current_device() synchronize() empty_cache() recommended_max_memory()
    driver_allocated_memory()  the most that was live since the cache was emptied
    current_allocated_memory() what is live

What happened, since reset_counts():
    counts()      uploads, upload_bytes, downloads, download_bytes, scalar_reads (also of operations whose result is no
                  tensor or whose size is computed), device_copies, operations, allocations, live_bytes, peak_bytes,
                  largest_allocation, synchronizes, cache_empties, command_blocks, libraries
    transfers()   each upload and download: (direction, bytes, dtype, is the host's tensor contiguous, its offset)
    operators()   how often each operator ran
    launches()    how often each Metal kernel ran
    command_blocks() libraries()

What must never happen:
    violations()       all of them as text, also those that were raised as RuntimeError or returned as an error
    take_violations()  the same, and forgets them

Settings, which reset_settings() puts back:
    set_memory_limit(bytes or None)      an allocation that takes live bytes above it raises as torch's would
    set_recommended_max_memory(bytes)    16 GiB
    set_tensor_limit(n)                  2**31: the least number of elements, or bytes, that no tensor may have; 0: none
    set_group_limit(n)                   1024: threads in a launch's group
    set_threads(on)                      False: whether several threads may use a device at a time
    set_busy(microseconds)               0: how long the device is in use at least, each time
    set_wrong_views(on)                  False: whether convolutions of views are right for the first of a batch only
    set_wrong_kernels(on)                False: whether those with kernels of 256 and more are wrong
    set_wrong_channels_last(on)          False: whether those of channels_last tensors are wrong
    set_guard(on)                        new allocations end at a page that faults; on if FAKE_MPS_GUARD=1

To call the runtime directly:
    runtime_path, runtime_bytes_path     libraries to dlopen: before torch 2.14, and from it on
    handle_of(tensor), free_handle(n)    an AtenTensorHandle of its own, as an integer
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType

import pytest


@functools.cache
def load() -> ModuleType:
    import importlib.util

    import torch

    from . import build

    folder = build.build()
    torch.utils.rename_privateuse1_backend("fakemps")
    spec = importlib.util.spec_from_file_location("fake_mps_device", folder / build.DEVICE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.handle_of, module.free_handle = torch.ops.fake_mps.handle_of, torch.ops.fake_mps.free_handle
    module.runtime_path = str(folder / build.RUNTIME)
    module.runtime_bytes_path = str(folder / build.RUNTIME_BYTES)
    torch._register_device_module("fakemps", module)
    torch._tensor_str.tensor_totype = printed_as(torch._tensor_str.tensor_totype)
    put_back = module.reset_settings

    def reset_settings() -> None:
        put_back()
        module.set_guard(os.environ.get("FAKE_MPS_GUARD") == "1")

    module.reset_settings = reset_settings
    reset_settings()
    return module


def printed_as(usual: Callable) -> Callable:
    """What torch converts numbers to in order to print them: not float64, as for mps."""
    return lambda t: t.float() if t.device.type == "fakemps" else usual(t)


def for_tests() -> ModuleType:
    """`load()`, or the reason to skip: no torch, no compiler."""
    pytest.importorskip("torch")
    from .build import NoCompiler

    try:
        return load()
    except NoCompiler as missing:
        pytest.skip(str(missing))
