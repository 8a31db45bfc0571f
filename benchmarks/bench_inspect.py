# SPDX-License-Identifier: MIT
"""How long does it take to find out what a model needs?

Every model is inspected in a process of its own, twice: the first time torch also imports the machinery that traces
models. Weights are random; it makes no difference for the time. It needs the repository (the models are the tests').

    python benchmarks/bench_inspect.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from common import fresh_process, save, summary, table, version_of

sys.path.insert(0, str(Path(__file__).parents[1]))

MODELS = {"RRDBNet, 23 blocks": 20, "SRVGGNetCompact, 32 layers": 3, "U-Net, 4 levels": 10}  # seconds asked for


def made(name: str):
    from tests.architectures import SRVGG, RRDBNet, UNet
    from tests.networks import seeded

    return seeded(dict(zip(MODELS, (RRDBNet, SRVGG, lambda: UNet(4, width=32)), strict=True))[name])


def inspected(name: str) -> None:
    """Prints what was found and the seconds of a first and a second time, as JSON."""
    from halotile import inspect_model

    model, seconds = made(name), []
    for _ in range(2):
        start = time.perf_counter()
        info = inspect_model(model)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "field": info.receptive_field, "phase": info.phase, "doubts": info.doubts}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.model:
        inspected(asked.model)
        return
    runs: dict[str, list] = {name: [] for name in MODELS}
    for _ in range(asked.rounds):
        for name in MODELS:
            runs[name].append(fresh_process(__file__, "--model", name, HALOTILE_CACHE=""))
    results = {}
    for name, found in runs.items():
        first, second = (summary([one["seconds"][i] for one in found]) for i in (0, 1))
        results[name] = {"first": first, "second": second, "asked": MODELS[name], **found[0]}
        results[name].pop("seconds")
    print(
        table(
            ("", "halo", "first, s", "least - most", "second, s", "asked for"),
            (
                (
                    name,
                    str(one["field"][0]),
                    f"{one['first']['median']:.1f}",
                    f"{one['first']['least']:.1f} - {one['first']['most']:.1f}",
                    f"{one['second']['median']:.1f}",
                    f"< {one['asked']}",
                )
                for name, one in results.items()
            ),
        )
    )
    save("inspect", {"rounds": asked.rounds, "torch": version_of("torch"), "models": results})


if __name__ == "__main__":
    main()
