# SPDX-License-Identifier: MIT
"""What type checkers make of the public names: a user's file passes, and each slip in another one is found."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import halotile
from halotile.options import HalolessOptions, JudgedOptions, Options, PlanOptions, RestoreOptions, RunOptions

ROOT = Path(__file__).parents[1]
PACKAGE = Path(halotile.__file__).parents[1]

FINE = """
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch

import halotile
from halotile import (
    BeforeAfter,
    Box,
    ColourWarning,
    ErrorCurve,
    Evaluation,
    MemoryWatch,
    ModelInfo,
    ModelInputError,
    ModelOutputError,
    NonFiniteError,
    NonFiniteWarning,
    OutOfMemoryError,
    RangeWarning,
    RunInfo,
    SeamWarning,
    Tile,
    TiledRestorer,
    TileError,
    TilePlan,
    TileSizeWarning,
    Verification,
    __version__,
    error_curve,
    evaluate,
    inspect_model,
    iter_bands,
    load_model,
    metrics,
    plan_tiles,
    restore_tiled,
    restore_to,
    show,
    verify,
    watch_memory,
)
from halotile.evaluation import Score
from halotile.pytest_plugin import GoldenImage, Restored
from halotile.testing import (
    ImagesDiffer,
    assert_close,
    assert_exact,
    assert_matches_whole,
    assert_on_device,
    assert_psnr,
    assert_seamless,
    assert_ssim,
)

photo = np.zeros((90, 70, 3), np.uint8)
tensor = torch.zeros(3, 90, 70)
model = load_model()
module = torch.nn.Conv2d(3, 3, 3, padding=1)


def own(windows: torch.Tensor) -> torch.Tensor:
    return windows * 1


def said(done: int, total: int) -> None:
    print(done, total)


def about(info: ModelInfo, plan: TilePlan, run: RunInfo, found: Verification, curve: ErrorCurve) -> str:
    tile: Tile = plan[0]
    tiles: list[Tile] = plan[:3]
    box: Box = tile.window
    halo = run.halo[0] + (info.receptive_field.left if info.receptive_field is not None else 0)
    if run.model is not None and run.verified is not None and run.tuning is not None and run.precision is not None:
        assert_type(run.model, ModelInfo)
        assert_type(run.verified, Verification)
        halo += run.tuning.batch_size + len(run.precision.dtype)
    return f"{box.y} {halo} {len(tiles)} {found.largest} {curve.largest[0]} {run.how} {__version__}"


assert_type(model, Callable[..., Any])
assert_type(restore_tiled(photo, model), np.ndarray)
assert_type(restore_tiled(tensor, module, halo="exact", phase=None), torch.Tensor)
assert_type(halotile.restore_tiled(photo, own, tile_size="auto", progress=said), np.ndarray)
restore_tiled(
    photo,
    module,
    tile_size=(64, 32),
    halo=18,
    overlap="auto",
    blend="gaussian",
    boundary="native",
    scale=Fraction(3, 2),
    phase=(2, 4),
    tolerance=0.5,
    global_stats="exact",
    verify=8,
    batch_size="auto",
    device=["cuda:0", torch.device("cuda", 1)],
    dtype=torch.float16,
    engine="torch",
    value_range=(-1, 1),
    white="12bit",
    nodata=-9999,
    out=np.zeros((90, 70, 3)),
    out_dtype=np.float32,
    layout="HWC",
    alpha="resize",
    on_nonfinite="warn",
    progress=True,
    keep_heap=False,
    memory_format="contiguous",
    memory_limit=34 << 20,
    compile=False,
)
restore_tiled(photo, module, reduce="argmax")
restore_tiled(tensor, module, reduce=lambda rows: rows.argmax(0), out_dtype="uint8")
restorer = TiledRestorer(module, halo="auto", scale="3/2", device="cpu", dtype="auto")
assert_type(restorer, TiledRestorer)
assert_type(restorer(photo), np.ndarray)
assert_type(restorer(tensor, out=tensor), torch.Tensor)
assert_type(restorer.inspected(), ModelInfo)
assert_type(restorer.last_run, RunInfo | None)
bands: Iterator[tuple[int, np.ndarray]] = iter_bands(photo, model, halo=3, out_dtype="float32")
for y, rows in iter_bands(tensor, module):
    assert_type(y, int)
    assert_type(rows, torch.Tensor)
for _, more in restorer.iter_bands(photo):
    assert_type(more, np.ndarray)
assert_type(restore_to(Path("out.tif"), "in.png", restorer, quality=90), RunInfo)
assert_type(restore_to("out.npy", photo, module, tile_size=64, max_pixels=None), RunInfo)
plan = plan_tiles((90, 70), tile_size=64, halo=8, scale=2)
assert_type(plan, TilePlan)
assert_type(inspect_model(module, device="cpu"), ModelInfo)
curve = error_curve(photo, module, halos=(4, 8), device="cpu", tolerance=0.5)
assert_type(curve, ErrorCurve)
found = verify(photo, module, windows=4, halo=2)
assert_type(found, Verification)
assert_type(assert_exact(photo, module, halo=3, tile_size=32), Verification)
assert_type(halotile.testing.assert_seamless(photo, module, tolerance=1e-3, tile_size=32), Verification)
with watch_memory(every=0.5) as memory:
    assert_type(memory, MemoryWatch)
    assert_type(memory.added, int)
assert_type(show(photo, photo, names=("a", "b"), width=300), BeforeAfter)
scores = evaluate([(photo, photo)], model, y_channel=True, crop_border="scale", metrics={"mae": metrics.mae}, halo=3)
assert_type(scores, Evaluation)
assert_type(scores.scores, tuple[Score, ...])
assert_type(evaluate(Path("pairs"), None, targets="hr").mean("ssim"), float | None)
assert_close(photo, photo, rtol=0, atol=1, plan=plan)
assert_matches_whole(tensor, tensor, module, plan=plan, value_range=(-1, 1))
assert_type(assert_psnr(photo, photo, 30, y_channel=True), float)
assert_type(assert_ssim(photo, photo, 0.9), float)
assert_type(assert_on_device(photo, module, device="mps").up, int)


def test_golden(restored: Restored, golden_image: GoldenImage) -> None:
    assert_type(restored(photo, model, halo=3), np.ndarray)
    assert_type(restored(tensor, module), torch.Tensor)
    golden_image(restored("a.png", model), "photo", plan=plan)
    raise ImagesDiffer("text", photo, photo)


assert_type(metrics.psnr(photo, photo), float)
assert_type(halotile.metrics.ssim(photo, photo), float)
try:
    restorer(photo)
except (ModelInputError, ModelOutputError, NonFiniteError, OutOfMemoryError) as error:
    print(error.tile, error.box, error.rows_done, error.out)
except TileError as error:
    partial: np.ndarray = error.out
kinds: list[type[Warning]] = [SeamWarning, NonFiniteWarning, RangeWarning, TileSizeWarning, ColourWarning]
print(about(inspect_model(module), plan, RunInfo((1, 1), (1, 1), "given", None, ""), found, curve), assert_seamless)
"""

SLIPS = """
import numpy as np
import torch

import halotile
from halotile import TiledRestorer, error_curve, inspect_model, iter_bands, load_model, plan_tiles, restore_tiled
from halotile import evaluate, restore_to, show, verify
from halotile import restore_tild  # slip
from halotile.testing import assert_exact, assert_matches_whole, assert_psnr

photo = np.zeros((90, 70, 3), np.uint8)
model = load_model()
halotile.restor_to("a.png", photo, model)  # slip
restore_tiled(photo, model, hallo=3)  # slip
restore_tiled(photo, model, tyle_size=3)  # slip
restore_tiled(photo, model, halo="exakt")  # slip
restore_tiled(photo, model, blend="gauss")  # slip
restore_tiled(photo, model, verify="yes")  # slip
restore_tiled(photo, model, reduce="max")  # slip
restore_tiled(photo, photo)  # slip
restore_tiled(photo)  # slip
TiledRestorer(model, hallo=3)  # slip
TiledRestorer(model, tile_size="big")  # slip
TiledRestorer(model, needs=3)  # slip
TiledRestorer(model).last_rum  # slip
iter_bands(photo, model, hallo=3)  # slip
iter_bands(photo, model, out=photo)  # slip
iter_bands(photo, model, engine="metal")  # slip
restore_to("a.png", photo, model, hallo=3)  # slip
restore_to("a.png", photo, model, verify=3)  # slip
restore_to("a.png", photo, model, quality="best")  # slip
plan_tiles((90, 70), hallo=3)  # slip
plan_tiles((90, 70), tile_size=64.5)  # slip
error_curve(model, photo)  # slip
error_curve(photo, model, halo=3)  # slip
error_curve(photo, model, hallos=(3,))  # slip
verify(photo, model, boundry="native")  # slip
assert_exact(photo, model, out=photo)  # slip
evaluate([(photo, photo)], model, hallo=3)  # slip
evaluate([(photo, photo)], model, crop_border="all")  # slip
evaluate([photo], model)  # slip
evaluate([(photo, photo)], model).means  # slip
show(photo, photo, name="a")  # slip
assert_psnr(photo, photo)  # slip
assert_matches_whole(photo, photo, model, hallo=3)  # slip
inspect_model(model, devise="cpu")  # slip
load_model("a.onnx", strenght=1)  # slip
array: np.ndarray = restore_tiled(torch.zeros(3, 9, 9), model)  # slip
tensor: torch.Tensor = TiledRestorer(model)(photo)  # slip
count: str = inspect_model(model).in_channels  # slip
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("types")
    (place / "fine.py").write_text(FINE)
    (place / "slips.py").write_text(SLIPS)
    return place


def slips():
    return [number for number, line in enumerate(SLIPS.splitlines(), 1) if line.endswith("# slip")]


def checked(command, place):
    environment = os.environ | {"MYPYPATH": str(PACKAGE)}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def mypy(place, name):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"]
    return checked([*command, f"--cache-dir={ROOT / '.mypy_cache'}", name], place)


def test_mypy_accepts_every_public_name(place):
    done = mypy(place, "fine.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_every_slip(place):
    done = mypy(place, "slips.py")
    lines = sorted({int(number) for number in re.findall(r"^slips\.py:(\d+): error", done.stdout, re.MULTILINE)})
    assert lines == slips(), done.stdout + done.stderr


def pyright(place, name):
    """Its wheel fetches the checker itself when it first runs; where that cannot be, there is nothing to be tested."""
    pytest.importorskip("pyright")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pyright", "--version"], capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("pyright is not there")
    if done.returncode:
        pytest.skip("pyright is not there")
    settings = {"include": [name], "extraPaths": [str(PACKAGE)], "typeCheckingMode": "strict"}
    off = (
        "reportUnknownMemberType",
        "reportUnknownVariableType",
        "reportUnknownArgumentType",
        "reportUnknownLambdaType",
    )
    settings |= dict.fromkeys((*off, "reportMissingTypeStubs", "reportUnusedExpression", "reportUnusedImport"), "none")
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    done = checked([sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable], place)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["range"]["start"]["line"] + 1, one["message"]) for one in found if one["severity"] == "error"]


def test_pyright_accepts_every_public_name(place):
    assert pyright(place, "fine.py") == []


def test_pyright_finds_every_slip(place):
    found = pyright(place, "slips.py")
    assert sorted({line for line, _ in found}) == slips(), found


def test_the_file_uses_every_public_name():
    missing = [name for name in [*halotile.__all__, "metrics", "testing"] if not re.search(rf"\b{name}\b", FINE)]
    assert missing == []


def test_the_types_name_all_options_and_no_others():
    names = {field.name for field in fields(Options)}
    told = {kind.__name__: set(kind.__annotations__) for kind in (RestoreOptions, RunOptions, HalolessOptions)}
    assert set(PlanOptions.__annotations__) == names
    assert told["RestoreOptions"] == names - {"needs"}
    assert told["RunOptions"] == names - {"needs", "out", "verify"}
    assert told["HalolessOptions"] == told["RunOptions"] - {"halo"}
    assert set(JudgedOptions.__annotations__) == told["RunOptions"] - {"tolerance", "out_dtype", "reduce"}


def test_what_is_imported_later_is_told_to_type_checkers():
    text = Path(halotile.__file__).read_text()
    told = text[text.index("if TYPE_CHECKING") : text.index("else:")]
    for name, module in halotile._LATER.items():
        assert re.search(rf"from \.({module})? ?import .*\b{name}\b|from \. import {name} as {name}", told), name
