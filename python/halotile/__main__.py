# SPDX-License-Identifier: MIT
"""``python -m halotile``: the command line."""

import sys

from .cli import main

sys.exit(main())
