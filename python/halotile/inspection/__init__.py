# SPDX-License-Identifier: MIT
"""What a model needs and does, found by measurement: `inspect_model`."""

from .info import Field, GlobalOperation, ModelInfo
from .inspect import inspect_model

__all__ = ["Field", "GlobalOperation", "ModelInfo", "inspect_model"]
