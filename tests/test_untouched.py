# SPDX-License-Identifier: MIT
"""A model is afterwards what it was: parameters, buffers, attributes, hooks, mode, device, random numbers."""

import dataclasses
import functools
import random
import threading
import time
import types
import warnings
import weakref
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from halotile import (  # noqa: E402
    RangeWarning,
    SeamWarning,
    TiledRestorer,
    TileSizeWarning,
    error_curve,
    inspect_model,
    iter_bands,
    restore_tiled,
    restore_to,
    testing,
)
from halotile.models.activations import largest_activation  # noqa: E402
from halotile.models.kinds import open_model  # noqa: E402
from halotile.models.reach import all_modules  # noqa: E402
from halotile.models.untouched.copies import shell  # noqa: E402

from .architectures import KNOWN  # noqa: E402
from .networks import seeded  # noqa: E402
from .sampled import sampled  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::halotile.SeamWarning", "ignore::UserWarning")

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 61, 3), np.uint8)


def tensor_state(tensor):
    flat = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
    return id(tensor), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.is_inference(), bytes(flat.numpy())


def held(value):
    """A value, its identity, and what is in it."""
    if isinstance(value, torch.Tensor):
        return tensor_state(value)
    if isinstance(value, dict):
        return id(value), [(name, held(one)) for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        return id(value), [held(one) for one in value]
    if isinstance(value, types.SimpleNamespace):
        return id(value), held(vars(value))
    return id(value)


def state(module):
    """All that a module is, as far as anybody can see."""
    return [(name, inner.training, held(vars(inner))) for name, inner in module.named_modules()]


def luck():
    return random.getstate(), repr(np.random.get_state()), bytes(torch.get_rng_state().numpy())


class Unchanged:
    """A context that compares."""

    def __init__(self, *modules):
        self.modules = modules

    def __enter__(self):
        self.before = [state(module) for module in self.modules], luck()

    def __exit__(self, kind, error, traceback):
        assert ([state(module) for module in self.modules], luck()) == self.before


def wrapped(model):
    """Only a callable."""

    def call(x):
        return model(x) * 1

    return call


def quietly(call):
    """Whatever it says: what is looked at is what is left behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except (ValueError, RuntimeError):
            return None


ACTIVITIES = {
    "inspect": inspect_model,
    "inspect, double": lambda model: inspect_model(model, dtype="bfloat16"),
    "inspect a wrapper": lambda model: inspect_model(wrapped(model)),
    "inspect in inference mode": lambda model: inspect_model(torch.inference_mode()(wrapped(model))),
    "estimate": lambda model: largest_activation(
        open_model(model, device=None, dtype=None, tensors=True), (1, 3, 64, 64)
    ),
    "restore": lambda model: restore_tiled(IMAGE, model, tile_size=32, halo=8),
    "restore a wrapper": lambda model: restore_tiled(IMAGE, wrapped(model), tile_size=32, halo=8, phase=8),
    "bands": lambda model: list(iter_bands(IMAGE, model, tile_size=32, halo=8, phase=8)),
    "tune": lambda model: restore_tiled(IMAGE, model, tile_size="auto", batch_size="auto", halo=8, phase=8),
    "limit": lambda model: restore_tiled(IMAGE, model, tile_size=48, halo=8, phase=8, memory_limit=1 << 20),
    "precision": lambda model: restore_tiled(IMAGE, model, tile_size=48, halo=8, phase=8, dtype="auto"),
    "exact statistics": lambda model: restore_tiled(
        IMAGE, model, tile_size=48, halo="exact", phase=None, global_stats="exact"
    ),
    "frozen statistics": lambda model: restore_tiled(
        IMAGE, model, tile_size=48, halo="auto", phase=None, global_stats="frozen"
    ),
    "verify": lambda model: restore_tiled(IMAGE, model, tile_size=48, halo=8, phase=8, verify=2),
    "curve": lambda model: error_curve(IMAGE, model, halos=(0, 8)),
    "assert_exact": lambda model: testing.assert_exact(IMAGE, model, tile_size=48, halo=8, phase=8, tolerance=1e9),
}
QUICK = ("estimate", "restore", "inspect")


@pytest.mark.parametrize("name", KNOWN)
def test_every_network_is_left_as_it_was(name, tmp_path):
    model = seeded(KNOWN[name].make).train()
    for activity in QUICK:
        with Unchanged(model):
            quietly(lambda activity=activity: ACTIVITIES[activity](model))


@pytest.mark.slow
@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.parametrize("name", KNOWN)
def test_every_network_after_every_activity(name, activity):
    model = seeded(KNOWN[name].make)
    with Unchanged(model):
        quietly(lambda: ACTIVITIES[activity](model))


# ---- networks that keep something ------------------------------------------------------------------------------------


class Keeping(nn.Module):
    """A convolution and tensors that are no parameters: `keep` says what a pass does with them."""

    def __init__(self, keep):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.mean = torch.full((1, 3, 1, 1), 0.4)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("average", torch.zeros(3))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.mask, self.inside, self.cache, self.items = None, types.SimpleNamespace(mask=None), {}, []
        self.keep = keep

    def forward(self, x):
        self.keep(self, x)
        return self.conv(x - 0.4) * self.scale + 0.4


def type_as(self, x):
    self.mean = self.mean.type_as(x)


def move(self, x):
    self.mean = self.mean.to(x).clone()


def mask(self, x):
    self.mask = torch.zeros(x.shape[2:], device=x.device)


def new_attribute(self, x):
    self.latest = x.mean(1)


def buffer_in_place(self, x):
    self.steps += 1


def buffer_replaced(self, x):
    self.average = self.average * 0.9 + x.mean((0, 2, 3)) * 0.1


def buffer_written(self, x):
    self.average.copy_(x.detach().float().mean((0, 2, 3)))


def data_written(self, x):
    self.average.data.mul_(0.9).add_(x.detach().float().mean((0, 2, 3))[:3])
    self.steps.data += 1


def parameter_in_place(self, x):
    self.scale.mul_(1.01) if not self.scale.requires_grad else self.scale.data.mul_(1.01)


def parameter_written(self, x):
    with torch.no_grad():
        self.scale.copy_(x.mean() * 0 + 0.7)


def plain_in_place(self, x):
    self.mean.mul_(1.01)


def parameter_replaced(self, x):
    self.scale = nn.Parameter(torch.tensor(0.5))


def nested(self, x):
    self.inside.mask = x.mean()


def in_a_dict(self, x):
    self.cache[tuple(x.shape)] = {"mask": x.mean()}


def in_a_list(self, x):
    self.items.append(x.mean())


def hook(self, x):
    self.conv.register_forward_hook(lambda *args: None)


def mode(self, x):
    self.train()


def lucky(self, x):
    torch.rand(3), random.random(), np.random.rand()


KEEPING = [
    type_as,
    move,
    mask,
    new_attribute,
    buffer_in_place,
    buffer_replaced,
    buffer_written,
    data_written,
    parameter_in_place,
    parameter_written,
    plain_in_place,
    parameter_replaced,
    nested,
    in_a_dict,
    in_a_list,
    hook,
    mode,
    lucky,
]
# What is no tensor of the model's, an ordinary pass of the model's own changes as it always does.
OWN = {nested, in_a_dict, in_a_list, hook, plain_in_place, lucky}
PASSES = {"estimate", "inspect", "inspect, double", "inspect a wrapper", "inspect in inference mode"}


@pytest.mark.parametrize("keep, activity", sampled(3, KEEPING, ACTIVITIES))
def test_what_a_model_keeps(keep, activity):
    if keep in OWN and activity not in PASSES:
        pytest.skip("the model's own doing")
    model = seeded(lambda: Keeping(keep))
    with Unchanged(model):
        quietly(lambda: ACTIVITIES[activity](model))
    model.keep = lambda *args: None
    want = model(torch.ones(1, 3, 9, 9))
    assert torch.isfinite(want).all()
    want.sum().backward()  # no tensor of inference mode is left


@pytest.mark.parametrize("activity", sorted(PASSES))
def test_what_cannot_be_copied(activity):
    class Alone(Keeping):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one")

    for keep in KEEPING:
        model = seeded(lambda keep=keep: Alone(keep))
        with Unchanged(model):
            quietly(lambda model=model: ACTIVITIES[activity](model))


def test_modules_that_nobody_can_see():
    models = {"net": seeded(lambda: Keeping(buffer_written))}

    def call(x, box=([models],)):  # too deep to be looked for
        return box[0][0]["net"](x)

    with Unchanged(models["net"]):
        inspect_model(torch.inference_mode()(call))


@pytest.mark.parametrize(
    "keep", [keep if at % 4 == 0 else pytest.param(keep, marks=pytest.mark.slow) for at, keep in enumerate(KEEPING)]
)
def test_after_errors(keep):
    class Failing(Keeping):
        def forward(self, x):
            super().forward(x)
            raise ArithmeticError("never")

    model = seeded(lambda: Failing(keep))
    for activity in sorted(PASSES - {"inspect, double"}) if keep in OWN else ("inspect", "restore", "tune"):
        with Unchanged(model):
            quietly(lambda: ACTIVITIES[activity](model))


def test_after_running_out_of_memory():
    class Full(Keeping):
        def forward(self, x):
            super().forward(x)
            if x.device.type != "meta":
                raise RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
                )
            return x

    model = Full(type_as).eval()
    with Unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", TileSizeWarning)
        with pytest.raises(MemoryError):
            restore_tiled(IMAGE, model)


def test_compiled_models(monkeypatch):
    model = seeded(lambda: Keeping(type_as))
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)  # what it makes is torch's
    with Unchanged(model):
        restore_tiled(IMAGE, model, tile_size=32, halo=4, compile=True)


def test_to_a_file(tmp_path):
    for keep in set(KEEPING) - OWN:
        model = seeded(lambda keep=keep: Keeping(keep))
        with Unchanged(model):
            restore_to(tmp_path / "out.npy", IMAGE, model, tile_size=32, halo=4)


def test_several_threads_share_a_model():
    model = seeded(lambda: Keeping(mask))
    restorer = TiledRestorer(model, tile_size=16, halo=2)
    with Unchanged(model):
        threads = [threading.Thread(target=restorer, args=(IMAGE,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_a_model_can_be_trained_afterwards():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    restore_tiled(IMAGE, model, halo="exact", phase=None, tile_size=32, verify=1)
    assert model.training
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    assert int(model[1].num_batches_tracked) == 1


def test_parameters_without_dimensions(tmp_path):
    """`num_batches_tracked` of every batch norm, and scalars of every dtype."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).eval()
        model.register_buffer("scalar", torch.ones((), dtype=dtype))
        model.register_buffer("empty", torch.ones(0, dtype=dtype))
        restorer = TiledRestorer(model, halo="exact", phase=None, tile_size=32)
        restorer(IMAGE)
        assert restorer.last_run.how == "exact" and restorer.last_run.halo == (1, 1)
    for options in ({"tile_size": "auto"}, {"memory_limit": 64 << 20}, {"global_stats": "exact"}, {"halo": "auto"}):
        restore_tiled(IMAGE, model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeamWarning)
        error_curve(IMAGE, model, halos=(0,))


def test_what_is_tried_draws_no_random_numbers():
    """A model that draws some, draws them for the windows that it was asked for."""
    model = seeded(lambda: Keeping(lucky))
    for options in ({}, {"phase": 1}, {"scale": 1}):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        restore_tiled(IMAGE[:32, :32], model, halo=8, **options)
        found = luck()
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        torch.rand(3), random.random(), np.random.rand()
        assert found == luck()


# ---- what copies share, and settings of the process ------------------------------------------------------------------


class Normed(nn.Module):
    """Counts its runs in its batch norm, which is in training mode until somebody says otherwise."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.runs = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), 0
        self.register_forward_hook(lambda *args: None)

    def forward(self, x):
        self.runs += 1
        return self.norm(self.conv(x))


class Itself(Normed):
    def __deepcopy__(self, memo):
        return self


class Closing(Normed):
    """An attribute closes over the module."""

    def __init__(self):
        super().__init__()
        self.call = lambda x: self.norm(self.conv(x))

    def forward(self, x):
        return self.call(x)


class Referring(Normed):
    def __init__(self):
        super().__init__()
        self.me = weakref.ref(self)

    def forward(self, x):
        return Normed.forward(self.me(), x)


def patched(how):
    """Another `forward`, as libraries put it into modules."""
    model = Normed()
    old = model.forward
    if how == "function":
        model.forward = lambda x: old(x)
    else:
        model.forward = functools.partial(lambda module, x: old(x), model)
    return model


SHARING = {
    "itself": Itself,
    "closing": Closing,
    "referring": Referring,
    "function": lambda: patched("function"),
    "partial": lambda: patched("partial"),
}


@pytest.mark.parametrize("name, activity", sampled(2, SHARING, ACTIVITIES))
def test_copies_that_are_or_run_the_model_itself(name, activity):
    """What is done with such a copy would be done with the model: modes, hooks, statistics."""
    model = seeded(SHARING[name]).train()
    with Unchanged(model):
        quietly(lambda: ACTIVITIES[activity](model))
        if activity not in PASSES:
            model.runs = 0  # the model's own doing


def test_a_copy_that_is_the_model_is_not_converted():
    model = Itself()
    with Unchanged(model), pytest.raises(ValueError, match="cannot be copied"):
        restore_tiled(IMAGE, model, dtype="bfloat16")


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_normalised_weights_in_training_mode(activity):
    """Whoever asks a layer for its weight takes a step of the power iteration."""
    model = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1)), nn.ReLU())
    with Unchanged(model.train()):
        quietly(lambda: ACTIVITIES[activity](model))


@pytest.mark.parametrize("activity", sorted(PASSES))
def test_generators_and_what_objects_hold(activity):
    @dataclasses.dataclass
    class Cache:
        latest: object = None
        runs: int = 0
        inside: object = None

    class Lucky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.cache = nn.Conv2d(3, 3, 3, padding=1), Cache(inside=Cache())
            self.lucky = torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)

        def forward(self, x):
            torch.rand(1, generator=self.lucky[0])
            for generator in self.lucky[1:]:
                generator.random()
            for cache in (self.cache, self.cache.inside):
                cache.latest, cache.runs = x, cache.runs + 1
            return self.conv(x)

    class Alone(Lucky):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one")

    def seen(model):
        torch_one, *others = model.lucky
        states = torch_one.get_state().tolist(), others[0].bit_generator.state, others[1].get_state()
        return repr((states, others[2].getstate(), model.cache))

    for model in (Lucky(), Alone()):
        before = seen(model)
        quietly(lambda model=model: ACTIVITIES[activity](model))
        assert seen(model) == before


def test_lazy_modules_are_refused_and_left_alone():
    model = nn.Sequential(nn.LazyConv2d(3, 3, padding=1), nn.ReLU())
    for activity in ("inspect", "inspect a wrapper", "restore", "restore a wrapper", "bands", "tune"):
        with pytest.raises(ValueError, match=r"0\.weight has no size yet"):
            ACTIVITIES[activity](model)
    assert model[0].has_uninitialized_params()


def test_frozen_programs_have_no_modes():
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()).eval()
    frozen = torch.jit.freeze(torch.jit.script(module))
    for call in (frozen, wrapped(frozen)):
        got = restore_tiled(IMAGE, call, tile_size=32, halo=4)
        np.testing.assert_array_equal(got, restore_tiled(IMAGE, module, tile_size=32, halo=4))
        assert inspect_model(call).halo == (1, 1)


def test_buffers_of_every_layout():
    model = nn.Conv2d(3, 3, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about prototypes
        odd = {
            "sparse": torch.eye(3).to_sparse(),
            "rows": torch.eye(3).to_sparse_csr(),
            "quantised": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
            "empty": torch.empty(3, device="meta"),
            "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
            "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
            "expanded": torch.ones(1).expand(5),
            "nan": torch.full((), torch.nan),
        }
    for name, value in odd.items():
        model.register_buffer(name, value)
        for activity in ("inspect", "inspect a wrapper", "restore", "tune", "limit", "exact statistics", "curve"):
            ACTIVITIES[activity](model)
        model._buffers.pop(name)


def test_settings_of_the_process_where_several_threads_look():
    """Each giving back what it found, they left one another's behind: for good."""
    from torch._subclasses import fake_tensor

    def settings():
        return (
            torch.autograd.Function.__dict__["apply"],
            torch.backends.mha.get_fastpath_enabled(),
            fake_tensor.log.disabled,
            torch._C._get_graph_executor_optimize(),
            list(warnings.filters),
            luck(),
        )

    def look(delay):
        time.sleep(delay)
        inspect_model(seeded_apart(delay))
        threads.add(torch.get_num_threads())

    def seeded_apart(delay):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        nn.init.constant_(model[0].bias, delay)
        return model

    own, threads = torch.get_num_threads(), set()
    inspect_model(seeded_apart(0.0))  # imports what it needs
    before = settings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, [0.0, 0.01, 0.02, 0.03, 0.0, 0.01]))
    after = settings()
    assert after[:-1] == before[:-1]
    assert (torch.get_num_threads(), threads) == (own, {own})


def test_compiled_modules_are_looked_at_as_they_were_written():
    """To compile them anew at each of a hundred sizes takes minutes; what watches a run cannot be compiled at all."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)).train()
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with Unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RangeWarning)  # of a network of random weights
        for call in (compiled, wrapped(compiled), nn.Sequential(compiled)):
            assert inspect_model(call).halo == (1, 1)
        assert not made
        options = {"out_dtype": "float32"}  # its values are of any range
        restore_tiled(IMAGE, compiled, tile_size="auto", memory_limit=1 << 26, **options)
        restore_tiled(IMAGE, compiled, tile_size=48, halo="exact", **options)
    assert made


class Uncopyable(Keeping):
    def __deepcopy__(self, memo):
        raise TypeError("there is only one")


@pytest.mark.parametrize("kind", [Keeping, Uncopyable])
def test_a_model_that_is_looked_at_while_it_runs(kind):
    """Neither disturbs the other, and both together leave it as it was."""

    def keep(self, x):
        buffer_in_place(self, x)
        mask(self, x)

    model = seeded(lambda: kind(keep)).train()
    restorer = TiledRestorer(model, tile_size=32, halo=4, phase=1)
    want, until = restorer(IMAGE), time.monotonic() + 3

    def restore():
        while time.monotonic() < until:
            np.testing.assert_array_equal(restorer(IMAGE), want)

    def look():
        while time.monotonic() < until:
            assert inspect_model(wrapped(model)).receptive_field is not None

    with Unchanged(model), ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(one) for one in (restore, restore, look, look)]:
            run.result()


# ---- modules that no other has as a submodule ------------------------------------------------------------------------


class Hiding(nn.Module):
    """Runs a block that `hide` puts where torch does not look for modules; hide(module, block) says how to get it."""

    def __init__(self, hide):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        block = Normed()
        block.cache = None
        self.get = hide(self, block)

    def forward(self, x):
        return self.conv(self.get(self)(x))


class Slotted:
    __slots__ = ("block",)


def hide_as(value_of, get):
    """In the attribute `held`."""

    def hide(module, block):
        module.held = value_of(block)
        return get

    return hide


def hide_in_slots(block):
    held = Slotted()
    held.block = block
    return held


def of_this_thread(block):
    held = threading.local()
    held.block = block
    return held


NAMED = []


def named_elsewhere(x):
    return NAMED[-1](x)


def run_by_class(hide_in):
    """The block is behind the class: in its method, or in an attribute."""

    def hide(module, block):
        def closing(self, x):
            return self.conv(block(x))

        def through(self, x):
            return self.conv(self.block[0](x))

        names = {"forward": closing} if hide_in == "method" else {"forward": through, "block": [block]}
        module.__class__ = type("Own", (Hiding,), names)

    return hide


HIDING = {
    "list": hide_as(lambda block: [block], lambda self: self.held[0]),
    "list in a dict": hide_as(lambda block: {"a": [block]}, lambda self: self.held["a"][0]),
    "tuple": hide_as(lambda block: (1, (block,)), lambda self: self.held[1][0]),
    "key": hide_as(lambda block: {block: 1}, lambda self: next(iter(self.held))),
    "object": hide_as(lambda block: types.SimpleNamespace(block=block), lambda self: self.held.block),
    "object in a list": hide_as(lambda block: [types.SimpleNamespace(block=block)], lambda self: self.held[0].block),
    "slots": hide_as(hide_in_slots, lambda self: self.held.block),
    "partial": hide_as(lambda block: functools.partial(Normed.forward, block), lambda self: self.held),
    "bound method": hide_as(lambda block: block.forward, lambda self: self.held),
    "closure": hide_as(lambda block: lambda x: block(x), lambda self: self.held),
    "default": hide_as(lambda block: lambda x, own=(block,): own[0](x), lambda self: self.held),
    "array": hide_as(lambda block: np.array([block, None], object), lambda self: self.held[0]),
    "mapping": hide_as(lambda block: types.MappingProxyType({"a": block}), lambda self: self.held["a"]),
    "of this thread": hide_as(of_this_thread, lambda self: self.held.block),
    "cached": hide_as(lambda block: functools.lru_cache(lambda: block), lambda self: self.held()),
    "named": hide_as(lambda block: NAMED.append(block) or named_elsewhere, lambda self: self.held),
    "user's dict": hide_as(lambda block: UserDict(a=block), lambda self: self.held["a"]),
    "no_grad": hide_as(lambda block: torch.no_grad()(block.forward), lambda self: self.held),
    "compiled": hide_as(lambda block: [torch.compile(block, backend="eager")], lambda self: self.held[0]),
    "hidden in a hidden one": hide_as(
        lambda block: [nn.Sequential(Hiding(hide_as(lambda _: [block], lambda self: self.held[0])))],
        lambda self: self.held[0],
    ),
    "plain wrapper in a ModuleList": hide_as(
        lambda block: nn.ModuleList([Hiding(hide_as(lambda _: (block,), lambda self: self.held[0]))]),
        lambda self: self.held[0],
    ),
    "method": run_by_class("method"),
    "class": run_by_class("class"),
}


def blocks_in(module):
    return [inner for inner in all_modules(module) if isinstance(inner, Normed)]


@pytest.mark.parametrize("name, activity", sampled(3, HIDING, ACTIVITIES))
def test_modules_that_are_no_submodules(name, activity):
    NAMED.clear()
    model = seeded(lambda: Hiding(HIDING[name])).train()
    blocks = blocks_in(model)
    assert blocks
    for block in blocks:
        block.train()
    with Unchanged(model, *blocks):
        quietly(lambda: ACTIVITIES[activity](model))
        if activity not in PASSES:
            for block in blocks:
                block.runs = 0  # the model's own doing


def test_modules_that_are_no_submodules_run_in_eval_mode():
    for name, hide in HIDING.items():
        model = seeded(lambda hide=hide: Hiding(hide)).eval()
        for block in blocks_in(model):
            block.train()
        first = restore_tiled(IMAGE, model, tile_size=32, halo=2, phase=1)
        for block in blocks_in(model):
            assert block.training and block.norm.training, name
            block.eval()
        np.testing.assert_array_equal(first, restore_tiled(IMAGE, model, tile_size=32, halo=2, phase=1), name)


def test_modules_behind_callables():
    model = seeded(Normed).train()
    models = {"nets": [types.SimpleNamespace(net=model)]}
    with Unchanged(model):
        restore_tiled(IMAGE, lambda x: models["nets"][0].net(x), tile_size=32, halo=2, phase=1)
        model.runs = 0


def test_a_module_that_sets_the_modes_of_hidden_ones():
    class Setting(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = [Normed()]

        def train(self, mode=True):
            super().train(mode)
            self.held[0].train(mode)
            return self

        def forward(self, x):
            return self.held[0](x)

    for inside in (False, True):
        for outside in (False, True):
            model = seeded(Setting).train(outside)
            model.held[0].train(inside)
            with Unchanged(model, model.held[0]):
                restore_tiled(IMAGE, model, tile_size=32, halo=2, phase=1)
                model.held[0].runs = 0


def test_shells_have_hidden_modules_of_their_own():
    for name in ("list", "object", "slots", "partial", "list in a dict"):
        model = seeded(lambda name=name: Hiding(HIDING[name])).train()
        own = shell(model)
        (block,), (twin,) = blocks_in(model), blocks_in(own)
        assert twin is not block
        assert twin.conv.weight.data_ptr() == block.conv.weight.data_ptr()
        assert twin.norm.running_mean.data_ptr() != block.norm.running_mean.data_ptr()
    for name in ("bound method", "closure", "default", "method", "class"):
        model = seeded(lambda name=name: Hiding(HIDING[name]))
        if name != "bound method":  # of which torch makes copies bound to copies
            with pytest.raises(TypeError, match="its copies run"):
                shell(model)


def test_what_is_looked_at_for_hidden_modules():
    """Cycles, properties, references to what is gone, containers of any size."""

    class Odd:
        @property
        def net(self):
            raise AssertionError("evaluated")

        def __getattr__(self, name):
            raise AssertionError("asked")

    class Gone:
        pass

    gone = Gone()
    model, parent = Normed(), Normed()
    model.held = [model, Odd(), weakref.ref(gone), weakref.proxy(gone), weakref.proxy(parent), list(range(10**6))]
    del gone
    model.held.append(model.held)
    model.many = {i: [str(i)] for i in range(10**5)}
    model.back = types.SimpleNamespace(parent=[weakref.ref(parent)])
    parent.child = model
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1)))
    model.frozen = [torch.jit.freeze(script.eval()), script]
    found = all_modules(model)
    assert found[0] is model and any(one is parent for one in found) and any(one is script for one in found)
    assert len({id(one) for one in found}) == len(found)


def test_an_activation_that_programs_share_hinders_no_copy():
    shared = nn.ReLU()

    class Sharing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.call = lambda x: shared(x)

        def forward(self, x):
            return self.call(shared(self.conv(x)))

    assert shell(Sharing()).conv is not None
    restore_tiled(IMAGE, Sharing(), tile_size=32, halo=2, phase=1, dtype="bfloat16")
    model = Sharing()
    for activity in ACTIVITIES.values():
        with Unchanged(model, shared):
            quietly(lambda activity=activity: activity(model))


# ---- models with threads of their own --------------------------------------------------------------------------------


class Threaded(nn.Module):
    """Asks in a thread of its own; `hushed`: whether it goes on whatever the answer is."""

    def __init__(self, ask, hushed):
        super().__init__()
        self.conv, self.ask, self.hushed = nn.Conv2d(3, 3, 3, padding=1), ask, hushed

    def forward(self, x):
        y = self.conv(x)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.ask, y)
        if not self.hushed or answer.exception() is None:
            y = y + 0 * y[..., :1, :1] if answer.result() is None else y
        return y


ASKING = {
    "data_ptr": lambda y: y.data_ptr(),
    "of a result": lambda y: (y * 2).data_ptr(),
    "untyped_storage": lambda y: y.untyped_storage().data_ptr(),
    "numpy": lambda y: y.detach().numpy().sum(),
    "asarray": lambda y: np.asarray(y.detach()).sum(),
    "tolist": lambda y: y.tolist(),
    "dlpack": lambda y: np.from_dlpack(y.detach()).sum(),
    "to_dlpack": lambda y: torch.utils.dlpack.to_dlpack(y.detach()),
}


@pytest.mark.parametrize("hushed", [False, True])
@pytest.mark.parametrize("name", ASKING)
def test_memory_that_is_read_in_a_thread_of_the_model(name, hushed):
    from halotile.inspection.structure import analyse

    model, seen = seeded(lambda: Threaded(None, hushed)), []

    def ask(y):
        answer = ASKING[name](y)
        seen.append(y.device.type)
        return answer

    model.ask = ask
    found = analyse(model)
    assert not seen and found.unknown and found.receptive_field is None
    opened = open_model(model, device=None, dtype=None, tensors=True)
    assert hushed or largest_activation(opened, (1, 3, 64, 64)) is None
    assert not seen
    assert restore_tiled(IMAGE, model, tile_size=48, halo=2, phase=1).shape == IMAGE.shape
    assert seen and set(seen) == {"cpu"}


@pytest.mark.parametrize("how", ["whole image", "in place"])
def test_what_threads_of_the_model_compute_is_not_taken_for_local(how):
    from halotile.inspection.structure import analyse

    class Elsewhere(nn.Module):
        def forward(self, x):
            y = x * 1
            with ThreadPoolExecutor(1) as pool:
                result = pool.submit(y.add_ if how == "in place" else y.add, x.mean()).result()
            return y if how == "in place" else result

    assert analyse(Elsewhere()).unknown or analyse(Elsewhere()).global_operations


def test_threads_of_others_ask_for_addresses_as_ever():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from halotile.models.around import without_memory

    places = [(torch.Tensor, name) for name in ("data_ptr", "numpy", "storage", "__array__", "__dlpack__")]
    places += [(torch, "to_dlpack"), (torch.utils.dlpack, "to_dlpack")]
    before = [vars(place).get(name) for place, name in places]
    asked, answered, answers = threading.Event(), threading.Event(), []

    def other():
        asked.wait()
        with FakeTensorMode():
            fake = torch.empty(3)
        for tensor in (torch.ones(3), torch.empty(3, device="meta")):
            answers.append(tensor.data_ptr())
        answers.append(fake.untyped_storage().size())
        answers.append(torch.ones(3).numpy().sum())
        answered.set()

    thread = threading.Thread(target=other)
    thread.start()
    with without_memory(), without_memory(FakeTensorMode()):
        asked.set()
        answered.wait(10)
    thread.join()
    assert len(answers) == 4 and answers[0] and answers[1:] == [0, 12, 3]
    assert [vars(place).get(name) for place, name in places] == before


# ---- looks and runs at the same time ---------------------------------------------------------------------------------


class Busy(Uncopyable):
    """Replaces and writes to whatever a pass can."""

    def __init__(self):
        super().__init__(self.change)
        self.norm, self.held = nn.BatchNorm2d(3), [Normed()]

    def change(self, _, x):
        for keep in (buffer_in_place, mask, buffer_replaced, buffer_written, new_attribute, in_a_dict):
            keep(self, x)

    def forward(self, x):
        return self.held[0](self.norm(super().forward(x)))


def together(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


@pytest.mark.parametrize("round", range(3))
def test_what_cannot_be_copied_is_looked_at_while_it_runs(round):
    model = seeded(Busy).train()
    restorer = TiledRestorer(model, tile_size=32, halo=4, phase=1)
    want, info, info_of_call = restorer(IMAGE), inspect_model(model), inspect_model(wrapped(model))
    model.cache.clear()
    model.held[0].runs = 0

    def restore():
        for _ in range(8):
            np.testing.assert_array_equal(restorer(IMAGE), want)

    def bands():
        for _ in range(8):
            found = iter_bands(IMAGE, model, tile_size=32, halo=4, phase=1)
            np.testing.assert_array_equal(np.concatenate([pixels for _, pixels in found]), want)

    def look():
        for _ in range(2):
            assert inspect_model(model) == info

    def look_at_call():
        assert inspect_model(wrapped(model)) == info_of_call

    with Unchanged(model, model.held[0]):
        together(restore, bands, look, look_at_call, look)
        model.cache.clear()  # the runs' own doing
        model.held[0].runs = 0


def test_a_part_of_a_model_that_is_looked_at_takes_turns_with_it():
    inner = seeded(Busy).train()
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), inner)
    restorers = [TiledRestorer(one, tile_size=32, halo=4, phase=1) for one in (inner, outer)]
    wanted, info = [restorer(IMAGE) for restorer in restorers], inspect_model(outer)
    inner.cache.clear()
    inner.held[0].runs = 0

    def run(restorer, want):
        for _ in range(5):
            np.testing.assert_array_equal(restorer(IMAGE), want)

    def look():
        for _ in range(2):
            assert inspect_model(outer) == info

    with Unchanged(outer, inner.held[0]):
        together(look, look, *(functools.partial(run, *one) for one in zip(restorers, wanted, strict=True)))
        inner.cache.clear()
        inner.held[0].runs = 0


def test_who_has_a_turn_waits_for_no_other(monkeypatch):
    """Bands that nobody asks for hold none; two threads with a turn each do not wait for each other."""
    from halotile.models.untouched.turns import turns

    models = [seeded(Busy) for _ in range(2)]
    bands = iter_bands(IMAGE, models[0], tile_size=32, halo=4, phase=1)
    next(bands)
    assert not turns.runs and not turns.looks
    met, ended = threading.Barrier(2), []

    def both(own, other):
        with turns.look([own]):
            met.wait(10)
            with turns.run([other]), turns.look([other]):
                ended.append(own)

    together(lambda: both(*models), lambda: both(*reversed(models)))
    assert len(ended) == 2 and not turns.runs and not turns.looks
    monkeypatch.setattr("halotile.models.untouched.turns.PATIENCE", 0.05)
    with turns.look(models):  # for a thread that this one waits for
        together(lambda: TiledRestorer(models[0], tile_size=32, halo=4, phase=1)(IMAGE[:32, :32]))
    bands.close()


class Described(nn.Module):
    """A method that no run leads to names a global with the weights of another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x)

    def described(self):
        return str(DESCRIBED)


DESCRIBED = Described()


def test_what_no_run_leads_to_is_no_part_of_the_model():
    assert all_modules(DESCRIBED) == [DESCRIBED, DESCRIBED.conv]
    image = np.random.default_rng(0).random((40, 40, 3), np.float32)
    restore_tiled(image, DESCRIBED, dtype="bfloat16", tile_size=32, halo=2)  # converted, so it can be copied
