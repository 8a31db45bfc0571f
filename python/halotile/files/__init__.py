# SPDX-License-Identifier: MIT
"""Image files and arrays on disk: reading, writing and atomic replacement."""
