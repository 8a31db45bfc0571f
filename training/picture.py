# SPDX-License-Identifier: MIT
"""Draws docs/embedded.jpg: a detail of a held-out photograph, examples/seeding.jpg: degraded, restored, as it was."""

from pathlib import Path

import numpy as np
from degrade import gaussian, jpeg, to_bytes, to_float
from PIL import Image, ImageDraw, ImageFont
from train import SEED, psnr

from halotile import load_model, restore_tiled

ROOT = Path(__file__).resolve().parents[1]
REDUCED = 4
CROP = (300, 190, 620, 370)  # left, top, right, bottom, in the reduced photograph
GAP, TITLE = 8, 26
PAPER, INK = (250, 249, 246), (32, 33, 36)


def photograph() -> np.ndarray:
    """The whole photograph, reduced, in [0, 1]."""
    image = Image.open(ROOT / "examples" / "seeding.jpg").convert("RGB")
    return to_float(np.asarray(image.resize((image.width // REDUCED, image.height // REDUCED), Image.LANCZOS)))


def rows(clean: np.ndarray) -> dict[str, np.ndarray]:
    """Degraded photographs, as files of 8 bits hold them, by title."""
    noisy = {f"sigma {sigma}": gaussian(clean, sigma, np.random.default_rng((SEED, 3))) for sigma in (15, 25, 50)}
    return {title: to_bytes(image) for title, image in (noisy | {"JPEG 20": jpeg(clean, 20, 2)}).items()}


def main() -> None:
    clean, model = photograph(), load_model()
    left, top, right, bottom = CROP
    width, height = right - left, bottom - top
    degraded = rows(clean)
    canvas = Image.new("RGB", (3 * width + 4 * GAP, len(degraded) * (height + TITLE) + GAP), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for row, (title, image) in enumerate(degraded.items()):
        restored = restore_tiled(image, model, halo="exact", phase=None)
        shown = [one[top:bottom, left:right] for one in (image, restored, to_bytes(clean))]
        values = [psnr(to_float(one), to_float(shown[2])) for one in shown[:2]]
        titles = (f"{title}: {values[0]:.1f} dB", f"restored: {values[1]:.1f} dB", "as it was")
        y = row * (height + TITLE)
        for column, (words, one) in enumerate(zip(titles, shown, strict=True)):
            x = GAP + column * (width + GAP)
            draw.text((x, y + 5), words, INK, font)
            canvas.paste(Image.fromarray(one), (x, y + TITLE))
    canvas.save(ROOT / "docs" / "embedded.jpg", quality=82)


if __name__ == "__main__":
    main()
