# SPDX-License-Identifier: MIT
"""What leaves a file behind if it is unpickled: the sign that code in an input was run."""

from __future__ import annotations

import os
from typing import Any


class Marker:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("marker",)
