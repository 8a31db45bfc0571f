# SPDX-License-Identifier: MIT
"""Pixels on disk, one file for each format."""
