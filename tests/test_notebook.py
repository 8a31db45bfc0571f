# SPDX-License-Identifier: MIT
"""What notebooks show: drawings say what the numbers say, the divider can be dragged, the example notebooks run."""

import base64
import io
import json
import os
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import halotile  # noqa: E402
from halotile import TiledRestorer, error_curve, inspect_model, metrics, plan_tiles, restore_tiled, show, verify  # noqa: E402
from halotile.notebook.levels import curve_svg, levels_svg  # noqa: E402
from halotile.notebook.png import png_bytes  # noqa: E402

from . import chromium  # noqa: E402
from .networks import Chain, seeded  # noqa: E402

IMAGE = np.random.default_rng(2).random((96, 120, 3), np.float32)
NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
SVG = "{http://www.w3.org/2000/svg}"


def drawing(page):
    """The first drawing on a page, parsed; the whole page must be well-formed."""
    ElementTree.fromstring(f"<body>{page}</body>")
    return ElementTree.fromstring(re.search(r"<svg.*?</svg>", page, re.DOTALL)[0])


def boxes(svg):
    return [{key: float(one.attrib[key]) for key in ("x", "y", "width", "height")} for one in svg.iter(f"{SVG}rect")]


# ---- drawings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("boundary", ["native", "reflect"])
def test_a_plan_is_drawn_as_it_is(boundary, scale):
    plan = plan_tiles((96, 120), tile_size=40, halo=6, overlap=5, boundary=boundary, scale=scale)
    svg = drawing(plan._repr_html_())
    image, *shared, outline, window, keep = boxes(svg)
    assert outline == image and len(shared) == sum(plan.grid) - 2
    zoom = image["width"] / 120
    assert image["height"] == pytest.approx(96 * zoom, abs=0.02)
    rows, columns = plan.grid
    tile = plan[rows // 2 * columns + columns // 2]
    for box, want, one in ((window, tile.window, 1), (keep, tile.keep, scale)):
        found = [
            (box["y"] - image["y"]) / zoom,
            (box["x"] - image["x"]) / zoom,
            box["height"] / zoom,
            box["width"] / zoom,
        ]
        assert found == pytest.approx([side / one for side in want], abs=0.03)
    ends = {end for one in plan for end in (one.keep.y, one.keep.y_stop)} - {0, 96 * scale}
    across = [one for one in svg.iter(f"{SVG}line") if one.attrib["y1"] == one.attrib["y2"]]
    assert sorted((float(one.attrib["y1"]) - image["y"]) / zoom * scale for one in across) == pytest.approx(
        sorted(ends), abs=0.05
    )
    for told in (f"{len(plan)} in a grid of", f"{plan.processed_pixels / plan.ideal_pixels:.2f} of the image"):
        assert told in plan._repr_html_()


def test_a_plan_over_a_picture_of_the_image():
    pytest.importorskip("PIL")
    plan = plan_tiles(IMAGE.shape, tile_size=40, halo=6)
    svg = drawing(plan.over(IMAGE)._repr_html_())
    (picture,) = svg.iter(f"{SVG}image")
    assert {key: float(picture.attrib[key]) for key in ("x", "y", "width", "height")} == boxes(svg)[0]
    np.testing.assert_array_equal(decoded(picture.attrib["href"]), np.rint(IMAGE.astype(float) * 255))
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    assert plan.over(tensor) == plan.over(IMAGE)
    small = drawing(plan_tiles((1920, 2400)).over(np.zeros((1920, 2400, 3), np.uint8))._repr_html_())
    assert decoded(next(small.iter(f"{SVG}image")).attrib["href"]).shape == (480, 600, 3)
    with pytest.raises(ValueError, match="proportions of 96x120"):
        plan.over(IMAGE[:50])


def test_heat_maps_are_pictures():
    pytest.importorskip("PIL")
    other = IMAGE.copy()
    other[30, 40, 1] += 0.5
    heat = metrics.heatmap(IMAGE, other)
    assert heat.scale == pytest.approx(0.5) and heat == tuple(heat)[:2]
    picture, colours = (decoded(one.attrib["href"]) for one in drawing(heat._repr_html_()).iter(f"{SVG}image"))
    np.testing.assert_array_equal(picture, heat.picture)
    assert tuple(picture[30, 40]) == tuple(colours[0, 0]) == metrics.VIRIDIS[-1]
    compared = metrics.compare(np.zeros((900, 700), np.uint8), np.eye(900, 700, dtype=np.uint8) * 9)
    assert compared.heat.picture.shape == (300, 234, 3) and compared.heat.scale == 9
    assert (compared.heat.picture[np.arange(200), np.arange(200)] == metrics.VIRIDIS[-1]).all()
    assert compared.heat.svg() in compared._repr_html_()
    assert "<image" not in metrics.compare(IMAGE, IMAGE)._repr_html_()
    assert metrics.compare(np.stack([IMAGE] * 2), np.stack([other] * 2)).heat is None


def test_a_plan_of_very_many_tiles_is_a_small_page():
    page = plan_tiles((400_000, 300_000), tile_size=256, halo=32)._repr_html_()
    assert len(page) < 10_000 and drawing(page) is not None


def test_a_run_in_tiles_shows_its_tiles():
    restorer = TiledRestorer(seeded(lambda: Chain(3)), tile_size=40, halo=3)
    assert "none yet" in restorer._repr_html_() and "tile_size" in restorer._repr_html_()
    assert repr(restorer) == "<TiledRestorer of Chain, tile_size=(40, 40), halo=(3, 3)>"
    restorer(IMAGE)
    run = restorer.last_run
    assert run.plan == plan_tiles(IMAGE.shape, tile_size=40, halo=3)
    assert "run: tiles" in run._repr_html_() and run.plan.picture() in run._repr_html_()
    assert run._repr_html_() in restorer._repr_html_()
    assert pickle.loads(pickle.dumps(run)).plan == run.plan and replace(run, plan=None) == run


def test_a_run_holds_nothing_of_the_user():
    out = np.zeros((96, 120, 3), np.float32)
    restorer = TiledRestorer(seeded(lambda: Chain(3)), tile_size=40, halo=3, progress=lambda *_: None)
    restorer(IMAGE, out=out)
    assert restorer.last_run.plan._made_of[0].progress is None
    assert "extra" not in repr(TiledRestorer(seeded(lambda: Chain(3)), extra=np.zeros((1, 4))))


def test_a_stream_shows_its_rows():
    restorer = TiledRestorer(seeded(lambda: Chain(3)), halo="exact", schedule="stream", boundary="native")
    restorer(IMAGE)
    run = restorer.last_run
    assert f"{run.stream.rows} rows enter in a step" in run._repr_html_() and "run: stream" in run._repr_html_()
    given, entering = boxes(drawing(run._repr_html_()))[:2]
    assert given["height"] / given["width"] == pytest.approx(96 / 120, abs=0.02)
    assert entering["height"] == pytest.approx(
        min(given["height"] / 2, run.stream.rows * given["height"] / 96), abs=0.1
    )
    assert drawing(run.stream._repr_html_()) is not None


def test_a_model_report_draws_its_field():
    info = inspect_model(seeded(lambda: Chain(3)))
    field, pixel = boxes(drawing(info._repr_html_()))
    assert field["width"] / pixel["width"] == pytest.approx(7, abs=0.01)
    assert (pixel["x"] - field["x"]) / pixel["width"] == pytest.approx(3, abs=0.01)
    assert "sees 7 x 7 input pixels" in info._repr_html_() and "exact halo" in info._repr_html_()


def test_verifications_and_comparisons():
    found = verify(IMAGE, seeded(lambda: Chain(3)), windows=2, halo=1, tile_size=40)
    assert f"row {found.worst[0]}, column {found.worst[1]}" in found._repr_html_()
    bars = boxes(drawing(found._repr_html_()))
    assert len(bars) == 3 and bars[0]["width"] >= bars[1]["width"] >= bars[2]["width"] > 0
    compared = metrics.compare(IMAGE, IMAGE * np.float32(0.5))
    assert f"{compared.psnr:.4f} dB" in compared._repr_html_() and drawing(compared._repr_html_()) is not None
    assert "inf dB" in metrics.compare(IMAGE, IMAGE)._repr_html_()


class Printer:
    def __init__(self):
        self.said = ""

    def text(self, text):
        self.said += text


def test_terminals_get_the_short_text():
    model = seeded(lambda: Chain(1))
    restorer = TiledRestorer(model, halo="exact", tile_size=40)
    restorer(IMAGE)
    for one in (
        inspect_model(model),
        restorer.last_run,
        verify(IMAGE, model, windows=1),
        metrics.compare(IMAGE, IMAGE),
    ):
        printer = Printer()
        one._repr_pretty_(printer, False)
        assert printer.said == str(one)


def test_zero_is_no_number_on_a_scale_of_powers_of_ten():
    svg = ElementTree.fromstring(levels_svg([("a", 0.0), ("b", 1e-30), ("c", 1.0), ("d", float("inf"))], 1.0, "label"))
    assert [one["width"] for one in boxes(svg)] == [1, 300, 300]
    curve = ElementTree.fromstring(curve_svg((0, 4, 8), {"largest": (0.1, 1e-3, 0.0)}, 1.0, 8, "label"))
    circles = list(curve.iter(f"{SVG}circle"))
    assert [one.attrib["fill"] == "none" for one in circles] == [False, False, True]
    (path,) = curve.iter(f"{SVG}path")
    assert path.attrib["d"].count("L") == 1
    assert "exact: 8" in [one.text for one in curve.iter(f"{SVG}text")]


def test_plots(monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    plan = plan_tiles((96, 120), tile_size=40, halo=6, overlap=5)
    axes = plan.plot()
    tile = plan[plan.grid[0] // 2 * plan.grid[1] + plan.grid[1] // 2]
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    for name, box in (("its window", tile.window), ("a tile", tile.keep)):
        assert drawn[name].min(0).tolist() == [box.x, box.y] and drawn[name].max(0).tolist() == [box.x_stop, box.y_stop]
    assert plan.plot(axes) is axes
    curve = error_curve(IMAGE, seeded(lambda: Chain(3)), halos=(0, 1, 3))
    curve = replace(curve, largest=(*curve.largest[:2], 0.0))
    lines = {line.get_label(): line for line in curve.plot().lines}
    assert np.isnan(lines["largest"].get_ydata()[2]) and lines["largest"].get_ydata()[0] == curve.largest[0]
    assert lines["exact halo: 3"].get_xdata() == [3, 3] and "no difference" in lines
    assert "exact: 3" in curve._repr_html_()


def test_a_bar_below_another_one_goes_when_it_is_full(capsys):
    tqdm = pytest.importorskip("tqdm")
    options = {"tile_size": 40, "halo": 2, "progress": True}
    with tqdm.tqdm(total=2, desc="images") as outer:
        for _ in range(2):
            restore_tiled(IMAGE, np.array, **options)
            assert len(tqdm.tqdm._instances) == 1  # the inner one is closed
            outer.update()
    inner = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if "tile" in line]
    assert inner and not any("100%" in line for line in inner)  # a bar that stays says so in the end
    restore_tiled(IMAGE, np.array, **options)
    alone = capsys.readouterr().err
    assert alone.endswith("\n") and "100%" in alone.splitlines()[-1]  # alone, it stays


def test_memory_over_time(monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    held = {"bytes": 100 << 20}
    monkeypatch.setattr("halotile.memory_watch.resident_bytes", lambda: held["bytes"])
    with halotile.watch_memory(every=0.001) as memory:
        held["bytes"] = 400 << 20
        while memory.peak < 400 << 20:  # the thread sees it
            pass
        held["bytes"] = 200 << 20
    assert (memory.start, memory.peak, memory.added) == (100 << 20, 400 << 20, 300 << 20)
    assert memory.resident[-1] == 200 << 20 and memory.seconds == sorted(memory.seconds)
    page = memory._repr_html_()
    (path,) = drawing(page).iter(f"{SVG}path")
    heights = [float(one.split()[1]) for one in re.findall(r"[ML]([\d.]+ [\d.]+)", path.attrib["d"])]
    assert min(heights) == 10 and heights[0] == pytest.approx(10 + 140 * 0.75) and "400 MiB: 300 MiB more" in page
    assert str(memory).startswith("at the beginning   100 MiB")
    (line,) = memory.plot().lines
    assert line.get_ydata()[0] == 100 and max(line.get_ydata()) == 400
    with pytest.raises(RuntimeError, match="watches once"):
        memory.__enter__()
    with pytest.raises(ValueError, match=r"every must be from 0\.001 to 10 seconds"):
        halotile.watch_memory(every=0)


def test_memory_of_this_process_is_seen(monkeypatch):
    with halotile.watch_memory() as memory:
        block = np.ones(64 << 20, np.uint8)
    assert memory.added >= len(block) and len(memory.seconds) >= 2
    monkeypatch.setattr("halotile.memory_watch.MOST", 6)
    with halotile.watch_memory(every=0.001) as memory:
        while memory.every < 0.008:
            pass
    assert len(memory.seconds) == len(memory.resident) == len(memory.on_device) <= 8


def lines_of(capsys):
    return [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.strip()]


def test_progress_of_what_is_beside_tiles(capsys):
    tqdm, model = pytest.importorskip("tqdm"), seeded(lambda: Chain(3))
    inspect_model(model, progress=True)
    told = lines_of(capsys)
    assert any("inspecting sizes: " in line and "0/6" in line for line in told)
    verify(IMAGE, model, np.zeros_like(IMAGE), windows=5, tile_size=40, halo=3, progress=True)
    assert any("verifying windows" in line and "0/5" in line for line in lines_of(capsys))
    error_curve(IMAGE, model, halos=(0, 3), windows=2, progress=True)
    assert any("measuring the exact result" in line and "0/6" in line for line in lines_of(capsys))
    restore_tiled(IMAGE, model, tile_size=40, halo=3, progress=True, verify=4)
    told = lines_of(capsys)
    tiles = max(index for index, line in enumerate(told) if "tile" in line)
    assert tiles < min(index for index, line in enumerate(told) if "verifying" in line)
    assert not tqdm.tqdm._instances


@pytest.mark.parametrize("target", ["array", "file"])
def test_a_run_says_what_it_does_before_its_tiles(capsys, monkeypatch, tmp_path, target):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("HALOTILE_CACHE", str(tmp_path / "cache"))
    model = seeded(lambda: Chain(3))
    options = {"halo": "exact", "tile_size": "auto", "schedule": "tiles", "progress": True}
    image = np.random.default_rng(0).random((700, 600, 3), np.float32)
    if target == "array":
        restore_tiled(image, model, **options)
    else:
        halotile.restore_to(tmp_path / "a.npy", image, model, **options)
    told = lines_of(capsys)
    found = [[i for i, line in enumerate(told) if word in line] for word in ("inspecting", "tuning", "tile")]
    assert all(found) and max(found[0]) < min(found[1]) < max(found[2]), told
    assert "tuning" not in told[-1] and "tile" in told[-1]


def test_callables_count_what_they_are_for():
    model, steps, windows, tiles = seeded(lambda: Chain(3)), [], [], []
    inspect_model(model, progress=lambda *step: steps.append(step))
    assert steps[0] == (0, 6) and steps[-1] == (6, 6) and steps == sorted(steps)
    verify(IMAGE, model, np.zeros_like(IMAGE), windows=3, halo="exact", progress=lambda *step: windows.append(step))
    assert windows == [(0, 3), (1, 3), (2, 3), (3, 3)]
    options = {"tile_size": 40, "halo": "exact", "schedule": "tiles", "verify": 2}
    restore_tiled(IMAGE, model, progress=lambda *step: tiles.append(step), **options)
    assert len({total for _, total in tiles}) == 1 and tiles[-1][0] == tiles[-1][1]

    class Enough(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise Enough

    with pytest.raises(Enough):
        inspect_model(model, progress=stop)
    with pytest.raises(TypeError, match="progress must be True, None or a callable"):
        inspect_model(model, progress=3)


# ---- before and after ------------------------------------------------------------------------------------------------

BLACK, WHITE = np.zeros((60, 80, 3), np.uint8), np.full((120, 160, 3), 255, np.uint8)


def decoded(uri):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_png_files(shape):
    pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    got = decoded("," + base64.b64encode(png_bytes(pixels)).decode())
    np.testing.assert_array_equal(got, pixels[..., 0] if shape[2:] == (1,) else pixels)


def test_both_pictures_are_in_the_page():
    pytest.importorskip("PIL")
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    page = show(BLACK, WHITE)._repr_html_()
    after, before = (decoded(uri) for uri in re.findall(r'src="(data:image/png;base64,[^"]+)"', page))
    np.testing.assert_array_equal(before, BLACK)
    np.testing.assert_array_equal(after, WHITE)
    shown = show(tensor, (IMAGE * 65535).astype(np.uint16), names=("<a>", "b"))
    np.testing.assert_array_equal(shown.before, np.rint(IMAGE.astype(float) * 255).astype(np.uint8))
    assert np.abs(shown.after.astype(int) - shown.before).max() <= 1
    assert "<a>" not in shown._repr_html_() and "&lt;a&gt;" in shown._repr_html_()
    assert "://" not in shown._repr_html_()
    small = show(IMAGE, IMAGE, longest=40)
    np.testing.assert_allclose(small.before, IMAGE.reshape(32, 3, 40, 3, 3).mean((1, 3)) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (np.zeros((60, 60, 3), np.uint8), "same proportions, not 60x80 and 60x60"),
        (np.zeros((2, 60, 80, 3), np.uint8), "after must be a single image, not 2"),
    ],
)
def test_what_cannot_be_shown(after, said):
    with pytest.raises(ValueError, match=said):
        show(BLACK, after)


needs_chromium = pytest.mark.skipif(chromium.CHROMIUM is None, reason="there is no chromium")


def saved_page(path):
    show(BLACK, WHITE, width=400).save(path)


def exported_page(path):
    """As `jupyter nbconvert --to html` writes a notebook whose cell shows both."""
    nbconvert = pytest.importorskip("nbconvert")
    import nbformat

    data = {"text/html": show(BLACK, WHITE, width=400)._repr_html_()}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
    cell = nbformat.v4.new_code_cell("halotile.show(before, after)", outputs=[output], execution_count=1)
    exporter = nbconvert.HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    page, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    path.write_text(page)


@needs_chromium
@pytest.mark.parametrize("write", [saved_page, exported_page])
def test_the_divider_is_dragged_and_nothing_is_fetched(tmp_path, write):
    from PIL import Image

    write(tmp_path / "page.html")
    with chromium.Browser() as browser:
        browser.open(tmp_path / "page.html")
        box = browser.run(
            "(() => { const b = document.querySelector('.halotile-show').getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )

        def dark():
            """Which share of the middle row is black: the picture from before."""
            page = np.asarray(Image.open(io.BytesIO(browser.picture())).convert("L"))
            row = page[int(box[1] + box[3] / 2), int(box[0]) : int(box[0] + box[2])]
            return (row < 128).mean()

        assert box[2:] == [400, 300]
        assert dark() == pytest.approx(0.5, abs=0.02)
        middle = [box[0] + box[2] / 2, box[1] + box[3] / 2]
        browser.drag(middle, [box[0] + box[2] * 0.8, middle[1]])
        assert dark() == pytest.approx(0.8, abs=0.03)
        browser.drag([box[0] + box[2] * 0.8, middle[1]], [box[0] + box[2] * 0.1, middle[1]])
        assert dark() == pytest.approx(0.1, abs=0.03)
        fetched = [one for one in browser.requests if not one.startswith(("data:", "file:", "about:"))]
    assert browser.requests and fetched == []


# ---- example notebooks -----------------------------------------------------------------------------------------------


def executed(path, folder):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kernels = folder / "kernels" / "python3"  # of this interpreter, wherever it is installed
    kernels.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def pages_of(notebook):
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    assert not [one for one in outputs if one.output_type == "error"]
    return [one.data["text/html"] for one in outputs if "text/html" in one.get("data", {})]


@pytest.mark.parametrize("name", ["photo", "scan", "your_own_model"])
def test_the_example_notebooks_run(name, tmp_path, monkeypatch):
    pytest.importorskip("zarr" if name == "scan" else "pyvips")
    paths = [str(Path(halotile.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert all(not cell.get("outputs") for cell in source["cells"])
    pages = pages_of(executed(NOTEBOOKS / f"{name}.ipynb", tmp_path))
    assert len(pages) >= 5 and sum("<svg" in page for page in pages) >= 3
    assert all("http:" not in page.replace("http://www.w3.org/2000/svg", "") for page in pages)
    if os.environ.get("HALOTILE_PAGES"):  # to be looked at
        folder = Path(os.environ["HALOTILE_PAGES"])
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.html").write_text("<!doctype html><meta charset=utf-8><body>" + "<hr>".join(pages))
