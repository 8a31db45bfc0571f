# SPDX-License-Identifier: MIT
"""The weights of the embedded model. README.md says where they come from."""
