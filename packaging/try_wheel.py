# SPDX-License-Identifier: MIT
"""Whether an installed halotile restores an image: in tiles by NumPy, and by the embedded model if torch is there."""

import importlib.util
import os

import numpy as np

import halotile


def blur(windows):
    """The mean of 5x5 pixels, of a batch (N, C, H, W) whose edges are repeated."""
    padded = np.pad(windows, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (2, 3)).mean((4, 5), dtype=np.float32)


def main():
    image = np.random.default_rng(0).random((201, 330, 3), np.float32)
    got = halotile.restore_tiled(image, blur, tile_size=64, halo=2, boundary="native")
    want = blur(image.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    print(f"halotile {halotile.__version__} at {os.path.dirname(halotile.__file__)}: tiles are exact")
    if importlib.util.find_spec("torch"):
        run = halotile.TiledRestorer(halotile.load_model(), halo="exact", verify=4)
        run(image)
        print(f"with torch: {run.last_run.verified}")


if __name__ == "__main__":
    main()
