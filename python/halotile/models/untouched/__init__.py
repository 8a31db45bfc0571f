# SPDX-License-Identifier: MIT
"""A model is afterwards what it was: its parameters, buffers, attributes, hooks, mode and device.

    copies.copied        a copy that shares nothing with the model
    copies.shell         a copy with attributes of its own and the model's weights: for passes that nobody asked for
    copies.uncompiled    the module that torch.compile was given
    snapshot.preserved   a context that gives modules everything back: where the user's own modules must run
    kept.tensors_kept    a context that gives them back the tensors that a forward pass replaced or wrote to: around
                         every run

Below them: turns.py, who may look at a module or run it; held.py, what things were before; tensors.py, the tensors of
modules and their values. Nothing here imports torch: where it is not loaded, there is no model of its kind.
"""
