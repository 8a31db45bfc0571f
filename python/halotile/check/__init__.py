# SPDX-License-Identifier: MIT
"""Was it right: comparisons after a run."""
