# SPDX-License-Identifier: MIT
"""Chooses the engine for a model; engine.py describes what an engine does."""

from __future__ import annotations

import os

from ..models.model import Model, TensorModel
from ..option_checks import choice
from ..options import ENGINES
from .engine import Engine
from .host import HostEngine

__all__ = ["asked_engine", "engine_beside", "engine_for"]


def asked_engine(option: str | None) -> str | None:
    by_environment = os.environ.get("HALOTILE_ENGINE")
    if option is not None or not by_environment:
        return option
    return choice("HALOTILE_ENGINE", by_environment, ENGINES)


def engine_for(model: Model, option: str | None) -> Engine:
    """The engine for a model.

    By default: host for models on arrays and on the CPU, mps on an Apple GPU if its self-test passes, torch elsewhere.

    Raises:
        ValueError: the requested engine cannot serve this model. RuntimeError: it does not work on this machine.
    """
    asked = asked_engine(option)
    name = "engine" if option else "HALOTILE_ENGINE"
    on_tensors = isinstance(model, TensorModel)
    if asked == "host" or (asked is None and not (on_tensors and model.device.type != "cpu")):
        return HostEngine()
    if not on_tensors:
        raise ValueError(f"{name} must be 'host' for a model on arrays, not {asked!r}")
    from . import metal
    from .device import DeviceEngine

    if asked == "mps" or (asked is None and metal.serves(model.device)):
        operators = metal.operators(model.device, name if asked else None)
        if operators is not None:
            return DeviceEngine("mps", model.device, operators)
    from . import torch_verbs

    return DeviceEngine("torch", model.device, torch_verbs)


def engine_beside(first: Engine, model: TensorModel) -> Engine:
    if first.device is None:
        return first
    from . import torch_verbs
    from .device import DeviceEngine

    return DeviceEngine("torch", model.device, torch_verbs)
