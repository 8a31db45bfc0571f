# SPDX-License-Identifier: MIT
"""Every option that is "auto" or None becomes a number, with a reason."""
