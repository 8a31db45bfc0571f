# SPDX-License-Identifier: MIT
"""The pages of docs: examples run, drawings are what the code draws, and the site builds without a warning."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```python\n(.*?)```", re.DOTALL)
BLOCKS = {page: BLOCK.findall((DOCS / f"{page}.md").read_text()) for page in PAGES}
LINK = re.compile(r"\]\(([^)\s]+)\)")


def nouns(folder):
    """What pages speak of without making it: images, models, and files in the folder where they run."""
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pyvips")
    zarr = pytest.importorskip("zarr")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    photo = random.random((72, 80, 3), dtype=np.float32)
    scan = random.integers(0, 255, (72, 80, 3), dtype=np.uint8)
    for name in ("photo.jpg", "photo.png", "slide.tif"):
        image.fromarray(scan).save(folder / name)
    np.save(folder / "in.npy", scan)
    zarr.save_array(folder / "scan.zarr", random.random((5, 72, 80), dtype=np.float32))
    colour, grey = (torch.nn.Conv2d(channels, channels, 3, padding=1).eval() for channels in (3, 1))
    torch.jit.script(colour).save(folder / "x4.pth")
    colour.train_size = 48  # of docs/statistics.md
    return {
        "model": colour,
        "one_channel": grey,
        "unet": colour,
        "segmenter": torch.nn.Conv2d(3, 5, 3, padding=1).eval(),
        "photo": photo,
        "image": photo,
        "scan": scan,
        "noisy": photo,
        "clean": photo,
        "images": np.stack([photo, photo]),
        "tensor": torch.from_numpy(photo).permute(2, 0, 1),
        "tensors": torch.from_numpy(photo).permute(2, 0, 1)[None],
        "comfy_image": torch.from_numpy(photo)[None],
        "volume": random.random((5, 72, 80), dtype=np.float32),
        "my_lpips": lambda result, target: 0.0,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if any(not skipped for skipped, _ in BLOCKS[page])])
@pytest.mark.filterwarnings("ignore::halotile.SeamWarning")
def test_examples_run(page, tmp_path, monkeypatch):
    """In one namespace for each page, as a reader would type them, but for those that say why they cannot."""
    monkeypatch.chdir(tmp_path)
    known = nouns(tmp_path)
    for skipped, block in BLOCKS[page]:
        code = compile(block, f"docs/{page}.md", "exec")
        if not skipped:
            exec(code, known)


def test_few_examples_are_not_run():
    run = sum(not skipped for blocks in BLOCKS.values() for skipped, _ in blocks)
    assert run >= 25 and run >= 2 * sum(bool(skipped) for blocks in BLOCKS.values() for skipped, _ in blocks)


def test_the_drawings_are_what_the_code_draws():
    """What differs is drawn anew by ``python scripts/draw_tiles.py``."""
    pytest.importorskip("torch")
    drawn = runpy.run_path(str(ROOT / "scripts" / "draw_tiles.py"))["drawings"]()
    page = (DOCS / "how.md").read_text()
    for name, drawing in drawn.items():
        assert drawing == (DOCS / name).read_text() and f"({name})" in page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (DOCS / f"{page}.md").read_text()
    for target in LINK.findall(text):
        if not target.startswith("http"):
            path, _, section = target.partition("#")
            file = DOCS / path if path else DOCS / f"{page}.md"
            assert file.exists(), target
            assert not section or section in sections(file.read_text()), target


def sections(text):
    """Names that headings are linked by."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_every_page_is_in_the_menu():
    index = (DOCS / "index.md").read_text()
    menus = re.findall(r"```\{toctree\}\n(?::[^\n]*\n)+\n([^`]*)```", index)
    listed = [re.sub(r".*<(.+)>", r"\1", line) for lines in menus for line in lines.split("\n") if line]
    assert sorted([*listed, "index"]) == PAGES


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "kept")]
    command += [str(DOCS), str(tmp_path / "site")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert set(PAGES) <= set(pages)
    for page in pages.values():  # nothing that a page needs comes from elsewhere
        assert re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//", page) == []
        assert re.findall(r"<link[^>]+href=\"(?:https?:)?//", page) == []


def test_the_model_in_c_compiles(tmp_path):
    compiler = shutil.which("cc") or pytest.skip("no compiler")
    (block,) = re.findall(r"```c\n(.*?)```", (DOCS / "c-library.md").read_text(), re.DOTALL)
    (tmp_path / "model.c").write_text(
        f"#include <halotile.h>\n#include <string.h>\n{block}ht_model *model = identity;\n"
    )
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT / 'csrc' / 'core'}"]
    subprocess.run([*command, str(tmp_path / "model.c")], check=True)


def public():
    """Names and objects of the reference."""
    package = importlib.import_module("halotile")
    for name in package.__all__:
        yield f"halotile.{name}", getattr(package, name)
    for part in ("metrics", "testing"):
        module = importlib.import_module(f"halotile.{part}")
        yield module.__name__, module
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def test_examples_of_docstrings(tmp_path, monkeypatch):
    """In a folder with the same things as the pages' examples."""
    monkeypatch.chdir(tmp_path)
    known = nouns(tmp_path)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    tried = set()
    for name, thing in public():
        known[name.rpartition(".")[2]] = thing
    for name, thing in public():
        if inspect.isclass(thing) or inspect.isroutine(thing):
            for one in finder.find(thing, name, module=False, globs=known):
                tried |= {name} if one.examples else set()
                assert runner.run(one).failed == 0, one.name
    wanted = {"restore_tiled", "restore_to", "iter_bands", "TiledRestorer", "plan_tiles", "TilePlan", "inspect_model"}
    wanted |= {"error_curve", "verify", "evaluate", "load_model", "watch_memory", "show"}
    assert {f"halotile.{name}" for name in wanted} <= tried


def test_skipped_examples_are_python():
    for page, blocks in BLOCKS.items():
        for _, block in blocks:
            ast.parse(block, page)
