# SPDX-License-Identifier: MIT
"""Comparisons after a run."""
