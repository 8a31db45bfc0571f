# SPDX-License-Identifier: MIT
"""Inspection of models, `inspect_model`: receptive field, phase, scale and behaviour."""

from .info import Field, GlobalOperation, ModelInfo
from .inspect import inspect_model

__all__ = ["Field", "GlobalOperation", "ModelInfo", "inspect_model"]
