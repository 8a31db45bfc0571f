# SPDX-License-Identifier: MIT
"""Goes on where an earlier run ended, if the result is the one that it would have had."""
