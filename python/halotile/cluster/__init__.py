# SPDX-License-Identifier: MIT
"""restore_to(cluster=...): one image over many workers. Dask schedules and carries, zarr stores. `halotile[dask]`.

settle    one worker opens image and model, and replaces every option by a number          settle.py
cut       the result's shards into blocks: bands of rows, and columns where rows are few    blocks.py, work.py
run       each block by the ordinary schedule, from rows above it; its shards, each once    blockrun.py, worker.py
conduct   who makes which block, what became of it, what is missing                          conduct.py
"""
