# SPDX-License-Identifier: MIT
"""An image's windows through a model, and its tiles into finished rows: nothing here decides what an option is."""
