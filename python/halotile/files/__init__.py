# SPDX-License-Identifier: MIT
"""Pixels on disk: what is read, what is written, and how files are replaced."""
