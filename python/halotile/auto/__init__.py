# SPDX-License-Identifier: MIT
"""Replaces every option that is "auto" or None by a number, with a reason."""
