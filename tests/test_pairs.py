# SPDX-License-Identifier: MIT
"""What comes out of every kind of image and model: run, recognised by its values, and compared with docs/images.md.

`python -m tests.test_pairs` prints the table.
"""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from halotile import ColourWarning, ModelInputError, TiledRestorer, TileError, restore_tiled  # noqa: E402

from .networks import seeded  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs" / "images.md"
KINDS = {
    "grey (H, W)": (12, 15),
    "grey (H, W, 1)": (12, 15, 1),
    "grey, alpha": (12, 15, 2),
    "RGB": (12, 15, 3),
    "RGBA": (12, 15, 4),
}
SIDES = (1, 2, 3, 4)


def image_of(kind):
    return np.random.default_rng(3).uniform(0.1, 1, KINDS[kind]).astype(np.float32)


def model_of(takes, makes):
    torch.manual_seed(10 * takes + makes)
    return nn.Conv2d(takes, makes, 1).eval()


def meanings(image, model, makes):
    """What a result may be, by how the table says it: (H, W, channels)."""

    def made(*channels):
        with torch.inference_mode():
            return model(torch.from_numpy(np.stack(channels)[None]))[0].permute(1, 2, 0).numpy()

    def mean(channel):
        return made(channel, channel, channel).mean(2, keepdims=True)

    planes = list(np.atleast_3d(image).transpose(2, 0, 1))
    colours, alpha = (planes[:-1], planes[-1:]) if len(planes) in (2, 4) else (planes, [])
    kept = [channel[..., None] for channel in alpha]
    beside = ", alpha kept" if alpha else ""
    takes = model.in_channels
    if takes == 1:
        if makes == 1:
            yield "each", [made(channel) for channel in planes]
        else:
            red, green, blue = colours if len(colours) == 3 else colours * 3
            grey = 0.299 * red + 0.587 * green + 0.114 * blue
            yield "of its grey" + beside, [made(grey), *kept]
    if takes == 3:
        if len(colours) == 3:
            yield "together" + (", alpha as grey" if alpha else ""), [made(*colours), *(mean(a) for a in alpha)]
            yield "together" + beside, [made(*colours), *kept]
        else:
            if makes == 3:
                yield "mean" + (", alpha as grey" if alpha else ""), [mean(colours[0]), *(mean(a) for a in alpha)]
            yield "repeated" + beside, [made(*colours * 3), *kept]
    if takes == len(planes) and alpha:
        yield "together", [made(*planes)]


def recognised(kind, takes, makes):
    """The table's cell, from a run."""
    image, model = image_of(kind), model_of(takes, makes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ColourWarning)
            result = restore_tiled(image, model, tile_size=8, halo=1)
    except TileError as error:
        assert isinstance(error, ValueError)
        return "refused"
    shape = "(H, W)" if result.ndim == 2 else f"(H, W, {result.shape[2]})"
    full = np.atleast_3d(result)
    for meaning, parts in meanings(image, model, makes):
        want = np.concatenate(parts, 2)
        if want.shape == full.shape and np.abs(want - full).max() < 1e-5:
            return f"{shape} {meaning}"
    raise AssertionError(f"{kind} through {takes} -> {makes} gives {shape}, of unknown meaning")


def table():
    yield "| image | takes | makes 1 | makes 2 | makes 3 | makes 4 |"
    yield "|---|---|---|---|---|---|"
    for kind, takes in itertools.product(KINDS, SIDES):
        cells = [recognised(kind, takes, makes) for makes in SIDES]
        yield f"| {kind} | {takes} | {' | '.join(cells)} |"


def test_the_table_is_what_is_done():
    text = DOCS.read_text()
    for line in table():
        assert f"{line}\n" in text, f"not in docs/images.md: {line}"


@pytest.mark.parametrize(
    ("kind", "takes", "words"),
    [
        ("grey (H, W)", 2, r"image has 1 channel \(grey\) and the model takes 2; pass an image of 2 channels"),
        ("grey, alpha", 4, r"image has 2 channels \(grey and alpha\) and the model takes 4; pass an image of 4"),
        (
            "RGB",
            4,
            r"image has 3 channels \(colour\) and the model takes 4; pass an image of 4 channels, and alpha='channel'",
        ),
        ("RGB", 2, r"image has 3 channels \(colour\) and the model takes 2; .* such as image\[\.\.\., :2\]"),
        ("RGBA", 2, r"image has 4 channels \(colour and alpha\) and the model takes 2; .* such as image\[\.\.\., :2\]"),
    ],
)
def test_what_is_refused_says_both_numbers_and_the_cure(kind, takes, words):
    for engine in ("host", "torch"):
        with pytest.raises(ModelInputError, match=words) as caught:
            restore_tiled(image_of(kind), model_of(takes, takes), engine=engine)
        assert isinstance(caught.value.__cause__, RuntimeError)
    tensor = torch.from_numpy(np.moveaxis(np.atleast_3d(image_of(kind)), 2, 0).copy())
    with pytest.raises(ModelInputError, match=r"such as image\[:2\]" if "such" in words else "and the model takes"):
        restore_tiled(tensor, model_of(takes, takes))


@pytest.mark.parametrize(("takes", "makes"), [(1, 2), (1, 4), (3, 2), (3, 4), (4, 3), (2, 3)])
def test_alpha_that_belongs_to_no_picture(takes, makes):
    kind = "grey, alpha" if takes == 2 else "RGBA"
    with pytest.raises(ValueError, match="alpha='channel'"):
        restore_tiled(image_of(kind), model_of(takes, makes))
    if takes == 3:
        with pytest.raises(ValueError, match=f"the model makes {makes} channels of colour.*without alpha"):
            restore_tiled(image_of(kind), model_of(takes, makes), alpha="opaque")


@pytest.mark.parametrize("alpha", ["resize", "opaque"])
@pytest.mark.parametrize(("takes", "makes"), [(1, 3), (3, 1), (1, 1), (3, 3)])
def test_alpha_options_beside_colours_of_grey(takes, makes, alpha):
    image = image_of("RGBA")
    got = restore_tiled(image, model_of(takes, makes), alpha=alpha)
    want = restore_tiled(image[..., :3].copy(), model_of(takes, makes))
    np.testing.assert_array_equal(got[..., :-1], want)
    np.testing.assert_allclose(got[..., -1], 1 if alpha == "opaque" else image[..., -1], rtol=1e-6)


# ---- models whose first convolution is not what sees the image -------------------------------------------------------


class Brightness(nn.Module):
    """Works on what is bright, whatever the colour: a mean, a sum with weights, or the largest channel."""

    def __init__(self, of):
        super().__init__()
        self.conv, self.of = nn.Conv2d(1, 1, 3, padding=1), of
        self.register_buffer("weights", torch.tensor([0.299, 0.587, 0.114])[:, None, None])

    def forward(self, x):
        values = {"mean": lambda: x.mean(1), "weights": lambda: (x * self.weights).sum(1), "max": lambda: x.amax(1)}
        return x + self.conv(values[self.of]()[:, None])


class EachByItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return torch.cat([(k + 1) * self.conv(x[:, k : k + 1]) for k in range(x.shape[1])], 1)


class Guided(nn.Module):
    """What comes first is a map of the brightness, of eight channels."""

    def __init__(self):
        super().__init__()
        self.guide, self.conv = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.sigmoid(self.guide(x.amax(1, keepdim=True))))


OF_COLOURS = {
    "mean": lambda: Brightness("mean"),
    "weights": lambda: Brightness("weights"),
    "max": lambda: Brightness("max"),
    "each": EachByItself,
    "guided": Guided,
}


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("name", list(OF_COLOURS))
def test_colours_go_together_where_the_model_takes_them(name, engine):
    """Whatever its first convolution takes: the result is model(image)."""
    model = seeded(OF_COLOURS[name])
    image = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        want = model(image)

    def wrapped(x):
        return model(x)

    options = {"tile_size": 24, "halo": 3, "boundary": "native", "engine": engine}
    for given in (model, wrapped):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(restore_tiled(image, given, **options), want)
            array = restore_tiled(image[0].permute(1, 2, 0).numpy(), given, **options)
        np.testing.assert_allclose(array, want[0].permute(1, 2, 0).numpy(), rtol=1e-5, atol=1e-5)


class GreyAlone(nn.Module):
    """Refuses colours, without a word about them."""

    def __init__(self, refusal):
        super().__init__()
        self.conv, self.refusal = nn.Conv2d(1, 1, 3, padding=1), refusal

    def forward(self, x):
        if x.shape[1] != 1:
            raise self.refusal
        return self.conv(x)


@pytest.mark.parametrize("refusal", [AssertionError(), RuntimeError("no"), ZeroDivisionError("of nothing")])
def test_grey_models_may_refuse_colours_as_they_like(refusal):
    model, image = seeded(lambda: GreyAlone(refusal)), image_of("RGB")
    each = [restore_tiled(image[..., channel], model) for channel in range(3)]
    np.testing.assert_array_equal(restore_tiled(image, model), np.dstack(each))


def test_what_grey_models_fail_of_is_reported():
    class Broken(GreyAlone):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError("in the second layer")

    with pytest.raises(TileError, match="in the second layer"):
        restore_tiled(image_of("RGB"), Broken(ValueError("grey images only")))


def test_what_was_only_tried_settles_no_memory_format():
    model = nn.Conv2d(1, 1, 3, padding=1).eval()
    for kind in ("grey (H, W)", "RGB"):
        restorer = TiledRestorer(model)
        restorer(image_of(kind))
        (opened,) = restorer.knowledge.opened.values()
        assert opened.window_format == "channels_last"


@pytest.mark.parametrize("channels", [2, 4])
def test_callables_of_colour_and_alpha(channels):
    """The model that one carries says so, for arrays as for tensors."""
    model = model_of(channels, channels)
    image = image_of("RGBA")[..., :channels].copy()

    def wrapped(x):
        return model(x)

    np.testing.assert_allclose(restore_tiled(image, wrapped), restore_tiled(image, model), rtol=1e-5, atol=1e-6)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    torch.testing.assert_close(restore_tiled(tensor, wrapped), restore_tiled(tensor, model))


# ---- the grey of colours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("model_dtype", ["float32", "float16", "bfloat16"])
def test_grey_has_the_same_bits_everywhere(dtype, model_dtype):
    image = np.random.default_rng(0).random((3, 30, 41)) * (1 if "f" in dtype else np.iinfo(dtype).max)
    image = torch.from_numpy(image).to(getattr(torch, dtype))
    model = model_of(1, 3)
    options = {"tile_size": 16, "halo": 2, "dtype": model_dtype, "value_range": (-1, 1), "batch_size": 3}
    host, other = (restore_tiled(image, model, engine=engine, **options) for engine in ("host", "torch"))
    assert torch.equal(host.view(torch.uint8), other.view(torch.uint8))


def test_grey_of_grey_is_that_grey():
    """Whatever its value, and whoever computes it."""
    grey = np.random.default_rng(0).random((64, 65)).astype(np.float32)
    model = nn.Conv2d(1, 2, 1, bias=False).eval()
    with torch.no_grad():
        model.weight[:] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = restore_tiled(np.dstack([grey] * 3), model)
    np.testing.assert_array_equal(got, np.dstack([grey] * 2))


def test_colours_that_are_not_used_are_said_once():
    model, image = model_of(1, 3), image_of("RGB")
    grey_first = np.dstack([image[..., 0]] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_tiled(grey_first, model)
        restore_tiled(image[..., 0], model)
    with pytest.warns(ColourWarning, match="the image's own colours are not used"):
        restore_tiled(image, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_tiled(image, model)


class Tinting(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError(f"3 channels, not {x.shape[1]}")
        return x + torch.tensor([0.0, self.by, 0.0], device=x.device)[:, None, None]


@pytest.mark.parametrize("value_range", [None, (-1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_colours_made_of_grey_are_said_once(dtype, value_range):
    grey = np.random.default_rng(0).integers(60, 128, (40, 50), np.uint8)
    grey = grey if dtype == "uint8" else (grey / 255).astype(dtype)
    share = 1 if value_range is None else 2
    for by, warned in ((6 / 255, False), (10 / 255, True)):
        model = Tinting(by * share)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = restore_tiled(grey, model, value_range=value_range)
            restore_tiled(grey, model, value_range=value_range)
        assert got.shape == grey.shape
        texts = [str(one.message) for one in caught if issubclass(one.category, ColourWarning)]
        assert len(texts) == warned
        assert all("numpy.dstack([image] * 3)" in text for text in texts)


# ---- what else fails in the first window -----------------------------------------------------------------------------


def test_latents_through_a_callable():
    encoder, decoder = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    class Vae(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder

        def decode(self, z):
            return self.decoder(z)

    vae = Vae().eval()
    latents = torch.randn(1, 4, 24, 24)

    def decoded(z):
        return vae.decode(z)

    with pytest.raises(
        TileError, match=r"if the 4 channels are not colour and alpha, pass alpha='channel'; if shape .*layout="
    ):
        restore_tiled(latents, decoded)
    assert restore_tiled(latents, decoded, alpha="channel").shape == (1, 3, 24, 24)


def test_a_stack_that_looks_like_an_image():
    volume = np.zeros((30, 40, 20), np.float32)  # fewer columns than rows: an image of 20 channels, as it seems
    words = (
        r"has 20 channels and the model takes 1; .* such as image\[\.\.\., :1\]; .* pass layout='NHW' \(30 images of 1"
    )
    with pytest.raises(ModelInputError, match=words):
        restore_tiled(volume, model_of(1, 1))
    tensor = torch.zeros(6, 30, 40)
    words = (
        r"has 6 channels and the model takes 1; .* if shape \(6, 30, 40\) is not 'CHW', pass layout='NHW' \(6 images"
    )
    with pytest.raises(ModelInputError, match=words):
        restore_tiled(tensor, model_of(1, 1))
    assert restore_tiled(tensor, model_of(1, 1), layout="NHW").shape == tensor.shape

    def picky(x):
        if x.shape[1] != 1:
            raise ValueError(f"bad shape {x.shape}")
        return x * 1

    with pytest.raises(TileError, match=r"bad shape .*if shape \(30, 40, 20\) is not 'HWC', pass layout="):
        restore_tiled(volume, picky)
    with pytest.raises(TileError) as caught:
        restore_tiled(volume, picky, layout="HWC")
    assert "pass layout" not in str(caught.value)


def test_parts_of_a_network_that_do_not_meet_are_another_matter():
    class UNet(nn.Module):
        def forward(self, x):
            small = nn.functional.avg_pool2d(x, 2)
            return torch.cat([x, nn.functional.interpolate(small, scale_factor=2.0)], 1)[:, :3]

    for image in (np.zeros((31, 41, 4), np.uint8), np.zeros((31, 41, 3), np.uint8)):
        with pytest.raises(TileError) as caught:
            restore_tiled(image, UNet(), halo=1, phase=1)
        assert "alpha=" not in str(caught.value) and "pass layout" not in str(caught.value)


if __name__ == "__main__":
    print("\n".join(table()))
