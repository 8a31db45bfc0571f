# SPDX-License-Identifier: MIT
"""restore_to(cluster=...) on worker processes: the bytes of one process, wherever image and model come from."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
zarr = pytest.importorskip("zarr")
distributed = pytest.importorskip("distributed")
pytest.importorskip("pyvips")

from halotile import TiledRestorer, TileError, restore_to  # noqa: E402
from halotile.cli import main  # noqa: E402
from halotile.files.picture import write_image  # noqa: E402

from .networks import Delicate, seeded  # noqa: E402
from .on_cluster import (  # noqa: E402
    STREAM,
    TILES,
    Failing,
    Slow,
    Squeezed,
    calls,
    cluster_of,
    content,
    network,
    place,  # noqa: F401
    written,
)

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def client():
    with cluster_of(2) as client:
        yield client


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (600, 310, 3), np.uint8)


def whole(path, model=None, **options):
    restore_to("whole.zarr", path, network() if model is None else model, **options)
    return content("whole.zarr")


@pytest.mark.parametrize("options", [TILES, STREAM | {"out_dtype": "float32"}], ids=["tiles", "stream"])
def test_workers_give_the_bytes_of_one_process(client, image, options):
    path = written(image)
    want, seen = whole(path, **options), []
    run = restore_to("out.zarr", path, network(), cluster=client, progress=lambda *now: seen.append(now), **options)
    assert content("out.zarr") == want
    assert seen[-1] == (5, 5)
    spread = run.spread
    assert spread.shards == 5
    assert sum(share.rows for share in spread.workers) >= 5  # a slow machine makes some twice
    assert spread.seam == 0
    assert spread.blocks > 1
    assert 1 <= spread.recompute <= 2  # an idle worker may have taken half of the other's block
    assert 1 < spread.planned < 1.5
    assert spread.read >= 1
    assert sum(share.written_bytes for share in spread.workers) == sum(map(len, want.values())) - len(want["zarr.json"])
    assert run.schedule == ("stream" if "schedule" in options else "tiles")


def test_the_model_runs_on_both_workers_and_travels_by_state(client, image):
    path = written(image)
    os.mkdir("calls")
    model = Slow(0.02, os.path.abspath("calls"))
    with torch.no_grad():
        model.inner.layers[0].weight.mul_(1.5)
    want = whole(path, model, **TILES)
    os.remove(f"calls/{os.getpid()}")
    restorer = TiledRestorer(model, **TILES)
    run = restore_to("out.zarr", path, restorer, cluster=client)
    assert content("out.zarr") == want
    assert restorer.last_run is run
    assert len(calls("calls")) == 2
    assert os.getpid() not in calls("calls")


@pytest.mark.parametrize("kind", ["tif", "pyramid", "npy", "array", "dask"])
def test_images_come_from_anywhere_that_workers_reach(client, image, kind):
    path = written(image)
    want = whole(path, **TILES)
    given = path
    if kind == "tif":
        write_image("in.tif", image)
        given = "in.tif"
    elif kind == "pyramid":
        pyvips = pytest.importorskip("pyvips")
        pyvips.Image.new_from_array(image).tiffsave("in.tif", tile=True, pyramid=True, tile_width=64, tile_height=64)
        given = "in.tif"
    elif kind == "npy":
        np.save("in.npy", image)
        given = "in.npy"
    elif kind == "array":
        given = zarr.open_array(path, mode="r")
    else:
        dask_array = pytest.importorskip("dask.array")
        given = 255 - (255 - dask_array.from_zarr(path).rechunk((100, 310, 3)))
    restore_to("out.zarr", given, network(), cluster=client, **TILES)
    assert content("out.zarr") == want


def test_models_come_by_name_and_by_file(client, image):
    path = written(image)
    want = whole(path, **TILES)
    restore_to("out.zarr", path, "tests.on_cluster:network()", cluster=client, **TILES)
    assert content("out.zarr") == want
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("Sub", ["one", "x"], ["y"])
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, kind, ["n", 3, "h", "w"]) for name in ("x", "y")]
    one = onnx.helper.make_tensor("one", kind, [1], [1.0])
    graph = onnx.helper.make_graph([node], "less", ends[:1], ends[1:], [one])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, "less.onnx")
    restore_to("less.zarr", path, "less.onnx", cluster=client, phase=1, **TILES)
    np.testing.assert_array_equal(zarr.open_array("less.zarr")[:], 255 - image)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"image": np.zeros((50, 50, 3), np.uint8)}, TypeError, "memory of this process"),
        ({"path": "out.tif"}, ValueError, "must end in .zarr"),
        ({"image": "nothing.zarr"}, FileNotFoundError, "nothing.zarr"),
        ({"cluster": 3}, TypeError, "cluster must be a client"),
        ({"cluster": "nonsense://x"}, ValueError, "address of a scheduler"),
        ({"size": (5, 5)}, ValueError, "background and size"),
        ({"halo": -1}, ValueError, "halo"),
        ({"verify": 3}, ValueError, "verify"),
        ({"model": "no.such.model:x"}, ImportError, "no.such.model"),
        ({"resume": 1}, TypeError, "resume"),
    ],
)
def test_what_cannot_be_is_refused_with_nothing_left(client, image, changed, error, said):
    given = {"path": "out.zarr", "image": written(image), "model": network(), "cluster": client} | TILES | changed
    with pytest.raises(error, match=said):
        restore_to(given.pop("path"), given.pop("image"), given.pop("model"), **given)
    assert sorted(os.listdir()) == ["in.zarr"]


def test_what_a_model_raises_arrives(client, image):
    image[350, 100] = 255
    image[:300] //= 2
    image[400:] //= 2
    with pytest.raises(TileError, match="white is too much") as caught:
        restore_to("out.zarr", written(image), Failing(), cluster=client, **TILES, scale=1, phase=1)
    assert caught.value.box[0] <= 350 < caught.value.box[0] + caught.value.box[2]
    assert sorted(os.listdir()) == ["in.zarr"]


def test_what_a_progress_callback_raises_ends_the_run(client, image):
    def progress(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        restore_to("out.zarr", written(image), network(), cluster=client, progress=progress, **TILES)
    assert sorted(os.listdir()) == ["in.zarr"]


def test_completed_shards_are_not_made_again(client, image):
    path = written(image)
    want = whole(path, **TILES)
    os.mkdir("calls")
    model = Slow(0.02, os.path.abspath("calls"))

    def progress(done, total):
        if done >= 3:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        restore_to("out.zarr", path, model, cluster=client, resume=True, progress=progress, **TILES)
    assert not os.path.exists("out.zarr")
    with pytest.raises(ValueError, match="halo is 5x5 and was 4x4"):
        restore_to("out.zarr", path, model, cluster=client, resume=True, **TILES | {"halo": 5})
    run = restore_to("out.zarr", path, model, cluster=client, resume=True, **TILES)
    assert run.spread.kept >= 3
    assert sum(share.rows for share in run.spread.workers) >= run.spread.shards - run.spread.kept
    restore_to("out2.zarr", path, network(), cluster=client, **TILES)
    assert content("out.zarr") == content("out2.zarr") == want


def test_without_resume_a_run_starts_anew(client, image):
    path = written(image)
    want = whole(path, **TILES)

    def progress(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        restore_to("out.zarr", path, network(), cluster=client, resume=True, progress=progress, **TILES)
    assert [name for name in os.listdir() if name.startswith(".halotile")]
    run = restore_to("out.zarr", path, network(), cluster=client, **TILES)
    assert run.spread.kept == 0
    assert content("out.zarr") == want


def test_an_old_result_is_replaced_when_the_new_one_is_complete(client, image):
    path = written(image)
    restore_to("out.zarr", path, network(), cluster=client, tile_size=64, halo=0)
    old = content("out.zarr")
    image[-1, -1] = 255
    with pytest.raises(TileError):
        restore_to("out.zarr", written(image, "white.zarr"), Failing(), cluster=client, scale=1, phase=1, **TILES)
    assert content("out.zarr") == old
    want = whole(path, **TILES)
    restore_to("out.zarr", path, network(), cluster=client, **TILES)
    assert content("out.zarr") == want != old


def test_without_dask_an_error_says_what_to_install(image):
    code = "import sys; sys.modules['distributed'] = None\n"
    code += "from halotile import restore_to\n"
    code += "restore_to('out.zarr', 'in.zarr', lambda x: x, cluster='local')"
    written(image)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: cluster= needs dask: pip install 'halotile[dask]'" in done.stderr


def test_statistics_of_the_whole_image_are_those_of_one_process(client, image):
    path = written(image)
    options = {"tile_size": 100, "halo": "exact", "global_stats": "exact", "out_dtype": "float32"}
    want = whole(path, Squeezed(), **options)
    run = restore_to("out.zarr", path, Squeezed(), cluster=client, **options)
    assert content("out.zarr") == want
    assert run.global_stats == "exact"


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["argmax", lambda rows: rows[:2] * 2], ids=["argmax", "function"])
@pytest.mark.parametrize("options", [TILES, STREAM], ids=["tiles", "stream"])
def test_labels_are_made_on_workers(client, image, options, reduce):
    path, model = written(image), seeded(lambda: torch.nn.Conv2d(3, 20, 5, padding=2))
    want = whole(path, model, reduce=reduce, **options)
    restore_to("out.zarr", path, model, cluster=client, reduce=reduce, **options)
    assert content("out.zarr") == want


def test_what_is_made_again_in_float32_is_counted(client, image):
    image[:9, :9] = image[600 // 2 :, 200] = 255
    path, options = written(image), TILES | {"dtype": "float16", "on_nonfinite": "retry"}
    want = whole(path, seeded(Delicate), **options)
    run = restore_to("out.zarr", path, seeded(Delicate), cluster=client, **options)
    assert content("out.zarr") == want
    assert run.retried == restore_to("again.zarr", path, seeded(Delicate), **options).retried > 1


def test_grids_that_take_turns_are_refused(client, image):
    with pytest.raises(ValueError, match=r"shift_average must be 1 with cluster, not 3: .*one after the other"):
        restore_to("out.zarr", written(image), network(), cluster=client, shift_average=3, **TILES)
    assert not os.path.exists("out.zarr")


def test_a_local_cluster_leaves_the_environment_as_it_was(image):
    path = written(image)
    want, before = whole(path, **TILES), dict(os.environ)
    restore_to("out.zarr", path, network(), cluster="local", **TILES)
    assert content("out.zarr") == want
    assert dict(os.environ) == before


def test_the_command_line_gives_the_same(client, image, capsys):
    path = written(image)
    want = whole(path, tile_size=100, halo=4, phase=1)
    address = client.scheduler.address
    common = ["--model", "tests.on_cluster:network()", "--tile", "100", "--halo", "4", "--phase", "1"]
    assert main(["restore", path, "-o", "out.zarr", "--cluster", address, *common, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["files"][0]
    assert content("out.zarr") == want
    assert told["status"] == "restored"
    assert told["output_size"] == [620, 1200]
    assert told["spread"]["shards"] == 5
    assert sum(one["rows"] for one in told["spread"]["workers"]) >= 5  # a slow machine makes some twice
    assert main(["restore", path, "-o", "out.zarr", "--cluster", address, *common]) == 2
    assert main(["restore", path, "-o", "out.zarr", "--cluster", address, *common, "--resume"]) == 0
    assert "exists, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-o", "out.tif"], "--cluster writes zarr arrays"),
        (["-o", "out.zarr", "--verify", "3"], "--verify and --cluster"),
        (["-o", "out.zarr", "--page", "1"], "--page and --cluster"),
    ],
)
def test_what_workers_cannot_do_is_a_usage_error(image, capsys, more, said):
    assert main(["restore", written(image), "--cluster", "tcp://127.0.0.1:9", *more]) == 2
    assert said in capsys.readouterr().err


# ---- unequal workers -------------------------------------------------------------------------------------------------


def test_workers_with_a_device_are_asked_alone(image):
    """Where a worker declares a resource GPU, blocks take one, and others get none."""
    path = written(image)
    want = whole(path, **TILES)
    with (
        distributed.SpecCluster(
            workers={
                "plain": {"cls": distributed.Worker, "options": {"nthreads": 1}},
                "device": {"cls": distributed.Worker, "options": {"nthreads": 2, "resources": {"GPU": 1}}},
            },
            scheduler={"cls": distributed.Scheduler, "options": {"dashboard_address": ":0"}},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        about = client.scheduler_info(n_workers=-1)["workers"]
        device = next(address for address, one in about.items() if one["resources"])
        run = restore_to("out.zarr", path, network(), cluster=client, **TILES)
    assert content("out.zarr") == want
    assert {share.worker for share in run.spread.workers} == {device}
