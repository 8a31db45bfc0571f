# SPDX-License-Identifier: MIT
"""Camera-like noise and JPEG artefacts, drawn from a numpy generator."""

import io

import numpy as np
from numpy.random import Generator
from PIL import Image

MARGIN = 16  # pixels around a patch, so that it lies anywhere on the grid of JPEG blocks
SIGMA_MAX = 50.0


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Rounds an image in [0, 1] to 8 bits."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
    """An 8-bit image in [0, 1]."""
    return image.astype(np.float32) / 255


def gaussian(image: np.ndarray, sigma: float, rng: Generator) -> np.ndarray:
    """Adds independent Gaussian noise; sigma on the scale of 0 to 255. Nothing is clipped."""
    return image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma / 255)


def poisson_gaussian(image: np.ndarray, sigma: float, photons: float, rng: Generator) -> np.ndarray:
    """Adds shot noise of a sensor that counts ``photons`` at white, and read noise of ``sigma``."""
    spread = np.sqrt(np.clip(image, 0, 1) / np.float32(photons) + np.float32((sigma / 255) ** 2))
    return image + rng.standard_normal(image.shape, dtype=np.float32) * spread


def correlated(image: np.ndarray, sigma: float, rng: Generator) -> np.ndarray:
    """Adds noise that is grey, blurred, or both, as it is left by a camera's own processing."""
    height, width, _ = image.shape
    grey = rng.random() < 0.5
    noise = rng.standard_normal((height + 2, width + 2, 1 if grey else 3), dtype=np.float32)
    blur = 0.0 if grey and rng.random() < 0.5 else rng.uniform(0.1, 0.5)
    for axis in (0, 1):
        noise = noise + blur * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    noise = noise[1:-1, 1:-1] / np.float32(1 + 2 * blur * blur)
    return image + noise * np.float32(sigma / 255)


def jpeg(image: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    """What JPEG leaves of the image, 8 bits deep; subsampling 0, 1, 2: 4:4:4, 4:2:2, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return to_float(np.asarray(Image.open(buffer)))


def random_noise(image: np.ndarray, sigma_max: float, rng: Generator) -> np.ndarray:
    """Adds noise of a random kind and strength."""
    kind, sigma = rng.random(), rng.uniform(0, sigma_max)
    if kind < 0.6:
        return gaussian(image, sigma, rng)
    if kind < 0.8:
        return poisson_gaussian(image, sigma * 0.5, 10 ** rng.uniform(1.3, 3.5), rng)
    return correlated(image, sigma * 0.8, rng)


def random_jpeg(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Compresses with a random quality from 20 to 95, lower ones more often, and subsampling."""
    return jpeg(image, 20 + int(76 * rng.random() ** 1.5), int(rng.choice((0, 2, 2, 1))))


def degrade(image: np.ndarray, rng: Generator) -> np.ndarray:
    """Noise, JPEG, both in either order, or nothing; mostly as 8-bit files hold it."""
    kind = rng.random()
    if kind < 0.48:
        image = random_noise(image, SIGMA_MAX, rng)
    elif kind < 0.78:
        image = random_jpeg(image, rng)
    elif kind < 0.90:
        image = random_jpeg(np.clip(random_noise(image, SIGMA_MAX / 2, rng), 0, 1), rng)
    elif kind < 0.95:
        image = random_noise(random_jpeg(image, rng), SIGMA_MAX / 2, rng)
    if rng.random() < 0.85:
        return to_float(to_bytes(image))
    return image.astype(np.float32)
