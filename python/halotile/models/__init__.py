# SPDX-License-Identifier: MIT
"""A name, a file or a callable becomes a model of windows."""
