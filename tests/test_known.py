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

from halotile import inspection, restore_tiled  # noqa: E402
from halotile.inspection import known  # noqa: E402
from halotile.inspection.known import about, known_model  # noqa: E402

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
from halotile.inspection.known import about
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


# ---- what may not be believed ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HALOTILE_CACHE", str(tmp_path / "kept"))

    def read():
        (path,) = files(tmp_path / "kept")
        return path, json.loads(path.read_text())

    return read


def test_an_entry_that_was_edited_is_not_believed(inspected, kept):
    """A field of 0 would be a wrong picture that is called exact."""
    want = known_model(seeded(lambda: Chain(2, width=4)))
    path, content = kept()
    info = json.loads(content["result"])
    info["receptive_field"] = info["local_field"] = [0, 0, 0, 0]
    path.write_text(json.dumps(content | {"result": json.dumps(info)}))
    assert known_model(seeded(lambda: Chain(2, width=4))) == want
    assert len(inspected) == 2


def test_an_entry_of_another_name_is_not_believed(inspected, kept):
    known_model(seeded(lambda: Chain(1, width=4)))
    path, _ = kept()
    text = path.read_text()
    path.unlink()
    want = known_model(seeded(lambda: Chain(2, width=4)))
    path, _ = kept()
    path.write_text(text)
    assert known_model(seeded(lambda: Chain(2, width=4))) == want
    assert want.receptive_field[0] == 2


SPOILT = {
    "receptive_field": [[-4] * 4, [10**29] * 4, [0.5] * 4, [True] * 4, [1, 2, 3], "1111", ["1"] * 4],
    "local_field": [[-1, 0, 0, 0]],
    "phase": [[0, 1], [1], [1.5, 1], ["a", 1], 3, None],
    "scale": ["0", "-1", "1/0", "nan", 2, None, "4096", [1]],
    "minimum_size": [[0, 1], None, [1, 1, 1]],
    "multiple": [[0, 0], "11"],
    "trim": [["a", "b"], [1e300, 0], [1]],
    "in_channels": [0, -3, 1.5, "3", True],
    "value_range": [[1, 0], [0], ["a", "b"], [float("nan"), 1]],
    "global_operations": [[["a", "b"]], [[1, 2, 3]], 5],
    "deterministic": ["yes", 1, None],
    "edges_local": [0],
    "clamps": ["no"],
    "how": [[["a", 1]], "x", None, {"a": 1}],
    "doubts": [[1], None],
}


@pytest.mark.parametrize("name", SPOILT)
def test_entries_are_checked_like_any_input(inspected, kept, name):
    """Also where somebody has made the checksum anew."""
    from halotile import cache
    from halotile.inspection import ModelInfo

    want = known_model(seeded(lambda: Chain(1, width=4)))
    path, content = kept()
    for number, value in enumerate(SPOILT[name]):
        spoilt = json.dumps(json.loads(content["result"]) | {name: value})
        with pytest.raises(ValueError):
            ModelInfo.from_json(spoilt)
        path.write_text(json.dumps({"checksum": cache._checksum(path, spoilt), "result": spoilt}))
        assert known_model(seeded(lambda: Chain(1, width=4))) == want
        assert len(inspected) == number + 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("built", [torch.inference_mode, torch.no_grad])
def test_inspection_is_the_same_in_every_grad_mode(kept, mode, built):
    from halotile import inspect_model, restore_tiled

    want = inspect_model(seeded(lambda: Chain(2, width=4)))
    with built():
        model = seeded(lambda: Chain(2, width=4))
    with mode():
        assert inspect_model(model) == want
        assert known_model(model) == want
        restore_tiled(np.zeros((40, 50, 3), np.uint8), model, halo="exact", tile_size=24)
    assert kept()[1]["result"] == want.to_json()
    assert known_model(seeded(lambda: Chain(2, width=4))) == want


def test_what_failed_is_not_kept(kept, tmp_path):
    """Elsewhere, or with more memory, it may succeed."""

    class Odd(torch.nn.Module):
        def forward(self, x):
            if x.shape[2] > 5 * x.shape[3]:
                raise ArithmeticError("no such windows")
            return torch.nn.functional.max_pool2d(x, 3, 1, 1)

    info = known_model(Odd())
    assert not info.certain
    assert not files(tmp_path / "kept")


def test_a_quick_look_is_kept_where_it_took_long(kept, monkeypatch):
    from halotile.inspection import known, quick

    calls, own = [], quick.quick_look
    monkeypatch.setattr(quick, "quick_look", lambda *args: calls.append(1) or own(*args))
    monkeypatch.setattr(known, "WORTH_KEEPING", -1)
    for _ in range(2):
        model = seeded(lambda: Chain(2, width=4))
        assert known.known_quick(model, (3,)).phase == (1, 1)
        assert known.known_quick(model, (3,)).trim == (0, 0)
    assert len(calls) == 1
    path, _ = kept()
    for spoilt in ('{"phase": [0, 1], "scale": "1", "trim": [0, 0]}', '{"phase": 3}', "[]", '{"phase": null}', None):
        from halotile import cache

        path.write_text(json.dumps({"checksum": cache._checksum(path, spoilt), "result": spoilt}))
        assert known.known_quick(seeded(lambda: Chain(2, width=4)), (3,)).phase == (1, 1)
    assert len(calls) == 6


def test_what_a_module_holds_beside_its_parts_tells_it_apart_or_nothing_does():
    """Weights that are no parameters of its own; functions, which have another address in every process."""

    class Holding(torch.nn.Module):
        def __init__(self, held):
            super().__init__()
            self.held = held

        def forward(self, x):
            return x

    assert about(Holding([torch.nn.Conv2d(3, 3, 1)]), None) is None
    assert about(Holding(torch.Generator()), None) is None
    for held in (torch.relu, torch.nn.functional.gelu, torch.Tensor.abs, torch.float16, torch.device("cpu"), len):
        text = str(known._plain(held))
        assert "0x" not in text
        assert about(Holding(held), None) is not None


def test_a_module_that_cannot_describe_itself_is_not_known():
    class Silent(torch.nn.Conv2d):
        def extra_repr(self):
            raise AttributeError("no such attribute")

    model = Silent(3, 3, 3, padding=1)
    assert about(model, None) is None
    assert known.known_quick(model, (3,)).phase == (1, 1)
    image = np.zeros((12, 10, 3), np.float32)
    assert restore_tiled(image, model, halo="exact").shape == image.shape
