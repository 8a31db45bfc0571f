# SPDX-License-Identifier: MIT
"""Tiling backends: the C core, torch operations, or Metal kernels."""
