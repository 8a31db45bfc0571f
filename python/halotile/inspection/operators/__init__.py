# SPDX-License-Identifier: MIT
"""What is known of ATen operators, by family. Imports torch."""

from . import (  # noqa: F401 - they enter their operators into the table
    convolutions,
    elementwise,
    fourier,
    movements,
    normalisation,
    padding,
    patches,
    pooling,
    products,
    reductions,
    resampling,
    reshaping,
)
from .rows import Aligned, Operation
from .table import RULES, Rule

__all__ = ["RULES", "Aligned", "Operation", "Rule"]
