# SPDX-License-Identifier: MIT
"""Runs an image's windows through a model and blends the tiles into finished rows; all options are decided before."""
