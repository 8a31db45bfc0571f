# SPDX-License-Identifier: MIT
"""The schedule that runs a torch module on strips of rows, each row of each layer once."""
