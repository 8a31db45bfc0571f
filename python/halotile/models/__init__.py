# SPDX-License-Identifier: MIT
"""Models: opened from files, called on batches of windows, and left unchanged.

From a name or file to a callable
    load.py         `load_model`: recognises files by their first bytes; catalog.py: known models
    checkpoint.py, exported.py, onnx.py, embedded.py, ncnn/    one file format each; descriptor.py: spandrel's
    needs.py        size constraints of model files
From a callable to windows and outputs
    kinds.py        `open_model`: wraps a model by its kind
    model.py        `Model` on arrays, `TensorModel` on tensors, `EitherModel`; outputs.py: checks their outputs
    modules.py      device, dtype and convolutions of torch modules; devices.py: devices that torch can use
    activations.py  size of a model's activations
    recalled.py     records of this process about a model
Leaving models and the process unchanged
    untouched/      copies of modules, and contexts that restore them
    modes.py        eval mode while a module runs
    around.py       random state, warnings and settings of the process
    reach.py        all modules that a callable can reach
"""
