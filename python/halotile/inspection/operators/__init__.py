# SPDX-License-Identifier: MIT
"""Rules for ATen operators: one table, with an entry for each operator, by family. Imports torch.

Functions are named after the operator and their result: `*_rows` (row maps, rows.py), `*_positions` (positions.py),
`*_statistic` (statistic.py). The entries are at the end of each family's file.
"""

from . import (  # noqa: F401 - they add their operators to the table
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
