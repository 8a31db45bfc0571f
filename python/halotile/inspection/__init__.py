# SPDX-License-Identifier: MIT
"""What a model needs and does, found by measurement: `inspect_model`."""

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
