# SPDX-License-Identifier: MIT
"""Who reads windows, adds tiles up and finishes rows: the C core, torch operations, or Metal kernels."""
