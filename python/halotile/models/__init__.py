# SPDX-License-Identifier: MIT
"""Models: opened from files, called on batches of windows, and left unchanged.

From a name or file to a callable
    load.py         `load_model`: recognises files by their first bytes; catalog.py: models known by name
    checkpoint.py, exported.py, onnx.py, embedded.py, ncnn/    one kind of file each; descriptor.py: spandrel's
    needs.py        what a file says about windows
From a callable to windows and outputs
    kinds.py        `open_model`: which kind of model it is
    model.py        `Model` on arrays, `TensorModel` on tensors, `EitherModel`; outputs.py: what they may return
    modules.py      device, dtype and convolutions of torch modules; devices.py: which devices torch can use
    activations.py  how large the tensors are that a model makes
    recalled.py     what this process found out about a model
Nothing changes
    untouched/      copies of modules, and contexts that restore them
    modes.py        eval mode while a module runs
    around.py       random numbers, warnings and settings of the process
    reach.py        all modules that a callable can reach
"""
