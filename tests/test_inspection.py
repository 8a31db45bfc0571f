# SPDX-License-Identifier: MIT
"""What is found about models equals what is known of them, is enough for exact tiles, and no less is."""

import math
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import TiledRestorer, TileError, restore_tiled  # noqa: E402
from halotile.inspection import Field, GlobalOperation, ModelInfo, inspect_model  # noqa: E402
from halotile.inspection.perturbation import falsify, field_by_perturbation  # noqa: E402
from halotile.inspection.runner import Runner  # noqa: E402
from halotile.inspection.shapes import find_shapes  # noqa: E402

from . import reference  # noqa: E402
from .architectures import KNOWN, SRVGG, Coordinates, Noisy, RRDBNet, UNet, chain, conv  # noqa: E402
from .networks import Chain, Stridden, Strided, on_arrays, seeded  # noqa: E402

LOCAL = [name for name, known in KNOWN.items() if known.field is not None]
GLOBAL = [name for name, known in KNOWN.items() if known.field is None]
_found: dict = {}


def model_of(name):
    return seeded(KNOWN[name].make)


def found(name):
    if name not in _found:
        _found[name] = inspect_model(model_of(name))
    return _found[name]


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_found(name):
    info, known = found(name), KNOWN[name]
    assert info.receptive_field == (None if known.field is None else Field(*known.field))
    local = known.local or known.field
    assert info.local_field == (None if local is None else Field(*local))
    assert info.phase == (known.phase, known.phase)
    assert (info.scale, info.trim) == (known.scale, (known.trim, known.trim))
    assert info.multiple == (known.multiple, known.multiple)
    assert {one.path for one in info.global_operations} == set(known.globals)
    assert info.deterministic and info.batch_invariant
    assert (info.in_channels, info.out_channels) == (3, 3)
    assert not [doubt for doubt in info.doubts if "contradicted" in doubt]


def whole(model, image, info, halo):
    output = reference.whole(
        image.transpose(2, 0, 1),
        on_arrays(model),
        halo=halo,
        phase=info.phase[0],
        scale=info.scale,
        trim=info.trim[0],
    )
    return output.transpose(1, 2, 0)


def test_windows_of_attention_are_told_from_the_whole_image():
    """At the smallest sizes that a model takes, one window is all of the image."""
    info = inspect_model(KNOWN["shifted windows"].make())
    assert info.doubts == () and "structure" in info.how["receptive_field"] and "structure" in info.how["phase"]


@pytest.mark.parametrize("name", LOCAL)
def test_the_halo_found_is_exact(name):
    info, model = found(name), model_of(name)
    side = 3 * info.phase[0] + 37
    image = image_of(side, side + 9)
    want = whole(model, image, info, max(info.halo))
    for tile in (16, 24):
        got = restore_tiled(image, model, halo=max(info.halo), phase=info.phase, tile_size=tile, overlap=0)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def lively(model):
    """A copy in float64 in which nothing cancels and nothing sleeps."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().clamp_(min=0.05)
    return model


@pytest.mark.parametrize("name", [name for name in LOCAL if "window" not in name])
def test_no_less_is_enough(name):
    """Gradients of every output pixel of a period, over several images since pooling passes them to one pixel alone."""
    info, model = found(name), lively(model_of(name))
    field, period = info.receptive_field, info.phase[0]
    size = 2 * -(-(max(field) + 2) // period) * period + 2 * period
    reach = [0, 0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    start = size // 2 // period * period
    outputs = range(int(start * info.scale), int((start + period) * info.scale))
    for _ in range(8 if "pool" in name else 1):
        image = torch.rand(1, 3, size, size, dtype=torch.float64, generator=generator, requires_grad=True)
        output = model(image)
        for at in outputs:
            for axis in (2, 3):
                line = output.select(axis, at - info.trim[axis - 2])
                (gradient,) = torch.autograd.grad(line.sum(), image, retain_graph=True)
                touched = gradient.abs().amax([i for i in range(4) if i != axis]).nonzero()
                here, side = at * info.scale.denominator // info.scale.numerator, 2 * (3 - axis)
                reach[side] = max(reach[side], here - touched.min().item())
                reach[side + 1] = max(reach[side + 1], touched.max().item() - here)
        if tuple(reach) == tuple(field):
            break
    assert Field(*reach) == field


@pytest.mark.parametrize("name", [name for name in LOCAL if name != "dead activation"])
def test_a_halo_one_phase_short_is_wrong(name):
    """Keep boxes start at the halo, counted from a multiple of the phase: only whole phases less must show."""
    info, model = found(name), model_of(name)
    if "window" not in name:
        model = lively(model).float()
    side = 5 * info.phase[0] + 3 * max(info.halo) + 20
    image = image_of(side, side)
    want = whole(model, image, info, max(info.halo))
    halo = max(max(info.halo) - info.phase[0], info.trim[0])
    if info.trim[0]:
        halo = info.trim[0] - 1
        with pytest.raises(ValueError, match="halo"):
            restore_tiled(image, model, halo=halo, phase=info.phase, tile_size=20)
        return
    got = restore_tiled(image, model, halo=halo, phase=info.phase, tile_size=20, overlap=0)
    assert np.abs(got - want).max() > 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("name", [name for name in LOCAL if KNOWN[name].phase > KNOWN[name].scale.denominator])
def test_a_smaller_phase_is_wrong(name):
    info, model = found(name), model_of(name)
    phase = info.phase[0] // 2
    halo = -(-max(info.halo) // info.phase[0]) * info.phase[0]
    image = image_of(90, 100)
    want = whole(model, image, info, halo)
    wrong = 0.0
    for tile in (15, 22, 26, 28, 36):
        try:
            got = restore_tiled(image, model, halo=halo, phase=phase, tile_size=tile, overlap=0, scale=info.scale)
        except TileError:  # windows of such a size do not even pass
            return
        wrong = max(wrong, np.abs(got - want).max())
    assert wrong > 1e-4


@pytest.mark.parametrize("name", GLOBAL)
def test_no_halo_is_exact_for_global_operations(name):
    info, model = found(name), model_of(name)
    assert info.halo is None
    image = image_of(96, 96) * np.linspace(0, 1, 96, dtype=np.float32)[:, None]
    got = restore_tiled(image, model, halo=24, phase=KNOWN[name].phase, tile_size=16, overlap=0)
    assert np.abs(got - whole(model, image, info, 24)).max() > 1e-5


# ---- models of other kinds -------------------------------------------------------------------------------------------


def test_a_model_that_knows_where_a_pixel_is():
    info = inspect_model(seeded(Coordinates))
    assert info.phase == (None, None)
    assert any("absolute position" in doubt for doubt in info.doubts)


def test_a_stochastic_model():
    info = inspect_model(seeded(Noisy))
    assert not info.deterministic
    assert info.receptive_field == Field(1, 1, 1, 1)  # by propagation alone
    assert any("not deterministic" in doubt for doubt in info.doubts)


def test_a_model_that_mixes_the_batch():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    assert not inspect_model(Mixing()).batch_invariant


def test_large_values_are_no_batch_dependence():
    class Loud(nn.Module):
        """Far beyond [0, 1] its rounding is large, and differs with the batch."""

        def __init__(self):
            super().__init__()
            self.body = chain(*(conv(3, 3, 1) for _ in range(4)))

        def forward(self, x):
            y = self.body(x * 8)
            return x + (y.clamp(min=8) - 8) ** 4 * 1e3 * torch.rand(())

    assert inspect_model(seeded(Loud)).batch_invariant


def test_outputs_that_are_clamped():
    assert inspect_model(seeded(lambda: chain(conv(3, 3), nn.Sigmoid()))).value_range == (0, 1)
    assert inspect_model(seeded(lambda: chain(conv(3, 3), nn.Tanh()))).value_range == (-1, 1)
    assert inspect_model(seeded(lambda: Chain(2))).clamps is False


def test_plain_callables():
    inner = seeded(lambda: Strided(2))
    info = inspect_model(lambda x: inner(x) * 2)
    assert (info.receptive_field, info.phase) == (Field(7, 7, 7, 7), (2, 2))

    def on_left(x):  # NumPy: three pixels to the left, one below
        y = np.asarray(x, np.float32)
        wide = np.pad(y, ((0, 0), (0, 0), (0, 1), (3, 0)))
        return y + wide[:, :, :-1, :-3] + wide[:, :, 1:, 3:]

    info = inspect_model(on_left)
    assert (info.receptive_field, info.phase) == (Field(3, 0, 0, 1), (1, 1))
    assert "perturbation" in info.how["receptive_field"]
    assert any("noise alone" in doubt for doubt in info.doubts)


def test_scripted_and_exported_models():
    model = seeded(lambda: Strided(2))
    assert inspect_model(torch.jit.script(model)).receptive_field == Field(7, 7, 7, 7)
    assert inspect_model(torch.jit.trace(model, torch.rand(1, 3, 32, 32))).receptive_field == Field(7, 7, 7, 7)
    rows, columns = (torch.export.Dim(name, max=2048) for name in ("rows", "columns"))
    sides = {0: torch.export.Dim("batch"), 2: 2 * rows, 3: 2 * columns}
    free = torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=(sides,))
    assert inspect_model(free).receptive_field == Field(7, 7, 7, 7)
    of_two = torch.export.export(model, (torch.rand(2, 3, 64, 64),))
    assert inspect_model(of_two).receptive_field == Field(7, 7, 7, 7)
    info = inspect_model(torch.export.export(model, (torch.rand(1, 3, 64, 64),)))
    assert info.minimum_size == info.multiple == (64, 64)
    assert any("64x64 only" in doubt for doubt in info.doubts)
    assert info.receptive_field == Field(7, 7, 7, 7)


def test_the_model_is_left_as_it_was():
    model = seeded(lambda: Chain(2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect_model(model)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_weights_that_are_zero_are_no_dependency():
    model = seeded(lambda: Chain(1))
    with torch.no_grad():
        model.layers[0].weight[..., 0] = 0  # the left column of taps
        model.layers[0].weight[1, 2] = 0
    info = inspect_model(model)
    assert info.receptive_field == Field(0, 1, 1, 1) or any("(0, 1, 1, 1)" in doubt for doubt in info.doubts)


def test_an_unknown_operator_is_never_local():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.nn.functional.grid_sample(x, torch.zeros(len(x), *x.shape[2:], 2, dtype=x.dtype))

    info = inspect_model(Odd())
    assert any("grid_sampler" in doubt for doubt in info.doubts)


def test_a_wrong_claim_is_falsified():
    model = seeded(lambda: Chain(3))
    run = Runner(model)
    shapes = find_shapes(run)
    assert falsify(run, shapes, Field(3, 3, 3, 3), (1, 1)).held
    for wrong in (Field(2, 3, 3, 3), Field(3, 2, 3, 3), Field(3, 3, 2, 3), Field(3, 3, 3, 2)):
        assert not falsify(run, shapes, wrong, (1, 1)).held
    assert field_by_perturbation(run, shapes) == Field(3, 3, 3, 3)


class BySize(nn.Module):
    """Sees farther in large windows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y if x.shape[3] < 40 else nn.functional.max_pool2d(y, 3, 1, 1)


class ByArrays(nn.Module):
    """Leaves torch, where a pixel far away comes in."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        array = x.detach().numpy()
        return self.conv(x) + 0.5 * torch.from_numpy(np.roll(array, 20, 3) * (np.arange(array.shape[3]) >= 20))


@pytest.mark.parametrize("make", [BySize, ByArrays])
def test_what_propagation_cannot_see_is_contradicted(make):
    info = inspect_model(seeded(make))
    assert info.receptive_field is None or info.receptive_field.left >= 20
    assert any("contradicted" in doubt for doubt in info.doubts)
    assert not info.certain


@pytest.mark.parametrize(("mode", "local"), [("circular", False), ("reflect", True), ("zeros", True)])
def test_padding_with_the_opposite_edge_is_found(mode, local):
    info = inspect_model(seeded(lambda: Chain(2, mode=mode)))
    assert info.edges_local is local
    assert any("boundary='native'" in doubt for doubt in info.doubts) is not local


class Cancelling(nn.Module):
    """Loses a ten-thousandth in float32, by a sum that cancels; how much depends on the window's size."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        by = math.sqrt(x.shape[2] + x.shape[3])
        return ((self.inner(x) * by + 30000.0) - 30000.0) / by


def test_rounding_is_not_taken_for_a_dependency():
    model = seeded(Cancelling)
    windows = [torch.rand(1, 3, 20, 30)]
    windows.append(windows[0][..., :20])
    with torch.no_grad():
        wide, narrow = (model(window) for window in windows)
    assert (wide[..., :19] - narrow[..., :19]).abs().max() > 2e-4 * wide.abs().max()  # the test can fail
    info = inspect_model(model)
    assert info.receptive_field == Field(1, 1, 1, 1) and info.edges_local
    assert not any("contradicted" in doubt for doubt in info.doubts)


def test_a_side_may_be_small_where_the_other_is_not():
    info = inspect_model(seeded(KNOWN["U-Net of norms"].make))  # a norm of one element is refused
    assert info.minimum_size == (16, 16)


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    model = Noisy()
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    inspect_model(model)
    assert torch.equal(torch.rand(3), want)


class Asking(nn.Module):
    """Refuses sides in words, and does not depend on where a window starts."""

    def __init__(self, multiple, text):
        super().__init__()
        self.multiple, self.text = multiple, text

    def forward(self, x):
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(self.text.format(self.multiple))
        return x * 1


STRIDES = [(3, 3, 3), (5, 5), (7,), (14,), (6, 2), (3,), (6,), (3, 8), (3, 16), (18,), (4, 5), (28,), (7, 7), (11,)]
STRIDES += [(13,), (9, 5)]


@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_multiples_of_all_factors(strides):
    step, model = math.prod(strides), seeded(lambda: Stridden(*strides))
    info = inspect_model(model)
    assert info.multiple == info.phase == (step, step)
    assert info.receptive_field == Field(step - 1, step - 1, step - 1, step - 1)
    image = image_of(3 * step + 10, 2 * step + 20)
    restorer = TiledRestorer(model, tile_size=2 * step, halo=step)
    got = restorer(image)
    assert restorer.last_run.phase == (step, step)
    np.testing.assert_allclose(got, whole(model, image, info, step), rtol=0, atol=1e-5)


@pytest.mark.parametrize("strides", [(3, 3, 3), (5, 5), (14,)], ids=str)
def test_multiples_of_what_cannot_be_seen(strides):
    step, model = math.prod(strides), seeded(lambda: Stridden(*strides))
    image, hidden = image_of(3 * step + 10, 2 * step + 20), {"nets": [model]}
    restorer = TiledRestorer(lambda x: hidden["nets"][0](x), tile_size=2 * step, halo=step)
    np.testing.assert_allclose(
        restorer(image), restore_tiled(image, model, phase=step, tile_size=2 * step, halo=step), rtol=0, atol=1e-5
    )
    assert restorer.last_run.phase == (step, step)


@pytest.mark.parametrize("multiple", [17, 34, 51, 88, 100])
@pytest.mark.parametrize(
    "text",
    ["height must be divisible by {}", "sides must be multiples of {}, not others", "size is not a multiple of ({})"],
)
def test_multiples_that_a_model_asks_for(multiple, text):
    info = inspect_model(Asking(multiple, text))
    assert info.multiple == (multiple, multiple)
    restore_tiled(image_of(2 * multiple, 150), Asking(multiple, text), tile_size=multiple)


def test_a_model_that_takes_nothing_says_so():
    with pytest.raises(ValueError, match="sample="):
        inspect_model(nn.Linear(7, 7))


# ---- the report ------------------------------------------------------------------------------------------------------

INFO = ModelInfo(
    Fraction(3, 2),
    in_channels=3,
    receptive_field=None,
    phase=(4, None),
    global_operations=(GlobalOperation("a.pool", "global pooling", "propagation"),),
    local_field=Field(1, 2, 3, 4),
    value_range=(0.0, 1.0),
    clamps=True,
    how={"scale": "run"},
    doubts=("one <doubt>.",),
)


def test_json_round_trip():
    assert ModelInfo.from_json(INFO.to_json()) == INFO
    assert INFO.halo is None and Field(1, 2, 3, 4).halo == (4, 2)
    for text in (
        "[]",
        "{}",
        INFO.to_json().replace('"version": 2', '"version": 99'),
        INFO.to_json().replace("trim", "l"),
    ):
        with pytest.raises(ValueError, match=r"version|to_json|missing"):
            ModelInfo.from_json(text)


def test_reports_are_readable():
    text = str(INFO)
    assert "a.pool: global pooling" in text and "left 1, right 2, top 3, bottom 4" in text and "3/2" in text
    assert "one &lt;doubt&gt;." in INFO._repr_html_()


# ---- large models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "radius"),
    [
        pytest.param(RRDBNet, 349, id="RRDBNet", marks=pytest.mark.slow),
        pytest.param(SRVGG, 34, id="SRVGG"),
        pytest.param(lambda: UNet(4, width=32), 61, id="U-Net"),
    ],
)
def test_large_models(make, radius):
    """How long they take: benchmarks/bench_inspect.py."""
    info = inspect_model(seeded(make))
    assert info.receptive_field == Field(*(radius,) * 4)
    assert not info.doubts
