# SPDX-License-Identifier: MIT
"""Pictures for notebooks and reports, made of numbers and arrays: nothing here knows models or runs."""
