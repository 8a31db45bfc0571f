# SPDX-License-Identifier: MIT
"""Trains the embedded restoration model on a CPU; can be stopped at any time and goes on where it was.

Every number drawn belongs to (seed, step, part of the batch), and the parts' gradients are added in their order,
so an interrupted and resumed run takes the same steps as one that was not. The parts of a batch are shared out to
threads that use one core each: on small layers that is faster than one thread pool for each operation, above all
when other programs use the machine.
"""

import argparse
import copy
import csv
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from degrade import MARGIN, degrade, gaussian, jpeg, to_bytes, to_float
from PIL import Image
from torch import nn

from halotile.models.embedded import Restorer

HERE = Path(__file__).resolve().parent
SEED = 20
PATCH = 64
PARTS = 4  # parts of a batch
PART = 4  # patches in a part
RATE = 1e-3
WARM_UP = 400
COOLING = 0.35  # the last part of the steps, in which the learning rate falls
DECAY = 0.999  # of the averaged weights
CLIP = 1.0
FLOOR = 2e-4  # mean square error (37 dB) below which a patch counts less and less
SAVE_SECONDS = 120
COLUMNS = ["step", "seconds", "rate", "loss", "gain_sigma25", "gain_jpeg30", "clean_psnr"]


class Photos:
    """The training photographs, and random patches of them."""

    def __init__(self, data: Path):
        self.pixels = np.load(data / "train.npy")
        self.index = json.loads((data / "train.json").read_text())
        area = np.array([entry["height"] * entry["width"] for entry in self.index], np.float64)
        self.shares = np.sqrt(area) / np.sqrt(area).sum()

    def crop(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """A square of a random photograph."""
        entry = self.index[rng.choice(len(self.index), p=self.shares)]
        height, width = entry["height"], entry["width"]
        image = self.pixels[entry["offset"] : entry["offset"] + height * width * 3].reshape(height, width, 3)
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        return image[top : top + size, left : left + size]

    def patch(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """A clean patch in [0, 1], turned and mirrored at random; half of them are the livelier of two crops."""
        crop = self.crop(size, rng)
        if rng.random() < 0.5:
            other = self.crop(size, rng)
            crop = max(crop, other, key=lambda c: np.abs(np.diff(c[:, :, 1].astype(np.int16), axis=1)).mean())
        crop = np.rot90(crop, rng.integers(4))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        patch = to_float(crop)
        if rng.random() < 0.05:
            patch = np.repeat(patch.mean(2, keepdims=True), 3, axis=2)
        if rng.random() < 0.2:
            patch = patch * np.float32(rng.uniform(0.4, 1))
        return patch


def make_part(photos: Photos, step: int, part: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The degraded and the clean patches of one part of a batch."""
    rng = np.random.default_rng((SEED, step, part))
    degraded, clean = [], []
    for _ in range(PART):
        large = photos.patch(PATCH + MARGIN, rng)
        top, left = rng.integers(MARGIN + 1, size=2)
        window = np.s_[top : top + PATCH, left : left + PATCH]
        degraded.append(degrade(large, rng)[window])
        clean.append(large[window])
    return tuple(torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2) for group in (degraded, clean))


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then constant, then a straight line down to nearly nothing."""
    left = (steps - step) / (steps * COOLING)
    return RATE * max(0.002, min(1.0, (step + 1) / WARM_UP, left))


@torch.no_grad()
def initialise(model: Restorer, seed: int) -> None:
    """Draws the weights anew: small steps in the blocks, and a tail that changes nearly nothing at first."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        deviation = (2 / (9 * layer.in_channels)) ** 0.5
        layer.weight.normal_(0, deviation, generator=generator)
        layer.bias.zero_()
        if name.endswith("second"):
            layer.weight.mul_(0.3)
        elif name == "tail":
            layer.weight.mul_(0.02)


def replicas(model: Restorer) -> list[Restorer]:
    """Models that share the weights and have gradients of their own, one for each part of a batch."""
    result = []
    for _ in range(PARTS):
        twin = copy.deepcopy(model)
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.data = theirs.data
        result.append(twin)
    return result


def part_loss(twin: Restorer, photos: Photos, step: int, part: int) -> float:
    """Leaves the gradients of one part of a batch in its replica; returns the loss."""
    degraded, clean = make_part(photos, step, part)
    twin.zero_grad(set_to_none=True)
    restored = twin(degraded.contiguous(memory_format=torch.channels_last))
    error = (restored - clean).square().mean((1, 2, 3))
    loss = torch.log(error + FLOOR).mean()  # as in decibels: a smooth patch counts as much as a lively one
    loss.backward()
    return float(loss.detach())


def psnr(image: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in decibels."""
    return -10 * math.log10(max(float(np.mean((image.astype(np.float64) - clean) ** 2)), 1e-12))


def restore(model: Restorer, image: np.ndarray) -> np.ndarray:
    """Restores one (H, W, 3) image in [0, 1]; the result is clipped to [0, 1]."""
    batch = torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return model(batch)[0].clamp(0, 1).permute(1, 2, 0).numpy()


def validate(model: Restorer, photos: list[np.ndarray]) -> dict:
    """Mean gain in decibels at sigma 25 and JPEG quality 30, and the PSNR of clean photographs sent through."""
    rows = []
    for number, clean in enumerate(photos):
        noisy = to_float(to_bytes(gaussian(clean, 25, np.random.default_rng((SEED, number)))))
        packed = jpeg(clean, 30, 2)
        gains = [psnr(restore(model, image), clean) - psnr(image, clean) for image in (noisy, packed)]
        rows.append([*gains, psnr(restore(model, clean), clean)])
    return dict(zip(COLUMNS[4:], (round(float(v), 3) for v in np.mean(rows, axis=0)), strict=True))


def validation_photos(data: Path, size: int = 192) -> list[np.ndarray]:
    """The middle of each held-out photograph, for the log: what README.md says was looked at."""
    photos = []
    for path in sorted((data / "test").glob("*.png")):
        image = to_float(np.asarray(Image.open(path)))
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        photos.append(image[top : top + size, left : left + size])
    return photos


def export(model: Restorer, path: Path) -> None:
    """Writes the weights in half precision as safetensors."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    blocks = len(model.body)
    settings = {"width": model.head.out_channels, "blocks": blocks, "halo": 2 * (2 * blocks + 2)}
    save_file(weights, path, metadata={key: str(value) for key, value in settings.items()})


class Training:
    """The state of a run: weights, averaged weights, optimiser, step and seconds spent."""

    def __init__(self, arguments: argparse.Namespace):
        self.out, self.steps = arguments.out, arguments.steps
        self.model = Restorer()
        initialise(self.model, SEED)
        self.model.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=RATE, betas=(0.9, 0.99))
        self.step, self.seconds = 0, 0.0
        self.load()
        self.twins = replicas(self.model)
        self.photos = Photos(arguments.data)
        self.held_out = validation_photos(arguments.data)

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def load(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["steps"] != self.steps and state["step"] > (1 - COOLING) * min(self.steps, state["steps"]):
            raise SystemExit(f"too late for other steps than {state['steps']}: the learning rate falls already")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.trim_log()

    def trim_log(self) -> None:
        """Takes the lines out of log.csv that will be written again."""
        path = self.out / "log.csv"
        if path.exists():
            head, *lines = path.read_text().splitlines()
            kept = [line for line in lines if int(line.split(",")[0]) <= self.step]
            path.write_text("\n".join([head, *kept]) + "\n")

    def save(self) -> None:
        """Writes the checkpoint so that it is whole at any time."""
        state = {key: getattr(self, key).state_dict() for key in ("model", "average", "optimiser")}
        state |= {key: getattr(self, key) for key in ("step", "steps", "seconds")}
        temporary = self.checkpoint.with_suffix(".new")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def advance(self, pool: ThreadPoolExecutor) -> float:
        """One step of the optimiser; returns the loss."""
        parts = [pool.submit(part_loss, twin, self.photos, self.step, n) for n, twin in enumerate(self.twins)]
        loss = sum(part.result() for part in parts) / PARTS
        shared = zip(self.model.parameters(), *(twin.parameters() for twin in self.twins), strict=True)
        for weight, *copies in shared:
            weight.grad = torch.stack([c.grad for c in copies]).mean(0)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, self.steps)
        self.optimiser.step()
        decay = min(DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.step += 1
        return loss

    def record(self, loss: float) -> None:
        """Adds a line to log.csv."""
        path = self.out / "log.csv"
        new = not path.exists()
        row = {"step": self.step, "seconds": round(self.seconds), "rate": f"{rate_at(self.step, self.steps):.2e}"}
        row |= {"loss": f"{loss:.5f}"} | validate(self.average, self.held_out)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)

    def run(self, threads: int, minutes: float, every: int) -> None:
        """Trains to the last step, or for so many minutes."""
        began = saved = last = time.monotonic()
        losses = []
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            while self.step < self.steps and time.monotonic() - began < minutes * 60:
                losses.append(self.advance(pool))
                now = time.monotonic()
                self.seconds, last = self.seconds + now - last, now
                if self.step % every == 0 or self.step == self.steps:
                    self.record(sum(losses) / len(losses))
                    losses.clear()
                if now - saved > SAVE_SECONDS:
                    self.save()
                    saved = now
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "data", help="folder that photos.py prepared")
    parser.add_argument("--out", type=Path, default=HERE / "run", help="folder for the log, the checkpoint, the model")
    parser.add_argument("--steps", type=int, default=9000, help="steps of the whole run; can change until it cools")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many minutes, to go on later")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--every", type=int, default=500, help="steps between two lines of the log")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    training = Training(arguments)
    training.run(arguments.threads, arguments.minutes, arguments.every)
    if training.step == training.steps:
        export(training.average, arguments.out / "restorer.safetensors")


if __name__ == "__main__":
    main()
