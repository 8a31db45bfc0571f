# SPDX-License-Identifier: MIT
"""restore_tiled(image, model) without an option: phases that are found, windows that lie right, errors with a cure."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from halotile import SeamWarning, TiledRestorer, TileError, iter_bands, plan_tiles, restore_tiled, restore_to  # noqa: E402

from . import reference  # noqa: E402
from .architectures import KNOWN, UNet  # noqa: E402
from .networks import Stridden, on_arrays, seeded  # noqa: E402
from .sampled import late  # noqa: E402

SIZES = [(1, 1), (7, 200), (101, 203), (64, 64), (301, 95)]


def image_of(height, width):
    return np.random.default_rng(height + width).random((height, width, 3), np.float32)


def whole(model, image, phase, halo):
    planes = image.transpose(2, 0, 1)
    return reference.whole(planes, on_arrays(model), halo=halo, phase=phase).transpose(1, 2, 0)


# ---- phases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.phase > 1])
def test_the_phase_of_a_module_is_found(name):
    known = KNOWN[name]
    restorer = TiledRestorer(seeded(known.make), tile_size=64)
    restorer(image_of(101, 87))
    assert all(step % known.phase == 0 for step in restorer.last_run.phase)
    assert restorer.last_run.how == "given" and "not inspected" in restorer.last_run.why


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x) * 1], ids=["module", "callable"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_a_u_net_needs_no_option(depth, size, wrap):
    """And is exact where the halo is no less than its field, 5, 13 or 29."""
    model = seeded(lambda: UNet(depth))
    image = image_of(*size)
    got = restore_tiled(image, wrap(model), tile_size=64)
    np.testing.assert_allclose(got, whole(model, image, 2**depth, 32), rtol=0, atol=2e-5)


class Completing(nn.Module):
    """Completes what it is given to multiples of 5 rows and 3 columns, which it takes together: it takes all windows,
    and what it makes of them depends on where they start."""

    def forward(self, x):
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % 3, 0, -height % 5))
        return F.interpolate(F.avg_pool2d(padded, (5, 3)), scale_factor=(5, 3))[:, :, :height, :width] + x


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, lambda m: lambda x: m(x) * 1, lambda m: lambda x, m=m: m(x) * 1, on_arrays, lambda m: m.forward],
    ids=["module", "closure", "default", "arrays", "method"],
)
def test_a_callable_has_the_phase_of_the_module_that_it_carries(wrap):
    """Nothing fails without it: all tiles would be wrong, and none would say so."""
    model, image = Completing(), image_of(83, 61)
    restorer = TiledRestorer(wrap(model), tile_size=20, halo=4)
    got = restorer(image)
    assert restorer.last_run.phase == (5, 3)
    np.testing.assert_allclose(got, restore_tiled(image, model, phase=(5, 3), halo=4), rtol=0, atol=1e-6)


def test_a_callable_on_arrays_is_tried_at_other_sizes():
    """Nothing of it can be seen: windows that it takes tell the phase, once for a restorer."""
    model = seeded(lambda: UNet(2))
    calls, hidden = [], {"nets": [model]}

    def on_numpy(x):
        calls.append(x.shape)
        return on_arrays(hidden["nets"][0])(np.asarray(x))

    restorer = TiledRestorer(on_numpy, tile_size=40)
    image = image_of(101, 87)
    np.testing.assert_allclose(restorer(image), whole(model, image, 4, 32), rtol=0, atol=2e-5)
    assert restorer.last_run.phase == (4, 4) and "multiple of which the model takes windows" in restorer.last_run.why
    tried = len(calls)
    other = image_of(55, 61)
    np.testing.assert_allclose(restorer(other), whole(model, other, 4, 32), rtol=0, atol=2e-5)
    plan = plan_tiles(other.shape, tile_size=40, phase=4)
    assert len(calls) - tried == len(plan)


class Opaque:
    """Carries a function so that nothing of it can be seen, and counts its calls."""

    def __init__(self, inside, on=torch):
        nets, self.shapes = {"deep": [inside]}, []

        def call(x):
            self.shapes.append(tuple(x.shape))
            with torch.no_grad():
                output = nets["deep"][0](x if on is torch else torch.from_numpy(np.array(x)))
            return output if on is torch else output.numpy()

        self.call = call

    @property
    def model(self):
        return self.call


def padded(model, multiple):
    """As users write it: windows of all sizes are completed by reflection, and cropped again."""

    def call(x):
        height, width = x.shape[2:]
        return model(F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect"))[:, :, :height, :width]

    return call


@pytest.mark.parametrize("on", [np, torch], ids=["arrays", "tensors"])
@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2, 2), (3, 2), (5,), (7,), (4, 4, 4), (2, 3, 5)], ids=str)
def test_the_phase_of_what_pads_inside_is_found_by_trying(strides, on):
    """No window is refused, and nothing can be seen: tiles would differ from the whole, and nobody say so."""
    step = int(np.prod(strides))
    model, image = seeded(lambda: Stridden(*strides)), image_of(173, 155)
    opaque = Opaque(padded(model, step), on)
    restorer = TiledRestorer(opaque.model, tile_size=72, halo=64)
    got = restorer(image)
    assert restorer.last_run.phase == (step, step)
    assert f"but it does by {step}: that is the phase" in restorer.last_run.why
    np.testing.assert_allclose(got, whole(model, image, step, 64), rtol=0, atol=1e-5)
    calls = len(opaque.shapes)
    np.testing.assert_array_equal(restorer(image), got)
    assert len(opaque.shapes) - calls == len(plan_tiles(image.shape, tile_size=72, halo=64, phase=step))
    assert restorer.last_run.why.count("by trying") == 1


@pytest.mark.parametrize(
    "ends", [nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.Conv2d(3, 3, 3)], ids=["up", "down", "valid"]
)
def test_it_is_found_for_other_scales(ends):
    model, image = seeded(lambda: nn.Sequential(Stridden(4), ends)), image_of(132, 120)
    inside = padded(model[0], 4)
    restorer = TiledRestorer(Opaque(lambda x: ends(inside(x))).model, tile_size=40, halo=8)
    got = restorer(image)
    assert restorer.last_run.phase == (4, 4)
    np.testing.assert_allclose(got, restore_tiled(image, model, tile_size=40, halo=8, phase=4), rtol=0, atol=1e-5)


def test_what_moves_with_the_image_costs_two_small_windows():
    """And only the first time, for images of several tiles, where nobody gave a phase."""
    opaque, image = Opaque(nn.Conv2d(3, 3, 3, padding=1)), image_of(101, 87)
    tiles = len(plan_tiles(image.shape, tile_size=40))
    for size, options, calls in [(30, {}, 1), (101, {}, tiles + 2), (101, {}, tiles), (101, {"phase": 1}, tiles)]:
        opaque.shapes.clear()
        restorer = TiledRestorer(opaque.model, tile_size=40, scale=1, **options)
        restorer(image[:size, :size])
        assert len(opaque.shapes) == calls and restorer.last_run.phase == (1, 1)
        tried = size == 101 and not options
        assert ("by trying its output moves with the image, by a pixel" in restorer.last_run.why) == tried


def test_a_model_that_writes_to_one_buffer_is_right():
    buffers, image = {}, image_of(201, 187)

    def model(windows):
        output = buffers.setdefault(windows.shape, np.empty(windows.shape, np.float32))
        np.copyto(output, windows)
        return output

    np.testing.assert_array_equal(restore_tiled(image, model, tile_size=60, halo=2, overlap=0), image)
    flat = {}

    def strided(windows):
        output = flat.setdefault(0, np.empty((1, 3, 300, 300), np.float32))[
            :, :, : windows.shape[2], : windows.shape[3]
        ]
        output[...] = np.repeat(np.repeat(windows[:, :, ::4, ::4], 4, 2), 4, 3)[
            :, :, : windows.shape[2], : windows.shape[3]
        ]
        return output

    restorer = TiledRestorer(strided, tile_size=60, halo=2, overlap=0)
    np.testing.assert_array_equal(
        restorer(image)[4:, 4:], np.repeat(np.repeat(image[::4, ::4], 4, 0), 4, 1)[4:201, 4:187]
    )
    assert restorer.last_run.phase == (4, 4)


def test_what_moves_after_no_shift_is_warned_of_once():
    """A phase above all that are tried, or a model that knows where its window starts."""

    def ramp(x):
        return x * torch.linspace(0.5, 1, x.shape[3])

    opaque, image = Opaque(ramp), image_of(101, 87)
    with pytest.warns(SeamWarning, match=r"nothing of the model can be seen, .* no shift was found .* pass phase="):
        restore_tiled(image, opaque.model, tile_size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_tiled(image, opaque.model, tile_size=40)
        restore_tiled(image, Opaque(ramp).model, tile_size=40, phase=1)


def test_luck_is_no_phase():
    def noisy(x):
        return x + torch.rand_like(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restorer = TiledRestorer(Opaque(noisy).model, tile_size=40)
        restorer(image_of(101, 87))
    assert restorer.last_run.phase == (1, 1) and "could not be told" in restorer.last_run.why


def test_a_phase_that_tiles_cannot_have_is_told():
    opaque = Opaque(padded(seeded(lambda: Stridden(4, 4)), 16))
    with pytest.warns(
        SeamWarning, match="that is the phase, which tiles of .* cannot have: .* pass a larger tile_size"
    ):
        restore_tiled(image_of(101, 87), opaque.model, tile_size=20, overlap=8)


def test_a_network_in_slots_is_seen():
    class Slotted:
        __slots__ = ("net",)

        def __init__(self, net):
            self.net = net

        def __call__(self, x):
            return self.net(x)

    restorer = TiledRestorer(Slotted(Completing()), tile_size=20, halo=4)
    restorer(image_of(83, 61))
    assert restorer.last_run.phase == (5, 3)


def test_every_way_of_running_finds_it(tmp_path):
    model, image = seeded(lambda: UNet(2)), image_of(101, 87)
    want = restore_tiled(image, model, tile_size=48)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in iter_bands(image, model, tile_size=48)]), want)
    restore_to(tmp_path / "out.npy", image, model, tile_size=48)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)
    for options in ({"tile_size": "auto"}, {"memory_limit": 1 << 28}, {"verify": 2}, {"engine": "torch"}):
        np.testing.assert_allclose(restore_tiled(image, model, **options), want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x) * 1], ids=["module", "callable"])
def test_a_phase_that_is_given_and_too_small_is_named(wrap):
    with pytest.raises(TileError, match=r"windows of 165x267 are multiples of the phase, 1: .* need phase= such as 8"):
        restore_tiled(image_of(101, 203), wrap(seeded(lambda: UNet(2))), phase=1)


def test_another_failure_is_not_blamed_on_the_phase():
    def failing(x):
        raise ArithmeticError("no such number")

    for options in ({}, {"phase": 1}):
        with pytest.raises(TileError, match="no such number") as caught:
            restore_tiled(image_of(30, 30), failing, **options)
        assert "phase" not in str(caught.value)


def test_the_phase_of_what_a_file_needs_is_kept_to():
    from halotile.models.needs import Needs

    model = seeded(lambda: UNet(1))
    model.needs = Needs(multiple=3)
    restorer = TiledRestorer(model, tile_size=60)
    restorer(image_of(101, 87))
    assert restorer.last_run.phase == (6, 6)


def test_what_the_operators_do_not_tell_is_one():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.numpy() * 1)

    restorer = TiledRestorer(Odd())
    restorer(image_of(40, 50))
    assert restorer.last_run.phase == (1, 1)


def test_hooks_see_what_the_user_asked_for():
    """Not the operators being looked at, nor windows that are tried."""
    seen = []
    model = seeded(lambda: UNet(1))
    model.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    restore_tiled(image_of(40, 50), model)
    assert seen == [torch.Tensor]


def test_weight_norm_is_part_of_the_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 2, 2)), nn.ConvTranspose2d(8, 3, 2, 2)).eval()
    restorer = TiledRestorer(model)
    restorer(image_of(41, 51))
    assert restorer.last_run.phase == (2, 2)


# ---- windows in memory -----------------------------------------------------------------------------------------------


class Raw(nn.Module):
    """Reads memory as it lies: right for contiguous tensors only."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 3, 3, padding=1), read

    def forward(self, x):
        return self.read(self.conv(x))


def strided(y):
    return torch.as_strided(y, y.shape, (y[0].numel(), y.shape[2] * y.shape[3], y.shape[3], 1))


def through_numpy(y):
    flat = np.frombuffer(y.untyped_storage().tolist().__class__.__name__.encode() and bytes(y.untyped_storage()), "f4")
    return torch.from_numpy(flat.reshape(y.shape).copy())


def by_pointer(y):
    import ctypes

    values = (ctypes.c_float * y.numel()).from_address(y.data_ptr())
    return torch.tensor(list(values)).view(y.shape)


def by_strides(y):
    return y * (1 if y.stride(1) > 1 else -1)


READS = [strided, by_pointer, by_strides, *late(through_numpy)]


@pytest.mark.parametrize("engine", ["host", "torch"])
@pytest.mark.parametrize("read", READS)
def test_a_model_that_reads_raw_memory_is_right(read, engine):
    model, image = seeded(lambda: Raw(read)), image_of(60, 50)
    want = whole(model, image, 1, 8)
    for options in ({}, {"tile_size": 40}, {"tile_size": "auto"}, {"batch_size": 2, "tile_size": 40}, {"phase": 1}):
        got = restore_tiled(image, model, halo=8, engine=engine, **options)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    for dtype in ("bfloat16", "auto"):
        got = restore_tiled(image, seeded(lambda: Raw(strided)), halo=8, engine=engine, dtype=dtype)
        np.testing.assert_allclose(got, whole(seeded(lambda: Raw(strided)), image, 1, 8), rtol=0, atol=0.05)


def test_others_keep_channels_last():
    class Lies(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 3, 3, padding=1), []

        def forward(self, x):
            self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.conv(x)

    model = seeded(Lies)
    restore_tiled(image_of(60, 50), model, tile_size=40, halo=8)
    assert all(model.seen) and len(model.seen) == 4


def test_rounding_is_no_reason():
    """Deep networks round otherwise in another format."""

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(40))
            self.into, self.out, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1), []

        def forward(self, x):
            self.last.append(x.is_contiguous(memory_format=torch.channels_last))
            y = self.into(x)
            for layer in self.layers:
                y = y + F.leaky_relu(layer(y), 0.2)
            return self.out(y)

    model = seeded(Deep)
    restore_tiled(image_of(60, 50), model)
    assert all(model.last)


# ---- what is no image, and what is none of it ------------------------------------------------------------------------


def zarr_group():
    return pytest.importorskip("zarr").create_group(store={})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (nn.Identity, "not Identity, which is a model: arguments swapped?"),
        (lambda: [image_of(9, 9)], "not list; pass its images one at a time, or numpy.stack"),
        (zarr_group, "not a zarr Group; pass one of its arrays"),
        (lambda: memoryview(b"abc"), r"not memoryview; numpy\.asarray\(image\) may help"),
        (lambda: np.zeros((9, 9), int), r"not int64; image\.astype\('float32'\) / white is one of them"),
        (lambda: np.zeros((9, 9), bool), r"not bool; image\.astype\('float32'\) / white is one of them"),
        (lambda: torch.zeros(9, 9, dtype=torch.int32), r"not torch.int32; image\.float\(\) / white is one of them"),
        (
            lambda: np.zeros((2, 3, 3, 9, 9), np.uint8),
            "of several axes of images pass those of one at a time, or reshape",
        ),
    ],
)
def test_what_is_no_image_says_what_to_pass(make, words):
    for run in (restore_tiled, iter_bands):
        with pytest.raises((TypeError, ValueError), match=f"image must .*{words}"):
            run(make(), nn.Identity())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: (x, x), r"a tuple of 2, not one .*; pass output=0 if that is the image"),
        (lambda x: [x], r"a list of 1, not one .*; pass output=0 if that is the image"),
        (lambda x: {"sr": x}, r"a dict of 1, not one .*; pass output='sr' if that is the image"),
        (lambda x: {}, r"a dict of 0, not one \w+ \(batch, channels, height, width\)$"),
    ],
)
def test_a_model_that_returns_several_things_says_what_to_pass(returned, words):
    class Model(nn.Module):
        def forward(self, x):
            return returned(x)

    for model in (Model(), returned):
        with pytest.raises(TileError, match=words):
            restore_tiled(image_of(20, 30), model)
