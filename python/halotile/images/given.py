# SPDX-License-Identifier: MIT
"""Results in the kind of the image that was given: Pillow's, xarray's, or an array."""

from __future__ import annotations

from typing import Any

from .lazy import as_labelled, is_labelled
from .pillow import is_picture, picture_like

__all__ = ["as_given"]


def as_given(result: Any, image: Any, layout: str) -> Any:
    """layout: of the image."""
    if is_labelled(image):
        return as_labelled(result, image, layout)
    return picture_like(result, image) if is_picture(image) else result
