# SPDX-License-Identifier: MIT
"""Running or inspecting a model leaves it unchanged: parameters, buffers, attributes, hooks.

    copies.copied        a copy that shares nothing with the model
    copies.shell         a copy that shares the model's weights and has its own attributes
    copies.uncompiled    the module that was passed to torch.compile
    snapshot.preserved   a context that restores everything, for modules that cannot be copied
    kept.tensors_kept    a context that restores tensors that a run replaced or wrote to; around every run

These are built on turns.py (which thread may inspect or run a module), saved.py (saved states that threads share) and
tensors.py (a module's tensors and their values). No module here imports torch before a model needs it.
"""
