# SPDX-License-Identifier: MIT
"""Hostile files: a corpus over every reader, and what runs it.

    case.py        a case, and damage that any file can take
    images.py      PNG, JPEG, WebP, TIFF, AVIF, JPEG XL, HEIC
    arrays.py      .npy, zarr
    checkpoints.py pickles and safetensors
    programs.py    TorchScript, torch.export, ONNX, ncnn
    zygote.py      the process that forks a child for each case
    run.py         runs cases and judges them

`python -m tests.hostile` runs all of them and prints a table; `--each N` makes them fewer.
"""
