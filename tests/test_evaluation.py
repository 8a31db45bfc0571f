# SPDX-License-Identifier: MIT
"""evaluate(): the figures are those of the formulas that papers use, pairs are found by name, and CI is told."""

import csv
import io
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from halotile import TiledRestorer, evaluate, metrics, restore_tiled
from halotile.evaluation import luma
from halotile.files.pairs import find_pairs

GENERATOR = np.random.default_rng(5)
SMALL = GENERATOR.integers(0, 256, (40, 52, 3), np.uint8)
LARGE = SMALL.repeat(2, 0).repeat(2, 1)
NOISY = np.clip(LARGE.astype(int) + GENERATOR.integers(-9, 10, LARGE.shape), 0, 255).astype(np.uint8)


def enlarge(windows):
    return windows.repeat(2, axis=2).repeat(2, axis=3)


def psnr_of(a, b):
    return 10 * math.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def y_of(image):
    """rgb2ycbcr of MATLAB in doubles, written out."""
    red, green, blue = (image[..., index] / 255.0 for index in range(3))
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def test_what_is_equal_has_an_infinite_psnr_and_a_similarity_of_one():
    found = evaluate([(SMALL, LARGE)], enlarge)
    assert found.scores[0].psnr == math.inf and found.scores[0].ssim == pytest.approx(1)
    assert json.loads(found.to_json())["scores"][0] | {"seconds": 0} == {
        "image": "0", "psnr": None, "ssim": pytest.approx(1), "equal": True, "seconds": 0, "error": None,
    }  # fmt: skip
    assert next(csv.DictReader(io.StringIO(found.to_csv())))["psnr"] == "inf"


def test_figures_are_those_of_the_formulas():
    plain = evaluate([(SMALL, NOISY)], enlarge).scores[0]
    assert plain.psnr == pytest.approx(psnr_of(LARGE, NOISY))
    assert plain.ssim == pytest.approx(metrics.ssim(LARGE, NOISY))
    y = evaluate([(SMALL, NOISY)], enlarge, y_channel=True).scores[0]
    assert y.psnr == pytest.approx(psnr_of(y_of(LARGE), y_of(NOISY)))
    assert y.ssim == pytest.approx(metrics.ssim(y_of(LARGE), y_of(NOISY), 255))
    inner = np.s_[2:-2, 2:-2]
    cropped = evaluate([(SMALL, NOISY)], enlarge, y_channel=True, crop_border="scale").scores[0]
    assert cropped.psnr == pytest.approx(psnr_of(y_of(LARGE)[inner], y_of(NOISY)[inner]))
    assert cropped.psnr != pytest.approx(y.psnr, abs=1e-6)


def test_luma_of_white_black_and_grey():
    colours = np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)
    np.testing.assert_allclose(luma(colours, layout="HWC").ravel(), [235, 16])
    grey = np.array([[0, 128, 255]], np.uint8)
    np.testing.assert_allclose(luma(grey, layout="HW").ravel(), [0, 128, 255])


def test_a_target_that_is_larger_by_less_than_the_scale_is_cut():
    bigger = np.pad(LARGE, ((0, 1), (0, 1), (0, 0)))
    assert evaluate([(SMALL, bigger)], enlarge).scores[0].psnr == math.inf
    far = evaluate([(SMALL, np.pad(LARGE, ((0, 2), (0, 0), (0, 0))))], enlarge).scores[0]
    assert far.psnr is None and "3 channels of 80x104" in far.error and "82x104" in far.error


def test_an_image_that_fails_does_not_stop_the_others():
    found = evaluate([(SMALL, LARGE[..., 0]), ("not there.png", LARGE), (SMALL, NOISY)], enlarge)
    assert [one.error is None for one in found.scores] == [False, False, True]
    assert found.mean() == found.scores[2].psnr and len(found.failed) == 2
    assert "mean of 1" in str(found) and found.scores[1].error in str(found)
    assert found.below(psnr=10) == [
        f"{index}: no PSNR to compare with 10 dB: {found.scores[index].error}" for index in (0, 1)
    ]


def test_what_is_below_what():
    found = evaluate([(SMALL, NOISY), (SMALL, LARGE)], enlarge)
    limit = psnr_of(LARGE, NOISY) + 0.01
    assert found.below(psnr=limit - 0.02) == []
    (said,) = found.below(psnr=limit)
    assert said == f"0: PSNR {limit - 0.01:.4f} dB is below {limit:g} dB"
    suite = ElementTree.fromstring(found.to_junit(psnr=limit))
    assert suite.attrib["tests"] == "2" and suite.attrib["failures"] == "1" and suite.attrib["errors"] == "0"
    assert [case.find("failure") is None for case in suite.findall("testcase")] == [False, True]
    assert suite.find("testcase/failure").attrib["message"] == said


def test_results_are_rounded_to_the_dtype_of_the_target():
    fine = (LARGE * 257.0).astype(np.uint16)
    assert evaluate([(SMALL, fine)], enlarge).scores[0].psnr == math.inf
    asked = evaluate([(SMALL, fine)], enlarge, out_dtype="uint8").scores[0]
    assert asked.error == "result and target must have one dtype, not uint8 and uint16"


def test_further_metrics_and_scores_as_they_come():
    seen = []
    found = evaluate(
        [(SMALL, NOISY)],
        TiledRestorer(enlarge, tile_size=32),
        metrics={"worst": lambda a, b: np.abs(a.astype(int) - b).max()},
        on_score=seen.append,
    )
    assert found.scores[0].others == {"worst": 9} and seen == list(found.scores)
    assert "worst" in str(found).splitlines()[0] and found.mean("worst") == 9
    assert "<th>worst</th>" in found._repr_html_()


def test_without_a_model_inputs_are_results():
    assert evaluate([(LARGE, NOISY)], None).scores[0].psnr == pytest.approx(psnr_of(LARGE, NOISY))
    with pytest.raises(TypeError, match="options must be left out without a model, not halo"):
        evaluate([(LARGE, NOISY)], None, halo=3)


@pytest.mark.parametrize("wrong", [{"crop_border": -1}, {"crop_border": "big"}, {"hallo": 3}])
def test_bad_options(wrong):
    with pytest.raises((ValueError, TypeError), match=r"crop_border|hallo"):
        evaluate([(SMALL, LARGE)], enlarge, **wrong)
    with pytest.raises(ValueError, match="at least one"):
        evaluate([], enlarge)


def test_a_border_that_leaves_nothing():
    assert (
        "crop_border must leave something of 80x104"
        in evaluate([(SMALL, LARGE)], enlarge, crop_border=40).scores[0].error
    )


# ---- files -----------------------------------------------------------------------------------------------------------


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("inputs", "targets", "names"),
    [
        (("a.png", "b.jpg"), ("b.tif", "a.png"), [("a.png", "a.png"), ("b.jpg", "b.tif")]),
        (
            ("babyx4.png", "birdx4.png"),
            ("bird.png", "baby.png"),
            [("babyx4.png", "baby.png"), ("birdx4.png", "bird.png")],
        ),
        (("a_noisy.png",), ("a_clean.png",), [("a_noisy.png", "a_clean.png")]),
        (("max4.png", "ma.png"), ("max4.png", "ma.png"), [("ma.png", "ma.png"), ("max4.png", "max4.png")]),
    ],
)
def test_pairs_are_found_by_name(tmp_path, inputs, targets, names):
    touch(tmp_path / "LR", *inputs, ".hidden.png", "notes.txt")
    touch(tmp_path / "HR", *targets)
    for found in (find_pairs(tmp_path), find_pairs(tmp_path / "LR", tmp_path / "HR")):
        assert [(pair.input.rsplit("/")[-1], pair.target.rsplit("/")[-1]) for pair in found] == names


def test_pairs_in_one_folder(tmp_path):
    touch(tmp_path, "img_001_SRF_4_LR.png", "img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png", "img_002_SRF_4_LR.png")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png"]


@pytest.mark.parametrize(
    ("inputs", "targets", "said"),
    [
        (("a.png", "b.png"), ("a.png",), "1 of 3 files have no partner of the same name: .*b.png"),
        (("a.png",), ("a.png", "c.png"), "1 of 3 files have no partner of the same name: .*c.png"),
        (("ax2.png", "ax4.png"), ("a.png",), "several inputs have this target"),
        ((), (), "no image files"),
    ],
)
def test_files_without_a_partner(tmp_path, inputs, targets, said):
    touch(tmp_path / "input", *inputs)
    touch(tmp_path / "target", *targets)
    with pytest.raises(ValueError, match=said):
        find_pairs(tmp_path)


def test_a_folder_without_pairs(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(ValueError, match="holds no folders such as input and target"):
        find_pairs(tmp_path)
    touch(tmp_path / "gt", "a.png")
    with pytest.raises(ValueError, match="must hold one folder of inputs"):
        find_pairs(tmp_path)


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    pytest.importorskip("pyvips")
    from halotile.files.picture import write_image

    monkeypatch.chdir(tmp_path)
    for name, kind, image in (
        ("ax2.png", "lr", SMALL), ("bx2.png", "lr", SMALL), ("a.png", "hr", LARGE), ("b.png", "hr", NOISY),
    ):  # fmt: skip
        (tmp_path / kind).mkdir(exist_ok=True)
        write_image(tmp_path / kind / name, image)
    (tmp_path / "filters.py").write_text("def enlarge(w):\n    return w.repeat(2, axis=2).repeat(2, axis=3)\n")
    return tmp_path


def run(*arguments):
    from halotile import cli

    return cli.main([str(one) for one in arguments])


def test_the_command_line(folders, capsys):
    limit = psnr_of(LARGE, NOISY) + 0.01
    common = ("evaluate", "-m", "filters:enlarge", "--pairs", ".", "--tile", 32)
    assert run(*common, "--csv", "s.csv", "--junit", "s.xml") == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].split() == ["image", "PSNR,", "dB", "SSIM", "seconds"]
    assert f"{limit - 0.01:.2f}" in told and "measured on all channels, whole images" in told
    assert [row["image"] for row in csv.DictReader((folders / "s.csv").read_text().splitlines())] == ["a.png", "b.png"]
    assert ElementTree.parse("s.xml").getroot().attrib["failures"] == "0"
    assert run(*common, "--csv", "s.csv") == 2
    assert capsys.readouterr().err == "halotile: error: s.csv exists; --force overwrites it\n"
    assert run(*common, "--force", "--junit", "s.xml", "--fail-below", limit, "--quiet") == 1
    out, err = capsys.readouterr()
    assert out == "" and err == f"halotile: b.png: PSNR {limit - 0.01:.4f} dB is below {limit:g} dB\n"
    assert ElementTree.parse("s.xml").getroot().attrib["failures"] == "1"
    assert run(*common, "--json", "--y-channel", "--crop-border", "scale") == 0
    found = json.loads(capsys.readouterr().out)
    inner = np.s_[2:-2, 2:-2]
    assert found["scores"][1]["psnr"] == pytest.approx(psnr_of(y_of(LARGE)[inner], y_of(NOISY)[inner]))
    assert found["y_channel"] is True and found["crop_border"] == "scale"


def test_files_that_fail(folders, capsys):
    (folders / "lr" / "bx2.png").write_bytes(b"no image")
    assert run("evaluate", "-m", "filters:enlarge", "--pairs", ".", "--fail-below", 10) == 2
    out, err = capsys.readouterr()
    assert "mean of 1" in out and err.count("\n") == 1 and "halotile: error: b.png: lr/bx2.png" in err.replace("./", "")


def test_folders_are_compared(folders, capsys):
    (folders / "mine").mkdir()
    from halotile.files.picture import write_image

    for name, image in (("a.png", LARGE), ("b.png", LARGE)):
        write_image(folders / "mine" / name, image)
    limit = psnr_of(LARGE, NOISY) + 0.01
    assert run("compare", "hr", "mine") == 0
    assert f"{limit - 0.01:.2f}" in capsys.readouterr().out
    assert run("compare", "hr", "mine", "--fail-below", limit) == 1
    assert capsys.readouterr().err == f"halotile: b.png: PSNR {limit - 0.01:.4f} dB is below {limit:g} dB\n"
    assert run("compare", "hr/b.png", "mine/b.png", "--fail-below", limit) == 1
    assert capsys.readouterr().err == f"halotile: mine/b.png: PSNR {limit - 0.01:.4f} dB is below {limit:g} dB\n"
    assert run("compare", "hr", "mine", "--heatmap", "x.png") == 2
    assert run("compare", "hr/a.png", "mine/a.png", "--y-channel") == 2


def test_the_included_model_is_settled_as_restore_does(folders, capsys):
    pytest.importorskip("torch")
    (folders / "clean").mkdir()
    from halotile.files.picture import read_image, write_image

    write_image(folders / "clean" / "a.png", LARGE)
    (folders / "noisy").mkdir()
    write_image(folders / "noisy" / "a.png", NOISY)
    assert run("evaluate", "--pairs", "noisy", "--targets", "clean", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    from halotile import load_model

    want = restore_tiled(read_image("noisy/a.png").pixels, load_model(), halo="exact", phase=None)
    assert found["scores"][0]["psnr"] == pytest.approx(psnr_of(want, LARGE), abs=1e-3)
