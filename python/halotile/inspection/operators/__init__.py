# SPDX-License-Identifier: MIT
"""What is known of ATen operators: one entry for each in one table, by family. Imports torch.

Functions are named after the operator and what they tell: `*_rows` (row maps, rows.py), `*_positions` (positions.py),
`*_statistic` (statistic.py). The entries stand at the end of each family's file.
"""

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
from .table import OPERATORS, Operator, RowRule, entry

__all__ = ["OPERATORS", "Aligned", "Operation", "Operator", "RowRule", "entry"]
