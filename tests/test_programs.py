# SPDX-License-Identifier: MIT
"""examples/programs with the real packages, where they are installed; the reference is the whole image."""

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import inspect_model, iter_bands, restore_tiled, restore_to  # noqa: E402

from .networks import Chain, Strided, seeded  # noqa: E402
from .test_published import descriptor  # noqa: E402, F401

FOLDER = Path(__file__).parents[1] / "examples" / "programs"


def program(name, *needs):
    for need in needs:
        pytest.importorskip(need)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def whole(model, batch):
    with torch.inference_mode():
        return model(batch)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_all_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 70, path.name


# ---- MONAI -----------------------------------------------------------------------------------------------------------


def test_monai_inferer():
    inferers, nets = pytest.importorskip("monai.inferers"), pytest.importorskip("monai.networks.nets")
    made = program("monai_inferer")
    torch.manual_seed(0)
    network = nets.UNet(
        spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), norm="batch", act="relu"
    ).eval()
    inputs = torch.randn(2, 1, 176, 160)
    inferer = made.TiledInferer(tile_size=64)
    assert isinstance(inferer, inferers.Inferer)
    got, want = inferer(inputs, network), whole(network, inputs)
    assert (got - want).abs().max() < 1e-5 and inferer.last_run.how == "exact"
    theirs = inferers.SlidingWindowInferer(roi_size=64, overlap=0.25, mode="gaussian")(inputs, network).detach()
    assert (theirs - want).abs().max() > 100 * (got - want).abs().max()
    with pytest.raises(ValueError, match="all be positional or all be named"):
        inferer(inputs, network, 1, more=2)


def test_monai_inferer_passes_further_inputs():
    made = program("monai_inferer", "monai.inferers")

    class Levelled(Chain):
        def forward(self, x, level=1.0):
            return super().forward(x) * level

    network, inputs = seeded(lambda: Levelled(3)), torch.randn(1, 3, 90, 70)
    inferer, level = made.TiledInferer(tile_size=32), torch.tensor(0.5)
    want = whole(network, inputs) * 0.5
    assert (inferer(inputs, network, level) - want).abs().max() < 1e-5
    assert (inferer(inputs, seeded(lambda: Levelled(3)), level=level) - want).abs().max() < 1e-5


# ---- ComfyUI ---------------------------------------------------------------------------------------------------------


def test_comfyui_node():
    """By its published interface: the classes that it looks up, and images (N, H, W, C)."""
    made = program("comfyui_node")
    (name,) = made.NODE_CLASS_MAPPINGS
    assert made.NODE_DISPLAY_NAME_MAPPINGS.keys() == {name}
    kind = made.NODE_CLASS_MAPPINGS[name]
    inputs = kind.INPUT_TYPES()
    assert inputs["required"] == {"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)}
    assert kind.RETURN_TYPES == ("IMAGE",) and isinstance(kind.CATEGORY, str)
    defaults = {key: about[1]["default"] for key, about in inputs["optional"].items()}
    image = torch.rand(2, 80, 64, 3)
    model = seeded(lambda: Chain(3, scale=2))
    (got,) = getattr(kind(), kind.FUNCTION)(upscale_model=model, image=image, **defaults)
    want = (
        restore_tiled(image.permute(0, 3, 1, 2), model, halo="exact", boundary="native").permute(0, 2, 3, 1).clamp(0, 1)
    )
    assert got.shape == (2, 160, 128, 3) and (got - want).abs().max() < 1e-5


def test_comfyui_node_with_a_descriptor(descriptor, monkeypatch):  # noqa: F811
    """As ComfyUI calls it: with its own device and progress bar."""
    made, shown = program("comfyui_node"), []
    comfy = {"model_management": {"get_torch_device": lambda: torch.device("cpu")}}

    class ProgressBar:
        def __init__(self, total):
            shown.append(total)

        def update_absolute(self, value, total=None, preview=None):
            shown.append((value, total))

    comfy["utils"] = {"ProgressBar": ProgressBar}
    monkeypatch.setitem(sys.modules, "comfy", type(sys)("comfy"))
    for name, content in comfy.items():
        module = type(sys)(f"comfy.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
    found, image = descriptor("Compact"), torch.rand(1, 70, 60, 3)
    (got,) = made.HalotileRestore().restore(found, image, memory_mb=500)
    scale = found.scale
    assert got.shape == (1, 70 * scale, 60 * scale, 3) and shown[0] == 1 and shown[-1][0] == shown[-1][1]


# ---- diffusers -------------------------------------------------------------------------------------------------------


def autoencoder(attention):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=attention,
    ).eval()


@pytest.mark.parametrize("attention", [False, True])
def test_diffusers_vae(attention):
    """Also with attention over all latents in its middle."""
    vae, made = autoencoder(attention), program("diffusers_vae")
    latents = torch.randn(1, 4, 60, 52)
    with torch.inference_mode():
        want = vae.decode(latents).sample
        vae.enable_tiling()
        theirs = vae.decode(latents).sample
        vae.disable_tiling()
    got = made.decode(vae, latents, tile_size=24)
    assert got.shape == want.shape and (got - want).abs().max() < 1e-5
    assert (theirs - want).abs().max() > 100 * (got - want).abs().max()


# ---- arrays of others ------------------------------------------------------------------------------------------------


def test_dask_arrays_are_read_block_by_block():
    dask = pytest.importorskip("dask.array")
    image, model, seen = np.random.default_rng(0).integers(0, 256, (301, 203, 3), np.uint8), seeded(Chain), []

    def block(values, block_info=None):
        seen.append(block_info[None]["chunk-location"])
        return values

    lazy = dask.from_array(image, chunks=(50, 100, 3)).map_blocks(block, dtype=np.uint8)
    bands = iter_bands(lazy, model, tile_size=64, halo=2)
    y, first = next(bands)
    assert y == 0 and {row for row, _, _ in seen} == {0, 1}  # nothing below
    got = np.concatenate([first, *(rows for _, rows in bands)])
    np.testing.assert_array_equal(got, restore_tiled(image, model, tile_size=64, halo=2))
    assert sorted(seen) == sorted(set(seen)) and len(seen) == 7 * 3  # each once
    np.testing.assert_array_equal(
        restore_tiled(lazy.transpose(2, 0, 1), model, layout="CHW", tile_size=64, halo=2), got.transpose(2, 0, 1)
    )


def test_h5py_datasets(tmp_path, here):
    h5py = pytest.importorskip("h5py")
    image, model = np.random.default_rng(0).random((97, 83), np.float32), seeded(lambda: Chain(channels=1))
    want = restore_tiled(image, model, tile_size=32, halo=2)
    with h5py.File("a.h5", "w") as file:
        for name, chunks in {"chunked": (20, 30), "plain": None}.items():
            data = file.create_dataset(name, data=image, chunks=chunks)
            np.testing.assert_array_equal(restore_tiled(data, model, tile_size=32, halo=2), want)
            restore_to("out.npy", data, model, tile_size=32, halo=2)
            np.testing.assert_array_equal(np.load("out.npy"), want)


@pytest.mark.parametrize("lazy", [False, True])
def test_xarray_keeps_coordinates(lazy):
    xarray = pytest.importorskip("xarray")
    pixels, model = np.random.default_rng(0).random((3, 40, 60), np.float32), seeded(lambda: Chain(scale=2))
    coordinates = {
        "band": ["red", "green", "blue"],
        "y": ("y", np.linspace(100, 61, 40), {"units": "m"}),
        "x": np.arange(60) * 2.0,
        "when": "today",
        "level": ("y", np.arange(40)),
    }
    scene = xarray.DataArray(pixels, coordinates, ("band", "y", "x"), "scene", {"sensor": "none"})
    given = scene.chunk({"y": 16, "x": 16}) if lazy else scene
    got = restore_tiled(given, model, halo="exact", tile_size=32)
    want = restore_tiled(pixels, model, layout="CHW", halo="exact", tile_size=32)
    np.testing.assert_array_equal(got.values, want)
    assert got.dims == scene.dims and got.name == "scene" and got.attrs == scene.attrs
    np.testing.assert_array_equal(got.coords["band"], scene.coords["band"])
    np.testing.assert_allclose(got.coords["x"], np.arange(120) - 0.5)  # halves of pixels around each centre
    np.testing.assert_allclose(got.coords["y"][:3], [100.25, 99.75, 99.25])
    assert got.coords["y"].attrs == {"units": "m"} and got.coords["when"] == "today"
    np.testing.assert_allclose(got.coords["level"][:3], [-0.25, 0.25, 0.75])


# ---- files of others -------------------------------------------------------------------------------------------------


def test_geotiff(here):
    rasterio = pytest.importorskip("rasterio")
    made = program("geotiff", "rasterio")
    image = np.random.default_rng(0).integers(1, 2000, (4, 90, 110), np.uint16)
    image[:, 20:30, 40:60] = 0
    transform = rasterio.Affine(10, 0, 399960, 0, -10, 4500000)
    about = {"driver": "GTiff", "width": 110, "height": 90, "count": 4, "dtype": "uint16", "nodata": 0}
    with rasterio.open(
        "in.tif", "w", crs="EPSG:32633", transform=transform, tiled=True, blockxsize=32, blockysize=32, **about
    ) as file:
        file.write(image)
        file.colorinterp = [rasterio.enums.ColorInterp.gray] * 4
        file.update_tags(SENSOR="none")
    model = seeded(lambda: Chain(channels=4, scale=2))
    options = {"halo": "exact", "tile_size": 48, "white": 10000}
    made.restore_scene("in.tif", "out.tif", model, **options)
    want = restore_tiled(image, model, layout="CHW", nodata=0, alpha="channel", **options)
    with rasterio.open("out.tif") as file:
        np.testing.assert_array_equal(file.read(), want)
        assert file.crs.to_epsg() == 32633 and file.nodata == 0 and file.tags()["SENSOR"] == "none"
        assert file.transform == rasterio.Affine(5, 0, 399960, 0, -5, 4500000)
        assert file.bounds == rasterio.open("in.tif").bounds
    assert (want[:, 44:56, 84:116] == 0).all()


def test_slides_skip_what_has_no_tissue(here):
    pytest.importorskip("openslide")
    tifffile, zarr = pytest.importorskip("tifffile"), pytest.importorskip("zarr")
    made = program("slides", "openslide")
    image = np.full((2300, 3200, 3), 245, np.uint8)
    image[300:900, 1500:2900] = np.random.default_rng(0).integers(0, 256, (600, 1400, 3), np.uint8)
    tifffile.imwrite("slide.tif", image, tile=(256, 256), photometric="rgb")
    model = seeded(lambda: Strided(2))  # with a phase, which its field is no multiple of
    info = inspect_model(model)
    assert max(info.phase) > 1 and max(info.halo) % max(info.phase)
    options = {"halo": max(info.halo), "phase": info.phase, "tile_size": 256}
    skipped = made.restore_slide("slide.tif", "out.zarr", model, **options)
    got, want = zarr.open_array("out.zarr", mode="r")[:], restore_tiled(image, model, **options)
    assert skipped == (10, 12)
    np.testing.assert_array_equal(got[:1024, 1024:3072], want[:1024, 1024:3072])  # as in one piece, over blocks
    assert (got[1024:] == 255).all() and (got[:1024, :1024] == 255).all()


# ---- sizes for others ------------------------------------------------------------------------------------------------


def test_bioimageio_axes():
    made = program("bioimage")
    info = inspect_model(seeded(lambda: Chain(3, scale=2)))
    inputs, outputs = made.bioimageio_axes(info)
    halo = max(info.halo)
    assert [one["id"] for one in inputs] == ["y", "x"] and inputs[0]["size"]["step"] == 1
    assert outputs[1]["halo"] == 2 * halo and Fraction(outputs[1]["scale"]) == Fraction(1, 2)
    spec = pytest.importorskip("bioimageio.spec.model.v0_5")
    for one in inputs:
        spec.SpaceInputAxis.model_validate(one)
    for one in outputs:
        spec.SpaceOutputAxisWithHalo.model_validate(one)


def test_careamics_overlap_is_enough():
    """Tiles cropped by half the overlap, as CAREamics does, put together by hand."""
    made, model = program("bioimage"), seeded(Chain)
    overlap = made.careamics_overlap(inspect_model(model))
    image, side, half = torch.rand(1, 3, 96, 96), 48, overlap[0] // 2
    want, step = whole(model, image), side - overlap[0]
    for y in range(0, 96 - side + 1, step):
        got = whole(model, image[..., y : y + side, 0:side])[..., half : side - half, half : side - half]
        assert (got - want[..., y + half : y + side - half, half : side - half]).abs().max() < 1e-6


def test_whole_images_have_no_overlap():
    info = inspect_model(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3)))
    with pytest.raises(ValueError, match="sees the whole image"):
        program("bioimage").careamics_overlap(info)
    with pytest.raises(ValueError, match="sees the whole image"):
        program("bioimage").bioimageio_axes(info)
