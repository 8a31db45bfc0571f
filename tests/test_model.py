# SPDX-License-Identifier: MIT
"""Models of every kind: modules, callables on tensors or arrays; modes, dtypes, devices, scales."""

import functools
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import ModelOutputError, TiledRestorer, TileError, iter_bands, plan_tiles, restore_tiled  # noqa: E402

from .networks import Chain, Half, Strided, ThreeHalves, seeded  # noqa: E402

OPTIONS = {"tile_size": 24, "halo": 6, "overlap": 3}


def image_of(height=50, width=61, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(channels, height, width, generator=generator).to(dtype)


# ---- kinds -----------------------------------------------------------------------------------------------------------


def test_kinds_of_callables_agree():
    net = seeded(lambda: Chain(3, scale=2))
    image = image_of()
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    want = restore_tiled(image, net, **OPTIONS).permute(1, 2, 0).numpy()

    class Wrapper:
        def __init__(self, net):
            self.net = net

        def __call__(self, x):
            return self.net(x)

    def on_arrays(x):
        with torch.no_grad():
            return net(torch.from_numpy(x)).numpy()

    for model in [
        net,
        lambda x: net(x),
        net.forward,
        functools.partial(net),
        Wrapper(net),
        torch.jit.trace(net, torch.rand(1, 3, 30, 30)),
        on_arrays,
    ]:
        calls = []
        got = restore_tiled(array, model, progress=lambda d, t, calls=calls: calls.append(d), **OPTIONS)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_a_callable_is_called_once_for_each_batch():
    """Finding out what it takes costs no call, and one of a small window if the scale is not given."""
    for image in (image_of(), image_of().permute(1, 2, 0).numpy()):
        shapes = []

        def on_tensors(x, shapes=shapes):
            shapes.append(tuple(x.shape))
            return torch.nn.functional.interpolate(x, scale_factor=2)

        def on_either(x, shapes=shapes):
            shapes.append(tuple(x.shape))
            return x * 1

        for model in (on_tensors, on_either):
            shapes.clear()
            totals = []
            options = OPTIONS | {"progress": lambda d, t, totals=totals: totals.append(t)}
            restore_tiled(image, model, scale=2 if model is on_tensors else 1, **options)
            assert len(shapes) == totals[0] == 9
            assert len(set(shapes)) == 1
            shapes.clear()
            restore_tiled(image, model, **options)
            assert len(shapes) == 10


def test_ambiguous_callables_on_arrays():
    array = image_of().permute(1, 2, 0).numpy()
    for model in (lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), lambda x: x.repeat(2, 2).repeat(2, 3)):
        got = restore_tiled(array, model, **OPTIONS)
        np.testing.assert_array_equal(got, array.repeat(2, 0).repeat(2, 1))


def test_not_callable_and_bad_devices():
    with pytest.raises(TypeError, match="model must be a torch module or a callable, not a int"):
        restore_tiled(np.zeros((4, 4), np.uint8), 3)
    with pytest.raises(TypeError, match="dict of 0"):
        restore_tiled(np.zeros((4, 4), np.uint8), {})
    with pytest.raises(TypeError, match="not the class Chain; call it first"):
        restore_tiled(np.zeros((4, 4), np.uint8), Chain)
    for device in ("warp", "cuda:99", "cpu:x", "meta"):
        with pytest.raises(ValueError, match=r"device .* is not available"):
            restore_tiled(np.zeros((4, 4), np.uint8), Chain(), device=device)


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(50, 61), (3, 50, 61), (1, 50, 61), (2, 3, 50, 61)])
def test_tensors_come_back_as_tensors(dtype, shape):
    torch_dtype = getattr(torch, dtype)
    image = torch.rand(shape)
    image = (
        (image * {"uint8": 255, "uint16": 65535}[dtype]).to(torch_dtype) if dtype[0] == "u" else image.to(torch_dtype)
    )
    got = restore_tiled(image, lambda x: x.clone(), **OPTIONS)
    assert got.dtype == torch_dtype and got.shape == image.shape and got.device == image.device
    assert torch.equal(got.double(), image.double()) or (
        dtype == "float64" and torch.equal(got, image.float().double())
    )
    assert not got.is_inference() and not got.requires_grad


def test_tensor_views_and_gradients():
    base = torch.rand(6, 100, 122)
    for image in [base[::2, ::2, ::2], base[:3].transpose(1, 2), torch.rand(3, 1, 40).expand(3, 50, 40)]:
        assert torch.equal(restore_tiled(image, lambda x: x.clone(), **OPTIONS), image)
    with_gradient = torch.rand(3, 30, 30, requires_grad=True)
    assert torch.equal(restore_tiled(with_gradient, nn.Identity(), **OPTIONS), with_gradient.detach())
    with pytest.raises(TypeError, match="dense"):
        restore_tiled(torch.rand(5, 5).to_sparse(), nn.Identity())


def test_tensor_out():
    image, net = image_of(), seeded(lambda: Chain(2, scale=2))
    want = restore_tiled(image, net, **OPTIONS)
    out = torch.zeros(3, 100, 122)
    assert restore_tiled(image, net, out=out, **OPTIONS) is out
    assert torch.equal(out, want)
    half = torch.zeros(3, 100, 122, dtype=torch.bfloat16)
    restore_tiled(image, net, out=half, **OPTIONS)
    assert torch.equal(half, want.bfloat16())
    with pytest.raises(TypeError, match="torch tensor"):
        restore_tiled(image, net, out=out.numpy(), **OPTIONS)
    rows = torch.cat([rows for _, rows in iter_bands(image, net, **OPTIONS)], dim=1)
    assert torch.equal(rows, want)


# ---- modules ---------------------------------------------------------------------------------------------------------


class Moody(nn.Module):
    """Adds 1 in training mode, and has a frozen part."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.inference = []

    def forward(self, x):
        self.inference.append(torch.is_inference_mode_enabled())
        return self.frozen(self.conv(x)) + (1 if self.training else 0)


def modes(module):
    return [inner.training for inner in module.modules()]


def test_eval_and_inference_mode_inside_own_mode_afterwards():
    net = Moody().train()
    net.frozen.eval()
    before = modes(net)
    image = image_of()
    want = torch.nn.functional.conv2d(image, net.conv.weight, net.conv.bias) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(restore_tiled(image, net, **OPTIONS), want.detach())
    assert modes(net) == before and all(net.inference)

    net.conv.forward = lambda x: 1 / 0
    with pytest.raises(TileError):
        restore_tiled(image, net, **OPTIONS)
    assert modes(net) == before
    del net.conv.forward

    for _, _rows in iter_bands(image, net, **OPTIONS):
        assert modes(net) == before and not torch.is_inference_mode_enabled()


def test_threads_share_a_module_in_training_mode():
    net, image = Moody().train(), image_of(200, 200)
    want = restore_tiled(image, net, **OPTIONS)
    results = []
    threads = [threading.Thread(target=lambda: results.append(restore_tiled(image, net, **OPTIONS))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(torch.equal(result, want) for result in results)
    assert net.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_sum_in_float32(dtype):
    net = seeded(lambda: Chain(2, scale=2))
    image = image_of()
    own = restore_tiled(image, seeded(lambda: Chain(2, scale=2)).to(dtype), **OPTIONS)
    asked = restore_tiled(image, net, dtype=dtype, **OPTIONS)
    assert next(net.parameters()).dtype == torch.float32  # a copy was converted
    assert torch.equal(own, asked) and own.dtype == torch.float32
    full = restore_tiled(image, net, **OPTIONS)
    assert 0 < (own - full).abs().max() < 0.05
    windows = []
    restore_tiled(image, lambda x: windows.append(x.dtype) or x * 1, dtype=dtype, **OPTIONS)
    assert set(windows) == {dtype}


def test_double_precision_models():
    net = seeded(lambda: Chain(2))
    image = image_of()
    torch.testing.assert_close(
        restore_tiled(image, seeded(lambda: Chain(2)).double(), **OPTIONS), restore_tiled(image, net, **OPTIONS)
    )


def test_channels_last_modules_get_channels_last_windows():
    net = seeded(lambda: Chain(2, scale=2))
    want = restore_tiled(image_of(), net, **OPTIONS)
    seen = []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    got = restore_tiled(image_of(), net.to(memory_format=torch.channels_last), **OPTIONS)
    assert all(seen)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_exported_programs():
    net = seeded(lambda: Chain(2, scale=2))
    image = image_of(48, 48)
    program = torch.export.export(net, (torch.rand(1, 3, 36, 36),)).module()
    options = {"tile_size": 24, "halo": 6, "overlap": 0}
    torch.testing.assert_close(restore_tiled(image, program, **options), restore_tiled(image, net, **options))


# ---- scale and channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("make", "scale"), [(Chain, 1), (lambda: Chain(2, scale=3), 3), (Half, "1/2"), (ThreeHalves, "3/2")]
)
def test_scale_is_found_or_given(make, scale, given):
    net = seeded(make)
    image = image_of(51, 61)
    for tile in (10, 300):
        got = restore_tiled(image, net, tile_size=tile, halo=6, overlap=0, scale=scale if given else None)
        want = restore_tiled(image, net, tile_size=1000, halo=6, scale=scale, phase=2)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("given", [2, 8, "1/2"])
def test_a_wrong_scale_is_an_error_before_anything_is_scrambled(given):
    with pytest.raises(ModelOutputError, match=r"window of \d+x\d+ into \d+x\d+.*scale"):
        restore_tiled(image_of(), seeded(lambda: Chain(2, scale=4)), scale=given, **OPTIONS)


def test_every_output_is_checked():
    net, calls = seeded(lambda: Chain(2)), []

    def changing(x):
        calls.append(1)
        return net(x) if len(calls) < 4 else net(x)[:, :2]

    with pytest.raises(
        ModelOutputError, match=r"tile 3 \(row 1, column 0.*shape \(2, 29, 29\), after \(3, 29, 29\)"
    ) as caught:
        restore_tiled(image_of(50, 50), changing, **OPTIONS | {"overlap": 0, "scale": 1})
    assert caught.value.tile == 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: [torch.zeros(1), torch.zeros(1)], "a list of 2"),
        (lambda x: None if torch else x, "a NoneType"),
        (lambda x: torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"),
        (lambda x: torch.zeros(2, 3, 8, 8), r"not \(1, channels, height, width\)"),
        (lambda x: torch.zeros(1, 3, 8, 8, dtype=torch.int32), "dtype torch.int32"),
        (lambda x: torch.zeros(1, 0, 8, 8), r"shape \(1, 0, 8, 8\)"),
        (lambda x: torch.zeros(1, 3, 8, 8), "no scale fits"),
        (lambda x: torch.nn.functional.pad(x, (1, 0, 1, 0)), "no scale fits"),
    ],
)
def test_unusable_outputs(model, words):
    with pytest.raises(ModelOutputError, match=words):
        restore_tiled(image_of(), model, **OPTIONS)


def test_phase_mistakes_are_explained():
    with pytest.raises(TileError) as caught:
        restore_tiled(image_of(), seeded(lambda: Strided(4)), tile_size=21, halo=5, overlap=0, phase=1)
    assert isinstance(caught.value, ModelOutputError)


def test_what_an_image_taught_is_kept():
    calls = []

    def model(x):
        calls.append(tuple(x.shape))
        return torch.nn.functional.avg_pool2d(x, 2)

    restorer = TiledRestorer(model, **OPTIONS)
    image = image_of(50, 50)
    first = restorer(image)
    learned, steady = len(calls), len(set(calls))
    calls.clear()
    assert torch.equal(restorer(image), first)
    assert len(calls) < learned and len(set(calls)) == 1 <= steady


class Shrinking(nn.Module):
    """Scale p/q by pixel shuffle and a strided convolution without padding."""

    def __init__(self, p, q):
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(3, 3 * p * p, 1), nn.PixelShuffle(p)) if p > 1 else nn.Identity()
        self.down = nn.Conv2d(3, 3, q, q)

    def forward(self, x):
        return self.down(self.up(x))


@pytest.mark.parametrize("terms", [(1, 4), (1, 5), (1, 8), (3, 4), (2, 5), (5, 2), (5, 3), (9, 8), (12, 13), (7, 16)])
def test_fractional_scales_are_found(terms):
    p, q = terms
    net = seeded(lambda: Shrinking(p, q))
    for size, tile in [((160, 200), 512), ((96, 96), 40), ((53, 61), 24)]:
        image = image_of(*size)
        try:
            got = restore_tiled(image, net, tile_size=tile, halo=8, overlap=0)
        except ModelOutputError as error:  # small windows may not tell 12/13 from 11/12: then nobody guesses
            assert q > 8 and "no scale fits" in str(error)
            continue
        assert got.shape == (3, -(-size[0] * p // q), -(-size[1] * p // q))
        torch.testing.assert_close(got, restore_tiled(image, net, tile_size=1000, halo=q * 8, scale=f"{p}/{q}"))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: Shrinking(1, 2), 1),
        (lambda: Shrinking(3, 2), 2),
        (lambda: Shrinking(5, 2), 3),
        (lambda: Shrinking(1, 4), "1/2"),
    ],
)
def test_a_wrong_scale_does_not_pass_for_valid_convolutions(make, wrong):
    for tile, halo in [(16, 32), (512, 64), (64, 64)]:
        with pytest.raises((ModelOutputError, ValueError)):
            restore_tiled(image_of(160, 200), seeded(make), scale=wrong, tile_size=tile, halo=halo)


# ---- what a hostile user found --------------------------------------------------------------------------------------


def test_a_model_may_reuse_its_output_buffer():
    buffers = {}

    def model(x):
        buffer = buffers.setdefault(x.shape, np.empty_like(x))
        np.multiply(x, np.float32(1), out=buffer)
        return buffer

    rgba = np.random.default_rng(0).random((40, 50, 4), np.float32)
    for batch in (1, 3, 100):
        got = restore_tiled(rgba, model, tile_size=16, batch_size=batch)
        np.testing.assert_allclose(got, rgba, rtol=1e-6)


def test_modules_inside_callables_are_evaluated_too():
    net = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 3, 1)).train()
    image = image_of(60, 60)
    want = restore_tiled(image, net, **OPTIONS)
    for model in (net.forward, lambda x: net(x) * 1, functools.partial(net)):
        torch.testing.assert_close(restore_tiled(image, model, **OPTIONS), want, rtol=0, atol=1e-6)
        assert all(modes(net))
    double = seeded(lambda: Chain(2)).double()
    assert restore_tiled(image, lambda x: double(x) * 1, **OPTIONS).dtype == torch.float32


def test_models_that_share_a_part_do_not_disturb_each_other():
    shared = nn.Dropout(0.5)
    nets = [nn.Sequential(shared, nn.Conv2d(3, 3, 1)).train() for _ in range(2)]
    image = image_of(150, 150)
    wants = [restore_tiled(image, net, **OPTIONS) for net in nets]
    wrong = []

    def work(net, want):
        for _ in range(3):
            if not torch.equal(restore_tiled(image, net, **OPTIONS), want):
                wrong.append(1)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(nets * 2, wants * 2, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and all(modes(nets[0])) and all(modes(nets[1]))


def test_train_is_called_where_it_does_more_than_set_modes():
    class Merging(nn.Conv2d):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    net = Merging(3, 3, 1).train()
    restore_tiled(image_of(), net, **OPTIONS)
    assert net.training and not net.merged


def test_eval_that_raises_leaves_nothing_behind():
    class Refusing(nn.Conv2d):
        refuses = True

        def eval(self):
            if self.refuses:
                raise RuntimeError("no")
            return super().eval()

    net = Refusing(3, 3, 1).train()
    with pytest.raises(TileError):
        restore_tiled(image_of(), net, **OPTIONS)
    net.refuses = False
    seen = []
    net.register_forward_hook(lambda module, *_: seen.append(module.training))
    restore_tiled(image_of(), net, **OPTIONS)
    assert not any(seen) and net.training


def test_guessing_the_kind_does_not_feed_a_changed_input():
    class Helper:
        @staticmethod
        def run(x):
            return x.clamp(-9, 9)

    helper = Helper()

    def model(x):
        x -= 0.5
        return helper.run(x)

    array = image_of().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(restore_tiled(array, model, **OPTIONS), array - np.float32(0.5), atol=1e-6)


def test_alpha_of_a_model_with_four_channels():
    rgba = torch.rand(4, 50, 50)
    same, fewer = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
    want = same(rgba[None])[0].detach()
    torch.testing.assert_close(restore_tiled(rgba, same, **OPTIONS), want)
    with pytest.raises(TileError):
        restore_tiled(rgba, same, alpha="opaque", **OPTIONS)
    with pytest.raises(ModelOutputError, match="alpha='channel'"):
        restore_tiled(rgba, fewer, **OPTIONS)
    assert restore_tiled(rgba, fewer, alpha="channel", **OPTIONS).shape == (3, 50, 50)


def test_grey_through_a_callable_around_a_colour_module():
    net, mean = seeded(lambda: Chain(2)), torch.tensor([0.4, 0.5, 0.6])[None, :, None, None]
    grey = image_of(40, 40, 1)
    got = restore_tiled(grey, lambda x: net(x - mean), **OPTIONS)
    assert got.shape == (1, 40, 40)


def test_results_are_in_host_memory_whatever_the_default_device():
    image = torch.rand(3, 40, 40)
    torch.set_default_device("meta")
    try:
        got = restore_tiled(image, lambda x: x * 2, device="cpu", **OPTIONS)
    finally:
        torch.set_default_device(None)
    assert torch.equal(got, image * 2)


def test_outputs_that_cannot_hold_a_result():
    image = image_of(40, 40)
    for out, words in [
        (torch.zeros(1, 1, 1).expand(3, 40, 40), "share memory with itself"),
        (torch.zeros(3, 40, 40, device="meta"), "meta"),
        (torch.zeros(3, 40, 40, requires_grad=True), "gradient"),
        (torch.zeros(3, 40, 40).to_sparse(), "dense"),
    ]:
        with pytest.raises((TypeError, ValueError), match=f"out .*{words}"):
            restore_tiled(image, nn.Identity(), out=out, **OPTIONS)
    both = torch.rand(3, 40, 80)
    restore_tiled(both[..., ::2], nn.Identity(), out=both[..., 1::2], **OPTIONS)
    assert torch.equal(both[..., ::2], both[..., 1::2])


# ---- how windows lie in memory ---------------------------------------------------------------------------------------


class Lies(torch.nn.Module):
    """Notes how its windows lie; asks for contiguous ones by the way it is written, if told to."""

    def __init__(self, strict=False):
        super().__init__()
        self.body, self.strict, self.seen = torch.nn.Conv2d(3, 3, 3, padding=1), strict, []

    def forward(self, x):
        self.seen.append("contiguous" if x.is_contiguous() else "channels_last")
        if self.strict:
            x = x.view(len(x), -1).view(x.shape)
        return self.body(x)


def lies(model, **options):
    model.seen.clear()
    return restore_tiled(image_of(), model, **OPTIONS | options)


def test_windows_lie_as_asked_and_the_module_stays_as_it_is():
    model = Lies()
    before = model.body.weight.stride()
    want = lies(model, memory_format="contiguous")
    assert set(model.seen) == {"contiguous"}
    for memory_format in ("auto", "channels_last"):
        got = lies(model, memory_format=memory_format)
        assert set(model.seen) == {"channels_last"}
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert model.body.weight.stride() == before


@pytest.mark.parametrize("engine", ["host", "torch"])
def test_models_written_for_contiguous_windows_get_them(engine):
    model = Lies(strict=True)
    want = lies(model, memory_format="contiguous")
    got = lies(model, engine=engine)
    assert set(model.seen) == {"contiguous"}  # a copy was tried
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    with pytest.raises(TileError, match="view size is not compatible"):
        lies(model, memory_format="channels_last")


def test_a_callable_gets_contiguous_windows_unless_asked():
    model = Lies()
    restore_tiled(image_of(), lambda windows: 1 * model(windows), **OPTIONS)
    assert set(model.seen) == {"contiguous"}
    model.seen.clear()
    restore_tiled(image_of(), lambda windows: 1 * model(windows), memory_format="channels_last", **OPTIONS)
    assert set(model.seen) == {"channels_last"}
    with pytest.raises(ValueError, match="memory_format must be one of 'auto', 'channels_last', 'contiguous', not 'x'"):
        lies(model, memory_format="x")


# ---- compiled --------------------------------------------------------------------------------------------------------


def test_a_compiled_model_gives_the_same(monkeypatch):
    """By a stand-in for torch's compiler, which takes seconds and needs a C++ one."""
    shapes, compiled = [], []

    def compile_(module, dynamic):
        assert dynamic is False
        compiled.append(module)

        def call(windows):
            shapes.append(tuple(windows.shape))
            return module(windows)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    model = seeded(lambda: Chain(2))
    want = restore_tiled(image_of(), model, **OPTIONS)
    restorer = TiledRestorer(model, compile=True, verify=2, **OPTIONS)
    torch.testing.assert_close(restorer(image_of()), want, rtol=0, atol=1e-6)
    assert compiled == [model]
    assert len(set(shapes)) == 1
    assert len(shapes) == len(plan_tiles((50, 61), **OPTIONS)) - 1  # the first window has taught what the model is
    restorer(image_of())
    assert compiled == [model]


def test_a_model_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    def fails(windows):
        raise KeyError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: fails)
    model = seeded(lambda: Chain(2))
    restorer = TiledRestorer(model, compile=True, **OPTIONS)
    with pytest.warns(
        RuntimeWarning, match="compile=True failed, the model runs as it is: KeyError: 'no compiler"
    ) as w:
        got = restorer(image_of())
    assert len(w) == 1
    assert torch.equal(got, restore_tiled(image_of(), model, **OPTIONS))
    restorer(image_of())  # does not try again


def test_only_modules_can_be_compiled():
    with pytest.raises(ValueError, match="compile must be False for a model that is no torch module"):
        restore_tiled(image_of(), lambda windows: windows, compile=True, **OPTIONS)
    with pytest.raises(TypeError, match="compile must be True or False, not 1"):
        restore_tiled(image_of(), seeded(lambda: Chain(2)), compile=1, **OPTIONS)


@pytest.mark.slow
def test_the_compiler_itself():
    model = seeded(lambda: Chain(2))
    want = restore_tiled(image_of(), model, **OPTIONS)
    got = restore_tiled(image_of(), model, compile=True, **OPTIONS)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_module_in_a_default_is_found_and_of_two_failures_the_telling_one():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout(0.5)).train()
    image = np.random.default_rng(0).random((12, 10, 3), np.float32)
    got = restore_tiled(image, lambda x, net=net: net(x) * 1, halo=2)
    np.testing.assert_allclose(got, restore_tiled(image, net, halo=2), atol=1e-6)

    class Hidden:
        def __init__(self, module):
            self.boxes = [[module]]

        def __call__(self, x):
            return self.boxes[0][0](x)

    with pytest.raises(TileError, match=r"expected input.*to have 5 channels"):
        restore_tiled(image, Hidden(torch.nn.Conv2d(5, 3, 1)), halo=2)
