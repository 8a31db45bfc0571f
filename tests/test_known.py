# SPDX-License-Identifier: MIT
"""What is kept about models: found again for the same model only, and never a reason to fail."""

import functools
import json
import subprocess
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from halotile import inspection  # noqa: E402
from halotile.known import known_model  # noqa: E402

from .networks import Chain, seeded  # noqa: E402


@pytest.fixture
def inspected(monkeypatch):
    """How often models were inspected."""
    calls = []
    own = inspection.inspect_model
    monkeypatch.setattr(inspection, "inspect_model", lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs))
    return calls


def files(path):
    return sorted(path.iterdir()) if path.exists() else []


def test_a_model_is_known_by_structure_and_weights(inspected, tmp_path):
    first = known_model(seeded(lambda: Chain(1, width=4)))
    assert known_model(seeded(lambda: Chain(1, width=4))) == first
    assert len(inspected) == 1
    known_model(seeded(lambda: Chain(1, width=4), seed=1))
    known_model(seeded(lambda: Chain(1, width=4, mode="reflect")))
    model = seeded(lambda: Chain(1, width=4))
    known_model(model, None, "float32")
    assert len(inspected) == 4

    class Other(Chain):
        def forward(self, x):
            return super().forward(x) * 2

    known_model(seeded(lambda: Other(1, width=4)))
    assert len(inspected) == 5


def test_settings_and_code_tell_models_apart(inspected):
    class Reaching(torch.nn.Module):
        def __init__(self, reach):
            super().__init__()
            self.reach = reach

        def forward(self, x):
            return x + sum(torch.roll(x, i, 3) for i in range(self.reach))  # a generator: code within code

    assert known_model(Reaching(3)).receptive_field[0] == 2
    assert known_model(Reaching(5)).receptive_field[0] == 4
    known_model(Reaching(5))
    assert len(inspected) == 2
    patched = Reaching(5)
    patched.forward = lambda x: x
    assert known_model(patched).receptive_field[0] == 0


class Pooled(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        for name, value in settings.items():
            object.__setattr__(self, name, value)

    def pooled(self, x, reach):
        return torch.nn.functional.max_pool2d(x, 2 * reach + 1, 1, reach)

    @property
    def found(self):
        return known_model(self.eval()).receptive_field.left


def test_settings_of_every_kind_tell_models_apart():
    class Plain(Pooled):
        def forward(self, x):
            return self.pooled(x, int(self._reach))

    class Inside(Pooled):
        def forward(self, x):
            return self.pooled(x, self.config.reach)

    class Called(Pooled):
        def forward(self, x):
            return self.call(x)

    class Kernel(Pooled):
        def forward(self, x):
            kernel = torch.as_tensor(self.kernel)
            return torch.nn.functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=3)

    kernels = [np.ones((3, 1, 2 * reach + 1, 2 * reach + 1), np.float32) for reach in (1, 5)]
    pairs = [(Plain(_reach=a), a) for a in (1, 5)] + [(Plain(_reach=np.int64(a)), a) for a in (2, 4)]
    pairs += [(Inside(config=types.SimpleNamespace(reach=a)), a) for a in (1, 5)]
    pairs += [
        (Called(call=functools.partial(torch.nn.functional.max_pool2d, kernel_size=2 * a + 1, stride=1, padding=a)), a)
        for a in (1, 5)
    ]
    pairs += [(Called(call=lambda x, a=a: torch.nn.functional.max_pool2d(x, 2 * a + 1, 1, a)), a) for a in (1, 5)]
    pairs += [(Kernel(kernel=kernel), left) for kernel, left in zip(kernels, (1, 5), strict=True)]
    pairs += [(Kernel(kernel=torch.from_numpy(kernel)), left) for kernel, left in zip(kernels, (1, 5), strict=True)]
    for model, left in pairs:
        assert model.found == left


def test_a_class_that_is_changed_is_another():
    class Reaching(Pooled):
        reach = 1

        def forward(self, x):
            return self.pooled(x, self.reach)

    assert Reaching().found == 1
    Reaching.reach = 5
    assert Reaching().found == 5


def test_it_is_found_again_in_another_process(tmp_path):
    program = """
import torch
from tests.networks import Chain, seeded
from halotile.known import about
print(about(seeded(lambda: Chain(2)), None))
"""
    run = [sys.executable, "-c", program]
    first, second = (subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert len(first) > 64


def test_what_is_no_module_is_not_kept(inspected, tmp_path):
    for _ in range(2):
        known_model(lambda windows: windows * 1)
    hooked = seeded(lambda: Chain(1, width=4))
    hooked.register_forward_hook(lambda *args: None)
    known_model(hooked)
    assert len(inspected) == 3


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '"{}"', json.dumps(json.dumps({"format": "other"}))])
def test_what_is_spoilt_is_found_out_again(inspected, monkeypatch, tmp_path, text):
    monkeypatch.setenv("HALOTILE_CACHE", str(tmp_path / "kept"))
    want = known_model(seeded(lambda: Chain(1, width=4)))
    (kept,) = files(tmp_path / "kept")
    kept.write_text(text)
    assert known_model(seeded(lambda: Chain(1, width=4))) == want
    assert len(inspected) == 2
    assert known_model(seeded(lambda: Chain(1, width=4))) == want
    assert len(inspected) == 2


def test_nothing_is_kept_where_it_is_not_wanted_or_cannot_be(inspected, monkeypatch, tmp_path):
    monkeypatch.setenv("HALOTILE_CACHE", "")
    known_model(seeded(lambda: Chain(1, width=4)))
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("HALOTILE_CACHE", str(blocked))
    known_model(seeded(lambda: Chain(1, width=4)))
    assert len(inspected) == 2
    assert blocked.read_text() == ""
