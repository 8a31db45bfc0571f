# SPDX-License-Identifier: MIT
"""Pixels in memory."""
