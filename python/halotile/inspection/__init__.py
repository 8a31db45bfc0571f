# SPDX-License-Identifier: MIT
"""Inspection of models, `inspect_model`: receptive field, phase, scale and behaviour."""

from typing import TYPE_CHECKING

from .info import Field, GlobalOperation, ModelInfo

if TYPE_CHECKING:
    from .inspect import inspect_model as inspect_model
else:

    def __getattr__(name: str) -> object:
        if name == "inspect_model":  # no run needs it, and it takes its time to be imported
            from .inspect import inspect_model

            return inspect_model
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Field", "GlobalOperation", "ModelInfo", "inspect_model"]
