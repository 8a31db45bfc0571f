# SPDX-License-Identifier: MIT
"""halotile's engine `mps` on the emulated device."""

from __future__ import annotations

import ctypes
import os
from types import ModuleType

from . import load

DEVICE = "fakemps"


def attach(argument_bytes: bool = False) -> ModuleType:
    """Makes halotile treat the device as an Apple GPU: with the functions of torch before 2.14, or from it on."""
    fake = load()
    os.environ["HALOTILE_CACHE"] = ""  # self-tests are run, and not kept

    import torch

    from halotile import fragile
    from halotile.engine import hazards, metal

    path = fake.runtime_bytes_path if argument_bytes else fake.runtime_path
    ctypes.CDLL(path)
    metal.LIBRARIES[DEVICE] = ("PrivateUse1", lambda: path)
    metal._failures.pop(DEVICE, None)
    fragile.FRAGILE.add(DEVICE)
    metal.operators(torch.device(DEVICE), "engine")
    hazards.faults_of(torch.device(DEVICE))
    return fake
